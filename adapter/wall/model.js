// What the topics say, as values: agents, bridge, recovery. Takes payloads in, tells which agents changed.
// Rule: nothing here touches the page, and nothing from the wire is trusted to have the right type.

import { History } from "./history.js";

const KEPT_EVENTS = 50;

const text = (value) => (typeof value === "string" ? value : typeof value === "number" ? String(value) : null);
const moment = (value) => (typeof value === "string" ? Date.parse(value) : NaN);
const count = (value) => (Number.isFinite(value) ? value : 0);

function parse(payload) {
  try {
    const value = JSON.parse(payload);
    return value !== null && typeof value === "object" && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}

export class Model {
  agents = new Map();
  // `since` is NaN where it was so before the page; `heardAt` is the last time that the adapter itself said anything.
  bridge = { availability: null, since: NaN, health: null, healthAt: NaN, heardAt: NaN };
  // The last outage as the page saw it: how much came in afterwards that had happened before.
  recovery = { cutAt: NaN, backAt: NaN, events: 0, lastAt: NaN };

  #prefix;
  #pages = new Map();
  #epoch = 0;
  #onChange;

  /** `onChange(agent | null)`: an agent to draw again, or null for the bridge. */
  constructor(prefix, onChange) {
    this.#prefix = prefix;
    this.#onChange = onChange;
  }

  /** The connection is up (again): what is retained comes anew, and tells what is still there. */
  connected(at) {
    this.#epoch += 1;
    if (Number.isFinite(this.recovery.cutAt)) Object.assign(this.recovery, { backAt: at, events: 0, lastAt: NaN });
  }

  cutOff(at) {
    Object.assign(this.recovery, { cutAt: at, backAt: NaN, events: 0, lastAt: NaN });
    for (const agent of this.agents.values()) agent.history.cutOff(at);
  }

  /** Drop agents of which a complete retained set says nothing any more; only while a roster has come. */
  prune() {
    if (![...this.#pages.values()].some((page) => page.epoch === this.#epoch)) return;
    for (const [number, page] of this.#pages) if (page.epoch !== this.#epoch) this.#pages.delete(number);
    for (const agent of [...this.agents.values()]) if (agent.epoch !== this.#epoch) this.#remove(agent);
  }

  /** `retained` where the broker had it before the page asked: it tells nothing of when it was said. */
  take(topic, payload, now, retained = false) {
    if (!topic.startsWith(`${this.#prefix}/`)) return;
    const [who, what, page] = topic.slice(this.#prefix.length + 1).split("/");
    // "offline" is the broker's word, as a rule.
    if (!retained && !(who === "bridge" && what === "availability")) this.bridge.heardAt = now;
    if (who === "bridge") this.#takeBridge(what, page, payload, now, retained);
    else if (Object.hasOwn(TAKE, what)) this.#takeAgent(who, what, payload, now);
  }

  #takeBridge(what, page, payload, now, retained) {
    const { bridge } = this;
    if (what === "availability") {
      if (bridge.availability !== payload) {
        Object.assign(bridge, { availability: payload, since: retained ? NaN : now });
      }
    } else if (what === "health") {
      bridge.health = parse(payload);
      // Its own time only where there is no other: two clocks differ.
      bridge.healthAt = retained ? Math.min(now, moment(bridge.health?.at)) : now;
      if (retained && !(bridge.heardAt > bridge.healthAt)) bridge.heardAt = bridge.healthAt;
    } else if (what === "agents") {
      this.#takeRoster(page, payload);
    }
    this.#onChange(null);
  }

  #takeRoster(page, payload) {
    const listed = parse(payload)?.agents;
    if (!Array.isArray(listed)) this.#pages.delete(page);
    else this.#pages.set(page, { epoch: this.#epoch, agents: listed.filter((one) => text(one?.workNo)) });
    const known = new Set();
    for (const [number, { agents }] of this.#pages) {
      agents.forEach((one, index) => {
        const agent = this.#agent(text(one.workNo));
        known.add(agent.workNo);
        agent.order = Number(number) * 1000 + index;
        agent.name = text(one.name) ?? agent.name;
        agent.group = text(one.group);
        agent.listed = true;
        this.#onChange(agent);
      });
    }
    for (const agent of [...this.agents.values()]) {
      if (!agent.listed || known.has(agent.workNo)) continue;
      agent.listed = false;
      if (agent.empty) this.#remove(agent);
    }
  }

  #takeAgent(workNo, what, payload, now) {
    if (payload === "") {
      const agent = this.agents.get(workNo);
      if (!agent) return;
      if (what === "state") agent.empty = true;
      // Cleared and no longer in the roster: it has left the configuration.
      if (agent.empty && !agent.listed) this.#remove(agent);
      return;
    }
    const value = what === "availability" ? payload : parse(payload);
    if (value === null) return;
    const agent = this.#agent(workNo);
    TAKE[what](agent, value, now, this);
    this.#onChange(agent);
  }

  #agent(workNo) {
    let agent = this.agents.get(workNo);
    if (!agent) {
      agent = {
        workNo,
        name: null,
        group: null,
        order: Infinity,
        listed: false,
        empty: true,
        removed: false,
        state: "unknown",
        since: NaN,
        reason: null,
        previous: null,
        call: null,
        callSince: NaN,
        session: null,
        availability: null,
        events: [],
        history: new History(),
        seq: 0,
        epoch: this.#epoch,
      };
      this.agents.set(workNo, agent);
    }
    agent.epoch = this.#epoch;
    return agent;
  }

  #remove(agent) {
    agent.removed = true;
    this.agents.delete(agent.workNo);
    this.#onChange(agent);
  }

  /** Count what happened before the connection was back and is learned of only now. */
  caughtUp(agent, event, now) {
    const late = event.replayed || event.at < this.recovery.backAt;
    const steps = agent.seq && event.seq > agent.seq ? event.seq - agent.seq : 1;
    if (late && Number.isFinite(this.recovery.backAt)) {
      this.recovery.events += steps;
      this.recovery.lastAt = now;
      this.#onChange(null);
    } else if (event.replayed) {
      // The page was connected all along: the adapter itself had been cut off, or was started again.
      const fresh = !(now - this.recovery.lastAt < 30_000);
      Object.assign(this.recovery, { events: (fresh ? 0 : this.recovery.events) + 1, lastAt: now });
      this.#onChange(null);
    }
  }
}

function takeEvent(agent, value, now, model, live) {
  const eventType = text(value.eventType);
  if (eventType === null) return;
  const id = text(value.id) ?? `${value.seq}`;
  if (agent.events.some((one) => one.id === id)) return;
  const event = {
    id,
    eventType,
    seq: count(value.seq),
    at: moment(value.receivedAt),
    replayed: value.replayed === true,
    content: value.content ?? null,
  };
  // The retained copy that a newcomer finds is history; only what comes later says something about a recovery.
  if (live || agent.seq) model.caughtUp(agent, event, now);
  agent.seq = Math.max(agent.seq, event.seq);
  agent.events.push(event);
  agent.events.sort((a, b) => b.seq - a.seq);
  agent.events.length = Math.min(agent.events.length, KEPT_EVENTS);
}

function takeState(agent, value, now) {
  const first = agent.empty;
  agent.empty = false;
  agent.state = text(value.state) ?? "unknown";
  agent.since = moment(value.since);
  agent.reason = text(value.reason);
  const previous = value.previous;
  agent.previous = previous && typeof previous === "object"
    ? { state: text(previous.state) ?? "unknown", seconds: count(previous.seconds) }
    : null;
  agent.history.state(agent.state, agent.since, agent.previous);
  agent.name = text(value.name) ?? agent.name;
  agent.group = agent.listed ? agent.group : text(value.group);
  const { call } = value;
  if (call === null || typeof call !== "object") {
    agent.call = null;
    agent.callSince = NaN;
    agent.history.call(null, NaN, now);
    return;
  }
  const callId = text(call.callId) ?? "";
  if (agent.call?.callId !== callId) {
    // The payload does not tell when the call began: it is the moment the page sees it begin, or, for a call
    // that was there before the page, no earlier than the agent's state.
    agent.callSince = !first ? now : agent.state === "in_call" ? agent.since : NaN;
  }
  agent.call = {
    callId,
    phase: text(call.phase) ?? "",
    caller: text(call.caller),
    called: text(call.called),
    direction: text(call.direction),
  };
  agent.history.call(agent.call, agent.callSince, now);
}

const TAKE = {
  state: takeState,
  event: (agent, value, now, model) => takeEvent(agent, value, now, model, false),
  events: (agent, value, now, model) => takeEvent(agent, value, now, model, true),
  session: (agent, value) => {
    agent.session = {
      phase: text(value.phase) ?? "",
      since: moment(value.since),
      retcode: text(value.retcode),
      message: text(value.message),
      attempt: count(value.attempt),
    };
  },
  availability: (agent, value) => {
    agent.availability = value;
  },
};

/**
 * How far what a tile shows can be believed: "live", "out" (signed out, and that is true), or "last-known".
 */
export function belief(agent, bridge) {
  if (bridge.availability === "offline") return "last-known";
  if (agent.session?.phase === "signed_out" || (agent.state === "signed_out" && agent.availability !== "online")) {
    return "out";
  }
  return agent.availability === "offline" ? "last-known" : "live";
}

/** The state that a tile shows and the header counts: a session that has ended means signed out. */
export function shownState(agent, bridge) {
  return belief(agent, bridge) === "out" ? "signed_out" : agent.state;
}

/** What is wrong with an agent's session, in one line; null when nothing is. */
export function trouble(agent) {
  const { session } = agent;
  if (!session) return null;
  const said = [session.message, session.retcode && session.retcode !== "0" ? `(${session.retcode})` : null];
  const why = said.filter(Boolean).join(" ");
  const because = why ? `: ${why}` : "";
  if (session.phase === "retrying") {
    return `Gateway not reached${session.attempt ? `, attempt ${session.attempt}` : ""}${because}`;
  }
  if (session.phase === "signing_in") return "Signing in …";
  if (session.phase === "stopped") return `Not polled${because}`;
  if (session.phase === "signed_out" && why) return why;
  return null;
}

