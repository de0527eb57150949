"""Tests of examples/node-red/: the flows' structure, and their functions run by node as Node-RED runs them.

In a real Node-RED they are tested by tests_nodered/.
"""

import itertools
import json
import re
import subprocess
from typing import Any

import pytest

from adapter.catalogue import EVENT_TYPES
from adapter.topics import Topics
from tests.examples_support import EXAMPLES, find

TOPICS = Topics("agents")
EVENT_ID = "0b9c6a52-3d5e-4a53-9d0e-6f5a1e0c7b11"

Node = dict[str, Any]

RUN_FUNCTION = """
const [code, messages, properties] = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
const stored = new Map();
const context = { get: (key) => stored.get(key), set: (key, value) => stored.set(key, value) };
const statuses = [];
const node = { status: (status) => statuses.push(status) };
const env = { get: (name) => properties[name] };
const run = new Function("msg", "node", "context", "env", code);
const answers = messages.map((message) => {
    Date.now = () => 1000 * (message.at ?? 0);
    return run(message, node, context, env) ?? null;
});
console.log(JSON.stringify({ answers, statuses }));
"""
"""What Node-RED does with a function node, as far as ours use it: msg, node.status, context, env.

The member `at` of a message is the time by the clock, in seconds.
"""


@pytest.fixture(scope="module")
def flow() -> list[Node]:
    """The nodes of the Node-RED example."""
    nodes: list[Node] = json.loads((EXAMPLES / "node-red/flows.json").read_text(encoding="utf-8"))
    return nodes


def named(flow: list[Node], name: str) -> Node:
    """Find the node that is called `name`."""
    (node,) = [node for node in flow if node.get("name") == name and "z" in node]
    return node


def properties(flow: list[Node]) -> dict[str, float]:
    """Read what the flows' own properties set."""
    return {each["name"]: float(each["value"]) for node in flow if node["type"] == "tab" for each in node["env"]}


def run_function(flow: list[Node], name: str, *messages: object) -> tuple[list[Any], list[str]]:
    """Run a function node's code on messages, one after the other; give its answers and the texts of its status."""
    completed = subprocess.run(
        [find("node"), "-e", RUN_FUNCTION],
        input=json.dumps([named(flow, name)["func"], messages, properties(flow)]),
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
    core = {
        "tab",
        "comment",
        "debug",
        "delay",
        "function",
        "inject",
        "mqtt in",
        "mqtt out",
        "mqtt-broker",
        "status",
        "switch",
    }
    others = {node["type"] for node in flow} - core

    assert others == {"ui-base", "ui-page", "ui-group", "ui-theme", "ui-template"}


def test_the_flow_carries_no_credentials(flow: list[Node]) -> None:
    """The broker's node has an address, and neither a name nor a password."""
    (broker,) = [node for node in flow if node["type"] == "mqtt-broker"]

    assert broker["broker"] == "localhost"
    assert not any("credentials" in node or "password" in node or "user" in node for node in flow)


def test_the_flow_listens_to_the_published_topics(flow: list[Node]) -> None:
    """What is shown comes from retained topics; what sends call data comes from the stream, which never is retained."""
    topics = {(node["z"][-1], node["name"]): node["topic"] for node in flow if node["type"] == "mqtt in"}
    assert topics == {
        ("1", "states"): TOPICS.state("+"),
        ("1", "availability"): TOPICS.availability("+"),
        ("8", "stream"): TOPICS.events("+"),
        ("8", "results"): TOPICS.result("+", "calldata"),
        ("9", "bridge availability"): TOPICS.bridge("availability"),
        ("9", "bridge health"): TOPICS.bridge("health"),
    }
    way = ["stream", "each once", "what happened", "look up the caller", "call data"]
    for name, following in itertools.pairwise(way):
        assert named(flow, name)["wires"][0] == [named(flow, following)["id"]]
    assert (named(flow, "call data")["topic"], named(flow, "call data")["retain"]) == ("", "false")


def test_the_sorter_knows_the_catalogue(flow: list[Node]) -> None:
    """Each type that events are sorted by is one of the gateway's; only a ringing telephone leads to a look-up."""
    *rules, rest = named(flow, "what happened")["rules"]
    sorted_by = [[name for name in EVENT_TYPES if re.fullmatch(rule["v"], name)] for rule in rules]

    assert sorted_by == [
        ["AgentEvent_Ringing", "AgentEvent_Auto_Answer"],
        ["AgentEvent_Talking"],
        ["AgentEvent_Call_Release"],
        ["AgentOther_ShutdownService"],
    ]
    assert rest == {"t": "else"}
    assert named(flow, "what happened")["wires"][1:] == [[], [], [], []]


def test_the_flow_answers_a_known_caller(flow: list[Node]) -> None:
    """A ringing event becomes a command whose id is made from the event's, so a repeat is carried out once (C4)."""
    (answer, repeat), (status, _) = run_function(flow, "look up the caller", ringing(), ringing())

    assert answer["topic"] == TOPICS.command("101", "calldata")
    assert set(answer["payload"]) == {"id", "calldata", "ttl"}
    assert answer["payload"]["id"] == f"node-red-{EVENT_ID}"
    assert len(answer["payload"]["id"]) <= 64
    assert answer["payload"]["calldata"].startswith("Customer 4711")
    assert repeat == answer
    assert status == "101: sent, goes with the next poll"


@pytest.mark.parametrize("content", [{"caller": "020"}, {"caller": "constructor"}, None, "1456403549-15"])
def test_a_caller_who_is_not_known_gets_nothing(flow: list[Node], content: object) -> None:
    """Unknown callers, and events whose content has none, send nothing."""
    answers, _ = run_function(flow, "look up the caller", ringing(content=content))

    assert answers == [None]


@pytest.mark.parametrize(
    "message",
    [
        ringing(replayed=True),
        ringing() | {"retain": True},
        ringing(eventType=None),
        {"topic": TOPICS.events("101"), "payload": ""},
    ],
)
def test_what_is_no_news_sets_nothing_off(flow: list[Node], message: dict[str, object]) -> None:
    """Events that come late, retained ones, and what is no event lead to nothing."""
    answers, _ = run_function(flow, "each once", message)

    assert answers == [None]


def test_each_event_passes_once(flow: list[Node]) -> None:
    """D2: a repeat carries the same id, and stops here; another event passes."""
    answers, _ = run_function(flow, "each once", ringing(), ringing(), ringing(id="another"), ringing())

    assert [answer and answer["payload"]["id"] for answer in answers] == [EVENT_ID, None, "another", None]


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


CONNECTED = {"status": {"fill": "green"}}
ONLINE = {"topic": TOPICS.bridge("availability"), "payload": "online"}
OFFLINE = ONLINE | {"payload": "offline"}


def test_the_flow_collects_tiles(flow: list[Node]) -> None:
    """Each state becomes a tile, by group and name; an empty one takes it away; whoever is away is told."""
    ben = {"workNo": "102", "name": "Ben", "group": None, "state": "idle", "since": "2025-03-01T08:00:00.000Z"}
    ben |= {"call": None}
    amina = ben | {"workNo": "101", "name": "Amina"}
    cut_off, away = "Node-RED is cut off from the broker.", "The adapter is away."

    answers, statuses = run_function(
        flow,
        "collect",
        {"topic": TOPICS.state("102"), "payload": ben},
        CONNECTED,
        ONLINE,
        {"topic": TOPICS.state("101"), "payload": amina | {"eventId": EVENT_ID}},
        {"topic": TOPICS.availability("101"), "payload": "online"},
        {"topic": TOPICS.state("102"), "payload": ""},
        OFFLINE,
        {"status": {"fill": "red"}},
    )

    unreached, reached = {"reachable": False}, {"reachable": True}
    assert [answer["payload"] for answer in answers] == [
        {"trouble": cut_off, "tiles": [ben | unreached]},
        {"trouble": away, "tiles": [ben | unreached]},
        {"trouble": None, "tiles": [ben | unreached]},
        {"trouble": None, "tiles": [amina | unreached, ben | unreached]},
        {"trouble": None, "tiles": [amina | reached, ben | unreached]},
        {"trouble": None, "tiles": [amina | reached]},
        {"trouble": away, "tiles": [amina | reached]},
        {"trouble": cut_off, "tiles": [amina | reached]},
    ]
    assert {answer["topic"] for answer in answers} == {"wall"}
    assert statuses[-3:] == ["agents: 1", away, cut_off]


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        # A restart of the adapter is shorter than alert_after: nobody is woken.
        ([OFFLINE | {"at": 10}, {"at": 39}, ONLINE | {"at": 39.5}, {"at": 100}], []),
        ([OFFLINE | {"at": 10}, {"at": 40}, {"at": 50}, ONLINE | {"at": 60}], ["offline", "well"]),
        # One trouble after the other is one alert.
        ([OFFLINE | {"at": 10}, {"at": 40}, {"status": {"fill": "red"}, "at": 50}, {"at": 90}], ["offline"]),
        # Health that stops; a single message is enough for all to be well.
        (
            [{"at": 149}, {"at": 151}, {"at": 181}, {"topic": TOPICS.bridge("health"), "at": 200}],
            ["sign of health", "well"],
        ),
        ([{"topic": TOPICS.bridge("health"), "at": 60}, {"at": 209}, {"at": 239}], []),
    ],
)
def test_the_alert_waits_and_comes_once(flow: list[Node], messages: list[dict[str, object]], told: list[str]) -> None:
    """The bridge's trouble is told after 30 s of it, once, and its end once; health that is 150 s old is trouble."""
    answers, _ = run_function(flow, "once each way", CONNECTED, ONLINE, *messages)

    said = [answer for answer in answers if answer]
    assert [answer["alert"] for answer in said] == [word != "well" for word in told]
    assert all(word in answer["payload"] for word, answer in zip(told, said, strict=True))
