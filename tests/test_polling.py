"""The polling rules (SPEC 2), seen from the gateway's side and from the broker's, with the whole adapter running."""

import asyncio
import itertools
import json
import time
from pathlib import Path

import pytest

from adapter.agent.presence import Timing
from adapter.simulator import Poll, SimAgent, faults
from tests.adapter_support import wait_for
from tests.broker_support import Broker
from tests.polling_support import USUAL, place

LOST = {"hang": faults.hang(), "drop": faults.drop(), "cut": faults.drop(60)}
REFUSED = {"503": faults.status(503, b"busy"), "302": faults.status(302), "204": faults.status(204)}
UNREADABLE = {"html": faults.garbage(b"<html>"), "long": faults.garbage(b"x" * (1024 * 1024 + 1))}


def pauses(polls: list[Poll]) -> list[float]:
    """List the pauses before polls, as the gateway measured them."""
    return [poll.pause_s for poll in polls if poll.pause_s is not None]


async def test_p1_never_two_requests_of_an_agent_at_once(tmp_path: Path, shared_broker: Broker) -> None:
    """P1: polls, the state's requests, sign-outs and sign-ins of an agent come one after the other."""
    sign_in = {"password": "pw-102", "phone": "8102"}
    async with place(
        tmp_path,
        shared_broker,
        [SimAgent(work_no="101", guid="begun-elsewhere"), SimAgent(work_no="102", signed_in=False)],
        entries=[{"work_no": "101", "guid": "begun-elsewhere"}, {"work_no": "102", "sign_in": sign_in}],
    ) as here:
        await here.command("101", "session", {"action": "sign_in", "guid": "begun-elsewhere"})
        await here.simulator.wait_for(lambda: here.simulator.polling("102"))
        for name in ("AgentState_Work", "AgentState_Ready"):
            here.simulator.emit_sample("102", name)
            await here.polls("102", 1)
        calldata = asyncio.create_task(here.command("102", "calldata", {"calldata": "x"}))
        await here.command("102", "session", {"action": "sign_out"})
        await here.command("102", "session", {"action": "sign_in"})
        await here.polls("101", 2)
        await calldata

        for work_no in ("101", "102"):
            requests = [(poll.started_at, poll.ended_at) for poll in here.simulator.polls(work_no)]
            requests += [(call.at, call.ended_at) for call in here.simulator.requests if call.work_no == work_no]
            requests.sort()
            assert len(requests) > 4
            for (_, ended_at), (began_at, _) in itertools.pairwise(requests):
                assert ended_at is not None
                assert ended_at <= began_at
        polls = here.simulator.polls("102")
        assert all(poll.headers["content-type"] == "application/json; charset=UTF-8" for poll in polls)
        assert [call.action for call in here.simulator.requests if call.work_no == "102"] == [
            "login", "agentstatus", "logout", "login", "agentstatus",
        ]  # fmt: skip


async def test_p2_call_data_goes_with_one_poll(tmp_path: Path, shared_broker: Broker) -> None:
    """P2: the poll that takes call data along has it as its one parameter, percent-encoded; the others have none."""
    async with place(tmp_path, shared_broker) as here:
        await here.command("101", "calldata", {"calldata": "客户 4+2/?&"})
        await here.polls("101", 1)

        targets = [poll.target.partition("?")[2] for poll in here.simulator.polls("101")]
        assert [query for query in targets if query] == ["calldata=%E5%AE%A2%E6%88%B7%204%2B2%2F%3F%26"]
        assert targets[-1] == ""
        assert [value for _, value in here.simulator.calldata("101")] == ["客户 4+2/?&"]


async def test_p3_event_ends_the_hold(tmp_path: Path, shared_broker: Broker) -> None:
    """P3: an empty poll lasts as long as the gateway holds it and is no failure; an event ends it at once."""
    async with place(tmp_path, shared_broker, simulate={"hold_s": 1.0}, gateway={"timeout": 1.5}) as here:
        await here.polls("101", 2)
        began_at = time.monotonic()
        here.simulator.emit_sample("101", "AgentState_Ready")
        await here.see("101", "event", eventType="AgentState_Ready")

        empty = here.simulator.polls("101")[0]
        assert empty.outcome == "empty"
        assert empty.ended_at is not None
        assert empty.ended_at - empty.started_at >= 1.0
        assert time.monotonic() - began_at < 0.9
        assert [payload["phase"] for payload in here.on("101", "session")] == ["polling"]
        assert (here.counters.poll_errors, here.counters.lost_answers) == (0, 0)


async def test_p4_pause_after_each_answer(tmp_path: Path, shared_broker: Broker) -> None:
    """P4: measured at the gateway, 200 to 500 ms lie between an answer and the next poll, with an event or without."""
    agents = [str(number) for number in range(101, 109)]
    async with place(tmp_path, shared_broker, agents, simulate={"poll_wait": False}, gateway=USUAL) as here:
        for work_no in agents[:4]:
            for _ in range(6):
                here.simulator.emit_sample(work_no, "AgentState_Ready")
        await here.simulator.wait_for(lambda: here.simulator.poll_count >= 80)

        statistics = here.simulator.pauses()
        assert statistics is not None
        assert statistics.count >= 70
        assert statistics.min_s >= 0.2
        assert 0.25 <= statistics.p50_s <= 0.45
        assert len(here.simulator.handed_out("101")) == 6


async def test_p4_event_does_not_wait_for_the_pause(tmp_path: Path, shared_broker: Broker) -> None:
    """P4: an event is at the broker's other side long before the pause after it is over."""
    async with place(tmp_path, shared_broker, simulate={"hold_s": 5.0}) as here:
        took: list[float] = []
        for number in range(5):
            await here.simulator.wait_for(lambda: here.simulator.polling("101"))
            began_at = time.monotonic()
            here.simulator.emit("101", {"eventType": "AgentState_Ready", "workNo": "101", "content": str(number)})
            await here.see("101", "event", content=str(number))
            took.append(time.monotonic() - began_at)
        here.simulator.emit_sample("101", "AgentState_Work")

        assert sorted(took)[2] < 0.2


async def test_p5_pause_after_every_kind_of_failure(tmp_path: Path, shared_broker: Broker) -> None:
    """P5: over 1 s after a failure of any kind, growing from failure to failure, and short again after a success."""
    kinds = LOST | REFUSED | UNREADABLE | {"retcode": faults.retcode("000-004", "switching")}
    agents = dict(zip(kinds, (str(number) for number in range(101, 201)), strict=False))
    async with place(tmp_path, shared_broker, list(agents.values()), gateway=USUAL | {"timeout": 0.4}) as here:
        for name, work_no in agents.items():
            here.simulator.script(work_no, kinds[name], kinds[name], faults.NONE, kinds[name])
        await here.polled(*agents.values(), times=6)

        for name, work_no in agents.items():
            first, second, after_good, anew = pauses(here.simulator.polls(work_no))[:4]
            assert 1.0 < first < 2.0, name  # what P5 says; a busy machine adds to what was drawn
            assert 1.45 < second < 2.3, name
            assert 0.2 <= after_good < 1.0, name
            assert 1.0 < anew < 2.0, name
            attempts = [payload["attempt"] for payload in here.on(work_no, "session") if "attempt" in payload]
            assert attempts == [1, 2, 1], name
            assert here.on(work_no, "session")[-1]["phase"] == "polling"
        assert here.counters.poll_errors == 3 * (len(kinds) - 1)
        assert here.counters.lost_answers == 3 * len(LOST)
        assert here.counters.unreadable == 3 * len(UNREADABLE)


@pytest.mark.parametrize("announced", [False, True], ids=["retcode", "event"])
async def test_p6_p7_p13_end_of_a_session(tmp_path: Path, shared_broker: Broker, *, announced: bool) -> None:
    """P6, P7, P13: after each retcode that ends a session, and after its event: signed out, published, no poll more."""
    codes = ["shutdown"] if announced else ["000-001", "000-003", "100-006", "105-005", "105-006", "105-007"]
    agents = dict(zip(codes, (str(number) for number in range(101, 201)), strict=False))
    async with place(tmp_path, shared_broker, [*agents.values(), "999"]) as here:
        for code, work_no in agents.items():
            await here.polled(work_no)
            if announced:
                here.simulator.sign_out(work_no, notify=True)
            else:
                here.simulator.script(work_no, faults.retcode(code, "over"))
        for code, work_no in agents.items():
            ended = await here.see(work_no, "session", phase="signed_out")
            await here.availability(work_no, "offline")
            await here.see(work_no, "state", state="signed_out")
            assert ended["retcode"] == (None if announced else code)
            assert "attempt" not in ended
            assert here.stored(work_no)["guid"] is None
        if announced:
            await here.see("101", "event", eventType="AgentOther_ShutdownService")
        counts = {work_no: len(here.simulator.polls(work_no)) for work_no in agents.values()}
        await here.polls("999", 3)
        assert {work_no: len(here.simulator.polls(work_no)) for work_no in agents.values()} == counts
        assert not [call for call in here.simulator.requests if call.action == "logout"]

        guid = here.simulator.sign_in("101")
        result = await here.command("101", "session", {"action": "sign_in", "guid": guid})
        await here.polls("101", 2)
        assert result["status"] == "applied"


async def test_p6_events_in_the_last_answer_are_kept(tmp_path: Path, shared_broker: Broker) -> None:
    """P6: an event that comes in the answer which ends the session is published, and the call data sent is answered."""
    async with place(tmp_path, shared_broker, simulate={"hold_s": 2.5}) as here:
        body = {"retcode": "100-006", "message": "", "event": {"eventType": "AgentState_Work", "workNo": "101"}}
        await here.simulator.wait_for(lambda: here.simulator.polling("101"))
        here.simulator.script("101", faults.garbage(json.dumps(body).encode()) | faults.delay(0.5))
        results = [
            asyncio.create_task(here.command("101", "calldata", {"calldata": value})) for value in ("sent", "late")
        ]
        sent, late = await asyncio.gather(*results)
        event = await here.see("101", "event", eventType="AgentState_Work")
        await here.see("101", "session", phase="signed_out", retcode="100-006")
        await here.see("101", "state", state="signed_out", seq=1)

        assert event["seq"] == 1
        assert {(sent["status"], sent["retcode"]), (late["status"], late["retcode"])} == {
            ("rejected", "100-006"),
            ("rejected", None),
        }
        assert late["reason"] == "the agent is signed out" or sent["reason"] == "the agent is signed out"


async def test_p7_other_retcode_is_logged_and_polled_on(
    tmp_path: Path, shared_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """P7: another retcode is logged once with its code while it lasts, published, and polling goes on."""
    async with place(tmp_path, shared_broker) as here:
        here.simulator.script("101", *[faults.retcode("000-004", "switching")] * 2)
        shown = await here.see("101", "session", phase="retrying", attempt=2)
        await wait_for(here.peer, here.topic("101", "session"), lambda payload: payload["phase"] == "polling")
        await here.polls("101", 1)

        lines = [record.getMessage() for record in caplog.records if "000-004" in record.getMessage()]
        assert lines == ["agent 101: getAgentEvent: 000-004 (switching)"]
        assert shown["retcode"] == "000-004"


async def test_p8_new_guid_is_on_disk_before_it_is_used(tmp_path: Path, shared_broker: Broker) -> None:
    """P8, P12: when the next request comes in, the new GUID and the event of the answer before are on disk."""
    async with place(tmp_path, shared_broker) as here:
        for number in range(1, 3):
            await here.simulator.wait_for(lambda: here.simulator.polling("101"))
            here.simulator.script("101", faults.rotate())
            count = len(here.simulator.polls("101"))
            if number % 2:
                here.simulator.emit_sample("101", "AgentState_Ready")
            await here.polled("101", times=count + 2)
            # Nothing of the adapter has run since the simulator read that poll: both are in this event loop.
            stored, poll = here.stored("101"), here.simulator.polls("101")[-1]
            assert stored["guid"] == poll.guid == here.simulator.guid("101")
            assert stored["seq"] == len(here.simulator.handed_out("101"))
        assert len({poll.guid for poll in here.simulator.polls("101")}) >= 3


async def test_p8_p9_restart_goes_on_with_the_newest(tmp_path: Path, shared_broker: Broker) -> None:
    """P8, P9: after a restart the newest GUID and the agent's cookies are sent, not those of the configuration."""
    async with place(tmp_path, shared_broker, ["101", "102"]) as here:
        cookie = faults.headers({"Set-Cookie": "elb=7; Path=/"})
        here.simulator.script("101", faults.rotate() | cookie)
        await here.simulator.wait_for(lambda: any("cookie" in poll.headers for poll in here.simulator.polls("101")))
        newest, counts = here.simulator.guid("101"), len(here.simulator.polls("101"))
        await here.restart()
        await here.polled("101", times=counts + 2)

        poll = here.simulator.polls("101")[-1]
        assert poll.guid == newest
        assert poll.headers["cookie"] == "elb=7"
        assert not any("cookie" in poll.headers for poll in here.simulator.polls("102"))
        assert here.adapter.app._shared.outbox.agents["101"].guid == newest


async def test_p8_static_guid_stays(tmp_path: Path, shared_broker: Broker) -> None:
    """P8: with `auth_mode: static` the GUID of the sign-in serves for the whole session, whatever a header says."""
    async with place(tmp_path, shared_broker, simulate={"auth_mode": "static"}) as here:
        guid = here.simulator.guid("101")
        here.simulator.script("101", *[faults.headers({"Set-GUID": "JSESSIONID=other"})] * 2)
        await here.polls("101", 4)

        assert {poll.guid for poll in here.simulator.polls("101")} == {guid}


async def test_p11_events_in_every_shape(tmp_path: Path, shared_broker: Broker) -> None:
    """P11: empty events in all shapes, lists, odd contents and unknown members pass, unchanged to the digit."""
    async with place(tmp_path, shared_broker, simulate={"poll_wait": False}) as here:
        for shape in (b"null", b"{}", b"[]", b'""'):
            here.simulator.emit("101", shape)
        here.simulator.emit("101", b'{"eventType":"New_Thing","workNo":101,"content":"1456-15","n":1.0e2,"extra":[1]}')
        here.simulator.emit("101", b'[{"eventType":"A"},{"eventType":"B","content":{"big":12345678901234567890.50}}]')
        here.simulator.emit("101", b'{"eventType":"C","content":"half \\ud83d"}\0\0')
        await here.see("101", "event", eventType="C")

        raw = here.peer.payloads(here.topic("101", "event"))
        payloads = here.on("101", "event")
        assert [payload["eventType"] for payload in payloads] == ["New_Thing", "A", "B", "C"]
        assert [payload["seq"] for payload in payloads] == [1, 2, 3, 4]
        assert b'"workNo":101' in raw[0]
        assert b'"n":1.0e2' in raw[0]
        assert b"12345678901234567890.50" in raw[2]
        assert payloads[3]["content"] == "half \ufffd"
        assert here.counters.unreadable == 0


async def test_p14_unreadable_answer_is_kept_for_a_person(tmp_path: Path, shared_broker: Broker) -> None:
    """P14: it is counted, said on `bridge/log`, and its head is in the database."""
    async with place(tmp_path, shared_broker) as here:
        here.simulator.script("101", faults.garbage(b'{"retcode":"0","event":{"caller":"13800138000"'))
        await wait_for(
            here.peer, f"{here.prefix}/bridge/log", lambda line: "it may have held an event" in line["message"]
        )
        await here.see("101", "session", phase="retrying")

        (kept,) = here.rows("SELECT * FROM unreadable")
        assert kept["work_no"] == "101"
        assert kept["head"] == b'{"retcode":"0","event":{"caller":"13800138000"'
        assert kept["size_bytes"] == len(kept["head"])
        assert here.counters.unreadable == 1


async def test_p14_with_privacy_only_the_length_is_kept(tmp_path: Path, shared_broker: Broker) -> None:
    """P14: where `privacy` is set, nothing of an unreadable answer is stored but its length."""
    async with place(tmp_path, shared_broker, privacy={"mask": "numbers"}) as here:
        here.simulator.script("101", faults.garbage(b'{"retcode":"0","event":{"caller":"13800138000"'))
        await here.see("101", "session", phase="retrying")

        here.simulator.emit_sample("101", "AgentEvent_Ringing", {"caller": "13800138000"})
        event = await here.see("101", "event", eventType="AgentEvent_Ringing")

        assert event["content"]["caller"] == "*******8000"
        (kept,) = here.rows("SELECT * FROM unreadable")
        assert (kept["head"], kept["size_bytes"]) == (b"", 46)
        assert b"13800138000" not in (tmp_path / "ccgateway2mqtt.db").read_bytes()
        assert b"13800138000" not in (tmp_path / "ccgateway2mqtt.db-wal").read_bytes()


async def test_start_is_staggered(tmp_path: Path, shared_broker: Broker) -> None:
    """The first requests of many agents are spread over `hold`."""
    agents = [str(number) for number in range(101, 111)]
    async with place(tmp_path, shared_broker, agents, simulate={"hold_s": 3.0}) as here:
        await here.polled(*agents)

        first = [here.simulator.polls(work_no)[0].started_at for work_no in agents]
        assert 2.0 < max(first) - min(first) < 5.0
        assert sum(after - before > 0.05 for before, after in itertools.pairwise(first)) >= 7


async def test_state_is_asked_for_at_start_and_after_a_lost_answer(tmp_path: Path, shared_broker: Broker) -> None:
    """`agentstatus` is read at the start and after a lost answer; refused, the state stays; never `syncagentinfo`."""
    async with place(tmp_path, shared_broker, ["101", "102", "103"]) as here:
        here.simulator.script("102", faults.retcode("000-003"), on="agentstatus")
        here.simulator.script("103", *[faults.status(404)] * 4, on="agentstatus")
        await here.see("101", "state", state="idle")
        await here.polled("101", "102", "103")
        here.simulator.set_status("101", 8)
        here.simulator.script("101", faults.drop())
        await here.see("101", "state", state="rest")
        await here.simulator.wait_for(lambda: len(here.simulator.polls("103")) >= 4)

        asked = [call.work_no for call in here.simulator.requests if call.action == "agentstatus"]
        assert (asked.count("101"), asked.count("102"), asked.count("103")) == (2, 1, 3)
        assert {call.action for call in here.simulator.requests} == {"agentstatus"}
        assert here.on("102", "state")[-1]["state"] == "unknown"
        assert here.on("102", "session")[-1]["phase"] == "polling"


async def test_availability_goes_offline_while_retrying_for_long(tmp_path: Path, shared_broker: Broker) -> None:
    """Polls that fail for long make the agent unavailable, and a good one available; a short failure does not."""
    async with place(tmp_path, shared_broker, ["101", "102"], timing=Timing(offline_after_s=1.8)) as here:
        await here.availability("101", "online")
        here.simulator.script("101", *[faults.status(503)] * 3)
        here.simulator.script("102", faults.status(503))
        await here.availability("101", "offline")
        assert here.on("101", "session")[-1]["phase"] == "retrying"
        await here.peer.wait_for(lambda: here.on("101", "availability") == ["online", "offline", "online"])

        assert here.on("102", "availability") == ["online"]
        assert "retrying" in [payload["phase"] for payload in here.on("102", "session")]


async def test_outage_of_fifty_agents_is_two_log_lines(
    tmp_path: Path, shared_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A gateway that goes away is one log line for all agents, and one more when it is back; no event is lost."""
    caplog.set_level("INFO", "adapter.outage")
    agents = [str(number) for number in range(101, 151)]
    async with place(tmp_path, shared_broker, agents, simulate={"hold_s": 1.0}) as here:
        await here.polled(*agents)
        await here.simulator.go_away()
        for work_no in agents:
            await here.see(work_no, "session", phase="retrying")
            here.simulator.emit_sample(work_no, "AgentState_Work")
        await here.simulator.come_back()
        for work_no in agents:
            await here.see(work_no, "event", seq=1)
        await here.simulator.wait_for(lambda: not here.adapter.app._shared.gateway_outage._suffering)

        lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("gateway: ")]
        assert len(lines) == 2
        assert "getAgentEvent: c" in lines[0]
        assert lines[0].endswith("; trying again")
        assert lines[1].startswith("gateway: back after ")
        assert lines[1].endswith("; 50 affected")


async def test_event_of_another_work_number_is_published_here(
    tmp_path: Path, shared_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """An event that names another agent goes out unchanged under the polled agent, and is logged once."""
    async with place(tmp_path, shared_broker) as here:
        for number in range(2):
            here.simulator.emit("101", {"eventType": "QC_AgentState_Notify", "workNo": "205", "content": str(number)})
        event = await here.see("101", "event", content="1")

        assert event["workNo"] == "205"
        lines = [record.getMessage() for record in caplog.records if "205" in record.getMessage()]
        assert lines == ["agent 101: getAgentEvent: an event names agent 205; published unchanged"]


@pytest.mark.parametrize("certificate", ["wrong_host", "expired"])
async def test_certificate_that_does_not_fit_is_tried_again(
    tmp_path: Path, shared_broker: Broker, caplog: pytest.LogCaptureFixture, certificate: str
) -> None:
    """A certificate that does not fit is told in one log line, and tried again."""
    async with place(tmp_path, shared_broker, simulate={"certificate": certificate}) as here:
        shown = await here.see("101", "session", phase="retrying", attempt=2)

        assert "certificate verify failed" in shown["message"]
        lines = [record.getMessage() for record in caplog.records if "certificate" in record.getMessage()]
        assert len(lines) == 1
        assert here.counters.lost_answers == 0


async def test_stop_lets_the_poll_under_way_end(tmp_path: Path, shared_broker: Broker) -> None:
    """D7: an event that comes while the adapter stops is stored and published."""
    async with place(tmp_path, shared_broker, simulate={"hold_s": 3.0}) as here:
        await here.simulator.wait_for(lambda: here.simulator.polling("101"))
        stopping = asyncio.create_task(here.adapter.stop())
        await here.peer.wait_for(lambda: b"offline" in here.peer.payloads(f"{here.prefix}/bridge/availability"))
        here.simulator.emit_sample("101", "AgentState_Work")
        await stopping

        assert [payload["eventType"] for payload in here.on("101", "event")] == ["AgentState_Work"]
        assert here.on("101", "availability") == ["online"]
        assert len(here.simulator.polls("101")) == 1
