"""What all connections to a gateway share: trust, limits, one timer for all that is waited for, memory to read into."""

import asyncio
import ssl
from typing import Protocol

import httpx

from adapter.transport.reading import Reading

_BUFFER_BYTES = 64 * 1024
_STOOD_STILL_S = 1.0
"""How late a timer is only where the whole process was stopped, or its machine."""
_READ_S = 0.2
"""How long what has come meanwhile is read then, before anything counts as late."""


class Permit(Protocol):
    """What every request waits for, before its connection is looked at, and is asked again as it is sent."""

    async def wait(self) -> None:
        """Wait until a request may be sent."""

    def valid(self) -> bool:
        """Say whether it may still be."""


class Common:
    """What all connections to one gateway share, on one event loop.

    Args:
        timeout_s: Seconds from a request to the end of its answer.

    Attributes:
        tls: What TLS needs; not used where the gateway's scheme is ``http``.
        connect_timeout_s: Seconds for TCP, and again for TLS.
        tls_session: What the next connection may resume: that saves both sides most of a handshake.
        permit: What every request waits for; `None` for nothing.
        max_body_bytes: The most that is read of a body. A little more may be given, so that the caller sees it.
        buffer: Holds what has just been read from any of them, until it is parsed.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext,
        timeout_s: float,
        connect_timeout_s: float,
        max_body_bytes: int,
        permit: Permit | None = None,
    ) -> None:
        self.tls = tls
        self.permit = permit
        self.tls_session: ssl.SSLSession | None = None
        self.connect_timeout_s = connect_timeout_s
        self.max_body_bytes = max_body_bytes
        self.buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._timeout_s = timeout_s
        self._late_at: dict[Reading, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def expect(self, answer: Reading) -> asyncio.Future[None]:
        """Begin to wait for an answer; give what is done when it is over, in time or not."""
        loop = asyncio.get_running_loop()
        # All have the same time, so that the one which waits longest is the first to be late.
        self._late_at[answer] = late_at = loop.time() + self._timeout_s
        if self._timer is None:
            self._look_at(late_at)
        return answer.begin()

    def forget(self, answer: Reading) -> None:
        """Wait no longer."""
        del self._late_at[answer]

    def _look_at(self, moment: float) -> None:
        self._timer = asyncio.get_running_loop().call_at(moment, self._end_late, moment)

    def _end_late(self, due_at: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        if loop.time() - due_at > _STOOD_STILL_S:
            # A process that goes on finds its timers due before it looks at its sockets.
            self._look_at(loop.time() + _READ_S)
            return
        for answer, late_at in self._late_at.items():
            if late_at > loop.time():
                self._look_at(late_at)
                break
            answer.end(httpx.ReadTimeout(f"no answer within {self._timeout_s:g} s"))
