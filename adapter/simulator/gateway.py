"""The gateway apart from its network: the agents, what tests and scenarios do to them, and what is noted."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from adapter.simulator.agent import RECORD_LIMIT, Agent, Event, Settings, SimAgent
from adapter.simulator.certificates import SimulatorError
from adapter.simulator.faults import Fault
from adapter.simulator.records import Call, Pauses, PauseStatistics, Poll, Violation
from adapter.simulator.samples import sample

_T = TypeVar("_T")

_LOOK_AGAIN_S = 0.05


class Gateway:
    """The agents of a gateway.

    Attributes:
        settings: How the gateway is set up.
        violations: What clients did against the interface document: the first `RECORD_LIMIT`, oldest first.
        requests: Every request about a session: the first `RECORD_LIMIT`, oldest first.
        all_pauses: The pauses of all agents after good answers.
        poll_count: How many polls came for all agents together.
        ledger: Called with each poll once it has ended, whichever way; for who must know of every single one.
    """

    def __init__(self, settings: Settings, *, signed_in: bool, strict: bool, record: bool, lean: bool) -> None:
        self.settings = settings
        self.violations: list[Violation] = []
        self.requests: list[Call] = []
        self.all_pauses = Pauses()
        self.poll_count = 0
        self.ledger: Callable[[Poll], None] | None = None
        self._agents: dict[str, Agent] = {}
        self._signed_in = signed_in
        self._strict = strict
        self._record = record and not lean
        self._lean = lean
        self._change = asyncio.Event()

    def add_agent(self, profile: str | SimAgent) -> None:
        """Let the gateway know one more agent."""
        if isinstance(profile, str):
            profile = SimAgent(work_no=profile)
        if profile.work_no in self._agents:
            raise SimulatorError(f"agent {profile.work_no} is there twice")
        profile = replace(
            profile,
            password=profile.password or f"pw-{profile.work_no}",
            phone=profile.phone or f"8{profile.work_no}",
        )
        agent = Agent(profile, self.settings, record=self._record, lean=self._lean)
        self._agents[profile.work_no] = agent
        if self._signed_in if profile.signed_in is None else profile.signed_in:
            agent.start_session(time.monotonic(), guid=profile.guid)

    # What tests and scenarios do.

    @property
    def agents(self) -> tuple[SimAgent, ...]:
        """All agents with what a client's configuration needs of them, and their present GUIDs."""
        return tuple(replace(agent.profile, guid=agent.guid) for agent in self._agents.values())

    def emit(self, work_no: str, event: Event) -> None:
        """Let something happen to an agent: append to its queue, or hand to the poll that waits.

        Args:
            work_no: The agent.
            event: The member ``event`` of the answer; as bytes, its JSON text to the byte.
        """
        self._agents[work_no].put(event)

    def emit_sample(self, work_no: str, event_type: str, content: object = ...) -> dict[str, object]:
        """Emit the vendor's sample of an event type, with members of `content` put over its own."""
        event = sample(event_type, work_no, content)
        self.emit(work_no, event)
        return event

    def script(self, work_no: str, *faults: Fault, on: str = "poll") -> None:
        """Say how the next requests of an agent are answered, one fault each.

        Args:
            work_no: The agent.
            faults: In the order of the requests.
            on: Kind of request: ``poll``, or an action of `Call`.
        """
        self._agents[work_no].scripts.setdefault(on, deque()).extend(faults)

    def every(self, work_no: str, number: int, fault: Fault) -> None:
        """Put a fault on each poll of an agent whose count is a multiple of `number`."""
        self._agents[work_no].every.append((number, fault))

    def sign_in(self, work_no: str) -> str:
        """Sign an agent in, as if elsewhere; an older session ends. Gives the new GUID."""
        return self._agents[work_no].start_session(time.monotonic())

    def sign_out(self, work_no: str, *, notify: bool = False) -> None:
        """Sign an agent out, as a supervisor would.

        Args:
            work_no: The agent.
            notify: Whether it is told by the event ``AgentOther_ShutdownService``, after which the session ends;
                else the session ends at once and polls are refused.
        """
        if notify:
            self.emit_sample(work_no, "AgentOther_ShutdownService")
        else:
            self._agents[work_no].end_session()

    def expire_guid(self, work_no: str) -> None:
        """Let every GUID that the agent has be refused from now on."""
        self._agents[work_no].expire_guids()

    def set_status(self, work_no: str, code: int) -> None:
        """Set what `agentstatus` says; else it follows from the events."""
        self._agents[work_no].code = code

    # What tests look at.

    def guid(self, work_no: str) -> str:
        """Give the agent's newest GUID; empty while it is signed out."""
        return self._agents[work_no].guid or ""

    def signed_in(self, work_no: str) -> bool:
        """Say whether the agent has a session."""
        return self._agents[work_no].signed_in(time.monotonic())

    def polls(self, work_no: str) -> list[Poll]:
        """List the agent's polls, oldest first; the last one may still be waiting."""
        return list(self._agents[work_no].polls)

    def polled(self, work_no: str) -> bool:
        """Say whether the agent was ever polled."""
        return self._agents[work_no].poll_count > 0

    def polling(self, work_no: str) -> bool:
        """Say whether a poll of the agent is under way."""
        return self._agents[work_no].polling > 0

    def calldata(self, work_no: str) -> list[tuple[float, str]]:
        """List the call data that came for an agent, each with its time (monotonic seconds)."""
        return list(self._agents[work_no].calldata)

    def queued(self, work_no: str) -> int:
        """Count the events that nobody has fetched."""
        return len(self._agents[work_no].queue)

    def drained(self, work_no: str) -> bool:
        """Say whether every event of an agent was fetched."""
        return not self._agents[work_no].queue

    def handed_out(self, work_no: str) -> list[Event]:
        """List the events that were written to a connection which was up."""
        return list(self._agents[work_no].handed_out)

    def lost(self, work_no: str) -> list[Event]:
        """List the events that were taken from the queue for a connection which was gone."""
        return list(self._agents[work_no].lost)

    def pauses(self, work_no: str | None = None) -> PauseStatistics | None:
        """Sum up the pauses after good answers, of one agent or of all; `None` when there were none."""
        if work_no is None:
            return self.all_pauses.statistics()
        pauses = self._agents[work_no].pauses
        return None if pauses is None else pauses.statistics()

    async def wait_for(self, predicate: Callable[[], _T], timeout_s: float = 20.0) -> _T:
        """Wait until `predicate` gives something true, and give that.

        It is asked again after every request and answer, and every 50 ms, since sessions and GUIDs end with time.

        Raises:
            TimeoutError: It did not within `timeout_s`.
        """
        async with asyncio.timeout(timeout_s):
            while not (value := predicate()):
                self._change.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_AGAIN_S):
                        await self._change.wait()
        return value

    # What the services of requests call.

    def violate(self, agent: str, kind: str, text: str) -> None:
        """Note a violation."""
        if self._strict and len(self.violations) < RECORD_LIMIT:
            self.violations.append(Violation(agent=agent, kind=kind, text=text, at=time.monotonic()))

    def note(self, call: Call) -> None:
        """Note a request that is not a poll."""
        if self._record and len(self.requests) < RECORD_LIMIT:
            self.requests.append(call)

    def ended(self, poll: Poll) -> None:
        """Note that a poll has ended."""
        if self.ledger is not None:
            self.ledger(poll)
        self.changed()

    def changed(self) -> None:
        """Wake whoever waits for something to have happened."""
        self._change.set()
