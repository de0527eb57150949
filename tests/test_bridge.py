"""What the adapter says of itself below `bridge`, and the requests that it answers."""

import asyncio
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from adapter.answer import parse_answer
from adapter.bridge import Bridge, _request_id, resident_bytes
from adapter.config import load
from adapter.errors import CommandError, GatewayProtocolError
from adapter.logs import TopicHandler, set_up
from adapter.mqtt import Received
from tests.adapter_support import running, write
from tests.broker_support import Broker
from tests.contract_support import valid
from tests.stage_support import Stage, staged


async def test_info_is_small_and_shows_no_secret(tmp_path: Path, shared_broker: Broker) -> None:
    """Section 3: under 8 KB however many agents; the roster is 200 a page, and pages left over are cleared."""
    agents = [{"work_no": f"{n}", "guid": f"secret-guid-{n}", "name": f"N{n}", "group": "g"} for n in range(1000, 1401)]
    async with staged(tmp_path, shared_broker, agents=[], quiet=False) as stage:
        gateway = {"hold": 100, "timeout": 110}  # so that no more than the first of them is polled
        async with stage.running(agents=agents, gateway=gateway):
            info = await stage.wait("bridge/info")
            last = await stage.wait("bridge/agents/3")
        payload = stage.on("bridge/info")[-1].payload
        assert len(payload) < 8192
        assert b"secret" not in b"".join(each.payload for each in stage.peer.messages)
        assert info["agents"]["configured"] == 401
        assert (last["page"], last["pages"], len(last["agents"])) == (3, 3, 1)
        assert stage.json("bridge/agents/1")[0]["agents"][0] == {"workNo": "1000", "name": "N1000", "group": "g"}
        assert len(stage.json("bridge/agents/2")[0]["agents"]) == 200

        async with stage.running(agents=agents[:5], gateway=gateway):
            await stage.peer.wait_for(lambda: stage.on("bridge/agents/3")[-1].payload == b"")
        assert [stage.on(f"bridge/agents/{page}")[-1].payload == b"" for page in (1, 2, 3)] == [False, True, True]


async def test_another_prefix_clears_what_is_retained_under_the_old_one(tmp_path: Path, shared_broker: Broker) -> None:
    """D4a: what is stored of topics that are not ours any more is not told to a broker without a mark once more."""
    async with staged(tmp_path, shared_broker) as stage:
        async with running(write(tmp_path, stage.values(mqtt={"topic_prefix": f"{stage.prefix}/old"}))):
            stage.simulator.emit_sample("101", "AgentState_Ready")
            await stage.wait("old/101/event")
            await stage.wait("old/bridge/info")
        async with running(write(tmp_path, stage.values(mqtt={"topic_prefix": f"{stage.prefix}/new"}))):
            await stage.wait("new/101/state", state="idle")
            for topic in (
                "101/event",
                "101/state",
                "101/session",
                "101/availability",
                "bridge/info",
                "bridge/agents/1",
            ):
                await stage.peer.wait_for(lambda old=f"old/{topic}": stage.on(old)[-1].payload == b"")  # type: ignore[misc] # bound at once


def test_info_of_the_largest_configuration_is_small(tmp_path: Path) -> None:
    """Under 8 KB with 5,000 agents and every list as long as it may be."""
    from adapter.config.report import public  # noqa: PLC0415 - only here

    values: dict[str, Any] = {
        "gateway": {"url": "https://gateway.example/" + "a" * 100},
        "mqtt": {"topic_prefix": "p" * 200, "response_prefix": "r" * 200},
        "agents": [{"work_no": str(number), "guid": "g"} for number in range(5000)],
        "privacy": {"mask": ["m" * 62 + f"{number:02}" for number in range(50)], "with": "drop"},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.dump(values, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)))

    assert len(json.dumps(public(load(path)))) < 7000


async def test_health_counts(tmp_path: Path, shared_broker: Broker) -> None:
    """Section 3: every member is there, and counts what happened."""
    async with staged(tmp_path, shared_broker) as stage, stage.running() as adapter:
        await stage.polling("101")
        stage.simulator.emit_sample("101", "AgentState_Ready")
        await stage.wait("101/event", seq=1)
        await stage.simulator.wait_for(lambda: len(stage.simulator.polls("101")) > 2)
        await adapter.app._report()
        await stage.wait_count("bridge/health", 2)
        health = stage.json("bridge/health")[-1]

        assert health["events"] == 1
        assert health["polls"] >= 2
        assert health["publishes"] > 4
        assert health["agents"] == {"polling": 1}
        assert health["outbox"]["depth"] == 0
        assert health["outbox"]["bytes"] > 4096
        assert health["rssBytes"] > 10_000_000
        assert health["cpuSeconds"] > 0
        assert health["uptime"] > 0


async def test_requests_are_answered(tmp_path: Path, shared_broker: Broker) -> None:
    """Section 3: `agents` in pages, with id and correlation data; what is unknown, retained or odd is an error."""
    agents = [f"{n}" for n in range(100, 350)]
    async with staged(tmp_path, shared_broker, agents=agents, quiet=False) as stage:
        await stage.send("bridge/request/restart", {"id": "left behind"}, retain=True)
        try:
            async with stage.running() as adapter:
                retained = await stage.wait("bridge/response/restart")
                await stage.send("bridge/request/agents", {"id": "r1"}, correlation=b"c")
                await stage.wait_count("bridge/response/agents", 2)
                await stage.send("bridge/request/agents", b"")
                await stage.wait_count("bridge/response/agents", 4)
                await stage.send("bridge/request/dance", {"id": "r2"})
                unknown = await stage.wait("bridge/response/unknown")
                await stage.send("bridge/request/agents", b"[]")
                odd = await stage.wait("bridge/response/agents", status="error")
                assert not adapter.task.done()
        finally:
            await stage.send("bridge/request/restart", b"", retain=True)

        pages = stage.json("bridge/response/agents")[:2]
        assert [page["id"] for page in pages] == ["r1", "r1"]
        assert [(page["data"]["page"], page["data"]["pages"]) for page in pages] == [(1, 2), (2, 2)]
        assert [len(page["data"]["agents"]) for page in pages] == [200, 50]
        assert [each.correlation for each in stage.on("bridge/response/agents")[:3]] == [b"c", b"c", None]
        assert (retained["status"], retained["reason"]) == ("error", "retained")
        assert unknown["id"] == "r2"
        assert (
            unknown["reason"]
            == "unknown request; expected one of agents, diagnostics, log_level, reload, restart, snapshot"
        )
        assert odd["reason"] == 'expected {"id": "..."} or nothing'


async def test_a_flood_of_requests_is_dropped(tmp_path: Path, shared_broker: Broker) -> None:
    """C5 holds for requests as well: the adapter has more to do than to answer."""
    async with staged(tmp_path, shared_broker) as stage, stage.running():
        await stage.polling("101")
        await asyncio.gather(*(stage.send("bridge/request/agents", b"") for _ in range(80)))
        await stage.peer.wait_for(lambda: [each for each in stage.json("bridge/log") if "dropped" in each["message"]])
        await stage.wait_count("bridge/response/agents", 20)

        assert len(stage.on("bridge/response/agents")) <= 60


@given(
    payload=st.one_of(st.binary(max_size=40), st.text(max_size=20).map(lambda text: json.dumps({"id": text}).encode()))
)
def test_any_request_is_understood_or_refused(payload: bytes) -> None:
    """Nothing that somebody publishes ends the program."""
    received = Received(topic="t", payload=payload, retain=False, qos=1, mid=1, correlation=None, response_topic=None)
    try:
        identifier = _request_id(received)
    except CommandError:
        return
    assert identifier is None or len(identifier) <= 64


async def test_warnings_are_published_with_their_agent(tmp_path: Path, shared_broker: Broker) -> None:
    """`bridge/log`: warnings and errors with the work number; what is below is not."""
    async with staged(tmp_path, shared_broker, quiet=False) as stage, stage.running():
        await stage.polling("101")
        stage.simulator.sign_out("101")
        ended = await stage.wait("bridge/log", workNo="101")
        log = logging.getLogger("adapter.test")
        log.info("not this")
        log.error("half an emoji: %s", "\ud83d")
        await asyncio.to_thread(log.warning, "from a thread")
        await stage.wait("bridge/log", message="from a thread", level="warning", workNo=None)

        assert "100-006" in ended["message"]
        assert ended["level"] == "warning"
        assert "half an emoji: ?" in [each["message"] for each in stage.json("bridge/log")]
        assert "not this" not in [each["message"] for each in stage.json("bridge/log")]
        assert valid(stage.peer, stage.prefix) > 5


async def test_a_log_line_of_an_odd_level_is_nobodys() -> None:
    """Only the levels that the payload's type has are published."""
    seen: list[object] = []
    handler = TopicHandler("t", seen.append)
    handler.emit(logging.LogRecord("x", 35, "", 0, "odd level", None, None))
    await asyncio.sleep(0)

    assert seen == []


@pytest.mark.parametrize("form", ["text", "json"])
def test_log_lines_are_one_line_each(form: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What quotes somebody's text can neither forge a line nor speak to the terminal; no exception quotes any."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    path = write(
        tmp_path,
        {
            "gateway": {"url": "https://g.example"},
            "agents": [{"work_no": "1", "guid": "g"}],
            "log": {"level": "info", "format": form},
        },
    )
    try:
        set_up(load(path).log)
        set_up(load(path).log)
        logging.getLogger("adapter.test").warning("one\ntwo\x1b[31m\u2028three", extra={"work_no": "101"})
        logging.getLogger("adapter.test").debug("not this")
        logging.getLogger("httpx").info("nor this")
        try:
            parse_answer(b"")
        except GatewayProtocolError:
            logging.getLogger("adapter.test").exception("oh")
    finally:
        for handler in [each for each in root.handlers if each not in before]:
            root.removeHandler(handler)
        root.setLevel(level)
    lines = capsys.readouterr().err.rstrip("\n").split("\n")

    mistake = r"adapter.test: a mistake of this program, please report it: GatewayProtocolError at answer.py:\d+"
    if form == "text":
        assert lines[0].endswith("Z warning one two [31m three")
        assert re.search(rf" error {mistake}$", lines[1])
        assert len(lines) == 2
    else:
        first, second = [json.loads(line) for line in lines]
        assert (first["level"], first["message"], first["workNo"]) == ("warning", "one\ntwo\x1b[31m\u2028three", "101")
        assert re.fullmatch(mistake, second["message"])


def test_memory_is_measured() -> None:
    """A process of Python takes some megabytes; where the system does not tell, it is 0."""
    assert 5_000_000 < resident_bytes() < 5_000_000_000


async def test_the_phases_are_counted(tmp_path: Path, shared_broker: Broker) -> None:
    """Agents before their first request are in no phase, and after it in one."""
    async with staged(tmp_path, shared_broker, agents=["101", "102"]) as stage, stage.running() as adapter:
        await stage.polling("101")
        await stage.polling("102")
        bridge: Bridge = adapter.app._bridge
        assert bridge.phases() == {"polling": 2}
        assert isinstance(stage, Stage)
