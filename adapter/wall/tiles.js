// The wall itself: sections of groups, a tile per agent, and moving between tiles by keyboard.
// Rules: text from the wire goes in by textContent alone. A frame draws for DRAW_MS at most, and only what changed.

import {
  clock, DIRECTION_WORDS, duration, eventWords, partyWords, PHASE_WORDS, plural, STATE_WORDS,
} from "./format.js";
import { belief, shownState, trouble } from "./model.js";

const DRAW_MS = 8;
const TILE_EVENTS = 10;
const NO_GROUP = "";

const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

const byPlace = (a, b) => {
  // Infinity - Infinity is NaN, and so falls through to the work number.
  return a.order - b.order || collator.compare(a.workNo, b.workNo);
};

/** Set text only where it differs: writing the same text again costs a layout all the same. */
function put(element, value) {
  if (element.textContent !== value) element.textContent = value;
}

function mark(element, name, value) {
  if (element.dataset[name] !== value) element.dataset[name] = value;
}

/** Point a <use> at a symbol of the sprite in index.html. */
export function setIcon(svg, name) {
  const href = `#${name}`;
  const use = svg.firstElementChild;
  if (use.getAttribute("href") !== href) use.setAttribute("href", href);
}

export class Tiles {
  #root;
  #bridge;
  #onOpen;
  #tiles = new Map();
  #sections = new Map();
  #dirty = new Set();
  #frame = 0;
  #filter = null;
  #template = document.getElementById("tile");

  /** `onOpen(agent)` when a tile is activated by click or key. */
  constructor(root, bridge, onOpen) {
    this.#root = root;
    this.#bridge = bridge;
    this.#onOpen = onOpen;
    root.addEventListener("keydown", (event) => this.#move(event));
  }

  /** Draw an agent's tile with the next frame. */
  touch(agent) {
    this.#dirty.add(agent);
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  touchAll() {
    for (const { agent } of this.#tiles.values()) this.touch(agent);
  }

  /** Show one state alone, or all (null). */
  filter(state) {
    this.#filter = state;
    this.touchAll();
  }

  /** Write the times that run. `now` stands still while the page is cut off: what runs on then is not known. */
  tick(now) {
    for (const tile of this.#tiles.values()) this.#drawTimes(tile, now);
  }

  get size() {
    return this.#tiles.size;
  }

  #draw() {
    this.#frame = 0;
    const end = performance.now() + DRAW_MS;
    for (const agent of this.#dirty) {
      this.#dirty.delete(agent);
      if (agent.removed) this.#remove(agent);
      else this.#drawTile(this.#place(agent));
      if (performance.now() > end) break;
    }
    if (this.#dirty.size) this.#frame = requestAnimationFrame(() => this.#draw());
    const density = this.#tiles.size <= 16 ? "roomy" : this.#tiles.size <= 60 ? "normal" : "dense";
    mark(this.#root, "density", density);
    document.getElementById("waiting").hidden = this.#tiles.size > 0;
    for (const section of this.#sections.values()) this.#drawSection(section);
  }

  #drawSection(section) {
    const shown = section.tiles.filter((tile) => !tile.element.hidden).length;
    section.element.hidden = shown === 0;
    put(section.count, plural(section.tiles.length, "agent"));
    put(section.heading, section.group || (this.#sections.size > 1 ? "No group" : "All agents"));
  }

  /** Give the agent's tile, in its group and at its place there; make it where it is new. */
  #place(agent) {
    let tile = this.#tiles.get(agent.workNo);
    if (!tile) {
      tile = this.#make(agent);
      this.#tiles.set(agent.workNo, tile);
    }
    tile.agent = agent;
    const group = agent.group || NO_GROUP;
    const place = `${group}\n${agent.order}`;
    if (tile.place !== place) {
      this.#takeOut(tile);
      tile.place = place;
      const section = this.#section(group);
      const index = section.tiles.findIndex((other) => byPlace(agent, other.agent) < 0);
      const next = index < 0 ? null : section.tiles[index];
      section.grid.insertBefore(tile.element, next && next.element);
      section.tiles.splice(index < 0 ? section.tiles.length : index, 0, tile);
      tile.section = section;
    }
    return tile;
  }

  #takeOut(tile) {
    const { section } = tile;
    if (!section) return;
    section.tiles.splice(section.tiles.indexOf(tile), 1);
    tile.element.remove();
    if (section.tiles.length === 0) {
      section.element.remove();
      this.#sections.delete(section.group);
    }
  }

  #remove(agent) {
    const tile = this.#tiles.get(agent.workNo);
    if (!tile) return;
    const focused = tile.element.contains(document.activeElement);
    this.#takeOut(tile);
    this.#tiles.delete(agent.workNo);
    if (tile.name.tabIndex === 0 || focused) this.#rove(this.#root.querySelector(".name"), focused);
  }

  #section(group) {
    let section = this.#sections.get(group);
    if (section) return section;
    const element = document.getElementById("section").content.firstElementChild.cloneNode(true);
    const heading = element.querySelector(".group");
    heading.id = `group-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
    element.setAttribute("aria-labelledby", heading.id);
    section = {
      group, element, heading, count: element.querySelector(".count"), grid: element.querySelector(".grid"), tiles: [],
    };
    const later = [...this.#sections.values()]
      .filter((other) => other.group === NO_GROUP || (group !== NO_GROUP && collator.compare(group, other.group) < 0))
      .sort((a, b) => (a.group === NO_GROUP) - (b.group === NO_GROUP) || collator.compare(a.group, b.group));
    this.#root.insertBefore(element, later.length ? later[0].element : null);
    this.#sections.set(group, section);
    return section;
  }

  #make(agent) {
    const element = this.#template.content.firstElementChild.cloneNode(true);
    const find = (name) => element.querySelector(`.${name}`);
    const tile = { agent, element, section: null, place: null };
    const parts = [
      "icon", "state", "known", "time", "name", "number", "note", "call", "phase-icon", "phase", "party",
      "call-time", "events",
    ];
    for (const part of parts) tile[part] = find(part);
    element.dataset.workNo = agent.workNo;
    tile.name.tabIndex = this.#tiles.size ? -1 : 0;
    tile.name.addEventListener("click", () => this.#onOpen(tile.agent));
    tile.name.addEventListener("focus", () => this.#rove(tile.name, false));
    return tile;
  }

  #drawTile(tile) {
    const { agent, element } = tile;
    const bridge = this.#bridge();
    const state = shownState(agent, bridge);
    const believed = belief(agent, bridge);
    mark(element, "state", Object.hasOwn(STATE_WORDS, state) ? state : "unknown");
    mark(element, "belief", believed);
    element.hidden = this.#filter !== null && this.#filter !== state;
    setIcon(tile.icon, `s-${Object.hasOwn(STATE_WORDS, state) ? state : "unknown"}`);
    put(tile.state, STATE_WORDS[state] ?? state);
    tile.known.hidden = believed !== "last-known";
    put(tile.name, agent.name || `Agent ${agent.workNo}`);
    put(tile.number, agent.name ? agent.workNo : "");
    this.#drawNote(tile, believed, bridge);
    this.#drawCall(tile);
    this.#drawEvents(tile);
    this.#drawTimes(tile, tile.now ?? Date.now());
  }

  #drawNote(tile, believed, bridge) {
    const { agent } = tile;
    const wrong = bridge.availability === "offline" ? "Adapter offline" : trouble(agent);
    const note = wrong ?? (believed === "last-known" ? "Offline" : agent.reason ? `Reason ${agent.reason}` : "");
    tile.note.hidden = note === "";
    put(tile.note, note);
    mark(tile.note, "wrong", String(believed === "last-known" || (Boolean(wrong) && believed === "live")));
  }

  #drawCall(tile) {
    const { call } = tile.agent;
    mark(tile.element, "phase", call?.phase ?? "");
    tile.call.hidden = !call;
    if (!call) return;
    setIcon(tile["phase-icon"], `c-${Object.hasOwn(PHASE_WORDS, call.phase) ? call.phase : "talking"}`);
    put(tile.phase, PHASE_WORDS[call.phase] ?? call.phase);
    put(tile.party, partyWords(call));
    tile.party.title = [DIRECTION_WORDS[call.direction], call.caller, call.called].filter(Boolean).join(" · ");
  }

  #drawEvents(tile) {
    const events = tile.agent.events.slice(0, TILE_EVENTS);
    const rows = tile.events.children;
    while (rows.length > events.length) tile.events.lastElementChild.remove();
    while (rows.length < events.length) {
      tile.events.append(document.getElementById("event").content.firstElementChild.cloneNode(true));
    }
    events.forEach((event, index) => {
      const [at, what, late] = rows[index].children;
      put(at, clock(event.at));
      put(what, eventWords(event.eventType));
      rows[index].title = event.eventType;
      late.hidden = !event.replayed;
    });
  }

  #drawTimes(tile, now) {
    tile.now = now;
    const { agent } = tile;
    // How long the last known state went on is not known; how long the agent is away is.
    const away = tile.element.dataset.belief === "last-known" && agent.session?.phase !== "polling";
    const since = away || tile.element.dataset.belief === "out" ? (agent.session?.since ?? agent.since) : agent.since;
    put(tile.time, Number.isFinite(since) ? duration(now - since) : "");
    put(tile["call-time"], agent.call && Number.isFinite(agent.callSince) ? duration(now - agent.callSince) : "");
  }

  /** Make one name the only stop of the Tab key among all tiles. */
  #rove(name, focus) {
    if (!name) return;
    for (const other of this.#root.querySelectorAll('.name[tabindex="0"]')) other.tabIndex = -1;
    name.tabIndex = 0;
    if (focus) name.focus();
  }

  #move(event) {
    const current = document.activeElement?.closest?.(".tile");
    if (!current || event.altKey || event.ctrlKey || event.metaKey) return;
    const shown = [...this.#root.querySelectorAll(".tile")].filter((tile) => tile.offsetParent !== null);
    const index = shown.indexOf(current);
    const next = {
      ArrowRight: () => shown[index + 1],
      ArrowLeft: () => shown[index - 1],
      Home: () => shown[0],
      End: () => shown.at(-1),
      ArrowDown: () => below(shown.slice(index + 1), current),
      ArrowUp: () => below(shown.slice(0, index).reverse(), current),
    }[event.key]?.();
    if (!next) return;
    event.preventDefault();
    this.#rove(next.querySelector(".name"), true);
  }
}

/** The first tile of another row that stands in the same column, or the nearest in the next row. */
function below(candidates, current) {
  const here = current.getBoundingClientRect();
  const rows = candidates.map((tile) => ({ tile, box: tile.getBoundingClientRect() }));
  const other = rows.filter(({ box }) => Math.abs(box.top - here.top) > 1);
  if (!other.length) return undefined;
  const row = other.filter(({ box }) => Math.abs(box.top - other[0].box.top) <= 1);
  row.sort((a, b) => Math.abs(a.box.left - here.left) - Math.abs(b.box.left - here.left));
  return row[0].tile;
}
