"""How a broker stands: whether it counts as back, and how long to wait before connecting to it again.

A connection that was made proves little: brokers drop each after a second, a second client with our client id throws us
off at once, a front accepts what nobody behind it answers. Rules of this file: a connection counts once it was answered
and has stood for a while; until then it is the same outage, with its one log line and its growing pauses.
"""

import asyncio
import math

from adapter.config import Backoff
from adapter.outage import Outage

_AGAIN = Backoff(initial_s=0.75, maximum_s=15.0)
"""Pauses before connecting again. A broker that restarts is found soon, one that is away is not hammered."""
_REFUSED_AGAIN_S = 60.0
"""The longest pause after a refused log-in: a person has to change something."""

_STANDS_S = 10.0
"""How long a connection stands, once it was answered, before the broker counts as back."""
_STANDS_LONGEST_S = 300.0
_RELAPSE = 10
"""A connection that stood, but is lost within so many times that, doubles it for the next, up to the longest: who drops
every connection after a minute has one outage, not one a minute."""

_SHORT_LIVED = 3
"""So many connections in a row that end sooner may be another client's doing, which not every broker says."""


class Standing:
    """What is known of a broker over all connections to it; for one event loop.

    Args:
        client_id: Ours, for the log.

    Attributes:
        outage: Its outage, while there is one.
        stood: Whether the newest connection has stood long enough.
    """

    def __init__(self, client_id: str) -> None:
        self.outage = Outage("broker")
        self.stood = False
        self._client_id = client_id
        self._timer: asyncio.TimerHandle | None = None
        self._stands_s = _STANDS_S
        self._stood_at = 0.0
        self._answered_at = math.inf
        self._begin_anew()

    @property
    def doubtful(self) -> bool:
        """Whether the newest connection follows several that ended soon, and may do so as well."""
        return self._short_lived >= _SHORT_LIVED and not self._lasts

    @property
    def _lasts(self) -> bool:
        """Whether the newest connection has lasted: less than to stand, where relapses have made that long."""
        return asyncio.get_running_loop().time() - self._answered_at >= _STANDS_S

    def made(self) -> None:
        """Note that a connection was made."""
        self.stood = False
        self._answered_at = math.inf

    def answered(self) -> None:
        """Note that the broker answers on it."""
        self._answered_at = asyncio.get_running_loop().time()
        self._timer = asyncio.get_running_loop().call_later(self._stands_s, self._stands)

    def ended(self, *, hung_up: bool) -> None:
        """Note that the newest connection is gone.

        Args:
            hung_up: Whether the other side ended it for a reason that is not known.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.stood:
            relapse = asyncio.get_running_loop().time() - self._stood_at < _RELAPSE * self._stands_s
            self._stands_s = min(2 * self._stands_s, _STANDS_LONGEST_S) if relapse else _STANDS_S
        elif self._lasts:
            self._short_lived = 0
        elif hung_up:
            self._short_lived += 1
            if self._short_lived == _SHORT_LIVED:
                reason = (
                    f"{_SHORT_LIVED} in a row ended soon after they were made; another client may use the client id"
                    f" {self._client_id!r}, or the broker's log tells why"
                )
                self.outage.begins("connections", reason, grave=True)

    def lost(self, reason: str, *, known: bool) -> float:
        """Note that there is no connection; give the seconds to wait before the next.

        Args:
            reason: Why.
            known: Whether the cause is known and mended, so that there is no need to wait for long.
        """
        self.outage.begins("connection", reason)
        return next(_AGAIN.delays() if known else self._pauses)

    def refused(self, reason: str) -> float:
        """Note that the log-in was refused; give the seconds to wait before the next."""
        self.outage.begins("log-in", reason, grave=True)
        return next(self._refused_pauses)

    def _begin_anew(self) -> None:
        self._pauses = _AGAIN.delays()
        self._refused_pauses = Backoff(initial_s=_AGAIN.initial_s, maximum_s=_REFUSED_AGAIN_S).delays()
        self._short_lived = 0

    def _stands(self) -> None:
        self.stood = True
        self._stood_at = asyncio.get_running_loop().time()
        self.outage.is_over(ago_s=self._stands_s)
        self._begin_anew()
