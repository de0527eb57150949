"""The running adapter in a test: its real parts, in this process, between a simulator and a real broker."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from adapter import app as application
from adapter.agent.presence import Timing
from adapter.config import Config, load
from adapter.simulator import Simulator
from tests.broker_support import DEADLINE_S, Broker, Got, Peer

HOLD_S = 1.0
"""How long the simulator holds a poll in tests: long enough to be a long poll, short enough to wait for."""


def settings(simulator: Simulator, broker: Broker, **sections: Any) -> dict[str, Any]:  # noqa: ANN401 - YAML's values
    """Make a configuration for a simulator and a broker; `sections` replace members of the sections they name."""
    made: dict[str, Any] = {
        "gateway": {
            "url": simulator.url,
            "ca_file": str(simulator.ca_file),
            "hold": simulator.settings.hold_s,
            "timeout": simulator.settings.hold_s + 3,
            "auth_mode": simulator.settings.auth_mode,
        },
        "mqtt": {"url": broker.url()},
        "agents": [{"work_no": agent.work_no, "guid": agent.guid} for agent in simulator.agents],
    }
    if broker.username is not None:
        made["mqtt"] |= {"username": broker.username, "password": broker.password}
    for name, value in sections.items():
        made[name] = made[name] | value if isinstance(value, dict) and name in made else value
    return made


def write(directory: Path, values: dict[str, Any], name: str = "config.yaml") -> Path:
    """Write a configuration file."""
    path = directory / name
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return path


@dataclass(slots=True)
class Running:
    """An adapter that runs in this process.

    Attributes:
        path: Its configuration file.
        app: The program itself, to stop or reload it.
        task: Done when it has ended.
    """

    path: Path
    app: application.App
    task: asyncio.Task[application.Ending]

    async def stop(self) -> application.Ending:
        """Stop it as SIGTERM does."""
        self.app.stop()
        return await asyncio.wait_for(self.task, DEADLINE_S)


async def start(path: Path, *, timing: Timing | None = None) -> Running:
    """Start an adapter; return when its agents are started."""
    config: Config = load(path)
    ready = asyncio.Event()
    apps: list[application.App] = []
    task = asyncio.create_task(
        application.run(config, ready=ready.set, timing=timing, handle_signals=False, control=apps.append),
        name="adapter",
    )
    waiting = asyncio.create_task(ready.wait())
    await asyncio.wait([task, waiting], timeout=DEADLINE_S, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        await task
    assert ready.is_set(), "the adapter did not start"
    return Running(path, apps[0], task)


@contextlib.asynccontextmanager
async def running(path: Path, *, timing: Timing | None = None) -> AsyncIterator[Running]:
    """Run an adapter while the context lasts."""
    adapter = await start(path, timing=timing)
    try:
        yield adapter
    finally:
        if not adapter.task.done():
            adapter.app.stop()
            adapter.app.stop()
            await asyncio.wait([adapter.task], timeout=DEADLINE_S)
        assert adapter.task.done(), "the adapter does not stop"
        if not adapter.task.cancelled():
            adapter.task.result()


def decoded(messages: list[Got]) -> list[Any]:
    """Decode payloads as JSON; an empty one, which clears a topic, is `None`."""
    return [json.loads(message.payload) if message.payload else None for message in messages]


async def wait_for(peer: Peer, topic: str, wanted: Callable[[Any], object]) -> Any:  # noqa: ANN401 - any JSON
    """Wait until a payload on `topic` is as wanted, and give the first such."""

    def found() -> list[Any]:
        return [value for value in decoded(peer.on(topic)) if value is not None and wanted(value)]

    await peer.wait_for(found)
    return found()[0]
