"""The calls of a day, event by event, in the order in which a gateway tells them.

A call's id, caller, called and feature stay the same from ringing to release, also when it goes on to a colleague.
"""

import itertools
import random
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol

from adapter.simulator.agent import SimAgent
from adapter.simulator.faults import Fault

Process = Generator[float, None, None]
"""Something that takes its time: yields the seconds until its next step."""

_INCOMING = 0
_OUTGOING = 7

_NO_ANSWER = 0.06
_HOLD = 0.4
_TRANSFER = 0.22
_CONFERENCE = 0.1
_FAILED_OUT = 0.25
_CUSTOMER_FIRST = 0.5


class Stage(Protocol):
    """What a day needs of the simulator."""

    def emit_sample(self, work_no: str, event_type: str, content: object = ...) -> object:
        """See `Simulator.emit_sample`."""
        ...

    def signed_in(self, work_no: str) -> bool:
        """See `Simulator.signed_in`."""
        ...

    def script(self, work_no: str, *faults: Fault, on: str = "poll") -> None:
        """See `Simulator.script`."""
        ...


class SignedOutError(Exception):
    """An agent was signed out in the middle of what it did."""


class Floor:
    """The room with the agents in it: who is free, and the dice.

    Args:
        stage: The simulator.
        agents: Who works here.
        draw: The dice.
        begin: Starts a process beside the one that calls it.
    """

    def __init__(
        self,
        stage: Stage,
        agents: Sequence[SimAgent],
        draw: random.Random,
        begin: Callable[[Process], None],
    ) -> None:
        self.stage = stage
        self.draw = draw
        self.begin = begin
        self.free: set[str] = set()
        self.phones = {agent.work_no: agent.phone or f"8{agent.work_no}" for agent in agents}
        self._count = itertools.count(1)
        # Ids begin with the time, as the gateway's do, so that those of two days differ.
        self._first = int(time.time())

    def emit(self, work_no: str, event_type: str, content: object = ...) -> None:
        """Let an event happen.

        Raises:
            SignedOutError: The agent is not there any more.
        """
        if not self.stage.signed_in(work_no):
            raise SignedOutError(work_no)
        self.stage.emit_sample(work_no, event_type, content)

    def take(self, members: Sequence[str]) -> str | None:
        """Choose an agent who is free, and let it be so no longer."""
        free = [work_no for work_no in members if work_no in self.free and self.stage.signed_in(work_no)]
        if not free:
            return None
        chosen = self.draw.choice(free)
        self.free.discard(chosen)
        return chosen

    def between(self, least_s: float, most_s: float) -> float:
        """Draw a time."""
        return self.draw.uniform(least_s, most_s)

    def chance(self, share: float) -> bool:
        """Draw whether something happens that does so in this share of cases."""
        return self.draw.random() < share

    def customer(self) -> str:
        """Draw a customer's number."""
        return f"1380000{self.draw.randrange(10_000):04}"

    def new_call(self, *, caller: str, called: str, feature: int) -> "Call":
        """Make a call with an id of its own."""
        return Call(f"{self._first}-{next(self._count)}", caller, called, feature)

    def guarded(self, cast: dict[str, "Call | None"], process: Process) -> Process:
        """Go through a process, then set its agents free; where one of them is signed out, the others' call ends.

        Args:
            cast: Who takes part, each with the call it is in; the process keeps it up to date.
            process: What to go through.
        """
        try:
            yield from process
        except SignedOutError:
            for work_no, call in cast.items():
                if self.stage.signed_in(work_no):
                    if call is not None:
                        self.stage.emit_sample(work_no, "AgentEvent_Call_Release", call.call_id)
                    self.stage.emit_sample(work_no, "AgentState_Ready")
        self.free.update(work_no for work_no in cast if self.stage.signed_in(work_no))


@dataclass(frozen=True, slots=True)
class Call:
    """What does not change in a call."""

    call_id: str
    caller: str
    called: str
    feature: int

    def members(self, **more: object) -> dict[str, object]:
        """List what the events of ringing and talking say of it."""
        return {
            "callid": self.call_id,
            "caller": self.caller,
            "called": self.called,
            "feature": self.feature,
            **more,
        }


def incoming(floor: Floor, work_no: str, members: Sequence[str]) -> Process:
    """Let a customer's call come in for an agent who was taken for it; `members` are its colleagues."""
    call = floor.new_call(caller=floor.customer(), called="4000", feature=_INCOMING)
    cast: dict[str, Call | None] = {work_no: call}
    return floor.guarded(cast, _incoming(floor, work_no, members, call, cast))


def _incoming(floor: Floor, work_no: str, members: Sequence[str], call: Call, cast: dict[str, Call | None]) -> Process:
    yield from _ring(floor, work_no, call, transferred_by=None)
    if floor.chance(_NO_ANSWER):
        yield floor.between(8, 12)
        floor.emit(work_no, "AgentEvent_No_Answer", call.call_id)
        cast[work_no] = None
        floor.emit(work_no, "AgentState_SetNotReady_Success", {"reason": "2"})
        yield floor.between(8, 20)
        floor.emit(work_no, "AgentState_CancelNotReady_Success")
        return
    _answer(floor, work_no, call)
    yield floor.between(5, 15)
    if floor.chance(_HOLD):
        floor.emit(work_no, "AgentEvent_Hold", call.call_id)
        yield floor.between(3, 8)
        floor.emit(work_no, "AgentEvent_Talking", call.members())
        yield floor.between(3, 10)
    kind = floor.draw.random()
    colleague = floor.take(members) if kind < _TRANSFER + _CONFERENCE else None
    if colleague is None:
        yield from _end(floor, work_no, call, cast)
        return
    cast[colleague] = call
    floor.emit(work_no, "AgentEvent_Hold", call.call_id)
    yield floor.between(1, 2)
    yield from _ring(floor, colleague, call, transferred_by=work_no)
    _answer(floor, colleague, call)
    yield floor.between(3, 8)
    if kind < _TRANSFER:
        floor.emit(work_no, "AgentEvent_SuccTransResult", {"callId": call.call_id, "result": 0})
        del cast[colleague]
        theirs: dict[str, Call | None] = {colleague: call}
        floor.begin(floor.guarded(theirs, _end(floor, colleague, call, theirs)))
        yield from _release(floor, work_no, call, cast)
        return
    for one, other in ((work_no, colleague), (colleague, work_no)):
        partner = f"{call.caller},{floor.phones[other]}"
        floor.emit(one, "AgentEvent_Conference", {"callid": call.call_id, "partner": partner})
    yield floor.between(5, 12)
    del cast[colleague]
    theirs = {colleague: call}
    floor.begin(floor.guarded(theirs, _release(floor, colleague, call, theirs)))
    floor.emit(work_no, "AgentEvent_Talking", call.members())
    yield from _end(floor, work_no, call, cast)


def _ring(floor: Floor, work_no: str, call: Call, *, transferred_by: str | None) -> Process:
    floor.emit(work_no, "AgentEvent_Agent_Occupyed")
    floor.emit(
        work_no,
        "AgentEvent_Incoming_CallInfo",
        {"callId": call.call_id, "caller": call.caller, "called": call.called},
    )
    transfer = {"transfer": "no" if transferred_by is None else "yes", "transFrom": transferred_by or ""}
    floor.emit(work_no, "AgentEvent_Ringing", call.members(**transfer))
    yield floor.between(1.5, 5)


def _answer(floor: Floor, work_no: str, call: Call) -> None:
    floor.emit(work_no, "AgentState_Busy")
    floor.emit(work_no, "AgentEvent_Talking", call.members())


def _end(floor: Floor, work_no: str, call: Call, cast: dict[str, Call | None]) -> Process:
    """Talk on, and part."""
    yield floor.between(4, 14)
    if floor.chance(_CUSTOMER_FIRST):
        number = call.called if call.feature == _OUTGOING else call.caller
        floor.emit(work_no, "AgentEvent_Customer_Release", {"callid": call.call_id, "number": number})
        yield floor.between(0.2, 1)
    yield from _release(floor, work_no, call, cast)


def _release(floor: Floor, work_no: str, call: Call, cast: dict[str, Call | None]) -> Process:
    """Leave the call, and write down what it was about."""
    floor.emit(work_no, "AgentEvent_Call_Release", call.call_id)
    cast[work_no] = None
    floor.emit(work_no, "AgentState_Work")
    yield floor.between(3, 9)
    floor.emit(work_no, floor.draw.choice(("AgentState_CancelWork_Success", "AgentState_Ready")))


def outgoing(floor: Floor, work_no: str) -> Process:
    """Let an agent who was taken for it call a customer."""
    call = floor.new_call(caller=floor.phones[work_no], called=floor.customer(), feature=_OUTGOING)
    cast: dict[str, Call | None] = {work_no: call}
    return floor.guarded(cast, _outgoing(floor, work_no, call, cast))


def _outgoing(floor: Floor, work_no: str, call: Call, cast: dict[str, Call | None]) -> Process:
    floor.emit(work_no, "AgentState_Busy")
    floor.emit(work_no, "AgentEvent_Customer_Alerting", {"otherPhone": call.called, "callid": call.call_id})
    yield floor.between(3, 9)
    if floor.chance(_FAILED_OUT):
        floor.emit(work_no, "AgentEvent_Call_Out_Fail", call.call_id)
        cast[work_no] = None
        floor.emit(work_no, "AgentState_Ready")
        return
    floor.emit(work_no, "AgentEvent_Talking", call.members())
    yield floor.between(5, 15)
    yield from _end(floor, work_no, call, cast)
