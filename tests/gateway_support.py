"""What tests of the port to the gateway need: a line of an agent, and a relay between it and the simulator."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self
from urllib.parse import urlsplit

from adapter.config import Backoff, GatewayConfig
from adapter.gateway import Gateway, Line
from adapter.simulator import Simulator

_PIECE = 65536


def gateway_config(simulator: Simulator, **changes: Any) -> GatewayConfig:  # noqa: ANN401 - any of its fields
    """Make the configuration of a simulator, with short times."""
    config = GatewayConfig(
        url=simulator.url,
        auth_mode=simulator.settings.auth_mode,
        ca_file=simulator.ca_file,
        verify=True,
        hold_s=simulator.settings.hold_s,
        timeout_s=20.0,
        interval_s=(0.2, 0.5),
        error_backoff=Backoff(initial_s=1.01, maximum_s=2.0),
        allow_http=False,
        proxy=None,
    )
    return dataclasses.replace(config, **changes)


@contextlib.asynccontextmanager
async def line_to(
    simulator: Simulator,
    work_no: str = "101",
    cookies: Mapping[str, str] | None = None,
    **changes: Any,  # noqa: ANN401 - any field of GatewayConfig
) -> AsyncIterator[Line]:
    """Give an agent's line, and close it."""
    line = Gateway(gateway_config(simulator, **changes)).line(work_no, cookies or {})
    try:
        yield line
    finally:
        await line.close()


class Relay:
    """Passes bytes on to a simulator, unseen.

    Attributes:
        url: The gateway's address by way of the relay.
        accepted: How many connections were made.
        ended: Set once one of them has ended on both sides.
    """

    def __init__(self, simulator: Simulator) -> None:
        self._target = urlsplit(simulator.url)
        self._clients: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server
        self.url = ""
        self.accepted = 0
        self.ended = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"https://127.0.0.1:{port}{self._target.path}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._clients:
            writer.transport.abort()
        await self._server.wait_closed()

    def spoil(self) -> None:
        """Send what is no TLS record to every client."""
        for writer in self._clients:
            writer.write(b"\x17\x03\x03\x00\x20" + bytes(32))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._clients.append(writer)
        far_reader, far_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        ways = [
            asyncio.create_task(_pass_on(reader, far_writer)),
            asyncio.create_task(_pass_on(far_reader, writer)),
        ]
        await asyncio.wait(ways)
        self.ended.set()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_PIECE):
            writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
