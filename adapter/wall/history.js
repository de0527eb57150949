// What the page has seen of one agent: which states when, and which calls. Pure values; nothing here touches the page.
// A time is in milliseconds, NaN where it is not known. Oldest first.

const KEPT_STATES = 200;
const KEPT_CALLS = 50;

function keep(list, item, most) {
  list.push(item);
  if (list.length > most) list.shift();
}

export class History {
  /** Of `{ state, at }`; each lasts until the next begins. State null: the page was cut off, and cannot know. */
  states = [];
  /** Of `{ callId, caller, called, direction, at, endedAt, phases: [{ phase, at }] }`. */
  calls = [];
  /** Goes up with each change. */
  version = 0;

  /** Take what an agent's state payload says; `previous` is `{ state, seconds }` or null. */
  state(state, since, previous) {
    const last = this.states.at(-1);
    if (!Number.isFinite(since) || (last?.state === state && last.at === since)) return;
    this.version += 1;
    if (last?.state === null && since <= last.at) {
      // It was so before the gap, and still is: nothing happened in it.
      this.states.pop();
      this.state(state, since, previous);
      return;
    }
    const before = since - (previous?.seconds ?? 0) * 1000;
    if (previous && (!last || last.state === null)) {
      // What was there before the gap may have lasted to its end.
      if (last && before <= last.at) this.states.pop();
      else keep(this.states, { state: previous.state, at: before }, KEPT_STATES);
    }
    keep(this.states, { state, at: since }, KEPT_STATES);
  }

  /** Take an agent's call, or null for none. `began` is NaN for one that was there before the page. */
  call(call, began, now) {
    const last = this.calls.at(-1);
    const open = last && !last.ended ? last : null;
    if (open && open.callId !== call?.callId) {
      Object.assign(open, { ended: true, endedAt: open.cutAt ?? now });
      this.version += 1;
    }
    if (!call) return;
    const known = open?.callId === call.callId ? open : null;
    const entry = known ?? { callId: call.callId, at: began, ended: false, endedAt: NaN, phases: [] };
    if (!known) keep(this.calls, entry, KEPT_CALLS);
    delete entry.cutAt;
    const { caller, called, direction } = call;
    Object.assign(entry, { caller, called, direction });
    if (entry.phases.at(-1)?.phase !== call.phase) {
      entry.phases.push({ phase: call.phase, at: entry.phases.length ? now : began });
      this.version += 1;
    }
  }

  /** Note that from here on nothing is known, until the next state. */
  cutOff(at) {
    const last = this.states.at(-1);
    if (last && last.state !== null) keep(this.states, { state: null, at }, KEPT_STATES);
    const call = this.calls.at(-1);
    if (call && !call.ended) call.cutAt ??= at;
    this.version += 1;
  }
}
