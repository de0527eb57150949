"""Tests of examples/node-red/: the flow's structure, and its functions run by node as Node-RED runs them."""

import json
import re
import subprocess
from typing import Any

import pytest

from adapter.topics import Topics
from tests.examples_support import EXAMPLES, find

TOPICS = Topics("agents")
EVENT_ID = "0b9c6a52-3d5e-4a53-9d0e-6f5a1e0c7b11"

Node = dict[str, Any]

RUN_FUNCTION = """
const [code, messages] = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
const stored = new Map();
const context = { get: (key) => stored.get(key), set: (key, value) => stored.set(key, value) };
const statuses = [];
const node = { status: (status) => statuses.push(status) };
const run = new Function("msg", "node", "context", code);
const answers = messages.map((message) => run(message, node, context) ?? null);
console.log(JSON.stringify({ answers, statuses }));
"""
"""What Node-RED does with a function node, as far as ours use it: msg, node.status, context."""


@pytest.fixture(scope="module")
def flow() -> list[Node]:
    """The nodes of the Node-RED example."""
    nodes: list[Node] = json.loads((EXAMPLES / "node-red/flows.json").read_text(encoding="utf-8"))
    return nodes


def named(flow: list[Node], name: str) -> Node:
    """Find the node that is called `name`."""
    (node,) = [node for node in flow if node.get("name") == name and "z" in node]
    return node


def run_function(flow: list[Node], name: str, *messages: object) -> tuple[list[Any], list[str]]:
    """Run a function node's code on messages, one after the other; give its answers and the texts of its status."""
    completed = subprocess.run(
        [find("node"), "-e", RUN_FUNCTION],
        input=json.dumps([named(flow, name)["func"], messages]),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert completed.returncode == 0, completed.stderr
    output = json.loads(completed.stdout)
    return output["answers"], [status["text"] for status in output["statuses"]]


def ringing(**changes: object) -> dict[str, object]:
    """Make a message of the stream: a known caller rings at agent 101."""
    event = {
        "eventType": "AgentEvent_Ringing",
        "workNo": "101",
        "content": {"caller": "02079460000", "called": "800", "callid": "1456403549-15"},
        "id": EVENT_ID,
        "seq": 7,
        "receivedAt": "2025-03-01T08:00:00.000Z",
    }
    return {"topic": TOPICS.events("101"), "payload": event | changes}


def test_the_flow_holds_together(flow: list[Node]) -> None:
    """Ids are unique, and every wire and every reference leads to a node of the file."""
    ids = [node["id"] for node in flow]
    assert all(re.fullmatch(r"[0-9a-f]{16}", node_id) for node_id in ids)
    assert len(ids) == len(set(ids))

    wired = [target for node in flow for output in node.get("wires", []) for target in output]
    referred = [node[key] for node in flow for key in ("z", "broker", "ui", "theme", "page", "group") if node.get(key)]
    referred = [value for value in referred if value != "localhost"]
    assert set(wired) | set(referred) <= set(ids)


def test_the_flow_needs_only_the_dashboard(flow: list[Node]) -> None:
    """Apart from FlowFuse's dashboard, every node comes with Node-RED 4."""
    core = {"tab", "comment", "debug", "delay", "function", "mqtt in", "mqtt out", "mqtt-broker"}
    others = {node["type"] for node in flow} - core

    assert others == {"ui-base", "ui-page", "ui-group", "ui-theme", "ui-template"}


def test_the_flow_carries_no_credentials(flow: list[Node]) -> None:
    """The broker's node has an address, and neither a name nor a password."""
    (broker,) = [node for node in flow if node["type"] == "mqtt-broker"]

    assert broker["broker"] == "localhost"
    assert not any("credentials" in node or "password" in node or "user" in node for node in flow)


def test_the_flow_listens_to_the_published_topics(flow: list[Node]) -> None:
    """Tiles come from retained topics; what sends call data comes from the stream, which never is retained."""
    topics = {node["name"]: node["topic"] for node in flow if node["type"] == "mqtt in"}
    assert topics == {
        "states": TOPICS.state("+"),
        "adapter": TOPICS.bridge("availability"),
        "stream": TOPICS.events("+"),
        "results": TOPICS.result("+", "calldata"),
    }
    assert named(flow, "stream")["wires"] == [[named(flow, "look up the caller")["id"]]]
    assert named(flow, "look up the caller")["wires"] == [[named(flow, "call data")["id"]]]
    assert (named(flow, "call data")["topic"], named(flow, "call data")["retain"]) == ("", "false")


@pytest.mark.parametrize("event_type", ["AgentEvent_Ringing", "AgentEvent_Auto_Answer"])
def test_the_flow_answers_a_known_caller(flow: list[Node], event_type: str) -> None:
    """A ringing event becomes a command whose id is made from the event's, so a repeat is carried out once (C4)."""
    (answer, repeat), (status, _) = run_function(
        flow, "look up the caller", ringing(eventType=event_type), ringing(eventType=event_type)
    )

    assert answer["topic"] == TOPICS.command("101", "calldata")
    assert set(answer["payload"]) == {"id", "calldata", "ttl"}
    assert answer["payload"]["id"] == f"node-red-{EVENT_ID}"
    assert len(answer["payload"]["id"]) <= 64
    assert answer["payload"]["calldata"].startswith("Customer 4711")
    assert repeat == answer
    assert status == "101: sent, goes with the next poll"


@pytest.mark.parametrize(
    "message",
    [
        ringing(eventType="AgentState_Ready", content=None),
        ringing(content={"caller": "020"}),
        ringing(content={"caller": "constructor"}),
        ringing(content=None),
        ringing(content="1456403549-15"),
        ringing(replayed=True),
        ringing() | {"retain": True},
        {"topic": TOPICS.events("101"), "payload": ""},
    ],
)
def test_the_flow_leaves_the_rest_alone(flow: list[Node], message: dict[str, object]) -> None:
    """Other events, unknown callers, events that come late and empty messages send nothing."""
    answers, _ = run_function(flow, "look up the caller", message)

    assert answers == [None]


def test_the_flow_shows_its_own_results(flow: list[Node]) -> None:
    """A result of our command becomes the node's status; that of another sender is left alone."""
    result = {"id": f"node-red-{EVENT_ID}", "workNo": "101", "status": "rejected", "reason": "queue full"}
    topic = TOPICS.result("101", "calldata")

    answers, statuses = run_function(
        flow,
        "show the result",
        {"topic": topic, "payload": result},
        {"topic": topic, "payload": result | {"status": "applied", "reason": None}},
        {"topic": topic, "payload": result | {"id": "another"}},
    )

    assert statuses == ["101: rejected (queue full)", "101: applied"]
    assert [answer and answer["payload"] for answer in answers] == [*statuses, None]


def test_the_flow_collects_tiles(flow: list[Node]) -> None:
    """Each state becomes a tile, by name; an empty one takes it away; the adapter's absence is told."""
    state = {"workNo": "102", "name": "Ben", "group": None, "state": "idle", "since": "2025-03-01T08:00:00.000Z"}
    ben, amina = state | {"call": None}, state | {"workNo": "101", "name": "Amina", "call": None}

    answers, _ = run_function(
        flow,
        "collect",
        {"topic": TOPICS.state("102"), "payload": ben},
        {"topic": TOPICS.bridge("availability"), "payload": "online"},
        {"topic": TOPICS.state("101"), "payload": amina | {"eventId": EVENT_ID}},
        {"topic": TOPICS.state("102"), "payload": ""},
        {"topic": TOPICS.bridge("availability"), "payload": "offline"},
    )

    assert [answer["payload"] for answer in answers] == [
        {"online": False, "tiles": [ben]},
        {"online": True, "tiles": [ben]},
        {"online": True, "tiles": [amina, ben]},
        {"online": True, "tiles": [amina]},
        {"online": False, "tiles": [amina]},
    ]
    assert {answer["topic"] for answer in answers} == {"tiles"}
