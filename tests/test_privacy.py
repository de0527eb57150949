"""Masks: what is hidden, and that nothing else changes."""

import hashlib
import hmac
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.answer import parse_answer
from adapter.catalogue import EVENT_TYPES
from adapter.event import Event
from adapter.privacy import Mask, Method
from tests.hypothesis_support import patient

FIXTURES = Path(__file__).parent / "fixtures"
KEY = b"k" * 32


def mask(method: Method = "last4", *members: str) -> Mask:
    """Make a mask of some members, or of all that carry numbers."""
    return Mask(members=frozenset(members) or None, method=method, key=KEY)


def event_of(members: str) -> Event:
    """Make an event of its members' JSON, without the event type."""
    (event,) = parse_answer(b'{"retcode":"0","event":{"eventType":"A",%s}}' % members.encode()).events
    return event


def masked_content(content: str, how: Mask) -> object:
    """Mask an event with this content, and read the content from its raw members."""
    event = how.apply(event_of(f'"content":{content}'))
    assert event.content == json.loads(bytes(event.members["content"]))
    return event.content


def digest(number: str) -> str:
    """Hash a number the way the mask promises to."""
    return hmac.new(KEY, number.encode(), hashlib.sha256).hexdigest()


@pytest.mark.parametrize(
    ("number", "masked"),
    [
        ('"13800001234"', "*******1234"),
        ('"12345"', "*2345"),
        ('"8102"', "****"),
        ('"1"', "*"),
        ('""', ""),
        ('"+86 138-00-12"', "********00*12"),
        ("13800001234", "*******1234"),
        ("1.5e3", "*****"),
        ('"sip:8102@host"', "*" * 13),
        ('"13800001234,8102"', "*******1234,****"),
        ('"13800001234, 13900005678"', "*******1234,*******5678"),
        ("null", None),
        ("true", True),
        ('["13800001234",{"x":13900005678}]', ["*******1234", {"x": "*******5678"}]),
        ('{"a":"13800001234","b":null,"c":[true]}', {"a": "*******1234", "b": None, "c": [True]}),
    ],
)
def test_last4(number: str, masked: object) -> None:
    """`last4` leaves the last four digits, of four or fewer none; lists and objects are masked leaf by leaf."""
    assert {"caller": masked} == masked_content(f'{{"caller":{number}}}', mask())


def test_hash() -> None:
    """`hash` gives the keyed hash of each number alone: text and number alike, blanks aside; of nothing, nothing."""
    content = '{"caller":"13800001234","called":13800001234,"partner":"1, 2","number":""}'

    masked = masked_content(content, mask("hash"))

    number = digest("13800001234")
    assert {"caller": number, "called": number, "partner": f"{digest('1')},{digest('2')}", "number": ""} == masked


def test_drop() -> None:
    """`drop` takes the member away, and leaves its neighbours."""
    content = '{"caller":"13800001234","callid":"1","inner":[{"called":{"a":1},"b":2}]}'

    masked = masked_content(content, mask("drop"))

    assert masked == {"callid": "1", "inner": [{"b": 2}]}


def test_names_are_compared_without_case() -> None:
    """A number does not slip through because the gateway spells its member another way."""
    masked = masked_content('{"TransFrom":"13800001234","CALLER":"13800001234"}', mask())

    assert masked == {"TransFrom": "*******1234", "CALLER": "*******1234"}


def test_numbers_are_masked_anywhere() -> None:
    """Members are found at any depth, in lists, and beside the content."""
    event = mask().apply(event_of('"caller":"13800001234","content":[[{"a":{"called":"13800001234"}}]],"x":{"y":[]}'))

    assert bytes(event.members["caller"]) == b'"*******1234"'
    assert bytes(event.members["content"]) == b'[[{"a":{"called":"*******1234"}}]]'
    assert event.content == [[{"a": {"called": "*******1234"}}]]


def test_listed_members_are_masked_and_no_others() -> None:
    """A list of members is taken instead of those that carry numbers."""
    masked = masked_content('{"caller":"13800001234","message":"call 13800001234"}', mask("last4", "message"))

    assert masked == {"caller": "13800001234", "message": "*" * 12 + "1234"}


def test_what_is_not_masked_stays_to_the_digit() -> None:
    """P11: unmasked text and numbers stay as they were written, in an event with numbers to mask and in one without."""
    event = mask().apply(event_of('"content":{"caller":"13800001234","b":{ "c" : [1.10, 1e400] }},"extra": { "d":-0 }'))

    assert bytes(event.members["content"]) == b'{"caller":"*******1234","b":{"c":[1.10,1e400]}}'
    assert bytes(event.members["extra"]) == b'{"d":-0}'


@pytest.mark.parametrize(
    ("content", "masked"),
    [
        ('{"caller":"13800001234","caller":null}', b'{"caller":null}'),
        ('{"a":{"caller":"13800001234"},"a":1}', b'{"a":1}'),
        ('[{"caller":"13800001234","caller":true}]', b'[{"caller":true}]'),
    ],
)
def test_a_name_that_stands_twice_hides_no_number(content: str, masked: bytes) -> None:
    """Of a name that an object has twice, JSON's readers see the last value; the first must not slip through."""
    assert bytes(mask().apply(event_of(f'"content":{content}')).members["content"]) == masked


@pytest.mark.parametrize("method", ["last4", "hash", "drop"])
def test_type_and_work_number_of_an_event_are_never_masked(method: Method) -> None:
    """What an event is and whose stays, also where the configuration names these members."""
    content = {"last4": {"workNo": "****5678"}, "hash": {"workNo": digest("12345678")}, "drop": {}}

    event = mask(method, "eventType", "workNo").apply(event_of('"workNo":"138001234","content":{"workNo":"12345678"}'))

    assert (event.event_type, event.work_no, event.content) == ("A", "138001234", content[method])
    assert (bytes(event.members["eventType"]), bytes(event.members["workNo"])) == (b'"A"', b'"138001234"')


def test_whole_content_can_be_masked() -> None:
    """`content` may be named itself: all of its leaves are masked, or it is null."""
    event = event_of('"content":{"a":["13800001234"],"b":{"c":77}}')

    assert mask("last4", "content").apply(event).content == {"a": ["*******1234"], "b": {"c": "**"}}
    dropped = mask("drop", "content").apply(event)
    assert dropped.content is None
    assert "content" not in dropped.members


def test_key_is_not_shown() -> None:
    """The key of the hash is a secret."""
    assert "kkk" not in repr(mask("hash"))


@pytest.mark.parametrize("name", sorted(EVENT_TYPES))
@pytest.mark.parametrize("method", ["last4", "hash", "drop"])
def test_no_sample_shows_its_numbers(name: str, method: Method) -> None:
    """`mask: numbers` leaves no phone number in any of the vendor's samples, and every other member as it was."""
    (event,) = parse_answer((FIXTURES / f"{name}.json").read_bytes()).events

    masked = mask(method).apply(event)

    raw = b"".join(bytes(member) for member in masked.members.values()) + repr(masked.content).encode()
    assert not [number for number in (b"13800001234", b"4008001111", b"8102000") if number in raw]
    if not EVENT_TYPES[name].numbers:
        assert masked.content == event.content


KEYS = st.sampled_from(["caller", "Called", "number", "a", "b", "content"])
NUMBER = "13800001234"
VALUES = st.recursive(
    st.sampled_from([NUMBER, int(NUMBER), None, True, "", f"{NUMBER},{NUMBER}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)


def masked_by_hand(value: object, *, inside: bool = False) -> object:
    """Mask decoded JSON the plain way, to compare with."""
    if isinstance(value, dict):
        return {
            k: masked_by_hand(v, inside=inside or k.lower() in ("caller", "called", "number")) for k, v in value.items()
        }
    if isinstance(value, list):
        return [masked_by_hand(item, inside=inside) for item in value]
    if not inside or value is None or value is True:
        return value
    return ",".join("*" * 7 + part[-4:] if part else "" for part in str(value).split(","))


@patient
@given(content=VALUES)
def test_masks_of_any_json(content: object) -> None:
    """In any JSON, what stands below a masked name is masked, and all else is equal."""
    assert masked_by_hand(content) == masked_content(json.dumps(content), mask())
