// The head of the page: how many agents in which state, and how well the way to here is: broker, adapter, backlog.

import { age, clock, plural, STATE_WORDS, STATES } from "./format.js";
import { shownState } from "./model.js";
import { put, setIcon } from "./tile.js";

// The adapter speaks every 60 s; after two and a half it is missing (as its own live check does).
const HEALTH_MISSING_MS = 150_000;
const RECOVERY_SHOWN_MS = 60_000;

const $ = (id) => document.getElementById(id);

export class Header {
  #model;
  #link;
  #view;
  #shown = 0;
  #chips = new Map();
  #spoken = new Map();

  /** A count that is pressed changes the view. */
  constructor(model, link, view) {
    this.#model = model;
    this.#link = link;
    this.#view = view;
    for (const state of STATES) {
      const chip = $("chip").content.firstElementChild.cloneNode(true);
      chip.dataset.state = state;
      setIcon(chip.querySelector("svg"), `s-${state}`);
      chip.querySelector(".chip-word").textContent = STATE_WORDS[state];
      chip.addEventListener("click", () => {
        view.choose({ state: view.state === state ? null : state });
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

  /** Say how many agents a new choice shows. */
  announceShown() {
    this.announce("view", this.#view.describe(this.#shown));
  }

  draw(now) {
    this.#drawCounts();
    this.#drawBroker(now);
    this.#drawAdapter(now);
    this.#drawBacklog(now);
    put($("clock"), clock(now, { seconds: false }));
  }

  /** Count the agents of the group and text that are looked for; of all states, as a count is what one chooses by. */
  #drawCounts() {
    const view = this.#view;
    const counts = Object.fromEntries(STATES.map((state) => [state, 0]));
    let counted = 0;
    let shown = 0;
    for (const agent of this.#model.agents.values()) {
      if (!view.counts(agent)) continue;
      const state = shownState(agent, this.#model.bridge);
      const known = Object.hasOwn(counts, state) ? state : "unknown";
      counts[known] += 1;
      counted += 1;
      shown += view.state === null || view.state === known;
    }
    for (const [state, { element, number }] of this.#chips) {
      put(number, String(counts[state]));
      element.classList.toggle("none", counts[state] === 0);
      element.setAttribute("aria-pressed", String(state === view.state));
      // An unknown state is the exception: it takes room only when there is one, or when it is looked for.
      element.hidden = state === "unknown" && counts[state] === 0 && view.state !== state;
    }
    this.#shown = shown;
    const all = this.#model.agents.size;
    put($("total"), shown === all ? plural(all, "agent") : `${shown.toLocaleString("en")} of ${plural(all, "agent")}`);
  }

  #drawBroker(now) {
    const { up, open, cutAt, heardAt, refused, denied } = this.#link;
    const ever = Number.isFinite(heardAt);
    document.body.classList.toggle("cut-off", !up && ever);
    $("broker").dataset.health = up ? "good" : open ? "bad" : "none";
    const words = up ? "Broker connected" : !open ? "Not logged in" : ever ? "Broker cut off" : "Broker not reached";
    put($("broker").lastElementChild, words);
    $("denied").hidden = !up || denied.length === 0;
    if (!$("denied").hidden) put($("denied-text"), `This log-in may not read ${denied.join(", ")}: what they tell is missing here.`);
    $("cut").hidden = up || !Number.isFinite(cutAt);
    if ($("cut").hidden) return;
    const old = ever ? ` What you see is ${age(now - heardAt)} old.` : " Nothing has been seen yet.";
    const why = refused ? " The broker does not take the log-in any more." : "";
    const begun = `Cut off from the broker since ${clock(cutAt)}.`;
    put($("cut-text"), `${begun}${why}${old}`);
    this.announce("broker", begun);
  }

  #drawAdapter(now) {
    const { availability, since, healthAt, heardAt } = this.#model.bridge;
    const { up } = this.#link;
    const offline = availability === "offline";
    const missing = availability === "online" && up && now - healthAt > HEALTH_MISSING_MS;
    const begun = `Adapter offline${Number.isFinite(since) ? ` since ${clock(since)}` : ""}`;
    const words = { online: missing ? `No word of the adapter for ${age(now - healthAt)}` : "Adapter online", offline: begun };
    $("adapter").dataset.health = offline || missing ? "bad" : availability === "online" ? "good" : "none";
    put($("adapter").lastElementChild, words[availability] ?? "Adapter unknown");
    document.body.classList.toggle("adapter-offline", offline);
    $("away").hidden = !up || !(offline || missing);
    if (!$("away").hidden) {
      const heard = Number.isFinite(heardAt) ? ` Last heard of at ${clock(heardAt)}, ${age(now - heardAt)} ago.` : "";
      const what = offline ? "Every state below is the last one known." : "What you see may be out of date.";
      put($("away-text"), `${words[availability]}. ${what}${heard}`);
    }
    if (offline) this.announce("adapter", begun);
    else if (missing) this.announce("adapter", "No word of the adapter.");
    else if (availability === "online") this.announce("adapter", "Adapter online");
  }

  #drawBacklog(now) {
    const { health, healthAt } = this.#model.bridge;
    const depth = Number(health?.outbox?.depth) || 0;
    const oldest = Number(health?.outbox?.oldestSeconds) || 0;
    const atRisk = Number(health?.outbox?.atRisk) || 0;
    const recovery = this.#model.recovery;
    const recovering = recovery.events > 0 && now - recovery.lastAt < RECOVERY_SHOWN_MS;

    $("outbox").dataset.health = depth || atRisk ? "warn" : health ? "good" : "none";
    put($("outbox").lastElementChild, depth ? `Outbox ${depth.toLocaleString("en")}` : health ? "Outbox empty" : "Outbox unknown");

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
