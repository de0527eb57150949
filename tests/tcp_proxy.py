"""A proxy between the adapter and a real broker that does harm on order: it cuts, holds back, swallows and rewrites.

It runs on the test's own event loop and knows of MQTT no more than where a packet ends.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Self

from tests.broker_support import HOST, Broker, Peer

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK = 1, 2, 3, 4, 8, 9
"""Packet types [MQTT-2.1.2]."""


def kind(packet: bytes) -> int:
    """Tell a packet's type."""
    return packet[0] >> 4


def topic(packet: bytes) -> str:
    """Read the topic of a PUBLISH."""
    start = _body(packet)
    return packet[start + 2 : start + 2 + int.from_bytes(packet[start : start + 2])].decode()


def identifier(packet: bytes) -> bytes:
    """Read the packet identifier of a PUBLISH of QoS 1 or a PUBACK."""
    start = _body(packet)
    if kind(packet) == PUBLISH:
        start += 2 + int.from_bytes(packet[start : start + 2])
    return packet[start : start + 2]


def _body(packet: bytes) -> int:
    start = 1
    while packet[start] & 0x80:
        start += 1
    return start + 1


async def read_packet(reader: asyncio.StreamReader) -> bytes:
    """Read one MQTT packet of any length.

    Raises:
        asyncio.IncompleteReadError: The other side has gone.
    """
    packet = await reader.readexactly(2)
    while packet[-1] & 0x80:
        packet += await reader.readexactly(1)
    length = sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(packet[1:]))
    return packet + await reader.readexactly(length)


class Talk:
    """One connection through the proxy, as filters see it."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    def answer(self, packet: bytes) -> None:
        """Send the adapter a packet in the broker's place."""
        self._writer.write(packet)

    def hang_up(self) -> None:
        """End the connection behind what was sent."""
        self._writer.close()

    def cut(self) -> None:
        """Cut the connection; nobody hears of it but by the end of TCP."""
        self._writer.transport.abort()


Filter = Callable[[bytes, Talk], bytes]
"""Gives what goes on in a packet's place; nothing, where it is empty."""


def unchanged(packet: bytes, _talk: Talk) -> bytes:
    """Let every packet pass."""
    return packet


class Proxy:
    """Stands before a broker; used as an async context manager.

    Args:
        port: The broker's plain MQTT port.
        tls: What it serves TLS with, as a front before the broker; `None` for plain TCP.
        gather_s: Seconds for which it gathers what the broker sends, to pass it on in one piece and unfiltered.

    Attributes:
        port: Its own port.
        accepted: When it accepted connections, in seconds of the loop's clock.
        closed: Whether it hangs up on everybody who comes.
        stands_s: Seconds after which it cuts each connection; `None` for never.
        up: What becomes of packets from the adapter.
        down: What becomes of packets from the broker.
    """

    def __init__(self, port: int, *, tls: ssl.SSLContext | None = None, gather_s: float = 0.0) -> None:
        self.port = 0
        self.accepted: list[float] = []
        self.closed = False
        self.stands_s: float | None = None
        self.up: Filter = unchanged
        self.down: Filter = unchanged
        self._broker = port
        self._tls = tls
        self._gather_s = gather_s
        self._talks: dict[asyncio.Task[None], Talk] = {}

    @property
    def url(self) -> str:
        """Name it the way `mqtt.url` does."""
        return f"{'mqtt' if self._tls is None else 'mqtts'}://{HOST}:{self.port}"

    async def reopen(self, broker: Broker, peer: Peer) -> None:
        """Start the broker again, and let nobody in before a peer is: it then sees all that comes this way."""
        self.closed = True
        broker.start()
        await peer.wait_subscribed()
        self.closed = False

    def cut(self) -> None:
        """Cut every connection that stands."""
        for talk in self._talks.values():
            talk.cut()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, HOST, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._talks:
            task.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = Talk(writer)
        self.accepted.append(asyncio.get_running_loop().time())
        task = asyncio.get_running_loop().create_task(self._relay(reader, writer, talk))
        self._talks[task] = talk
        task.add_done_callback(lambda done: self._talks.pop(done, None))

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, talk: Talk) -> None:
        async with _closing(writer):
            if self.closed:
                return
            there, back = await asyncio.open_connection(HOST, self._broker)
            async with _closing(back):
                ways = [
                    asyncio.create_task(self._up(reader, back, talk)),
                    asyncio.create_task(self._down(there, writer, talk)),
                ]
                try:
                    done, _ = await asyncio.wait(ways, timeout=self.stands_s, return_when=asyncio.FIRST_COMPLETED)
                    if not done:
                        talk.cut()
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, talk: Talk) -> None:
        while True:
            packet = await read_packet(reader)  # which filter applies is seen when it is there
            writer.write(self.up(packet, talk))

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, talk: Talk) -> None:
        while not self._gather_s:
            packet = await read_packet(reader)
            writer.write(self.down(packet, talk))
        while gathered := await reader.read(8_192):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._gather_s):
                    while more := await reader.read(8_192):
                        gathered += more
            writer.write(gathered)


@contextlib.asynccontextmanager
async def _closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    try:
        with contextlib.suppress(OSError):
            yield
    finally:
        writer.close()
