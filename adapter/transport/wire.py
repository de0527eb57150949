"""A socket with or without TLS, watched for as long as it is open: what comes is read at once, asked for or not."""

import asyncio
import contextlib
import socket
import ssl
from typing import Any

import httpx

from adapter.transport.common import Common
from adapter.transport.reading import Reading


class Wire:
    """A socket with or without TLS, watched as long as it is open.

    Args:
        sock: A connected socket.
        host: What the certificate must be for; `None` for no TLS.
        answer: What comes over it.
        common: What it shares with all others.
    """

    __slots__ = (
        "__weakref__",
        "_buffer",
        "_fd",
        "_idle",
        "_incoming",
        "_loop",
        "_outgoing",
        "_sock",
        "_tls",
        "_unsent",
        "answer",
    )

    def __init__(self, sock: socket.socket, host: str | None, answer: Reading, common: Common) -> None:
        self.answer = answer
        self._idle = True
        self._unsent = b""
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()
        self._buffer = common.buffer
        self._tls: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        if host is not None:
            # In memory: the loop's own TLS keeps 256 KB for each connection.
            self._tls = common.tls.wrap_bio(
                self._incoming, self._outgoing, server_hostname=host, session=common.tls_session
            )

    @property
    def tls(self) -> ssl.SSLObject | None:
        """TLS, to look at; `None` without."""
        return self._tls

    async def handshake(self) -> None:
        """Shake hands, where there is TLS, and begin to watch the socket.

        Raises:
            httpx.ConnectError: The connection was lost, or one side refuses the other.
        """
        if self._tls is not None:
            try:
                await self._shake_hands(self._tls)
            except OSError as err:
                raise httpx.ConnectError(_explain(err)) from err
        self._loop.add_reader(self._fd, self._readable)

    def send(self, request: bytes) -> None:
        """Send a request, in the background what the socket does not take at once; what comes now is its answer.

        Raises:
            httpx.WriteError: The connection was lost.
        """
        self._idle = False
        try:
            (self._outgoing if self._tls is None else self._tls).write(request)
            self._flush()
        except OSError as err:
            raise httpx.WriteError(_explain(err)) from err

    def release(self) -> None:
        """Have done with an answer: the next request may come, or the connection ends with what is left of it."""
        if self.answer.reusable and self.answer.whole and not self._unsent:
            self.answer.done()
            self._idle = True
        else:
            self.close()

    def new_tls_session(self) -> ssl.SSLSession | None:
        """Give what other connections can resume, when an answer has come over this one; `None` where it has done so.

        Giving it costs a third of a handshake, so the one that all resume is given once.
        """
        return None if self._tls is None or self._tls.session_reused else self._tls.session

    def is_idle(self) -> bool:
        """Say whether a request may be sent: the last answer is over, and nothing came or ended since."""
        if self._idle:
            self._readable()  # what has come in this very turn of the loop
        return self._idle

    def close(self) -> None:
        """Close the socket; again does nothing."""
        self._idle = False
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self._sock.close()
            self.answer.close()

    async def _shake_hands(self, tls: ssl.SSLObject) -> None:
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._send_all()
                data = await self._loop.sock_recv(self._sock, len(self._buffer))
                if not data:
                    raise ConnectionError("closed during the TLS handshake") from None
                self._incoming.write(data)
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    await self._send_all()  # the alert that says why
                raise
            else:
                await self._send_all()
                return

    async def _send_all(self) -> None:
        if data := self._outgoing.read():
            await self._loop.sock_sendall(self._sock, data)

    def _flush(self) -> None:
        """Send what is to go out, in order; nearly always that is one call and nothing is left."""
        data = self._unsent + self._outgoing.read()
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            self._loop.add_writer(self._fd, self._writable)
        elif self._unsent:
            self._loop.remove_writer(self._fd)
        self._unsent = data[sent:]

    def _writable(self) -> None:
        try:
            self._flush()
        except OSError as err:
            self._end(httpx.WriteError(_explain(err)))

    def _readable(self) -> None:
        """Take what has come; whatever comes to an idle connection makes it worth nothing."""
        try:
            over = self._take()
        except httpx.RemoteProtocolError as err:
            self._end(err)
        except OSError as err:
            self._end(httpx.ReadError(_explain(err)))
        else:
            if over:
                self._end(httpx.ReadError("closed before the answer was whole"), in_order=True)

    def _end(self, error: httpx.TransportError, *, in_order: bool = False) -> None:
        self._idle = False
        if self.answer.expected:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
            self.answer.end(error, in_order=in_order)
        else:
            self.close()  # the next request may be hours away

    def _take(self) -> bool:
        """Read and parse; True at the end of the stream."""
        count: int | None
        try:
            count = self._sock.recv_into(self._buffer)
        except BlockingIOError:
            count = None
        if self._tls is None:
            if count:
                self._parse(count)
            return count == 0
        if count:
            self._incoming.write(self._buffer[:count])
        elif count is not None:
            self._incoming.write_eof()
        elif not self._incoming.pending:  # no news, and nothing that the handshake has left
            return False
        return self._decrypt(self._tls, ended=count == 0)

    def _decrypt(self, tls: ssl.SSLObject, *, ended: bool) -> bool:
        """Parse what TLS makes of what has come; True at the end of the stream, of which TLS says how it ended."""
        while ended or self._incoming.pending or tls.pending():
            try:
                count: int = tls.read(len(self._buffer), self._buffer)  # type: ignore[assignment] # typeshed's mistake
            except ssl.SSLWantReadError:
                break
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return True
            if not count:
                return True
            self._parse(count)
        if self._outgoing.pending:
            self._flush()  # what TLS answers by itself, to a key update
        return False

    def _parse(self, count: int) -> None:
        if not self.answer.expected:
            raise httpx.RemoteProtocolError("an answer without a request")
        self.answer.feed(self._buffer[:count])


async def open_socket(host: str, port: int, timeout_s: float) -> socket.socket:
    """Connect to the first address of a host that answers; none may take all the time."""
    loop = asyncio.get_running_loop()
    addresses = await _look_up(host, port)
    error: OSError = OSError(f"{host} has no address")
    for family, kind, protocol, _, address in addresses:
        try:
            sock = socket.socket(family, kind, protocol)
        except OSError as err:  # a machine without IPv6, for one
            error = err
            continue
        try:
            sock.setblocking(False)  # noqa: FBT003 - the standard library's
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(timeout_s / len(addresses)):
                await loop.sock_connect(sock, address)
        except TimeoutError:
            sock.close()
            error = TimeoutError(f"no connection within {timeout_s:g} s")
        except OSError as err:
            sock.close()
            error = err
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    try:
        raise error
    finally:
        del error  # whose traceback refers to this frame


async def _look_up(host: str, port: int) -> list[Any]:
    try:  # an address, which needs nobody to be asked, and no thread to wait for that
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as err:
        raise OSError("no name that can be looked up") from err


def _explain(err: Exception) -> str:
    if isinstance(err, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {err.verify_message}"
    return getattr(err, "strerror", None) or str(err) or type(err).__name__
