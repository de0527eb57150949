// Puts the page together: settings -> log-in -> link -> model -> what is drawn. Nothing is drawn here itself.

import { CallData } from "./calldata.js";
import { Detail } from "./detail.js";
import { Header } from "./header.js";
import { Link } from "./link.js";
import { Login } from "./login.js";
import { Model } from "./model.js";
import { Tiles } from "./tiles.js";
import { View } from "./view.js";

const $ = (id) => document.getElementById(id);

function themeButton() {
  const order = ["auto", "light", "dark"];
  const root = document.documentElement;
  const show = () => {
    const theme = root.dataset.theme ?? "auto";
    $("theme").dataset.theme = theme;
    $("theme").setAttribute("aria-label", `Theme: ${theme}. Change it.`);
    $("theme").title = `Theme: ${theme}`;
    $("theme-icon").setAttribute("href", `#t-${theme}`);
  };
  $("theme").addEventListener("click", () => {
    const next = order[(order.indexOf(root.dataset.theme ?? "auto") + 1) % order.length];
    if (next === "auto") delete root.dataset.theme;
    else root.dataset.theme = next;
    try {
      localStorage.setItem("wall.theme", next);
    } catch {
      // Without storage the choice lasts as long as the page.
    }
    show();
  });
  show();
}

/** A button that opens and closes a part of the page. A phone's small screen is for the agents: there it begins closed. */
function toggle(id, { open = false } = {}) {
  const button = $(`${id}-toggle`);
  const show = (shown) => {
    $(id).hidden = !shown;
    button.setAttribute("aria-expanded", String(shown));
  };
  show(open || !matchMedia("(max-width: 40rem)").matches);
  button.addEventListener("click", () => show($(id).hidden));
}

async function start() {
  themeButton();
  toggle("view", { open: location.hash.length > 1 });
  toggle("send");
  const settings = await (await fetch("settings.json", { cache: "no-store" })).json();

  let tiles;
  let adapterWas = null;
  const model = new Model(settings.prefix, (agent) => {
    if (agent) tiles.touch(agent);
    else if (adapterWas !== model.bridge.availability) {
      adapterWas = model.bridge.availability;
      tiles.touchAll();
    }
  });

  const results = `${settings.prefix}/`;
  const link = new Link(settings.prefix, {
    up: () => {
      model.connected(Date.now());
      login.up();
      tick();
    },
    settled: () => model.prune(),
    down: () => {
      if (Number.isFinite(link.heardAt)) model.cutOff(link.cutAt);
      login.down();
      tick();
    },
    refused: () => login.refused(),
    message: (topic, payload, retained) => {
      if (topic.startsWith(results) && topic.endsWith("/calldata/result")) callData.result(payload);
      else model.take(topic, payload, Date.now(), retained);
    },
  });

  const view = new View(model, () => {
    tiles.touchAll();
    header.draw(Date.now());
    header.announceShown();
  });
  const header = new Header(model, link, view);
  const callData = new CallData(model, link, (subject, words) => header.announce(subject, words));
  const detail = new Detail(model, (workNo) => {
    if ($("send").hidden) $("send-toggle").click();
    callData.choose(workNo);
  });
  tiles = new Tiles($("wall"), model, view, (agent) => detail.open(agent));
  const login = new Login(settings, link);

  function tick() {
    const now = Date.now();
    header.draw(now);
    view.draw();
    callData.tick(now);
    tiles.tick(link.up || !Number.isFinite(link.heardAt) ? now : link.heardAt);
    detail.draw(now);
  }
  login.begin();
  tick();
  // A little over a second would skip one now and then; four times a second keeps counts and clocks together.
  setInterval(() => document.hidden || tick(), 250);
  document.addEventListener("visibilitychange", tick);
}

start().catch((error) => {
  $("waiting").hidden = false;
  $("waiting").textContent = `This page could not start: ${error.message}`;
});
