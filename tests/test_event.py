"""Events as they go out."""

import json
import uuid
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapter.answer import parse_answer
from adapter.catalogue import EVENT_TYPES
from adapter.event import Event, mark_replayed, new_id, read_json, render_event, text_of, timestamp
from tests.hypothesis_support import patient

FIXTURES = Path(__file__).parent / "fixtures"
AT = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)


def parse_event(text: str) -> Event:
    """Make an event of its JSON, as the gateway would send it."""
    (event,) = parse_answer(b'{"retcode":"0","event":%s}' % text.encode()).events
    return event


def render(event: Event) -> bytes:
    """Render an event with fixed members of ours."""
    return render_event(event, event_id="1-2-3", seq=7, received_at=AT)


@pytest.mark.parametrize("name", sorted(EVENT_TYPES))
def test_each_event_type_goes_out_as_it_came(name: str) -> None:
    """Each sample is published with all of its members unchanged, and ours beside them."""
    body = (FIXTURES / f"{name}.json").read_bytes()
    (event,) = parse_answer(body).events

    payload = render(event)

    ours = {"id": "1-2-3", "seq": 7, "receivedAt": "2026-01-31T12:00:00.123Z"}
    assert json.loads(body)["event"] | ours == json.loads(payload)


def test_missing_members_are_null() -> None:
    """`workNo` and `content` are always there, null when the gateway left them out."""
    payload = json.loads(render(parse_event('{"eventType":"A"}')))

    assert list(payload) == ["eventType", "workNo", "content", "id", "seq", "receivedAt"]
    assert (payload["workNo"], payload["content"]) == (None, None)


def test_p11_raw_text_of_members_stays() -> None:
    """P11: numbers keep each digit, and unknown members their very text."""
    text = '"workNo":101,"content":{"a":1.10,"b":1e400,"c":-0,"d":12345678901234567890123},"extra":[1.0, 2 ]'

    payload = render(parse_event('{"eventType":"Nobody_Knows_It",' + text + "}"))

    assert text.encode() in payload


def test_their_members_of_our_names_move_into_gateway() -> None:
    """Ours wins; theirs of one of our names are kept in `gateway`, also one named `gateway`."""
    theirs = '"id":1.0,"seq":"x","receivedAt":null,"replayed":false,"gateway":{"a":1}'

    payload = json.loads(render(parse_event('{"eventType":"A",' + theirs + ',"other":1}')))

    assert (payload["id"], payload["seq"], payload["other"]) == ("1-2-3", 7, 1)
    assert json.loads("{" + theirs + "}") == payload["gateway"]
    assert "replayed" not in payload


def test_no_member_gateway_without_need() -> None:
    """`gateway` is there only where something moved into it."""
    assert "gateway" not in json.loads(render(parse_event('{"eventType":"A"}')))


@pytest.mark.parametrize("extra", ["", ',"replayed":"theirs"'])
def test_mark_replayed_adds_one_member(extra: str) -> None:
    """`replayed` is added at sending, and nothing else changes."""
    payload = render(parse_event('{"eventType":"A"' + extra + "}"))

    marked = mark_replayed(payload)

    assert json.loads(payload) | {"replayed": True} == json.loads(marked)


@pytest.mark.parametrize("members", ["{}", '{"eventType":null}', '{"eventType":7}', '{"eventType":["A"]}'])
def test_p14_event_needs_a_text_event_type(members: str) -> None:
    """P14: an event without a text `eventType` cannot be made."""
    with pytest.raises(ValueError, match="eventType"):
        Event.from_members(msgspec.json.decode(members, type=dict[str, msgspec.Raw]))


def test_repr_keeps_the_content_to_itself() -> None:
    """An event in a log line or a traceback shows no phone number."""
    event = parse_event('{"eventType":"A","workNo":"101","content":{"caller":"13800001234"}}')

    assert repr(event) == "Event(event_type='A', work_no='101')"


@pytest.mark.parametrize(
    ("value", "text"),
    [("7", "7"), (7, "7"), (1.5, "1.5"), ("", None), (None, None), (True, None), ([], None), ({}, None)],
)
def test_text_of(value: object, text: str | None) -> None:
    """Text and numbers are read as text, all else as nothing."""
    assert text == text_of(value)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"9007199254740993", 9007199254740993),
        (b"[1,1e400]", ["1", float("inf")]),
        (b"9" * 5000, "9" * 5000),
    ],
)
def test_numbers_too_large_for_python_are_readable(raw: bytes, value: object) -> None:
    """A number that Python cannot hold does not make an event unreadable."""
    assert value == read_json(msgspec.Raw(raw))


def test_new_ids_are_uuids_that_differ() -> None:
    """Each id is a UUID of its own."""
    assert new_id() != new_id()
    assert uuid.UUID(new_id()).version == 4


def test_timestamp_is_utc_with_milliseconds() -> None:
    """Times are RFC 3339 in UTC with milliseconds, always three digits."""
    elsewhere = datetime(2026, 1, 1, 1, 0, tzinfo=timezone(timedelta(hours=2)))

    assert timestamp(AT) == "2026-01-31T12:00:00.123Z"
    assert timestamp(elsewhere) == "2025-12-31T23:00:00.000Z"


TEXT = st.text(max_size=12).filter(lambda text: not text.endswith("\0"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OURS = ("id", "seq", "receivedAt", "replayed", "gateway")


@patient
@given(
    members=st.dictionaries(TEXT | st.sampled_from(["workNo", "content", *OURS]), VALUES, max_size=6),
    ascii_only=st.booleans(),
)
@example(members={"\u2028": "\u2029", '"': "\\", "\x7f": "\x1f"}, ascii_only=False)
def test_p11_any_event_passes_unchanged(members: dict[str, object], *, ascii_only: bool) -> None:
    """P11: every member of any event comes out equal, and the payload is JSON in UTF-8."""
    sent = members | {"eventType": "A"}

    payload = json.loads(render(parse_event(json.dumps(sent, ensure_ascii=ascii_only))).decode())

    assert {name: value for name, value in sent.items() if name not in OURS} == {
        name: payload[name] for name in sent if name not in OURS
    }
    assert {name: value for name, value in sent.items() if name in OURS} == payload.get("gateway", {})


@patient
@given(number=st.from_regex(r"\A-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,30})?([eE][+-]?[0-9]{1,4})?\Z"))
def test_p11_numbers_to_the_digit(number: str) -> None:
    """P11: any JSON number comes out with the same characters."""
    payload = render(parse_event('{"eventType":"A","content":{"n":' + number + "}}"))

    assert b'"content":{"n":' + number.encode() + b"}" in payload
