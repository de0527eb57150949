"""The simulator's scripted troubles, seen with curl and raw streams."""

import asyncio
import time

import pytest

from adapter.simulator import Fault, Simulator, faults
from tests.simulator_support import curl, kinds, poll, raw_connection, raw_poll, read_answer, session_url, sign_in

EMPTY = b'{"message":"","retcode":"0"}'


async def test_a_status_comes_in_place_of_the_answer_and_takes_no_event() -> None:
    """503 once, then the event that waited."""
    async with Simulator(agents=["101"], hold_s=60) as simulator:
        simulator.script("101", faults.status(503, b"<html>no</html>"))
        simulator.emit_sample("101", "AgentState_Ready")
        first = await poll(simulator)
        second = await poll(simulator)

        assert (first.status, first.body) == (503, b"<html>no</html>")
        assert second.json["event"]["eventType"] == "AgentState_Ready"
        assert [record.outcome for record in simulator.polls("101")] == ["fault", "event"]
        assert simulator.polls("101")[0].status == 503


async def test_garbage_comes_with_its_headers() -> None:
    """A body and a type of one's own; a readable one allows the usual pause, an unreadable one does not."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        readable = b'{"message":"","retcode":"0","event":null}\0\0'
        simulator.script(
            "101",
            faults.garbage(readable) | faults.headers({"Content-Type": "text/plain", "X-Odd": "1"}),
            faults.garbage(b'{"no":"retcode"}'),
            faults.garbage(b"\xc4\xe3", readable=True),
        )
        replies = []
        for pause_s in (0.3, 1.1, 0.3):
            replies.append(await poll(simulator))
            await asyncio.sleep(pause_s)
        await poll(simulator)

        assert [reply.body for reply in replies] == [readable, b'{"no":"retcode"}', b"\xc4\xe3"]
        assert (replies[0].headers["content-type"], replies[0].headers["x-odd"]) == ("text/plain", "1")
        assert not simulator.violations


async def test_a_retcode_comes_in_a_200_answer_and_takes_no_event() -> None:
    """A refusal as the gateway gives it; after 100-006 the same GUID may not poll again."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        simulator.emit_sample("101", "AgentState_Ready")
        simulator.script("101", faults.retcode("000-000", "odd"), faults.retcode("100-006"))
        first = await poll(simulator)
        second = await poll(simulator)
        third = await poll(simulator)

        assert (first.status, first.json) == (200, {"message": "odd", "retcode": "000-000"})
        assert second.retcode == "100-006"
        assert third.json["event"]["eventType"] == "AgentState_Ready"
        assert kinds(simulator).count("after_end") == 1


async def test_a_dropped_poll_gets_nothing_and_takes_no_event() -> None:
    """The connection closes without an answer."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        simulator.emit_sample("101", "AgentState_Ready")
        simulator.script("101", faults.drop())
        reply = await poll(simulator)

        assert (reply.exit_code, reply.status) == (52, 0)
        assert simulator.queued("101") == 1


async def test_an_answer_cut_short_loses_its_event() -> None:
    """The head and a part of the body arrive; the event is counted as lost."""
    async with Simulator(agents=["101"], hold_s=60) as simulator:
        event = simulator.emit_sample("101", "AgentState_Ready")
        simulator.script("101", faults.drop(110))
        reply = await poll(simulator)

        assert reply.exit_code != 0
        assert reply.status == 200
        assert 0 < len(reply.body) < int(reply.headers["content-length"])
        assert simulator.lost("101") == [event]
        assert simulator.queued("101") == 0


async def test_a_hung_poll_lasts_until_its_client_leaves() -> None:
    """No answer comes; meanwhile it is a poll under way."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        simulator.emit_sample("101", "AgentState_Ready")
        simulator.script("101", faults.hang())
        async with raw_connection(simulator) as (_, writer):
            writer.write(raw_poll(simulator))
            await simulator.wait_for(lambda: simulator.polling("101"))
        await simulator.wait_for(lambda: simulator.polls("101")[0].outcome == "cut")

        assert not simulator.polling("101")
        assert simulator.queued("101") == 1


async def test_a_rotation_brings_a_new_guid_with_the_answer() -> None:
    """Also in static mode, also with a fault, and also with an unreadable body (P8)."""
    async with Simulator(agents=["101"], hold_s=0.01, auth_mode="static") as simulator:
        old = simulator.guid("101")
        simulator.script("101", faults.rotate(), faults.garbage(b"x") | faults.rotate())
        first = await poll(simulator)
        assert first.guid == simulator.guid("101") != old
        second = await poll(simulator)

        assert second.guid == simulator.guid("101") != first.guid
        assert second.body == b"x"


async def test_a_rotation_for_a_signed_out_agent_brings_nothing() -> None:
    """Who has no session has no GUID."""
    async with Simulator(agents=["101"], hold_s=0.01, signed_in=False) as simulator:
        simulator.script("101", faults.status(200, EMPTY) | faults.rotate())
        reply = await poll(simulator, guid="x")

        assert reply.guid is None


async def test_a_slow_answer_takes_its_time() -> None:
    """About 130 bytes at 400 a second, whole at the end; a client that leaves meanwhile loses the event."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        simulator.script("101", faults.slow(400), faults.slow(20))
        began_at = time.monotonic()
        reply = await poll(simulator)
        assert time.monotonic() - began_at >= 0.2
        assert reply.body == EMPTY
        simulator.emit_sample("101", "AgentState_Ready")
        async with raw_connection(simulator) as (reader, writer):
            writer.write(raw_poll(simulator))
            await reader.readexactly(2)
        await simulator.wait_for(lambda: simulator.lost("101"))

        assert simulator.polls("101")[1].outcome == "lost"


async def test_a_pause_is_measured_from_the_end_of_a_slow_answer() -> None:
    """P4: a poll right after its last byte is too early, however long the answer took."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator, raw_connection(simulator) as (reader, writer):
        simulator.script("101", faults.slow(400))
        for _ in range(2):
            writer.write(raw_poll(simulator))
            await read_answer(reader)

        assert kinds(simulator) == ["pause"]


async def test_a_chunked_answer_is_whole() -> None:
    """Odd chunks, ended by an empty one; the connection can be used again."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        simulator.script("101", faults.chunked())
        reply = await poll(simulator)

        assert reply.headers["transfer-encoding"] == "chunked"
        assert "content-length" not in reply.headers
        pieces = reply.body.split(b"\r\n")
        assert b"".join(pieces[1::2]) == EMPTY
        assert reply.body.endswith(b"0\r\n\r\n")


async def test_a_close_delimited_answer_ends_with_its_connection() -> None:
    """No length, no chunks: the end of the connection is the end of the body; curl takes it as whole."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        simulator.script("101", faults.close_delimited())
        reply = await poll(simulator)

        assert (reply.exit_code, reply.body, reply.headers["connection"]) == (0, EMPTY, "close")
        assert "content-length" not in reply.headers
        assert simulator.polls("101")[0].outcome == "empty"


async def test_an_older_guid_after_a_close_delimited_rotation_is_noted() -> None:
    """An answer that ended in good order has arrived, whatever connection comes next (P8)."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        old = simulator.guid("101")
        simulator.script("101", faults.close_delimited() | faults.rotate())
        await poll(simulator)
        await asyncio.sleep(0.25)
        await poll(simulator, guid=old)

        assert kinds(simulator) == ["old_guid"]


async def test_raw_bytes_are_not_http() -> None:
    """What is not HTTP arrives as it is, and the connection ends."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator, raw_connection(simulator) as (reader, writer):
        simulator.script("101", faults.raw(b"SMTP ready\r\n"))
        writer.write(raw_poll(simulator))
        async with asyncio.timeout(5):
            assert await reader.read() == b"SMTP ready\r\n"


async def test_an_answer_that_is_not_read_is_lost_with_its_client() -> None:
    """A client that stops reading and leaves does not get the rest; the simulator goes on."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        simulator.emit("101", {"eventType": "Large", "content": "x" * 20_000_000})
        async with raw_connection(simulator) as (reader, writer):
            writer.write(raw_poll(simulator))
            await reader.readexactly(2)
            writer.transport.abort()
        await simulator.wait_for(lambda: simulator.lost("101"))
        reply = await poll(simulator)

        assert reply.body == EMPTY


async def test_a_delay_comes_before_the_gateway_looks() -> None:
    """A sign-out during the delay is seen by the poll."""
    async with Simulator(agents=["101"], hold_s=60) as simulator:
        simulator.script("101", faults.delay(0.3))
        async with asyncio.TaskGroup() as group:
            task = group.create_task(poll(simulator))
            await simulator.wait_for(lambda: simulator.polling("101"))
            simulator.sign_out("101")

        assert task.result().retcode == "100-006"


async def test_a_cookie_is_set() -> None:
    """P9: a load balancer's cookie comes with an answer; what the client sends back is recorded."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        simulator.script("101", faults.headers({"Set-Cookie": "elbSession=1; path=/"}))
        reply = await poll(simulator)
        await poll(simulator, "101", "-H", "Cookie: elbSession=1")

        assert reply.headers["set-cookie"] == "elbSession=1; path=/"
        assert simulator.polls("101")[1].headers["cookie"] == "elbSession=1"


async def test_a_fault_can_come_every_so_often() -> None:
    """Every third poll of the agent fails, together with what is scripted for it."""
    async with Simulator(agents=["101"], hold_s=0.01) as simulator:
        simulator.every("101", 3, faults.status(502))
        statuses = [(await poll(simulator)).status for _ in range(6)]

        assert statuses == [200, 200, 502, 200, 200, 502]


@pytest.mark.parametrize(
    ("fault", "status", "exit_code"),
    [
        (faults.status(502), 502, 0),
        (faults.retcode("110-016", "locked"), 200, 0),
        (faults.garbage(b"<html>"), 200, 0),
        (faults.drop(), 0, 52),
        (faults.raw(b"x\r\n\r\n"), 0, 1),
        (faults.hang(), 0, 28),
    ],
)
async def test_session_requests_have_troubles_too(fault: Fault, status: int, exit_code: int) -> None:
    """A sign-in and `agentstatus` can fail in the same ways; the next one goes well."""
    async with Simulator(agents=["101"], signed_in=False) as simulator:
        simulator.script("101", fault | faults.delay(0.01), on="agentstatus")
        simulator.script("101", faults.retcode("110-016"), on="login")
        reply = await curl(simulator, "--max-time", "0.5", session_url(simulator, "101", "/agentstatus"))
        locked = await sign_in(simulator)
        good = await sign_in(simulator)

        assert reply.status == status
        assert (reply.exit_code == 0) == (exit_code == 0)
        assert (locked.retcode, good.retcode) == ("110-016", "0")


def test_faults_add_up() -> None:
    """What the second one says wins; headers of both are there."""
    both = (
        faults.headers({"A": "1"}) | faults.slow(10) | faults.chunked() | faults.headers({"B": "2"}) | faults.slow(20)
    )

    assert both == Fault(headers=(("A", "1"), ("B", "2")), bytes_per_s=20, framing="chunked")
    assert not both.replaces
    assert (both | faults.hang()).replaces


async def test_the_ledger_has_every_poll_once_it_has_ended() -> None:
    """What was handed out whole, what was lost on the wire, and what the gateway took down with itself."""
    async with Simulator(agents=["101"], hold_s=60) as simulator:
        ledger: list[tuple[str, object]] = []
        simulator.ledger = lambda record: ledger.append((record.outcome, record.event))
        first = simulator.emit_sample("101", "AgentState_Ready")
        await poll(simulator)
        second = simulator.emit_sample("101", "AgentState_Busy")
        simulator.script("101", faults.drop(-1), faults.slow(20))
        await poll(simulator)
        third = simulator.emit_sample("101", "AgentState_Work")
        async with raw_connection(simulator) as (reader, writer):
            writer.write(raw_poll(simulator))
            await reader.readexactly(10)
            await simulator.go_away()

        assert ledger == [("event", first), ("lost", second), ("lost", third)]
        assert simulator.lost("101") == [second, third]


async def test_a_connection_is_cut_also_between_two_polls() -> None:
    """The idle connection of one agent ends, that of another stays."""
    async with (
        Simulator(agents=["101", "102"], hold_s=0.01) as simulator,
        raw_connection(simulator) as (reader, writer),
        raw_connection(simulator) as (other_reader, other_writer),
    ):
        writer.write(raw_poll(simulator))
        await read_answer(reader)
        other_writer.write(raw_poll(simulator, "102"))
        await read_answer(other_reader)
        simulator.cut("101")
        await asyncio.sleep(0.25)
        writer.write(raw_poll(simulator))
        await read_answer(reader)
        simulator.cut("101", idle=True)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await read_answer(reader)
        other_writer.write(raw_poll(simulator, "102"))

        assert await read_answer(other_reader) == EMPTY
