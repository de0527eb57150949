"""The port to the gateway alone: what it sends, and what it makes of every kind of answer, over real HTTPS."""

import asyncio
import contextlib
import gzip
import json
import zlib
from collections.abc import AsyncIterator

import pytest

from adapter.answer import HEAD_BYTES, MAX_ANSWER_BYTES
from adapter.errors import GatewayConnectionError, GatewayProtocolError
from adapter.gateway import is_guid, result_of
from adapter.simulator import Fault, Simulator, faults
from tests.broker_support import free_ports
from tests.gateway_support import Relay, line_to
from tests.hostile_support import hurried

EMPTY = b'{"message":"","retcode":"0"}'


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """Simulate a gateway that answers soon; these tests poll as fast as they can, so nothing is said of that."""
    async with Simulator(agents=["101", "102"], hold_s=0.05, strict=False) as made:
        yield made


def padded(size: int) -> bytes:
    """Make a good answer of exactly `size` bytes."""
    text = b'{"retcode":"0","message":"' + b"x" * size
    return text[: size - 2] + b'"}'


# --- what is sent ---------------------------------------------------------------------------------------------


async def test_p1_poll_is_a_get_with_the_documented_headers(simulator: Simulator) -> None:
    """P1: GET, Content-Type, Guid, and no coding of the answer asked for; nothing of the HTTP library's own."""
    async with line_to(simulator) as line:
        await line.poll(simulator.guid("101"))

    (poll,) = simulator.polls("101")
    assert poll.target == "/agentgateway/resource/agentevent/101"
    assert poll.headers.pop("host").startswith("127.0.0.1:")
    assert poll.headers == {
        "content-type": "application/json; charset=UTF-8",
        "accept-encoding": "identity",
        "user-agent": "ccgateway2mqtt",
        "guid": simulator.guid("101"),
    }


@pytest.mark.parametrize(
    ("call_data", "query"),
    [
        ("a b", "a%20b"),
        ("a+b/c?d=e&f#g", "a%2Bb%2Fc%3Fd%3De%26f%23g"),
        ("100%", "100%25"),
        ("客户 42", "%E5%AE%A2%E6%88%B7%2042"),
        ("%41", "%2541"),
        ("😀", "%F0%9F%98%80"),
    ],
)
async def test_p2_call_data_is_percent_encoded(simulator: Simulator, call_data: str, query: str) -> None:
    """P2: call data is UTF-8, percent-encoded with no safe characters, and arrives as it was."""
    async with line_to(simulator) as line:
        await line.poll(simulator.guid("101"), call_data)

    (poll,) = simulator.polls("101")
    assert poll.target.partition("?")[2] == f"calldata={query}"
    assert poll.calldata == call_data


async def test_status_is_asked_for_without_touching_the_queue(simulator: Simulator) -> None:
    """`agentstatus` gives a result, and an answer without one gives none; `syncagentinfo` is never called."""
    async with line_to(simulator) as line:
        status = await line.agent_status(simulator.guid("101"))
        poll = await line.poll(simulator.guid("101"))

    assert result_of(status.answer) == {"agentState": 4, "isWorking": False}
    assert result_of(poll.answer) is None
    assert [call.action for call in simulator.requests] == ["agentstatus"]


# --- answers that are read ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        faults.chunked(),
        faults.close_delimited(),
        faults.slow(2000),
        faults.chunked() | faults.slow(4000),
        faults.headers({"Content-Type": "text/html"}),
        faults.headers({"X-Long": "x" * 8000}),
    ],
    ids=["chunked", "close", "slow", "slow chunks", "content type", "long header"],
)
async def test_answer_is_read_however_it_is_sent(simulator: Simulator, fault: Fault) -> None:
    """Chunked, ended by closing, a few bytes at a time, under another content type: the event is there."""
    simulator.script("101", fault)
    event = simulator.emit_sample("101", "AgentEvent_Ringing")
    async with line_to(simulator) as line:
        reply = await line.poll(simulator.guid("101"))

    assert [found.event_type for found in reply.answer.events] == ["AgentEvent_Ringing"]
    assert reply.answer.events[0].content == event["content"]


async def test_interim_answers_are_passed_over(simulator: Simulator) -> None:
    """1xx answers before the real one change nothing."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nSet-GUID: JSESSIONID=no\r\n\r\n"
    final = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(EMPTY), EMPTY)
    simulator.script("101", faults.raw(interim + final))
    async with line_to(simulator) as line:
        reply = await line.poll(simulator.guid("101"))

        assert reply.answer.retcode == "0"
        assert line.new_guid is None


async def test_p11_declared_charset_is_honoured(simulator: Simulator) -> None:
    """P11: a body in GBK is read as such where its header says so."""
    body = '{"retcode":"0","message":"没有权限"}'.encode("gbk")
    simulator.script("101", faults.garbage(body) | faults.headers({"Content-Type": "text/plain;charset=GBK"}))
    async with line_to(simulator) as line:
        reply = await line.poll(simulator.guid("101"))

    assert reply.answer.message == "没有权限"


@pytest.mark.parametrize(
    ("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("X-GZIP", gzip.compress)]
)
async def test_packed_answer_is_unpacked(simulator: Simulator, coding: str, pack: "type[bytes]") -> None:
    """An answer that comes packed, although that was not asked for, is read all the same."""
    body = pack(b'{"retcode":"0","event":{"eventType":"AgentState_Ready","workNo":"101","content":null}}')
    simulator.script("101", faults.garbage(body, readable=True) | faults.headers({"Content-Encoding": coding}))
    async with line_to(simulator) as line:
        reply = await line.poll(simulator.guid("101"))

    assert [event.event_type for event in reply.answer.events] == ["AgentState_Ready"]


# --- answers that cannot be read ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "header", "reason"),
    [
        (b"", "", "truncated"),
        (b"<html>busy</html>", "", "malformed"),
        (b'{"retcode":"0","event":' + b'{"a":' * 70 + b"1" + b"}" * 70 + b"}", "", "nested deeper than 64"),
        (padded(MAX_ANSWER_BYTES + 1), "", "over 1048576 bytes"),
        (gzip.compress(padded(30 * MAX_ANSWER_BYTES)), "gzip", "over 1048576 bytes"),
        (b"not packed", "gzip", "packed as gzip, and damaged"),
    ],
    ids=["empty", "html", "deep", "long", "bomb", "damaged"],
)
async def test_p14_unreadable_answer_keeps_its_head(
    simulator: Simulator, body: bytes, header: str, reason: str
) -> None:
    """P14: an answer that cannot be read is an error of its own, which keeps its first 4 KiB."""
    fault = faults.garbage(body)
    if header:
        fault |= faults.headers({"Content-Encoding": header})
    simulator.script("101", fault)
    async with line_to(simulator) as line:
        with pytest.raises(GatewayProtocolError, match=reason) as caught:
            await line.poll(simulator.guid("101"))
        following = await line.poll(simulator.guid("101"))

    assert len(caught.value.head) <= HEAD_BYTES
    assert caught.value.size_bytes <= MAX_ANSWER_BYTES + 128 * 1024
    if header != "gzip":
        assert caught.value.head == body[:HEAD_BYTES]
    assert following.answer.retcode == "0"


async def test_p14_longest_answer_is_read(simulator: Simulator) -> None:
    """P14: an answer of exactly 1 MiB can be read."""
    simulator.script("101", faults.garbage(padded(MAX_ANSWER_BYTES)))
    async with line_to(simulator) as line:
        reply = await line.poll(simulator.guid("101"))

    assert reply.answer.retcode == "0"


async def test_p14_endless_answer_is_not_read_to_its_end(simulator: Simulator) -> None:
    """P14: of an answer that would be far longer, little more than 1 MiB is read and held."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"
    simulator.script("101", faults.raw(head + b"x" * (3 * MAX_ANSWER_BYTES)))
    async with line_to(simulator) as line:
        with pytest.raises(GatewayProtocolError, match="over 1048576 bytes") as caught:
            await line.poll(simulator.guid("101"))

    assert caught.value.size_bytes <= MAX_ANSWER_BYTES + 128 * 1024


# --- no answer, or another status -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (faults.hang(), "no answer within 0.3 s"),
        (faults.slow(60), "no answer within 0.3 s"),
        (faults.drop(), "connection lost"),
        (faults.drop(0), "connection lost"),
        (faults.drop(20), "connection lost"),
        (faults.drop(100), "connection lost"),
        (faults.chunked() | faults.drop(120), "connection lost"),
        (faults.raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "connection lost"),
        (faults.raw(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n{}"), "connection lost"),
        (faults.headers({"X-Endless": "x" * 200_000}), "connection lost"),
    ],
    ids=["hang", "slow", "drop", "drop 0", "half a line", "half a body", "half a chunk", "ssh", "length", "header"],
)
async def test_p5_answer_that_does_not_come_whole_is_lost(simulator: Simulator, fault: Fault, reason: str) -> None:
    """P5: no answer within `timeout`, or part of one: an error that says it may have held an event."""
    simulator.script("101", fault)
    async with line_to(simulator) as line:
        await line.agent_status(simulator.guid("101"))
        with hurried(line, 0.3), pytest.raises(GatewayConnectionError, match=reason) as caught:
            await line.poll(simulator.guid("101"))
        await simulator.wait_for(lambda: not simulator.polling("101"))
        following = await line.poll(simulator.guid("101"))

    assert caught.value.answer_lost
    assert caught.value.status is None
    assert following.answer.retcode == "0"


@pytest.mark.parametrize("status", [201, 204, 206, 301, 302, 307, 400, 401, 404, 407, 429, 500, 502, 503, 999])
async def test_p5_any_other_status_is_a_failure(simulator: Simulator, status: int) -> None:
    """P5: any status but 200 is a failure, whatever its body says; a redirect is not followed; nothing was lost."""
    body = b"" if status == 204 else b'{"retcode":"0","event":{"eventType":"AgentState_Ready"}}'
    fault = faults.status(status, body) | faults.headers({"Location": "https://[bad"})
    simulator.script("101", fault)
    async with line_to(simulator) as line:
        with pytest.raises(GatewayConnectionError, match=f"HTTP status {status}") as caught:
            await line.poll(simulator.guid("101"))

    assert caught.value.status == status
    assert not caught.value.answer_lost
    assert len(simulator.polls("101")) == 1
    assert simulator.requests == []


async def test_gateway_that_is_not_there_lost_nothing(simulator: Simulator) -> None:
    """A refused connection is told apart from a lost answer: no request was sent."""
    (port,) = free_ports(1)
    async with line_to(simulator, url=f"https://127.0.0.1:{port}/agentgateway") as line:
        with pytest.raises(GatewayConnectionError, match="cannot connect: ") as caught:
            await line.poll("guid")

    assert not caught.value.answer_lost


async def test_silent_host_is_given_up_before_the_timeout(simulator: Simulator) -> None:
    """A host that accepts and then says nothing ends the TLS handshake in time to tell it from a lost answer."""
    ended = asyncio.Event()

    async def silence(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.close()

    server = await asyncio.start_server(silence, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with line_to(simulator, url=f"https://127.0.0.1:{port}/agentgateway", timeout_s=0.5) as line:
        with pytest.raises(GatewayConnectionError, match="cannot connect: ") as caught:
            await line.poll("guid")
    ended.set()
    server.close()
    await server.wait_closed()

    assert not caught.value.answer_lost


async def test_broken_tls_is_a_lost_connection(simulator: Simulator) -> None:
    """What breaks TLS in the middle of a poll is an error of ours, and the next poll makes a new connection."""
    async with Relay(simulator) as relay, line_to(simulator, url=relay.url) as line:
        simulator.script("101", faults.hang())
        poll = asyncio.create_task(line.poll(simulator.guid("101")))
        await simulator.wait_for(lambda: simulator.polling("101"))
        relay.spoil()
        with pytest.raises(GatewayConnectionError, match="connection lost: ") as caught:
            await poll
        following = await line.poll(simulator.guid("101"))

    assert caught.value.answer_lost
    assert following.answer.retcode == "0"


# --- connections ----------------------------------------------------------------------------------------------


async def test_connection_is_used_again(simulator: Simulator) -> None:
    """Polls of an agent go over one connection, after a failure with an HTTP status too."""
    simulator.script("101", faults.NONE, faults.status(503, b"busy"), faults.chunked())
    async with line_to(simulator) as line:
        for _ in range(4):
            try:
                await line.poll(simulator.guid("101"))
            except GatewayConnectionError as error:
                assert error.status == 503  # noqa: PT017 - one of four polls fails, and the loop goes on

    assert len({poll.connection for poll in simulator.polls("101")}) == 1


async def test_connection_closed_while_idle_loses_nothing(simulator: Simulator) -> None:
    """A connection that the gateway closed between two polls is replaced without an error."""
    async with Relay(simulator) as relay, line_to(simulator, url=relay.url) as line:
        await line.poll(simulator.guid("101"))
        await simulator.go_away()
        await relay.ended.wait()
        await simulator.come_back()
        simulator.emit_sample("101", "AgentState_Ready")
        reply = await line.poll(simulator.guid("101"))

    assert [event.event_type for event in reply.answer.events] == ["AgentState_Ready"]
    assert relay.accepted == 2


@pytest.mark.parametrize("certificate", ["wrong_host", "expired"])
async def test_certificate_must_fit(certificate: str) -> None:
    """The certificate of another host, or an expired one, is refused with a reason, unless `verify` is false."""
    async with Simulator(agents=["101"], hold_s=0.05, certificate=certificate) as simulator:  # type: ignore[arg-type] # one of its names
        async with line_to(simulator) as line:
            with pytest.raises(GatewayConnectionError, match="certificate verify failed") as caught:
                await line.poll(simulator.guid("101"))
        async with line_to(simulator, verify=False) as line:
            reply = await line.poll(simulator.guid("101"))

    assert not caught.value.answer_lost
    assert reply.answer.retcode == "0"


async def test_authority_must_be_known(simulator: Simulator) -> None:
    """Without `ca_file` the system's trust decides, which knows nothing of the simulator."""
    async with line_to(simulator, ca_file=None) as line:
        with pytest.raises(GatewayConnectionError, match="certificate verify failed"):
            await line.poll(simulator.guid("101"))


# --- headers of the answer ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "guid"),
    [
        ("JSESSIONID=abc-1.AgentGateway0", "abc-1.AgentGateway0"),
        ("JSESSIONID=abc; Path=/; HttpOnly", "abc"),
        ("JSESSIONID=", None),
        ("JSESSIONID=; Path=/", None),
        ("abc", None),
        ("JSESSIONID=a b", None),
        ("JSESSIONID=\u00e9", None),
        ("JSESSIONID=a\tb", None),
        ("JSESSIONID=" + "x" * 1025, None),
    ],
)
async def test_p8_new_guid_is_read(simulator: Simulator, header: str, guid: str | None) -> None:
    """P8: `Set-GUID` is read; what could not be sent back as a header is as good as none."""
    simulator.script("101", faults.headers({"Set-GUID": header}))
    async with line_to(simulator) as line:
        await line.poll(simulator.guid("101"))

        assert line.new_guid == guid
        await line.poll(simulator.guid("101"))
        assert line.new_guid is None


@pytest.mark.parametrize(
    "fault",
    [faults.status(500), faults.garbage(b"junk"), faults.garbage(EMPTY) | faults.drop(140), faults.retcode("000-004")],
    ids=["status", "unreadable", "cut", "retcode"],
)
async def test_p8_new_guid_is_taken_from_any_answer(simulator: Simulator, fault: Fault) -> None:
    """P8: any answer may bring a new GUID, also one that fails otherwise."""
    simulator.script("101", fault | faults.headers({"Set-GUID": "JSESSIONID=new"}))
    async with line_to(simulator) as line:
        with contextlib.suppress(GatewayConnectionError, GatewayProtocolError):
            await line.poll(simulator.guid("101"))

        assert line.new_guid == "new"


async def test_p9_cookies_are_per_agent(simulator: Simulator) -> None:
    """P9: a cookie goes back with the next request of the agent that got it, and with no other's."""
    simulator.script(
        "101",
        faults.headers({"Set-Cookie": "elb=one; Path=/; Secure"}),
        faults.status(503) | faults.headers({"Set-Cookie": "node=7"}),
        faults.headers({"Set-Cookie": "elb=two"}),
        faults.headers({"Set-Cookie": "node=; Max-Age=0"}),
    )
    async with line_to(simulator, cookies={"stored": "yes"}) as line, line_to(simulator, "102") as other:
        for _ in range(5):
            with contextlib.suppress(GatewayConnectionError):
                await line.poll(simulator.guid("101"))
            await other.poll(simulator.guid("102"))

        assert line.cookies == {"stored": "yes", "elb": "two"}
    sent = [poll.headers["cookie"] for poll in simulator.polls("101")]
    assert sent == [
        "stored=yes",
        "stored=yes; elb=one",
        "stored=yes; elb=one; node=7",
        "stored=yes; node=7; elb=two",
        "stored=yes; elb=two",
    ]
    assert not any("cookie" in poll.headers for poll in simulator.polls("102"))


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        ("a=1", {"a": "1", "b": "2"}),
        ("a=; Expires=Thu, 01-Jan-1970 00:00:10 GMT", {"b": "2"}),
        ("a=; expires=Thu, 01 Jan 1970 00:00:00 GMT", {"b": "2"}),
        ("a=1; Expires=Fri, 31 Dec 2999 23:59:59 GMT", {"a": "1", "b": "2"}),
        ("a=1; Expires=Fri, 31 Dec 99999 23:59:59 GMT", {"a": "1", "b": "2"}),
        ("a=1; Expires=soon", {"a": "1", "b": "2"}),
        ("a=1; Max-Age=-1", {"b": "2"}),
        ("a=1; Max-Age=60", {"a": "1", "b": "2"}),
        ("a", {"a": "0", "b": "2"}),
        ("=1", {"a": "0", "b": "2"}),
        ("a=\u00e9", {"a": "0", "b": "2"}),
        ("a=1\t2", {"a": "0", "b": "2"}),
        ("a=" + "x" * 4096, {"a": "0", "b": "2"}),
    ],
)
async def test_p9_cookie_ends_or_is_refused(simulator: Simulator, header: str, kept: dict[str, str]) -> None:
    """P9: a cookie that the gateway ends is forgotten, and one that could not be sent back is never taken."""
    simulator.script("101", faults.headers({"Set-Cookie": header}))
    async with line_to(simulator, cookies={"a": "0", "b": "2"}) as line:
        await line.poll(simulator.guid("101"))

        assert line.cookies == kept


async def test_p9_cookies_have_a_limit(simulator: Simulator) -> None:
    """P9: a gateway that makes up a name for each answer does not fill the head of the requests."""
    simulator.script("101", *(faults.headers({"Set-Cookie": f"c{number}=x"}) for number in range(20)))
    async with line_to(simulator) as line:
        for _ in range(20):
            await line.poll(simulator.guid("101"))

        assert list(line.cookies) == [f"c{number}" for number in range(4, 20)]


# --- sign-in --------------------------------------------------------------------------------------------------


async def test_sign_in_and_out(simulator: Simulator) -> None:
    """A sign-in is a PUT with a JSON body, without a Guid, and brings one; a sign-out is a DELETE with it."""
    body = {"password": "pw-101", "phonenum": "8101", "status": "4"}
    async with line_to(simulator) as line:
        refused = await line.sign_in(body, force=False)
        forced = await line.sign_in(body, force=True)
        guid = line.new_guid
        gone = await line.sign_out(guid or "")

    assert (refused.answer.retcode, forced.answer.retcode, gone.answer.retcode) == ("100-002", "0", "0")
    assert guid is not None
    assert [(call.method, call.action) for call in simulator.requests] == [
        ("PUT", "login"),
        ("PUT", "forcelogin"),
        ("DELETE", "logout"),
    ]
    assert json.loads(simulator.requests[0].body) == body
    assert "guid" not in simulator.requests[0].headers
    assert simulator.requests[2].headers["guid"] == guid


def test_guid_can_travel_as_a_header() -> None:
    """A GUID is printable ASCII without blanks: nothing that could break out of a header."""
    assert is_guid("279fe21d-2caa-4437-84c3-ab9e9dae20f5.AgentGateway0")
    assert not any(is_guid(text) for text in ("", "a b", "a\r\nX: y", "a\n", "a\0", "é", "a;b", "x" * 1025))


async def test_plain_http_where_it_is_allowed(simulator: Simulator) -> None:
    """An `http://` address is spoken to without TLS, for a gateway behind one's own TLS terminator."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(EMPTY), EMPTY))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with line_to(simulator, url=f"http://127.0.0.1:{port}/agentgateway", allow_http=True) as line:
        reply = await line.poll("guid")
    server.close()
    await server.wait_closed()

    assert reply.answer.retcode == "0"
