"""Asking servers that may have no quorum: again and again until they answer, and it is said what waits for that.

What is too large for the servers waits, too, until a person has them take more; that is its own agent's trouble.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from adapter.errors import ClusterTooLargeError, ClusterUnavailableError, StorageFullError
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
        at_risk: Called with how many events more wait for long or for a person, and with the same below zero when they
            do no more.

    Attributes:
        refusal: Why something waits for long; `None` where nothing does.
    """

    def __init__(self, at_risk: Callable[[int], None]) -> None:
        self.refusal: StorageFullError | None = None
        self._at_risk = at_risk
        self._waiting = 0
        self._outage = Outage("cluster")
        self._excess = Outage("cluster")
        self._too_large: dict[Callable[[], Awaitable[object]], int] = {}

    @property
    def too_large(self) -> int:
        """How many of the events at risk are too large for the servers."""
        return sum(self._too_large.values())

    async def ask(self, question: Callable[[], Awaitable[_T]], events: int = 0, subject: str = "journal") -> _T:
        """Ask until there is an answer.

        Args:
            question: Asks once.
            events: How many wait for it.
            subject: Whose they are.
        """
        since = asyncio.get_running_loop().time()
        waits = False
        try:
            while True:
                try:
                    answer = await question()
                except ClusterTooLargeError as error:
                    if waits:
                        waits = False
                        self._end_to_wait(events)
                    self._begin_to_exceed(question, events)
                    self._excess.begins(subject, str(error), remind_s=_REMIND_S, grave=True)
                except ClusterUnavailableError as error:
                    self._end_to_exceed(question)
                    if not waits and asyncio.get_running_loop().time() - since > _AT_RISK_S:
                        waits = True
                        self._begin_to_wait(error, events)
                else:
                    self._outage.is_over()
                    self._excess.ends(subject)
                    return answer
                await asyncio.sleep(_AGAIN_S)
        finally:
            self._end_to_exceed(question)
            if waits:
                self._end_to_wait(events)

    def _begin_to_exceed(self, question: Callable[[], Awaitable[object]], events: int) -> None:
        if question not in self._too_large:
            self._too_large[question] = events
            self._at_risk(events)

    def _end_to_exceed(self, question: Callable[[], Awaitable[object]]) -> None:
        self._at_risk(-self._too_large.pop(question, 0))

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
