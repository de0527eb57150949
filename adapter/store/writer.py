"""The one writer of the database: group commit on a thread of its own, below the outbox.

Rules of this file:
1. What comes while the thread is busy goes into its next transaction, together. An idle thread starts at once, so a
   lone event never waits for company.
2. A full disk refuses what is to be stored, and nothing else: reading goes on, and removals, which make room, are
   tried without the rest. While nothing can be written that is tried out here, whoever waits for it.
3. Whoever waits gets a verdict: nothing is held back for longer than one transaction.
4. Where the file turns out to be damaged, a new one is begun first, and then all goes on (D6).
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from adapter.errors import StorageDamagedError, StorageFullError
from adapter.store.database import Database
from adapter.store.records import Removals, Survivors

_T = TypeVar("_T")

_RETRY_S = 2.0
"""How often it is tried whether something can be written again."""


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
        removed: Told what is off the disk, and how many entries of it were still there.
        survivors: Gives what is in memory when the file turns out to be damaged: from then on that is all there is.

    Attributes:
        writable: Whether the last transaction that had something to write went through.
        refusal: Why the last one that did not go through did not; `None` where all did.
    """

    def __init__(
        self,
        database: Database,
        thread: ThreadPoolExecutor,
        removals: Callable[[], Removals],
        removed: Callable[[Removals, int], None],
        survivors: Callable[[], Survivors],
    ) -> None:
        self.writable = True
        self.refusal: StorageFullError | None = None
        self._database = database
        self._thread = thread
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

    async def read(self, do: Callable[[Database], _T]) -> _T:
        """Read behind what is being written; on the same thread, but in no transaction that a full disk could end.

        Raises:
            StorageError: The file cannot be read.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._database.read, do)
        except StorageDamagedError:
            self._damaged = True
            self.start()
            raise

    async def write(self, do: Callable[[Database], Any], stored: Callable[[], None] | None = None) -> Any:  # noqa: ANN401 - each work has its own result
        """Do a work in the next transaction; `stored` is called before anybody else goes on.

        Raises:
            StorageFullError: Nothing of it was stored.
        """
        work = _Work(do, asyncio.get_running_loop().create_future(), stored)
        self._waiting.append(work)
        self.start()
        return await work.done

    def start(self) -> None:
        """Give all that waits to the thread, unless it is busy."""
        if self._writing or self._closed:
            return
        if self._damaged:
            self._begin_anew()
            return
        removals = self._removals()
        if not self._waiting and not removals and not self._trying:
            return
        works: list[_Work] = []
        if self.writable or not removals.rows:
            works, self._waiting = self._waiting, works
        self._writing = True
        self._quiet.clear()
        forget = partial(Database.forget_acknowledged, removals=removals)
        tasks: list[Callable[[Database], Any]] = [forget, *(work.do for work in works)]
        if self._trying and not removals.rows:  # they are a try themselves, and nothing is to spoil it
            tasks.append(Database.try_out)
        self._trying = False
        written = asyncio.get_running_loop().run_in_executor(self._thread, self._database.run, tasks)
        written.add_done_callback(partial(self._written, works, removals))

    def _written(self, works: list[_Work], removals: Removals, written: asyncio.Future[list[Any]]) -> None:
        self._writing = False
        error = written.exception()
        if isinstance(error, StorageDamagedError):
            self._damaged = True
            self._waiting = [*works, *self._waiting]
            self.start()
        elif error is None:
            self.writable = True
            count, *results = written.result()
            self._removed(removals, count)
            for work, result in zip(works, results, strict=False):  # a try-out follows them
                if work.stored is not None:
                    work.stored()
                if not work.done.done():
                    work.done.set_result(result)
            self.start()
        else:
            # Those that let the removals go first are told as well: not even these went through.
            self._refuse([*works, *self._waiting], error)
        if not self._writing:
            self._quiet.set()

    def _begin_anew(self) -> None:
        self._writing = True
        self._quiet.clear()
        begun = asyncio.get_running_loop().run_in_executor(self._thread, self._database.begin_anew, self._survivors())
        begun.add_done_callback(self._begun)

    def _begun(self, begun: asyncio.Future[None]) -> None:
        self._writing = False
        error = begun.exception()
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
            self._retry = asyncio.get_running_loop().call_later(_RETRY_S, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        self._trying = not self.writable
        self.start()

    async def close(self) -> None:
        """Wait until all that was handed in is written, or cannot be; then close the database."""
        await self._quiet.wait()
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._database.close)
