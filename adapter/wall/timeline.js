// An agent's time line: the last minutes, up to an hour, as a picture, and events and calls as one list, newest first.
// Rule: text from the wire goes in by textContent alone.

import { age, clock, DIRECTION_WORDS, duration, eventWords, PHASE_WORDS, STATE_WORDS, STATES } from "./format.js";
import { knownState, put } from "./tile.js";

// The picture is of all that was seen, within these.
const LEAST_MS = 300_000;
const MOST_MS = 3_600_000;
const PICTURE_MS = 1_000;
const WIDTH = 1000;

const $ = (id) => document.getElementById(id);
const clone = (id) => $(id).content.firstElementChild.cloneNode(true);

function shape(name, attributes) {
  const element = document.createElementNS($("detail-picture").namespaceURI, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** When each of a list of `{ at }` ended: where the next began, the last one now. */
const spans = (list, now) => list.map((item, index) => ({ ...item, end: list[index + 1]?.at ?? now }));

function callWords(call, now) {
  const parties = [call.caller, call.called].filter(Boolean).join(" → ");
  const ended = call.ended ? call.endedAt : now;
  const length = Number.isFinite(call.at) ? duration(ended - call.at) : null;
  const lasted = length && (call.ended ? length : `${length} so far`);
  return {
    what: ["Call", DIRECTION_WORDS[call.direction], parties].filter(Boolean).join(" · "),
    lasted: lasted ?? (call.ended ? "" : "under way since before this page was opened"),
    phases: spans(call.phases, ended)
      .map(({ phase, at, end }) => [PHASE_WORDS[phase] ?? phase, Number.isFinite(at) ? duration(end - at) : ""].join(" ").trim())
      .join(", "),
  };
}

export class Timeline {
  #agent = null;
  #listed = "";
  #pictured = NaN;
  #running = null;

  show(agent) {
    this.#agent = agent;
    this.#listed = "";
    this.#pictured = NaN;
  }

  draw(now) {
    const { events, history } = this.#agent;
    const listed = `${history.version} ${events.map((event) => event.id).join()}`;
    if (listed !== this.#listed) {
      this.#listed = listed;
      this.#pictured = NaN;
      this.#list(now);
    }
    if (!(now - this.#pictured < PICTURE_MS)) {
      this.#pictured = now;
      this.#picture(now);
    }
    if (this.#running) this.#drawCall(this.#running.row, this.#running.call, now);
  }

  #list(now) {
    const { events, history } = this.#agent;
    this.#running = null;
    const rows = [
      ...events.map((event) => ({ at: event.at, row: this.#event(event) })),
      // A call that was there before the page stands where the oldest is.
      ...history.calls.map((call) => ({ at: Number.isFinite(call.at) ? call.at : -Infinity, row: this.#call(call, now) })),
    ];
    // Events of one moment keep their order, which is that of `seq`.
    rows.sort((a, b) => (a.at === b.at ? 0 : b.at - a.at));
    $("detail-events").replaceChildren(...rows.map(({ row }) => row));
    $("detail-none").hidden = rows.length > 0;
  }

  #event(event) {
    const row = clone("detail-event");
    row.querySelector(".what").textContent = eventWords(event.eventType);
    row.querySelector(".type").textContent = event.eventType;
    row.querySelector("time").textContent = clock(event.at);
    row.querySelector(".late").hidden = !event.replayed;
    const content = row.querySelector(".content");
    content.hidden = event.content === null;
    if (!content.hidden) {
      content.textContent = typeof event.content === "string" ? event.content : JSON.stringify(event.content, null, 1);
    }
    return row;
  }

  #call(call, now) {
    const row = clone("detail-call");
    row.querySelector("time").textContent = clock(call.at);
    this.#drawCall(row, call, now);
    if (!call.ended) this.#running = { row, call };
    return row;
  }

  #drawCall(row, call, now) {
    const words = callWords(call, now);
    for (const part of ["what", "lasted", "phases"]) put(row.querySelector(`.${part}`), words[part]);
  }

  /** States as one band, calls as another below it, and its sum in words, which is all that a screen reader needs. */
  #picture(now) {
    const { history } = this.#agent;
    const shown = Math.min(MOST_MS, Math.max(LEAST_MS, now - (history.states[0]?.at ?? now)));
    const start = now - shown;
    const x = (moment) => (Math.max(0, moment - start) / shown) * WIDTH;
    const sums = new Map();
    const bands = [];
    for (const { state, at, end } of spans(history.states, now)) {
      if (end <= start || state === null) continue;
      const known = knownState(state);
      sums.set(known, (sums.get(known) ?? 0) + end - Math.max(start, at));
      bands.push(shape("rect", { x: x(at), width: Math.max(1, x(end) - x(at)), y: 0, height: 18, "data-state": known }));
    }
    for (const call of history.calls) {
      const [at, end] = [Number.isFinite(call.at) ? call.at : start, call.ended ? call.endedAt : now];
      if (end > start) bands.push(shape("rect", { x: x(at), width: Math.max(2, x(end) - x(at)), y: 21, height: 7, class: "call-band" }));
    }
    $("detail-picture").replaceChildren(...bands);
    const words = STATES.filter((state) => sums.get(state) >= 1000).map((state) => `${STATE_WORDS[state]} ${age(sums.get(state))}`);
    put($("detail-sums"), words.length ? `In the last ${age(shown)}: ${words.join(", ")}.` : "");
  }
}
