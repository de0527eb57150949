"""Holds what goes over a connection against schemas/asyncapi.yaml, with a validator that is none of ours.

`Record` reads the packets of a `tcp_proxy.Proxy`: retain flag and QoS are those that were sent, and not what a broker
makes of them for a subscriber.

Source:
    MQTT Version 5.0: 3.1 CONNECT, 3.3 PUBLISH, 3.8 SUBSCRIBE. AsyncAPI 3.1.0.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from jsonschema import Draft7Validator
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from adapter import contracts
from tests.tcp_proxy import CONNECT, PUBLISH, SUBSCRIBE, Talk, kind

DOCUMENT: dict[str, Any] = yaml.safe_load(contracts.read("asyncapi"))
_WILDCARD = re.compile(r"\{\w+\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A message as its sender sent it.

    Attributes:
        content_type: What MQTT 5 says of the payload, if anything.
    """

    topic: str
    payload: bytes
    retain: bool
    qos: int
    content_type: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What the document says of a topic.

    Attributes:
        name: The channel's.
        address: The topic with its parameters, below the default prefixes.
        sends: Whether the adapter sends there; else it receives.
        payloads: The validators of what may come, by the names of the messages.
        plain: The names of those that are text.
        reply: The name of the channel that answers.
    """

    name: str
    address: str
    sends: bool
    retain: bool
    qos: int
    payloads: dict[str, Draft7Validator]
    plain: frozenset[str]
    reply: str | None

    def fits(self, topic: str) -> bool:
        """Say whether a topic, below the default prefixes, is this one."""
        pattern = "[^/]*".join(re.escape(literal) for literal in _WILDCARD.split(self.address))
        return re.fullmatch(pattern, topic) is not None

    def hold(self, payload: bytes) -> str:
        """Give the name of the message that a payload is."""
        faults: list[str] = []
        for name, validator in self.payloads.items():
            try:
                value = payload.decode() if name in self.plain else json.loads(payload)
            except ValueError as error:
                faults.append(f"{name}: {error}")
                continue
            found = [error.message for error in validator.iter_errors(value)]
            if not found:
                return name
            faults += found
        raise AssertionError(self.address, payload, faults)


@cache
def promises() -> dict[str, Promise]:
    """Read what the document says of each topic, by the names of the channels."""
    operations = {_last(operation["channel"]): operation for operation in DOCUMENT["operations"].values()}
    made = {}
    for name, channel in DOCUMENT["channels"].items():
        messages = {each: DOCUMENT["components"]["messages"][_last(ref)] for each, ref in channel["messages"].items()}
        operation = operations[name]
        mqtt = operation["bindings"]["mqtt"]
        made[name] = Promise(
            name=name,
            address=channel["address"],
            sends=operation["action"] == "send",
            retain=mqtt["retain"],
            qos=mqtt["qos"],
            payloads={each: validator(message["payload"]) for each, message in messages.items()},
            plain=frozenset(each for each, message in messages.items() if message["contentType"] == "text/plain"),
            reply=_last(operation["reply"]["channel"]) if "reply" in operation else None,
        )
    return made


def validator(schema: dict[str, Any]) -> Draft7Validator:
    """Make the validator of a schema of the document; those of AsyncAPI are draft 7 of JSON Schema, and more."""
    Draft7Validator.check_schema(schema)
    return Draft7Validator({"allOf": [schema], "components": DOCUMENT["components"]})


def promise_of(topic: str, prefix: str = "agents", home_assistant: str = "homeassistant") -> Promise:
    """Find what is promised of a topic: a literal level counts for more than a parameter."""
    first, _, rest = topic.partition("/")
    plain = f"{ {prefix: 'agents', home_assistant: 'homeassistant'}.get(first) }/{rest}"
    found = [promise for promise in promises().values() if promise.fits(plain)]
    assert found, f"nothing is promised of {topic}"
    return min(found, key=lambda promise: len(_WILDCARD.findall(promise.address)))


def hold(sent: Iterable[Sent], *prefixes: str) -> set[tuple[str, str]]:
    """Hold what the adapter sent against the document; give what was seen, as names of channel and message.

    Args:
        sent: Its messages.
        prefixes: Those of the topics and of Home Assistant's, where they are not the default ones.
    """
    seen = set()
    for message in sent:
        promise = promise_of(message.topic, *prefixes)
        name = promise.hold(message.payload)
        assert promise.sends, f"{message.topic} is for others"
        assert (message.retain, message.qos) == (promise.retain, promise.qos), message
        assert message.content_type == (None if name in promise.plain else "application/json"), message
        seen.add((promise.name, name))
    return seen


class Record:
    """What an adapter that speaks MQTT 5 sends through a proxy: `proxy.up = record.take`.

    Attributes:
        sent: Its messages, oldest first.
        wills: The last will of each of its connections that has one.
        subscribed: The QoS by topic filter.
    """

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.wills: list[Sent] = []
        self.subscribed: dict[str, int] = {}

    def take(self, packet: bytes, _talk: Talk) -> bytes:
        """Take a packet down, and let it pass."""
        reading = _Reading(packet)
        if kind(packet) == PUBLISH:
            self.sent.append(reading.publish())
        elif kind(packet) == CONNECT:
            self.wills += reading.will()
        elif kind(packet) == SUBSCRIBE:
            self.subscribed |= reading.filters()
        return packet


class _Reading:
    """Reads a packet of MQTT 5 from front to back."""

    def __init__(self, packet: bytes) -> None:
        self._flags = packet[0] & 0x0F
        self._rest = packet[1:]
        while self._number(1) & 0x80:
            pass

    def publish(self) -> Sent:
        topic, qos = self._text(), self._flags >> 1 & 3
        if qos:
            self._number(2)
        content_type = self._properties(PacketTypes.PUBLISH)
        return Sent(topic=topic, payload=self._rest, retain=bool(self._flags & 1), qos=qos, content_type=content_type)

    def will(self) -> list[Sent]:
        assert (self._text(), self._number(1)) == ("MQTT", 5)
        flags = self._number(1)
        assert flags & 0b10, "clean start"
        if not flags & 0b100:  # who only looks whether another instance is there has none
            return []
        self._number(2)
        self._properties(PacketTypes.CONNECT)
        self._text()
        content_type = self._properties(PacketTypes.WILLMESSAGE)
        topic, payload, retain, qos = self._text(), self._text().encode(), bool(flags & 0x20), flags >> 3 & 3
        return [Sent(topic=topic, payload=payload, retain=retain, qos=qos, content_type=content_type)]

    def filters(self) -> dict[str, int]:
        self._number(2)
        self._properties(PacketTypes.SUBSCRIBE)
        found = {}
        while self._rest:
            topic = self._text()
            found[topic] = self._number(1) & 3
        return found

    def _number(self, size: int) -> int:
        value, self._rest = int.from_bytes(self._rest[:size]), self._rest[size:]
        return value

    def _text(self) -> str:
        size = self._number(2)
        text, self._rest = self._rest[:size].decode(), self._rest[size:]
        return text

    def _properties(self, packet_type: int) -> str | None:
        properties = Properties(packet_type)  # type: ignore[no-untyped-call] # paho leaves it untyped
        _, size = properties.unpack(self._rest)  # type: ignore[no-untyped-call] # the same
        self._rest = self._rest[size:]
        return getattr(properties, "ContentType", None)


def _last(ref: dict[str, str]) -> str:
    return ref["$ref"].rpartition("/")[2]
