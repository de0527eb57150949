"""The two MQTT packets that an event consists of: PUBLISH and its PUBACK, as bytes.

Everything else that goes over a connection is paho's. These two would cost more there than all the rest of an event:
paho makes some thirty objects for a message and its acknowledgment, and keeps what the outbox keeps already.

Source: MQTT Version 5.0 and 3.1.1, OASIS Standards; the clauses are cited where they apply.
"""

import functools

from adapter.mqtt.message import Message

_PUBLISH = 0x30
_PUBACK = 0x40
_LARGEST_BYTES = 268_435_455
"""What a Remaining Length can say [MQTT-1.5.5]."""
_LONGEST_TOPIC_BYTES = 65_535
_SEVEN_BITS = 0x7F
"""What each byte of a length holds; the eighth says whether another follows [MQTT-1.5.5]."""
_CONTENT_TYPE, _CORRELATION_DATA = b"\x03", b"\x09"
_ACCEPTED, _ACCEPTED_BYTES = b"\x40\x02", 4
"""The usual PUBACK: nothing but the identifier, which means success [3.4.2.1]."""
_LONGEST_PUBACK = 131_072
"""Longer than any with a reason string of 65,535 bytes [MQTT-1.5.4]: what claims more is left to paho."""
_JSON = _CONTENT_TYPE + b"\x00\x10application/json"


def encode_publish(message: Message, packet_id: int, *, five: bool) -> bytes:
    """Write a PUBLISH packet.

    Args:
        message: What to publish.
        packet_id: Its identifier, 1 to 65,535; left out with QoS 0.
        five: Whether with the properties of MQTT 5.

    Raises:
        ValueError: A broker would end the connection over it, and again at each repetition: the topic is empty, too
            long, or holds wildcards or control characters ([MQTT-3.3.2-2], [MQTT-1.5.4-2]; Mosquitto takes none of
            them), or it is all too large for any packet.
    """
    head = _encode_topic(message.topic)
    if message.qos:
        head += packet_id.to_bytes(2)
    if five:
        properties = _properties(message)
        head += _variable(len(properties)) + properties
    first = _PUBLISH | message.qos << 1 | message.retain
    length = len(head) + len(message.payload)
    if length > _LARGEST_BYTES:
        raise ValueError("larger than any MQTT packet")
    return b"".join((bytes((first,)), _variable(length), head, message.payload))


@functools.lru_cache(maxsize=4096)
def _encode_topic(name: str) -> bytes:
    topic = name.encode()
    if not topic or len(topic) > _LONGEST_TOPIC_BYTES or not name.isprintable():
        raise ValueError("a topic must not be empty, longer than 65,535 bytes, or hold control characters")
    if b"+" in topic or b"#" in topic:
        raise ValueError("a topic to publish to must not hold wildcards")
    return len(topic).to_bytes(2) + topic


def _properties(message: Message) -> bytes:
    properties = _JSON if message.payload.startswith(b"{") else b""
    if message.correlation is None:
        return properties
    return properties + _CORRELATION_DATA + len(message.correlation).to_bytes(2) + message.correlation


def _variable(number: int) -> bytes:
    """Write a Variable Byte Integer [MQTT-1.5.5]."""
    if number <= _SEVEN_BITS:
        return bytes((number,))
    written = bytearray()
    while number > _SEVEN_BITS:
        written.append(number & _SEVEN_BITS | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)


class Sorter:
    """Takes the PUBACKs out of what a broker sends, in whatever pieces it comes.

    Attributes:
        others: What else came, for paho; whoever reads it removes it.
    """

    def __init__(self) -> None:
        self.others = bytearray()
        self._begun = b""
        self._left = 0

    def sort(self, data: bytes) -> list[tuple[int, int]]:
        """Take what came; give the packet identifier and the reason code of each PUBACK in it."""
        acknowledged: list[tuple[int, int]] = []
        data, at = self._begun + data, self._left
        self.others += data[:at]
        while at < len(data):
            if data.startswith(_ACCEPTED, at) and at + _ACCEPTED_BYTES <= len(data):
                acknowledged.append((data[at + 2] << 8 | data[at + 3], 0))
                at += _ACCEPTED_BYTES
                continue
            body, end = _borders(data, at)
            size = end - body
            if body > len(data) or (data[at] == _PUBACK and len(data) < end and size < _LONGEST_PUBACK):
                break  # the rest of it is still to come
            if data[at] == _PUBACK and 2 <= size < _LONGEST_PUBACK:  # noqa: PLR2004 - the identifier
                code = data[body + 2] if size > 2 else 0  # noqa: PLR2004 - as above
                acknowledged.append((int.from_bytes(data[body : body + 2]), code))
            else:
                self.others += data[at:end]
            at = end
        self._left = max(0, at - len(data))
        self._begun = data[at:]
        return acknowledged


def _borders(data: bytes, at: int) -> tuple[int, int]:
    """Say where a packet's fixed header ends, and the packet: beyond the data where that is not known yet."""
    length = 0
    for place, byte in enumerate(data[at + 1 : at + 5]):
        length |= (byte & _SEVEN_BITS) << 7 * place
        if byte <= _SEVEN_BITS:  # the last one
            return at + 2 + place, at + 2 + place + length
    if len(data) < at + 5:
        return len(data) + 1, len(data) + 1
    return len(data), len(data)  # no header at all: paho ends the connection over it
