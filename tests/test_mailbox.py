"""Call data on its way to the gateway (C2): in order, one a poll, once, and never by cutting a poll."""

import asyncio
import time
from pathlib import Path

from adapter.simulator import faults
from tests.broker_support import Broker
from tests.polling_support import Place, place


def sent(here: Place) -> list[str]:
    """List the call data that came to the gateway."""
    return [value for _, value in here.simulator.calldata("101")]


async def test_c2_in_order_one_a_poll(tmp_path: Path, shared_broker: Broker) -> None:
    """C2: values go in order, one a poll; four may wait, one more is rejected; no poll is cut for them."""
    async with place(tmp_path, shared_broker, simulate={"hold_s": 0.6}) as here:
        await here.until(lambda: here.simulator.polling("101"))
        values = ["one", "two", "three", "four", "five"]
        results = await asyncio.gather(
            *(here.command("101", "calldata", {"calldata": value, "id": value}) for value in values)
        )

        assert [(result["status"], result["retcode"]) for result in results[:4]] == [("applied", "0")] * 4
        assert (results[4]["status"], results[4]["reason"]) == ("rejected", "queue full")
        assert sent(here) == values[:4]
        assert [poll.calldata for poll in here.simulator.polls("101")][1:5] == values[:4]
        assert {poll.outcome for poll in here.simulator.polls("101")} <= {"empty", "waiting"}


async def test_c2_goes_again_after_a_failed_poll_only(tmp_path: Path, shared_broker: Broker) -> None:
    """C2: a value whose poll failed goes again; one whose poll came back as HTTP 200 does not, whatever it says."""
    async with place(tmp_path, shared_broker, simulate={"hold_s": 0.6}) as here:
        await here.until(lambda: here.simulator.polling("101"))
        here.simulator.script("101", faults.status(503), faults.drop())
        again = await here.command("101", "calldata", {"calldata": "again"})
        assert again["status"] == "applied"
        assert len([poll for poll in here.simulator.polls("101") if "again" in poll.target]) == 3

        await here.until(lambda: here.simulator.polling("101"))
        here.simulator.script("101", faults.retcode("000-002", "no such data"))
        refused = await here.command("101", "calldata", {"calldata": "refused"})
        await here.until(lambda: here.simulator.polling("101"))
        here.simulator.script("101", faults.garbage(b"<html>"))
        unread = await here.command("101", "calldata", {"calldata": "unread"})
        await here.polls("101", 2)

        assert (refused["status"], refused["retcode"], refused["reason"]) == ("rejected", "000-002", "no such data")
        assert (unread["status"], unread["retcode"]) == ("rejected", None)
        assert unread["reason"] == "the gateway's answer could not be read"
        targets = [poll.target for poll in here.simulator.polls("101")]
        assert [sum(word in target for target in targets) for word in ("refused", "unread")] == [1, 1]


async def test_c2_ttl_ends_the_tries_but_no_poll(tmp_path: Path, shared_broker: Broker) -> None:
    """C2: `ttl` ends the tries while polls fail; a poll under way is waited for, and decides."""
    async with place(
        tmp_path, shared_broker, ["101", "102", "103"], simulate={"hold_s": 0.6}, gateway={"timeout": 2.0}
    ) as here:
        await here.until(lambda: all(here.simulator.polling(work_no) for work_no in ("101", "102", "103")))
        here.simulator.script("101", *[faults.status(503)] * 3)
        here.simulator.script("102", faults.delay(1.3))
        here.simulator.script("103", faults.delay(1.3) | faults.status(503))
        began_at = time.monotonic()
        expired, applied, late = await asyncio.gather(
            here.command("101", "calldata", {"calldata": "x", "ttl": 1}),
            here.command("102", "calldata", {"calldata": "x", "ttl": 1}),
            here.command("103", "calldata", {"calldata": "x", "ttl": 1}),
        )
        await here.see("101", "session", phase="polling")
        await here.polls("101", 2)

        assert time.monotonic() - began_at > 1.0
        assert (expired["status"], expired["reason"]) == ("expired", "no poll could take it along in time")
        assert applied["status"] == "applied"
        assert late["status"] == "expired"
        assert [
            len([poll for poll in here.simulator.polls(work_no) if "=x" in poll.target]) for work_no in ("102", "103")
        ] == [1, 1]


async def test_c2_waits_over_a_restart_and_a_reload(tmp_path: Path, shared_broker: Broker) -> None:
    """C2, C7: what waits goes on with the next run, and with the next poller of a changed agent; one result each."""
    async with place(tmp_path, shared_broker) as here:
        await here.polled("101", times=2)
        here.simulator.script("101", *[faults.status(503)] * 4)
        await here.see("101", "session", phase="retrying")
        first = asyncio.create_task(here.command("101", "calldata", {"calldata": "first", "id": "a", "ttl": 30}))
        await here.until(lambda: here.rows("SELECT * FROM command"))
        await here.restart()
        await here.see("101", "session", phase="retrying", attempt=2)
        second = asyncio.create_task(here.command("101", "calldata", {"calldata": "second", "id": "b", "ttl": 4}))
        ends_at = time.monotonic() + 4.2
        await here.until(lambda: len(here.rows("SELECT * FROM command")) == 2)
        here.path.write_text(here.path.read_text().replace("- work_no", "- name: Amina\n  work_no"))
        changed = await here.adapter.app.reload()
        here.simulator.emit_sample("101", "AgentState_Work")
        results = await asyncio.gather(first, second)
        await here.until(lambda: time.monotonic() > ends_at)

        assert changed["changed"] == ["101"]
        assert [result["status"] for result in results] == ["applied", "applied"]
        assert sent(here) == ["first", "second"]
        assert len(here.on("101", "calldata/result")) == 2
        assert here.stored("101")["seq"] == 1
        assert here.stored("101")["guid"] == here.simulator.guid("101")
