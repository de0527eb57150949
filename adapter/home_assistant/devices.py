"""The devices that Home Assistant shows: one for each agent and one for the adapter, as discovery messages.

Rules of this file: values alone, nothing is sent here.
1. The root of a message is a closed schema: a member too many there, and Home Assistant drops all of it.
2. A component that does not apply is told as its platform alone, which removes what an older message made of it; left
   out, it would stay.
3. Each template copes with an empty payload, which clears a topic, or Home Assistant logs an error.
4. Nothing is told that is not on the adapter's own topics.

Source:
    Home Assistant, "MQTT", Device discovery payload; "MQTT event", "MQTT sensor", "MQTT binary sensor", "MQTT text",
    "MQTT button"; read and tried with 2026.11.
"""

from typing import Any, Final, get_args

import msgspec

from adapter import __version__
from adapter.catalogue import EVENT_TYPES, AgentStateName
from adapter.config import AgentConfig, Config
from adapter.payloads import CallPhase
from adapter.topics import BRIDGE, Topics

ORIGIN: Final = "ccgateway2mqtt"
"""`origin.name`, by which our messages are known."""

_MAKER: Final = "CC-Gateway"
_OTHER: Final = "other"
_NO_CALL: Final = "none"
_CALL_DATA_CHARACTERS: Final = 255
"""The most that Home Assistant allows for a text."""

_EVENT_TYPES: Final = [*EVENT_TYPES, _OTHER]

_Component = dict[str, Any]


def _when_there(expression: str) -> str:
    """Make a template of an expression; a topic that is cleared makes the entity unknown."""
    return f"{{{{ {expression} if value_json is defined else 'None' }}}}"


def _attributes(*members: str) -> str:
    """Make a template that gives members of a JSON object as attributes."""
    pairs = ", ".join(members)
    return f"{{{{ ({{{pairs}}} if value_json is defined else {{}}) | to_json }}}}"


_EVENT_TEMPLATE: Final = (
    f"{{% set known = {list(EVENT_TYPES)} %}}"
    "{% if value_json is defined %}"
    "{% set type = value_json.eventType %}"
    "{% set content = value_json.content if value_json.content is mapping else {} %}"
    f"{{{{ {{'event_type': type if type in known else '{_OTHER}', 'gateway_type': type[:64],"
    " 'event_id': value_json.id, 'seq': value_json.seq, 'received_at': value_json.receivedAt,"
    " 'replayed': value_json.replayed | default(false),"
    " 'caller': (content.caller | string)[:64] if content.caller is defined else none,"
    " 'called': (content.called | string)[:64] if content.called is defined else none,"
    " 'call_id': (content.callid | string)[:64] if content.callid is defined else none} | to_json }}"
    "{% endif %}"
)
"""From an event of the stream to one of Home Assistant. Attributes are picked and cut to size: all of them together may
have 16 KB in its database, and an event may have a MB."""


def device_id(instance: str, name: str) -> str:
    """Name a device to Home Assistant; no two instances and work numbers make the same, since neither holds a dot."""
    return f"{ORIGIN}.{instance}.{name}"


def object_id(instance: str, name: str) -> str:
    """Name a device in its discovery topic, where only letters, digits, ``_`` and ``-`` may stand."""
    return f"{ORIGIN}_{instance}_{name}"


def instance_of(payload: bytes) -> str | None:
    """Tell from a discovery message which instance of this program announced it; `None` where none did."""
    try:
        message = msgspec.json.decode(payload, type=_Announced)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    identifier = message.device.identifiers[0] if message.device.identifiers else ""
    levels = identifier.split(".")
    ours = message.origin.name == ORIGIN and len(levels) == len(device_id("", "").split("."))
    return levels[1] if ours and levels[0] == ORIGIN else None


class _Origin(msgspec.Struct):
    name: str


class _Device(msgspec.Struct):
    identifiers: list[str]


class _Announced(msgspec.Struct):
    """What is read of a discovery message, our own or somebody else's."""

    origin: _Origin
    device: _Device


def render_agent(config: Config, agent: AgentConfig) -> bytes:
    """Make the discovery message of an agent."""
    topics, work_no, commands = Topics(config.mqtt.topic_prefix), agent.work_no, config.commands
    state, session = topics.state(work_no), topics.command(work_no, "session")
    signs_in = commands.session and agent.sign_in is not None
    # Home Assistant calls no service of an unavailable entity. What needs a signed-in agent goes with the agent; the
    # sign-in button must not: it would be dead exactly when it is needed.
    with_agent = {
        "availability": [_topic(topics.bridge("availability")), _topic(topics.availability(work_no))],
        "availability_mode": "all",
    }
    components = {
        "event": _only(
            config.mqtt.stream,  # the retained topic is no place for automations
            _entity("event", "Event", "mdi:phone-message", topics.events(work_no))
            | {"event_types": _EVENT_TYPES, "value_template": _EVENT_TEMPLATE},
        ),
        "state": _entity("sensor", "State", "mdi:account-clock", state)
        | {
            "device_class": "enum",
            "options": list(get_args(AgentStateName)),
            "value_template": _when_there("value_json.state"),
            "json_attributes_topic": state,
            "json_attributes_template": _attributes(
                "'work_no': value_json.workNo",
                "'agent_name': value_json.name",
                "'agent_group': value_json.group",
                "'reason': value_json.reason",
                "'since': value_json.since",
                "'previous': value_json.previous",
            ),
        },
        "call": _entity("sensor", "Call", "mdi:phone", state)
        | {
            "device_class": "enum",
            "options": [_NO_CALL, *get_args(CallPhase)],
            "value_template": _when_there(f"(value_json.call.phase if value_json.call else '{_NO_CALL}')"),
            "json_attributes_topic": state,
            "json_attributes_template": _attributes(
                "'call_id': value_json.call.callId if value_json.call else none",
                "'caller': value_json.call.caller if value_json.call else none",
                "'called': value_json.call.called if value_json.call else none",
                "'direction': value_json.call.direction if value_json.call else none",
            ),
        },
        "in_call": _entity("binary_sensor", "In a call", "mdi:phone-in-talk", state)
        | {"value_template": _when_there("('ON' if value_json.state == 'in_call' else 'OFF')")},
        "signed_in": _entity("binary_sensor", "Signed in", "mdi:account-check", topics.availability(work_no))
        | {
            "device_class": "connectivity",
            "entity_category": "diagnostic",
            "payload_on": "online",
            "payload_off": "offline",
        },
        "last_event": _entity("sensor", "Last event", "mdi:clock-outline", topics.event(work_no))
        | {
            "device_class": "timestamp",
            "entity_category": "diagnostic",
            "enabled_by_default": False,
            "value_template": _when_there("value_json.receivedAt"),
        },
        "calldata": _only(
            commands.calldata,
            _command("text", "Call data", "mdi:text-box-edit", topics.command(work_no, "calldata"))
            | with_agent
            | {
                "min": 1,
                "max": _CALL_DATA_CHARACTERS,
                # Text that looks like a command object is call data all the same.
                "command_template": "{{ {'calldata': value} | to_json }}",
            },
        ),
        "sign_in": _only(
            signs_in,
            _command("button", "Sign in", "mdi:login", session) | {"payload_press": '{"action": "sign_in"}'},
        ),
        "sign_out": _only(
            signs_in,
            _command("button", "Sign out", "mdi:logout", session)
            | with_agent
            | {"payload_press": '{"action": "sign_out"}'},
        ),
    }
    device = {
        "name": f"Agent {work_no}" if agent.name is None else f"Agent {work_no} {agent.name}",
        "model": "Agent",
        "via_device": device_id(config.instance, BRIDGE),
    }
    return _message(config, work_no, f"agent_{work_no}", device, components)


def render_bridge(config: Config) -> bytes:
    """Make the discovery message of the adapter itself."""
    topics = Topics(config.mqtt.topic_prefix)
    availability, info, health = (topics.bridge(name) for name in ("availability", "info", "health"))
    components = {
        "connected": _entity("binary_sensor", "Connected", "mdi:lan-connect", availability)
        | {
            "device_class": "connectivity",
            "entity_category": "diagnostic",
            "payload_on": "online",
            "payload_off": "offline",
            "availability": [],  # it says itself that the adapter is away
        },
        "agents_polled": _entity("sensor", "Agents polled", "mdi:account-group", info)
        | {
            "state_class": "measurement",
            "value_template": _when_there("value_json.agents.polling"),
            "json_attributes_topic": info,
            "json_attributes_template": _attributes("'configured': value_json.agents.configured"),
        },
        "outbox_depth": _entity("sensor", "Outbox depth", "mdi:tray-full", health)
        | {
            "state_class": "measurement",
            "entity_category": "diagnostic",
            "value_template": _when_there("value_json.outbox.depth"),
        },
        "gateway_reachable": _entity("binary_sensor", "Gateway reachable", "mdi:server-network", health)
        | {
            "device_class": "connectivity",
            "entity_category": "diagnostic",
            # Where nobody is polled, nothing tells.
            "value_template": _when_there(
                "('ON' if value_json.agents.polling | default(0) else"
                " 'OFF' if value_json.agents.retrying | default(0) else 'None')"
            ),
        },
        "version": _entity("sensor", "Version", "mdi:tag", info)
        | {"entity_category": "diagnostic", "value_template": _when_there("value_json.version")},
        "reload": _only(
            config.commands.bridge,
            _command("button", "Reload configuration", "mdi:reload", topics.request("reload"))
            | {"entity_category": "config", "payload_press": "{}"},
        ),
    }
    device = {"name": f"ccgateway2mqtt {config.instance}", "model": "Adapter"}
    return _message(config, BRIDGE, f"{ORIGIN}_{config.instance}", device, components)


def _message(
    config: Config, name: str, entity: str, device: dict[str, str], components: dict[str, _Component]
) -> bytes:
    identifier = device_id(config.instance, name)
    for key, component in components.items():
        if len(component) > 1:
            component["unique_id"] = f"{identifier}.{key}"
            component["default_entity_id"] = f"{component['platform']}.{entity}_{key}".lower()
    return msgspec.json.encode(
        {
            "device": {"identifiers": [identifier], "manufacturer": _MAKER, "sw_version": __version__} | device,
            "origin": {"name": ORIGIN, "sw_version": __version__},
            "components": components,
            # The adapter's alone, so that its last will covers every entity: the agents' topics outlive a crash.
            "availability": [_topic(Topics(config.mqtt.topic_prefix).bridge("availability"))],
            "availability_mode": "all",
            "qos": 1,
        }
    )


def _topic(topic: str) -> dict[str, str]:
    return {"topic": topic}


def _entity(platform: str, name: str, icon: str, state_topic: str) -> _Component:
    return {"platform": platform, "name": name, "icon": icon, "state_topic": state_topic}


def _command(platform: str, name: str, icon: str, command_topic: str) -> _Component:
    return {"platform": platform, "name": name, "icon": icon, "command_topic": command_topic, "retain": False}


def _only(applies: bool, component: _Component) -> _Component:  # noqa: FBT001 - reads as a sentence
    """Give a component, or what removes it."""
    return component if applies else {"platform": component["platform"]}
