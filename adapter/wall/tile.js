// One agent's tile: made once, then only what changed in it is written.
// Rule: text from the wire goes in by textContent alone.

import {
  clock, DIRECTION_WORDS, duration, eventWords, partyWords, PHASE_WORDS, STATE_WORDS,
} from "./format.js";
import { belief, shownState, trouble } from "./model.js";

const EVENTS = 10;
const PARTS = [
  "icon", "state", "known", "time", "name", "number", "note", "call", "phase-icon", "phase", "party", "call-time", "events",
];

/** Set text only where it differs: writing the same text again costs a layout all the same. */
export function put(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

export function mark(element, name, value) {
  if (element.dataset[name] !== value) element.dataset[name] = value;
}

/** Point a <use> at a symbol of the sprite in index.html. */
export function setIcon(svg, name) {
  const href = `#${name}`;
  const use = svg.firstElementChild;
  if (use.getAttribute("href") !== href) use.setAttribute("href", href);
}

export const knownState = (state) => (Object.hasOwn(STATE_WORDS, state) ? state : "unknown");

export class Tile {
  /** Whether it is on the screen, or near it: only then are its times worth writing. */
  visible = false;
  section = null;
  key = null;
  element = document.getElementById("tile").content.firstElementChild.cloneNode(true);
  parts = Object.fromEntries(PARTS.map((name) => [name, this.element.querySelector(`.${name}`)]));

  constructor(agent) {
    this.agent = agent;
    this.element.dataset.workNo = agent.workNo;
  }

  /** Draw all of it but its times; with the group's name where the tiles do not stand in groups. */
  draw(bridge, { grouped }) {
    const { agent, element, parts } = this;
    const state = shownState(agent, bridge);
    const believed = belief(agent, bridge);
    mark(element, "state", knownState(state));
    mark(element, "belief", believed);
    setIcon(parts.icon, `s-${knownState(state)}`);
    put(parts.state, STATE_WORDS[state] ?? state);
    parts.known.hidden = believed !== "last-known";
    put(parts.name, agent.name || `Agent ${agent.workNo}`);
    put(parts.number, [agent.name ? agent.workNo : "", grouped ? "" : agent.group].filter(Boolean).join(" · "));
    this.#drawNote(believed, bridge);
    this.#drawCall();
    this.#drawEvents();
  }

  /** Write the times that run. */
  drawTimes(now) {
    const { agent, element, parts } = this;
    // How long the last known state went on is not known; how long the agent is away is.
    const away = element.dataset.belief === "last-known" && agent.session?.phase !== "polling";
    const since = away || element.dataset.belief === "out" ? (agent.session?.since ?? agent.since) : agent.since;
    put(parts.time, Number.isFinite(since) ? duration(now - since) : "");
    put(parts["call-time"], agent.call && Number.isFinite(agent.callSince) ? duration(now - agent.callSince) : "");
  }

  #drawNote(believed, bridge) {
    const { agent, parts } = this;
    const wrong = bridge.availability === "offline" ? "Adapter offline" : trouble(agent);
    const note = wrong ?? (believed === "last-known" ? "Offline" : agent.reason ? `Reason ${agent.reason}` : "");
    parts.note.hidden = note === "";
    put(parts.note, note);
    mark(parts.note, "wrong", String(believed === "last-known" || (Boolean(wrong) && believed === "live")));
  }

  #drawCall() {
    const { element, parts } = this;
    const { call } = this.agent;
    mark(element, "phase", call?.phase ?? "");
    parts.call.hidden = !call;
    if (!call) return;
    setIcon(parts["phase-icon"], `c-${Object.hasOwn(PHASE_WORDS, call.phase) ? call.phase : "talking"}`);
    put(parts.phase, PHASE_WORDS[call.phase] ?? call.phase);
    put(parts.party, partyWords(call));
    parts.party.title = [DIRECTION_WORDS[call.direction], call.caller, call.called].filter(Boolean).join(" · ");
  }

  #drawEvents() {
    const events = this.agent.events.slice(0, EVENTS);
    const list = this.parts.events;
    while (list.children.length > events.length) list.lastElementChild.remove();
    while (list.children.length < events.length) {
      list.append(document.getElementById("event").content.firstElementChild.cloneNode(true));
    }
    events.forEach((event, index) => {
      const row = list.children[index];
      const [at, what, late] = row.children;
      put(at, clock(event.at));
      put(what, eventWords(event.eventType));
      if (row.title !== event.eventType) row.title = event.eventType;
      late.hidden = !event.replayed;
    });
  }
}
