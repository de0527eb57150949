"""schemas/asyncapi.yaml: made from the code, and true of the topics, of what is published and of docs/topics.md.

`make test-contract` holds it against AsyncAPI itself.
"""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from adapter import asyncapi, channels, contracts
from adapter.agent.presence import Timing
from tests.asyncapi_support import DOCUMENT, Record, Sent, hold, promise_of, promises
from tests.broker_support import Broker, Peer
from tests.cluster_support import servers
from tests.stage_support import staged
from tests.tcp_proxy import Proxy

ROOT = Path(__file__).parent.parent
SEEN_IN_A_RUN = {
    ("event", "event"),
    ("event", "empty"),
    ("events", "event"),
    ("state", "state"),
    ("state", "empty"),
    ("session", "session"),
    ("session", "empty"),
    ("availability", "availability"),
    ("availability", "empty"),
    ("calldataResult", "result"),
    ("sessionResult", "result"),
    ("bridgeAvailability", "availability"),
    ("bridgeInfo", "info"),
    ("bridgeAgents", "roster"),
    ("bridgeHealth", "health"),
    ("bridgeMark", "mark"),
    ("bridgeLog", "log"),
    ("bridgeResponse", "response"),
    ("discovery", "discovery"),
    ("discovery", "empty"),
}
SEEN_OF_A_MEMBER = {
    ("event", "event"),
    ("events", "event"),
    ("state", "state"),
    ("session", "session"),
    ("availability", "availability"),
    ("bridgeAvailability", "availability"),
    ("bridgeInfo", "info"),
    ("bridgeAgents", "roster"),
    ("bridgeHealth", "health"),
    ("bridgeResponse", "response"),
    ("memberAvailability", "availability"),
    ("memberInfo", "info"),
    ("memberHealth", "health"),
    ("memberMark", "mark"),
}


def test_it_is_what_the_code_says() -> None:
    """A file that differs is not up to date: `make schemas`."""
    assert contracts.read("asyncapi") == asyncapi.render()
    assert asyncapi.make() == DOCUMENT


def test_writing_it_is_writing_the_file(tmp_path: Path) -> None:
    """`python -m adapter.asyncapi FILE` writes what is there, to the byte."""
    subprocess.run([sys.executable, "-m", "adapter.asyncapi", str(tmp_path / "a.yaml")], check=True)

    assert (tmp_path / "a.yaml").read_text(encoding="utf-8") == contracts.read("asyncapi")


def test_its_schemas_are_those_of_the_payloads() -> None:
    """What AsyncAPI says of a payload is what its JSON Schema says, with references of its own."""
    schemas = DOCUMENT["components"]["schemas"]
    for name, kind in contracts.PAYLOADS.items():
        made = json.loads(contracts.read(name).replace("#/$defs/", "#/components/schemas/"))

        assert schemas[kind.__name__] == {
            **{key: value for key, value in made.items() if key not in ("$schema", "$defs")},
            "title": kind.__name__,
        }
        assert {each: schemas[each] for each in made.get("$defs", {})} == made.get("$defs", {})


def test_its_schemas_stay_within_what_asyncapi_knows() -> None:
    """A schema of AsyncAPI is one of draft 7, where nothing beside a `$ref` counts."""

    def references(value: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - any JSON
        if isinstance(value, dict):
            return ([value] if "$ref" in value else []) + [each for v in value.values() for each in references(v)]
        return [each for v in value for each in references(v)] if isinstance(value, list) else []

    assert [each for each in references(DOCUMENT) if len(each) > 1] == []
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft7Validator.check_schema(schema)


def test_the_topics_are_those_of_the_documentation() -> None:
    """docs/topics.md says the same of every topic: direction, retain and QoS."""
    rows = re.findall(
        r"^\| \[?`([^`]+)`(?:\]\([^)]*\))? \| (in|out) \| (yes|no|–) \| ([01]) \|",  # noqa: RUF001 - the table's dash
        (ROOT / "docs/topics.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    documented = {(re.sub(r"<\w+>", "<>", topic), way, retained, int(qos)) for topic, way, retained, qos in rows}

    assert documented == {
        (
            re.sub(r"\{\w+\}", "<>", promise.address),
            "out" if promise.sends else "in",
            ("yes" if promise.retain else "no") if promise.sends else "–",  # noqa: RUF001 - the table's dash
            promise.qos,
        )
        for promise in promises().values()
    }


async def test_what_the_adapter_does_is_what_it_says(tmp_path: Path, shared_broker: Broker) -> None:
    """Section 3: events, failures, commands, requests, a reload, a lost connection; every message, to the flags.

    Payload, topic, retain, QoS and content type of all that the adapter sends, on every topic where it sends; its last
    will; and what it subscribes to.
    """
    record = Record()
    async with (
        staged(tmp_path, shared_broker, agents=("101", "102")) as stage,
        Proxy(shared_broker.ports["mqtt"]) as proxy,
        contextlib.AsyncExitStack() as stack,
    ):
        proxy.up = record.take
        home = f"{stage.prefix}-home"
        values = {
            "mqtt": {"url": proxy.url, "protocol": "5"},
            "home_assistant": {"discovery": True, "prefix": home, "birth_topic": f"{home}/status"},
        }
        device = f"{home}/device/ccgateway2mqtt_{stage.prefix}_102/config"
        hearing = stack.enter_context(Peer(shared_broker, [device]))
        async with stage.running(timing=Timing(mark_s=0.1), **values) as adapter:
            await stage.polling("101")
            await stage.polling("102")
            await hearing.wait_for(lambda: hearing.messages)
            await stage.send("101/calldata/set", {"calldata": "x", "id": "c1"})
            await stage.send("101/calldata/set", b"")
            for name in ("agents", "nonsense"):
                await stage.send(f"bridge/request/{name}", {"id": name})
            for kind in ("AgentState_Ready", "AgentEvent_Ringing", "AgentState_Busy", "AgentEvent_Talking"):
                stage.simulator.emit_sample("101", kind)
            odd = b'{"eventType": "New_One", "workNo": null, "content": "\\ud83d", "id": 7, "seq": 1.0, "big": 1e400}'
            stage.simulator.emit("101", odd)
            stage.simulator.emit_sample("102", "AgentOther_ShutdownService")
            await stage.wait("101/event", eventType="New_One")
            await stage.wait("102/session", phase="signed_out")
            await stage.send("102/session/set", {"action": "sign_out", "id": "s1"})
            await stage.wait("102/session/result", id="s1")
            await stage.wait("101/calldata/result", id="c1")
            await stage.wait("bridge/response/agents", id="agents")
            unknown = await stage.wait("bridge/response/unknown", id="nonsense")
            proxy.cut()
            await stage.peer.wait_for_payload(stage.topic("bridge/availability"), b"offline")
            left = stage.values(**values)
            left["agents"] = left["agents"][:1]
            adapter.path.write_text(json.dumps(left))
            await stage.peer.wait_for(lambda: len(record.wills) > 1)
            await stage.wait_count("bridge/availability", 3)
            adapter.app.reload_soon()
            for rest in ("event", "state", "session", "availability"):
                await stage.peer.wait_for_payload(stage.topic(f"102/{rest}"), b"")
            await stage.wait("bridge/mark")
            await hearing.wait_for_payload(device, b"")

        assert hold(record.sent, stage.prefix, home) == SEEN_IN_A_RUN

    def here(address: str) -> str:
        first, rest = address.split("/", 1)
        return f"{ {'agents': stage.prefix, 'homeassistant': home}[first] }/{rest}"

    topics = {re.sub(r"\{\w+\}", "+", here(promise.address)): promise for promise in promises().values()}
    listened = {topic: each.qos for topic, each in topics.items() if not each.sends}
    own = {topic for topic, each in topics.items() if each.sends and each.retain}
    assert {topic: qos for topic, qos in record.subscribed.items() if topic in listened} == listened
    assert record.subscribed.keys() - listened.keys() <= own
    will = DOCUMENT["servers"]["broker"]["bindings"]["mqtt"]["lastWill"]
    assert {(each.topic, each.payload.decode(), each.qos, each.retain) for each in record.wills} == {
        (here(will["topic"]), will["message"], will["qos"], will["retain"])
    }
    assert unknown["reason"] == f"unknown request; expected one of {', '.join(channels.REQUESTS)}"


async def test_what_a_member_does_is_what_it_says(tmp_path: Path, shared_broker: Broker) -> None:
    """Section 10: its own topics and the fleet's, over both connections; each message and both wills, to the flags."""
    record = Record()
    async with (
        servers(tmp_path) as nats,
        staged(tmp_path, shared_broker, agents=("101", "102")) as stage,
        Proxy(shared_broker.ports["mqtt"]) as proxy,
    ):
        proxy.up = record.take
        values = {"instance": "a", "mqtt": {"url": proxy.url, "protocol": "5"}, "cluster": nats.settings()}
        async with stage.running(timing=Timing(mark_s=0.1), **values):
            await stage.polling("101")
            stage.simulator.emit_sample("101", "AgentState_Ready")
            for rest in ("101/events", "bridge/health", "bridge/member/a/health", "bridge/member/a/mark"):
                await stage.wait(rest)
            await stage.wait("bridge/info", instance="test")
            await stage.send("bridge/request/agents", {"id": "r"})
            await stage.wait("bridge/response/agents", id="r")

        assert hold(record.sent, stage.prefix) == SEEN_OF_A_MEMBER
    listened = {topic for topic in record.subscribed if not promise_of(topic, stage.prefix).sends}
    assert listened == {stage.topic(rest) for rest in ("+/calldata/set", "+/session/set", "bridge/request/+")}
    assert [promise_of(will.topic, stage.prefix).name for will in record.wills] == [
        "memberAvailability",
        "bridgeAvailability",
    ]
    assert {(will.payload, will.retain, will.qos) for will in record.wills} == {(b"offline", True, 1)}


def test_a_run_shows_every_topic() -> None:
    """What runs are held against leaves out no topic where the adapter sends."""
    seen = {channel for channel, _ in SEEN_IN_A_RUN | SEEN_OF_A_MEMBER}
    assert seen == {each.name for each in promises().values() if each.sends}


@pytest.mark.parametrize(
    ("topic", "payload", "retain", "qos"),
    [
        ("bridge/mark", b'{"n": -1}', True, 1),
        ("bridge/mark", b'{"n": 1, "m": 1}', True, 1),
        ("bridge/mark", b'{"n": 1}', False, 1),
        ("bridge/mark", b'{"n": 1}', True, 0),
        ("bridge/mark", b"", True, 1),
        ("bridge/availability", b"away", True, 1),
        ("101/availability", b"\xff", True, 1),
        ("101/calldata/set", b"x", False, 1),
        ("101/nonsense", b"{}", False, 1),
        ("bridge/nonsense", b"{}", False, 1),
    ],
)
def test_the_check_finds_what_is_wrong(topic: str, payload: bytes, retain: bool, qos: int) -> None:  # noqa: FBT001 - a flag
    """What the document does not allow fails a test that is held against it."""
    content_type = "application/json" if payload.startswith(b"{") else None
    with pytest.raises(AssertionError):
        hold([Sent(topic=f"agents/{topic}", payload=payload, retain=retain, qos=qos, content_type=content_type)])


def test_the_check_accepts_what_is_right() -> None:
    """A message that is as promised passes, and is told with its names; a topic outside the tree never does."""
    sent = {"retain": True, "qos": 1, "content_type": "application/json"}

    assert hold([Sent(topic="x/bridge/mark", payload=b'{"n": 1}', **sent)], "x") == {("bridgeMark", "mark")}  # type: ignore[arg-type] # as above
    assert promise_of("agents/7/session/set").reply == "sessionResult"
    with pytest.raises(AssertionError):
        promise_of("other/bridge/mark")
