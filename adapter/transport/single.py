"""The transport: one connection, made when it is needed and kept for the next request."""

import asyncio
import socket
import ssl
from base64 import b64encode

import httpx

from adapter.transport.common import Common
from adapter.transport.reading import Reading
from adapter.transport.wire import Wire, open_socket

_READ_BYTES = 4096
_WRITTEN = "adapter.written"
_GRANTED = range(200, 300)
_ARRIVES_MS = 2000
"""A request that needed a permit arrives within this time or never: a permit outlives a poll by no less."""


class Transport(httpx.AsyncBaseTransport):
    """A connection that is made when it is needed, and kept for the next request.

    Args:
        url: Where all requests go; of it scheme, host and port are used.
        common: What all connections to the gateway share.
        proxy: A proxy to go through with CONNECT, as ``http://[user:password@]host:port``.

    Attributes:
        sending: Whether a byte of the last request was given to the network: an answer may have been lost.
        begun: What had come of the answer to a request that was cancelled, where its head had: the body is not whole.
            Until the next connection is made.
    """

    def __init__(self, url: httpx.URL, common: Common, proxy: httpx.URL | None = None) -> None:
        self.sending = False
        self.begun: httpx.Response | None = None
        self._url = url
        self._common = common
        self._proxy = proxy
        self._wire: Wire | None = None

    @property
    def tls(self) -> ssl.SSLObject | None:
        """TLS as it was agreed on last, to look at; `None` without."""
        return None if self._wire is None else self._wire.tls

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and give its answer when no more of it is to come; its stream is the body, or raises.

        The body ends after `max_body_bytes` and a little. The connection is ready for the next request, or closed.

        Raises:
            httpx.ConnectError: There is no connection; nothing was sent.
            httpx.ReadTimeout: The answer was not there in time; from the stream too.
            httpx.ReadError: The connection was lost; from the stream too.
            httpx.RemoteProtocolError: The answer is not HTTP; from the stream too.
        """
        self.sending = False
        permit = self._common.permit
        if permit is not None:
            await permit.wait()
        wire = self._wire
        new = wire is None or not wire.is_idle()
        if wire is None or new:
            await self.aclose()
            wire = self._wire = await self._connect()
            if not wire.is_idle():
                raise httpx.ConnectError("closed, or an answer without a request, before anything was sent")
        if permit is not None and not permit.valid():
            raise httpx.ConnectError("connecting took so long that nothing may be sent any more")
        self.sending = True
        answer = wire.answer
        over = self._common.expect(answer)
        try:
            wire.send(_rendered(request))
            await over
            if new and answer.whole:
                self._common.tls_session = wire.new_tls_session() or self._common.tls_session
            return answer.response(request)
        except asyncio.CancelledError:
            self.begun = answer.response(request) if answer.status else None
            raise
        finally:
            self._common.forget(answer)
            wire.release()

    async def aclose(self) -> None:
        """Close the connection; a later request makes a new one."""
        self.begun = None
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    async def _connect(self) -> Wire:
        common = self._common
        to = self._url if self._proxy is None else self._proxy
        sock: socket.socket | None = None
        try:
            async with asyncio.timeout(common.connect_timeout_s):
                sock = await open_socket(to.raw_host.decode(), _port(to), common.connect_timeout_s)
                if common.permit is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
                    # Or the kernel sends it again and again, and when the network is back, somebody else polls.
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _ARRIVES_MS)
                if self._proxy is not None:
                    await self._tunnel(sock, self._proxy)
            host = self._url.raw_host.decode() if self._url.scheme == "https" else None
            wire = Wire(sock, host, Reading(common.max_body_bytes), common)
        except TimeoutError as err:
            _close(sock)
            raise httpx.ConnectTimeout(f"no connection within {common.connect_timeout_s:g} s") from err
        except (OSError, ValueError) as err:  # the second: no name that TLS can ask for
            _close(sock)
            raise httpx.ConnectError(getattr(err, "strerror", None) or str(err)) from err
        except BaseException:
            _close(sock)
            raise
        try:
            async with asyncio.timeout(common.connect_timeout_s):
                await wire.handshake()
        except TimeoutError as err:
            wire.close()
            raise httpx.ConnectTimeout(f"no TLS connection within {common.connect_timeout_s:g} s") from err
        except BaseException:
            wire.close()
            raise
        return wire

    async def _tunnel(self, sock: socket.socket, proxy: httpx.URL) -> None:
        """Have a proxy connect us to the gateway."""
        loop = asyncio.get_running_loop()
        host = self._url.raw_host.decode()
        authority = f"[{host}]:{_port(self._url)}" if ":" in host else f"{host}:{_port(self._url)}"
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
        if proxy.username or proxy.password:
            credentials = b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
            lines.append(f"Proxy-Authorization: Basic {credentials}")
        await loop.sock_sendall(sock, "\r\n".join([*lines, "", ""]).encode())
        answer = Reading(0)
        try:
            while not answer.status:
                data = await loop.sock_recv(sock, _READ_BYTES)
                if not data:
                    raise httpx.ProxyError("closed by the proxy")
                answer.feed(memoryview(data))
            if answer.status not in _GRANTED:
                raise httpx.ProxyError(f"the proxy answered {answer.status}")
        finally:
            answer.close()


def _rendered(request: httpx.Request) -> bytes:
    """Write a request down as it travels; once, for one that is sent again and again."""
    written: bytes | None = request.extensions.get(_WRITTEN)
    if written is None:
        written = request.extensions[_WRITTEN] = _write_down(request)
    return written


def _write_down(request: httpx.Request) -> bytes:
    head = [request.method.encode(), b" ", request.url.raw_path, b" HTTP/1.1\r\n"]
    for name, value in request.headers.raw:
        head += [name, b": ", value, b"\r\n"]
    return b"".join([*head, b"\r\n", request.content])


def _port(url: httpx.URL) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def _close(sock: socket.socket | None) -> None:
    if sock is not None:
        sock.close()
