"""Plumbing: one paho client on the running asyncio event loop, for one connection.

paho's own thread waits with `select.select()`, which fails without a word for a file descriptor of 1,024 or
more (paho issues #183, #819): an adapter with 1,000 open polls would lose MQTT at its first reconnect. So its
socket callbacks are tied to `add_reader` and `add_writer` here, and nothing else of this program knows how.

Rules of this file:
1. paho's public interface only, and no meaning of MQTT: what a packet says is `connection`'s.
2. Whatever blocks (name look-up, TCP, TLS and websocket handshakes) runs in a thread that nobody has to wait for.
   Everything else, every callback included, runs on the event loop's thread.
3. A client serves one connection. paho would send again what was not acknowledged; that is the outbox's part.
4. What is published in one turn of the event loop goes out together after it, and what has come is handed on together.
5. PUBLISH and PUBACK go by paho (`packets`): `write` takes the one, `on_pubacks` is given the others.
"""

import asyncio
import socket
import threading
import traceback
from collections.abc import Callable
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.properties import Properties

from adapter.mqtt.gathered import GatheredSocket, Line, line_of

TICK_S = (0.5, 2.5)
"""Seconds between looks at the keepalive: a tenth of it, but at least and at most this. Each wakes a program that may
have nothing else to do."""

TURN_S = 0.002
"""How long packets are read before everything else has its turn, however many there are: polls must not wait."""


class PahoLoop:
    """Drives one paho client; set the client's other callbacks before `connect`.

    Args:
        client: A new client, made with ``reconnect_on_failure=False``.
        on_tick: Called every few seconds (`TICK_S`) while the connection is open.
        on_pubacks: Called with the packet identifier and the reason code of each PUBACK that was read.
    """

    def __init__(
        self, client: Client, on_tick: Callable[[], None], on_pubacks: Callable[[list[tuple[int, int]]], None]
    ) -> None:
        self._client = client
        self._on_tick = on_tick
        self._on_pubacks = on_pubacks
        self._loop = asyncio.get_running_loop()
        self._fd = -1
        self._line: Line
        self._congested = False
        self._writing: asyncio.Handle | None = None
        self._reading_on: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tick_s = 0.0
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_register_write

    async def connect(
        self, host: str, port: int, keepalive_s: int, timeout_s: float, properties: Properties | None = None
    ) -> None:
        """Open the connection and send CONNECT; the answer comes by the client's `on_connect`.

        May be cancelled at any time: CONNECT is not sent then, and the socket is closed as soon as there is one.

        Args:
            host: Name or address of the broker.
            port: Its port.
            keepalive_s: Seconds of silence after which paho asks whether the broker is still there.
            timeout_s: Seconds for each step: TCP, TLS, websocket. The whole is the caller's to limit.
            properties: Those of CONNECT, with MQTT 5.

        Raises:
            OSError: It is not there, or a handshake failed.
            ValueError: What answers is not what was expected, for example no websocket.
        """
        least_s, most_s = TICK_S
        self._tick_s = max(least_s, min(most_s, keepalive_s / 10))
        self._client.connect_timeout = timeout_s
        opened: asyncio.Future[None] = self._loop.create_future()
        # Not in the loop's executor: asyncio.run() waits for its threads, and a name look-up can take minutes.
        threading.Thread(
            target=_connect_blocking,
            args=(self._client, host, port, keepalive_s, properties, self._loop, opened),
            name=f"mqtt-connect[{host}:{port}]",
            daemon=True,
        ).start()
        await opened
        self._attach()

    def close(self) -> None:
        """Close the socket as it is, without DISCONNECT (so the broker publishes the will); again does nothing."""
        self._detach()
        _hang_up(self._client)

    def _attach(self) -> None:
        sock: Any = self._client.socket()
        self._line = line_of(sock)
        self._fd = sock.fileno()
        self._loop.add_reader(self._fd, self._read)
        self._write()  # CONNECT waits to be written
        self._tick()

    def _detach(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._reading_on is not None:
            self._reading_on.cancel()
        if self._writing is not None:
            self._writing.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._fd = -1

    def _tick(self) -> None:
        self._timer = self._loop.call_later(self._tick_s, self._tick)
        self._on_tick()
        self._client.loop_misc()

    def write(self, packet: bytes) -> None:
        """Have a packet written after this turn of the event loop."""
        self._line.write(packet)
        self._write_soon()

    def flush(self) -> None:
        """Write what waits now, as far as there is room."""
        if self._writing is not None:
            self._writing.cancel()
            self._write()

    def _read(self) -> None:
        if self._reading_on is not None:
            self._reading_on.cancel()
            self._reading_on = None
        ends_at = self._loop.time() + TURN_S
        while self._fd >= 0:
            if self._line.waits:
                self._client.loop_read()
            elif pubacks := self._line.fill():
                self._on_pubacks(pubacks)
            # One TLS record can hold many packets. Once it is decrypted the socket no longer counts as readable,
            # so the rest would lie until the broker sends something more.
            if not (self._line.waits or self._line.pending()):
                return
            if self._loop.time() >= ends_at:
                self._reading_on = self._loop.call_soon(self._read)
                return

    def _write(self) -> None:
        """Write what waits, and go on once there is room where not all of it found some."""
        self._writing = None
        self._client.loop_write()
        if self._fd >= 0 and self._congested == (self._line.flush() and not self._client.want_write()):
            self._congested = not self._congested
            if self._congested:
                self._loop.add_writer(self._fd, self._write)
            else:
                self._loop.remove_writer(self._fd)

    def _on_socket_close(self, _client: Client, _userdata: object, _sock: object) -> None:
        self._detach()

    def _on_register_write(self, _client: Client, _userdata: object, _sock: object) -> None:
        self._write_soon()

    def _write_soon(self) -> None:
        # In connect's thread, where CONNECT is put in line, there is no descriptor yet.
        if self._fd >= 0 and self._writing is None and not self._congested:
            self._writing = self._loop.call_soon(self._write)


def _connect_blocking(  # noqa: PLR0913, PLR0917 - what a thread is given
    client: Client,
    host: str,
    port: int,
    keepalive_s: int,
    properties: Properties | None,
    loop: asyncio.AbstractEventLoop,
    opened: asyncio.Future[None],
) -> None:
    error: Exception | None = None
    try:
        client.connect(host, port, keepalive_s, properties=properties)
    except (OSError, ValueError, IndexError) as err:  # the last two: paho reading what is no websocket answer
        _close_leftovers(err)
        error = err if isinstance(err, OSError) else ValueError(str(err))
    try:
        loop.call_soon_threadsafe(_hand_over, client, opened, error)
    except RuntimeError:  # the loop was closed meanwhile: the program ends
        _hang_up(client)


def _hand_over(client: Client, opened: asyncio.Future[None], error: Exception | None) -> None:
    if opened.done():  # nobody waits any more
        _hang_up(client)
    elif error is not None:
        opened.set_exception(error)
    else:
        opened.set_result(None)


def _hang_up(client: Client) -> None:
    sock = client.socket()
    if sock is not None:
        sock.close()


def _close_leftovers(error: Exception) -> None:
    """Close the socket of a failed handshake: paho leaves it open for as long as the exception lives."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            if isinstance(value, socket.socket | GatheredSocket):
                value.close()
