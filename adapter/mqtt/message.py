"""What goes over a connection to the broker: messages, and the form that MQTT gives them.

Rules of this file: values and their rendering alone; nothing is sent or received here. A payload is in no `repr`:
asyncio logs the arguments of a callback that fails, and a command may hold a GUID.

Source: MQTT Version 5.0, OASIS Standard; the clauses are cited where they apply.
"""

from dataclasses import dataclass, field

from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
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
"""PUBACK and SUBACK: unspecified error, implementation specific error, packet identifier in use, quota exceeded. The
others speak of the message or the topic filter itself: its format, or who may use it. A SUBACK of 3.1.1 knows the first
alone. Source: MQTT 5.0, 3.4.2.1 and 3.9.3."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why the broker did not take a message over, or did not grant a subscription.

    Attributes:
        reason: In the words of MQTT: "Not authorized".
        code: The reason code of its PUBACK or SUBACK; `None` where the message was not sent at all.
    """

    reason: str
    code: int | None = None

    @property
    def lasting(self) -> bool:
        """Whether the answer would be the same later."""
        return self.code not in _PASSING


_FAILURE = 0x80
"""From here on a reason code is a failure. Source: MQTT 5.0, 2.4."""


def parse_refusal(code: int) -> Refusal | None:
    """Read the reason code of a PUBACK; `None` where the broker has the message."""
    if code < _FAILURE:
        return None
    try:
        reason = str(ReasonCode(PacketTypes.PUBACK, identifier=code))
    except KeyError:
        reason = f"reason code 0x{code:02x}"
    return Refusal(reason, code)


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
