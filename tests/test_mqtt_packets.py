"""The packets that go by paho: PUBLISH as bytes, and PUBACKs sorted out of what comes, in whatever pieces."""

import contextlib
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.mqtt.gathered import Line
from adapter.mqtt.message import Message
from adapter.mqtt.packets import Sorter, encode_publish

_PINGRESP = b"\xd0\x00"
_SUBACK = b"\x90\x04\x00\x01\x00\x01"


def _puback(packet_id: int, code: int | None = None, properties: bytes | None = None) -> bytes:
    body = packet_id.to_bytes(2)
    if code is not None:
        body += bytes([code])
        if properties is not None:
            body += properties
    length = len(body)
    size = bytes([length]) if length < 128 else bytes([length & 0x7F | 0x80, length >> 7])
    return b"\x40" + size + body


_publish = st.builds(
    lambda topic, payload, qos: encode_publish(Message(topic=topic, payload=payload, qos=qos), 7, five=True),
    st.sampled_from(["a", "agents/101/calldata/set"]),
    st.binary(max_size=400),
    st.sampled_from([0, 1]),
)
_acknowledged = st.tuples(st.integers(1, 65_535), st.sampled_from([None, 0, 0x10, 0x87, 0x97]), st.booleans())


@given(st.lists(_acknowledged | _publish | st.sampled_from([_PINGRESP, _SUBACK]), max_size=8), st.data())
def test_pubacks_are_sorted_out_however_they_are_cut(
    packets: list[tuple[int, int | None, bool] | bytes], data: st.DataObject
) -> None:
    """Each PUBACK is told once with its code, and paho gets all else as it came."""
    sent, others = b"", b""
    expected: list[tuple[int, int]] = []
    for packet in packets:
        if isinstance(packet, bytes):
            sent, others = sent + packet, others + packet
        else:
            packet_id, code, more = packet
            reason = b"\x1f\x00\x82" + b"r" * 130
            sent += _puback(packet_id, code, bytes([0x85, 0x01]) + reason if more else None)
            expected.append((packet_id, code or 0))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=6)))
    sorter = Sorter()
    found: list[tuple[int, int]] = []

    for begin, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        found += sorter.sort(sent[begin:end])

    assert found == expected
    assert bytes(sorter.others) == others


def test_what_is_no_packet_is_left_to_paho() -> None:
    """A length of five bytes, and a PUBACK that claims to be larger than any: neither gathers here."""
    for nonsense in (b"\x40\xff\xff\xff\xff\x01", b"\x40\xff\xff\xff\x7f" + b"x" * 100, b"\x40\x01\x07"):
        sorter = Sorter()
        assert sorter.sort(nonsense) == []
        assert bytes(sorter.others) == nonsense


@pytest.mark.parametrize(
    ("message", "five", "packet"),
    [
        (Message(topic="a/b", payload=b"hi"), False, b"\x32\x09\x00\x03a/b\x12\x34hi"),
        (Message(topic="a/b", payload=b"hi", retain=True), True, b"\x33\x0a\x00\x03a/b\x12\x34\x00hi"),
        (Message(topic="a/b", payload=b"hi", qos=0), True, b"\x30\x08\x00\x03a/b\x00hi"),
        (
            Message(topic="t", payload=b"{}", correlation=b"\x00\xff"),
            True,
            b"\x32\x20\x00\x01t\x12\x34\x18\x03\x00\x10application/json\x09\x00\x02\x00\xff{}",
        ),
        (Message(topic="t", payload=b"", retain=True, correlation=b"c"), False, b"\x33\x05\x00\x01t\x12\x34"),
    ],
)
def test_a_publish_packet_is_written_as_mqtt_says(message: Message, packet: bytes, *, five: bool) -> None:
    """MQTT 5.0, 3.3: flags, Remaining Length, topic, identifier, properties, payload."""
    assert encode_publish(message, 0x1234, five=five) == packet


@pytest.mark.parametrize(
    ("size", "length"), [(122, b"\x7f"), (123, b"\x80\x01"), (16_378, b"\xff\x7f"), (16_379, b"\x80\x80\x01")]
)
def test_the_remaining_length_grows_by_a_byte_in_time(size: int, length: bytes) -> None:
    """MQTT 5.0, 1.5.5: seven bits in each byte."""
    packet = encode_publish(Message(topic="t", payload=b"x" * size), 1, five=False)

    assert packet[1 : 1 + len(length)] == length
    assert len(packet) == 1 + len(length) + 5 + size


@pytest.mark.parametrize("topic", ["", "a\nb", "a/+/b", "a/#", "ä" * 32_768])
def test_a_topic_that_would_end_the_connection_is_refused(topic: str) -> None:
    """A broker hangs up over it, and would at each repetition."""
    with pytest.raises(ValueError, match="a topic"):
        encode_publish(Message(topic=topic, payload=b""), 1, five=True)


@contextlib.contextmanager
def _line() -> Iterator[tuple[Line, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        near.settimeout(0)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        yield Line(near.recv, near.send, lambda: 0), far


def test_what_finds_no_room_waits_in_order() -> None:
    """Packets of ours go on behind what the system did not take; paho's are refused until then, and kept there."""
    with _line() as (line, far):
        packets = [bytes([0x30, 0]) + bytes([number]) * 1000 for number in range(100)]
        for packet in packets:
            line.write(packet)
        assert not line.flush()
        with pytest.raises(BlockingIOError):
            line.send(b"\xc0\x00")

        came = b""
        while len(came) < sum(map(len, packets)):
            came += far.recv(65_536)
            line.flush()

        assert came == b"".join(packets)
        assert line.send(b"\xc0\x00") == 2


def test_disconnect_goes_out_behind_everything_else() -> None:
    """The socket is closed as soon as DISCONNECT is taken: by then all is out [MQTT-3.14.4-1]."""
    with _line() as (line, far):
        line.write(b"\x30\x02ab")
        assert line.send(b"\xe0\x00") == 2

        assert far.recv(100) == b"\x30\x02ab\xe0\x00"


def test_disconnect_waits_for_room() -> None:
    """It is not taken before all that stands before it is out, so paho leaves the socket open."""
    with _line() as (line, far):
        line.write(b"x" * 65_000)
        with pytest.raises(BlockingIOError):
            line.send(b"\xe0\x00")

        came = b""
        while not came.endswith(b"\xe0\x00"):
            came += far.recv(65_536)
            with contextlib.suppress(BlockingIOError):
                line.send(b"\xe0\x00")

        assert came == b"x" * 65_000 + b"\xe0\x00"


def test_disconnect_that_finds_no_room_goes_out_once() -> None:
    """It alone finds no room: it is not taken, so it is not sent twice when paho brings it again."""
    full, written = True, bytearray()

    def send(data: bytes | bytearray) -> int:
        if full:
            raise BlockingIOError
        written.extend(data)
        return len(data)

    line = Line(lambda _: b"", send, lambda: 0)
    with pytest.raises(BlockingIOError):
        line.send(b"\xe0\x00")
    full = False

    assert line.send(b"\xe0\x00") == 2
    assert bytes(written) == b"\xe0\x00"


def test_paho_hears_of_the_end_behind_what_came_before_it() -> None:
    """PUBACKs and packets that came with the end are not lost with it."""
    with _line() as (line, far):
        far.sendall(_puback(40_000) + _PINGRESP)
        far.close()

        assert line.fill() == [(40_000, 0)]
        assert line.recv(100) == _PINGRESP
        with pytest.raises(BlockingIOError):
            line.recv(1)
        line.fill()
        assert line.waits
        assert line.recv(1) == b""
