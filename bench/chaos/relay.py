"""The witness between adapter and broker: passes every byte on, reads MQTT as it goes by, and cuts on demand.

It knows what a broker and a subscriber cannot tell: what the adapter sent over which connection, and which of it
the broker had acknowledged before somebody pulled a plug.

Source:
    MQTT 3.1.1 and 5.0, sections 2 (packet format), 3.1 (CONNECT), 3.3 (PUBLISH), 3.4 (PUBACK).
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

from bench.support import HOST

_PIECE = 65536
_CONNECT, _PUBLISH, _PUBACK = 1, 3, 4
_FIVE = 5


@dataclass(slots=True, kw_only=True)
class Published:
    """A message as the adapter sent it.

    Attributes:
        at: Monotonic seconds at which it went by.
        connection: Number of the connection, from 1 on.
        acked_at: When its PUBACK came back; `None` where none did, and for QoS 0.
    """

    at: float
    connection: int
    topic: str
    payload: bytes
    retain: bool
    qos: int
    acked_at: float | None = None


class PacketError(Exception):
    """What goes by is not MQTT."""


class Packets:
    """Splits a stream into MQTT packets, fed piece by piece."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Take a piece; give the first byte and the rest of each packet that is now complete."""
        self._buffer += data
        while len(self._buffer) > 1:
            try:
                length, start = _varint(self._buffer, 1)
            except IndexError:
                return
            if len(self._buffer) < start + length:
                return
            yield self._buffer[0], bytes(self._buffer[start : start + length])
            del self._buffer[: start + length]


def _varint(data: bytes | bytearray, place: int) -> tuple[int, int]:
    """Read a variable byte integer (section 1.5.5); give it and the place behind it."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place
        if shift > 21:  # noqa: PLR2004 - four bytes of seven bits
            raise PacketError("a length of more than four bytes")


def _read_publish(first: int, body: bytes, *, five: bool) -> tuple[str, bytes, int, int]:
    """Read a PUBLISH: topic, payload, QoS, packet identifier (0 with QoS 0)."""
    qos = first >> 1 & 3
    place = 2 + int.from_bytes(body[:2])
    topic = body[2:place].decode()
    packet_id = 0
    if qos:
        packet_id = int.from_bytes(body[place : place + 2])
        place += 2
    if five:
        length, place = _varint(body, place)
        place += length
    return topic, body[place:], qos, packet_id


class _Pair:
    """One connection of the adapter's, and ours to the broker."""

    def __init__(self, number: int, note: Callable[[Published], None]) -> None:
        self.number = number
        self.writers: list[asyncio.StreamWriter] = []
        self.cut_next = False
        self._note = note
        self._five = False
        self._waiting: dict[int, Published] = {}
        self._sent, self._answered = Packets(), Packets()

    def sent(self, data: bytes) -> None:
        """Read what the adapter sends."""
        for first, body in self._sent.feed(data):
            if first >> 4 == _CONNECT:
                self._five = body[6] == _FIVE  # behind the length and the four letters of MQTT
            elif first >> 4 == _PUBLISH:
                topic, payload, qos, packet_id = _read_publish(first, body, five=self._five)
                message = Published(
                    at=time.monotonic(),
                    connection=self.number,
                    topic=topic,
                    payload=payload,
                    retain=bool(first & 1),
                    qos=qos,
                )
                self._note(message)
                if qos:
                    self._waiting[packet_id] = message

    def answered(self, data: bytes) -> None:
        """Read what the broker answers."""
        for first, body in self._answered.feed(data):
            if first >> 4 == _PUBACK:
                message = self._waiting.pop(int.from_bytes(body[:2]), None)
                if message is not None:
                    message.acked_at = time.monotonic()

    def abort(self) -> None:
        """End both halves without a goodbye."""
        for writer in self.writers:
            writer.transport.abort()


class Relay:
    """Listens for the adapter and passes on to the broker.

    Args:
        broker_port: Where the broker listens, whenever it does.
        note: Told of each message that the adapter sends, before it is passed on.

    Attributes:
        port: Where it listens.
        connections: How many it has carried so far.
    """

    def __init__(self, broker_port: int, note: Callable[[Published], None]) -> None:
        self.port = 0
        self.connections = 0
        self._broker_port = broker_port
        self._note = note
        self._pairs: set[_Pair] = set()
        self._server: asyncio.Server

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> None:
        """Cut every connection at once."""
        for pair in tuple(self._pairs):
            pair.abort()

    def cut_half_way(self) -> None:
        """Cut every connection with the next thing that the adapter sends, half of which still arrives."""
        for pair in self._pairs:
            pair.cut_next = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        pair = _Pair(self.connections, self._note)
        pair.writers.append(writer)
        self._pairs.add(pair)
        try:
            far_reader, far_writer = await asyncio.open_connection(HOST, self._broker_port)
            pair.writers.append(far_writer)
            ways = [
                asyncio.create_task(self._to_broker(reader, far_writer, pair)),
                asyncio.create_task(_pass_on(far_reader, writer, pair.answered)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            # What the dead half had sent before its end still arrives at the other.
            for half in pair.writers:
                half.close()
            for way in ways:
                with contextlib.suppress(ConnectionError):
                    await way
        except ConnectionError:
            pass  # the broker is away
        finally:
            pair.abort()
            self._pairs.discard(pair)

    async def _to_broker(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: _Pair) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(_PIECE):
                pair.sent(data)
                if pair.cut_next:
                    writer.write(data[: len(data) // 2])
                    with contextlib.suppress(ConnectionError):
                        await writer.drain()
                    pair.abort()
                    return
                writer.write(data)
                await writer.drain()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, look: Callable[[bytes], None]) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_PIECE):
            look(data)
            writer.write(data)
            await writer.drain()
