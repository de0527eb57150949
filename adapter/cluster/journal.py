"""The outbox of a member: what it stores of an agent is on several servers before the agent's next poll.

```
commit -> journal of the agent (JetStream, R3, compare-and-set) -> the outbox as ever -> PUBACK -> journal made tidy
```

Below is the same database as without a cluster, but only as a line to the broker: it begins empty at each start, since
the journals hold all that is not published. Rules of this file:
1. An agent's journal is appended to behind its newest page alone. Who finds another page there has lost the agent, and
   keeps what came for it where the new owner takes it in: nothing is dropped, and no `seq` is given twice.
2. Nothing of an agent goes out unless it is ours at that moment: what has no owner's lease waits.
3. A page goes when all that it has to publish is acknowledged, together with all before it. So what a successor finds
   may have been published before: with the same `id` and `seq`.
4. Without a quorum `commit` waits, and the agent's next poll with it. An event that waits counts as at risk.
"""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from adapter.clock import steady_time
from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine, Stored
from adapter.cluster.membership import Term
from adapter.errors import ClusterConflictError, ClusterUnavailableError, StorageFullError
from adapter.event import new_id
from adapter.outage import Outage
from adapter.store.database import Database
from adapter.store.outbox import Outbox
from adapter.store.records import AgentRecord, Change, CommandRecord, Entry, Outgoing, Removals, Slot
from adapter.store.worker import Worker
from adapter.topics import Topics

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_AGAIN_S = 0.2
"""When something is asked again that nobody has answered."""
_PATIENCE_S = 1.0
"""How long a member that leaves waits for what is being stored."""
_LOOK_AGAIN_S = 0.5
"""When it is looked again whether anything may go out."""
_AT_RISK_S = 10.0
"""How long an event may wait for a quorum before that is said: choosing another leader takes 4 to 10 s."""
_TIDY_S = 2.0
"""How long a journal stays untidy, for the next event to make it tidy: a successor repeats at most what this leaves."""
_AT_ONCE = 64
"""Journals that are made tidy at a time."""
_LATE_S = 60.0
"""By how much what a predecessor left counts as late."""

_NOT_IN_LINE = -1
"""The row of what could not be put in line."""


@dataclass(slots=True, eq=False)
class _Own:
    """The journal of an agent that is ours.

    Attributes:
        record: The agent as the newest page has it.
        place: Where that page is.
        sealed: What is secret of it, sealed.
        newest: Its newest event, once that is published.
        waiting: The rows of what waits to be published.
        tidy: Whether that page is the only one, and has nothing to publish.
        tidy_at: When it is to be made tidy, on the loop's clock.
        idle: Set when nothing waits, where somebody waits for that.
        stored: The change that was appended last: it is not appended again.
        late: Up to which place what came late has been taken in.
        ours: Whether it is still ours.
    """

    record: AgentRecord
    place: int
    sealed: bytes
    newest: bytes = b""
    waiting: set[int] = field(default_factory=set)
    tidy: bool = True
    tidy_at: float = 0.0
    idle: asyncio.Event | None = None
    stored: Change | None = None
    late: int = 0
    ours: bool = True
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True, kw_only=True)
class TakenIn(Change):
    """What came to a former owner of an agent, with its place among the agent's events.

    Attributes:
        place: Where it lies until its journal has it.
    """

    place: int


class Journal(Outbox):
    """The outbox of one member.

    Args:
        engine: The servers.
        codec: Reads and writes pages.
        topics: Of agents.

    Attributes:
        lost: Called with the number of an agent that turns out to be another's.
        doubtful: Agents of whom it is not known whether they were claimed.
    """

    def __init__(self, database: Database, worker: Worker, *, engine: Engine, codec: Codec, topics: Topics) -> None:
        super().__init__(database, worker)
        self._term: Term | None = None
        self.lost: Callable[[str], None] = lambda _: None
        self.doubtful: set[str] = set()
        self._engine = engine
        self._codec = codec
        self._topics = topics
        self._own: dict[str, _Own] = {}
        self._by_row: dict[int, _Own] = {}
        self._untidy: dict[str, _Own] = {}
        self._outage = Outage("cluster")
        self._refusal: StorageFullError | None = None

    async def begin_empty(self) -> None:
        """Forget what an earlier run has left in line: the journals have it."""
        await self._writer.write(Database.clear)
        self.agents.clear()
        self.pending.clear()
        self._cursor = self._fresh_follows = self._reserved_row
        self._newest.forget(list(self._newest.unacknowledged()))
        self.depth = 0

    # What a member takes over and hands over.

    async def claim(self, work_no: str, found: Stored | None) -> AgentRecord | None:
        """Make an agent ours that is nobody's; give what is known of it, or `None` where somebody was first.

        What its journal has to publish is in line then.

        Args:
            work_no: The agent.
            found: The newest page of its journal.

        Raises:
            ClusterUnavailableError: It is not known whether it is ours.
            ClusterError: Its journal cannot be read.
        """
        term = self._term
        self.doubtful.add(work_no)
        record, newest, late = AgentRecord(work_no=work_no), b"", 0
        outgoing: list[Outgoing] = []
        if found is not None:
            page = self._codec.read(found.value)
            record, newest, late = self._codec.agent(work_no, page), page.newest, page.late
            outgoing = await self._waiting_in(work_no, found)
        sealed = self._codec.seal(record)
        data = self._codec.write(record, owner=self._owner, sealed=sealed, newest=newest, late=late)
        try:
            place = await self._engine.append(
                self._engine.journal(work_no),
                data,
                after=0 if found is None else found.revision,
                message_id=new_id(),
                alone=not outgoing,
            )
        except ClusterConflictError:
            return None
        if term is None or term is not self._term or not term.holds():
            return None  # it was claimed for a term that is over: it is nobody's
        own = self._own[work_no] = _Own(
            record=record, place=place, sealed=sealed, newest=newest, late=late, tidy=not outgoing
        )
        self.agents[work_no] = record
        if outgoing:
            try:
                await self._line_up(own, Change(outgoing=outgoing, made_at=steady_time() - _LATE_S))
            except StorageFullError as error:
                self._let_go(own)
                raise ClusterUnavailableError(f"what waits cannot be put in line: {error}") from error
        elif newest:
            kept = Entry(0, 0.0, Outgoing(topic=self._topics.event(work_no), payload=newest, retain=True))
            removals = Removals(rows=(), kept=((self._mark, kept),), slots=())
            await self._writer.write(partial(Database.forget_acknowledged, removals=removals))
        self.doubtful.discard(work_no)
        return record

    async def _waiting_in(self, work_no: str, newest: Stored) -> list[Outgoing]:
        """Read what all pages of a journal have to publish; keep the results of commands that they have."""
        outgoing: list[Outgoing] = []
        place = 1
        while (found := await self._engine.following(work_no, place)) is not None:
            page = self._codec.read(found.value)
            outgoing += page.outgoing
            for sealed in page.settled:
                await self._engine.settle_command(command_key(self._codec.open_command(sealed)), sealed)
            place = found.revision + 1
            if place > newest.revision:
                break
        return outgoing

    async def release(self, work_no: str, record: AgentRecord | None, insists: Callable[[], bool]) -> None:
        """Make an agent nobody's, when its last request is over and what it left is stored.

        Args:
            work_no: The agent.
            record: What it left; `None` for what is stored of it.
            insists: Says whether to go on where it is not known: nobody else can have it as long as we are a member.

        Raises:
            ClusterUnavailableError: It is not known whether it is.
        """
        own = self._own[work_no]
        await self._our_turn(own, insists)
        try:
            if not own.ours:
                return
            self._let_go(own)
            if record is not None and record != own.record:
                own.record, own.sealed = record, self._codec.seal(record)
            data = self._bare_page(own, owner="")
            message_id, alone = new_id(), not own.waiting
            while True:
                try:
                    await self._engine.append(
                        self._engine.journal(work_no), data, after=own.place, message_id=message_id, alone=alone
                    )
                except ClusterConflictError:
                    _log.debug("agent %s: is another's already", work_no)
                except ClusterUnavailableError:
                    if not insists():
                        raise
                    await asyncio.sleep(_AGAIN_S)
                    continue
                return
        finally:
            own.lock.release()

    @staticmethod
    async def _our_turn(own: _Own, insists: Callable[[], bool]) -> None:
        """Wait for what is being appended to a journal: without a quorum that takes long."""
        while True:
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await own.lock.acquire()
            except TimeoutError:
                if not insists():
                    raise ClusterUnavailableError("what came last is not stored yet") from None
            else:
                return

    def begin(self, term: Term) -> None:
        """Begin to own agents."""
        self._term = term
        self.changed.set()

    @property
    def _owner(self) -> str:
        return "" if self._term is None else self._term.owner

    def abandon(self) -> None:
        """Take note that nothing is ours any more."""
        for own in list(self._own.values()):
            self._let_go(own)

    @property
    def owned(self) -> Collection[str]:
        """The agents that are ours."""
        return self._own.keys()

    def owns(self, work_no: str) -> bool:
        """Say whether an agent is ours."""
        return work_no in self._own

    def taken_in(self, work_no: str) -> int:
        """Say up to which place what came late of an agent is in its journal; 0 where that is not ours."""
        own = self._own.get(work_no)
        return 0 if own is None else own.late

    async def published(self, work_no: str, within_s: float | None) -> None:
        """Wait until nothing of an agent waits to be published, if it is ours, and for so long at most."""
        own = self._own.get(work_no)
        if own is None or not own.waiting:
            return
        own.idle = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await own.idle.wait()

    async def retire(self, work_no: str) -> None:
        """Clear what is retained of an agent of ours, and remove its journal when all of it is published.

        Raises:
            StorageFullError: Nothing was cleared; the caller tries again.
            ClusterUnavailableError: It is not known whether its journal is removed.
        """
        own = self._own.get(work_no)
        if own is None:
            return
        outgoing = [Outgoing(topic=topic, payload=b"", retain=True) for topic in self._topics.retained(work_no)]
        await self._line_up(own, Change(outgoing=outgoing, forgotten=(work_no,)))
        await self.published(work_no, None)
        async with own.lock:
            if own.waiting or not own.ours:
                return
            if own.tidy or await self._appended(own, self._bare_page(own), alone=True):
                self._let_go(own)
                await self._engine.remove(own.place)  # at that very place: what another has appended stays

    def _let_go(self, own: _Own) -> None:
        own.ours = False
        work_no = own.record.work_no
        if self._own.get(work_no) is own:
            del self._own[work_no]
            self._untidy.pop(work_no, None)
            self.agents.pop(work_no, None)
            topics = self._topics.retained(work_no)
            self._newest.forget(topics)
            self._keep_trying(lambda: self._forget_slots(topics), delay_s=0.0)

    async def _forget_slots(self, topics: Iterable[str]) -> None:
        await self._writer.write(partial(Database.forget_slots, topics=tuple(topics)))

    # Commands.

    async def admit(self, command: CommandRecord) -> CommandRecord | None:
        """Keep a new command; give the one already kept under its id instead, where there is one (C3, C4)."""
        key, value = command_key(command), self._codec.seal_command(command)

        async def admit() -> CommandRecord | None:
            try:
                await self._engine.admit_command(key, value)
            except ClusterConflictError:
                kept = await self.command(key)
                return None if kept == command else kept
            return None

        return await self._asked(admit, events=0)

    async def command(self, key: str) -> CommandRecord | None:
        """Read a command.

        Raises:
            ClusterError: It cannot be read.
        """
        found = await self._engine.command(key)
        return None if found is None else self._codec.open_command(found.value)

    async def commands_of(self, work_no: str) -> list[CommandRecord]:
        """Read the commands of an agent, oldest first. Raises as `command`."""
        return [self._codec.open_command(found.value) for found in await self._engine.commands_of(work_no)]

    async def forget_commands(self, finished_before: float, keep: int) -> None:
        """Do nothing: the servers forget them."""

    # The left side.

    async def commit(self, change: Change) -> None:
        """Store a change; return when it is in its agent's journal, and in line.

        What was begun goes on where its caller is cancelled: an agent that is handed over meanwhile loses nothing.

        Raises:
            StorageFullError: It is not in line; the caller keeps it and tries again (D4).
        """
        if change.agent is None:
            await self._settle(change)
            await super().commit(change)
            return
        own = self._own.get(change.agent.work_no)
        if own is not None and change.agent == own.record and not change.outgoing and not change.commands:
            await super().commit(change)  # newest values alone, which a successor finds out by itself
            return
        storing = asyncio.get_running_loop().create_task(self._store(own, change.agent, change), name="journal.store")
        self._insisting.add(storing)
        storing.add_done_callback(self._insisting.discard)
        await asyncio.shield(storing)

    async def _store(self, own: _Own | None, agent: AgentRecord, change: Change) -> None:
        if own is not None:
            async with own.lock:
                if await self._append(own, agent, change):
                    await self._settle(change)
                    await self._line_up(own, change)
                    return
        if not isinstance(change, TakenIn):  # that is still where the next owner finds it
            await self._keep_late(agent, change)

    async def _append(self, own: _Own, agent: AgentRecord, change: Change) -> bool:
        """Append a change to its agent's journal; `False` where the agent is another's by now."""
        if own.stored is change:
            return True
        if (agent.guid, agent.cookies, agent.guid_origin) != (
            own.record.guid,
            own.record.cookies,
            own.record.guid_origin,
        ):
            own.sealed = self._codec.seal(agent)
        alone = not own.waiting
        newest = b"" if any(out.retain for out in change.outgoing) else own.newest
        late = change.place if isinstance(change, TakenIn) else own.late
        data = self._codec.write(
            agent,
            owner=self._owner,
            sealed=own.sealed,
            outgoing=change.outgoing,
            newest=newest,
            settled=[self._codec.seal_command(command) for command in change.commands],
            late=late,
        )
        if not own.ours or not await self._appended(own, data, alone=alone, events=_events_in(change)):
            return False
        own.record, own.stored, own.late = agent, change, late
        own.tidy = alone and not change.outgoing
        return True

    async def _appended(self, own: _Own, data: bytes, *, alone: bool, events: int = 0) -> bool:
        """Append a page, however long that takes; `False` where the agent is another's by now."""
        work_no, message_id = own.record.work_no, new_id()

        async def append() -> int | None:
            try:
                return await self._engine.append(
                    self._engine.journal(work_no), data, after=own.place, message_id=message_id, alone=alone
                )
            except ClusterConflictError:
                newest = await self._engine.last(work_no)
                if newest is not None and newest.revision == own.place:
                    raise ClusterUnavailableError("another page is on its way") from None
                # Ours, whose acknowledgment was lost: one server alone looks at the place before it looks at the id.
                return newest.revision if newest is not None and newest.value == data else None

        place = await self._asked(append, events)
        if place is None:
            if own.ours:
                _log.warning("agent %s: polled by another member by now", work_no, extra={"work_no": work_no})
                self._let_go(own)
                self.lost(work_no)
            return False
        own.place = place
        return True

    async def _settle(self, change: Change) -> None:
        """Keep the results of commands; a journal that has them makes up for a crash before this."""
        for command in change.commands:
            value = self._codec.seal_command(command)
            await self._asked(partial(self._engine.settle_command, command_key(command), value), events=0)

    async def _keep_late(self, agent: AgentRecord, change: Change) -> None:
        """Keep what an agent that is another's by now has brought, for its owner to take in."""
        if not change.outgoing:
            return
        data = self._codec.write(agent, owner=self._owner, sealed=self._codec.seal(agent), outgoing=change.outgoing)
        message_id = new_id()
        await self._asked(lambda: self._engine.append_late(agent.work_no, data, message_id), _events_in(change))
        await self._engine.tell("late", agent.work_no.encode())

    async def _line_up(self, own: _Own, change: Change) -> None:
        """Put a change that its journal holds in line for the broker."""
        rows = range(self._reserved_row + 1, self._reserved_row + 1 + len(change.outgoing))
        own.waiting.discard(_NOT_IN_LINE)
        own.waiting.update(rows)
        self._by_row.update(dict.fromkeys(rows, own))
        try:
            await super().commit(change)
        except StorageFullError:
            own.waiting.add(_NOT_IN_LINE)  # they get other rows when it is tried again
            self._published(rows)
            raise

    async def _asked(self, ask: Callable[[], Awaitable[_T]], events: int) -> _T:
        """Ask until there is an answer; events that wait for it for long are told as at risk."""
        since = asyncio.get_running_loop().time()
        at_risk = False
        try:
            while True:
                try:
                    answer = await ask()
                except ClusterUnavailableError as error:
                    waited_s = asyncio.get_running_loop().time() - since
                    if not at_risk and waited_s > _AT_RISK_S:
                        at_risk = True
                        self.at_risk += events
                        self._refusal = StorageFullError("cluster", f"no quorum: {error}")
                        self._outage.begins("journal", f"no quorum: {error}", remind_s=60.0)
                    await asyncio.sleep(_AGAIN_S)
                else:
                    self._outage.is_over()
                    return answer
        finally:
            if at_risk:
                self.at_risk -= events
                if not self.at_risk:  # as long as others wait, they wait for this
                    self._refusal = None

    @property
    def refusal(self) -> StorageFullError | None:
        """Why what could not be stored last could not; `None` where all could."""
        return self._refusal or super().refusal

    # The right side.

    def next_slot(self) -> Slot | None:
        """Take a newest value that no broker has acknowledged; `None` where there is none, or nothing may go out."""
        return super().next_slot() if self._may_publish() else None

    async def next(self, limit: int) -> list[Entry]:
        """Take up to `limit` entries that come next in line and are ours. Raises as `Outbox.next`."""
        if not self._may_publish():
            asyncio.get_running_loop().call_later(_LOOK_AGAIN_S, self.changed.set)  # a renewal tells nobody
            return []
        ours: list[Entry] = []
        for entry in await super().next(limit):
            own = self._by_row.get(entry.row)
            if own is None or own.ours:
                ours.append(entry)
            else:  # its new owner publishes it
                self.acknowledge(entry.row)
        return ours

    def acknowledge(self, row: int) -> None:
        """Remove an entry that the broker has acknowledged."""
        entry, own = self._in_hand.get(row), self._by_row.get(row)
        if entry is not None and own is not None and entry.is_event:
            own.newest = entry.message.payload
        self._published([row])
        super().acknowledge(row)

    def set_aside(self, entry: Entry, reason: str) -> None:
        """Take an entry that the broker will never accept out of the line, and keep it for a person."""
        self._published([entry.row])
        super().set_aside(entry, reason)

    def _published(self, rows: Iterable[int]) -> None:
        for row in rows:
            own = self._by_row.pop(row, None)
            if own is None:
                continue
            own.waiting.discard(row)
            if own.waiting:
                continue
            if own.idle is not None:
                own.idle.set()
            if own.ours:
                own.tidy_at = asyncio.get_running_loop().time() + _TIDY_S
                self._untidy[own.record.work_no] = own

    def _may_publish(self) -> bool:
        # What is nobody's business but this member's goes out where no agent is ours, too.
        return not self._own or (self._term is not None and self._term.holds())

    # Tidying.

    async def tidy(self) -> None:
        """Remove from the journals what has been published, where no event has done that by itself."""
        now = asyncio.get_running_loop().time()
        due = [own for own in self._untidy.values() if own.tidy_at <= now]
        for start in range(0, len(due), _AT_ONCE):
            await asyncio.gather(*map(self._make_tidy, due[start : start + _AT_ONCE]))

    async def _make_tidy(self, own: _Own) -> None:
        self._untidy.pop(own.record.work_no, None)
        async with own.lock:
            if own.waiting or own.tidy or not own.ours:
                return
            own.tidy = await self._appended(own, self._bare_page(own), alone=True)

    def _bare_page(self, own: _Own, owner: str | None = None) -> bytes:
        """Write an agent as it is, with nothing to publish; as ours, unless told."""
        return self._codec.write(
            own.record,
            owner=self._owner if owner is None else owner,
            sealed=own.sealed,
            newest=own.newest,
            late=own.late,
        )


def command_key(command: CommandRecord) -> str:
    """Name a command where it is kept: any text may be its id."""
    return f"{command.work_no}.{command.kind}.{hashlib.blake2b(command.id.encode(), digest_size=16).hexdigest()}"


def _events_in(change: Change) -> int:
    return sum(message.retain for message in change.outgoing)
