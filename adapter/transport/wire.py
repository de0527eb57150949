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
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._tls: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        if tls is not None:
            # In memory: the loop's own TLS keeps 256 KB for each connection.
            self._tls = tls.wrap_bio(self._incoming, self._outgoing, server_hostname=host)
        self._answer: Reading | None = None

    async def handshake(self) -> None:
        """Shake hands, where there is TLS, and begin to watch the socket."""
        while self._tls is not None:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except ssl.SSLError as err:
                with contextlib.suppress(OSError):
                    await self._flush()  # the alert that says why
                raise httpx.ConnectError(_explain(err)) from err
            else:
                await self._flush()
                break
        self._loop.add_reader(self._sock, self._readable)

    async def send(self, request: bytes, answer: Reading) -> None:
        """Send a request; what comes from now on is its answer."""
        self._idle = False
        self._answer = answer
        try:
            if self._tls is not None:
                self._tls.write(request)
                request = self._outgoing.read()
            await self._send(request)
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

    async def _fill(self) -> None:
        try:
            data = await self._loop.sock_recv(self._sock, _READ_BYTES)
        except OSError as err:
            raise httpx.ConnectError(err.strerror or str(err)) from err
        if not data:
            raise httpx.ConnectError("closed during the TLS handshake")
        self._incoming.write(data)

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._send(self._outgoing.read())

    async def _send(self, data: bytes) -> None:
        """Send it all; nearly always that is one call which does not wait."""
        try:
            sent = self._sock.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            await self._loop.sock_sendall(self._sock, data[sent:])

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
        if self._answer is not None:
            self._answer.end(error, in_order=in_order)

    def _take(self) -> bool:
        """Read and parse; True at the end of the stream."""
        try:
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        if self._tls is None:
            if data:
                self._parse(data)
            return not data
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        try:
            while clear := self._tls.read(_READ_BYTES):
                self._parse(clear)
        except ssl.SSLWantReadError:
            if self._outgoing.pending:  # an answer to the other side's key update
                self._sock.send(self._outgoing.read())
            return False
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass
        return True

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
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)  # noqa: FBT003 - the standard library's
        try:
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
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
    try:
        raise error
    finally:
        del error  # whose traceback refers to this frame


def _explain(err: Exception) -> str:
    if isinstance(err, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {err.verify_message}"
    return getattr(err, "strerror", None) or str(err) or type(err).__name__
