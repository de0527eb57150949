"""An agent's state and calls, folded from its events: what ``agents/<workNo>/state`` shows.

The poller folds every event that was read (and masked) into the agent's last state and stores both in one
transaction; what the gateway says outside of events (agentstatus, a retcode that means signed out) is settled.

Rules of this file: pure values and functions, the clock comes in as an argument. The state comes from
``AgentState_*`` and sign-in and sign-out events alone; events of calls and phones only fill `calls` (SPEC, 3).
What each event type does stands in the catalogue, not here.
"""

from datetime import datetime
from typing import Final, Literal

import msgspec

from adapter.catalogue import EVENT_TYPES, AgentStateName, CallEffect
from adapter.event import Event, text_of

Direction = Literal["in", "out", "internal"]
Phase = Literal["ringing", "talking", "held", "conference", "calling_out"]

_CALLS_KEPT: Final = 8
"""More calls than any agent has at once. Bounds what a gateway that never tells a call's end can pile up."""

_DIRECTIONS: Final[dict[str, Direction]] = {
    "0": "in",
    "6": "internal",
    "7": "out",
    "43": "out",  # predictive
    "44": "out",  # preview
    "45": "out",  # callback
}
"""The content's ``feature``. The others (pre-occupation, help, conference, transfer) say nothing of a direction.

Source: CEC API Reference, page cec_07_0582.
"""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call of an agent.

    Attributes:
        call_id: The gateway's id; `None` where it told none.
        phase: Where the call stands.
        caller: The calling number, masked where `privacy` asks for it; `None` where not known.
        called: The called number, likewise.
        direction: `None` where not known.
    """

    call_id: str | None
    phase: Phase
    caller: str | None = None
    called: str | None = None
    direction: Direction | None = None


class Previous(msgspec.Struct, frozen=True, kw_only=True):
    """The state before the present one, and how many seconds it lasted."""

    state: AgentStateName
    seconds: float


class AgentState(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of an agent at one moment.

    Attributes:
        since: When `state` began: when the event that changed it was received. Aware, UTC.
        state: One of the seven names.
        reason: The gateway's text with the event that set `state`; `None` where it gave none.
        previous: The state before; `None` before the first change.
        calls: The agent's calls, in the order in which they began.
        event_id: The id of the last event taken in; `None` before the first.
        seq: Its counter; `None` before the first.
    """

    since: datetime
    state: AgentStateName = "unknown"
    reason: str | None = None
    previous: Previous | None = None
    calls: tuple[Call, ...] = ()
    event_id: str | None = None
    seq: int | None = None

    @property
    def call(self) -> Call | None:
        """The call to show: the newest that is not on hold, else the newest; `None` without one."""
        shown = [call for call in self.calls if call.phase != "held"] or self.calls
        return shown[-1] if shown else None


def fold(state: AgentState, event: Event, *, at: datetime, event_id: str, seq: int) -> AgentState:
    """Take an event in.

    Args:
        state: What was known before it.
        event: The event, masked where `privacy` asks for it. Unknown types change neither state nor calls.
        at: When it was received (aware).
        event_id: The id given to it.
        seq: The counter given to it.
    """
    kind = EVENT_TYPES.get(event.event_type)
    if kind is not None and kind.state is not None:
        content = event.content if isinstance(event.content, dict) else {}
        state = _enter(state, kind.state, at=at, reason=text_of(content.get("reason")))
    if kind is not None and kind.call is not None:
        calls = _fold_call(state, kind.call, _members(event.content))
        state = msgspec.structs.replace(state, calls=calls)
    return msgspec.structs.replace(state, event_id=event_id, seq=seq)


def settle(state: AgentState, name: AgentStateName, *, at: datetime) -> AgentState:
    """Take in what the gateway says outside of events: agentstatus, or a retcode that means signed out.

    An answer may have been lost before it, and a call's end with it: calls stay only where the agent is in one.

    Args:
        state: What was known before.
        name: The state that the gateway names.
        at: When it said so (aware).
    """
    if name != state.state:
        state = _enter(state, name, at=at, reason=None)
    return state if name == "in_call" or not state.calls else msgspec.structs.replace(state, calls=())


def encode(state: AgentState) -> bytes:
    """Write a state for the database."""
    return msgspec.json.encode(state)


def decode(stored: bytes) -> AgentState | None:
    """Read a state of `encode`; `None` where another version of the program wrote what this one cannot read."""
    try:
        return msgspec.json.decode(stored, type=AgentState)
    except msgspec.DecodeError:
        return None


def _enter(state: AgentState, name: AgentStateName, *, at: datetime, reason: str | None) -> AgentState:
    """Enter a state, or stay in it with another reason; `since` moves only when the name changes."""
    calls = () if name == "signed_out" else state.calls
    if name == state.state:
        return msgspec.structs.replace(state, reason=reason, calls=calls)
    lasted_s = max(0.0, round((at - state.since).total_seconds(), 3))  # a clock set back gives no negative time
    return msgspec.structs.replace(
        state,
        since=at,
        state=name,
        reason=reason,
        previous=Previous(state=state.state, seconds=lasted_s),
        calls=calls,
    )


# --- calls --------------------------------------------------------------------------------------------------


def _members(content: object) -> dict[str, object]:
    """Take a content's members by lower-case name: the spelling varies; a bare string is a call id."""
    if isinstance(content, dict):
        return {str(name).lower(): value for name, value in content.items()}
    return {"callid": content}


def _fold_call(state: AgentState, effect: CallEffect, told: dict[str, object]) -> tuple[Call, ...]:
    """Apply an event to the call that it names, or, where it names none, to the one shown."""
    call_id = text_of(told.get("callid"))
    call = state.call if call_id is None else _find(state.calls, call_id)
    others = tuple(other for other in state.calls if other is not call)
    if effect == "ended":
        return others
    if effect == "failed":
        return others if call is None or call.phase in ("ringing", "calling_out") else state.calls
    known = call or Call(call_id=call_id, phase=effect)
    changed = Call(
        call_id=known.call_id or call_id,
        phase=effect,
        caller=text_of(told.get("caller")) or known.caller,
        called=text_of(told.get("called")) or text_of(told.get("otherphone")) or known.called,
        direction=_DIRECTIONS.get(text_of(told.get("feature")) or "", known.direction),
    )
    if call is None:
        return (*state.calls, changed)[-_CALLS_KEPT:]
    return tuple(changed if other is call else other for other in state.calls)


def _find(calls: tuple[Call, ...], call_id: str) -> Call | None:
    """Find a call by its id, or else the one whose id was never told: it cannot be another."""
    named = [call for call in calls if call.call_id == call_id]
    found = named or [call for call in calls if call.call_id is None]
    return found[-1] if found else None
