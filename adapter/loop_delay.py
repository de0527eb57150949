"""How late the event loop is: what a poll, a PUBACK or a command waits before anything looks at it.

A timer fires every `PERIOD_S`, and how late it fires goes into a histogram. Where the loop was blocked for longer than
a period, every timer that would have fired meanwhile is counted, with its own delay: the histogram says how long
whatever comes at a random moment waits, and not how often something was slow.

Beside the way from answer to topic: measured only where somebody may ask for it (`http.listen`).
"""

import asyncio
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import Self

PERIOD_S = 0.1
"""Ten looks a second. More of them would see more, and cost a program that has nothing else to do more than its polls:
what counts is how often it is woken."""

BOUNDS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Upper bounds of the buckets. asyncio sleeps in whole milliseconds, rounded up: an idle loop is up to 1 ms late."""


class LoopDelay:
    """Measures while its context lasts.

    Attributes:
        sum_s: All delays together.
    """

    def __init__(self) -> None:
        self.sum_s = 0.0
        self._counts = [0] * (len(BOUNDS_S) + 1)
        self._due_at = 0.0
        self._loop: asyncio.AbstractEventLoop
        self._timer: asyncio.TimerHandle

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._due_at = self._loop.time() + PERIOD_S
        self._timer = self._loop.call_at(self._due_at, self._look)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def buckets(self) -> Iterator[tuple[str, int]]:
        """Give the histogram: each bound in seconds, ``+Inf`` last, with how many delays did not exceed it."""
        return zip((*map(str, BOUNDS_S), "+Inf"), accumulate(self._counts), strict=True)

    def _look(self) -> None:
        now = self._loop.time()
        while self._due_at <= now:
            delay_s = now - self._due_at
            self._counts[bisect_left(BOUNDS_S, delay_s)] += 1
            self.sum_s += delay_s
            self._due_at += PERIOD_S
        self._timer = self._loop.call_at(self._due_at, self._look)
