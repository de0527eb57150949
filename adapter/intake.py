"""What comes from the broker for us to do, taken in at a pace that leaves the polls alone (C5, P4).

Rules of this file:
1. What is over the limit costs a look at a counter; one line a second tells of it.
2. What is within it waits in a line of bounded size, and is done in small batches with a rest after each: however
   much comes, and for however many agents, polls have most of the event loop to themselves.
3. Whoever does it waits until its outcome is stored. While there is no room nothing piles up but this line.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeVar

from adapter.agent.presence import Shared
from adapter.config import CommandsConfig
from adapter.errors import StorageFullError
from adapter.topics import Topics

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

PER_SECOND = 20
"""Messages a second and target; what exceeds it is dropped (C5)."""

_LINE_BYTES = 8 * 1024 * 1024
"""What may wait: some thousand commands, far more than brokers send without an acknowledgment."""
_OVERHEAD_BYTES = 1024
"""What Python makes of a message besides its bytes."""
_LONGEST_REST_S = 1.0
_REMIND_S = 60.0
"""How often a log line says that nothing can be stored, while it is so (D4)."""


def subscriptions(topics: Topics, commands: CommandsConfig) -> list[tuple[str, int]]:
    """List the topic filters of all commands that are switched on, each with its QoS (C9)."""
    wanted = {
        topics.command("+", "calldata"): commands.calldata,
        topics.command("+", "session"): commands.session,
        topics.request("+"): commands.bridge,
    }
    return [(topic, 1) for topic, on in wanted.items() if on]


class Flood:
    """Counts messages by target and second, and tells once a second what was dropped (C5)."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self._dropped: dict[str, int] = {}
        self._until = 0.0

    def admits(self, target: str) -> bool:
        """Count a message; say whether it is within the limit of its target."""
        now = asyncio.get_running_loop().time()
        if now >= self._until:
            self._seen.clear()
            self._until = now + 1.0
        seen = self._seen[target] = self._seen.get(target, 0) + 1
        if seen <= PER_SECOND:
            return True
        self.drop(target)
        return False

    def drop(self, target: str) -> None:
        """Note that a message is dropped."""
        if not self._dropped:
            asyncio.get_running_loop().call_later(1.0, self._tell)
        self._dropped[target] = self._dropped.get(target, 0) + 1

    def _tell(self) -> None:
        total, worst = sum(self._dropped.values()), max(self._dropped, key=lambda target: self._dropped[target])
        _log.warning(
            "commands: %d dropped, most for %s: over %d a second for one, or too many in all", total, worst, PER_SECOND
        )
        self._dropped.clear()


class Line:
    """Does one thing after the other, up to `batch` of them together, and rests after each batch.

    Args:
        name: What its task is called.
        batch: How many are done together, so that one transaction serves them.
        rest_s: The rest after each batch; after a long one it is as long as that took, up to a second.
    """

    def __init__(self, name: str, *, batch: int, rest_s: float) -> None:
        self._name = name
        self._batch = batch
        self._rest_s = rest_s
        self._waiting: deque[tuple[int, Callable[[], Awaitable[None]]]] = deque()
        self._bytes = 0
        self._worker: asyncio.Task[None] | None = None

    def put(self, size_bytes: int, work: Callable[[], Awaitable[None]]) -> bool:
        """Have something done; say whether there is room for it.

        Args:
            size_bytes: How much memory it keeps, besides its objects.
            work: Does it.
        """
        size_bytes += _OVERHEAD_BYTES
        if self._bytes + size_bytes > _LINE_BYTES:
            return False
        self._bytes += size_bytes
        self._waiting.append((size_bytes, work))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._work(), name=self._name)
        return True

    async def close(self, timeout_s: float) -> None:
        """Do what waits for as long as that may take, and nothing after that."""
        if self._worker is not None:
            await asyncio.wait([self._worker], timeout=timeout_s)
            self._worker.cancel()
            await asyncio.wait([self._worker])

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            began_at = loop.time()
            batch = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
            self._bytes -= sum(size_bytes for size_bytes, _ in batch)
            await asyncio.gather(*(work() for _, work in batch))
            await asyncio.sleep(min(max(self._rest_s, loop.time() - began_at), _LONGEST_REST_S))


async def when_stored(shared: Shared, who: str, store: Callable[[], Awaitable[_T]]) -> _T:
    """Store something, as soon as there is room.

    Args:
        shared: For the times, and for the one log line of the outage.
        who: Whose it is, as the log line says.
        store: Stores it, or raises StorageFullError.
    """
    while True:
        try:
            result = await store()
        except StorageFullError as error:
            shared.storage_outage.begins(who, f"nothing can be stored: {error}", remind_s=_REMIND_S)
            await asyncio.sleep(shared.timing.store_again_s)
        else:
            shared.storage_outage.ends(who)
            return result
