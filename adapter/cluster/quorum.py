"""Asking servers that may have no quorum: again and again until they answer, and it is said what waits for that."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from adapter.errors import ClusterUnavailableError, StorageFullError
from adapter.outage import Outage

_T = TypeVar("_T")

_AGAIN_S = 0.2
"""When something is asked again that nobody has answered."""
_AT_RISK_S = 10.0
"""How long an event may wait for a quorum before that is said: choosing another leader takes 4 to 10 s."""
_REMIND_S = 60.0


class Quorum:
    """Asks until there is an answer.

    Args:
        at_risk: Called with how many events more wait for long, and with the same below zero when they do no more.

    Attributes:
        refusal: Why something waits for long; `None` where nothing does.
    """

    def __init__(self, at_risk: Callable[[int], None]) -> None:
        self.refusal: StorageFullError | None = None
        self._at_risk = at_risk
        self._waiting = 0
        self._outage = Outage("cluster")

    async def ask(self, question: Callable[[], Awaitable[_T]], events: int = 0) -> _T:
        """Ask until there is an answer; `events` wait for it."""
        since = asyncio.get_running_loop().time()
        waits = False
        try:
            while True:
                try:
                    answer = await question()
                except ClusterUnavailableError as error:
                    if not waits and asyncio.get_running_loop().time() - since > _AT_RISK_S:
                        waits = True
                        self._begin_to_wait(error, events)
                    await asyncio.sleep(_AGAIN_S)
                else:
                    self._outage.is_over()
                    return answer
        finally:
            if waits:
                self._end_to_wait(events)

    def _begin_to_wait(self, error: ClusterUnavailableError, events: int) -> None:
        self._waiting += 1
        self._at_risk(events)
        self.refusal = StorageFullError("cluster", f"no quorum: {error}")
        self._outage.begins("journal", f"no quorum: {error}", remind_s=_REMIND_S)

    def _end_to_wait(self, events: int) -> None:
        self._waiting -= 1
        self._at_risk(-events)
        if not self._waiting:
            self.refusal = None
