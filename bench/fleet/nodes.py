"""NATS servers: real processes, which can be killed, stopped, frozen and started again."""

import asyncio
import base64
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client

from adapter.nats import find_program
from bench.chaos.parts import Part, free_port
from bench.support import HOST

KEY = base64.b64encode(bytes(range(32))).decode()
"""A `cluster.key`."""
_READY_S = 60.0
_ASK_S = 2.0
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server runs.

    Attributes:
        host: The address at which it listens.
        prefix: What a command begins with to run there.
    """

    host: str = HOST
    prefix: tuple[str, ...] = ()


class Node(Part):
    """One NATS server with JetStream.

    Attributes:
        address: Where clients find it.
        config: Its configuration file.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - one of several that know of one another
        self,
        directory: Path,
        number: int,
        places: Sequence[Place],
        ports: Sequence[int],
        routes: Sequence[int],
        mqtt_port: int | None,
    ) -> None:
        place = places[number]
        self.port = ports[number]
        self.mqtt_port = mqtt_port
        self.address = f"{place.host}:{self.port}"
        config: dict[str, Any] = {
            "server_name": f"n{number}",
            "host": place.host,
            "port": self.port,
            "jetstream": {"store_dir": str(directory / f"n{number}")},
        }
        if len(ports) > 1:
            config["cluster"] = {
                "name": "test",
                "host": place.host,
                "port": routes[number],
                "routes": [f"nats://{there.host}:{port}" for there, port in zip(places, routes, strict=True)],
            }
        if mqtt_port is not None:
            config["mqtt"] = {"host": place.host, "port": mqtt_port}
        self.config = directory / f"n{number}.conf"
        self.config.write_text(json.dumps(config))
        super().__init__(f"n{number}", [*place.prefix, str(find_program()), "-c", str(self.config)], directory)

    def freeze(self) -> None:
        """Stop its clock, so to speak; returns when it stands still."""
        self.send(signal.SIGSTOP)
        stat = Path(f"/proc/{self.process.pid}/stat")
        while stat.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(_LOOK_S)

    def thaw(self) -> None:
        """Let it go on."""
        self.send(signal.SIGCONT)


class Servers:
    """Several NATS servers that know of one another.

    Attributes:
        nodes: The servers.
    """

    def __init__(self, directory: Path, places: Sequence[Place], *, mqtt: bool = False) -> None:
        ports, routes = [free_port() for _ in places], [free_port() for _ in places]
        mqtt_ports = [free_port() if mqtt else None for _ in places]
        self.nodes = [
            Node(directory, number, places, ports, routes, mqtt_ports[number]) for number in range(len(places))
        ]

    @property
    def url(self) -> str:
        """What `cluster.url` says."""
        return ",".join(f"nats://{node.address}" for node in self.nodes)

    def settings(self, **members: Any) -> dict[str, Any]:  # noqa: ANN401 - YAML's values
        """Make a section `cluster`."""
        return {"url": self.url, "name": "test", "key": KEY, "replicas": len(self.nodes)} | members

    async def start(self) -> None:
        """Start all of them, and wait until they have chosen who leads."""
        for node in self.nodes:
            await node.start()
        await self.ready()

    async def ready(self) -> None:
        """Wait until JetStream answers: its servers have chosen who leads."""
        async with asyncio.timeout(_READY_S):
            while True:
                with contextlib.suppress(nats.errors.Error, OSError):
                    async with self.client() as client:
                        await client.jetstream(timeout=_ASK_S).account_info()
                    return
                await asyncio.sleep(_LOOK_S)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """Connect to one of them while the context lasts."""

        async def silent(_error: Exception) -> None:
            """Say nothing of a server that is away: that is what these are for."""

        client = await nats.connect(self.url.split(","), allow_reconnect=False, connect_timeout=1, error_cb=silent)
        try:
            yield client
        finally:
            await client.close()

    async def close(self) -> None:
        """End all of them."""
        for node in self.nodes:
            if node.started:
                await node.close()
