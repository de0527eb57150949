"""The outbox of a member: what it stores of an agent is on several servers before the agent's next poll.

```
commit -> journal of the agent (JetStream, R3, compare-and-set) -> the outbox as ever -> PUBACK -> journal made tidy
```

Below is the same database as without a cluster, but only as a line to the broker: it begins empty at each start, since
the journals hold all that is not published. Rules of this file:
1. What comes for an agent that is another's by now is kept where its owner takes it in: nothing is dropped, and no
   `seq` is given twice.
2. Nothing of an agent goes out unless it is ours at that moment: what has no owner's lease waits.
3. Without a quorum `commit` waits, and the agent's next poll with it. An event that waits counts as at risk.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from functools import partial

from adapter.clock import steady_time
from adapter.cluster.answers import Stored
from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine
from adapter.cluster.kept import KeptCommands
from adapter.cluster.pages import Own, Pages
from adapter.cluster.quorum import Quorum
from adapter.cluster.term import Term
from adapter.errors import ClusterUnavailableError, StorageFullError
from adapter.store.database import Database
from adapter.store.outbox import Outbox
from adapter.store.records import AgentRecord, Change, CommandRecord, Entry, Outgoing, Removals, Slot
from adapter.store.worker import Worker
from adapter.topics import Topics

_log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.5
"""When it is looked again whether anything may go out."""
_LATE_S = 60.0
"""By how much what a predecessor left counts as late."""

_NOT_IN_LINE = -1
"""The row of what could not be put in line."""


class Journal(Outbox):
    """The outbox of one member.

    Args:
        engine: The servers.
        codec: Reads and writes pages.
        topics: Of agents.

    Attributes:
        pages: The journals of the agents that are ours.
        kept: The commands of the fleet.
    """

    def __init__(self, database: Database, worker: Worker, *, engine: Engine, codec: Codec, topics: Topics) -> None:
        super().__init__(database, worker)
        self._quorum = Quorum(self._add_at_risk)
        self.pages = Pages(engine, codec, self._quorum, self._forget)
        self.kept = KeptCommands(engine, codec, self._quorum)
        self._topics = topics
        self._by_row: dict[int, Own] = {}
        self._idle: dict[Own, asyncio.Event] = {}
        self._unstored: dict[int, tuple[str, int]] = {}

    async def begin_empty(self) -> None:
        """Forget what an earlier run has left in line: the journals have it."""
        await self._writer.write(Database.clear)
        self.agents.clear()
        self.pending.clear()
        self._cursor = self._fresh_follows = self._reserved_row
        self._newest.forget(list(self._newest.unacknowledged()))
        self.depth = 0

    def begin(self, term: Term) -> None:
        """Begin to own agents."""
        self.pages.begin(term)
        self.changed.set()

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
        claimed = await self.pages.claim(work_no, found)
        if claimed is None:
            return None
        own, outgoing = claimed
        self.agents[work_no] = own.record
        if outgoing:
            try:
                await self._line_up(own, Change(outgoing=outgoing, made_at=steady_time() - _LATE_S))
            except StorageFullError as error:
                self.pages.let_go(own)
                raise ClusterUnavailableError(f"what waits cannot be put in line: {error}") from error
        elif own.newest:
            kept = Entry(0, 0.0, Outgoing(topic=self._topics.event(work_no), payload=own.newest, retain=True))
            removals = Removals(rows=(), kept=((self._mark, kept),), slots=())
            await self._writer.write(partial(Database.forget_acknowledged, removals=removals))
        self.pages.doubtful.discard(work_no)
        return own.record

    async def published(self, work_no: str, within_s: float | None = None) -> None:
        """Wait until nothing of an agent of ours waits to be published, or for `within_s`."""
        own = self.pages.find(work_no)
        if own is None or not own.waiting:
            return
        idle = self._idle.setdefault(own, asyncio.Event())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await idle.wait()

    async def retire(self, work_no: str) -> None:
        """Clear what is retained of an agent of ours, and remove its journal when all of it is published.

        Raises:
            StorageFullError: Nothing was cleared; the caller tries again.
            ClusterUnavailableError: It is not known whether its journal is removed.
        """
        own = self.pages.find(work_no)
        if own is not None:
            outgoing = [Outgoing(topic=topic, payload=b"", retain=True) for topic in self._topics.retained(work_no)]
            await self._line_up(own, Change(outgoing=outgoing, forgotten=(work_no,)))
            await self.published(work_no)
            await self.pages.remove(own)

    def _forget(self, own: Own) -> None:
        """Send nothing more of an agent that is not ours any more."""
        work_no = own.record.work_no
        self.agents.pop(work_no, None)
        topics = self._topics.retained(work_no)
        self._newest.forget(topics)
        forget = partial(Database.forget_slots, topics=topics)
        self._keep_trying(partial(self._writer.write, forget), delay_s=0.0)

    # The left side.

    async def admit(self, command: CommandRecord) -> CommandRecord | None:
        """Keep a new command; give the one already kept under its id instead, where there is one (C3, C4)."""
        return await self.kept.admit(command)

    async def forget_commands(self, finished_before: float, keep: int) -> None:
        """Do nothing: the servers forget them."""

    async def commit(self, change: Change) -> None:
        """Store a change; return when it is in its agent's journal, and in line.

        What was begun goes on where its caller is cancelled: an agent that is handed over meanwhile loses nothing.

        Raises:
            StorageFullError: It is not in line; the caller keeps it and tries again (D4).
        """
        if change.agent is None:
            await self.kept.settle(change.commands)
            await super().commit(change)
            return
        own = self.pages.find(change.agent.work_no)
        if own is not None and change.agent == own.record and not change.outgoing and not change.commands:
            await super().commit(change)  # newest values alone, which a successor finds out by itself
            return
        storing = asyncio.get_running_loop().create_task(self._store(own, change.agent, change), name="journal.store")
        self._insisting.add(storing)
        self._unstored[id(change)] = change.agent.work_no, sum(message.retain for message in change.outgoing)
        storing.add_done_callback(self._insisting.discard)
        storing.add_done_callback(lambda _: self._unstored.pop(id(change), None))
        await asyncio.shield(storing)

    async def _store(self, own: Own | None, agent: AgentRecord, change: Change) -> None:
        if own is not None:
            async with own.lock:
                if await self.pages.append(own, agent, change):
                    self._unstored.pop(id(change), None)
                    await self.kept.settle(change.commands)
                    await self._line_up(own, change)
                    return
        await self.pages.keep_late(agent, change)

    async def _line_up(self, own: Own, change: Change) -> None:
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

    def _add_at_risk(self, events: int) -> None:
        self.at_risk += events

    @property
    def writable(self) -> bool:
        """Whether another event may come: one that is too large for the servers is its own agent's trouble."""
        return self.worth_a_try and self.at_risk == self._quorum.too_large

    @property
    def refusal(self) -> StorageFullError | None:
        """Why what could not be stored last could not; `None` where all could."""
        return self._quorum.refusal or super().refusal

    async def close(self) -> None:
        """Wait until all that was handed in is written, or cannot be; say what goes with this process."""
        lost = [(work_no, events) for work_no, events in self._unstored.values() if events]
        if lost:
            agents, events = len({work_no for work_no, _ in lost}), sum(events for _, events in lost)
            _log.error("cluster: lost at the end, since no servers stored it: %d events of %d agents", events, agents)
        await super().close()

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
            if not own.waiting:
                self.pages.published(own)
                if idle := self._idle.pop(own, None):
                    idle.set()

    def _may_publish(self) -> bool:
        # What is nobody's business but this member's goes out where no agent is ours, too.
        return not self.pages.owned or self.pages.hold()
