"""The one writer of the database: group commit on a thread of its own, below the outbox.

Rules of this file:
1. What comes while the thread is busy, or within `_APART_S` of its last start, goes into its next transaction,
   together. Otherwise it starts at once, so a lone event never waits for company.
2. A full disk refuses what is to be stored, and nothing else: reading goes on, and removals, which make room, are
   tried again with leave to go beyond the limit, and then without the rest. While nothing can be written that is tried
   out here, whoever waits for it.
3. Whoever waits gets a verdict: nothing is held back for longer than one transaction.
4. What the broker has acknowledged is written many at once: after a while, where much has gathered, or where it is
   waited for. One by one it would cost as much as the storing, and each event would wait for both.
5. Where the file turns out to be damaged, a new one is begun first, and then all goes on (D6).
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from adapter.errors import StorageDamagedError, StorageFullError
from adapter.store.database import Database
from adapter.store.records import Change, Entry, Removals, Survivors
from adapter.store.worker import Worker

_T = TypeVar("_T")

_RETRY_S = 2.0
"""How often it is tried whether something can be written again."""

_APART_S = 0.002
"""How soon after one transaction the next may start. Each costs an fsync, the hand-over to the thread and back, and a
wake-up of the broker: where hundreds of events come in a second some share that, and wait for up to so long."""

_GATHERED_S = 0.05
"""How long what the broker has acknowledged waits for more of it. A kill repeats what came in meanwhile, which the
publisher's window bounds (D3)."""

_GATHERED = 100
"""How many acknowledgments are written at once: the window has room left, and the transaction stays a short one."""

_NOTHING = Removals(rows=(), kept=(), slots=())


@dataclass(slots=True)
class _Work:
    """One caller's part of the next transaction: a change with its entries, or anything else to do."""

    part: tuple[Change, Sequence[Entry]] | Callable[[Database], Any]
    done: asyncio.Future[Any]
    stored: Callable[[], None] | None
    behind: bool
    """Whether it is to see all that the broker has acknowledged."""


@dataclass(slots=True)
class _Transaction:
    """What goes to disk together: first what makes room, then the changes, then all else."""

    removals: Removals
    beyond: bool
    """Whether the removals may make the file larger than it is allowed to be."""
    works: list[_Work]

    def tasks(self) -> list[Callable[[Database], Any]]:
        """Say what is to be done."""
        tasks: list[Callable[[Database], Any]] = []
        if self.removals:
            tasks.append(partial(Database.forget_acknowledged, removals=self.removals, beyond=self.beyond))
        changes = [work.part for work in self.works if isinstance(work.part, tuple)]
        if changes:
            tasks.append(partial(Database.store, changes=changes))
        tasks.extend(work.part for work in self.works if not isinstance(work.part, tuple))
        return tasks

    def settle(self, results: list[Any], removed: Callable[[Removals, int], None]) -> None:
        """Tell what is off the disk, and then whoever waits what became of their works."""
        given = iter(results)
        if self.removals:
            removed(self.removals, next(given))
        if any(isinstance(work.part, tuple) for work in self.works):
            next(given)
        for work in self.works:
            result = None if isinstance(work.part, tuple) else next(given)
            if work.stored is not None:
                work.stored()
            if not work.done.done():
                work.done.set_result(result)


class Memory(Protocol):
    """What the outbox knows and the disk does not."""

    def owed(self) -> int:
        """Count what the broker has acknowledged and the disk does not know of."""

    def removals(self) -> Removals:
        """List that."""

    def off_the_disk(self, removals: Removals, count: int) -> None:
        """Take note that the disk knows; `count` entries of it were still there."""

    def survivors(self) -> Survivors:
        """Give what is in memory when the file turns out to be damaged: from then on that is all there is."""


class Writer:
    """Writes and reads on one thread.

    Attributes:
        writable: Whether the last transaction that had something to write went through.
        refusal: Why the last one that did not go through did not; `None` where all did.
        eager: Whether somebody waits for all that the broker acknowledges from now on to be off the disk.
    """

    def __init__(self, database: Database, worker: Worker, memory: Memory) -> None:
        self.writable = True
        self.refusal: StorageFullError | None = None
        self.eager = False
        self._loop = asyncio.get_running_loop()
        self._database = database
        self._worker = worker
        self._memory = memory
        self._owed_since: float | None = None
        self._damaged = False
        self._beyond = False
        self._trying = False
        self._waiting: list[_Work] = []
        self._writing = False
        self._closed = False
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._retry: asyncio.TimerHandle | None = None
        self._next_at = 0.0
        self._starting: asyncio.TimerHandle | None = None

    async def read(self, do: Callable[[Database], _T]) -> _T:
        """Read behind what is being written; on the same thread, but in no transaction that a full disk could end.

        Raises:
            StorageError: The file cannot be read.
        """
        try:
            return await self._worker.ask(partial(self._database.read, do))
        except StorageDamagedError:
            self._damaged = True
            self.start()
            raise

    async def write(
        self,
        do: Callable[[Database], Any],
        stored: Callable[[], None] | None = None,
        *,
        acknowledged: bool = False,
    ) -> Any:  # noqa: ANN401 - each work has its own result
        """Do a work in the next transaction.

        Args:
            do: The work.
            stored: Called before anybody else goes on.
            acknowledged: Whether all that the broker has acknowledged is written before it.

        Raises:
            StorageFullError: Nothing of it was stored.
        """
        return await self._wait_for(do, stored, acknowledged=acknowledged)

    async def store(self, change: Change, entries: Sequence[Entry], stored: Callable[[], None]) -> None:
        """Store a change and what it puts in line, as `write` does a work."""
        await self._wait_for((change, entries), stored)

    async def _wait_for(
        self,
        part: tuple[Change, Sequence[Entry]] | Callable[[Database], Any],
        stored: Callable[[], None] | None,
        *,
        acknowledged: bool = False,
    ) -> Any:  # noqa: ANN401 - as `write`
        work = _Work(part, self._loop.create_future(), stored, acknowledged)
        self._waiting.append(work)
        self.start()
        return await work.done

    def acknowledged(self) -> None:
        """Write what the broker has acknowledged, as rule 4 says when."""
        if self._owed_since is None:
            self._owed_since = self._loop.time()
        if not self._writing and self._is_due():
            self.start()
        else:
            self._rest()

    def _is_due(self) -> bool:
        """Say whether what the broker has acknowledged is to be written now, as rule 4 says."""
        return self._owed_since is not None and (
            self.eager
            or not self.writable
            or self._loop.time() >= self._owed_since + _GATHERED_S
            or self._memory.owed() >= _GATHERED
            or any(work.behind for work in self._waiting)
        )

    def _rest(self) -> None:
        """Come back when what the broker has acknowledged has waited for long enough."""
        if self._owed_since is not None and not self._writing and not self._closed:
            self._start_at(self._owed_since + _GATHERED_S)

    def start(self) -> None:
        """Give all that waits to the thread, unless it is busy."""
        if self._writing or self._closed:
            return
        if self._damaged:
            self._begin_anew()
            return
        now = self._loop.time()
        if now < self._next_at and not self.eager:
            self._start_at(self._next_at)
            return
        self._cancel_start()
        removals = _NOTHING
        if self._is_due():
            removals, self._owed_since = self._memory.removals(), None
        if not self._waiting and not removals and not self._trying:
            self._rest()
            return
        works: list[_Work] = []
        if self.writable or not removals.rows:
            works, self._waiting = self._waiting, works
        self._writing = True
        self._next_at = now + _APART_S
        self._quiet.clear()
        transaction = _Transaction(removals, self._beyond or not self.writable, works)
        self._beyond = False
        tasks = transaction.tasks()
        if self._trying and not removals.rows:  # they are a try themselves, and nothing is to spoil it
            tasks.append(Database.try_out)
        self._trying = False
        self._worker.do(partial(self._database.run, tasks), partial(self._written, transaction))

    def _written(self, transaction: _Transaction, results: list[Any], error: BaseException | None) -> None:
        self._writing = False
        if error is None:
            self.writable = True
            transaction.settle(results, self._memory.off_the_disk)
            if self._waiting or self._trying or self._is_due():
                self.start()
            else:
                self._rest()
        else:
            if transaction.removals:
                self._owed_since = 0.0
            self._waiting = [*transaction.works, *self._waiting]
            if isinstance(error, StorageDamagedError):
                self._damaged = True
                self.start()
            elif transaction.removals.kept and not transaction.beyond:
                self._beyond = True
                self._next_at = 0.0
                self.start()
            else:
                # Those that let the removals go first are told as well: not even these went through.
                self._refuse(error)
        if not self._writing:
            self._quiet.set()

    def _start_at(self, moment: float) -> None:
        if self._starting is None or self._starting.when() > moment:
            self._cancel_start()
            self._starting = self._loop.call_at(moment, self._due)

    def _due(self) -> None:
        self._starting = None
        self._next_at = 0.0  # a timer may be early by as much as the clock is coarse
        self.start()

    def _cancel_start(self) -> None:
        if self._starting is not None:
            self._starting.cancel()
            self._starting = None

    def _begin_anew(self) -> None:
        self._writing = True
        self._quiet.clear()
        self._worker.do(partial(self._database.begin_anew, self._memory.survivors()), self._begun)

    def _begun(self, _nothing: None, error: BaseException | None) -> None:
        self._writing = False
        if error is None:
            self._damaged = False
            self.start()
        else:
            self._refuse(error)
        if not self._writing:
            self._quiet.set()

    def _refuse(self, error: BaseException) -> None:
        self.writable = False
        if isinstance(error, StorageFullError):
            self.refusal = error
        refused, self._waiting = self._waiting, []
        for work in refused:
            if not work.done.done():
                work.done.set_exception(error)
        if self._retry is None:
            self._retry = self._loop.call_later(_RETRY_S, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._trying = not self.writable
        self.start()

    async def close(self) -> None:
        """Wait until all that was handed in is written, or cannot be; then close the database."""
        self.eager = True
        self.start()
        await self._quiet.wait()
        self._closed = True
        self._cancel_start()
        if self._retry is not None:
            self._retry.cancel()
        await self._worker.ask(self._database.close)
