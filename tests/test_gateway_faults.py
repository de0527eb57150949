"""A gateway, or somebody before it, that sends anything: nothing is believed, held or repeated that should not be.

The hostile gateway speaks real TLS; what it sends are the bytes of each test.
"""

import asyncio
import contextlib
import gc
import gzip
import itertools
import json
import signal
import socket
import tracemalloc
import urllib.request
import uuid
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapter.answer import HEAD_BYTES, MAX_ANSWER_BYTES
from adapter.errors import GatewayConnectionError, GatewayError, GatewayProtocolError
from adapter.gateway import Line, result_of
from tests.adapter_support import running, wait_for, write
from tests.broker_support import DEADLINE_S, Broker, Peer, free_ports
from tests.cli_support import program
from tests.fault_support import until
from tests.hostile_support import (
    EMPTY,
    READY,
    Hostile,
    Proxy,
    Script,
    Wire,
    chunked,
    cut,
    endless,
    hurried,
    line_to,
    ok,
    pieces,
    reset,
    silence,
)
from tests.stage_support import staged

pytestmark = pytest.mark.harm

GUID = "canary-guid-of-101"

_MEBIBYTE = 1024 * 1024


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


async def events(line: Line) -> list[str]:
    """Poll; list the types of the events that came."""
    reply = await line.poll(GUID)
    return [event.event_type for event in reply.answer.events]


async def told_of(line: Line) -> str:
    """Poll, in vain or not; give what the error says, or nothing."""
    try:
        await line.poll(GUID)
    except GatewayError as error:
        return str(error)
    return ""


async def failure(line: Line) -> GatewayError:
    """Poll in vain."""
    with pytest.raises(GatewayError) as caught:
        await line.poll(GUID)
    return caught.value


# --- one request, one answer ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        ok() + ok(READY),
        chunked(EMPTY) + ok(READY),
        ok() + ok(READY)[:40],
        pieces(ok(), ok(READY)),
        pieces(ok(), b"x"),
        ok(READY).replace(b"200 OK", b"204 No Content") + ok(READY),
    ],
    ids=["same record", "after chunks", "half", "next record", "one byte", "204 with a body"],
)
async def test_p1_second_answer_to_one_request_is_never_taken(tmp_path: Path, script: Script) -> None:
    """P1: what comes after an answer, unasked, is not taken for the answer to the next poll, which is sent anew."""
    async with Hostile(tmp_path, script) as gateway, line_to(gateway) as line:
        assert await told_of(line) in ("", "HTTP status 204")
        # What comes late must be there, or there is nothing to see.
        await gateway.wait_for(lambda: gateway.wires[0].sent >= len(ok()))
        gateway.then(ok(READY.replace(b"Ready", b"Work")))
        second = await events(line)

    assert second == ["AgentState_Work"]
    assert len(gateway.polls) == 2
    assert len(gateway.wires) == 2


@pytest.mark.parametrize("tls", [True, False], ids=["https", "http"])
async def test_connection_is_kept_where_nothing_came_after_the_answer(tmp_path: Path, *, tls: bool) -> None:
    """The look for a second answer costs no connection."""
    async with Hostile(tmp_path, ok(), chunked(EMPTY), ok(b"junk"), tls=tls) as gateway, line_to(gateway) as line:
        await events(line)
        await events(line)
        assert isinstance(await failure(line), GatewayProtocolError)
        await events(line)

    assert len(gateway.polls) == 4
    assert len(gateway.wires) == 1


@pytest.mark.parametrize(
    "script", [cut(ok()), reset(ok()), cut(ok(EMPTY, b"Connection: close"))], ids=["closed", "reset", "announced"]
)
@pytest.mark.parametrize("tls", [True, False], ids=["https", "http"])
async def test_p5_connection_closed_while_idle_is_replaced_before_anything_is_sent(
    tmp_path: Path, script: Script, *, tls: bool
) -> None:
    """P5: a connection that ended between two polls costs no poll: the next one goes over a new connection."""
    async with Hostile(tmp_path, script, ok(READY), tls=tls) as gateway, line_to(gateway) as line:
        await events(line)
        await gateway.wait_for(gateway.wires[0].writer.is_closing)
        assert await events(line) == ["AgentState_Ready"]

    assert len(gateway.polls) == 2
    assert len(gateway.wires) == 2


@pytest.mark.parametrize(
    "script",
    [reset(), cut(b""), cut(b"HTTP/1.1 200"), reset(ok(READY)[:-1]), cut(ok(READY)[:-1]), cut(chunked(READY)[:-7])],
    ids=["reset", "closed", "half a line", "reset in the body", "cut body", "cut chunks"],
)
@pytest.mark.parametrize("kept", [True, False], ids=["kept connection", "new connection"])
async def test_p5_lost_poll_is_lost_and_not_repeated(tmp_path: Path, script: Script, *, kept: bool) -> None:
    """P5: a poll whose answer was lost is an error, and reached the gateway once: no library sends it again."""
    before: list[Script] = [ok()] if kept else []
    async with Hostile(tmp_path, *before, script) as gateway, line_to(gateway) as line:
        for _ in before:
            await events(line)
        error = await failure(line)
        assert len(gateway.polls) == len(before) + 1
        assert await events(line) == []

    assert isinstance(error, GatewayConnectionError)
    assert error.answer_lost
    assert len(gateway.polls) == len(before) + 2


async def test_p5_redirect_to_another_host_is_not_followed(tmp_path: Path) -> None:
    """P5: the host that a redirect names sees no connection, and so no GUID."""
    async with Hostile(tmp_path / "other") as other:
        script = ok(EMPTY, b"Location: " + other.url.encode()).replace(b"200 OK", b"307 Temporary Redirect")
        async with Hostile(tmp_path, script) as gateway, line_to(gateway) as line:
            error = await failure(line)
            assert await events(line) == []

        assert str(error) == "HTTP status 307"
        assert other.wires == []


@pytest.mark.parametrize(
    "script",
    [
        pieces(b"HTTP/1.1 503 Busy\r\nContent-Length: 1000\r\n\r\n", *[b"x"] * 20, every_s=0.1),
        cut(b"HTTP/1.1 503 Busy\r\nContent-Length: 1000\r\n\r\nx"),
        cut(b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\nno chunk\r\n"),
        endless(b"HTTP/1.1 503 Busy\r\n\r\n", b"x" * 65536),
    ],
    ids=["slow", "cut", "damaged", "endless"],
)
async def test_p5_refusal_is_no_lost_answer_however_it_ends(tmp_path: Path, script: Script) -> None:
    """P5: another status than 200 carries no event, so that nothing is lost with its body."""
    async with Hostile(tmp_path, script) as gateway, line_to(gateway) as line:
        await line.agent_status(GUID)
        with hurried(line, 1.0):
            error = await failure(line)
        assert await events(line) == []

    assert isinstance(error, GatewayConnectionError)
    assert (error.status, error.answer_lost) == (503, False)


# --- how an answer is framed ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        chunked(READY[:5], READY[5:], trailer=b"X-Sum: 1\r\nSet-GUID: JSESSIONID=trailer\r\n"),
        chunked(READY).replace(b"\r\n{", b";name=value\r\n{"),
        cut(b"HTTP/1.1 200 OK\r\n\r\n" + READY),
        cut(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(READY), READY)),
        cut(b"HTTP/1.0 200 OK\r\n\r\n" + READY),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nSet-GUID: JSESSIONID=early\r\n\r\n" + ok(READY),
        ok(READY).replace(b"\r\n", b"\n"),
        pieces(*(ok(READY)[at : at + 1] for at in range(len(ok(READY))))),
        ok(gzip.compress(READY), b"Content-Encoding: gzip"),
        ok(zlib.compress(READY), b"Content-Encoding: deflate"),
        ok(READY, b"Content-Encoding: nonsense"),
        ok(READY, b"Content-Type: image/png; charset=\xff", b"X: \xe9\xff"),
        ok(READY, b"Content-Type: text/html; name*0*=a; name*=b"),
        ok(READY.decode().encode("utf-16"), b"Content-Type: text/html; Charset = 'UTF-16'; x=y"),
        ok(b"\xef\xbb\xbf" + READY + b"\0\0\n"),
    ],
    ids=[
        *("trailers", "extension", "closed", "1.0", "1.0 closed", "1xx", "bare line ends", "bytewise"),
        *("gzip", "deflate", "unknown coding", "no ASCII", "continued", "UTF-16"),
        "byte order mark",
    ],
)
async def test_p11_answer_is_read_however_it_is_framed(tmp_path: Path, script: Script) -> None:
    """P11: every legal way, and some others, to say where an answer ends brings its event, and no other header."""
    async with Hostile(tmp_path, script) as gateway, line_to(gateway) as line:
        assert await events(line) == ["AgentState_Ready"]
        assert line.new_guid is None
        assert await events(line) == []


_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_TWICE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n" + EMPTY


@pytest.mark.parametrize(
    "data",
    [
        _CHUNKED + b"canary\r\n",
        _CHUNKED + b"-5\r\n",
        _CHUNKED + b"5\r\n{canary}\r\n",
        _CHUNKED + b"f" * 30 + b"\r\n",
        _TWICE,
        ok().replace(b"Content-Length: ", b"Content-Length: -"),
        ok().replace(b"Content-Length: ", b"Content-Length: canary"),
        b"{'canary': 'HTTP/0.9'}\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"HTTP/1.1 20 canary\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        ok(READY).replace(b"200 OK", b"101 Switching Protocols"),
        ok(EMPTY, b"Transfer-Encoding: canary"),
        b"\0" * 200,
    ],
)
async def test_p5_what_is_no_http_is_a_lost_answer(tmp_path: Path, data: bytes) -> None:
    """P5: bytes that do not say where an answer ends are one, not quoted in the error, and the next poll is well."""
    async with Hostile(tmp_path, cut(data)) as gateway, line_to(gateway) as line:
        error = await failure(line)
        assert await events(line) == []

    assert isinstance(error, GatewayConnectionError)
    assert error.answer_lost
    assert "canary" not in str(error)
    assert "bytearray" not in str(error)


# --- more than is wanted --------------------------------------------------------------------------------------

_ONE_GB = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n"
_X = b"x" * 65536
_BOMB = gzip.compress(bytes(200 * _MEBIBYTE))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (endless(_ONE_GB, _X), "over 1048576 bytes"),
        (endless(_CHUNKED, b"10000\r\n%b\r\n" % _X), "over 1048576 bytes"),
        (endless(b"HTTP/1.1 200 OK\r\n\r\n", _X), "over 1048576 bytes"),
        (endless(b"HTTP/1.1 200 OK\r\nX: ", _X), "connection lost: "),
        (endless(b"HTTP/1.1 200 OK\r\n", b"X: %b\r\n" % (b"x" * 1000)), "connection lost: "),
        (endless(_X, _X), "connection lost: "),
        (endless(_CHUNKED + b"1;", _X), "connection lost: "),
        (endless(_CHUNKED + b"0\r\n", b"X: x\r\n" * 1000), "connection lost: "),
        (endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100), "connection lost: "),
    ],
    ids=["length", "chunks", "until closed", "header", "headers", "status line", "extension", "trailers", "1xx"],
)
async def test_p14_endless_answer_is_neither_held_nor_read_to_its_end(
    tmp_path: Path, script: Script, reason: str
) -> None:
    """P14: of an answer without end, in any of its parts, little over 1 MiB is read, and never more held."""
    async with Hostile(tmp_path, script) as gateway, line_to(gateway) as line:
        error, peak_bytes = await measured(line, timeout_s=1.0 if "no answer" in reason else 20.0)
        await gateway.wait_for(gateway.wires[0].writer.is_closing)
        assert await events(line) == []

    assert reason in str(error)
    assert peak_bytes < 6 * _MEBIBYTE
    if isinstance(error, GatewayProtocolError):
        assert error.size_bytes <= MAX_ANSWER_BYTES + 2 * 65536
        assert len(error.head) <= HEAD_BYTES
    # What the kernel holds between the two ends counts as sent.
    assert gateway.wires[0].sent < 12 * _MEBIBYTE


@pytest.mark.parametrize(
    ("body", "coding", "reason"),
    [
        (_BOMB, b"gzip", "over 1048576 bytes"),
        (gzip.compress(_BOMB), b"gzip, gzip", "malformed"),
        (gzip.compress(gzip.compress(READY)), b"gzip", "malformed"),
        (zlib.compress(READY)[:-9], b"deflate", "truncated"),
        (b'{"retcode":"0","event":' * 40_000, b"identity", "nested deeper than 64"),
        (b"[" * 100_000 + b"]" * 100_000, b"identity", "nested deeper than 64"),
    ],
    ids=["bomb", "two codings", "packed twice", "cut", "deep without end", "deep"],
)
async def test_p14_small_answer_that_grows_is_not_held(tmp_path: Path, body: bytes, coding: bytes, reason: str) -> None:
    """P14: what an answer would become, unpacked or read, is bounded too."""
    script = ok(body, b"Content-Encoding: " + coding)
    async with Hostile(tmp_path, script) as gateway, line_to(gateway) as line:
        error, peak_bytes = await measured(line)
        assert await events(line) == []

    assert reason in str(error)
    assert isinstance(error, GatewayProtocolError)
    assert error.size_bytes <= MAX_ANSWER_BYTES + 1
    assert len(error.head) <= HEAD_BYTES
    # Looking through the largest body for its depth takes some 20 times its size, for an instant.
    assert peak_bytes < 40 * _MEBIBYTE


async def measured(line: Line, timeout_s: float = 20.0) -> tuple[GatewayError, int]:
    """Poll in vain; give the error, and the most bytes that Python held, the gateway's end included."""
    await line.agent_status(GUID)  # which connects: TLS is not to be measured
    tracemalloc.start()
    try:
        with hurried(line, timeout_s):
            error = await failure(line)
        return error, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "part", [ok(READY), ok(READY)[:16], _CHUNKED + b"1\r\n{\r\n" * 100], ids=["all", "status line", "chunks"]
)
async def test_p5_slow_answer_has_the_time_of_the_whole_request(tmp_path: Path, part: bytes) -> None:
    """P5: an answer of one byte a time, each in time, is given up when the whole request has taken `timeout`."""
    slow = pieces(*(part[at : at + 1] for at in range(len(part))), every_s=0.1)
    async with Hostile(tmp_path, slow) as gateway, line_to(gateway) as line:
        await line.agent_status(GUID)
        with hurried(line, 0.6):
            error = await failure(line)
        gateway.then(ok(READY))
        await gateway.wait_for(gateway.wires[0].writer.is_closing)
        assert await events(line) == ["AgentState_Ready"]

    assert isinstance(error, GatewayConnectionError)
    assert (str(error), error.answer_lost) == ("no answer within 0.6 s", True)


# --- headers that are kept ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"Set-GUID: JSESSIONID=", b"Set-Cookie: JSESSIONID="])
@pytest.mark.parametrize(
    "value",
    [b"canary\0", b"canary\r\n x", b"canary\rGuid: evil", b"canary\xc3\xa9", b"canary\x01", b"canary" + bytes(10**6)],
    ids=["NUL", "fold", "CR", "not ASCII", "control", "1 MB of NUL"],
)
async def test_p8_p9_header_that_could_break_out_is_not_kept(tmp_path: Path, name: bytes, value: bytes) -> None:
    """P8, P9: what could not be sent back as it is, is neither kept nor quoted in an error, and harms no later poll."""
    async with Hostile(tmp_path, ok(READY, name + value)) as gateway, line_to(gateway) as line:
        told = await told_of(line)
        kept = (line.new_guid, line.cookies)
        assert await events(line) == []

    assert kept == (None, {})
    assert told.startswith("connection lost: ") or not told
    assert "canary" not in told
    assert b"evil" not in b"".join(gateway.polls)
    names = {line.split(b":")[0] for line in gateway.polls[1].splitlines()[1:-1]}
    assert names - {b"Cookie"} == {b"Host", b"Content-Type", b"Accept-Encoding", b"User-Agent", b"Guid"}


@pytest.mark.parametrize("others", [[b"new"], [b"old", b"new"], [b"new", b"b a d"], [b"new", b"new", b""]])
async def test_p8_newest_of_several_guids_is_taken(tmp_path: Path, others: list[bytes]) -> None:
    """P8: where a load balancer repeats the header, the last GUID that can be used is the new one."""
    lines = [b"Set-GUID: JSESSIONID=" + other for other in others]
    async with Hostile(tmp_path, ok(READY, *lines)) as gateway, line_to(gateway) as line:
        await line.poll(GUID)

        assert line.new_guid == "new"


@pytest.mark.parametrize("size", [1025, 10**6])
@pytest.mark.parametrize("name", [b"Set-GUID: JSESSIONID=", b"Set-Cookie: c="])
async def test_p8_p9_header_beyond_its_limit_is_not_kept(tmp_path: Path, name: bytes, size: int) -> None:
    """P8, P9: a GUID over 1 KiB and a cookie over 4 KiB are as good as none."""
    async with Hostile(tmp_path, ok(READY, name + b"x" * size * 4)) as gateway, line_to(gateway) as line:
        told = await told_of(line)
        assert (line.new_guid, line.cookies) == (None, {})
        assert await events(line) == []

    assert told == ("" if size == 1025 else "connection lost: over 65536 bytes without an end")


# --- connections that do not come about -----------------------------------------------------------------------


async def test_socket_of_a_handshake_that_is_cut_is_closed_at_once(tmp_path: Path) -> None:
    """A TLS handshake that hangs, or is cancelled, leaves no socket to the garbage collector."""
    ended = [asyncio.Event(), asyncio.Event()]
    connections = iter(ended)

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        over = next(connections)
        while await reader.read(65536):
            pass
        over.set()
        writer.close()

    server = await asyncio.start_server(mute, "127.0.0.1", 0)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/agentgateway"
    gc.disable()
    try:
        async with Hostile(tmp_path) as gateway, line_to(gateway, url=url, timeout_s=1.0) as line:
            error = await failure(line)
            await asyncio.wait_for(ended[0].wait(), 10)
            poll = asyncio.create_task(line.poll(GUID))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(poll, 0.2)
            await asyncio.wait_for(ended[1].wait(), 10)
    finally:
        gc.enable()
    server.close()
    await server.wait_closed()

    assert isinstance(error, GatewayConnectionError)
    assert not error.answer_lost


@ipv6
async def test_ipv6(tmp_path: Path) -> None:
    """A gateway whose address is IPv6 is polled, and its certificate checked against that address."""
    async with Hostile(tmp_path, ok(READY), host="::1") as gateway, line_to(gateway) as line:
        assert await events(line) == ["AgentState_Ready"]

    assert b"\r\nHost: [::1]:" in gateway.polls[0]


@ipv6
async def test_certificate_of_another_ipv6_address_is_refused(tmp_path: Path) -> None:
    """A certificate for another host does not do for an IPv6 address either."""
    async with Hostile(tmp_path, host="::1", certificate="wrong_host") as gateway, line_to(gateway) as line:
        error = await failure(line)

    assert "certificate verify failed" in str(error)
    assert gateway.heads == []


# --- proxies --------------------------------------------------------------------------------------------------


async def test_proxy_makes_a_tunnel_and_sees_no_guid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`gateway.proxy` is asked for a tunnel, with its password; what goes through it is TLS, and no GUID in sight."""
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "*")
    async with (
        Hostile(tmp_path, ok(READY)) as gateway,
        Proxy() as proxy,
        line_to(gateway, proxy=proxy.address("user:secret")) as line,
    ):
        assert await events(line) == ["AgentState_Ready"]
        assert await events(line) == []

    place = gateway.url.removeprefix("https://").removesuffix("/agentgateway").encode()
    (head,) = proxy.heads
    assert head.startswith(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n" % (place, place))
    assert b"\r\nProxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n" in head
    assert GUID.encode() not in head
    assert b"Proxy-" not in gateway.polls[0]


@ipv6
async def test_proxy_is_told_an_ipv6_address_in_brackets(tmp_path: Path) -> None:
    """A gateway with an IPv6 address is reached through a proxy too (RFC 9110, 9.3.6; RFC 3986, 3.2.2)."""
    async with (
        Hostile(tmp_path, ok(READY), host="::1") as gateway,
        Proxy() as proxy,
        line_to(gateway, proxy=proxy.address()) as line,
    ):
        assert await events(line) == ["AgentState_Ready"]

    assert proxy.heads[0].startswith(b"CONNECT [::1]:")


async def test_environment_names_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `gateway.proxy` none is used, whatever the environment says."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with Hostile(tmp_path, ok(READY)) as gateway, line_to(gateway) as line:
        assert await events(line) == ["AgentState_Ready"]


async def test_proxy_for_a_gateway_without_tls(tmp_path: Path) -> None:
    """A gateway that is allowed without TLS is reached through a tunnel too: the proxy sees no GUID."""
    async with (
        Hostile(tmp_path, ok(READY), tls=False) as gateway,
        Proxy() as proxy,
        line_to(gateway, proxy=proxy.address("user:secret")) as line,
    ):
        assert await events(line) == ["AgentState_Ready"]
        assert await events(line) == []

    assert proxy.heads[0].startswith(b"CONNECT ")
    assert b"Proxy-" not in gateway.polls[0]


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (b"HTTP/1.1 407 canary user:secret\r\nContent-Length: 0\r\n\r\n", "the proxy answered 407"),
        (b"HTTP/1.1 502 Bad Gateway\r\nX: canary\r\n\r\ncanary", "the proxy answered 502"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://canary/\r\n\r\n", "the proxy answered 302"),
        (b"canary secret\r\n\r\n", "no HTTP answer: Expected HTTP/, RTSP/ or ICE/"),
        (b"", "no connection within 0.2 s"),
    ],
    ids=["407", "502", "302", "no HTTP", "mute"],
)
async def test_proxy_that_makes_no_tunnel_lost_nothing(tmp_path: Path, refusal: bytes, reason: str) -> None:
    """A proxy that refuses, or hangs, is told without its password or its words; nothing was sent, so nothing lost."""
    async with (
        Hostile(tmp_path) as gateway,
        Proxy(refusal) as proxy,
        line_to(gateway, proxy=proxy.address("user:secret")) as line,
    ):
        with hurried(line, 20.0 if refusal else 0.5):
            error = await failure(line)
            again = await failure(line)
        proxy._refusal = None
        assert await events(line) == []

    assert isinstance(error, GatewayConnectionError)
    assert (str(error), error.answer_lost) == (f"cannot connect: {reason}", False)
    assert str(error) == str(again)


@pytest.mark.parametrize("behind", [True, False], ids=["behind a proxy", "without a proxy"])
async def test_certificate_that_stops_to_fit_is_refused_until_it_fits_again(tmp_path: Path, *, behind: bool) -> None:
    """A gateway that comes back under another authority is refused each time, and polled when it has its own again."""
    async with Hostile(tmp_path) as gateway, Proxy() as proxy:
        changes = {"proxy": proxy.address()} if behind else {}
        async with line_to(gateway, **changes) as line:
            assert await events(line) == []
            own, polls = gateway.tls, len(gateway.polls)
            await gateway.reopen(Hostile(tmp_path / "other").tls)
            errors = [str(await failure(line)) for _ in range(3)]
            assert len(gateway.polls) == polls
            await gateway.reopen(own)
            assert await events(line) == []

    assert errors == [errors[0]] * 3
    assert errors[0].startswith("cannot connect: ")
    assert "certificate verify failed" in errors[0]


async def test_status_that_holds_anything_is_read_for_what_it_says(tmp_path: Path) -> None:
    """A number too long for Python in the answer to `agentstatus` is no error, as it is none in an event (P11)."""
    digits = b"7" * 5000
    async with Hostile(tmp_path) as gateway, line_to(gateway) as line:
        gateway.status = b'{"retcode":"0","result":{"agentState":%b}}' % digits
        reply = await line.agent_status(GUID)

    assert result_of(reply.answer) == {"agentState": digits.decode()}


# --- the whole program ----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def adapter_at(
    gateway: Hostile, broker: Broker, directory: Path, **more: object
) -> AsyncIterator[tuple[Peer, str]]:
    """Run the adapter between a hostile gateway and a broker; give who listens there, and the topics' prefix."""
    prefix = f"t{uuid.uuid4().hex[:8]}"
    values = {
        "gateway": {
            "url": gateway.url,
            "ca_file": str(gateway.ca_file),
            "hold": 0.5,
            "timeout": 20,
            "interval": [0.2, 0.2],
            "error_interval": [1.01, 1.01],
        },
        "mqtt": {"url": broker.url(), "topic_prefix": prefix, "client_id": prefix},
        "agents": [{"work_no": "101", "guid": GUID}],
    } | more
    with Peer(broker, [f"{prefix}/#"]) as peer:
        async with running(write(directory, values)):
            yield peer, prefix


def event(number: int, **members: object) -> bytes:
    """Make an event's answer."""
    inside = {"eventType": "AgentEvent_Test", "workNo": "101", "content": {"number": number}, **members}
    return ok(json.dumps({"retcode": "0", "event": inside}).encode())


async def test_gateway_under_another_authority_is_refused_with_one_line(
    tmp_path: Path, shared_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A gateway whose certificate stops to fit is tried again, with one line then and one when it is back."""
    caplog.set_level("INFO")
    async with (
        Hostile(tmp_path / "gateway", event(1)) as gateway,
        adapter_at(gateway, shared_broker, tmp_path) as (peer, prefix),
    ):
        await peer.wait_for(lambda: peer.on(f"{prefix}/101/event"))
        own, other = gateway.tls, Hostile(tmp_path / "other").tls
        await gateway.reopen(other)
        polls = len(gateway.polls)
        await wait_for(peer, f"{prefix}/101/session", lambda session: session.get("attempt", 0) >= 3)
        assert len(gateway.polls) == polls
        gateway.then(event(2))
        await gateway.reopen(own)
        await peer.wait_for(lambda: len(peer.on(f"{prefix}/101/event")) == 2)

    lines = [record.getMessage() for record in caplog.records if record.name == "adapter.outage"]
    assert len([line for line in lines if "certificate verify failed" in line]) == 1
    assert len(lines) == 2
    assert lines[1].startswith("gateway: back after ")


async def test_p5_answer_cut_in_its_body_is_counted_in_health_and_metrics(
    tmp_path: Path, shared_broker: Broker
) -> None:
    """P5: an answer that is lost between gateway and adapter is counted as one that may have held an event."""
    (port,) = free_ports(1)
    async with (
        Hostile(tmp_path / "gateway", cut(event(1)[:-9]), event(2)) as gateway,
        adapter_at(gateway, shared_broker, tmp_path, http={"listen": f"127.0.0.1:{port}"}) as (peer, prefix),
    ):
        await peer.wait_for(lambda: peer.on(f"{prefix}/101/event"))
        metrics = await asyncio.to_thread(_fetched, f"http://127.0.0.1:{port}/metrics")
        health = await wait_for(peer, f"{prefix}/bridge/health", lambda health: health["polls"] > 1)

    assert b"\nccgateway2mqtt_lost_answers_total 1.0\n" in metrics
    assert (health["lostAnswers"], health["unreadable"], health["pollErrors"]) == (1, 0, 1)


def _fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - our own listener
        return bytes(answer.read())


async def test_p5_no_answer_stops_the_polling(
    tmp_path: Path, shared_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """P5, C6: after each kind of bad answer the agent is polled again, later than 1 s, and no GUID is told."""
    caplog.set_level("DEBUG", logger="adapter")
    bad: list[Script] = [
        ok(READY, b"Set-GUID: JSESSIONID=canary-guid-new\0"),
        cut(b"canary-guid of HTTP/0.9\r\n\r\n"),
        ok(b"[" * 100_000),
        ok(_BOMB, b"Content-Encoding: gzip"),
        endless(_ONE_GB, _X),
        ok().replace(b"200 OK", b"302 canary-guid"),
    ]
    at: list[float] = []

    def timed(script: Script) -> Script:
        async def answer(wire: Wire) -> None:
            at.append(asyncio.get_running_loop().time())
            await (wire.send(script) if isinstance(script, bytes) else script(wire))

        return answer

    async with (
        Hostile(tmp_path / "gateway", *map(timed, [*bad, event(1)])) as gateway,
        adapter_at(gateway, shared_broker, tmp_path) as (peer, prefix),
    ):
        await peer.wait_for(lambda: peer.on(f"{prefix}/101/event"))
        told = [got.payload for got in peer.messages]

    pauses = [later - earlier for earlier, later in itertools.pairwise(at)]
    assert len(at) == len(bad) + 1
    assert min(pauses) > 1
    assert b"canary" not in b"".join(told)
    assert "canary" not in caplog.text


async def test_p11_numbers_pass_to_the_digit(tmp_path: Path, shared_broker: Broker) -> None:
    """P11: numbers that no float holds, and a name that comes twice, reach the topic as the gateway wrote them."""
    content = (
        b'{"big":123456789012345678901234567890,"tiny":1e-999,"huge":1e999,"zero":-0,"price":1.10,"exponent":1E+2,'
        b'"twice":1,"twice":2,"half":"\\ud83d"}'
    )
    body = b'{"retcode":"0","event":{"eventType":"AgentEvent_Test","workNo":"101","content":%b,"other":1.10}}' % content
    async with (
        Hostile(tmp_path / "gateway", ok(body)) as gateway,
        adapter_at(gateway, shared_broker, tmp_path) as (peer, prefix),
    ):
        await peer.wait_for(lambda: peer.on(f"{prefix}/101/event"))
        payload = peer.on(f"{prefix}/101/event")[0].payload

    assert content.replace(b"\\ud83d", b"\\ufffd") in payload
    assert b'"other":1.10' in payload


async def test_p5_poll_cut_by_a_hurried_stop_is_not_followed_at_once(tmp_path: Path, shared_broker: Broker) -> None:
    """P5: a second signal cuts the poll under way, and a restart at once polls over 1 s after that all the same."""
    async with staged(tmp_path, shared_broker, hold_s=20.0) as stage:
        async with stage.running() as adapter:
            await stage.polling("101")
            adapter.app.stop()
            adapter.app.stop()
            await asyncio.wait_for(adapter.task, DEADLINE_S)
        async with stage.running():
            await stage.polling("101")
            _, second = stage.simulator.polls("101")

    assert second.pause_s is not None
    assert second.pause_s > 1


async def test_p8_guid_of_an_answer_cut_by_a_hurried_stop_is_kept(tmp_path: Path, shared_broker: Broker) -> None:
    """P8: a second signal cuts a poll whose head has come and whose body has not; the next start has its GUID."""
    begun = b"HTTP/1.1 200 OK\r\nSet-GUID: JSESSIONID=newest\r\nSet-Cookie: elb=7\r\nContent-Length: 9\r\n\r\n{"
    async with staged(tmp_path, shared_broker) as stage, Hostile(tmp_path / "gateway", silence) as gateway:
        section = {"url": gateway.url, "ca_file": str(gateway.ca_file), "hold": 20, "timeout": 30}
        async with stage.running(gateway=section) as adapter:
            await gateway.wait_for(lambda: gateway.polls)
            reading = adapter.app._fleet.pollers["101"]._session._line._transport._wire.answer  # type: ignore[union-attr] # it polls
            await gateway.wires[-1].send(begun)
            await until(lambda: reading._body)
            adapter.app.stop()
            adapter.app.stop()
            await asyncio.wait_for(adapter.task, DEADLINE_S)
        async with stage.running(gateway=section):
            await gateway.wait_for(lambda: len(gateway.polls) > 1)

    assert b"Guid: newest\r\n" in gateway.polls[1]
    assert b"Cookie: elb=7\r\n" in gateway.polls[1]


async def test_p5_poll_cut_by_a_kill_is_not_followed_at_once(tmp_path: Path, shared_broker: Broker) -> None:
    """P5: a poll that died with its process is followed, by a start at once, over 1 s later all the same."""
    async with staged(tmp_path, shared_broker, hold_s=20.0) as stage:
        async with program("run", "-c", write(tmp_path, stage.values())) as killed:
            await stage.polling("101")
            killed.send(signal.SIGKILL)
            await killed.process.wait()
        async with stage.running():
            await stage.polling("101")
            _, second = stage.simulator.polls("101")

    assert second.pause_s is not None
    assert second.pause_s > 1


async def test_other_work_number_is_told_in_few_words(tmp_path: Path, shared_broker: Broker) -> None:
    """P11: an event that names another agent, by half a megabyte, is published unchanged, and said in a short line."""
    name = "x" * 500_000
    async with (
        Hostile(tmp_path / "gateway", event(1, workNo=name)) as gateway,
        adapter_at(gateway, shared_broker, tmp_path) as (peer, prefix),
    ):
        told = await wait_for(peer, f"{prefix}/bridge/log", lambda line: "names agent" in line["message"])
        published = await wait_for(peer, f"{prefix}/101/event", lambda payload: payload["seq"] == 1)

    assert len(told["message"]) < 200
    assert published["workNo"] == name
