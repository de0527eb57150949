"""A socket with or without TLS, watched for as long as it is open: what comes is read at once, asked for or not."""

import asyncio
import contextlib
import socket
import ssl

import httpx

from adapter.transport.reading import Reading

_READ_BYTES = 64 * 1024


class Wire:
    """A socket with or without TLS, watched as long as it is open."""

    def __init__(self, sock: socket.socket, tls: ssl.SSLContext | None, host: str) -> None:
        self._idle = True
        self._flushing = False
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._tls: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        if tls is not None:
            # In memory: the loop's own TLS keeps 256 KB for each connection.
            self._tls = tls.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._answer: Reading | None = None

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
        self._loop.add_reader(self._sock, self._readable)

    async def send(self, request: bytes, answer: Reading) -> None:
        """Send a request; what comes from now on is its answer."""
        self._idle = False
        self._answer = answer
        try:
            (self._outgoing if self._tls is None else self._tls).write(request)
            await self._flush()
        except OSError as err:
            raise httpx.WriteError(err.strerror or str(err)) from err

    def release(self) -> None:
        """Have done with an answer: the next request may come, or the connection ends with what is left of it."""
        answer = self._answer
        if answer is not None and answer.reusable and answer.is_whole:
            self._forget()
            self._idle = True
        else:
            self.close()

    def is_idle(self) -> bool:
        """Say whether a request may be sent: the last answer is over, and nothing came or ended since."""
        if self._idle:
            self._readable()  # what has come in this very turn of the loop
        return self._idle

    def close(self) -> None:
        """Close the socket; again does nothing."""
        self._idle = False
        self._forget()
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()

    def _forget(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    async def _shake_hands(self, tls: ssl.SSLObject) -> None:
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                data = await self._loop.sock_recv(self._sock, _READ_BYTES)
                if not data:
                    raise ConnectionError("closed during the TLS handshake") from None
                self._incoming.write(data)
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    await self._flush()  # the alert that says why
                raise
            else:
                await self._flush()
                return

    async def _flush(self) -> None:
        """Send all that is to go out, in order; nearly always that is one call which does not wait."""
        self._flushing = True
        try:
            while self._outgoing.pending:
                data = self._outgoing.read()
                try:
                    sent = self._sock.send(data)
                except BlockingIOError:
                    sent = 0
                if sent < len(data):
                    await self._loop.sock_sendall(self._sock, data[sent:])
        finally:
            self._flushing = False

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
        self._loop.remove_reader(self._sock)
        if self._answer is None:
            self.close()  # the next request may be hours away
        else:
            self._answer.end(error, in_order=in_order)

    def _take(self) -> bool:
        """Read and parse; True at the end of the stream."""
        try:
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            data = None  # the handshake may have left something
        if self._tls is None:
            if data:
                self._parse(data)
            return data == b""
        if data:
            self._incoming.write(data)
        elif data is not None:
            self._incoming.write_eof()
        try:
            while clear := self._tls.read(_READ_BYTES):
                self._parse(clear)
        except ssl.SSLWantReadError:
            if not self._flushing:
                self._reply()
            return False
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass
        return True

    def _reply(self) -> None:
        """Send what TLS answers by itself, to a key update; never into the midst of a request."""
        data = self._outgoing.read()
        if data and self._sock.send(data) < len(data):
            raise ConnectionError("it takes nothing more")

    def _parse(self, data: bytes) -> None:
        if self._answer is None:
            raise httpx.RemoteProtocolError("an answer without a request")
        self._answer.feed(data)


async def open_socket(host: str, port: int, timeout_s: float) -> socket.socket:
    """Connect to the first address of a host that answers; none may take all the time."""
    loop = asyncio.get_running_loop()
    try:
        addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as err:
        raise OSError("no name that can be looked up") from err
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


def _explain(err: Exception) -> str:
    if isinstance(err, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {err.verify_message}"
    return getattr(err, "strerror", None) or str(err) or type(err).__name__
