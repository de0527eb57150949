"""What Home Assistant is told of an agent and of the adapter (ECOSYSTEM, 1)."""

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from adapter.catalogue import EVENT_TYPES, AgentStateName
from adapter.config import Config
from adapter.home_assistant.devices import instance_of, object_id, render_agent, render_bridge
from adapter.payloads import CallPhase
from tests.home_assistant_support import configured, rendered

ROOT = {"device", "origin", "components", "availability", "availability_mode", "qos"}
"""Home Assistant's closed schema of a device message, as far as it is used here."""
SIGNS_IN = {"work_no": "101", "name": "Amina", "sign_in": {"password": "secret-password", "phone": "8101"}}
BRIDGE = {"topic": "agents/bridge/availability"}
EVENT = {
    "eventType": "AgentEvent_Ringing",
    "workNo": "101",
    "content": {"caller": "02079460000", "called": "800", "callid": "1-15"},
    "id": "0b9c6a52-3d5e-4a53-9d0e-6f5a1e0c7b11",
    "seq": 42,
    "receivedAt": "2025-03-01T08:00:00.000Z",
}
STATE = {
    "workNo": "101",
    "name": "Amina",
    "group": None,
    "state": "in_call",
    "reason": None,
    "since": "2025-03-01T08:00:00.000Z",
    "previous": {"state": "idle", "seconds": 3.0},
    "call": {"callId": "1", "phase": "talking", "caller": "0207", "called": None, "direction": "in"},
}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Make a configuration with an agent who may be signed in, and one who may not."""
    return configured(tmp_path, SIGNS_IN, "102")


def messages(config: Config) -> dict[str, dict[str, Any]]:
    """Make all messages of a configuration, by device."""
    made = {agent.work_no: json.loads(render_agent(config, agent)) for agent in config.agents}
    return made | {"bridge": json.loads(render_bridge(config))}


def components(config: Config, name: str) -> dict[str, dict[str, Any]]:
    """Give the components of a device."""
    made: dict[str, dict[str, Any]] = messages(config)[name]["components"]
    return made


def every(config: Config) -> list[tuple[str, dict[str, Any]]]:
    """List all components of all devices that apply."""
    return [
        (key, component)
        for message in messages(config).values()
        for key, component in message["components"].items()
        if len(component) > 1
    ]


def test_the_root_has_no_member_too_many(config: Config) -> None:
    """One that the closed schema does not know, and Home Assistant rejects the whole message."""
    for message in messages(config).values():
        assert message.keys() == ROOT
        assert message["origin"].keys() == {"name", "sw_version"}
        assert message["qos"] == 1


def test_a_device_names_itself_and_the_bridge(config: Config) -> None:
    """Agents hang below the adapter's device."""
    made = messages(config)

    assert made["101"]["device"]["name"] == "Agent 101 Amina"
    assert made["102"]["device"]["name"] == "Agent 102"
    assert made["102"]["device"]["via_device"] == made["bridge"]["device"]["identifiers"][0]
    assert {"manufacturer", "model", "sw_version"} <= made["102"]["device"].keys()


def test_all_components_are_there(config: Config) -> None:
    """Each with its platform, name, icon, unique id and an entity id that does not depend on the agent's name."""
    platforms = {key: component["platform"] for key, component in components(config, "101").items()}

    assert platforms == {
        "event": "event",
        "state": "sensor",
        "call": "sensor",
        "in_call": "binary_sensor",
        "signed_in": "binary_sensor",
        "last_event": "sensor",
        "calldata": "text",
        "sign_in": "button",
        "sign_out": "button",
    }
    assert set(components(config, "bridge")) == {
        "connected",
        "agents_polled",
        "outbox_depth",
        "gateway_reachable",
        "version",
        "reload",
    }
    for _, component in every(config):
        assert {"name", "icon", "unique_id", "default_entity_id"} <= component.keys()
        assert component["default_entity_id"].startswith(f"{component['platform']}.")
        assert "object_id" not in component  # gone since 2026.4
    assert components(config, "101")["state"]["default_entity_id"] == "sensor.agent_101_state"


def test_events_come_by_the_stream(config: Config) -> None:
    """Not by the retained topic; without an entity category, which the platform must not have; no attributes topic."""
    event = components(config, "101")["event"]

    assert event["state_topic"] == "agents/101/events"
    assert event["event_types"] == [*EVENT_TYPES, "other"]
    assert "entity_category" not in event
    for _, component in every(config):
        assert component.get("json_attributes_topic", "").rsplit("/", 1)[-1] not in ("event", "events")


def test_without_a_stream_there_is_no_event_entity(tmp_path: Path) -> None:
    """The retained topic does not stand in for it."""
    config = configured(tmp_path, "101", mqtt={"stream": False})

    assert components(config, "101")["event"] == {"platform": "event"}


def test_the_event_template_knows_what_home_assistant_was_told(config: Config) -> None:
    """A known type is itself, an unknown one is `other`: anything else would be dropped with a warning."""
    event = components(config, "101")["event"]

    known = json.loads(rendered(event["value_template"], json.dumps(EVENT)))
    unknown = json.loads(
        rendered(event["value_template"], json.dumps(EVENT | {"eventType": "New", "content": None, "replayed": True}))
    )

    assert known == {
        "event_type": "AgentEvent_Ringing",
        "gateway_type": "AgentEvent_Ringing",
        "event_id": EVENT["id"],
        "seq": 42,
        "received_at": EVENT["receivedAt"],
        "replayed": False,
        "caller": "02079460000",
        "called": "800",
        "call_id": "1-15",
    }
    assert (unknown["event_type"], unknown["gateway_type"], unknown["caller"]) == ("other", "New", None)
    assert unknown["replayed"] is True


@pytest.mark.parametrize("content", [None, "text", [1], {}, {"caller": 5}, {"caller": None}, {"caller": {"a": 'x"'}}])
def test_the_event_template_takes_any_content(config: Config, content: object) -> None:
    """The gateway's content may be anything (P11)."""
    template = components(config, "101")["event"]["value_template"]

    assert json.loads(rendered(template, json.dumps(EVENT | {"content": content})))["event_type"] == EVENT["eventType"]


def test_attributes_of_an_event_are_small(config: Config) -> None:
    """Home Assistant's database takes 16 KB of them; an event may have a MB."""
    template = components(config, "101")["event"]["value_template"]
    huge = dict.fromkeys(("caller", "called", "callid", "more"), "x" * 300_000)

    text = rendered(template, json.dumps(EVENT | {"eventType": "T" * 300_000, "content": huge}))

    assert len(text) < 1_000
    assert json.loads(text)["event_type"] == "other"


def test_every_template_copes_with_a_cleared_topic(config: Config) -> None:
    """When an agent is removed its topics are cleared; that makes entities unknown, and Home Assistant logs nothing."""
    for key, component in every(config):
        if "value_template" in component:
            assert rendered(component["value_template"], "") == ("" if key == "event" else "None")
        if "json_attributes_template" in component:
            assert json.loads(rendered(component["json_attributes_template"], "")) == {}


def test_state_and_call_show_every_value(config: Config) -> None:
    """All states and phases are options: Home Assistant ignores any other value, with a warning."""
    made = components(config, "101")

    assert made["state"]["options"] == list(get_args(AgentStateName))
    assert made["call"]["options"] == ["none", *get_args(CallPhase)]
    for key, shown in (("state", "in_call"), ("call", "talking"), ("in_call", "ON")):
        assert rendered(made[key]["value_template"], json.dumps(STATE)) == shown
    idle = json.dumps(STATE | {"state": "idle", "call": None})
    for key, shown in (("state", "idle"), ("call", "none"), ("in_call", "OFF")):
        assert rendered(made[key]["value_template"], idle) == shown
    for payload in (json.dumps(STATE), idle):
        for key in ("state", "call"):
            json.loads(rendered(made[key]["json_attributes_template"], payload))


def test_the_last_event_is_off_until_wanted(config: Config) -> None:
    """A time of diagnosis, disabled by default; signed_in is one of diagnosis too."""
    made = components(config, "101")

    assert made["last_event"]["enabled_by_default"] is False
    assert made["last_event"]["entity_category"] == made["signed_in"]["entity_category"] == "diagnostic"
    assert rendered(made["last_event"]["value_template"], json.dumps(EVENT)) == EVENT["receivedAt"]


def test_availability_is_the_bridges_alone(config: Config) -> None:
    """So the last will covers every entity; only what a signed-out agent cannot do goes with the agent as well.

    Home Assistant calls no service of an unavailable entity: the sign-in button must not be one of those.
    """
    made = messages(config)["101"]

    assert made["availability"] == [BRIDGE]
    with_agent = {key for key, component in made["components"].items() if "availability" in component}
    assert with_agent == {"calldata", "sign_out"}
    for key in with_agent:
        assert made["components"][key]["availability"] == [BRIDGE, {"topic": "agents/101/availability"}]
        assert made["components"][key]["availability_mode"] == "all"


def test_the_adapters_own_connection_says_off(config: Config) -> None:
    """It would be unavailable, where it should say that the adapter is away."""
    made = messages(config)["bridge"]

    assert made["availability"] == [BRIDGE]
    assert [key for key, component in made["components"].items() if "availability" in component] == ["connected"]
    assert made["components"]["connected"]["availability"] == []


@pytest.mark.parametrize(
    ("agents", "shown"),
    [({"polling": 3, "retrying": 1}, "ON"), ({"retrying": 3}, "OFF"), ({"signed_out": 3}, "None"), ({}, "None")],
)
def test_the_gateway_is_reachable_where_an_agent_is_polled(config: Config, agents: dict[str, int], shown: str) -> None:
    """It is not where all retry, and nothing tells where nobody is signed in."""
    template = components(config, "bridge")["gateway_reachable"]["value_template"]

    assert rendered(template, json.dumps({"agents": agents})) == shown


def test_the_adapters_figures(config: Config) -> None:
    """They are read of `info` and `health`."""
    made = components(config, "bridge")

    info = json.dumps({"version": "1.2.3", "agents": {"configured": 3, "polling": 2}})
    assert rendered(made["version"]["value_template"], info) == "1.2.3"
    assert rendered(made["agents_polled"]["value_template"], info) == "2"
    assert json.loads(rendered(made["agents_polled"]["json_attributes_template"], info)) == {"configured": 3}
    assert rendered(made["outbox_depth"]["value_template"], json.dumps({"outbox": {"depth": 7}})) == "7"


def test_commands_are_never_retained_and_mean_what_they_say(config: Config) -> None:
    """Retained, they would be refused (C4); text that looks like a command object is call data all the same (C1)."""
    made = components(config, "101")

    for _, component in every(config):
        if "command_topic" in component:
            assert component["retain"] is False
    assert (made["calldata"]["command_topic"], made["calldata"]["max"]) == ("agents/101/calldata/set", 255)
    text = '{"calldata": "x", "ttl": 1}'
    command = made["calldata"]["command_template"].replace("value", json.dumps(text))
    assert json.loads(rendered(command, "")) == {"calldata": text}
    for key in ("sign_in", "sign_out"):
        assert made[key]["command_topic"] == "agents/101/session/set"
        assert json.loads(made[key]["payload_press"]) == {"action": key}
    reload = components(config, "bridge")["reload"]
    assert (reload["command_topic"], reload["payload_press"]) == ("agents/bridge/request/reload", "{}")


def test_what_does_not_apply_is_removed(tmp_path: Path, config: Config) -> None:
    """Its platform alone: left out, a button of an older message would stay."""
    assert components(config, "102")["sign_in"] == {"platform": "button"}
    assert components(config, "102")["sign_out"] == {"platform": "button"}

    off = configured(tmp_path, SIGNS_IN, commands={"calldata": False, "session": False, "bridge": False})

    removed = {key for key, component in components(off, "101").items() if len(component) == 1}
    assert removed == {"calldata", "sign_in", "sign_out"}
    assert components(off, "bridge")["reload"] == {"platform": "button"}


def test_no_secret_and_no_phone_number_is_told(config: Config) -> None:
    """What is told is on the adapter's own topics already."""
    for message in messages(config).values():
        assert "secret-password" not in json.dumps(message)
        assert "8101" not in json.dumps(message)


def test_no_two_devices_are_one(tmp_path: Path) -> None:
    """Unique ids carry the instance, and tell `a` with `b_1` from `a_b` with `1`."""
    names = [("a", "b_1"), ("a_b", "1"), ("a", "b"), ("a_b", "x"), ("a_bridge", "version"), ("a", "1_in"), ("a", "1")]
    seen: list[str] = []
    devices: list[str] = []
    for instance, work_no in names:
        config = configured(tmp_path, work_no, instance=instance)
        for name, message in messages(config).items():
            devices += message["device"]["identifiers"] if name != "bridge" else []
            seen += [each["unique_id"] for each in message["components"].values() if len(each) > 1 and name != "bridge"]
            assert instance_of(json.dumps(message).encode()) == instance

    assert len(set(seen)) == len(seen)
    assert len(set(devices)) == len(names)


@pytest.mark.parametrize("instance", ["main", "A-1_b"])
@pytest.mark.parametrize("name", ["101", "a_B-9", "bridge"])
def test_a_topic_holds_what_home_assistant_allows(instance: str, name: str) -> None:
    """Letters, digits, `_` and `-`."""
    assert re.fullmatch(r"[A-Za-z0-9_-]+", object_id(instance, name))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"no JSON",
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        b'{"origin": {"name": "zigbee2mqtt"}, "device": {"identifiers": ["ccgateway2mqtt.main.101"]}}',
        b'{"origin": {"name": "ccgateway2mqtt"}, "device": {"identifiers": "ccgateway2mqtt.main.101"}}',
        b'{"origin": {"name": "ccgateway2mqtt"}, "device": {"identifiers": []}}',
        b'{"origin": {"name": "ccgateway2mqtt"}, "device": {"identifiers": ["other.main.101"]}}',
        b'{"origin": {"name": "ccgateway2mqtt"}, "device": {"identifiers": ["ccgateway2mqtt"]}}',
        b'{"device": {"identifiers": ["ccgateway2mqtt.main.101"]}}',
    ],
)
def test_what_is_not_ours_is_told_apart(payload: bytes) -> None:
    """By origin and identifier; nothing that somebody retains there is an error."""
    assert instance_of(payload) is None
