"""The transport: one connection, made when it is needed and kept for the next request."""

import asyncio
import socket
import ssl
from base64 import b64encode
from collections.abc import AsyncIterator

import httpx

from adapter.transport.reading import Reading
from adapter.transport.wire import Wire, open_socket

_READ_BYTES = 4096
_GRANTED = range(200, 300)


class Transport(httpx.AsyncBaseTransport):
    """A connection that is made when it is needed, and kept for the next request.

    Args:
        url: Where all requests go; of it scheme, host and port are used.
        tls: What TLS needs; not used where the scheme is ``http``.
        proxy: A proxy to go through with CONNECT, as ``http://[user:password@]host:port``.
        connect_timeout_s: Seconds for TCP, and again for TLS.
        max_body_bytes: The most that is read of a body. One more byte is given, so that the caller sees it.

    Attributes:
        sending: Whether a byte of the last request was given to the network: an answer may have been lost.
    """

    def __init__(
        self,
        url: httpx.URL,
        *,
        tls: ssl.SSLContext,
        proxy: httpx.URL | None,
        connect_timeout_s: float,
        max_body_bytes: int,
    ) -> None:
        self.sending = False
        self._host = url.raw_host.decode()
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = tls if url.scheme == "https" else None
        self._proxy = proxy
        self._connect_timeout_s = connect_timeout_s
        self._max_body_bytes = max_body_bytes
        self._wire: Wire | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and give its answer as soon as the head is there; its stream is the body.

        The body ends after `max_body_bytes` + 1. Closing the response lets the next request have the connection, or
        ends the connection where anything is left of the answer.

        Raises:
            httpx.ConnectError: There is no connection; nothing was sent.
            httpx.ReadError: The connection was lost; from the stream too.
            httpx.RemoteProtocolError: The answer is not HTTP; from the stream too.
        """
        self.sending = False
        wire = self._wire
        if wire is None or not wire.is_idle():
            await self.aclose()
            wire = self._wire = await self._connect()
            if not wire.is_idle():
                raise httpx.ConnectError("closed, or an answer without a request, before anything was sent")
        self.sending = True
        answer = Reading(self._max_body_bytes)
        try:
            await wire.send(_rendered(request), answer)
            await answer.head
        except BaseException:
            await self.aclose()
            raise
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer, wire), request=request)

    async def aclose(self) -> None:
        """Close the connection; a later request makes a new one."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    async def _connect(self) -> Wire:
        host, port = self._host, self._port
        if self._proxy is not None:
            host, port = self._proxy.host, self._proxy.port or 80
        sock: socket.socket | None = None
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                sock = await open_socket(host, port, self._connect_timeout_s)
                if self._proxy is not None:
                    await self._tunnel(sock, self._proxy)
            wire = Wire(sock, self._tls, self._host)
        except TimeoutError as err:
            _close(sock)
            raise httpx.ConnectTimeout(f"no connection within {self._connect_timeout_s:g} s") from err
        except (OSError, ValueError) as err:  # the second: no name that TLS can ask for
            _close(sock)
            raise httpx.ConnectError(getattr(err, "strerror", None) or str(err)) from err
        except BaseException:
            _close(sock)
            raise
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await wire.handshake()
        except TimeoutError as err:
            wire.close()
            raise httpx.ConnectTimeout(f"no TLS connection within {self._connect_timeout_s:g} s") from err
        except BaseException:
            wire.close()
            raise
        return wire

    async def _tunnel(self, sock: socket.socket, proxy: httpx.URL) -> None:
        """Have a proxy connect us to the gateway."""
        loop = asyncio.get_running_loop()
        host = f"[{self._host}]" if ":" in self._host else self._host
        lines = [f"CONNECT {host}:{self._port} HTTP/1.1", f"Host: {host}:{self._port}"]
        if proxy.username or proxy.password:
            credentials = b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
            lines.append(f"Proxy-Authorization: Basic {credentials}")
        await loop.sock_sendall(sock, "\r\n".join([*lines, "", ""]).encode())
        answer = Reading(0)
        try:
            while not answer.head.done():
                data = await loop.sock_recv(sock, _READ_BYTES)
                if not data:
                    raise httpx.ProxyError("closed by the proxy")
                answer.feed(data)
        finally:
            answer.close()
        if answer.status not in _GRANTED:
            raise httpx.ProxyError(f"the proxy answered {answer.status}")


class _Body(httpx.AsyncByteStream):
    """The body of an answer, as it comes."""

    def __init__(self, answer: Reading, wire: Wire) -> None:
        self._answer = answer
        self._wire = wire

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Give the whole body at once: nobody has use for half of one."""
        await self._answer.whole
        yield bytes(self._answer.body)

    async def aclose(self) -> None:
        """Let go of the connection."""
        self._wire.release()


def _rendered(request: httpx.Request) -> bytes:
    """Write a request down as it travels."""
    head = [request.method.encode(), b" ", request.url.raw_path, b" HTTP/1.1\r\n"]
    for name, value in request.headers.raw:
        head += [name, b": ", value, b"\r\n"]
    return b"".join([*head, b"\r\n", request.content])


def _close(sock: socket.socket | None) -> None:
    if sock is not None:
        sock.close()
