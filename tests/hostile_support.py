"""A gateway that sends whatever bytes a test wants, over real TLS: what no HTTP server would send."""

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Self

from adapter.config import Backoff, GatewayConfig
from adapter.gateway import Gateway, Line
from adapter.simulator.certificates import Certificate, make_context
from adapter.transport import Common

EMPTY = b'{"message":"","retcode":"0"}'
READY = b'{"message":"","retcode":"0","event":{"eventType":"AgentState_Ready","workNo":"101","content":null}}'
STATUS = b'{"message":"","retcode":"0","result":{"agentState":4}}'

_QUIET_S = 0.05
"""How long a poll without a script is held."""

_SEND_BUFFER_BYTES = 65536


def ok(body: bytes = EMPTY, *lines: bytes) -> bytes:
    """Make a whole answer with a length; `lines` are further lines of its head."""
    head = b"".join(line + b"\r\n" for line in lines)
    return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)


def chunked(*chunks: bytes, trailer: bytes = b"") -> bytes:
    """Make a whole answer in chunks."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%b0\r\n%b\r\n" % (body, trailer)


class Wire:
    """One connection, as a script sees it.

    Attributes:
        sent: How many bytes the kernel took, nearly: what waits in the transport is not counted.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.sent = 0

    async def send(self, data: bytes) -> None:
        """Send, and wait until it is sent."""
        self.writer.write(data)
        await self.writer.drain()
        self.sent += len(data)

    async def gone(self) -> None:
        """Wait until the client has hung up."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while await self.reader.read(65536):
                pass


Script = bytes | Callable[[Wire], Awaitable[None]]
"""An answer: bytes to send, after which the connection stays, or what is done with the connection."""


def cut(data: bytes) -> Script:
    """Send these bytes, then close."""

    async def script(wire: Wire) -> None:
        await wire.send(data)
        wire.writer.close()

    return script


def reset(data: bytes = b"") -> Script:
    """Send these bytes, then break the connection off."""

    async def script(wire: Wire) -> None:
        await wire.send(data)
        wire.writer.transport.abort()

    return script


def pieces(*parts: bytes, every_s: float = 0.0) -> Script:
    """Send parts one after the other, each in a TLS record of its own."""

    async def script(wire: Wire) -> None:
        for part in parts:
            await wire.send(part)
            await asyncio.sleep(every_s)

    return script


def endless(head: bytes, piece: bytes) -> Script:
    """Send without an end, as fast as the client takes it."""

    async def script(wire: Wire) -> None:
        await wire.send(head)
        while True:
            await wire.send(piece)

    return script


async def silence(wire: Wire) -> None:
    """Say nothing until the client has gone."""
    await wire.gone()


class Hostile:
    """Answers each poll with the next of its scripts, then with nothing new.

    Attributes:
        url: The gateway's address.
        tls: What it shows to connections from the next `open` on.
        ca_file: What to trust it by.
        status: What it answers to other requests than polls.
        heads: The requests' heads, of all connections.
        polls: Those that are polls.
        wires: The connections that came as far as TLS.
    """

    def __init__(
        self,
        directory: Path,
        *scripts: Script,
        host: str = "127.0.0.1",
        certificate: Certificate = "right",
        tls: bool = True,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._host = host
        self.tls: ssl.SSLContext | None = None
        self.ca_file: Path | None = None
        if tls:
            self.tls, self.ca_file = make_context(host, directory, certificate)
        self._scripts = deque(scripts)
        self._server: asyncio.Server | None = None
        self._port = 0
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.status = STATUS
        self.heads: list[bytes] = []
        self.wires: list[Wire] = []

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def url(self) -> str:
        """Give the gateway's address."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'http' if self.tls is None else 'https'}://{host}:{self._port}/agentgateway"

    @property
    def polls(self) -> list[bytes]:
        """List the requests that are polls."""
        return [head for head in self.heads if b"/resource/agentevent/" in head]

    def then(self, *scripts: Script) -> None:
        """Add scripts for the next polls."""
        self._scripts.extend(scripts)

    async def reopen(self, tls: ssl.SSLContext | None) -> None:
        """Break off all connections, and go on with another certificate."""
        await self.close()
        self.tls = tls
        await self.open()

    async def open(self) -> None:
        """Listen, on the same port again after `close`."""
        self._server = await asyncio.start_server(self._accept, self._host, self._port, ssl=self.tls)
        listening = self._server.sockets[0]
        # Small, so that what was sent is nearly what was read; what is accepted inherits it.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        self._port = listening.getsockname()[1]

    async def close(self) -> None:
        """Break off all connections and listen no more."""
        assert self._server is not None
        self._server.close()
        for wire in self.wires:
            wire.writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def wait_for(self, condition: Callable[[], object], timeout_s: float = 15.0) -> None:
        """Wait until something is so; it is asked again at each request and each end of a connection."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await self._changed.wait()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        self.wires.append(wire)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                self._changed.set()
                await self._answer(wire, head)
        writer.close()
        self._changed.set()

    async def _answer(self, wire: Wire, head: bytes) -> None:
        if b"/resource/agentevent/" not in head:
            await wire.send(ok(self.status))
            return
        if not self._scripts:
            await asyncio.sleep(_QUIET_S)
            await wire.send(ok())
            return
        script = self._scripts.popleft()
        if isinstance(script, bytes):
            await wire.send(script)
        else:
            await script(wire)


@contextlib.asynccontextmanager
async def line_to(gateway: Hostile, **changes: object) -> AsyncIterator[Line]:
    """Give an agent's line to a hostile gateway, and close it; `changes` are fields of `GatewayConfig`."""
    values: dict[str, object] = {
        "url": gateway.url,
        "auth_mode": "dynamic",
        "ca_file": gateway.ca_file,
        "verify": True,
        "hold_s": 0.5,
        "timeout_s": 20.0,
        "interval_s": (0.2, 0.5),
        "error_backoff": Backoff(initial_s=1.01, maximum_s=2.0),
        "allow_http": True,
        "proxy": None,
    }
    line = Gateway(GatewayConfig(**values | changes)).line("101", {})  # type: ignore[arg-type] # fields by name
    try:
        yield line
    finally:
        await line.close()


@contextlib.contextmanager
def hurried(line: Line, timeout_s: float) -> Iterator[None]:
    """Give a line's next requests little time; others need much of it where the machine is busy."""
    usual = line._transport._common
    line._transport._common = Common(
        tls=usual.tls,
        timeout_s=timeout_s,
        connect_timeout_s=min(usual.connect_timeout_s, timeout_s / 2.5),
        max_body_bytes=usual.max_body_bytes,
    )
    try:
        yield
    finally:
        line._transport._common = usual


class Proxy:
    """An HTTP proxy: makes the tunnels that it is asked for.

    Attributes:
        address: Where it is.
        heads: What it was asked for.
    """

    def __init__(self, refusal: bytes | None = None) -> None:
        """Make a proxy.

        Args:
            refusal: What it answers in place of making a tunnel; nothing at all where it is empty.
        """
        self._refusal = refusal
        self._server: asyncio.Server
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._port = 0
        self.heads: list[bytes] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def address(self, user: str = "") -> str:
        """Give the proxy's address; `user` is ``name:password``."""
        return f"http://{user}{'@' if user else ''}127.0.0.1:{self._port}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        if self._refusal is not None:
            writer.write(self._refusal)
            if self._refusal:
                writer.close()
            return
        method, target, _ = head.split(b" ", 2)
        assert method == b"CONNECT"
        host, _, port = target.decode().rpartition(":")
        far_reader, far_writer = await asyncio.open_connection(host.strip("[]"), int(port))
        self._writers.append(far_writer)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_pass_on(reader, far_writer), _pass_on(far_reader, writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
