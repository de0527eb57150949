"""What goes over a connection to the broker: messages, and the form that MQTT gives them.

Rules of this file: values and their rendering alone; nothing is sent or received here. A payload is in no `repr`:
asyncio logs the arguments of a callback that fails, and a command may hold a GUID.

Source: MQTT Version 5.0, OASIS Standard; the clauses are cited where they apply.
"""

from dataclasses import dataclass, field

from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message to publish.

    Attributes:
        topic: Its topic.
        payload: Its bytes. What begins with ``{`` is announced as JSON to MQTT 5 brokers: every JSON payload of this
            program is an object, and nothing else that it publishes begins so.
        retain: Whether the broker keeps it as the topic's last value; an empty payload clears that.
        qos: 0 or 1.
        correlation: Correlation data (C8); left out where the protocol is 3.1.1.
    """

    topic: str
    payload: bytes = field(repr=False)
    retain: bool = False
    qos: int = 1
    correlation: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A message that the broker sent us.

    Attributes:
        mid: Its packet identifier, 0 with QoS 0. Only for `Connection.ack`.
        correlation: Correlation data of the sender (C8), if any.
        response_topic: Where the sender would like the answer (C8), if anywhere.
    """

    topic: str
    payload: bytes = field(repr=False)
    retain: bool
    qos: int
    mid: int
    correlation: bytes | None = field(repr=False)
    response_topic: str | None


_PASSING = frozenset({0x80, 0x83, 0x91, 0x97})
"""PUBACK: unspecified error, implementation specific error, packet identifier in use, quota exceeded. The others speak
of the message itself: its topic, its format, who may publish it. Source: MQTT 5.0, 3.4.2.1."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the broker did not take a message over.

    Attributes:
        reason: In the words of MQTT: "Not authorized".
        code: The reason code of its PUBACK; `None` where the message was not sent at all.
    """

    reason: str
    code: int | None = None

    @property
    def lasting(self) -> bool:
        """Whether the answer would be the same later."""
        return self.code not in _PASSING


def parse_refusal(reason: ReasonCode) -> Refusal | None:
    """Read the reason code of a PUBACK; `None` where the broker has the message."""
    return Refusal(str(reason), reason.value) if reason.is_failure else None


def parse_received(message: MQTTMessage) -> Received | None:
    """Take over a message from paho; `None` where its topic is not UTF-8, which no topic of ours is."""
    try:
        topic = message.topic
    except UnicodeDecodeError:
        return None
    return Received(
        topic=topic,
        payload=bytes(message.payload),
        retain=message.retain,
        qos=message.qos,
        mid=message.mid,
        correlation=getattr(message.properties, "CorrelationData", None),
        response_topic=getattr(message.properties, "ResponseTopic", None),
    )


class _PackedProperties(Properties):
    """Properties that were packed once: paho's own `pack` looks for each of 27 names, for each message."""

    def pack(self) -> bytes:
        return _JSON_PACKED


def _properties(*, json: bool, correlation: bytes | None) -> Properties:
    made = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # paho leaves it untyped
    if json:
        made.ContentType = "application/json"
    if correlation is not None:
        made.CorrelationData = correlation
    return made


_JSON_PACKED = bytes(_properties(json=True, correlation=None).pack())  # type: ignore[no-untyped-call] # as above
_JSON = _PackedProperties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # as above


def publish_properties(message: Message) -> Properties | None:
    """Make the MQTT 5 properties of a message; `None` where it needs none. The usual ones are one shared object."""
    json = message.payload.startswith(b"{")
    if message.correlation is not None:
        return _properties(json=json, correlation=message.correlation)
    return _JSON if json else None


def packet_size(message: Message, properties: Properties | None) -> int:
    """Count the bytes of an MQTT 5 PUBLISH packet, which is what a broker's Maximum Packet Size limits."""
    packed = 1 if properties is None else len(properties.pack())  # type: ignore[no-untyped-call] # as above
    remaining = 2 + len(message.topic.encode()) + (2 if message.qos else 0) + packed + len(message.payload)
    length = 1 + (remaining >= 1 << 7) + (remaining >= 1 << 14) + (remaining >= 1 << 21)  # [MQTT-1.5.5-1]
    return 1 + length + remaining


def check_topic(topic: str) -> None:
    """Refuse a topic over which a broker would end the connection, and again at each repetition.

    Raises:
        ValueError: It is empty or holds control characters ([MQTT-1.5.4-2]; Mosquitto takes none of them). Wildcards
            are refused by paho.
    """
    if not topic or not topic.isprintable():
        raise ValueError("a topic must not be empty or hold control characters")
