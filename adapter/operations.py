"""The requests of those who run the program: `snapshot`, `log_level`, `diagnostics`. Beside the way, as `bridge` is."""

import asyncio
import logging
from collections.abc import Mapping
from typing import cast

from adapter.agent.poller import Poller
from adapter.agent.presence import Shared
from adapter.bridge import Bridge, Request
from adapter.errors import CommandError
from adapter.link import Link
from adapter.logs import current_level, set_level
from adapter.mark import PER_SECOND, Mark
from adapter.payloads import (
    DiagnosticsPayload,
    LogLevel,
    LogLevelRequest,
    LogLevelSet,
    RequestPayload,
    SnapshotBegun,
)

_log = logging.getLogger(__name__)


class Operations:
    """What answers those requests.

    Args:
        pollers: The agents of the configuration, as they are at each moment.

    Attributes:
        requests: They, by name.
    """

    def __init__(self, shared: Shared, pollers: Mapping[str, Poller], bridge: Bridge, link: Link, mark: Mark) -> None:
        self._shared = shared
        self._pollers = pollers
        self._bridge = bridge
        self._link = link
        self._mark = mark
        self._snapshot: asyncio.Task[None] | None = None
        self.requests = {
            "snapshot": Request(self.snapshot),
            "log_level": Request(
                self.log_level,
                LogLevelRequest,
                '{"level": "...", "id": "..."} with debug, info, warning or error as level',
            ),
            "diagnostics": Request(self.diagnostics),
        }

    async def snapshot(self, _: RequestPayload) -> SnapshotBegun:
        """Begin to send again what is retained, of all agents: at the rate of D4a, so that polls and events go on.

        Raises:
            CommandError: One is under way.
        """
        if self._snapshot is not None and not self._snapshot.done():
            raise CommandError("a snapshot is under way")
        topics = len(await self._shared.outbox.known_topics())
        self._snapshot = asyncio.get_running_loop().create_task(self._mark.repeat_all(), name="snapshot")
        return SnapshotBegun(topics=topics, seconds=round(topics / PER_SECOND, 3))

    async def log_level(self, request: LogLevelRequest) -> LogLevelSet:
        """Change what is logged, until the next start, or a reload that changes `log`."""
        before = cast("LogLevel", current_level())
        set_level(request.level)
        _log.info("log level: %s, by request; it was %s", request.level, before)
        return LogLevelSet(level=request.level, before=before)

    async def diagnostics(self, _: RequestPayload) -> DiagnosticsPayload:
        """Say what a person who helps wants to know."""
        # Imported here: what it needs is needed by nothing else.
        from adapter.diagnostics import diagnose  # noqa: PLC0415 - see above

        return await diagnose(self._shared, self._pollers, self._bridge, self._link)

    async def close(self) -> None:
        """End a snapshot that is under way; what it has not offered yet is at the broker all the same."""
        if self._snapshot is not None:
            self._snapshot.cancel()
            await asyncio.wait([self._snapshot])
