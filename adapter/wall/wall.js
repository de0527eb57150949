// Puts the page together: settings -> link -> model -> what is drawn. Nothing is drawn here itself.

import { CallData } from "./calldata.js";
import { Detail } from "./detail.js";
import { Header } from "./header.js";
import { Link } from "./link.js";
import { Model } from "./model.js";
import { Tiles } from "./tiles.js";

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

function sendToggle() {
  // A phone's small screen is for the agents; the box comes when it is called.
  $("send").hidden = matchMedia("(max-width: 40rem)").matches;
  $("send-toggle").setAttribute("aria-expanded", String(!$("send").hidden));
  $("send-toggle").addEventListener("click", () => {
    $("send").hidden = !$("send").hidden;
    $("send-toggle").setAttribute("aria-expanded", String(!$("send").hidden));
  });
}

async function start() {
  themeButton();
  sendToggle();
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
  const link = new Link(settings, {
    up: () => {
      model.connected(Date.now());
      tick();
    },
    settled: () => model.prune(),
    down: () => {
      if (Number.isFinite(link.heardAt)) model.cutOff(link.cutAt);
      tick();
    },
    message: (topic, payload) => {
      if (topic.startsWith(results) && topic.endsWith("/calldata/result")) callData.result(payload);
      else model.take(topic, payload, Date.now());
    },
  });

  const header = new Header(model, link, (state) => tiles.filter(state));
  const callData = new CallData(model, link, (subject, words) => header.announce(subject, words));
  const detail = new Detail(model, (workNo) => {
    if ($("send").hidden) $("send-toggle").click();
    callData.choose(workNo);
  });
  tiles = new Tiles($("wall"), () => model.bridge, (agent) => detail.open(agent));

  function tick() {
    const now = Date.now();
    header.draw(now);
    callData.tick(now);
    tiles.tick(link.up || !Number.isFinite(link.heardAt) ? now : link.heardAt);
    detail.draw(now);
  }
  tick();
  // A little over a second would skip one now and then; four times a second keeps counts and clocks together.
  setInterval(() => document.hidden || tick(), 250);
  document.addEventListener("visibilitychange", tick);
}

start().catch((error) => {
  $("waiting").hidden = false;
  $("waiting").textContent = `This page could not start: ${error.message}`;
});
