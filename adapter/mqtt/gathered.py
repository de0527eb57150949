"""Between paho and its socket: what is written goes out together, what has come is read at once, PUBACKs go by.

paho reads a packet in three pieces or more, the first two of one byte, and writes each packet by itself: a dozen calls
to the operating system for one event, at each of which Python lets go of its interpreter.

paho makes its own sockets. The one door in its public interface is `Client.tls_set_context`: what that is given wraps
each new socket, and nothing says that it has to encrypt. It does where there is a TLS context, and not otherwise.

Rules of this file: bytes alone, no meaning of MQTT but that DISCONNECT is the last; non-blocking after the handshake.
"""

import socket
import ssl
from collections.abc import Callable
from typing import Any

from adapter.mqtt.packets import Sorter

_PIECE_BYTES = 65_536
"""How much is read at once, and how much may be gathered before it is written."""

_DISCONNECT = 0xE0
"""The first byte of the packet behind which paho closes the socket. Source: MQTT 5.0, 2.1.2."""

_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Line:
    """Both directions of one connection.

    Args:
        recv: Reads from below, as a socket's.
        send: Writes there; 0 where it has begun to write, and wants the same again.
        pending: Counts what lies below although the descriptor need not be readable.
    """

    def __init__(
        self, recv: Callable[[int], bytes], send: Callable[[bytes | bytearray], int], pending: Callable[[], int]
    ) -> None:
        self.pending = pending
        self._recv = recv
        self._send = send
        self._sorter = Sorter()
        self._end: OSError | None = None
        self._ended = False
        self._out = bytearray()
        self._stuck = False

    def fill(self) -> list[tuple[int, int]]:
        """Read once; give the PUBACKs in it, as `Sorter.sort`. The rest, an end too, is for paho to `recv`."""
        try:
            data = self._recv(_PIECE_BYTES)
        except _LATER:
            return []
        except OSError as err:
            self._end, self._ended = err, True
            return []
        self._ended = not data
        return self._sorter.sort(data)

    @property
    def waits(self) -> bool:
        """Whether there is something for paho to `recv`."""
        return bool(self._sorter.others) or self._ended

    def recv(self, size: int) -> bytes:
        """Give paho up to `size` bytes; none at the end.

        Raises:
            BlockingIOError: There is nothing.
            OSError: The connection has ended by that.
        """
        data = bytes(self._sorter.others[:size])
        if data:
            del self._sorter.others[:size]
        elif self._end is not None:
            raise self._end
        elif not self._ended:
            raise BlockingIOError
        return data

    def send(self, data: bytes | bytearray) -> int:
        """Take one of paho's packets.

        Raises:
            BlockingIOError: Nothing of it was taken: there is no room before more has been written.
        """
        last = data[0] == _DISCONNECT
        if (self._stuck or last) and not self.flush():
            raise BlockingIOError
        self.write(data)
        if last and not self.flush():
            self._out.clear()  # nothing else was left, and paho brings it again
            self._stuck = False
            raise BlockingIOError
        return len(data)

    def write(self, packet: bytes | bytearray) -> None:
        """Take a packet; its sender knows how many may be on their way."""
        self._out += packet
        if len(self._out) > _PIECE_BYTES and not self._stuck:
            self.flush()

    def flush(self) -> bool:
        """Write what was gathered; say whether all of it went out. A lost connection is for the reader to find."""
        try:
            while self._out:
                sent = self._send(self._out)
                if not sent:
                    break
                del self._out[:sent]
        except _LATER:
            pass
        except OSError:
            self._out.clear()
        self._stuck = bool(self._out)
        return not self._stuck


class GatheredSocket:
    """What paho takes for its socket.

    Attributes:
        line: What reads and writes.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.line = Line(sock.recv, sock.send, sock.pending if isinstance(sock, ssl.SSLSocket) else _nothing)
        self.recv, self.send, self.pending = self.line.recv, self.line.send, self.line.pending
        self.fileno, self.close = sock.fileno, sock.close
        self.settimeout, self.setblocking = sock.settimeout, sock.setblocking

    def do_handshake(self) -> None:
        """Do the TLS handshake, where there is TLS."""
        if isinstance(self._sock, ssl.SSLSocket):
            self._sock.do_handshake()
        # Or a message waits until the broker's system has confirmed the one before, which it takes its time for.
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Gathering:
    """What paho takes for a TLS context.

    Args:
        tls: What encrypts; `None` for nothing.

    Attributes:
        check_hostname: Whether paho need not look at the certificate's name itself.
    """

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self._tls = tls
        self.check_hostname = tls is None or tls.check_hostname

    def wrap_socket(self, sock: socket.socket, **options: Any) -> GatheredSocket:  # noqa: ANN401 - those of ssl.SSLContext
        """Wrap a new socket; options as those of `ssl.SSLContext.wrap_socket`."""
        return GatheredSocket(sock if self._tls is None else self._tls.wrap_socket(sock, **options))


def line_of(sock: Any) -> Line:  # noqa: ANN401 - paho's websocket, known by its methods alone
    """Give the line below what paho reads and writes; put it there, where that is a websocket of paho's."""
    if isinstance(sock, GatheredSocket):
        return sock.line
    line = Line(sock.recv, sock.send, sock.pending)
    sock.recv, sock.send, sock.pending = line.recv, line.send, line.pending
    return line


def _nothing() -> int:
    return 0
