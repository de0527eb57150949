// The box that sends call data to an agent and shows what became of it (SPEC rule C2: with the next poll).

import { age, clock } from "./format.js";
import { newId } from "./link.js";

const LIMIT_BYTES = 2048;
const TTL_S = 60;
// The poll that carries it may be under way when ttl ends: two holds and a margin more.
const GRACE_S = 25;
const KEPT = 4;

const $ = (id) => document.getElementById(id);
const bytes = (value) => new TextEncoder().encode(value).length;

export class CallData {
  #link;
  #model;
  #announce;
  #pending = new Map();
  #options = "";

  constructor(model, link, announce) {
    this.#model = model;
    this.#link = link;
    this.#announce = announce;
    $("send-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    $("send-value").addEventListener("input", () => this.#check());
    this.#check();
  }

  /** Take a result; one that belongs to another sender is not ours to show. */
  result(payload) {
    let result;
    try {
      result = JSON.parse(payload);
    } catch {
      return;
    }
    const sent = this.#pending.get(result?.id);
    if (!sent) return;
    this.#pending.delete(result.id);
    const reason = [result.reason, result.retcode && result.retcode !== "0" ? `(${result.retcode})` : null]
      .filter((one) => typeof one === "string")
      .join(" ");
    const words = { applied: "applied", rejected: "rejected", expired: "expired" }[result.status];
    const took = age(Date.now() - sent.at);
    this.#finish(sent, words ?? "unknown", `${words ?? String(result.status)}${reason ? `: ${reason}` : ` after ${took}`}`);
  }

  tick(now) {
    for (const [id, sent] of this.#pending) {
      const seconds = Math.floor((now - sent.at) / 1000);
      if (seconds > TTL_S + GRACE_S) {
        this.#pending.delete(id);
        sent.forget();
        this.#finish(sent, "lost", `no result within ${TTL_S + GRACE_S} s; it may or may not have been applied`);
      } else {
        const words = sent.taken ? "goes with the next poll" : "waits for the broker";
        sent.outcome.textContent = `${words} … ${seconds} s`;
      }
    }
    $("send-button").disabled = !this.#link.up || !this.#valid();
    this.#fillAgents();
  }

  /** Choose the agent whom the next value goes to. */
  choose(workNo) {
    $("send-agent").value = workNo;
    $("send-value").focus();
  }

  #fillAgents() {
    const agents = [...this.#model.agents.values()].sort((a, b) => a.order - b.order || (a.workNo < b.workNo ? -1 : 1));
    const options = JSON.stringify(agents.map((agent) => [agent.workNo, agent.name]));
    // Filling it again would close the list under the user's hand.
    if (options === this.#options) return;
    this.#options = options;
    const select = $("send-agent");
    const chosen = select.value;
    select.replaceChildren(
      ...agents.map((agent) => new Option(agent.name ? `${agent.name} (${agent.workNo})` : agent.workNo, agent.workNo)),
    );
    if (agents.some((agent) => agent.workNo === chosen)) select.value = chosen;
  }

  #valid() {
    const size = bytes($("send-value").value);
    return size > 0 && size <= LIMIT_BYTES && $("send-agent").value !== "";
  }

  #check() {
    const size = bytes($("send-value").value);
    const over = size > LIMIT_BYTES;
    $("send-size").textContent = over
      ? `${size.toLocaleString("en")} bytes, at most ${LIMIT_BYTES.toLocaleString("en")}`
      : `${size.toLocaleString("en")} / ${LIMIT_BYTES.toLocaleString("en")} bytes`;
    $("send-size").classList.toggle("over", over);
    $("send-value").setAttribute("aria-invalid", String(over));
    $("send-button").disabled = !this.#link.up || !this.#valid();
  }

  #send() {
    if (!this.#link.up || !this.#valid()) return;
    const workNo = $("send-agent").value;
    const value = $("send-value").value;
    const id = newId();
    const row = $("sent").content.firstElementChild.cloneNode(true);
    row.querySelector(".sent-to").textContent = $("send-agent").selectedOptions[0].text;
    row.querySelector(".sent-value").textContent = value;
    row.querySelector(".sent-at").textContent = clock(Date.now());
    $("sent-list").prepend(row);
    const old = [...$("sent-list").children].slice(KEPT).filter((one) => one.dataset.outcome !== "pending");
    for (const one of old) one.remove();
    const sent = { at: Date.now(), row, outcome: row.querySelector(".sent-outcome"), taken: false, forget: () => {} };
    this.#pending.set(id, sent);
    const command = JSON.stringify({ calldata: value, id, ttl: TTL_S });
    const { acknowledged, forget } = this.#link.publish(`${workNo}/calldata/set`, command);
    sent.forget = forget;
    acknowledged.then(
      () => {
        sent.taken = true;
      },
      (error) => {
        if (this.#pending.delete(id)) this.#finish(sent, "lost", `not sent: ${error.message}`);
      },
    );
    $("send-value").value = "";
    this.#check();
    this.tick(Date.now());
    this.#announce("calldata", `Call data for ${row.querySelector(".sent-to").textContent}: goes with the next poll.`);
  }

  #finish(sent, outcome, words) {
    sent.row.dataset.outcome = outcome;
    sent.outcome.textContent = words;
    this.#announce("calldata", `Call data for ${sent.row.querySelector(".sent-to").textContent}: ${words}.`);
  }
}
