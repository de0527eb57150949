"""NATS servers for tests: real processes on loopback, which can be killed, stopped, frozen and started again."""

import asyncio
import base64
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import nats
import nats.errors

from adapter.nats import find_program
from bench.chaos.parts import Part, free_port

READY_S = 60.0
_LOOK_S = 0.02
KEY = base64.b64encode(bytes(range(32))).decode()
"""A `cluster.key`."""


class Node(Part):
    """One NATS server with JetStream."""

    def __init__(
        self, directory: Path, number: int, ports: list[int], routes: list[int], mqtt_port: int | None
    ) -> None:
        self.port = ports[number]
        self.mqtt_port = mqtt_port
        config: dict[str, Any] = {
            "server_name": f"n{number}",
            "host": "127.0.0.1",
            "port": self.port,
            "jetstream": {"store_dir": str(directory / f"n{number}")},
        }
        if len(ports) > 1:
            config["cluster"] = {
                "name": "test",
                "host": "127.0.0.1",
                "port": routes[number],
                "routes": [f"nats://127.0.0.1:{port}" for port in routes],
            }
        if mqtt_port is not None:
            config["mqtt"] = {"host": "127.0.0.1", "port": mqtt_port}
        path = directory / f"n{number}.conf"
        path.write_text(json.dumps(config))
        super().__init__(f"n{number}", [str(find_program()), "-c", str(path)], directory)

    def freeze(self) -> None:
        """Stop its clock, so to speak."""
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self.send(signal.SIGCONT)


class Servers:
    """Several NATS servers that know of one another.

    Attributes:
        nodes: The servers.
    """

    def __init__(self, directory: Path, count: int, *, mqtt: bool = False) -> None:
        ports, routes = [free_port() for _ in range(count)], [free_port() for _ in range(count)]
        mqtt_ports = [free_port() if mqtt else None for _ in range(count)]
        self.nodes = [Node(directory, number, ports, routes, mqtt_ports[number]) for number in range(count)]

    @property
    def url(self) -> str:
        """What `cluster.url` says."""
        return ",".join(f"nats://127.0.0.1:{node.port}" for node in self.nodes)

    def settings(self, **members: Any) -> dict[str, Any]:  # noqa: ANN401 - YAML's values
        """Make a section `cluster`."""
        return {"url": self.url, "name": "test", "key": KEY, "replicas": len(self.nodes)} | members

    async def ready(self) -> None:
        """Wait until JetStream answers: its servers have chosen who leads."""
        async with asyncio.timeout(READY_S):
            while True:
                with contextlib.suppress(nats.errors.Error, OSError):
                    client = await nats.connect(self.url.split(","), allow_reconnect=False, connect_timeout=1)
                    try:
                        await client.jetstream().account_info()
                    finally:
                        await client.close()
                    return
                await asyncio.sleep(_LOOK_S)


async def until(condition: Callable[[], object], deadline_s: float = READY_S) -> None:
    """Wait until a condition holds; nobody tells when it does."""
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(_LOOK_S)


@contextlib.asynccontextmanager
async def servers(directory: Path, count: int = 1, *, mqtt: bool = False) -> AsyncIterator[Servers]:
    """Run NATS servers while the context lasts."""
    place = directory / f"nats-{os.urandom(4).hex()}"
    place.mkdir()
    made = Servers(place, count, mqtt=mqtt)
    try:
        for node in made.nodes:
            await node.start()
        await made.ready()
        yield made
    finally:
        for node in made.nodes:
            if node.started:
                await node.close()
