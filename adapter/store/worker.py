"""The database's thread: one job after the other, each answered on the event loop.

`run_in_executor` does the same with two futures, two locks and a chain of callbacks for each job, which is as much as
a small transaction takes. Rules of this file: nothing is known of databases here; a job's error is its asker's.
"""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar

_T = TypeVar("_T")

Done = Callable[[Any, BaseException | None], None]
"""Takes a job's result, or its error."""


class Worker:
    """A thread that runs while its context lasts, for one event loop; leaving it waits for the jobs that are left."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Done] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._jobs.put(None)
        self._thread.join()

    def do(self, job: Callable[[], Any], done: Done) -> None:
        """Do a job behind those that wait; `done` is called on the event loop."""
        self._jobs.put((job, done))

    async def ask(self, job: Callable[[], _T]) -> _T:
        """Do a job and wait for its result; who is cancelled meanwhile leaves the job to be done all the same."""
        answered: asyncio.Future[_T] = self._loop.create_future()
        self.do(job, partial(_answer, answered))
        return await answered

    def _run(self) -> None:
        while (order := self._jobs.get()) is not None:
            job, done = order
            try:
                result, error = job(), None
            except BaseException as err:  # noqa: BLE001 - it is raised where the job was asked for
                result, error = None, err
            self._loop.call_soon_threadsafe(done, result, error)
            del order, job, done, result, error  # or they would live until the next job comes


def _answer(answered: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:  # noqa: ANN401 - each job has its own
    if answered.done():
        return
    if error is None:
        answered.set_result(result)
    else:
        answered.set_exception(error)
