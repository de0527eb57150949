// Words and numbers as people read them. Pure functions; nothing here touches the page.

export const STATES = ["in_call", "idle", "work", "busy", "rest", "signed_out", "unknown"];

export const STATE_WORDS = {
  idle: "Idle",
  busy: "Busy",
  rest: "Rest",
  work: "Wrap-up",
  in_call: "In call",
  signed_out: "Signed out",
  unknown: "Unknown",
};

export const PHASE_WORDS = {
  ringing: "Ringing",
  talking: "Talking",
  held: "On hold",
  conference: "Conference",
  calling_out: "Calling",
};

// The gateway's names where plain words differ from them: AgentState_Busy is not "busy" but in a call.
const EVENT_WORDS = {
  AgentState_Ready: "Idle",
  AgentState_Busy: "Handling a call",
  AgentState_Work: "Wrap-up",
  AgentState_SetNotReady_Success: "Busy",
  AgentState_CancelNotReady_Success: "Busy ended",
  AgentState_SetRest_Success: "Rest",
  AgentState_CancelRest_Success: "Rest ended",
  AgentState_Rest_Timeout: "Rest over time",
  AgentState_SetWork_Success: "Wrap-up",
  AgentState_CancelWork_Success: "Wrap-up ended",
  AgentState_Force_Ready: "Idle, forced",
  AgentState_Force_SetNotReady: "Busy, forced",
  AgentOther_InService: "Signed in",
  AgentOther_ShutdownService: "Signed out",
  AgentOther_PhoneUnknow: "Phone unknown",
  AgentEvent_Agent_Occupyed: "Call on its way",
  AgentEvent_MediaSwith: "Media switched",
};

const two = (n) => String(n).padStart(2, "0");

/** A length of time: 0:07, 12:45, 1:02:33, 3 d 04:00. Never below zero: clocks of two machines differ. */
export function duration(milliseconds) {
  const s = Math.max(0, Math.floor(milliseconds / 1000));
  const minutes = Math.floor(s / 60) % 60;
  const hours = Math.floor(s / 3600) % 24;
  const days = Math.floor(s / 86400);
  if (days) return `${days} d ${two(hours)}:${two(minutes)}`;
  if (s >= 3600) return `${hours}:${two(minutes)}:${two(s % 60)}`;
  return `${minutes}:${two(s % 60)}`;
}

/** A length of time in words: 7 s, 3 min, 2 h 5 min. */
export function age(milliseconds) {
  const s = Math.max(0, Math.round(milliseconds / 1000));
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${Math.floor(s / 60)} min`;
  return `${Math.floor(s / 3600)} h ${Math.floor(s / 60) % 60} min`;
}

/** The local time of day of a moment in milliseconds; empty when it is not known. */
export function clock(moment, { seconds = true } = {}) {
  if (!Number.isFinite(moment)) return "";
  const d = new Date(moment);
  return `${two(d.getHours())}:${two(d.getMinutes())}${seconds ? `:${two(d.getSeconds())}` : ""}`;
}

/** An event type in plain words; what is not listed is taken apart at its capitals. */
export function eventWords(eventType) {
  if (Object.hasOwn(EVENT_WORDS, eventType)) return EVENT_WORDS[eventType];
  const rest = eventType.replace(/^(Agent[A-Za-z]*|QC)_/, "").replaceAll("_", " ");
  const words = rest.replace(/([a-z])([A-Z])/g, "$1 $2").trim().toLowerCase();
  return words ? words[0].toUpperCase() + words.slice(1) : eventType;
}

/** Who is at the other end of a call, as one short line. */
export function partyWords(call) {
  const { caller, called, direction } = call;
  if (direction === "in" && caller) return `from ${caller}`;
  if (direction === "out" && called) return `to ${called}`;
  if (caller && called) return `${caller} → ${called}`;
  return caller || called || "";
}

export const DIRECTION_WORDS = { in: "incoming", out: "outgoing", internal: "internal" };

export const plural = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;
