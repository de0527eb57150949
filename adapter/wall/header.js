// The head of the page: how many agents in which state, and how well the way to here is: broker, adapter, backlog.

import { age, clock, plural, STATE_WORDS, STATES } from "./format.js";
import { shownState } from "./model.js";
import { setIcon } from "./tiles.js";

// The adapter speaks every 60 s; after two and a half it is missing (as its own live check does).
const HEALTH_MISSING_MS = 150_000;
const RECOVERY_SHOWN_MS = 60_000;

const $ = (id) => document.getElementById(id);

const put = (element, value) => {
  if (element.textContent !== value) element.textContent = value;
};

export class Header {
  #model;
  #link;
  #chips = new Map();
  #pressed = null;
  #spoken = new Map();

  /** `onFilter(state | null)` when a count is pressed. */
  constructor(model, link, onFilter) {
    this.#model = model;
    this.#link = link;
    for (const state of STATES) {
      const chip = $("chip").content.firstElementChild.cloneNode(true);
      chip.dataset.state = state;
      setIcon(chip.querySelector("svg"), `s-${state}`);
      chip.querySelector(".chip-word").textContent = STATE_WORDS[state];
      chip.addEventListener("click", () => {
        this.#pressed = this.#pressed === state ? null : state;
        for (const [other, { element }] of this.#chips) element.setAttribute("aria-pressed", other === this.#pressed);
        onFilter(this.#pressed);
      });
      $("counts").append(chip);
      this.#chips.set(state, { element: chip, number: chip.querySelector(".chip-number") });
    }
  }

  /** Say something to those who do not see the page; the same thing once. */
  announce(subject, words) {
    if (this.#spoken.get(subject) === words) return;
    this.#spoken.set(subject, words);
    const line = document.createElement("p");
    line.textContent = words;
    $("spoken").append(line);
    while ($("spoken").children.length > 5) $("spoken").firstElementChild.remove();
  }

  draw(now) {
    this.#drawCounts();
    this.#drawBroker(now);
    this.#drawAdapter(now);
    this.#drawBacklog(now);
    put($("clock"), clock(now, { seconds: false }));
  }

  #drawCounts() {
    const counts = Object.fromEntries(STATES.map((state) => [state, 0]));
    for (const agent of this.#model.agents.values()) {
      const state = shownState(agent, this.#model.bridge);
      counts[Object.hasOwn(counts, state) ? state : "unknown"] += 1;
    }
    for (const [state, { element, number }] of this.#chips) {
      put(number, String(counts[state]));
      element.classList.toggle("none", counts[state] === 0);
      // An unknown state is the exception: it takes room only when there is one, or when it is looked for.
      element.hidden = state === "unknown" && counts[state] === 0 && this.#pressed !== state;
    }
    put($("total"), plural(this.#model.agents.size, "agent"));
  }

  #drawBroker(now) {
    const { up, cutAt, heardAt } = this.#link;
    const ever = Number.isFinite(heardAt);
    document.body.classList.toggle("cut-off", !up && ever);
    $("broker").dataset.health = up ? "good" : "bad";
    put($("broker").lastElementChild, up ? "Broker connected" : ever ? "Broker cut off" : "Broker not reached");
    $("cut").hidden = up || !Number.isFinite(cutAt);
    if ($("cut").hidden) return;
    const old = ever ? ` What you see is ${age(now - heardAt)} old.` : " Nothing has been seen yet.";
    const begun = `Cut off from the broker since ${clock(cutAt)}.`;
    put($("cut-text"), `${begun}${old}`);
    this.announce("broker", begun);
  }

  #drawAdapter(now) {
    const { availability, since, healthAt } = this.#model.bridge;
    const missing = this.#link.up && now - healthAt > HEALTH_MISSING_MS;
    const words = { online: "Adapter online", offline: `Adapter offline since ${clock(since)}` };
    const state = availability === "online" && missing ? `No word of the adapter for ${age(now - healthAt)}` : null;
    $("adapter").dataset.health = availability === "online" && !missing ? "good" : availability ? "bad" : "none";
    put($("adapter").lastElementChild, state ?? words[availability] ?? "Adapter unknown");
    const offline = availability === "offline" && this.#link.up;
    $("away").hidden = !offline;
    document.body.classList.toggle("adapter-offline", availability === "offline");
    if (offline) {
      put($("away-text"), `${words.offline}. Every state below is the last one known.`);
      this.announce("adapter", words.offline);
    } else if (availability === "online") {
      this.announce("adapter", words.online);
    }
  }

  #drawBacklog(now) {
    const { health, healthAt } = this.#model.bridge;
    const depth = Number(health?.outbox?.depth) || 0;
    const oldest = Number(health?.outbox?.oldestSeconds) || 0;
    const atRisk = Number(health?.outbox?.atRisk) || 0;
    const recovery = this.#model.recovery;
    const recovering = recovery.events > 0 && now - recovery.lastAt < RECOVERY_SHOWN_MS;

    $("outbox").dataset.health = depth || atRisk ? "warn" : health ? "good" : "none";
    put($("outbox").lastElementChild, depth ? `Outbox ${depth.toLocaleString("en")}` : "Outbox empty");

    const said = [];
    if (atRisk) said.push(`${plural(atRisk, "event")} at risk: the outbox takes no more.`);
    if (depth) {
      const waited = oldest ? `, the oldest for ${age(oldest * 1000)}` : "";
      said.push(`Backlog: ${plural(depth, "message")} waiting${waited} (said at ${clock(healthAt)}).`);
    }
    if (recovering) {
      const out = recovery.backAt - recovery.cutAt;
      const after = Number.isFinite(out) ? ` after ${age(out)} without the broker` : "";
      const still = now - recovery.lastAt < 3000 ? "Catching up" : "Caught up";
      said.push(`${still}${after}: ${plural(recovery.events, "event")} came late.`);
    }
    $("backlog").hidden = said.length === 0 || !this.#link.up;
    $("backlog").dataset.kind = atRisk || depth ? "warn" : "good";
    if (!$("backlog").hidden) put($("backlog-text"), said.join(" "));
    if (this.#link.up && Number.isFinite(recovery.backAt)) {
      this.announce("broker", `Connected to the broker again at ${clock(recovery.backAt)}.`);
    }
  }
}
