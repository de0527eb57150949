"""The day: hours of it in virtual time, replayed agent by agent, and a short piece over HTTPS."""

import asyncio
import json
from collections import defaultdict
from pathlib import Path

import pytest

from adapter.simulator import Day, Fault, Simulator, SimulatorError, demo_agents, faults, parse_listen, serve
from tests.simulator_support import curl, keep_polling, poll_headers

HOUR_S = 3600.0


def is_there(path: str) -> bool:
    """Say whether a file exists."""
    return Path(path).exists()


class Room:
    """A stage without a network: keeps what happens, and signs agents in again after eight seconds."""

    def __init__(self, *, number: int = 12, seed: int = 1, returning: bool = True, sign_outs: bool = True) -> None:
        self.now_s = 0.0
        self.log: list[tuple[float, str, str, object]] = []
        self.faults: list[tuple[str, tuple[Fault, ...]]] = []
        self.out: dict[str, float] = {}
        self.returning = returning
        self.agents = demo_agents(number)
        self.day = Day(self, self.agents, seed=seed, sign_outs=sign_outs)

    def emit_sample(self, work_no: str, event_type: str, content: object = ...) -> None:
        """Keep an event."""
        assert self.signed_in(work_no)
        self.log.append((self.now_s, work_no, event_type, content))
        if event_type == "AgentOther_ShutdownService":
            self.out[work_no] = self.now_s

    def signed_in(self, work_no: str) -> bool:
        """Say whether an agent is there."""
        if self.returning and work_no in self.out and self.now_s > self.out[work_no] + 8:
            del self.out[work_no]
        return work_no not in self.out

    def script(self, work_no: str, *faults: Fault, on: str = "poll") -> None:
        """Keep a fault."""
        assert on == "poll"
        self.faults.append((work_no, faults))

    def go_on(self, until_s: float) -> None:
        """Let time pass."""
        while self.now_s < until_s:
            self.now_s = self.day.step()

    def kept(self) -> list[tuple[float, str, str, str]]:
        """Give the log in a form that can be compared: call ids begin with the time of day."""
        return [
            (at, work_no, event_type, str(content).replace(str(self.day._floor._first), "T"))
            for at, work_no, event_type, content in self.log
            if event_type != "AgentOther_ShutdownService"  # its loginTime is the time of now
        ]


def call_id_of(content: object) -> str | None:
    """Find the call id in an event's content."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        return content.get("callid") or content.get("callId")
    return None


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_calls_are_consistent(seed: int) -> None:
    """For each agent: one call at a time, with one id from ringing to release, its members never changing."""
    room = Room(seed=seed)
    room.go_on(HOUR_S)
    current: dict[str, str | None] = defaultdict(lambda: None)
    members: dict[str, tuple[object, ...]] = {}
    talking: dict[str, str] = {}
    for _, work_no, event_type, content in room.log:
        call_id = call_id_of(content)
        if event_type in {"AgentEvent_Incoming_CallInfo", "AgentEvent_Customer_Alerting"}:
            assert current[work_no] is None, "a new call while the last one is not over"
            current[work_no] = call_id
        elif event_type.startswith("AgentEvent_") and event_type != "AgentEvent_Agent_Occupyed":
            assert call_id == current[work_no], f"{work_no}: {event_type} of another call"
        if event_type in {"AgentEvent_Ringing", "AgentEvent_Talking"}:
            assert isinstance(content, dict)
            facts = (content["caller"], content["called"], content["feature"])
            assert members.setdefault(str(call_id), facts) == facts
        if event_type == "AgentEvent_Talking":
            talking[work_no] = str(call_id)
        if event_type in {"AgentEvent_Call_Release", "AgentEvent_No_Answer", "AgentEvent_Call_Out_Fail"}:
            current[work_no] = None
        if event_type.startswith("AgentState_") and event_type != "AgentState_Busy":
            assert current[work_no] is None, f"{work_no}: {event_type} in a call"
    assert len(members) > 300


def test_a_transfer_shows_on_both() -> None:
    """Hold, success and release on the first; ringing with `transFrom` and talking on the second; one call id."""
    room = Room()
    room.go_on(HOUR_S)
    groups = {agent.work_no: agent.group for agent in room.agents}
    transfers = [entry for entry in room.log if entry[2] == "AgentEvent_SuccTransResult"]
    assert len(transfers) > 10
    for at, first, _, content in transfers:
        call_id = call_id_of(content)
        events = [entry for entry in room.log if call_id_of(entry[3]) == call_id]
        theirs = [entry for entry in events if entry[1] != first]
        second = {entry[1] for entry in theirs}
        assert len(second) == 1
        assert groups[first] == groups[next(iter(second))]
        ringing = next(entry[3] for entry in theirs if entry[2] == "AgentEvent_Ringing")
        assert isinstance(ringing, dict)
        assert (ringing["transfer"], ringing["transFrom"]) == ("yes", first)
        mine = [entry[2] for entry in events if entry[1] == first]
        assert mine[-3:] == ["AgentEvent_Hold", "AgentEvent_SuccTransResult", "AgentEvent_Call_Release"]
        assert [entry[2] for entry in theirs][:3] == [
            "AgentEvent_Incoming_CallInfo", "AgentEvent_Ringing", "AgentEvent_Talking",
        ]  # fmt: skip
        assert theirs[2][0] < at


def test_a_day_has_everything_in_it() -> None:
    """Calls in and out, holds, transfers, conferences, rests, busy times, ways home, 503s; at a lively pace."""
    room = Room()
    room.go_on(HOUR_S)
    seen = {event_type for _, _, event_type, _ in room.log}

    assert seen >= {
        "AgentEvent_Agent_Occupyed", "AgentEvent_No_Answer", "AgentEvent_Hold", "AgentEvent_Conference",
        "AgentEvent_Call_Out_Fail", "AgentEvent_Customer_Alerting", "AgentEvent_Customer_Release",
        "AgentState_SetRest_Success", "AgentState_CancelRest_Success", "AgentState_Rest_Timeout",
        "AgentState_SetNotReady_Success", "AgentState_CancelNotReady_Success", "AgentState_Work",
        "AgentState_CancelWork_Success", "AgentOther_ShutdownService",
    }  # fmt: skip
    assert 40 <= len(room.faults) <= 90
    assert {fault for _, scripted in room.faults for fault in scripted} == {faults.status(503)}
    assert 1 <= len(room.log) / HOUR_S <= 4
    assert room.log[0][0] < 3


def test_a_seed_gives_the_same_day() -> None:
    """The same seed again, and another one."""
    rooms = [Room(seed=4), Room(seed=4), Room(seed=5)]
    for room in rooms:
        room.go_on(600)

    assert rooms[0].kept() == rooms[1].kept() != rooms[2].kept()


def test_who_is_signed_out_while_it_hands_a_call_over_leaves_nothing_behind() -> None:
    """Nothing happens to it until it is back; the colleague's call is released, and it is ready."""
    room = Room(returning=False)
    while not any(isinstance(entry[3], dict) and entry[3].get("transFrom") for entry in room.log):
        room.now_s = room.day.step()
    at, second, _, ringing = room.log[-1]
    assert isinstance(ringing, dict)
    first = ringing["transFrom"]
    room.out[first] = at
    room.go_on(at + 60)
    later = [entry for entry in room.log if entry[0] > at]

    assert not [entry for entry in later if entry[1] == first]
    theirs = [(entry[2], call_id_of(entry[3])) for entry in later if entry[1] == second]
    assert theirs[2:4] == [("AgentEvent_Call_Release", ringing["callid"]), ("AgentState_Ready", None)]


def test_a_conference_is_left_in_good_order() -> None:
    """One of the three is signed out: the other agent's call is released, and it is ready for the next."""
    room = Room(returning=False)
    while not any(entry[2] == "AgentEvent_Conference" for entry in room.log):
        room.now_s = room.day.step()
    at, second, _, content = room.log[-1]
    first = room.log[-2][1]
    room.out[first] = at
    room.go_on(at + 60)

    released = next(entry for entry in room.log if entry[0] > at and entry[1] == second)
    assert (released[2], released[3]) == ("AgentEvent_Call_Release", call_id_of(content))


def test_nobody_goes_home_where_that_is_off() -> None:
    """For agents that nobody can sign in again."""
    room = Room(sign_outs=False)
    room.go_on(HOUR_S)

    assert "AgentOther_ShutdownService" not in {entry[2] for entry in room.log}


def test_a_day_waits_for_agents_and_their_return() -> None:
    """All are away: nothing happens; they come: it goes on."""
    room = Room(number=2)
    room.returning = False
    room.out = {agent.work_no: 0.0 for agent in room.agents}
    room.go_on(300)
    assert room.log == []

    room.out.clear()
    room.go_on(600)

    assert {entry[1] for entry in room.log} == {"101", "102"}


def test_demo_agents_have_names_and_two_groups() -> None:
    """Twelve names from many places, then with numbers; half in each group."""
    agents = demo_agents(14)

    assert [agent.work_no for agent in agents] == [str(number) for number in range(101, 115)]
    assert len({agent.name for agent in agents}) == 14
    assert agents[12].name == "Amina 2"
    assert [agent.group for agent in agents].count("Orders") == 7


async def test_a_day_runs_over_https() -> None:
    """Fifty times as fast, with a real client."""
    async with Simulator(agents=demo_agents(4), hold_s=0.2, strict=False) as simulator:
        day = asyncio.create_task(Day(simulator, simulator.agents, speed=50).run())
        pollers = [asyncio.create_task(keep_polling(simulator, agent.work_no)) for agent in simulator.agents]
        await simulator.wait_for(
            lambda: sum(len(simulator.handed_out(agent.work_no)) for agent in simulator.agents) > 40
        )
        for task in (day, *pollers):
            task.cancel()
        await asyncio.gather(day, *pollers, return_exceptions=True)


@pytest.mark.parametrize("scenario", [None, "call.yaml"])
async def test_serve_says_in_one_line_how_to_reach_it(scenario: str | None) -> None:
    """`simulate`: one line of JSON; its GUIDs are good, its CA is there, and something happens."""
    file = None if scenario is None else Path(__file__).parent.parent / "examples" / "scenarios" / scenario
    lines: asyncio.Queue[str] = asyncio.Queue()
    task = asyncio.create_task(serve("127.0.0.1:0", 3, file, 5.0, "static", lines.put_nowait))
    async with asyncio.timeout(10):
        told = json.loads(await lines.get())
        agent = told["agents"][0]
        command = ["curl", "-sS", "--cacert", told["ca_file"], *poll_headers(agent["guid"])]
        process = await asyncio.create_subprocess_exec(
            *command, f"{told['url']}/resource/agentevent/{agent['workNo']}", stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

    assert json.loads(output)["retcode"] == "0"
    assert len(told["agents"]) == (3 if scenario is None else 2)
    assert agent == {"workNo": "101", "guid": agent["guid"], "password": "pw-101", "phone": "8101"}
    assert lines.empty()
    assert not is_there(told["ca_file"])


async def test_serve_names_a_port_in_use() -> None:
    """One line for a person."""
    async with Simulator(agents=["101"]) as simulator:
        address = simulator.url.split("/")[2]
        with pytest.raises(SimulatorError, match=f"cannot listen on {address}: "):
            await serve(address, 1, None, 1.0, "dynamic", print)
        assert (await curl(simulator, simulator.url)).status == 404


@pytest.mark.parametrize("listen", ["", "8043", ":8043", "host:", "host:port", "host:65536"])
def test_an_address_must_be_host_and_port(listen: str) -> None:
    """Anything else is told with an example."""
    with pytest.raises(SimulatorError, match="expected HOST:PORT"):
        parse_listen(listen)


def test_an_address_may_be_ipv6() -> None:
    """In brackets."""
    assert parse_listen("[::1]:0") == ("::1", 0)
