"""The contract of the topics in AsyncAPI: schemas/asyncapi.yaml, made from the topic tree and the types of payloads.

`python -m adapter.asyncapi FILE` writes it; a test fails when the file differs, and others hold what is published
and docs/topics.md against it.

Source:
    AsyncAPI 3.1.0; its MQTT bindings, version 0.2.0.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import msgspec
import yaml

from adapter import __version__
from adapter.contracts import PAYLOADS
from adapter.payloads import RequestName
from adapter.topics import Topics

_BINDING = "0.2.0"
_TOPICS = Topics("agents")
_AGENT = "{workNo}"
_EMPTY = "empty"

REQUESTS: Final = get_args(RequestName)
"""The requests that the adapter answers."""

_PLAIN: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "availability": ("Whether somebody is there.", {"type": "string", "enum": ["online", "offline"]}),
    "calldata-text": (
        "Call data as it is: at most 2,048 bytes of UTF-8 without control characters.",
        {"type": "string", "minLength": 1, "maxLength": 2048},
    ),
    _EMPTY: ("No bytes at all: it clears a retained topic, or is a request without an id.", {"const": ""}),
}
"""Payloads that are no JSON: what they are, and their schema as text."""

_PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "workNo": {"description": "The agent's work number: 1 to 64 of A-Z a-z 0-9 _ -, and not bridge."},
    "page": {"description": "The page of the roster, from 1; it holds up to 200 agents."},
    "request": {"description": "What is asked for.", "enum": list(REQUESTS)},
    "response": {
        "description": "The request that is answered; unknown where there is no such request.",
        "enum": [*REQUESTS, "unknown"],
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """A topic, with what the adapter does there.

    Attributes:
        name: Its name in the document.
        address: The topic with its parameters in braces, below the default prefix.
        action: Whether the adapter sends there or receives, as AsyncAPI has it.
        messages: What may come, by the names of the payloads.
        retain: Whether what is sent is retained; what the adapter receives must not be (C4).
        reply: The name of the channel where what is received is answered.
    """

    name: str
    address: str
    what: str
    messages: tuple[str, ...]
    action: Literal["send", "receive"] = "send"
    retain: bool = False
    qos: int = 1
    reply: str | None = None

    @property
    def parameters(self) -> list[str]:
        """List the parameters of the address."""
        return [level[1:-1] for level in self.address.split("/") if level.startswith("{")]


CHANNELS: Final = (
    Channel(
        name="event",
        address=_TOPICS.event(_AGENT),
        what="The agent's newest event, for what shows something.",
        messages=("event", _EMPTY),
        retain=True,
    ),
    Channel(
        name="events",
        address=_TOPICS.events(_AGENT),
        what="Every event of the agent, for what sets something off; mqtt.stream: false turns it off.",
        messages=("event",),
    ),
    Channel(
        name="state",
        address=_TOPICS.state(_AGENT),
        what="The agent's state and call.",
        messages=("state", _EMPTY),
        retain=True,
    ),
    Channel(
        name="session",
        address=_TOPICS.session(_AGENT),
        what="How the agent's session at the gateway stands.",
        messages=("session", _EMPTY),
        retain=True,
    ),
    Channel(
        name="availability",
        address=_TOPICS.availability(_AGENT),
        what="offline while the agent is signed out or stopped, or has been retrying for more than 30 s.",
        messages=("availability", _EMPTY),
        retain=True,
    ),
    Channel(
        name="calldataSet",
        address=_TOPICS.command(_AGENT, "calldata"),
        what="Call data for the agent's next poll.",
        messages=("calldata-command", "calldata-text"),
        action="receive",
        reply="calldataResult",
    ),
    Channel(
        name="calldataResult",
        address=_TOPICS.result(_AGENT, "calldata"),
        what="What became of call data.",
        messages=("result",),
    ),
    Channel(
        name="sessionSet",
        address=_TOPICS.command(_AGENT, "session"),
        what="Signs the agent in or out.",
        messages=("session-command",),
        action="receive",
        reply="sessionResult",
    ),
    Channel(
        name="sessionResult",
        address=_TOPICS.result(_AGENT, "session"),
        what="What became of a sign-in or sign-out.",
        messages=("result",),
    ),
    Channel(
        name="bridgeAvailability",
        address=_TOPICS.bridge("availability"),
        what="Whether the adapter is connected; the last will says offline.",
        messages=("availability",),
        retain=True,
    ),
    Channel(
        name="bridgeInfo",
        address=_TOPICS.bridge("info"),
        what="What runs here, in under 8 KB.",
        messages=("info",),
        retain=True,
    ),
    Channel(
        name="bridgeAgents",
        address=_TOPICS.bridge("agents/{page}"),
        what="The roster, 200 agents a page.",
        messages=("roster", _EMPTY),
        retain=True,
    ),
    Channel(
        name="bridgeHealth",
        address=_TOPICS.bridge("health"),
        what="How the adapter is, every 60 s.",
        messages=("health",),
        retain=True,
        qos=0,
    ),
    Channel(
        name="bridgeMark",
        address=_TOPICS.bridge("mark"),
        what="By it the adapter sees which retained messages the broker may lack; nobody else should write it.",
        messages=("mark",),
        retain=True,
    ),
    Channel(
        name="bridgeLog",
        address=_TOPICS.bridge("log"),
        what="Warnings and errors.",
        messages=("log",),
        qos=0,
    ),
    Channel(
        name="bridgeRequest",
        address=_TOPICS.request("{request}"),
        what="Asks the adapter for something.",
        messages=("request", "log-level-request", _EMPTY),
        action="receive",
        reply="bridgeResponse",
    ),
    Channel(
        name="bridgeResponse",
        address=_TOPICS.response("{response}"),
        what="The answer to a request; agents gives one for each page.",
        messages=("response",),
    ),
)
"""Every topic, in the order of docs/topics.md."""


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
