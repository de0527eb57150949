"""The one writer of the database: group commit on a thread of its own, below the outbox.

Rules of this file:
1. What comes while the thread is busy, or within `_APART_S` of its last start, goes into its next transaction,
   together. Otherwise it starts at once, so a lone event never waits for company.
2. A full disk refuses what is to be stored, and nothing else: reading goes on, and removals, which make room, are
   tried without the rest. While nothing can be written that is tried out here, whoever waits for it.
3. Whoever waits gets a verdict: nothing is held back for longer than one transaction.
4. What the broker has acknowledged goes with what is stored next, since a transaction costs its fsync and little else;
   by itself where nothing comes for a while, where much has gathered, or where it is waited for.
5. Where the file turns out to be damaged, a new one is begun first, and then all goes on (D6).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from adapter.errors import StorageDamagedError, StorageFullError
from adapter.store.database import Database
from adapter.store.records import Removals, Survivors
from adapter.store.worker import Worker

_T = TypeVar("_T")

_RETRY_S = 2.0
"""How often it is tried whether something can be written again."""

_APART_S = 0.002
"""How soon after one transaction the next may start. Each costs an fsync, the hand-over to the thread and back, and a
wake-up of the broker: where hundreds of events come in a second some share that, and wait for up to so long."""

_ALONE_S = 0.05
"""How long what the broker has acknowledged waits for something to go with. A kill repeats what came in meanwhile,
which the publisher's window bounds (D3)."""

_GATHERED = 100
"""How many acknowledgments go without something else: an fsync is little for so many, and the window has room left."""


@dataclass(slots=True)
class _Work:
    """One caller's part of the next transaction."""

    do: Callable[[Database], Any]
    done: asyncio.Future[Any]
    stored: Callable[[], None] | None


class Writer:
    """Writes and reads on one thread.

    Args:
        removals: Gives what the broker has acknowledged since it was `removed` last.
        removed: Told what is off the disk, and how many entries of it were still there; says how many acknowledgments
            there are by now that the disk does not know of.
        survivors: Gives what is in memory when the file turns out to be damaged: from then on that is all there is.

    Attributes:
        writable: Whether the last transaction that had something to write went through.
        refusal: Why the last one that did not go through did not; `None` where all did.
        eager: Whether somebody waits for what the broker has acknowledged to be off the disk.
    """

    def __init__(
        self,
        database: Database,
        worker: Worker,
        removals: Callable[[], Removals],
        removed: Callable[[Removals, int], int],
        survivors: Callable[[], Survivors],
    ) -> None:
        self.writable = True
        self.refusal: StorageFullError | None = None
        self.eager = False
        self._loop = asyncio.get_running_loop()
        self._database = database
        self._worker = worker
        self._owed = 0
        self._removals = removals
        self._removed = removed
        self._survivors = survivors
        self._damaged = False
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

    async def write(self, do: Callable[[Database], Any], stored: Callable[[], None] | None = None) -> Any:  # noqa: ANN401 - each work has its own result
        """Do a work in the next transaction; `stored` is called before anybody else goes on.

        Raises:
            StorageFullError: Nothing of it was stored.
        """
        work = _Work(do, self._loop.create_future(), stored)
        self._waiting.append(work)
        self.start()
        return await work.done

    def acknowledged(self, owed: int) -> None:
        """Write what the broker has acknowledged, as rule 4 says when.

        Args:
            owed: How many acknowledgments the disk does not know of.
        """
        self._owed = owed
        if self._writing or self._closed or not owed:
            return
        if self.eager or not self.writable or owed >= _GATHERED:
            self.start()
        else:
            self._start_at(self._loop.time() + _ALONE_S)

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
        removals = self._removals()
        if not self._waiting and not removals and not self._trying:
            return
        works: list[_Work] = []
        if self.writable or not removals.rows:
            works, self._waiting = self._waiting, works
        self._writing = True
        self._next_at = now + _APART_S
        self._quiet.clear()
        tasks: list[Callable[[Database], Any]] = [work.do for work in works]
        if removals:
            tasks.insert(0, partial(Database.forget_acknowledged, removals=removals))
        if self._trying and not removals.rows:  # they are a try themselves, and nothing is to spoil it
            tasks.append(Database.try_out)
        self._trying = False
        self._worker.do(partial(self._database.run, tasks), partial(self._written, works, removals))

    def _written(self, works: list[_Work], removals: Removals, results: list[Any], error: BaseException | None) -> None:
        self._writing = False
        if isinstance(error, StorageDamagedError):
            self._damaged = True
            self._waiting = [*works, *self._waiting]
            self.start()
        elif error is not None:
            # Those that let the removals go first are told as well: not even these went through.
            self._refuse([*works, *self._waiting], error)
        else:
            self.writable = True
            given = iter(results)
            if removals:
                self._owed = self._removed(removals, next(given))
            for work, result in zip(works, given, strict=False):  # a try-out follows them
                if work.stored is not None:
                    work.stored()
                if not work.done.done():
                    work.done.set_result(result)
            if self._waiting or self._trying:
                self.start()
            else:
                self.acknowledged(self._owed)
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
        self._worker.do(partial(self._database.begin_anew, self._survivors()), self._begun)

    def _begun(self, _nothing: None, error: BaseException | None) -> None:
        self._writing = False
        if error is None:
            self._damaged = False
            self.start()
        else:
            self._refuse(self._waiting, error)
        if not self._writing:
            self._quiet.set()

    def _refuse(self, refused: list[_Work], error: BaseException) -> None:
        self.writable = False
        if isinstance(error, StorageFullError):
            self.refusal = error
        self._waiting = []
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
