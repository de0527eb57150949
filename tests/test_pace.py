"""The pauses of P4 and P5, the log lines of an outage, and what stands still while nothing can be stored (D4)."""

import asyncio
import itertools
import time
from pathlib import Path

import pytest

from adapter.agent.pace import Pace
from adapter.agent.presence import Timing
from adapter.config import Backoff
from adapter.errors import GatewayConnectionError, RetcodeError
from adapter.outage import Outage
from tests.broker_support import Broker
from tests.polling_support import place
from tests.storage_support import fill_up, make_room


def left(pace: Pace) -> float:
    """Tell how many seconds the next request has to wait."""
    return pace._next_at - pace.now()


async def test_p4_pause_lies_within_the_interval() -> None:
    """P4: the pause after an answer keeps clear of both bounds, and counts from the answer's coming."""
    pace = Pace((0.2, 0.5), Backoff(initial_s=1.5, maximum_s=30.0))
    for _ in range(200):
        pace.answered(pace.now())
        assert 0.2 < left(pace) <= 0.41
    pace.answered(pace.now() - 0.1)
    assert left(pace) <= 0.31

    exact = Pace((0.2, 0.2), Backoff(initial_s=1.5, maximum_s=30.0))
    exact.answered()
    assert 0.2 < left(exact) < 0.21


async def test_p4_requests_start_on_common_beats() -> None:
    """P4: pauses end together, so that they wake the program seldom; after an event the beats are short."""
    ends: dict[bool, set[float]] = {True: set(), False: set()}
    for _ in range(200):
        for hurry, moments in ends.items():
            pace = Pace((0.2, 0.5), Backoff(initial_s=1.5, maximum_s=30.0))
            pace.answered(hurry=hurry)
            assert 0.2 < left(pace) <= 0.41
            moments.add(round(pace._next_at, 6))

    assert len(ends[False]) <= 6
    assert 10 < len(ends[True]) <= 25


async def test_p5_pause_grows_and_begins_anew() -> None:
    """P5: at first 1 to 2 s, then growing with jitter to the largest; a success resets it; a retcode is an answer."""
    pace = Pace((0.2, 0.5), Backoff(initial_s=1.5, maximum_s=30.0))
    waits: list[float] = []
    for _ in range(9):
        pace.failed()
        waits.append(left(pace))

    assert 1.0 < waits[0] <= 2.0
    assert all(before < after for before, after in itertools.pairwise(waits[:5]))
    assert all(wait <= 30.0 for wait in waits)
    assert waits[-1] > 20.0
    assert len({round(wait, 3) for wait in waits[-3:]}) == 3
    pace.recovered()
    pace.refused(GatewayConnectionError("away", answer_lost=False))
    assert 1.0 < left(pace) <= 2.0
    pace.refused(RetcodeError("000-004", ""))
    assert left(pace) < 0.5


async def test_p5_short_interval_stays_over_a_second() -> None:
    """P5: the shortest `error_interval` still leaves more than a second."""
    for _ in range(50):
        pace = Pace((0.2, 0.5), Backoff(initial_s=1.01, maximum_s=2.0))
        pace.failed()
        assert 1.0 < left(pace) < 1.4
        pace.failed()
        assert 1.4 < left(pace) <= 2.0


async def test_waiting_is_ended_by_what_may_end_it() -> None:
    """A wake ends a rest but no pause; the end of all requests ends both, except where one more is wanted."""
    pace = Pace((0.2, 0.2), Backoff(initial_s=1.5, maximum_s=30.0))
    loop = asyncio.get_running_loop()
    pace.wake()  # nobody waits: nothing happens

    loop.call_soon(pace.wake)
    await pace.sleep(None)
    began_at = pace.now()
    pace.answered()
    loop.call_soon(pace.wake)
    await pace.pause()
    assert pace.now() - began_at >= 0.2

    pace.failed()
    loop.call_soon(pace.end)
    await pace.pause()
    assert left(pace) > 1.0
    pace.answered()
    await pace.hold_off()
    assert left(pace) <= 0


def test_outage_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """The first to suffer is logged, the last to recover is; who goes away says nothing of a recovery."""
    caplog.set_level("DEBUG", "adapter.outage")
    outage = Outage("gateway")
    outage.ends("agent 101")
    outage.begins("agent 101", "away")
    outage.begins("agent 102", "away")
    outage.begins("agent 102", "away")
    outage.ends("agent 101")
    outage.ends("agent 102")
    outage.begins("agent 103", "away")
    outage.leave("agent 103")

    lines = [(record.levelname, record.getMessage().split(" after ")[0]) for record in caplog.records]
    assert lines == [
        ("WARNING", "gateway: agent 101: away; trying again"),
        ("DEBUG", "gateway: agent 102: away"),
        ("INFO", "gateway: back"),
        ("WARNING", "gateway: agent 103: away; trying again"),
    ]


def test_outage_may_remind(caplog: pytest.LogCaptureFixture) -> None:
    """An outage of the storage is told again while it lasts, but not at each try (D4)."""
    outage = Outage("storage")
    for remind_s in (60.0, 60.0, 0.0, 60.0):
        outage.begins("agent 101", "full", remind_s=remind_s)

    assert [record.getMessage() for record in caplog.records] == ["storage: agent 101: full; trying again"] * 2


def test_outage_that_comes_and_goes_is_told_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """D4: a disk that is full, has room, and is full again every moment fills no log."""
    caplog.set_level("INFO", "adapter.outage")
    outage = Outage("storage")
    for _ in range(100):
        outage.begins("agent 101", "full", remind_s=60.0)
        outage.ends("agent 101")

    assert [record.getMessage().split(" after ")[0] for record in caplog.records] == [
        "storage: agent 101: full; trying again",
        "storage: back",
    ]


async def test_d4_no_poll_starts_while_nothing_can_be_stored(
    tmp_path: Path, shared_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """D4: with no room for an event no agent polls, all say `stopped`; with room the event goes out and all go on."""
    caplog.set_level("INFO", "adapter.outage")
    agents, small = ["101", "102", "103"], {"path": "ccgateway2mqtt.db", "max_mb": 8}
    async with place(tmp_path, shared_broker, agents, timing=Timing(store_again_s=0.2), storage=small) as here:
        await here.polled(*agents, times=2)
        await fill_up(here.adapter)
        here.simulator.emit("101", {"eventType": "Big", "workNo": "101", "content": "x" * 300_000})
        stopped = [await here.see(work_no, "session", phase="stopped") for work_no in agents]
        for work_no in agents:
            await here.availability(work_no, "offline")
        counts = [len(here.simulator.polls(work_no)) for work_no in agents]
        until = time.monotonic() + 1.0
        await here.until(lambda: time.monotonic() > until)
        assert [len(here.simulator.polls(work_no)) for work_no in agents] == counts
        assert here.adapter.app._shared.outbox.at_risk == 1
        assert here.on("101", "event") == []

        await make_room(here.adapter)
        event = await here.see("101", "event", eventType="Big")
        for number, work_no in enumerate(agents):
            await here.polled(work_no, times=counts[number] + 2)
            await here.see(work_no, "session", phase="polling")
        await here.peer.wait_for(lambda: all(here.on(work_no, "availability")[-1] == "online" for work_no in agents))

        assert event["seq"] == 1
        assert all(payload["message"].startswith("nothing can be stored") for payload in stopped)
        assert [payload["phase"] for payload in here.on("102", "session")] == ["polling", "stopped", "polling"]
        assert here.adapter.app._shared.outbox.at_risk == 0
        lines = [record.levelname for record in caplog.records if record.getMessage().startswith("storage: ")]
        assert lines == ["WARNING", "INFO"]
