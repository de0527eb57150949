// One agent in full: session, call, and the time line.

import { clock, DIRECTION_WORDS, duration, PHASE_WORDS, STATE_WORDS } from "./format.js";
import { belief, shownState, trouble } from "./model.js";
import { knownState, put, setIcon } from "./tile.js";
import { Timeline } from "./timeline.js";

const $ = (id) => document.getElementById(id);

export class Detail {
  #model;
  #agent = null;
  #timeline = new Timeline();

  /** `onCallData(workNo)` when call data shall be sent to the agent shown. */
  constructor(model, onCallData) {
    this.#model = model;
    $("detail").addEventListener("close", () => {
      this.#agent = null;
    });
    $("detail").addEventListener("click", (event) => {
      if (event.target === $("detail")) $("detail").close();
    });
    $("detail-close").addEventListener("click", () => $("detail").close());
    $("detail-send").addEventListener("click", () => {
      const { workNo } = this.#agent;
      $("detail").close();
      onCallData(workNo);
    });
  }

  open(agent) {
    this.#agent = agent;
    this.#timeline.show(agent);
    this.draw(Date.now());
    $("detail").showModal();
  }

  draw(now) {
    const agent = this.#agent;
    if (!agent) return;
    if (agent.removed) {
      $("detail").close();
      return;
    }
    const state = shownState(agent, this.#model.bridge);
    $("detail").dataset.state = knownState(state);
    $("detail").dataset.belief = belief(agent, this.#model.bridge);
    setIcon($("detail-icon"), `s-${knownState(state)}`);
    put($("detail-name"), agent.name || `Agent ${agent.workNo}`);
    put($("detail-number"), [agent.workNo, agent.group].filter(Boolean).join(" · "));
    this.#facts(agent, state, now);
    this.#timeline.draw(now);
  }

  #facts(agent, state, now) {
    const { call, session, previous } = agent;
    const since = Number.isFinite(agent.since) ? ` for ${duration(now - agent.since)}` : "";
    const last = belief(agent, this.#model.bridge) === "last-known" ? " (last known)" : "";
    const before = previous ? `${STATE_WORDS[previous.state] ?? previous.state}, ${duration(previous.seconds * 1000)}` : "–";
    const parties = call && [call.caller, call.called].filter(Boolean).join(" → ");
    const facts = {
      State: `${STATE_WORDS[state] ?? state}${since}${last}${agent.reason ? `, reason ${agent.reason}` : ""}`,
      Before: before,
      Call: call
        ? [PHASE_WORDS[call.phase] ?? call.phase, DIRECTION_WORDS[call.direction], parties, call.callId]
            .filter(Boolean).join(" · ")
        : "none",
      Session: session ? trouble(agent) ?? `${session.phase} since ${clock(session.since)}` : "–",
      Availability: agent.availability ?? "–",
    };
    for (const [name, value] of Object.entries(facts)) put($(`fact-${name.toLowerCase()}`), value);
  }
}
