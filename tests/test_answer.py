"""Reading the gateway's answers, with all its habits."""

import contextlib
import gzip
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapter.answer import HEAD_BYTES, MAX_ANSWER_BYTES, MAX_DEPTH, parse_answer, unpack
from adapter.catalogue import EVENT_TYPES
from adapter.errors import GatewayProtocolError
from adapter.event import render_event
from adapter.gateway import result_of
from adapter.privacy import Mask, Method
from adapter.state import AgentState, decode, encode, fold
from tests.hypothesis_support import patient

FIXTURES = Path(__file__).parent / "fixtures"
REFUSALS = sorted(path.stem for path in FIXTURES.glob("*.json") if not path.stem[0].isalpha())
NOW = datetime(2026, 1, 31, tzinfo=UTC)
READY = b'{"message":"","retcode":"0","event":{"eventType":"AgentState_Ready","workNo":"101","content":%s}}'


def content_of(body: bytes, charset: str | None = None) -> object:
    """Parse an answer with one event, and give the event's content."""
    (event,) = parse_answer(body, charset).events
    return event.content


def test_limits_of_p14() -> None:
    """P14: 1 MiB, 64 levels, and 4 KiB of an unreadable body kept."""
    assert (MAX_ANSWER_BYTES, MAX_DEPTH, HEAD_BYTES) == (1_048_576, 64, 4096)


@pytest.mark.parametrize("name", sorted(EVENT_TYPES))
def test_sample_of_each_event_type_is_read(name: str) -> None:
    """Each of the vendor's samples gives its one event, with all of its members."""
    body = (FIXTURES / f"{name}.json").read_bytes()

    answer = parse_answer(body, "UTF-8")

    (event,) = answer.events
    sample = json.loads(body)["event"]
    assert (name, "49999") == (event.event_type, event.work_no)
    assert sample == {member: json.loads(bytes(raw)) for member, raw in event.members.items()}
    assert list(sample) == list(event.members)
    assert sample["content"] == event.content


@pytest.mark.parametrize("retcode", REFUSALS)
def test_sample_of_each_retcode_is_read(retcode: str) -> None:
    """An answer without an event gives its retcode and message."""
    body = (FIXTURES / f"{retcode}.json").read_bytes()

    answer = parse_answer(body)

    assert (retcode, json.loads(body)["message"], ()) == (answer.retcode, answer.message, answer.events)


@pytest.mark.parametrize("event", [b"null", b"{}", b"{ }", b"[]", b"[ ]", b"[null]", b"[{}]", b'""'])
def test_p11_shapes_of_no_event(event: bytes) -> None:
    """P11: `event` may be there and hold none."""
    assert parse_answer(b'{"retcode":"0","event": %s }' % event).events == ()


def test_p11_event_may_be_a_list() -> None:
    """P11: `event` may be a list of objects; their order stays."""
    body = b'{"retcode":"0","event":[{"eventType":"A"},{"eventType":"B","workNo":7}]}'

    events = parse_answer(body).events

    assert [(event.event_type, event.work_no) for event in events] == [("A", None), ("B", "7")]


@pytest.mark.parametrize(
    ("raw", "content"),
    [
        (b"null", None),
        (b'"1456-15"', "1456-15"),
        (b'{"reason":"200"}', {"reason": "200"}),
        (b"[1]", [1]),
        (b"5", 5),
    ],
)
def test_p11_content_of_any_kind(raw: bytes, content: object) -> None:
    """P11: `content` may be null, a string, an object, or anything."""
    assert content == content_of(READY % raw)


def test_p11_content_may_be_absent() -> None:
    """P11: an event without `content` reads as one with null."""
    assert content_of(b'{"retcode":"0","event":{"eventType":"A"}}') is None


@pytest.mark.parametrize(
    ("raw", "retcode"), [(b"0", "0"), (b'"0"', "0"), (b"100006", "100006"), (b'"100-006\\u0000"', "100-006")]
)
def test_p11_retcode_may_be_a_number(raw: bytes, retcode: str) -> None:
    """P11: a number as `retcode` is taken as its text."""
    assert retcode == parse_answer(b'{"retcode":%s}' % raw).retcode


@pytest.mark.parametrize(("raw", "message"), [(b'"no right"', "no right"), (b"null", ""), (b"{}", ""), (b"1", "")])
def test_message_that_is_no_text_is_left_out(raw: bytes, message: str) -> None:
    """The message is for people: another type than text is no reason to refuse an answer."""
    assert message == parse_answer(b'{"retcode":"0","message":%s}' % raw).message


def test_result_is_kept_raw() -> None:
    """The member `result` of other requests is handed on as it came; null is none."""
    result = parse_answer(b'{"retcode":"0","result":{"agentState":4,"big":1e400}}').result

    assert result == msgspec.Raw(b'{"agentState":4,"big":1e400}')
    assert parse_answer(b'{"retcode":"0","result":null}').result is None
    assert parse_answer(b'{"retcode":"0"}').result is None


# --- charsets, byte order marks, NULs, surrogates -----------------------------------------------------------


@pytest.mark.parametrize(
    ("encoding", "charset"),
    [
        ("utf-8", None),
        ("utf-8", "UTF-8"),
        ("utf-8", '"utf-8"'),
        ("utf-8", ""),
        ("utf-8", "no-such-charset"),
        ("utf-8", "base64"),
        ("utf-8", "idna"),
        ("utf-8", "Unicode_Escape"),
        ("utf-8-sig", None),
        ("utf-8-sig", "gbk"),
        ("gbk", "GBK"),
        ("gbk", "gb2312"),
        ("gbk", "x-gbk"),
        ("gb18030", "gb18030"),
        ("utf-16", "utf-16"),
        ("utf-16-le", "utf-16le"),
        ("utf-16-be", "UTF-16BE"),
    ],
)
def test_p11_charset(encoding: str, charset: str | None) -> None:
    """P11: a declared charset is honoured, a byte order mark wins over it, and an unknown one is UTF-8."""
    body = '{"retcode":"0","event":{"eventType":"A","content":"客服镕"}}'.encode(encoding)

    assert content_of(body, charset) == "客服镕"


def test_p11_byte_order_mark_in_another_charset() -> None:
    """P11: a byte order mark that the charset's decoder leaves in the text is taken off."""
    body = '\ufeff{"retcode":"0"}'.encode("utf-16-be")

    assert parse_answer(body, "utf-16-be").retcode == "0"


def test_p11_half_a_character_from_another_charset() -> None:
    """P11: also where a charset's decoder lets a surrogate without its half through, it becomes U+FFFD."""
    assert content_of(READY % b'"+2D0-x"', "utf-7") == "\ufffdx"


@pytest.mark.parametrize(
    ("raw", "content"),
    [
        (rb'"\ud83d\ude42"', "\U0001f642"),
        (rb'"\uD83D\uDE42!"', "\U0001f642!"),
        (rb'"\ud83d"', "\ufffd"),
        (rb'"\ude42"', "\ufffd"),
        (rb'"\ud83d\ud83d\ude42"', "\ufffd\U0001f642"),
        (rb'"\ude42\ud83d"', "\ufffd\ufffd"),
        (rb'"\ud83dx"', "\ufffdx"),
        (rb'"\\ud83d"', "\\ud83d"),
        (rb'"\\\ud83d"', "\\\ufffd"),
        (b'"\xf0\x9f\x99\x82"', "\U0001f642"),
        (b'"\xed\xa0\xbd\xed\xb9\x82"', "\U0001f642"),
        (b'"\xed\xa0\xbdx"', "\ufffdx"),
        (b'"\xed\xb9\x82\xed\xa0\xbd"', "\ufffd\ufffd"),
        (b'"\xffx"', "\ufffdx"),
        (b'"\xf0\x9f\x99"', "\ufffd"),
        (rb'{"a\ud83d":"\ud83d"}', {"a\ufffd": "\ufffd"}),
    ],
)
def test_p11_half_characters_become_replacement_characters(raw: bytes, content: object) -> None:
    """P11: a surrogate without its half, escaped or in bytes, becomes U+FFFD; a pair stays."""
    assert content == content_of(READY % raw)


@pytest.mark.parametrize(
    ("raw", "content"),
    [
        (rb'"abc\u0000"', "abc"),
        (rb'"abc\u0000\u0000\u0000"', "abc"),
        (rb'"\u0000"', ""),
        (rb'"a\u0000b"', "a\0b"),
        (rb'"a\u0000b\u0000"', "a\0b"),
        (rb'"abc\\u0000"', "abc\\u0000"),
        (rb'"abc\\\u0000"', "abc\\"),
        (rb'"abc\u0000\""', 'abc\0"'),
        (b'"abc\0\0"', "abc"),
        (rb'"\ud83d\u0000"', "\ufffd"),
        (rb'{"a\u0000":["b\u0000","c"]}', {"a": ["b", "c"]}),
    ],
)
def test_p11_trailing_nuls_are_dropped(raw: bytes, content: object) -> None:
    """P11: NULs at the end of a string are dropped, those inside it stay; raw ones are dropped anywhere."""
    assert content == content_of(READY % raw)


def test_p11_nuls_after_the_body() -> None:
    """P11: NULs after the body are no part of it."""
    assert parse_answer(b'{"retcode":"0"}\0\0\0\n\0').retcode == "0"


# --- unreadable ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "truncated"),
        (b"<html>", "malformed"),
        (b"null", "object"),
        (b"[]", "object"),
        (b'"0"', "object"),
        (b'{"retcode":"0"', "truncated"),
        (b'{"retcode":"0"} x', "malformed"),
        (b"{}", "no retcode"),
        (b'{"retcode":null}', "no retcode"),
        (b'{"retcode":""}', "no retcode"),
        (b'{"retcode":true}', "no retcode"),
        (b'{"retcode":{}}', "no retcode"),
        (b'{"retcode":"0","event":5}', "object"),
        (b'{"retcode":"0","event":"x"}', "object"),
        (b'{"retcode":"0","event":[5]}', "object"),
        (b'{"retcode":"0","event":{"workNo":"101"}}', "eventType"),
        (b'{"retcode":"0","event":{"eventType":null}}', "eventType"),
        (b'{"retcode":"0","event":{"eventType":7}}', "eventType"),
        (b'{"retcode":"0","event":[{"eventType":"A"},{"workNo":"1"}]}', "eventType"),
        (b'{"retcode":"0","event":{"eventType":"A","x":01}}', "malformed"),
        (b'{"retcode":"0","event":{"eventType":"A","x":NaN}}', "malformed"),
        (b'{"retcode":"0","event":{"eventType":"A","x":"a\nb"}}', "malformed"),
    ],
)
def test_p14_unreadable(body: bytes, reason: str) -> None:
    """P14: what is no JSON object with a retcode and whole events is unreadable, and the error says why."""
    with pytest.raises(GatewayProtocolError) as caught:
        parse_answer(body)

    assert reason in caught.value.reason
    assert (body, len(body)) == (caught.value.head, caught.value.size_bytes)


def test_p14_head_of_an_unreadable_body() -> None:
    """P14: the first 4 KiB are kept, as they came."""
    body = b"\0<html>" + b"x" * 10_000

    with pytest.raises(GatewayProtocolError) as caught:
        parse_answer(body)

    assert (body[:4096], 10_007) == (caught.value.head, caught.value.size_bytes)


def nested(levels: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    """Make an answer that is `levels` deep: answer, event, and the rest in its content."""
    inside = levels - 2
    return READY % (opening * inside + (b"1" if opening != b"[" else b"") + closing * inside)


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_p14_depth(opening: bytes, closing: bytes) -> None:
    """P14: 64 levels are read, 65 are not."""
    parse_answer(nested(64, opening, closing))

    with pytest.raises(GatewayProtocolError, match="64 levels"):
        parse_answer(nested(65, opening, closing))


@pytest.mark.parametrize("raw", [b'"' + b"{[" * 500 + b'"', rb'"\"' + b"{[" * 500 + b'"', b"[" + b"{}," * 500 + b"[]]"])
def test_p14_braces_in_strings_and_beside_each_other_are_no_depth(raw: bytes) -> None:
    """P14: depth is nesting; braces in text, after an escaped quote too, and siblings do not add up."""
    parse_answer(READY % raw)


def test_p14_depth_without_recursion() -> None:
    """P14: a megabyte of opening braces is refused, not recursed into."""
    with pytest.raises(GatewayProtocolError, match="64 levels"):
        parse_answer(b'{"a":' * (MAX_ANSWER_BYTES // 5))


@pytest.mark.parametrize(
    "piece", [b'\\"', b'"{', b"\\u0000", b'"\\u0000', b"\\ud83d", b"\xed\xa0\xbd", b"\xff", b"[]", b"\\", b"\0", b'"']
)
def test_p14_no_megabyte_stops_the_loop(piece: bytes) -> None:
    """P14: the worst input of the largest size is judged in a moment, as nothing in it costs its square."""
    body = b'{"retcode":"' + b"[" * 65 + piece * (MAX_ANSWER_BYTES // len(piece))
    begin = time.process_time()

    with pytest.raises(GatewayProtocolError):
        parse_answer(body)

    assert time.process_time() - begin < 5


# --- properties ---------------------------------------------------------------------------------------------

FRAGMENTS = st.sampled_from(
    [
        *(b'{"retcode":"0"', b',"event":', b'{"eventType":"A"', b"}", b"[", b"]", b'"', b":", b",", b"\\"),
        *(b"\\u0000", b"\\ud83d", b"\xed\xa0\xbd", b"\xed\xb9\x82", b"\xff", b"\0", b"\xef\xbb\xbf"),
        *(b"1e999", b"-0", b"null"),
    ]
)
BODIES = st.binary() | st.lists(FRAGMENTS, max_size=20).map(b"".join)
CHARSETS = (
    st.none() | st.sampled_from(["utf-8", "gbk", "utf-16", "utf-7", "latin-1", "unicode_escape", "zip"]) | st.text()
)


@patient
@given(body=BODIES, charset=CHARSETS)
@example(body=b"\\q", charset="unicode_escape")
def test_p14_nothing_else_is_raised(body: bytes, charset: str | None) -> None:
    """P14: whatever the bytes and the charset are, they are read or are a `GatewayProtocolError`."""
    with contextlib.suppress(GatewayProtocolError):
        parse_answer(body, charset)


_DEEP = st.integers(60, 100_000).flatmap(
    lambda levels: st.sampled_from([b"[", b'{"a":', b'[{"":', b'{"event":[']).map(lambda piece: piece * levels)
)
_NUMBERS = st.sampled_from([b"1e999", b"-1e-999", b"-0", b"-0.0", b"1.10", b"1E+2", b"NaN", b"-Infinity", b"01", b"1."])
_NUMBERS |= st.sampled_from([4300, 4301, 50_000]).map(lambda digits: b"7" * digits)
_PIECES = (
    _NUMBERS
    | _DEEP
    | FRAGMENTS
    | st.binary(max_size=8)
    | st.text(max_size=8).map(lambda text: json.dumps(text).encode())
)
_MEMBERS = st.sampled_from(
    [
        b"eventType",
        b"workNo",
        b"content",
        b"retcode",
        b"event",
        b"result",
        b"callid",
        b"caller",
        b"feature",
        b"reason",
        b"id",
    ]
).map(lambda name: b'"' + name + b'":')
_TYPES = st.sampled_from(
    [b'"eventType":"%b",' % name.encode() for name in ("AgentEvent_Talking", "AgentState_Ready", "A")]
)


@st.composite
def jsonish(draw: st.DrawFn) -> bytes:
    """Make an answer that is nearly one: an event of known members, each with anything for a value."""
    inside = b",".join(draw(_MEMBERS) + draw(_PIECES) for _ in range(draw(st.integers(0, 4))))
    event = b"{%b%b}" % (draw(_TYPES), inside or b'"content":{"caller":7}')
    body = b'{"retcode":"0","event":%b,"result":%b}' % (event, draw(_PIECES | st.just(b"{}")))
    if draw(st.booleans()):  # something over a part of it, or a part left out
        at = draw(st.integers(0, len(body)))
        body = body[:at] + draw(_PIECES) + body[at + draw(st.integers(0, 9)) :]
    return body


@patient
@given(body=jsonish(), method=st.sampled_from(["last4", "hash", "drop"]))
@example(
    body=b'{"retcode":0,"event":{"eventType":"AgentEvent_Talking","content":{"caller":%b}}}' % (b"7" * 5000),
    method="drop",
)
def test_p11_what_is_read_can_be_masked_folded_and_sent(body: bytes, method: Method) -> None:
    """P11, P14: nearly an answer is unreadable, or what it holds passes all that is done with an event."""
    try:
        answer = parse_answer(body)
    except GatewayProtocolError:
        return

    result_of(answer)
    for event in answer.events:
        masked = Mask(members=None, method=method, key=b"k").apply(event)
        state = fold(AgentState(since=NOW), masked, at=NOW, event_id="i", seq=1)
        payload = render_event(masked, event_id="i", seq=1, received_at=NOW)
        assert decode(encode(state)) == state
        assert isinstance(msgspec.json.decode(payload, type=dict[str, msgspec.Raw]), dict)


@patient
@given(
    body=st.binary(max_size=200) | BODIES.map(gzip.compress),
    coding=st.sampled_from(["gzip", "deflate", "br", "", "GZIP"]),
)
def test_p14_unpacking_raises_nothing_else(body: bytes, coding: str) -> None:
    """P14: what came packed is unpacked, or is a `GatewayProtocolError`."""
    with contextlib.suppress(GatewayProtocolError):
        unpack(body, coding)


@patient
@given(raw=st.binary(max_size=40))
def test_p11_what_is_let_through_is_valid_json(raw: bytes) -> None:
    """P11: each member that passes is valid JSON in valid UTF-8 without halves of characters."""
    try:
        (event,) = parse_answer(READY % (b'"' + raw + b'"')).events
    except GatewayProtocolError:
        return

    for member in event.members.values():
        json.dumps(json.loads(bytes(member).decode()), ensure_ascii=False).encode()


def json_values(*, numbers: st.SearchStrategy[Any] | None = None) -> st.SearchStrategy[Any]:
    """Make JSON values of any kind, up to a few levels deep; no text with NULs at its end."""
    text = st.text(max_size=20).filter(lambda value: not value.endswith("\0"))
    leaves = (
        st.none()
        | st.booleans()
        | text
        | (numbers if numbers is not None else st.integers() | st.floats(allow_nan=False, allow_infinity=False))
    )
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4), max_leaves=12
    )


@patient
@given(content=json_values(), ascii_only=st.booleans())
def test_p11_any_json_passes_unchanged(content: object, *, ascii_only: bool) -> None:
    """P11: any content, in escapes or in UTF-8, passes unchanged."""
    raw = json.dumps(content, ensure_ascii=ascii_only).encode()

    (event,) = parse_answer(READY % raw).events

    assert raw == bytes(event.members["content"])
    assert content == json.loads(bytes(event.members["content"]))
