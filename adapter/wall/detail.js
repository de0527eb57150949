// One agent in full: session, call, and the events seen since the page was opened, with their content.

import { clock, DIRECTION_WORDS, duration, eventWords, PHASE_WORDS, STATE_WORDS } from "./format.js";
import { belief, shownState, trouble } from "./model.js";
import { setIcon } from "./tiles.js";

const $ = (id) => document.getElementById(id);

export class Detail {
  #model;
  #agent = null;
  #drawn = "";

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
    this.#drawn = "";
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
    const known = Object.hasOwn(STATE_WORDS, state) ? state : "unknown";
    $("detail").dataset.state = known;
    $("detail").dataset.belief = belief(agent, this.#model.bridge);
    setIcon($("detail-icon"), `s-${known}`);
    $("detail-name").textContent = agent.name || `Agent ${agent.workNo}`;
    $("detail-number").textContent = [agent.workNo, agent.group].filter(Boolean).join(" · ");
    this.#facts(agent, state, now);
    this.#events(agent);
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
    for (const [name, value] of Object.entries(facts)) {
      const element = $(`fact-${name.toLowerCase()}`);
      if (element.textContent !== value) element.textContent = value;
    }
  }

  #events(agent) {
    const drawn = agent.events.map((event) => event.id).join();
    if (drawn === this.#drawn) return;
    this.#drawn = drawn;
    $("detail-events").replaceChildren(...agent.events.map((event) => {
      const row = $("detail-event").content.firstElementChild.cloneNode(true);
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
    }));
    $("detail-none").hidden = agent.events.length > 0;
  }
}
