"""The durable line between the gateway and the broker: the hinge of the program.

To its left only the gateway is known, to its right only the broker; a trouble of one never reaches the other.

Rules of this file:
1. Commit, then poll again: `commit` returns when the change is on disk (P12, D1).
2. Group commit: what comes while the one writer thread is busy goes into its next transaction, together. An idle
   writer starts at once, so a lone event never waits for company.
3. The line is the only memory of unsent messages. The newest part is kept in memory too, so that an event which is
   published at once is never read back; a backlog is on disk alone.
4. Slots hold the newest value of a topic; they go ahead of the line.
5. A reader clears `changed` *before* it reads, so no wake-up is lost.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from adapter.database import Database
from adapter.records import AgentRecord, Change, CommandRecord, Entry

_FRESH = 2000
"""How many unsent entries are kept in memory besides the disk: some seconds of a busy centre, a few MB."""

_RETRY_S = 5.0
"""When deletions that could not be committed are tried again; nothing waits for them but the disk space."""


@dataclass(slots=True)
class _Work:
    """One caller's part of the next transaction."""

    do: Callable[[Database], Any]
    done: asyncio.Future[Any]
    stored: Callable[[], None] | None


class Outbox:
    """The async face of the database, for one event loop.

    Attributes:
        changed: Set whenever there may be something new to send, or room to send it.
        agents: The agents as they were when the program started.
        pending: The commands without a result when the program started, oldest first.
        restarted_after: Entries up to this row are from before the start.
        mark: The counter which says after which retained write the broker's memory was last seen (D4a).
        at_risk: Events that are in memory alone, since they could not be stored (D4).
        depth: Entries that wait, those in flight included.
        writable: Whether the last transaction went through.
    """

    def __init__(self, database: Database, thread: ThreadPoolExecutor) -> None:
        self._database = database
        self._thread = thread
        self._waiting: list[_Work] = []
        self._writing = False
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._acknowledged_rows: list[int] = []
        self._acknowledged_slots: list[tuple[str, bytes]] = []
        self._reserved_row = self._committed_row = database.last_row
        self._cursor = 0
        self._fresh: deque[Entry] = deque()
        self._fresh_follows = database.last_row
        self._slots = database.waiting_slots()
        self._sent_slots: dict[str, bytes] = {}
        self._in_hand: set[int] = set()
        self._removed = asyncio.Event()
        self._closed = False
        self.changed = asyncio.Event()
        self.agents: dict[str, AgentRecord] = database.agents()
        self.pending: list[CommandRecord] = database.pending_commands()
        self.restarted_after = database.last_row
        self.mark = 0
        self.at_risk = 0
        self.depth = database.depth()[0]
        self.writable = True

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
        stored_at = time.time()
        rows = range(self._reserved_row + 1, self._reserved_row + 1 + len(change.outgoing))
        self._reserved_row = rows.stop - 1

        def stored() -> None:
            self._fresh.extend(
                Entry(row, stored_at, message) for row, message in zip(rows, change.outgoing, strict=True)
            )
            self._committed_row = max(self._committed_row, rows.stop - 1)
            self.depth += len(rows)
            while len(self._fresh) > _FRESH:
                self._fresh_follows = self._fresh.popleft().row
            self.show(change.slots)

        await self._work(partial(Database.store, change=change, rows=rows, stored_at=stored_at), stored)

    def show(self, slots: dict[str, bytes]) -> None:
        """Have newest values sent; for those that cannot be stored first, since the disk is full."""
        self._slots.update(slots)
        self.changed.set()

    async def admit(self, command: CommandRecord) -> CommandRecord | None:
        """Store a new command; give the one already stored under its id instead, where there is one (C3, C4).

        Raises:
            StorageFullError: It was not stored.
        """
        found: CommandRecord | None = await self._work(lambda database: database.admit(command))
        return found

    async def forget(self, *, agents: tuple[str, ...] = (), commands_before: float | None = None) -> None:
        """Forget agents that left the configuration, and commands finished before a Unix time."""

        def work(database: Database) -> None:
            for work_no in agents:
                database.forget_agent(work_no)
            if commands_before is not None:
                database.forget_commands(commands_before)

        await self._work(work)

    async def remember(self, key: str, value: bytes) -> None:
        """Remember a value of the program as a whole over restarts."""
        await self._work(lambda database: database.set_meta(key, value))

    async def recall(self, key: str) -> bytes | None:
        """Recall what was remembered under a key."""
        value: bytes | None = await self._work(lambda database: database.meta(key))
        return value

    async def known_topics(self) -> list[str]:
        """List the topics of all newest values ever stored and not cleared."""
        topics: list[str] = await self._work(Database.slot_topics)
        return topics

    async def measure(self) -> tuple[float, int]:
        """Measure what waits: the age of the oldest entry in seconds (0 where none), and the file's size in bytes."""
        oldest_at, size_bytes = await self._work(lambda database: (database.depth()[1], database.size_bytes()))
        return (0.0 if oldest_at is None else max(0.0, time.time() - oldest_at)), size_bytes

    def beat(self, health: dict[str, Any]) -> None:
        """Leave a sign of life for `ccgateway2mqtt health`."""
        self._database.lock.beat(health)

    # The right side: what the publisher takes.

    def rewind(self) -> None:
        """Begin the line again at its oldest entry: what was in flight on a lost connection goes again, in order."""
        self._cursor = 0
        self._fresh.clear()
        self._fresh_follows = self._committed_row
        self._in_hand.clear()
        self._slots = self._sent_slots | self._slots
        self._sent_slots = {}
        self.changed.set()

    def next_slot(self) -> tuple[str, bytes] | None:
        """Take a newest value that no broker has acknowledged; `None` where there is none."""
        if not self._slots:
            return None
        topic = next(iter(self._slots))
        payload = self._sent_slots[topic] = self._slots.pop(topic)
        return topic, payload

    async def next(self, limit: int) -> list[Entry]:
        """Take up to `limit` entries that come next in line; an empty list where there is none."""
        if self._cursor < self._fresh_follows:
            upto = self._fresh_follows
            entries: list[Entry] = await self._work(lambda database: database.entries(self._cursor, upto, limit))
            self._cursor = entries[-1].row if entries else upto
            if not entries:
                return await self.next(limit)
        else:
            entries = [self._fresh.popleft() for _ in range(min(limit, len(self._fresh)))]
            if entries:
                self._cursor = self._fresh_follows = entries[-1].row
        self._in_hand.update(entry.row for entry in entries)
        return entries

    def acknowledge(self, row: int) -> None:
        """Remove an entry that the broker has acknowledged."""
        self._acknowledged_rows.append(row)
        self._start()

    def acknowledge_slot(self, topic: str, payload: bytes) -> None:
        """Note that the broker has a newest value."""
        if self._sent_slots.get(topic) == payload:
            del self._sent_slots[topic]
        self._acknowledged_slots.append((topic, payload))
        self._start()

    async def set_aside(self, entry: Entry, reason: str) -> None:
        """Take an entry that the broker will never accept out of the line, and keep it for a person."""
        await self._work(lambda database: database.set_aside(entry, reason, time.time()))
        self.depth -= 1
        self._in_hand.discard(entry.row)
        self._removed.set()
        self.changed.set()

    async def flushed(self) -> None:
        """Wait until the line is empty and no newest value waits."""
        while self.depth or self._slots or self._sent_slots:
            self._removed.clear()
            await self._removed.wait()

    async def close(self) -> None:
        """Wait until all that was handed in is written, or cannot be."""
        await self._quiet.wait()
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(self._thread, self._database.close)

    # The one writer.

    async def _work(self, do: Callable[[Database], Any], stored: Callable[[], None] | None = None) -> Any:  # noqa: ANN401 - each work has its own result
        work = _Work(do, asyncio.get_running_loop().create_future(), stored)
        self._waiting.append(work)
        self._start()
        return await work.done

    def _start(self) -> None:
        """Give all that waits to the writer thread, unless it is busy."""
        if self._writing or self._closed or not (self._waiting or self._acknowledged_rows or self._acknowledged_slots):
            return
        rows, self._acknowledged_rows = self._acknowledged_rows, []
        slots, self._acknowledged_slots = self._acknowledged_slots, []
        # After a failure deletions go alone: they make the room that the others wait for.
        works: list[_Work] = []
        if self.writable or not rows:
            works, self._waiting = self._waiting, works
        forget = partial(Database.forget_acknowledged, rows=rows, slots=slots, mark=self.mark)
        self._writing = True
        self._quiet.clear()
        tasks: list[Callable[[Database], Any]] = [forget, *(work.do for work in works)]
        written = asyncio.get_running_loop().run_in_executor(self._thread, self._database.run, tasks)
        written.add_done_callback(partial(self._written, works, rows, slots))

    def _written(
        self, works: list[_Work], rows: list[int], slots: list[tuple[str, bytes]], written: asyncio.Future[list[Any]]
    ) -> None:
        self._writing = False
        error = written.exception()
        self.writable = error is None
        if error is None:
            self.depth -= len(rows)
            self._in_hand.difference_update(rows)
            self._removed.set()
            if rows:
                self.changed.set()
            for work, result in zip(works, written.result()[1:], strict=True):
                if work.stored is not None:
                    work.stored()
                if not work.done.done():
                    work.done.set_result(result)
        else:
            self._acknowledged_rows[:0] = rows
            self._acknowledged_slots[:0] = slots
            for work in works:
                if not work.done.done():
                    work.done.set_exception(error)
            if not self._waiting:
                asyncio.get_running_loop().call_later(_RETRY_S, self._start)
                self._quiet.set()
                return
        self._start()
        if not self._writing:
            self._quiet.set()


@asynccontextmanager
async def open_outbox(path: Path, max_mb: int) -> AsyncIterator[Outbox]:
    """Open the outbox at `path`; close it when all that was handed in is written.

    Raises:
        StorageInUseError: Another process has it (D5).
        StorageError: It cannot be opened.
    """
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="outbox") as thread:
        database = await loop.run_in_executor(thread, Database, path, max_mb)
        outbox = Outbox(database, thread)
        try:
            yield outbox
        finally:
            await outbox.close()
