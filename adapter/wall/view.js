// Which agents are shown, and in which order. It stands in the page's address, so that a screen can be
// opened, or bookmarked, as "#group=Support&order=longest".

import { plural, STATES } from "./format.js";
import { shownState } from "./model.js";

const ORDERS = ["place", "name", "number", "state", "longest"];
const NO_GROUP = "";
const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

const $ = (id) => document.getElementById(id);
const finite = (value, otherwise) => (Number.isFinite(value) ? value : otherwise);

/** Compare lists of numbers and texts, as `View.key` makes them. */
export function compareKeys(a, b) {
  for (let index = 0; index < a.length; index += 1) {
    const [x, y] = [a[index], b[index]];
    if (x === y) continue;
    const order = typeof x === "number" ? x - y : collator.compare(x, y);
    if (order) return order;
  }
  return 0;
}

/** Compare names of groups: that of no group is the last. */
export const compareGroups = (a, b) => (a === NO_GROUP) - (b === NO_GROUP) || collator.compare(a, b);

export class View {
  state = null;
  group = null;
  order = "place";
  text = "";

  #model;
  #onChange;
  #groups = "";

  /** `onChange()` when another choice was made. */
  constructor(model, onChange) {
    this.#model = model;
    this.#onChange = onChange;
    this.#read();
    window.addEventListener("hashchange", () => {
      this.#read();
      this.#changed();
    });
    $("view").addEventListener("submit", (event) => event.preventDefault());
    $("view-text").addEventListener("input", () => this.choose({ text: $("view-text").value }));
    $("view-group").addEventListener("change", () => {
      const { value } = $("view-group");
      this.choose({ group: value === "all" ? null : value.slice(1) });
    });
    $("view-order").addEventListener("change", () => this.choose({ order: $("view-order").value }));
    for (const id of ["view-all", "none-all"]) {
      $(id).addEventListener("click", () => {
        this.choose({ state: null, group: null, text: "" });
        $("view-text").focus();
      });
    }
  }

  /** Choose anew what is named: `state`, `group` (null is any), `text`, `order`. */
  choose(members) {
    Object.assign(this, members);
    const parameters = new URLSearchParams();
    for (const name of ["state", "group"]) if (this[name] !== null) parameters.set(name, this[name]);
    if (this.text.trim()) parameters.set("text", this.text.trim());
    if (this.order !== "place") parameters.set("order", this.order);
    history.replaceState(null, "", `#${parameters}`);
    this.#changed();
  }

  /** Whether an agent is of the group and has the text that are looked for, whatever its state. */
  counts(agent) {
    if (this.group !== null && (agent.group ?? NO_GROUP) !== this.group) return false;
    const looked = this.text.trim().toLowerCase();
    return !looked || `${agent.name ?? ""}\n${agent.workNo}\n${agent.group ?? ""}`.toLowerCase().includes(looked);
  }

  shows(agent) {
    return (this.state === null || shownState(agent, this.#model.bridge) === this.state) && this.counts(agent);
  }

  /** Whether agents stand in sections of their groups. */
  get grouped() {
    return this.order === "place";
  }

  /** What an agent's place is decided by, for `compareKeys`. */
  key(agent) {
    const since = finite(agent.since, Infinity);
    const state = shownState(agent, this.#model.bridge);
    return {
      place: [agent.order],
      name: [agent.name ? 0 : 1, agent.name ?? ""],
      number: [],
      state: [STATES.includes(state) ? STATES.indexOf(state) : STATES.length, since],
      longest: [since],
    }[this.order].concat(agent.workNo);
  }

  /** In words, for those who do not see the page. */
  describe(shown) {
    return `${plural(shown, "agent")} of ${this.#model.agents.size.toLocaleString("en")} shown.`;
  }

  /** Offer the groups that there are. */
  draw() {
    const groups = new Set([...this.#model.agents.values()].map((agent) => agent.group ?? NO_GROUP));
    if (this.group !== null) groups.add(this.group);
    const sorted = [...groups].sort(compareGroups);
    const drawn = JSON.stringify(sorted);
    // Filling it again would close the list under the user's hand.
    if (drawn !== this.#groups) {
      this.#groups = drawn;
      // The "=" keeps a group named "all" apart.
      const options = sorted.map((group) => new Option(group || "No group", `=${group}`));
      $("view-group").replaceChildren(new Option("All", "all"), ...options);
    }
    const chosen = this.group === null ? "all" : `=${this.group}`;
    if ($("view-group").value !== chosen) $("view-group").value = chosen;
  }

  #read() {
    const parameters = new URLSearchParams(location.hash.slice(1));
    const state = parameters.get("state");
    const order = parameters.get("order");
    this.state = STATES.includes(state) ? state : null;
    this.group = parameters.get("group");
    this.text = parameters.get("text") ?? "";
    this.order = ORDERS.includes(order) ? order : "place";
    $("view-text").value = this.text;
    $("view-order").value = this.order;
  }

  #changed() {
    if ($("view-text").value.trim() !== this.text.trim()) $("view-text").value = this.text;
    $("view-all").hidden = this.state === null && this.group === null && !this.text.trim();
    this.draw();
    this.#onChange();
  }
}
