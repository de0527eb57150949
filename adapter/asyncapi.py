"""The contract of the topics in AsyncAPI: schemas/asyncapi.yaml, made from the topic tree and the types of payloads.

`python -m adapter.asyncapi FILE` writes it; a test fails when the file differs, and others hold what is published
and docs/topics.md against it.

Source:
    AsyncAPI 3.1.0; its MQTT bindings, version 0.2.0.
"""

import sys
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from adapter import __version__
from adapter.channels import CHANNELS, EMPTY, REQUESTS, Channel
from adapter.contracts import PAYLOADS

_BINDING = "0.2.0"
_DISCOVERY_MEMBERS = {
    "device": {"type": "object"},
    "origin": {"type": "object"},
    "components": {"type": "object"},
    "availability": {"type": "array", "items": {"type": "object"}},
    "availability_mode": {"const": "all"},
    "qos": {"const": 1},
}
"""The root of a discovery message, which is a closed schema. What is in it is Home Assistant's to say."""

_PLAIN: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "availability": ("Whether somebody is there.", {"type": "string", "enum": ["online", "offline"]}),
    "calldata-text": (
        "Call data as it is: at most 2,048 bytes of UTF-8 without control characters.",
        {"type": "string", "minLength": 1, "maxLength": 2048},
    ),
    "birth": ("What Home Assistant says when it has started; home_assistant.birth_payload.", {"const": "online"}),
    EMPTY: ("No bytes at all: it clears a retained topic, or is a request without an id.", {"const": ""}),
}
"""Payloads that are no JSON: what they are, and their schema as text."""

_FOREIGN: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "discovery": (
        "A device and its entities, as Home Assistant's documentation of MQTT discovery describes them.",
        {
            "type": "object",
            "properties": _DISCOVERY_MEMBERS,
            "required": list(_DISCOVERY_MEMBERS),
            "additionalProperties": False,
        },
    )
}
"""Payloads in JSON that others have laid down."""

_PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "workNo": {"description": "The agent's work number: 1 to 64 of A-Z a-z 0-9 _ -, and not bridge."},
    "instance": {"description": "The member's instance, which no other member of its fleet has."},
    "objectId": {"description": "ccgateway2mqtt_<instance>_<workNo>, or ccgateway2mqtt_<instance>_bridge."},
    "page": {"description": "The page of the roster, from 1; it holds up to 200 agents."},
    "request": {"description": "What is asked for.", "enum": list(REQUESTS)},
    "response": {
        "description": "The request that is answered; unknown where there is no such request.",
        "enum": [*REQUESTS, "unknown"],
    },
}


def make() -> dict[str, Any]:
    """Make the document."""
    will = next(channel for channel in CHANNELS if channel.name == "bridgeAvailability")
    _, schemas = msgspec.json.schema_components(PAYLOADS.values(), ref_template="#/components/schemas/{name}")
    return {
        "asyncapi": "3.1.0",
        "info": {
            "title": "ccgateway2mqtt",
            "version": __version__,
            "description": "A contact centre's agents on MQTT. The first level of each topic, agents, is "
            "mqtt.topic_prefix. The rules that descriptions name, such as C4, are those of docs/rules.md.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": {
                "host": "localhost:1883",
                "protocol": "mqtt",
                "description": "MQTT 5, or 3.1.1 where that is all the broker speaks; mqtt.url names it.",
                "bindings": {
                    "mqtt": {
                        "cleanSession": True,
                        "lastWill": {
                            "topic": will.address,
                            "message": "offline",
                            "qos": will.qos,
                            "retain": will.retain,
                        },
                        "bindingVersion": _BINDING,
                    }
                },
            }
        },
        "channels": {channel.name: _channel(channel) for channel in CHANNELS},
        "operations": {
            f"{channel.action}{channel.name[0].upper()}{channel.name[1:]}": _operation(channel) for channel in CHANNELS
        },
        "components": {
            "messages": {name: _message(name) for name in dict.fromkeys(n for c in CHANNELS for n in c.messages)},
            "parameters": _PARAMETERS,
            "schemas": schemas,
        },
    }


def render() -> str:
    """Write the document down as YAML."""
    return yaml.dump(make(), Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)


class _Plain(yaml.SafeDumper):
    """Writes what occurs twice a second time: anchors are not in every reader's YAML."""

    def ignore_aliases(self, _: object) -> bool:
        return True


def _channel(channel: Channel) -> dict[str, Any]:
    made: dict[str, Any] = {"address": channel.address, "description": channel.what}
    if channel.parameters:
        made["parameters"] = {name: _ref("components/parameters", name) for name in channel.parameters}
    made["messages"] = {name: _ref("components/messages", name) for name in channel.messages}
    return made


def _operation(channel: Channel) -> dict[str, Any]:
    made: dict[str, Any] = {
        "action": channel.action,
        "channel": _ref("channels", channel.name),
        "summary": channel.what,
        "bindings": {"mqtt": {"qos": channel.qos, "retain": channel.retain, "bindingVersion": _BINDING}},
    }
    if channel.reply is not None:
        made["reply"] = {"channel": _ref("channels", channel.reply)}
    return made


def _message(name: str) -> dict[str, Any]:
    if name in _PLAIN:
        what, schema = _PLAIN[name]
        return {"summary": what, "contentType": "text/plain", "payload": schema}
    if name in _FOREIGN:
        what, schema = _FOREIGN[name]
        return {"summary": what, "contentType": "application/json", "payload": schema}
    kind = PAYLOADS[name]
    what = (kind.__doc__ or "").partition("\n")[0]
    made = {"summary": what, "contentType": "application/json", "payload": _ref("components/schemas", kind.__name__)}
    if name in ("result", "response"):
        # C8; with MQTT 3.1.1 there is none.
        correlation = {"type": "string", "description": "The correlation data of what is answered, if it had any."}
        made["bindings"] = {"mqtt": {"correlationData": correlation, "bindingVersion": _BINDING}}
    return made


def _ref(*path: str) -> dict[str, str]:
    return {"$ref": f"#/{'/'.join(path)}"}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), encoding="utf-8")
