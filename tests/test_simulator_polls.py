"""The simulator's poll: what it holds, hands out, loses, refuses and notes, seen with curl and raw streams."""

import asyncio
import time

import pytest

from adapter.simulator import SimAgent, Simulator, faults
from tests.simulator_support import (
    CONTENT_TYPE,
    curl,
    kinds,
    poll,
    poll_headers,
    poll_url,
    raw_connection,
    raw_poll,
    read_answer,
)

EMPTY = b'{"message":"","retcode":"0"}'


async def test_a_poll_without_event_is_held_and_then_empty() -> None:
    """P3: the gateway answers after the hold, to the byte as clients have seen it."""
    async with Simulator(agents=["101"], hold_s=0.5) as simulator:
        began_at = time.monotonic()
        reply = await poll(simulator)

        assert time.monotonic() - began_at >= 0.5
        assert reply.body == EMPTY
        assert [record.outcome for record in simulator.polls("101")] == ["empty"]
        assert not simulator.violations


async def test_a_poll_is_answered_at_once_where_waiting_is_off() -> None:
    """AGENT_POLL_WAIT_FLAG off: an empty answer comes without a hold."""
    async with Simulator(agents=["101"], hold_s=60, poll_wait=False) as simulator:
        reply = await poll(simulator)

        assert reply.body == EMPTY


async def test_queued_events_come_one_at_a_time_in_order() -> None:
    """A queue is kept while nobody polls, and an answer brings one event of it."""
    async with Simulator(agents=["101", "102"], hold_s=60) as simulator:
        first = simulator.emit_sample("101", "AgentEvent_Ringing", {"callid": "7-1"})
        simulator.emit("101", {"eventType": "Odd", "n": 1.50})
        simulator.emit("101", b'{"eventType":"Raw","n":1.50}')
        assert simulator.queued("101") == 3

        replies = [await poll(simulator) for _ in range(3)]

        assert [reply.json["event"] for reply in replies[:2]] == [first, {"eventType": "Odd", "n": 1.5}]
        assert replies[2].body == b'{"message":"","retcode":"0","event":{"eventType":"Raw","n":1.50}}'
        assert simulator.queued("101") == 0
        assert simulator.handed_out("101")[0] == first
        assert simulator.lost("101") == []
        assert simulator.polls("102") == []


async def test_an_event_ends_the_hold() -> None:
    """P3: the gateway answers immediately when an event comes during the hold."""
    async with Simulator(agents=["101"], hold_s=60) as simulator:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(poll(simulator))
            await simulator.wait_for(lambda: simulator.polling("101"))
            simulator.emit_sample("101", "AgentState_Ready")

        assert task.result().json["event"]["eventType"] == "AgentState_Ready"


async def test_the_header_guid_is_case_insensitive_and_checked() -> None:
    """A wrong GUID, or none, gets 000-003 in a 200 answer, and is a violation."""
    async with Simulator(agents=["101"], hold_s=0.1) as simulator:
        url = poll_url(simulator, "101")
        good = await curl(simulator, "-H", f"Content-Type: {CONTENT_TYPE}", "-H", f"gUID: {simulator.guid('101')}", url)
        wrong = await poll(simulator, guid="made-up")
        none = await curl(simulator, "-H", f"Content-Type: {CONTENT_TYPE}", url)

        assert (good.retcode, wrong.retcode, none.retcode) == ("0", "000-003", "000-003")
        assert (wrong.status, none.status) == (200, 200)
        assert [kind for kind in kinds(simulator) if kind != "pause"] == ["guid", "guid"]


async def test_a_poll_of_a_signed_out_agent_gets_100_006() -> None:
    """Nothing is polled after a sign-out, and polling on with the refused GUID is a violation (P6)."""
    async with Simulator(agents=["101"], hold_s=60) as simulator:
        guid = simulator.guid("101")
        async with asyncio.TaskGroup() as group:
            held = group.create_task(poll(simulator))
            await simulator.wait_for(lambda: simulator.polling("101"))
            simulator.sign_out("101")
        later = await poll(simulator, guid=guid)

        assert (held.result().retcode, later.retcode) == ("100-006", "100-006")
        assert "after_end" in kinds(simulator)
        assert not simulator.signed_in("101")


async def test_a_new_sign_in_elsewhere_ends_the_old_session() -> None:
    """The polls held with the old GUID are refused; the new GUID is good."""
    async with Simulator(agents=["101"], hold_s=60) as simulator:
        async with asyncio.TaskGroup() as group:
            held = group.create_task(poll(simulator))
            await simulator.wait_for(lambda: simulator.polling("101"))
            guid = simulator.sign_in("101")
        simulator.emit_sample("101", "AgentState_Ready")
        reply = await poll(simulator, guid=guid)

        assert (held.result().retcode, reply.retcode) == ("000-003", "0")
        assert set(kinds(simulator)) <= {"pause"}


async def test_a_new_sign_in_forgets_what_was_refused_before() -> None:
    """A GUID of an older session is refused again, but there was a sign-in since."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        guid = simulator.guid("101")
        simulator.sign_out("101")
        await poll(simulator, guid=guid)
        simulator.sign_in("101")
        reply = await poll(simulator, guid=guid)

        assert reply.retcode == "000-003"
        assert not simulator.violations


async def test_the_shutdown_event_ends_the_session_once_it_is_fetched() -> None:
    """P13: events before it still come, it comes, then there is no session; one more poll is a violation."""
    async with Simulator(agents=["101"], hold_s=60) as simulator:
        guid = simulator.guid("101")
        simulator.emit_sample("101", "AgentState_Work")
        simulator.sign_out("101", notify=True)
        types = [(await poll(simulator, guid=guid)).json["event"]["eventType"] for _ in range(2)]
        after = await poll(simulator, guid=guid)

        assert types == ["AgentState_Work", "AgentOther_ShutdownService"]
        assert after.retcode == "100-006"
        assert "after_end" in kinds(simulator)


async def test_a_dynamic_guid_rotates_and_the_old_one_lives_on_until_its_timeout() -> None:
    """AUTHMODE 2: Set-GUID after GUIDINTERVAL; who missed it gets it again, until GUIDTIMEOUT."""
    async with Simulator(agents=["101"], hold_s=0.01, guid_interval_s=0.4, guid_timeout_s=5.0) as simulator:
        old = simulator.guid("101")
        early = await poll(simulator)
        await asyncio.sleep(0.5)
        rotated = await poll(simulator, guid=old)
        missed = await poll(simulator, guid=old)
        await simulator.wait_for(lambda: time.monotonic() - simulator.polls("101")[0].started_at > 5.1)
        expired = await poll(simulator, guid=old)

        assert early.guid is None
        assert rotated.guid is not None
        assert rotated.guid != old
        assert missed.retcode == "0"
        assert missed.guid is not None
        assert expired.retcode == "000-003"
        # The GUID was a real one: too old, not made up.
        assert "guid" not in kinds(simulator)


async def test_a_static_guid_stays() -> None:
    """AUTHMODE 1: no Set-GUID, and no timeout."""
    async with Simulator(
        agents=["101"], hold_s=0.01, auth_mode="static", guid_interval_s=0, guid_timeout_s=0
    ) as simulator:
        replies = [await poll(simulator) for _ in range(2)]

        assert [(reply.retcode, reply.guid) for reply in replies] == [("0", None), ("0", None)]


async def test_an_old_guid_on_the_connection_that_brought_a_new_one_is_noted() -> None:
    """P8: the new GUID is to be used from the very next request on."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator, raw_connection(simulator) as (reader, writer):
        old = simulator.guid("101")
        simulator.script("101", faults.rotate())
        for _ in range(2):
            writer.write(raw_poll(simulator, guid=old))
            await read_answer(reader)
        writer.write(raw_poll(simulator))
        await read_answer(reader)

        assert kinds(simulator).count("old_guid") == 1
        assert len({record.connection for record in simulator.polls("101")}) == 1


async def test_expired_guids_are_refused() -> None:
    """`expire_guid` leaves the agent signed in, but no GUID is good any more."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        simulator.expire_guid("101")
        reply = await poll(simulator)

        assert reply.retcode == "000-003"
        assert simulator.signed_in("101")
        assert not simulator.violations


async def test_a_second_poll_at_once_is_refused() -> None:
    """P1: at most one poll of an agent is under way; the first one goes on."""
    async with Simulator(agents=["101"], hold_s=60) as simulator:
        async with asyncio.TaskGroup() as group:
            first = group.create_task(poll(simulator))
            await simulator.wait_for(lambda: simulator.polling("101"))
            second = await poll(simulator)
            simulator.emit_sample("101", "AgentState_Ready")

        assert second.retcode == "000-007"
        assert first.result().retcode == "0"
        assert kinds(simulator) == ["second_poll"]


async def test_short_pauses_are_noted_and_measured() -> None:
    """P4: less than 200 ms after a 200 answer is a violation, on one connection that is kept alive."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        url = poll_url(simulator, "101")
        await curl(simulator, *poll_headers(simulator.guid("101")), url, url)
        await asyncio.sleep(0.25)
        await poll(simulator)

        assert kinds(simulator) == ["pause"]
        first, second, third = simulator.polls("101")
        assert first.connection == second.connection != third.connection
        assert first.pause_s is None
        statistics = simulator.pauses("101")
        assert statistics is not None
        assert statistics == simulator.pauses()
        assert statistics.count == 2
        assert statistics.min_s < 0.2
        assert statistics.max_s >= 0.25
        assert statistics.min_s - 0.001 <= statistics.p50_s <= statistics.p99_s <= statistics.max_s
        assert second.pause_s == statistics.min_s


async def test_pauses_are_none_before_there_are_any() -> None:
    """Statistics of nothing are nothing; a lean simulator has none for a single agent."""
    async with Simulator(agents=["101"], hold_s=0.01, lean=True) as simulator:
        assert simulator.pauses() is None
        for _ in range(2):
            await poll(simulator)
            await asyncio.sleep(0.25)

        assert simulator.pauses("101") is None
        assert (simulator.polls("101"), simulator.requests, simulator.poll_count) == ([], [], 2)
        statistics = simulator.pauses()
        assert statistics is not None
        assert statistics.count == 1


@pytest.mark.parametrize(
    "fault",
    [faults.status(503), faults.garbage(b"<html>"), faults.drop(), faults.drop(20), faults.raw(b"what?\r\n\r\n")],
)
async def test_a_pause_of_a_second_or_less_after_a_failure_is_noted(fault: faults.Fault) -> None:
    """P5: after a failure the next poll comes more than 1 s later; this is not a pause in P4's statistics."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        simulator.script("101", fault)
        await poll(simulator)
        await asyncio.sleep(0.3)
        await poll(simulator)

        assert kinds(simulator) == ["error_pause"]
        assert simulator.pauses() is None


async def test_a_long_pause_after_a_failure_is_good() -> None:
    """P5: over a second is no violation."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        simulator.script("101", faults.status(503))
        await poll(simulator)
        await asyncio.sleep(1.05)
        await poll(simulator)

        assert not simulator.violations


async def test_an_event_on_a_cut_connection_is_lost_and_counted() -> None:
    """A poll whose client left stays held and takes the next event with it; the one after comes."""
    async with Simulator(agents=["101"], hold_s=60) as simulator:
        async with raw_connection(simulator) as (_, writer):
            writer.write(raw_poll(simulator))
            await simulator.wait_for(lambda: simulator.polling("101"))
        await simulator.wait_for(lambda: not simulator.polling("101"))
        lost = simulator.emit_sample("101", "AgentState_Busy")
        await simulator.wait_for(lambda: simulator.lost("101"))
        simulator.emit_sample("101", "AgentState_Ready")
        reply = await poll(simulator)

        assert simulator.lost("101") == [lost]
        assert reply.json["event"]["eventType"] == "AgentState_Ready"
        assert [record.outcome for record in simulator.polls("101")] == ["lost", "event"]
        assert kinds(simulator) == ["left_pause"]


async def test_a_hold_that_ends_on_a_cut_connection_loses_nothing() -> None:
    """The answer without an event that nobody reads is noted as cut."""
    async with Simulator(agents=["101"], hold_s=0.3) as simulator:
        async with raw_connection(simulator) as (_, writer):
            writer.write(raw_poll(simulator))
            await simulator.wait_for(lambda: simulator.polling("101"))
        await simulator.wait_for(lambda: simulator.polls("101")[0].outcome == "cut")

        assert simulator.lost("101") == []


async def test_the_simulator_can_cut_a_held_poll() -> None:
    """`cut` ends the connection without an answer; no event is taken."""
    async with Simulator(agents=["101", "102"], hold_s=60) as simulator:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(poll(simulator))
            await simulator.wait_for(lambda: simulator.polling("101"))
            simulator.cut("102")
            simulator.cut("101")

        assert task.result().exit_code != 0


async def test_an_agent_is_signed_out_after_too_long_without_a_poll() -> None:
    """MAXTIME: the poll is the heartbeat; while one is held, its agent stays."""
    async with Simulator(agents=["101"], hold_s=0.8, poll_max_time_s=0.5) as simulator:
        simulator.emit_sample("101", "AgentState_Ready")
        await poll(simulator)
        guid = simulator.guid("101")
        held = await poll(simulator)
        await simulator.wait_for(lambda: not simulator.signed_in("101"))
        late = await poll(simulator, guid=guid)

        assert (held.retcode, late.retcode) == ("0", "100-006")
        assert simulator.guid("101") == ""


async def test_call_data_is_decoded() -> None:
    """P2: UTF-8, percent-encoded; kept with its time."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        reply = await poll(simulator, query="?calldata=order%204711%20%F0%9F%93%A6")

        assert reply.retcode == "0"
        assert [value for _, value in simulator.calldata("101")] == ["order 4711 📦"]
        assert simulator.polls("101")[0].calldata == "order 4711 📦"
        assert not simulator.violations


@pytest.mark.parametrize(
    ("query", "kind"),
    [
        ("?calldata=a+b", "plus"),
        ("?calldata=%FF", "calldata"),
        ("?calldata=a%2", "calldata"),
        ("?calldata=a,b", "calldata"),
        ("?calldata=", "query"),
        ("?time=1", "query"),
        ("?", "query"),
    ],
)
async def test_a_query_that_the_document_does_not_know_is_refused(query: str, kind: str) -> None:
    """P2: 000-002, a violation of its kind, and no event is taken."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        simulator.emit_sample("101", "AgentState_Ready")
        reply = await poll(simulator, query=query)

        assert reply.retcode == "000-002"
        assert kinds(simulator) == [kind]
        assert simulator.queued("101") == 1


async def test_only_get_is_allowed() -> None:
    """P1: another method gets 405 and 000-001."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        reply = await poll(simulator, "101", "-X", "POST", "-d", "{}")

        assert (reply.status, reply.retcode, reply.headers["allow"]) == (405, "000-001", "GET")
        assert kinds(simulator) == ["method"]


async def test_headers_are_checked() -> None:
    """P1: Content-Type is wanted, and no coding of answers but identity."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        url = poll_url(simulator, "101")
        guid = f"Guid: {simulator.guid('101')}"
        await curl(simulator, "-H", guid, "-H", "Accept-Encoding: identity", url)
        await asyncio.sleep(0.25)
        await curl(simulator, "-H", guid, "-H", "Content-Type: text/plain", "-H", "Accept-Encoding: gzip", url)

        assert kinds(simulator) == ["content_type", "content_type", "accept_encoding"]


async def test_what_is_unknown_is_said() -> None:
    """An unknown agent's poll gets 100-006, an unknown path 404."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        nobody = await curl(simulator, *poll_headers("x"), poll_url(simulator, "999"))
        nowhere = await curl(simulator, simulator.url + "/resource/nothing")

        assert (nobody.retcode, nowhere.status) == ("100-006", 404)
        assert kinds(simulator) == ["unknown_agent", "unknown_request"]


async def test_violations_are_not_noted_where_that_is_off() -> None:
    """`strict=False` still refuses, but keeps no book."""
    async with Simulator(agents=["101"], hold_s=0.01, strict=False) as simulator:
        reply = await poll(simulator, guid="made-up")

        assert reply.retcode == "000-003"
        assert simulator.violations == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"what is this\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
    ],
)
async def test_what_is_not_http_gets_400_and_the_connection_ends(request_bytes: bytes) -> None:
    """A client that cannot speak HTTP is told so."""
    async with Simulator(agents=["101"]) as simulator, raw_connection(simulator) as (reader, writer):
        writer.write(request_bytes)
        async with asyncio.timeout(5):
            answer = await reader.read()

        assert answer.startswith(b"HTTP/1.1 400 ")
        assert kinds(simulator) == ["http"]


@pytest.mark.parametrize(
    "half", [b"GET /agentgateway", b"GET / HTTP/1.1\r\nHost: 127", b"PUT / HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"]
)
async def test_a_half_sent_request_is_not_served(half: bytes) -> None:
    """A client that leaves in the middle of its request leaves no trace."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        async with raw_connection(simulator) as (_, writer):
            writer.write(half)
            await writer.drain()
        reply = await poll(simulator)

        assert reply.retcode == "0"
        assert not simulator.violations


async def test_a_request_in_two_pieces_is_served() -> None:
    """A slow sender's poll arrives with its first line; empty lines before it are skipped (RFC 9112, 2.2)."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator, raw_connection(simulator) as (reader, writer):
        data = b"\r\n" + raw_poll(simulator)
        writer.write(data[:40])
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(data[40:])

        assert await read_answer(reader) == EMPTY


async def test_http_1_0_and_connection_close_are_honoured() -> None:
    """Such a connection ends with its answer."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        old = await poll(simulator, "101", "-0")
        closing = await poll(simulator, "101", "-H", "Connection: close")

        assert (old.headers["connection"], closing.headers["connection"]) == ("close", "close")
        assert (old.body, closing.body) == (EMPTY, EMPTY)


async def test_the_simulator_goes_away_and_comes_back() -> None:
    """Sessions, queues and the port are the same after an outage."""
    async with Simulator(agents=[SimAgent(work_no="101", guid="given")], hold_s=60) as simulator:
        async with asyncio.TaskGroup() as group:
            held = group.create_task(poll(simulator))
            await simulator.wait_for(lambda: simulator.polling("101"))
            await simulator.go_away()
        await simulator.go_away()
        simulator.emit_sample("101", "AgentState_Ready")
        refused = await poll(simulator)
        url = simulator.url
        await simulator.come_back()
        reply = await poll(simulator)

        assert (held.result().status, refused.exit_code, simulator.url) == (0, 7, url)
        assert reply.json["event"]["eventType"] == "AgentState_Ready"
        assert simulator.polls("101")[0].headers["guid"] == "given"


async def test_waiting_for_what_does_not_come_ends() -> None:
    """`wait_for` has a deadline."""
    async with Simulator(agents=["101"]) as simulator:
        with pytest.raises(TimeoutError):
            await simulator.wait_for(lambda: False, 0.1)
