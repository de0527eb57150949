"""When an agent's next request may start: the pauses of P4 and P5, and how they are ended early.

Rules of this file: all waiting of a poller is here, so that one call wakes it whatever it waits for.
"""

import asyncio
import random
from collections.abc import Iterator

from adapter.config import Backoff
from adapter.errors import GatewayError, RetcodeError

_EARLY_S = 0.005
"""How early a timer may fire, and a little: never under P4's lower bound at the gateway."""

AFTER_FAILURE_S = 1.0 + _EARLY_S
"""P5's lower bound."""

_ROUND_TRIP_S = 0.1
"""What a round trip and a busy moment may add at the gateway: kept away from P4's upper bound."""


_BEAT_S, _HURRIED_BEAT_S = 0.05, 0.01
"""Requests start on common beats: to wake up costs a waiting program more than a poll. Where events come, what is
fetched together is stored and sent together; there a beat is short, since events wait for one another."""


class Pace:
    """The pauses between one agent's requests.

    Args:
        interval_s: `gateway.interval`: the pause after an answer, at least and at most.
        backoff: `gateway.error_interval`: the pauses after failures.

    Attributes:
        failures: Requests that failed in a row.
        ending: Whether no further request is wanted.
    """

    def __init__(self, interval_s: tuple[float, float], backoff: Backoff) -> None:
        low_s, high_s = interval_s
        self._shortest_s = low_s + _EARLY_S
        self._longest_s = max(self._shortest_s, high_s - _ROUND_TRIP_S)
        self._backoff = backoff
        self._delays: Iterator[float] = iter(())
        self._next_at = 0.0
        self._allowed_at = 0.0
        self._sleeping: asyncio.Future[None] | None = None
        self.failures = 0
        self.ending = False

    def begin(self, delay_s: float) -> None:
        """Have the first request wait."""
        self._next_at = self.now() + delay_s

    def answered(self, received_at: float | None = None, *, hurry: bool = False) -> None:
        """Have the next request wait for P4's pause after an HTTP 200 answer.

        Args:
            received_at: When it came; now where left out.
            hurry: Whether there may be more to fetch.
        """
        pause_s = random.uniform(self._shortest_s, self._longest_s)  # noqa: S311 - spreads requests, guards nothing
        answered_at = self.now() if received_at is None else received_at
        self._next_at = answered_at + pause_s
        self._allowed_at = answered_at + self._shortest_s
        beat_s = _HURRIED_BEAT_S if hurry else _BEAT_S
        beat_at = self._next_at // beat_s * beat_s
        if beat_at < self._allowed_at:
            beat_at += beat_s
        if beat_at <= answered_at + self._longest_s:
            self._next_at = beat_at

    def failed(self) -> None:
        """Have the next request wait for P5's pause, which grows from failure to failure."""
        if not self.failures:
            self._delays = self._backoff.delays()
        self.failures += 1
        self._next_at = self.now() + next(self._delays)
        self._allowed_at = self.now() + AFTER_FAILURE_S

    def cut(self) -> None:
        """Have another's request wait as after a failure: for the gateway, a request that we cut is one."""
        self._allowed_at = self.now() + AFTER_FAILURE_S

    def refused(self, error: GatewayError) -> None:
        """Have the next request wait as is due after `error`: a retcode is an HTTP 200 answer, all else a failure."""
        if isinstance(error, RetcodeError):
            self.answered()
        else:
            self.failed()

    def recovered(self) -> None:
        """Have the next failure begin P5's pauses anew."""
        self.failures = 0

    async def pause(self) -> None:
        """Wait until the next request may start, or until none is wanted."""
        while not self.ending and self.now() < self._next_at:
            await self.sleep(self._next_at)

    async def hold_off(self) -> None:
        """Wait until the next request may start, for one that is wanted at the end too."""
        while self.now() < self._next_at:
            await self.sleep(self._next_at)

    async def leave(self) -> None:
        """Wait until another may make a request in our place without breaking P4 or P5."""
        while self.now() < self._allowed_at:
            await self.sleep(self._allowed_at)

    async def sleep(self, until: float | None) -> None:
        """Wait for a time on the loop's clock, or without end for `None`; `wake` ends it."""
        loop = asyncio.get_running_loop()
        self._sleeping = loop.create_future()
        timer = None if until is None else loop.call_at(until, _finish, self._sleeping)
        try:
            await self._sleeping
        finally:
            self._sleeping = None
            if timer is not None:
                timer.cancel()

    def wake(self) -> None:
        """End a `sleep`; a pause that is not over goes on."""
        if self._sleeping is not None:
            _finish(self._sleeping)

    def end(self) -> None:
        """Want no further request: end whatever is waited for."""
        self.ending = True
        self.wake()

    @staticmethod
    def now() -> float:
        """Read the loop's clock."""
        return asyncio.get_running_loop().time()


def _finish(sleeping: asyncio.Future[None]) -> None:
    if not sleeping.done():
        sleeping.set_result(None)
