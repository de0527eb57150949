"""The transport below the gateway's port: what its user cannot see from an answer alone.

How it takes hostile answers is shown through the port, in test_gateway_faults.py.
"""

import asyncio
import contextlib
import gc
import socket
import ssl
import struct
import time
import warnings
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from adapter.simulator.certificates import make_context
from adapter.transport import Common, Transport, single, wire
from adapter.transport.reading import Reading
from tests.broker_support import DEADLINE_S
from tests.hostile_support import EMPTY, Hostile, Proxy, Script, Wire, chunked, cut, ok, reset

_LIMIT = 1 << 20
_NO_FAMILY = 255


def transport_to(gateway: Hostile, *, timeout_s: float = 5.0, host: str | None = None) -> Transport:
    """Make a transport to a hostile gateway."""
    url = httpx.URL(gateway.url)
    return Transport(
        url if host is None else url.copy_with(host=host),
        common(ssl.create_default_context(cafile=gateway.ca_file), timeout_s),
    )


def common(tls: ssl.SSLContext, connect_timeout_s: float = DEADLINE_S) -> Common:
    """Make what transports share."""
    return Common(tls=tls, timeout_s=DEADLINE_S, connect_timeout_s=connect_timeout_s, max_body_bytes=_LIMIT)


def poll_of(gateway: Hostile) -> httpx.Request:
    """Make a request that the hostile gateway takes for a poll."""
    return httpx.Request("GET", f"{gateway.url}/resource/agentevent/101")


async def exchange(transport: Transport, request: httpx.Request) -> tuple[int, bytes]:
    """Make a request to its end."""
    response = await transport.handle_async_request(request)
    try:
        return response.status_code, await response.aread()
    finally:
        await response.aclose()


async def test_it_serves_an_httpx_client(tmp_path: Path) -> None:
    """It is an httpx transport like any other: a client of httpx can be put on top."""
    async with Hostile(tmp_path, ok(b'{"a":1}'), chunked(b"[", b"2]")) as gateway:
        async with httpx.AsyncClient(transport=transport_to(gateway)) as client:
            assert (await client.get(poll_of(gateway).url)).json() == {"a": 1}
            assert (await client.get(poll_of(gateway).url)).json() == [2]
        assert len(gateway.wires) == 1, "one connection serves both"


async def test_the_next_connection_resumes_the_first_ones_tls_session(tmp_path: Path) -> None:
    """Only the first of many connections costs a whole handshake, also when it has ended by then."""
    async with Hostile(tmp_path, ok(), ok(), ok()) as gateway:
        shared = common(ssl.create_default_context(cafile=gateway.ca_file))
        resumed = []
        for _ in range(3):
            transport = Transport(httpx.URL(gateway.url), shared)
            assert await exchange(transport, poll_of(gateway)) == (200, EMPTY)
            assert transport._wire is not None
            assert transport._wire._tls is not None
            resumed.append(transport._wire._tls.session_reused)
            await transport.aclose()
    assert resumed == [False, True, True]


async def test_a_resumed_session_is_no_trust(tmp_path: Path) -> None:
    """Who takes the gateway's place with a certificate of another authority is refused, session or not."""
    (tmp_path / "other").mkdir()
    async with Hostile(tmp_path, ok()) as gateway, Hostile(tmp_path / "other", ok()) as other:
        shared = common(ssl.create_default_context(cafile=gateway.ca_file))
        assert await exchange(Transport(httpx.URL(gateway.url), shared), poll_of(gateway)) == (200, EMPTY)
        assert shared.tls_session is not None
        with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
            await exchange(Transport(httpx.URL(other.url), shared), poll_of(other))


@pytest.mark.parametrize(
    "script", [ok(), reset(), cut(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"), b"junk\r\n\r\n"]
)
async def test_a_request_leaves_nothing_to_the_collector(tmp_path: Path, script: Script) -> None:
    """No circle of references is left of a request, good or bad: of thousands the collector would stop the loop."""
    made: list[weakref.ref[object]] = []

    class WatchedReading(Reading):
        def __init__(self, max_body_bytes: int) -> None:
            super().__init__(max_body_bytes)
            made.append(weakref.ref(self))

    class WatchedWire(wire.Wire):
        def __init__(self, sock: socket.socket, host: str | None, answer: Reading, common: Common) -> None:
            super().__init__(sock, host, answer, common)
            made.append(weakref.ref(self))

    async with Hostile(tmp_path, script, script) as gateway, collector_off():
        transport = transport_to(gateway)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(single, "Reading", WatchedReading)
            patch.setattr(single, "Wire", WatchedWire)
            for _ in range(2):
                with contextlib.suppress(httpx.TransportError):
                    await exchange(transport, poll_of(gateway))
        await transport.aclose()
        await asyncio.sleep(0)  # the loop still holds what it has called last
        assert len(made) >= 2
        assert [each() for each in made] == [None] * len(made)


async def test_a_refused_connection_leaves_nothing_to_the_collector(tmp_path: Path) -> None:
    """Nor is one left of a connection that did not come about: a gateway that is away is tried again and again."""
    async with Hostile(tmp_path) as gateway:
        pass
    async with collector_off():
        with pytest.raises(httpx.ConnectError):
            await transport_to(gateway).handle_async_request(poll_of(gateway))
        await asyncio.sleep(0)
        assert [each for each in gc.get_objects() if isinstance(each, ConnectionRefusedError)] == []


@contextlib.asynccontextmanager
async def collector_off() -> AsyncIterator[None]:
    """Have only what nobody refers to go."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def test_a_large_request_goes_out_whole(tmp_path: Path) -> None:
    """What the socket does not take at once follows, in order."""
    body = bytes(range(256)) * 8192
    got = bytearray()

    async def read_slowly(wire: Wire) -> None:
        while len(got) < len(body):
            got.extend(await wire.reader.read(65536))
            await asyncio.sleep(0)
        await wire.send(ok())

    async with Hostile(tmp_path, read_slowly) as gateway:
        transport = transport_to(gateway)
        request = httpx.Request("GET", poll_of(gateway).url, content=body)
        assert await exchange(transport, request) == (200, EMPTY)
        await transport.aclose()
    assert bytes(got) == body


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_nothing_stays_open_after_a_cancelled_request(scheme: str) -> None:
    """A request that is cancelled while it connects, shakes hands, or waits, leaves no socket behind."""
    with socket.create_server(("127.0.0.1", 0)) as mute, warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        url = httpx.URL(f"{scheme}://127.0.0.1:{mute.getsockname()[1]}")
        transport = Transport(url, common(ssl.create_default_context()))
        request = asyncio.create_task(transport.handle_async_request(httpx.Request("GET", url)))
        connection, _ = await asyncio.get_running_loop().run_in_executor(None, mute.accept)
        with connection:
            assert await asyncio.get_running_loop().run_in_executor(None, connection.recv, 1)
            request.cancel()
            await asyncio.wait([request])
            assert request.cancelled()
            connection.settimeout(DEADLINE_S)
            while await asyncio.get_running_loop().run_in_executor(None, connection.recv, 65536):
                pass
        gc.collect()


async def test_the_address_that_answers_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several addresses of a host the first that answers is taken, and one that is mute cannot use up the time."""
    async with Hostile(tmp_path, ok(), host="localhost") as gateway:
        port = httpx.URL(gateway.url).port
        with socket.create_server(("127.0.0.3", 0), backlog=0) as full, socket.create_connection(full.getsockname()):
            with socket.create_server(("127.0.0.2", 0)) as closed:
                nobody = closed.getsockname()
            stream = (socket.AF_INET, socket.SOCK_STREAM, 0, "")
            here = await asyncio.get_running_loop().getaddrinfo("127.0.0.1", port, type=socket.SOCK_STREAM)

            async def addresses(*_: object, **__: object) -> list[object]:
                return [(*stream, nobody), (*stream, full.getsockname()), *here]

            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses)
            transport = transport_to(gateway, timeout_s=3.0, host="localhost")
            assert await exchange(transport, poll_of(gateway)) == (200, EMPTY)
            await transport.aclose()


async def test_a_name_that_is_none_is_no_connection() -> None:
    """A host name that cannot even be asked for is said like one that does not exist."""
    url = httpx.URL("https://g.example").copy_with(host="x" * 70 + ".example")
    transport = Transport(url, common(ssl.create_default_context()))
    with pytest.raises(httpx.ConnectError):
        await transport.handle_async_request(httpx.Request("GET", url))
    assert transport.sending is False


async def test_sending_is_told_from_connecting(tmp_path: Path) -> None:
    """Whether the last request had begun to go out is known, whatever became of it."""
    async with Hostile(tmp_path, ok()) as gateway:
        transport = transport_to(gateway)
        await exchange(transport, poll_of(gateway))
        assert transport.sending
    with pytest.raises(httpx.ConnectError):
        await transport.handle_async_request(poll_of(gateway))
    assert transport.sending is False


@pytest.mark.parametrize("proxied", [False, True])
async def test_a_reset_in_the_handshake_is_no_connection(tmp_path: Path, *, proxied: bool) -> None:
    """A connection that is reset while our part of the handshake goes out is an error like any other of the gateway."""
    tls, ca_file = make_context("127.0.0.1", tmp_path, "right")
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            hello = connection.recv(65536)
            answer = b"HTTP/1.1 200 OK\r\n\r\n" if proxied else flight(tls, hello)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(answer)

    def slowly() -> None:
        """Give the reset time to come between what is read and what is sent upon it."""
        time.sleep(0.02)
        turn[0] = loop.call_soon(slowly)

    loop = asyncio.get_running_loop()
    turn = [loop.call_soon(slowly)]
    with listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        serving = loop.run_in_executor(None, serve)
        transport = Transport(
            httpx.URL(f"https://{address}"),
            common(ssl.create_default_context(cafile=ca_file)),
            httpx.URL(f"http://{address}") if proxied else None,
        )
        with pytest.raises(httpx.TransportError):
            await transport.handle_async_request(httpx.Request("GET", f"https://{address}"))
        turn[0].cancel()
        await serving
        await transport.aclose()


def flight(tls: ssl.SSLContext, hello: bytes) -> bytes:
    """Make what a gateway answers to the first that a client says."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    incoming.write(hello)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.wrap_bio(incoming, outgoing, server_side=True).do_handshake()
    return outgoing.read()


async def test_a_body_that_is_waited_for_no_more_ends_the_connection(tmp_path: Path) -> None:
    """The connection is closed at once where the body is not there in time: the rest of it is nobody's."""
    gone = asyncio.Event()

    async def half(wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await wire.gone()
        gone.set()

    async with Hostile(tmp_path, half) as gateway:
        transport = transport_to(gateway)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await exchange(transport, poll_of(gateway))
        async with asyncio.timeout(DEADLINE_S):
            await gone.wait()
        await transport.aclose()


async def test_an_idle_connection_that_ends_is_closed(tmp_path: Path) -> None:
    """The gateway's end of an idle connection is answered at once: the next request may be hours away."""
    gone = asyncio.Event()

    async def answer_and_end(wire: Wire) -> None:
        await wire.send(ok())
        wire.writer.write_eof()
        await wire.gone()
        gone.set()

    async with Hostile(tmp_path, answer_and_end, tls=False) as gateway:
        transport = transport_to(gateway)
        assert await exchange(transport, poll_of(gateway)) == (200, EMPTY)
        async with asyncio.timeout(DEADLINE_S):
            await gone.wait()
        await transport.aclose()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_an_answer_before_the_first_request_is_none(tmp_path: Path, scheme: str) -> None:
    """What a new connection begins with is not taken for the answer to what is sent over it (P5)."""
    tls, ca_file = make_context("127.0.0.1", tmp_path, "right")
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            if scheme == "http":
                connection.sendall(ok(b"early"))
            else:
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                server = tls.wrap_bio(incoming, outgoing, server_side=True)
                for _ in range(2):
                    incoming.write(connection.recv(65536))
                    with contextlib.suppress(ssl.SSLWantReadError):
                        server.do_handshake()
                        server.write(ok(b"early"))
                    connection.sendall(outgoing.read())
            connection.settimeout(DEADLINE_S)
            with contextlib.suppress(ConnectionError):
                while connection.recv(65536):
                    pass

    def slowly() -> None:
        """Give what comes early time to come."""
        time.sleep(0.02)
        turn[0] = loop.call_soon(slowly)

    loop = asyncio.get_running_loop()
    tls.maximum_version = ssl.TLSVersion.TLSv1_2  # its handshake ends with the gateway's part
    with listening:
        url = httpx.URL(f"{scheme}://127.0.0.1:{listening.getsockname()[1]}")
        serving = loop.run_in_executor(None, serve)
        transport = Transport(url, common(ssl.create_default_context(cafile=ca_file)))
        turn = [loop.call_soon(slowly)]
        with pytest.raises(httpx.ConnectError):
            await exchange(transport, httpx.Request("GET", url))
        turn[0].cancel()
        assert transport.sending is False
        await transport.aclose()
        await serving


async def test_an_address_of_a_kind_that_the_machine_lacks_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An address that no socket can be made for, as IPv6 where it is switched off, does not hide the next."""
    async with Hostile(tmp_path, ok(), host="localhost") as gateway:
        port = httpx.URL(gateway.url).port
        here = await asyncio.get_running_loop().getaddrinfo("127.0.0.1", port, type=socket.SOCK_STREAM)

        async def addresses(*_: object, **__: object) -> list[object]:
            return [(_NO_FAMILY, socket.SOCK_STREAM, 0, "", ("::1", port)), *here]

        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", addresses)
        transport = transport_to(gateway, host="localhost")
        assert await exchange(transport, poll_of(gateway)) == (200, EMPTY)
        await transport.aclose()


@pytest.mark.parametrize("host", [".example", "x" * 70 + ".example"])
async def test_a_name_that_tls_cannot_ask_for_is_no_connection(host: str) -> None:
    """A host that a proxy finds and TLS cannot name is said like any that cannot be reached."""
    async with Proxy(b"HTTP/1.1 200 OK\r\n\r\n") as proxy:
        transport = Transport(
            httpx.URL("https://g.example").copy_with(host=host),
            common(ssl.create_default_context()),
            httpx.URL(proxy.address()),
        )
        with pytest.raises(httpx.ConnectError):
            await transport.handle_async_request(httpx.Request("GET", "https://g.example"))


class Always:
    """A permit for everything."""

    async def wait(self) -> None:
        """Wait for nothing."""

    def valid(self) -> bool:
        """Say yes."""
        return True


async def test_a_request_that_needed_a_permit_arrives_soon_or_never(tmp_path: Path) -> None:
    """Or it would come to the gateway when the permit is over, and another polls: the kernel gives up by then."""
    async with Hostile(tmp_path, ok()) as gateway:
        shared = common(ssl.create_default_context(cafile=gateway.ca_file))
        shared.permit = Always()
        transport = Transport(httpx.URL(gateway.url), shared)
        assert await exchange(transport, poll_of(gateway)) == (200, EMPTY)
        assert transport._wire is not None
        limit_ms = transport._wire._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        await transport.aclose()
    assert limit_ms == 2000
