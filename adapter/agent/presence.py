"""What is known and published of one agent: its row in the database, its state, its phase, its availability.

Everything that a poller finds out goes through here into a `Change`, and from there to disk in one piece.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from msgspec import UNSET

from adapter.agent.session import Session
from adapter.catalogue import AgentStateName
from adapter.config import AgentConfig, Backoff, Config
from adapter.errors import StorageFullError
from adapter.event import Event, new_id, render_event, timestamp
from adapter.metrics import Counters
from adapter.outage import Outage
from adapter.payloads import CallPayload, PreviousState, SessionPayload, SessionPhase, StatePayload
from adapter.privacy import Mask
from adapter.state import AgentState, decode, encode, fold, settle
from adapter.store.outbox import Outbox
from adapter.store.records import AgentRecord, Change, Outgoing
from adapter.topics import Topics

_log = logging.getLogger(__name__)

_REMIND_S = 60.0
"""How often a log line says that nothing can be stored, while it is so (D4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Times that are the program's own choice, in seconds; tests shorten them.

    Attributes:
        offline_after_s: How long an agent's polls may fail before its availability says so.
        again: Pauses before a new sign-in by itself (P6).
        store_again_s: When storing is tried again while there is no room (D4).
        signed_out_after_s: After how long without a poll the gateway signs an agent out.
        mark_s: How long after what the broker took over the mark is published that says so (D4a).
        no_mark_s: How long no mark takes to mean that the broker has none (D4a).
        after_birth_s: How long after Home Assistant's birth message it is told all again, at least and at most.
    """

    offline_after_s: float = 30.0
    again: Backoff = field(default_factory=lambda: Backoff(initial_s=5.0, maximum_s=300.0))
    store_again_s: float = 2.0
    signed_out_after_s: float = 120.0
    mark_s: float = 30.0
    no_mark_s: float = 5.0
    after_birth_s: tuple[float, float] = (1.0, 5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all agents share."""

    config: Config
    outbox: Outbox
    topics: Topics
    counters: Counters
    gateway_outage: Outage
    storage_outage: Outage
    mask: Mask | None
    timing: Timing = field(default_factory=Timing)


class Presence:
    """One agent as others see it.

    Attributes:
        agent: The agent's part of the configuration.
        phase: The phase of its session; `None` before the first request.
        state: Its folded state.
    """

    def __init__(self, agent: AgentConfig, session: Session, record: AgentRecord, shared: Shared) -> None:
        self.agent = agent
        self.phase: SessionPhase | None = None
        self._phase_since = datetime.now(UTC)
        self.state = decode(record.state) or AgentState(state="unknown", since=datetime.now(UTC))
        self._session = session
        self._record = record
        self._seq = record.seq
        self._shared = shared
        self._online: bool | None = None
        self._offline_timer: asyncio.TimerHandle | None = None
        self._storing: set[asyncio.Task[None]] = set()
        self._named_other = False
        self._closed = False
        self._enter_again: Callable[[Change], None] | None = None
        self._enter_after_stop: Callable[[Change], None] | None = None
        self._stopped_at = 0.0
        self._stop_told: str | None = None

    @property
    def subject(self) -> str:
        """The agent as log lines name it."""
        return f"agent {self.agent.work_no}"

    def say(self, level: int, text: str, *values: object) -> None:
        """Log one fact about the agent."""
        _log.log(level, "%s: " + text, self.subject, *values, extra={"work_no": self.agent.work_no})

    # What a change is made of.

    def add_event(self, event: Event, received_at: datetime, change: Change) -> None:
        """Add an event of the gateway, and the state after it."""
        work_no = self.agent.work_no
        if event.work_no not in (work_no, None) and not self._named_other:
            self._named_other = True
            self.say(logging.WARNING, "getAgentEvent: an event names agent %.64s; published unchanged", event.work_no)
        if self._shared.mask is not None:
            event = self._shared.mask.apply(event)
        self.number(event, received_at, change, event_id=new_id())

    def number(self, event: Event, received_at: datetime, change: Change, *, event_id: str) -> None:
        """Give a masked event its place among the agent's, and add it with the state after it."""
        work_no = self.agent.work_no
        self._seq += 1
        self.state = fold(self.state, event, at=received_at, event_id=event_id, seq=self._seq)
        change.outgoing.append(
            Outgoing(
                topic=self._shared.topics.event(work_no),
                payload=render_event(event, event_id=event_id, seq=self._seq, received_at=received_at),
                retain=True,
                stream_topic=self._shared.topics.events(work_no) if self._shared.config.mqtt.stream else None,
            )
        )
        self._shared.counters.events += 1
        self.show_state(change)

    def settle(self, state: AgentStateName, change: Change) -> None:
        """Set the state to what the gateway says it is, without an event."""
        settled = settle(self.state, state, at=datetime.now(UTC))
        if settled != self.state:
            self.state = settled
            self.show_state(change)

    def show(self, change: Change) -> None:
        """Publish the state, the call and the availability."""
        self.show_state(change)
        if self._online is not None:
            self._show_online(change)

    def show_state(self, change: Change) -> None:
        """Publish the state and the call."""
        state = self.state
        call, previous = state.call, state.previous
        change.slots[self._shared.topics.state(self.agent.work_no)] = StatePayload(
            work_no=self.agent.work_no,
            name=self.agent.name,
            group=self.agent.group,
            state=state.state,
            reason=state.reason,
            since=timestamp(state.since),
            previous=None if previous is None else PreviousState(state=previous.state, seconds=previous.seconds),
            call=None
            if call is None
            else CallPayload(
                call_id=call.call_id, phase=call.phase, caller=call.caller, called=call.called, direction=call.direction
            ),
            event_id=state.event_id,
            seq=state.seq,
        ).render()

    def enter(
        self,
        phase: SessionPhase,
        change: Change,
        *,
        retcode: str | None = None,
        message: str | None = None,
        attempt: int | None = None,
    ) -> None:
        """Publish the phase of the session, and what follows from it for the agent's availability."""
        if phase != "retrying":
            self._cancel_offline_timer()
        elif self._offline_timer is None:
            loop = asyncio.get_running_loop()
            self._offline_timer = loop.call_later(self._shared.timing.offline_after_s, self._go_offline)
        if phase != self.phase:
            self.phase, self._phase_since = phase, datetime.now(UTC)
        self._enter_again = partial(self.enter, phase, retcode=retcode, message=message, attempt=attempt)
        self._enter_after_stop = None
        change.slots[self._shared.topics.session(self.agent.work_no)] = SessionPayload(
            phase=phase,
            since=timestamp(self._phase_since),
            retcode=retcode,
            message=message,
            attempt=UNSET if attempt is None else attempt,
        ).render()
        if phase == "polling":
            self._set_online(change, online=True)
        elif phase != "retrying":
            self._set_online(change, online=False)

    def _set_online(self, change: Change, *, online: bool) -> None:
        if online != self._online:
            self._online = online
            self._show_online(change)

    def _show_online(self, change: Change) -> None:
        payload = b"online" if self._online else b"offline"
        change.slots[self._shared.topics.availability(self.agent.work_no)] = payload

    def _go_offline(self) -> None:
        """Say that an agent whose polls have failed for long is not available."""
        change = Change()
        self._set_online(change, online=False)
        self.store_soon(change)

    def _cancel_offline_timer(self) -> None:
        if self._offline_timer is not None:
            self._offline_timer.cancel()
            self._offline_timer = None

    # Storing it.

    async def store(self, change: Change) -> None:
        """Store a change with the agent as it is now; return when it is on disk (P8, P12).

        While there is no room, the change stays in memory, its events count as at risk, and storing is tried again:
        the caller polls no further meanwhile (D4).
        """
        self._record = change.agent = self.record()
        stored = await self._try_to_store(change)
        if stored:
            return
        outbox = self._shared.outbox
        events = sum(message.retain for message in change.outgoing)
        outbox.at_risk += events
        try:
            while not stored:
                self._stop()
                stored = await self._try_again(change)
        except asyncio.CancelledError:
            if events:
                self.say(logging.ERROR, "lost at the end, since nothing can be stored: %d events", events)
            raise
        finally:
            outbox.at_risk -= events
        await self._go_on()

    async def store_if_changed(self, change: Change) -> None:
        """Store a change, unless neither it nor the session holds anything new: the usual answer writes nothing."""
        if change or not self._session.is_in(self._record):
            await self.store(change)

    async def keep_session(self) -> None:
        """Store the session as it is now, where it is another than was stored last; tried once, for the end (P8)."""
        if not self._session.is_in(self._record):
            await self._try_to_store(Change(agent=self.record()))

    def store_soon(self, change: Change) -> None:
        """Store a change that a timer made, without the agent's row: that is the business of its poller's task."""

        async def store() -> None:
            stored = await self._try_to_store(change)
            while not stored and not self._closed:
                stored = await self._try_again(change)

        task = asyncio.get_running_loop().create_task(store(), name=f"store[{self.agent.work_no}]")
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    async def has_room(self) -> bool:
        """Say whether another event could be stored: no poll starts before (D4). Takes a while to say no."""
        outbox = self._shared.outbox
        if outbox.writable:
            await self._go_on()
            return True
        self._stop()
        await asyncio.sleep(self._shared.timing.store_again_s)
        return False

    async def close(self) -> None:
        """Wait until everything is stored, or cannot be."""
        self._closed = True
        self._cancel_offline_timer()
        self._shared.gateway_outage.leave(self.subject)
        self._shared.storage_outage.leave(self.subject)
        while self._storing:
            await asyncio.wait(self._storing)

    def record(self) -> AgentRecord:
        """Give the agent's row as it is now."""
        return self._session.record(seq=self._seq, state=encode(self.state))

    async def _try_to_store(self, change: Change) -> bool:
        outage = self._shared.storage_outage
        try:
            await self._shared.outbox.commit(change)
        except StorageFullError as error:
            outage.begins(self.subject, f"nothing can be stored: {error}", remind_s=_REMIND_S)
            return False
        outage.ends(self.subject)
        return True

    async def _try_again(self, change: Change) -> bool:
        """Let a while go by and try once more; that something can be written at all is the outbox's to find out."""
        await asyncio.sleep(self._shared.timing.store_again_s)
        return self._shared.outbox.worth_a_try and await self._try_to_store(change)

    def _stop(self) -> None:
        """Publish that nothing can be stored: from memory, since it cannot be stored either.

        A poll is the only sign of life that the gateway takes, and no poll may start now (D4): after two minutes that
        costs the agent's session, which is said.
        """
        now, lasts_s = asyncio.get_running_loop().time(), self._shared.timing.signed_out_after_s
        refusal = self._shared.outbox.refusal
        if self.phase != "stopped":
            self._stopped_at = now
        end = ""
        if self._session.guid is not None and now - self._stopped_at > lasts_s:
            end = f"; not polled for over {lasts_s:g} s: the gateway has signed the agent out by now"
        reason = f"nothing can be stored: {'no reason is known' if refusal is None else refusal.reason}{end}"
        logged = f"nothing can be stored: {refusal}{end}"
        self._shared.storage_outage.begins(self.subject, logged, remind_s=_REMIND_S)
        if self.phase == "stopped" and reason == self._stop_told:
            return
        after, shown = self._enter_after_stop or self._enter_again, Change()
        self.enter("stopped", shown, message=reason)
        self._enter_after_stop, self._stop_told = after, reason
        self._shared.outbox.show(shown.slots)

    async def _go_on(self) -> None:
        """Publish the phase that `_stop` broke into, unless another was entered meanwhile."""
        if self._enter_after_stop is not None:
            self._shared.storage_outage.ends(self.subject)
            change = Change()
            self._enter_after_stop(change)
            await self.store(change)
