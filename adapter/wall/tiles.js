// The wall itself: tiles in sections, at their places, and moving between them by keyboard.
// Rule: a frame draws for DRAW_MS at most, and only what changed; times run only where they can be seen.

import { plural } from "./format.js";
import { mark, put, Tile } from "./tile.js";
import { compareGroups, compareKeys } from "./view.js";

const DRAW_MS = 8;
const NEAR = "200px";

export class Tiles {
  #root;
  #model;
  #view;
  #onOpen;
  #tiles = new Map();
  #byElement = new WeakMap();
  #sections = new Map();
  #dirty = new Set();
  /** The one tile among all where the Tab key stops. */
  #stop = null;
  #frame = 0;
  #now = Date.now();
  #seen = new IntersectionObserver((entries) => this.#look(entries), { rootMargin: NEAR });

  /** `onOpen(agent)` when a tile is activated by click or key. */
  constructor(root, model, view, onOpen) {
    this.#root = root;
    this.#model = model;
    this.#view = view;
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
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  /** Write the times that run. `now` stands still while the page is cut off: what runs on then is not known. */
  tick(now) {
    this.#now = now;
    for (const tile of this.#tiles.values()) if (tile.visible) tile.drawTimes(now);
  }

  #look(entries) {
    for (const { target, isIntersecting } of entries) {
      const tile = this.#byElement.get(target);
      tile.visible = isIntersecting;
      if (isIntersecting) tile.drawTimes(this.#now);
    }
  }

  #draw() {
    this.#frame = 0;
    const end = performance.now() + DRAW_MS;
    for (const agent of this.#dirty) {
      this.#dirty.delete(agent);
      if (agent.removed) this.#remove(agent);
      else this.#drawTile(agent);
      if (performance.now() > end) break;
    }
    if (this.#dirty.size) this.#frame = requestAnimationFrame(() => this.#draw());
    let shown = 0;
    for (const section of this.#sections.values()) shown += this.#drawSection(section);
    if (this.#stop?.element.hidden ?? true) this.#rove(this.#first(), false);
    const soon = shown + this.#dirty.size; // most of them will be shown, and each density costs a layout of all
    mark(this.#root, "density", soon <= 16 ? "roomy" : soon <= 60 ? "normal" : "dense");
    document.getElementById("waiting").hidden = this.#tiles.size > 0;
    document.getElementById("none").hidden = this.#tiles.size === 0 || shown > 0;
  }

  #drawTile(agent) {
    let tile = this.#tiles.get(agent.workNo);
    if (!tile) {
      tile = this.#make(agent);
      this.#tiles.set(agent.workNo, tile);
    }
    tile.agent = agent;
    this.#place(tile);
    tile.element.hidden = !this.#view.shows(agent);
    tile.draw(this.#model.bridge, this.#view);
    if (tile.visible) tile.drawTimes(this.#now);
  }

  #drawSection(section) {
    let shown = 0;
    for (const tile of section.tiles) shown += !tile.element.hidden;
    section.element.hidden = shown === 0;
    const all = section.tiles.length;
    put(section.count, shown === all ? plural(all, "agent") : `${shown} of ${plural(all, "agent")}`);
    const several = this.#sections.size > 1;
    put(section.heading, this.#view.grouped && (section.group || several) ? section.group || "No group" : "All agents");
    return shown;
  }

  #make(agent) {
    const tile = new Tile(agent);
    const { name } = tile.parts;
    name.tabIndex = -1;
    name.addEventListener("click", () => this.#onOpen(tile.agent));
    name.addEventListener("focus", () => this.#rove(tile, false));
    this.#byElement.set(tile.element, tile);
    this.#seen.observe(tile.element);
    return tile;
  }

  /** Put a tile where it belongs; one that is there already is not touched. */
  #place(tile) {
    const { agent } = tile;
    const name = this.#view.grouped ? `group ${agent.group ?? ""}` : this.#view.order;
    const key = this.#view.key(agent);
    if (tile.section?.name === name && compareKeys(tile.key, key) === 0) return;
    const focused = tile.element.contains(document.activeElement) ? document.activeElement : null;
    this.#takeOut(tile);
    tile.key = key;
    tile.section = this.#section(name, this.#view.grouped ? agent.group ?? "" : "");
    const { tiles, grid } = tile.section;
    let low = 0;
    for (let high = tiles.length; low < high;) {
      const middle = (low + high) >> 1;
      if (compareKeys(tiles[middle].key, key) <= 0) low = middle + 1;
      else high = middle;
    }
    grid.insertBefore(tile.element, tiles[low]?.element ?? null);
    tiles.splice(low, 0, tile);
    focused?.focus({ preventScroll: true }); // moving an element takes its focus away
  }

  #takeOut(tile) {
    const { section } = tile;
    if (!section) return;
    section.tiles.splice(section.tiles.indexOf(tile), 1);
    tile.element.remove();
    if (section.tiles.length) return;
    section.element.remove();
    this.#sections.delete(section.name);
  }

  #remove(agent) {
    const tile = this.#tiles.get(agent.workNo);
    if (!tile) return;
    const focused = tile.element.contains(document.activeElement);
    this.#takeOut(tile);
    this.#seen.unobserve(tile.element);
    this.#tiles.delete(agent.workNo);
    if (this.#stop !== tile) return;
    this.#stop = null;
    this.#rove(this.#first(), focused);
  }

  #section(name, group) {
    const made = this.#sections.get(name);
    if (made) return made;
    const element = document.getElementById("section").content.firstElementChild.cloneNode(true);
    const heading = element.querySelector(".group");
    heading.id = `group-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
    element.setAttribute("aria-labelledby", heading.id);
    const section = {
      name, group, element, heading, count: element.querySelector(".count"), grid: element.querySelector(".grid"), tiles: [],
    };
    const later = [...this.#sections.values()]
      .filter((other) => compareGroups(group, other.group) < 0)
      .sort((a, b) => compareGroups(a.group, b.group));
    this.#root.insertBefore(element, later.length ? later[0].element : null);
    this.#sections.set(name, section);
    return section;
  }

  #first() {
    return this.#byElement.get(this.#root.querySelector(".tile:not([hidden])"));
  }

  /** Make a tile the only stop of the Tab key among all. */
  #rove(tile, focus) {
    if (!tile) return;
    if (this.#stop) this.#stop.parts.name.tabIndex = -1;
    this.#stop = tile;
    tile.parts.name.tabIndex = 0;
    if (focus) tile.parts.name.focus();
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
    this.#rove(this.#byElement.get(next), true);
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
