"""Scenario files: every shipped one runs, each kind of step does what it says, mistakes are told with their place."""

import asyncio
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from adapter.simulator import (
    SAMPLES,
    Fault,
    Player,
    ScenarioError,
    SimAgent,
    Simulator,
    faults,
    load_scenario,
    sample,
)
from adapter.simulator.scenario import Step
from tests.simulator_support import curl, keep_polling, poll, session_url, sign_in

FOLDER = Path(__file__).parent.parent / "examples" / "scenarios"
SHIPPED = sorted(FOLDER.glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    """Write a scenario file."""
    file = folder / "scenario.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def types_of(events: list[object]) -> list[object]:
    """List the types of events."""
    return [event["eventType"] for event in events if isinstance(event, dict)]


def test_scenarios_are_shipped() -> None:
    """The four that the README lists are there."""
    assert [file.name for file in SHIPPED] == ["busy.yaml", "call.yaml", "every-event.yaml", "faults.yaml"]
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{file.name}`" in text for file in SHIPPED)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
async def test_every_shipped_scenario_loads_and_runs(file: Path) -> None:
    """One pass of it, twenty times as fast, polled for every agent; all that was not lost is handed out."""
    scenario = replace(load_scenario(file), loops=1)
    async with Simulator(agents=scenario.agents, hold_s=0.2, strict=False) as simulator:
        pollers = [asyncio.create_task(keep_polling(simulator, agent.work_no)) for agent in scenario.agents]
        async with asyncio.timeout(15):
            await Player(simulator, scenario, speed=20).run()
        seen = 0
        for agent in scenario.agents:
            if simulator.signed_in(agent.work_no) and file.stem != "faults":
                await simulator.wait_for(partial(simulator.drained, agent.work_no))
            seen += len(simulator.handed_out(agent.work_no))
        for poller in pollers:
            poller.cancel()
        await asyncio.gather(*pollers, return_exceptions=True)

    assert seen > 0


async def test_every_event_scenario_has_every_event() -> None:
    """Given to the simulator as a file: each type of the catalogue once, and then nobody is signed in."""
    async with Simulator(hold_s=0.2, scenario=FOLDER / "every-event.yaml", strict=False) as simulator:
        poller = asyncio.create_task(keep_polling(simulator, "101"))
        await simulator.wait_for(lambda: not simulator.signed_in("101"))
        poller.cancel()
        await asyncio.gather(poller, return_exceptions=True)

        assert simulator.agents == (
            SimAgent(work_no="101", name="Amina", group="Orders", password="pw-101", phone="8101"),  # noqa: S106  the default
        )
        assert sorted(map(str, types_of(list(simulator.handed_out("101"))))) == sorted(SAMPLES)


async def test_a_call_keeps_its_id_over_agents_and_changes_it_with_the_pass() -> None:
    """`$call` is one call wherever it stands."""
    scenario = replace(load_scenario(FOLDER / "call.yaml"), loops=2)
    async with Simulator(agents=scenario.agents) as simulator:
        await Player(simulator, scenario, speed=200).run()
        ids = []
        for work_no in ("101", "102"):
            events = []
            while simulator.queued(work_no):
                events.append((await poll(simulator, work_no)).json["event"])
            contents = [event["content"] for event in events if event["content"] is not None]
            ids.append(
                [
                    content if isinstance(content, str) else content.get("callid", content.get("callId"))
                    for content in contents
                ]
            )

    assert len(set(ids[0])) == 2
    assert sorted(set(ids[0])) == sorted(set(ids[1]))
    assert ids[0] == sorted(ids[0], key=ids[0].index)


ALL_STEPS = """
seed: 5
gateway: {hold: 0.05, poll_wait: true, auth_mode: static, guid_interval: 5, guid_timeout: 6, poll_max_time: 7}
agents:
  - "101"
  - {work_no: "102", name: Yusuf, group: A, password: sesame, phone: "77", guid: g-102, signed_in: true}
  - {work_no: "103", signed_in: false}
timeline:
  "101":
    - {event: AgentEvent_Ringing, content: {callid: $$own, extra: 1}}
    - {event: AgentEvent_Hold, content: $$own}
    - {event: {eventType: Made_Up, content: {callid: $$own}}}
    - repeat: 2
      steps:
        - {at: 0.02, event: AgentEvent_Hold, content: $$own}
        - {repeat: 1, steps: [{after: [0, 0.01]}]}
  "102":
    - {fault: {status: 503, body: "no"}}
    - {fault: [{retcode: "000-000", message: odd}, {garbage: "x"}]}
    - {fault: {retcode: "100-004"}, request: login}
    - {status: 9}
    - {cut: true}
  "103":
    - {sign_in: true}
    - {expire_guid: true}
    - {sign_in: true}
    - {sign_out: told}
    - {sign_out: untold}
    - {sign_in: true}
every:
  - {polls: 2, agents: ["101"], fault: {close_delimited: true}}
"""


async def test_each_kind_of_step_does_what_it_says(tmp_path: Path) -> None:
    """All of them in one scenario, whose settings win over the simulator's."""
    file = write(tmp_path, ALL_STEPS)
    async with Simulator(hold_s=60, guid_interval_s=0, scenario=file) as simulator:
        assert simulator.playing is not None
        await simulator.playing
        events = [(await poll(simulator)).json["event"] for _ in range(5)]
        answers = [await poll(simulator, "102") for _ in range(3)]
        refused = await sign_in(simulator, "102")
        state = await curl(simulator, "-H", "Guid: g-102", session_url(simulator, "102", "/agentstatus"))
        closing = [record for record in simulator.polls("101") if record.outcome == "event"]

    own = [
        content if isinstance(content, str) else content["callid"] for content in (event["content"] for event in events)
    ]
    assert own[0] == own[1] == own[2]
    assert len({own[0], own[3], own[4]}) == 3
    assert events[0]["content"]["extra"] == 1
    assert events[2]["eventType"] == "Made_Up"
    assert (answers[0].status, answers[0].body) == (503, b"no")
    assert answers[1].json == {"message": "odd", "retcode": "000-000"}
    assert answers[2].body == b"x"
    assert refused.retcode == "100-004"
    assert state.json["result"]["agentState"] == 9
    assert simulator.signed_in("103")
    assert simulator.settings.hold_s == 0.05
    assert simulator.settings.auth_mode == "static"
    assert len({record.connection for record in closing}) == 5


def test_a_seed_and_a_fault_are_read(tmp_path: Path) -> None:
    """Every fault has its key, and several make one answer."""
    text = """
agents: ["101"]
loops: forever
timeline:
  "101":
    - {after: 1}
    - fault:
        - {drop: true}
        - {drop: 7}
        - {hang: true}
        - {raw: !!binary AAE=}
        - {chunked: true, slow: 9, rotate: true, delay: 2, headers: {A: b}}
"""
    scenario = load_scenario(write(tmp_path, text))

    assert (scenario.loops, scenario.seed, scenario.settings) == (math.inf, 1, {})
    wait, step = scenario.timeline["101"]
    assert wait == Step(after_s=(1, 1), action="wait")
    assert step.argument == (
        "poll",
        (
            faults.drop(),
            faults.drop(7),
            faults.hang(),
            faults.raw(b"\0\1"),
            Fault(framing="chunked", bytes_per_s=9, rotate=True, delay_s=2, headers=(("A", "b"),)),
        ),
    )


HEAD = 'agents: ["101"]\ntimeline:\n  "101":\n    - '

MISTAKES = [
    ("", ": the file is empty"),
    ("agents: [", ":1: not YAML"),
    ("a: \x01", ": not YAML"),
    ("[]", ":1: expected a mapping with agents and a timeline"),
    ("seed: 1", ":1: expected agents"),
    ("agents: 101", ":1: agents: expected a list of work numbers"),
    ("agents: [101]", ':1: agents[0]: expected a work number, quote it ("101")'),
    ("agents: [true]", ":1: agents[0]: expected a work number, got True"),
    ("agents: [{name: A}]", ":1: agents[0]: expected work_no"),
    ('agents: ["1", "1"]', ":1: agents: expected every work number once"),
    ('agents: [{work_no: "1", signed_in: 1}]', ":1: agents[0].signed_in: expected true or false, got 1"),
    ('agents: ["1"]\nagents: ["2"]', ":2: agents stands there twice"),
    ('agents: ["1"]\nlops: 2', ":2: lops: unknown key; did you mean loops?"),
    ('agents: ["1"]\nxyzzy: 2', ":2: xyzzy: unknown key; a mapping with"),
    ('agents: ["1"]\nloops: 0', ":2: loops: expected a number of times or forever, got 0"),
    ('agents: ["1"]\nloops: forever', ":2: loops: expected some time to pass"),
    ('agents: ["1"]\nseed: x', ":2: seed: expected a whole number, got 'x'"),
    ('agents: ["1"]\ntimeline: {1: []}', ':2: timeline: expected text as key, quote it ("1")'),
    ('agents: ["1"]\ntimeline: {"2": []}', ":2: timeline.2: expected a work number of agents, got 2"),
    ('agents: ["1"]\ngateway: {hold: -1}', ":2: gateway.hold: expected seconds, got -1"),
    ('agents: ["1"]\ngateway: {auth_mode: 2}', ":2: gateway.auth_mode: expected dynamic or static, got 2"),
    ('agents: ["1"]\nevery: [{polls: 2}]', ":2: every[0]: expected fault"),
    (
        'agents: ["1"]\nevery: [{polls: 2, fault: {drop: true}, agents: ["3"]}]',
        ":2: every[0].agents[0]: expected 1, got '3'",
    ),
    (f"{HEAD}{{fault: {{status: true}}}}", "expected an HTTP status, got True"),
    (f"{HEAD}after: soon", ":4: timeline.101[0].after: expected seconds, or [least, most], got 'soon'"),
    (f"{HEAD}after: [2, 1]", ":4: timeline.101[0].after: expected [least, most] in seconds"),
    (f"{HEAD}{{after: 1, at: 1}}", ":4: timeline.101[0]: expected after or at, got both"),
    (f"{HEAD}{{cut: true, sign_in: true}}", ":4: timeline.101[0]: expected one thing to happen, got sign_in and cut"),
    (f"{HEAD}{{cut: false}}", ":4: timeline.101[0].cut: expected true, or no such step"),
    (f"{HEAD}{{cut: true, request: login}}", ":4: timeline.101[0].request: goes with fault only"),
    (f"{HEAD}{{event: AgentState_Redy}}", "got AgentState_Redy; did you mean AgentState_Ready?"),
    (f"{HEAD}{{event: Xyzzy}}", "got Xyzzy; write other events out as a mapping"),
    (f"{HEAD}{{event: {{a: 1}}, content: 2}}", ":4: timeline.101[0].content: an event written out has its content"),
    (f"{HEAD}{{event: {{a: 2026-01-01}}}}", ":4: timeline.101[0].event: expected what JSON can say"),
    (f"{HEAD}{{event: {{a: !x 1}}}}", ":4: timeline.101[0].event: cannot be read: could not determine"),
    (f"{HEAD}{{sign_out: true}}", ":4: timeline.101[0].sign_out: expected told or untold, got True"),
    (f"{HEAD}{{repeat: 2}}", ":4: timeline.101[0].repeat: expected steps beside it"),
    (f"{HEAD}{{repeat: forever, steps: [{{cut: true}}]}}", "expected some time to pass in what is repeated forever"),
    (f"{HEAD}&a {{repeat: 2, steps: [*a]}}", "expected at most 4 repeats inside each other"),
    (f"{HEAD}{{fault: {{}}}}", ":4: timeline.101[0].fault: expected a fault: one or more of status"),
    (f"{HEAD}{{fault: {{chunked: false}}}}", "expected a fault: one or more of status"),
    (f"{HEAD}{{fault: {{slow: 0}}}}", ":4: timeline.101[0].fault.slow: expected bytes per second, got 0"),
    (f"{HEAD}{{fault: {{headers: 1}}}}", ":4: timeline.101[0].fault.headers: expected header lines"),
    (f"{HEAD}{{fault: {{status: 99}}}}", ":4: timeline.101[0].fault.status: expected an HTTP status, got 99"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), MISTAKES)
def test_a_mistake_names_file_line_and_place(text: str, expected: str, tmp_path: Path) -> None:
    """One line, which says what was expected and what is there."""
    file = write(tmp_path, text)

    with pytest.raises(ScenarioError) as caught:
        load_scenario(file)

    assert str(caught.value).startswith(f"{file}:")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """No file, and one that is not UTF-8."""
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(b"\xff")
    for file in (tmp_path / "none.yaml", bad):
        with pytest.raises(ScenarioError, match=r"yaml: cannot be read: ") as caught:
            load_scenario(file)
        assert (caught.value.file, caught.value.line, caught.value.path) == (file, None, "")


def test_a_repeat_forever_may_hold_a_repeat_that_takes_time(tmp_path: Path) -> None:
    """Time may pass at any depth."""
    text = f"{HEAD}{{repeat: forever, steps: [{{repeat: 2, steps: [{{after: 1}}]}}]}}"

    assert load_scenario(write(tmp_path, text)).timeline["101"][0].action == "repeat"


async def test_a_scenario_that_goes_on_ends_with_its_simulator(tmp_path: Path) -> None:
    """Nothing keeps playing."""
    text = f"{HEAD}{{repeat: forever, steps: [{{after: 0.01, event: AgentState_Ready}}]}}"
    async with Simulator(scenario=write(tmp_path, text)) as simulator:
        await simulator.wait_for(lambda: simulator.queued("101") > 2)

    assert simulator.playing is not None
    assert simulator.playing.cancelled()


def test_samples_are_fresh_and_take_content() -> None:
    """Members go over the sample's; other content stands in its place; a sample is never changed."""
    began_ms = int(time.time() * 1000)
    ringing = sample("AgentEvent_Ringing", "101", {"callid": "1-1"})
    assert isinstance(ringing["content"], dict)
    assert ringing["content"]["callid"] == "1-1"
    assert ringing["content"]["caller"] == "40038"
    assert sample("AgentEvent_Ringing", "101")["content"] == SAMPLES["AgentEvent_Ringing"]
    assert sample("AgentEvent_Hold", "101", "1-1")["content"] == "1-1"
    assert sample("AgentState_Ready", "101", None)["content"] is None
    assert sample("Made_Up", "101", {"a": 1})["content"] == {"a": 1}
    assert isinstance(ringing["eventGenTime"], int)
    assert ringing["eventGenTime"] >= began_ms
