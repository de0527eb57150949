"""NATS servers for tests: real processes on loopback, which can be killed, stopped, frozen and started again."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from adapter.errors import ClusterUnavailableError
from bench.fleet.nodes import KEY, Node, Place, Servers

__all__ = ["KEY", "Node", "Servers", "known", "servers", "take_messages_of", "until"]

_T = TypeVar("_T")

READY_S = 60.0
_LOOK_S = 0.02


async def until(condition: Callable[[], object], deadline_s: float = READY_S) -> None:
    """Wait until a condition holds; nobody tells when it does."""
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(_LOOK_S)


async def known(ask: Callable[[], Awaitable[_T]]) -> _T:
    """Ask until there is an answer."""
    async with asyncio.timeout(READY_S):
        while True:
            try:
                return await ask()
            except ClusterUnavailableError:
                await asyncio.sleep(_LOOK_S)


def take_messages_of(node: Node, limit_bytes: int) -> None:
    """Have a server that runs take messages up to a size."""
    config = json.loads(node.config.read_bytes())
    node.config.write_text(json.dumps(config | {"max_payload": limit_bytes}), encoding="utf-8")
    node.send(signal.SIGHUP)


@contextlib.asynccontextmanager
async def servers(directory: Path, count: int = 1, *, mqtt: bool = False) -> AsyncIterator[Servers]:
    """Run NATS servers while the context lasts."""
    place = directory / f"nats-{os.urandom(4).hex()}"
    place.mkdir()
    made = Servers(place, [Place()] * count, mqtt=mqtt)
    try:
        await made.start()
        yield made
    finally:
        await made.close()
