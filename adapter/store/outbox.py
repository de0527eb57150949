"""The durable line between the gateway and the broker: the hinge of the program.

To its left only the gateway is known, to its right only the broker; a trouble of one never reaches the other.

Rules of this file:
1. Commit, then poll again: `commit` returns when the change is on disk (P12, D1).
2. The line is the only memory of unsent messages. The newest part is kept in memory too, so that an event which is
   published at once is never read back; a backlog is on disk alone.
3. Slots hold the newest value of a topic; they go ahead of the line. An event that has left the line stays on disk as
   the newest value of its topic, for a broker that loses it (D4a).
4. A reader clears `changed` *before* it reads, so no wake-up is lost.
5. Who waits for room decides for himself what that means; for changes that nobody keeps there is `insist`.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from adapter.clock import steady_time
from adapter.errors import StartError, StorageDamagedError, StorageFullError
from adapter.store.database import MEMBER, Database
from adapter.store.newest import Newest
from adapter.store.records import AgentRecord, Change, CommandRecord, Entry, Removals, Slot, Survivors
from adapter.store.worker import Worker
from adapter.store.writer import Writer

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_FRESH = 2000
"""How many unsent entries are kept in memory besides the disk: some seconds of a busy centre, a few MB."""

_PAGE = 500
"""How many entries of a backlog are read at once, for the publisher to take a few at a time: some 500 KB."""

_FORGET_AT_ONCE = 1000
"""How many commands are forgotten in one transaction: some milliseconds."""

_INSIST_S = 2.0
"""When a change that nobody waits for is tried again."""


class Outbox:
    """The async face of the database, for one event loop.

    Attributes:
        changed: Set whenever there may be something new to send, or room to send it.
        agents: The agents as they are on disk.
        pending: The commands without a result when the program started, oldest first.
        restarted_after: Entries up to this row are from before the start.
        unmarked: Set whenever the broker has taken something over since the last mark (D4a).
        after_kill: Whether the program was killed before this start.
        at_risk: Events that are in memory alone, since they could not be stored (D4).
        depth: Entries that wait, those in flight included.
    """

    def __init__(self, database: Database, worker: Worker) -> None:
        self._lock = database.lock
        self.after_kill = database.lock.after_kill
        self._writer = Writer(database, worker, self)
        self._insisting: set[asyncio.Task[None]] = set()
        self._acknowledged: dict[int, int] = {}  # the mark of each
        self._reserved_row = database.last_row
        self._cursor = 0
        self._page: deque[Entry] = deque()
        self._fresh: deque[Entry] = deque()
        self._fresh_follows = database.last_row
        self._newest = Newest(database.waiting_slots())
        self._in_hand: dict[int, Entry] = {}
        self._published_mark = database.mark()
        self._mark = max(self._published_mark, database.newest_mark())
        self._removed = asyncio.Event()
        self.changed = asyncio.Event()
        self.unmarked = asyncio.Event()
        self.agents: dict[str, AgentRecord] = database.agents()
        self.pending: list[CommandRecord] = database.pending_commands()
        self.restarted_after = database.last_row
        self.at_risk = 0
        self.depth = database.depth()[0]

    @property
    def writable(self) -> bool:
        """Whether another event may come: what could be written last was, and no event waits for room."""
        return self._writer.writable and not self.at_risk

    @property
    def worth_a_try(self) -> bool:
        """Whether it makes sense to store again what was refused: something was written since, if only to try it."""
        return self._writer.writable

    @property
    def refusal(self) -> StorageFullError | None:
        """Why what could not be stored last could not; `None` where all could."""
        return self._writer.refusal

    @property
    def in_hand(self) -> int:
        """How many entries `next` gave out whose removal is not yet on disk: what a crash now would repeat (D3)."""
        return len(self._in_hand)

    # The left side: what the gateway and the commands bring.

    async def commit(self, change: Change) -> None:
        """Store a change; return when it is on disk.

        Raises:
            StorageFullError: Nothing of it was stored; the caller keeps it and tries again (D4).
        """
        entries = change.entries(self._reserved_row + 1)
        self._reserved_row += len(entries)

        def stored() -> None:
            self._fresh.extend(entries)
            self.depth += len(entries)
            if change.agent is not None:
                self.agents[change.agent.work_no] = change.agent
            for work_no in change.forgotten:
                self.agents.pop(work_no, None)
            while len(self._fresh) > _FRESH:
                self._fresh_follows = self._fresh.popleft().row
            self.show(change.slots)

        await self._writer.store(change, entries, stored)

    async def insist(self, change: Change) -> None:
        """Store a change that nobody keeps; where there is no room now, go on trying in the background."""
        try:
            await self.commit(change)
        except StorageFullError:
            self._keep_trying(partial(self.commit, change))

    def show(self, slots: dict[str, bytes]) -> None:
        """Have newest values sent; for those that cannot be stored first, since the disk is full."""
        self._newest.show(slots)
        self.changed.set()

    async def admit(self, command: CommandRecord) -> CommandRecord | None:
        """Store a new command; give the one already stored under its id instead, where there is one (C3, C4).

        Raises:
            StorageFullError: It was not stored.
        """
        found: CommandRecord | None = await self._writer.write(lambda database: database.admit(command))
        return found

    async def forget_commands(self, finished_before: float, keep: int) -> None:
        """Forget commands whose result is older than a Unix time, and all but the newest `keep`.

        They go a few at a time: an event that is to be stored does not wait for all of them. What the write-ahead log
        remembers of them, and of GUIDs and call data that have served, goes too.
        """
        forget = partial(Database.forget_commands, finished_before=finished_before, keep=keep, at_once=_FORGET_AT_ONCE)
        while await self._writer.write(forget) == _FORGET_AT_ONCE:
            pass
        await self._writer.read(Database.empty_log)

    async def remember(self, key: str, value: bytes) -> None:
        """Remember a value of the program as a whole over restarts."""
        await self._writer.write(lambda database: database.set_meta(key, value))

    async def recall(self, key: str) -> bytes | None:
        """Recall what was remembered under a key."""
        return await self._writer.read(lambda database: database.meta(key))

    async def known_topics(self) -> list[str]:
        """List the topics of all newest values ever stored and not cleared."""
        return await self._writer.read(Database.slot_topics)

    async def measure(self) -> tuple[float, int]:
        """Measure what waits: the age of the oldest entry in seconds (0 where none), and the file's size in bytes."""
        oldest_at, size_bytes = await self._writer.read(lambda database: (database.depth()[1], database.size_bytes()))
        return (0.0 if oldest_at is None else max(0.0, steady_time() - oldest_at)), size_bytes

    async def kept_for_a_person(self) -> tuple[int, int]:
        """Count what waits for somebody to look at it: unreadable answers, and messages that the broker refused."""
        return await self._writer.read(Database.kept_for_a_person)

    def beat(self, health: dict[str, Any]) -> None:
        """Leave a sign of life for `ccgateway2mqtt health`."""
        self._lock.beat(health)

    # The right side: what the publisher takes.

    def rewind(self) -> None:
        """Begin the line again at its oldest entry: what was in flight on a lost connection goes again, in order."""
        self._cursor = 0
        self._page.clear()
        self._in_hand = {row: self._in_hand[row] for row in self._acknowledged}
        self._newest.rewind()
        self.changed.set()

    def next_slot(self) -> Slot | None:
        """Take a newest value that no broker has acknowledged; `None` where there is none."""
        return self._newest.take()

    @property
    def has_next(self) -> bool:
        """Whether `next` would give any."""
        return bool(self._page or self._fresh) or self._cursor < self._fresh_follows

    async def next(self, limit: int) -> list[Entry]:
        """Take up to `limit` entries that come next in line; an empty list where there is none.

        Raises:
            StorageError: The file cannot be read.
        """
        while not self._page and self._cursor < self._fresh_follows:
            after, upto = self._cursor, self._fresh_follows
            try:
                read = await self._writer.read(partial(Database.entries, after=after, upto=upto, limit=_PAGE))
            except StorageDamagedError:
                read = []  # what is not in memory is set aside with the file (D6)
            self._cursor = read[-1].row if len(read) == _PAGE else upto
            self._page.extend(entry for entry in read if entry.row not in self._acknowledged)
        source = self._page or self._fresh
        entries = [source.popleft() for _ in range(min(limit, len(source)))]
        if entries and source is self._fresh:
            self._cursor = self._fresh_follows = entries[-1].row
        for entry in entries:
            self._in_hand[entry.row] = entry
            if entry.message.retain:
                self._newest.overtaken(entry.message.topic)
        return entries

    def acknowledge(self, row: int) -> None:
        """Remove an entry that the broker has acknowledged."""
        self._acknowledged[row] = self._mark
        self._writer.acknowledged()

    def acknowledge_slot(self, slot: Slot) -> None:
        """Note that the broker has a newest value."""
        self._newest.accepted(slot, self._mark)
        self._writer.acknowledged()

    def refuse_slot(self, slot: Slot) -> None:
        """Note that the broker does not take a newest value."""
        self._newest.refused(slot)
        self._removed.set()

    def set_aside(self, entry: Entry, reason: str) -> None:
        """Take an entry that the broker will never accept out of the line, and keep it for a person."""

        async def work() -> None:
            removed = await self._writer.write(lambda database: database.set_aside(entry, reason, time.time()))
            self.depth -= removed
            self._in_hand.pop(entry.row, None)
            self._removed.set()
            self.changed.set()

        self._keep_trying(work, delay_s=0.0)

    # What the broker may have lost (D4a).

    @property
    def slots_waiting(self) -> int:
        """How many newest values wait for the broker, or for its acknowledgment."""
        return len(self._newest)

    async def advance_mark(self, seen: int) -> int:
        """Count the mark one on, beyond the one `seen` at the broker: it stands for all that is acknowledged by now.

        Raises:
            StorageFullError: It cannot be remembered.
        """
        self.unmarked.clear()
        mark = max(self._mark, seen) + 1
        await self._writer.write(partial(Database.set_mark, mark=mark))
        self._mark = self._published_mark = mark
        return mark

    def draw_line(self) -> int:
        """Tell what is acknowledged from now on from what was before; give the last mark before."""
        self._mark += 1
        return self._mark - 1

    def marks_since(self, seen: int | None, last: int) -> range:
        """List the marks at which values were acknowledged that a broker may lack.

        Args:
            seen: The mark that it has; `None` for none. One that we never published is of another's history, and
                tells nothing.
            last: What `draw_line` gave.

        Returns:
            What `offer_again` takes.
        """
        known = seen is not None and seen <= self._published_mark
        return range(seen if seen is not None and known else 0, last + 1)

    async def offer_again(self, marks: range, after: str, limit: int) -> str | None:
        """Have newest values sent again that were acknowledged at one of `marks`.

        Args:
            marks: What `marks_since` gave.
            after: The topic that this returned last; empty at first.
            limit: How many at most.

        Returns:
            The last one's topic, or `None` where none is left.

        Raises:
            StorageFullError: The disk is full; they could not be noted as waiting.
        """
        found: list[tuple[str, bytes]] = []

        def work(database: Database) -> None:
            found[:] = database.offer_again(marks, after, limit)

        def stored() -> None:
            # What is in hand is newer than what the disk knows as acknowledged.
            newer = {entry.message.topic for entry in self._in_hand.values() if entry.message.retain}
            self._newest.show_again((topic, payload) for topic, payload in found if topic not in newer)
            self.changed.set()

        # What was acknowledged a moment ago is what the broker has most likely lost.
        await self._writer.write(work, stored, acknowledged=True)
        return found[-1][0] if found else None

    async def flushed(self) -> None:
        """Wait until the line is empty and no newest value waits."""
        self._writer.eager = True
        self._writer.start()
        try:
            while self.depth or self._newest or self._newest.acknowledged:
                self._removed.clear()
                await self._removed.wait()
        finally:
            self._writer.eager = False

    # For who moves what is stored to another place.

    async def read(self, work: Callable[[Database], _T]) -> _T:
        """Read something of the database. Raises `StorageError` where the file cannot be read."""
        return await self._writer.read(work)

    async def write(self, work: Callable[[Database], None]) -> None:
        """Change something in the database. Raises `StorageFullError` where nothing was."""
        await self._writer.write(work)

    async def close(self) -> None:
        """Wait until all that was handed in is written, or cannot be."""
        for task in self._insisting:
            task.cancel()
        await self._writer.close()

    def _keep_trying(self, attempt: Callable[[], Awaitable[None]], delay_s: float = _INSIST_S) -> None:
        async def again() -> None:
            stored, pause_s = False, delay_s
            while not stored:
                await asyncio.sleep(pause_s)
                pause_s = _INSIST_S
                with contextlib.suppress(StorageFullError):
                    await attempt()
                    stored = True

        task = asyncio.get_running_loop().create_task(again(), name="outbox.insist")
        self._insisting.add(task)
        task.add_done_callback(self._insisting.discard)

    # What the disk does not know, for the writer.

    def owed(self) -> int:
        """Count what the broker has acknowledged and the disk does not know of."""
        return len(self._acknowledged) + len(self._newest.acknowledged)

    def removals(self) -> Removals:
        """List what the broker has acknowledged and the disk does not know of."""
        rows = tuple(sorted(self._acknowledged))
        newest: dict[str, tuple[int, Entry]] = {}
        for row in rows:
            entry = self._in_hand[row]
            if entry.message.retain:
                newest[entry.message.topic] = (self._acknowledged[row], entry)
        return Removals(rows=rows, kept=tuple(newest.values()), slots=tuple(self._newest.acknowledged.values()))

    def off_the_disk(self, removals: Removals, count: int) -> None:
        """Forget what the disk knows to be acknowledged; `count` entries of it were still there."""
        self.depth -= count
        for row in removals.rows:
            self._acknowledged.pop(row, None)
            self._in_hand.pop(row, None)
        self._newest.remembered(removals.slots)
        self._removed.set()
        self.unmarked.set()
        if removals.rows:
            self.changed.set()

    def survivors(self) -> Survivors:
        """Give what is in memory when the file turns out to be damaged: from then on that is all there is (D6)."""
        in_hand = [entry for row, entry in sorted(self._in_hand.items()) if row not in self._acknowledged]
        entries = (*in_hand, *self._page, *self._fresh)
        lost = self.depth - len(self._acknowledged) - len(entries)
        if lost > 0:
            _log.error("storage: %d messages that waited for the broker are in the damaged file alone", lost)
        self.depth = len(entries)
        self._removed.set()
        return Survivors(agents=tuple(self.agents.values()), entries=entries, slots=self._newest.unacknowledged())


_O = TypeVar("_O", bound=Outbox)


@contextlib.asynccontextmanager
async def open_outbox(path: Path, max_mb: int) -> AsyncIterator[Outbox]:
    """Open the outbox at `path`; close it when all that was handed in is written.

    Raises:
        StartError: It is a fleet's member's: its agents are elsewhere, and may be polled from there.
        StorageError: As `open_as`.
    """
    async with open_as(Outbox, path, max_mb) as outbox:
        if await outbox.recall(MEMBER) is not None:
            raise StartError(
                f"{path}: a member of a fleet had this database, and the fleet has its agents; "
                "bring them back with `ccgateway2mqtt cluster leave -c FILE`, the section cluster still in it; "
                f"where `run --processes` was that fleet, put {path.name}.fleet back",
                exit_code=2,
            )
        yield outbox


@contextlib.asynccontextmanager
async def open_as(
    make: Callable[[Database, Worker], _O], path: Path, max_mb: int, *, durable: bool = True
) -> AsyncIterator[_O]:
    """Open an outbox; close it when all that was handed in is written.

    Args:
        make: Makes it of its database and the thread that has it.
        path: `storage.path`.
        max_mb: How large it may become, in MiB.
        durable: Whether what is committed is to survive a power cut.

    Raises:
        StorageInUseError: Another process has it (D5).
        StorageError: It cannot be opened.
    """
    with Worker("outbox") as worker:
        database = await worker.ask(partial(Database, path, max_mb, durable=durable))
        outbox = make(database, worker)
        try:
            yield outbox
        finally:
            await outbox.close()
