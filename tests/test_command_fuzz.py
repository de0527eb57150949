"""Whatever is published on a command topic: understood or refused, answered once, never a mistake (C1 to C8)."""

import asyncio
import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.command import check_properties, parse_call_data
from adapter.errors import CommandError
from tests.broker_support import Broker
from tests.fuzz_support import AGENTS, ANSWERS, SECRET, STRANGERS, Shot, Target, check, corpus, spoilt
from tests.hypothesis_support import patient

pytestmark = pytest.mark.harm

_ODD_TEXT = st.one_of(
    st.text(max_size=70),
    st.text(st.sampled_from('a\x00\n\u2028\u0085\ud800\udfff\ufeff😀"\\/+#$'), max_size=70),
    st.sampled_from(["sign_in", "sign_out", "G", "x" * 64, "x" * 65, "😀" * 64]),
)
_ODD_NUMBER = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([0, -1, 1, 3600, 3600.5, 1e308, 10**400, 0.9999999, True]),
)
_VALUE: st.SearchStrategy[Any] = st.recursive(
    st.one_of(_ODD_TEXT, _ODD_NUMBER, st.none(), st.booleans()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
_MEMBER = st.one_of(
    st.tuples(st.just("calldata"), st.one_of(_ODD_TEXT, _VALUE)),
    st.tuples(st.just("ttl"), st.one_of(_ODD_NUMBER, _VALUE)),
    st.tuples(st.just("id"), st.one_of(_ODD_TEXT, _VALUE)),
    st.tuples(st.just("action"), st.one_of(st.sampled_from(["sign_in", "sign_out", "dance"]), _VALUE)),
    st.tuples(st.just("guid"), st.one_of(_ODD_TEXT, _VALUE)),
    st.tuples(_ODD_TEXT, _VALUE),
)


def _object(members: list[tuple[str, Any]]) -> bytes:
    """Write an object whose members may come twice, which a dictionary's cannot."""
    inside = ", ".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in members)
    return f"{{{inside}}}".encode()


_OBJECTS = st.lists(_MEMBER, max_size=5).map(_object)
_RAW_OBJECTS = st.lists(_MEMBER, max_size=4).map(
    lambda members: json.dumps(dict(members), ensure_ascii=False).encode(errors="surrogatepass")
)


@st.composite
def _spoilt(draw: st.DrawFn) -> bytes:
    """Take a payload that is nearly right, and change some bytes of it."""
    payload = bytearray(draw(_OBJECTS | st.sampled_from([each for each in corpus() if len(each) < 300])))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(payload)))
        payload[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(payload)


PAYLOADS = st.one_of(
    st.binary(max_size=80),
    st.text(max_size=60).map(lambda text: text.encode(errors="surrogatepass")),
    _OBJECTS,
    _RAW_OBJECTS,
    _spoilt(),
)


@pytest.mark.parametrize("payload", corpus())
def test_what_was_found_interesting(payload: bytes) -> None:
    """C1, C6: each payload of the corpus is understood or refused with a reason that can be published."""
    check(payload)


@settings(patient, max_examples=250)
@given(payload=PAYLOADS)
def test_any_payload_is_understood_or_refused(payload: bytes) -> None:
    """C1, C6: nothing else comes out of parsing, whatever comes in."""
    check(payload)


def test_many_spoilt_payloads_are_understood_or_refused() -> None:
    """C1, C6: the same, quickly; `make fuzz` does a million."""
    seed = random.randrange(2**32)  # noqa: S311 - for inputs
    for payload in itertools.islice(spoilt(random.Random(seed)), 3000):  # noqa: S311 - as above
        try:
            check(payload)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {payload!r}") from error


@settings(patient, max_examples=100)
@given(
    members=st.lists(
        st.tuples(
            st.sampled_from(["calldata", "id", "ttl", "action", "guid", "x"]),
            st.sampled_from([f"{SECRET}\n", f"{SECRET} {SECRET}", [SECRET], {SECRET: SECRET}, 5]),
        ),
        max_size=5,
    ),
)
def test_a_reason_never_shows_a_value(members: list[tuple[str, Any]]) -> None:
    """C6: call data and GUIDs stay out of the results of refused commands."""
    check(_object(members))


@given(text=st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=200))
def test_text_is_passed_on_unchanged(text: str) -> None:
    """C1: whichever way it is written, as it is or in an object, with whatever escapes."""
    if not text.lstrip().startswith("{"):
        assert parse_call_data(text.encode()).body == text.encode()
    for escaped in (True, False):
        written = json.dumps({"calldata": text, "id": "i"}, ensure_ascii=escaped)
        assert parse_call_data(written.encode()).body == text.encode()


def test_what_a_command_keeps_while_it_waits_is_small() -> None:
    """C8: correlation data and response topic are stored with the command, so they have a limit that is said."""
    check_properties(b"c" * 4000, "t" * 96)
    with pytest.raises(CommandError, match="correlation data and response topic: 65535 bytes, at most 4096"):
        check_properties(b"c" * 65_535, None)
    with pytest.raises(CommandError, match="4098 bytes"):
        check_properties(None, "ü" * 2049)


@pytest.fixture(scope="module")
def target(shared_broker: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Run a whole program for all of these tests; at the end it must be well."""
    with Target(shared_broker, tmp_path_factory.mktemp("target")) as made:
        yield made
        made.see_that_all_is_well()


def test_the_corpus_is_answered_once_each(target: Target) -> None:
    """C3: by the whole program, on each kind of topic, for known agents and for odd ones."""
    payloads = corpus()
    kinds = ("calldata", "session", "request")

    async def all_of_it() -> None:
        for start in range(0, len(payloads), 10):
            shots = [
                Shot(
                    place="agents" if kind == "request" else AGENTS[(2 * number + turn) % 20],
                    kind=kind,
                    payload=payload,
                )
                for number, payload in enumerate(payloads[start : start + 10])
                for turn, kind in enumerate(kinds[: 2 + number % 2])
            ]
            shots.append(Shot(place=STRANGERS[start // 10 % len(STRANGERS)], kind="calldata", payload=b"x"))
            await target.fire(shots)

    asyncio.run(all_of_it())


_CORRELATION = st.one_of(st.none(), st.binary(max_size=20), st.sampled_from([b"", b"\0" * 4096, b"c" * 65_000]))


@st.composite
def _shots(draw: st.DrawFn) -> list[Shot]:
    """Draw a few messages: so few to each target that none is over the limit of C5."""
    places = draw(st.lists(st.sampled_from(AGENTS), max_size=10, unique=True)) * 2
    shots = [
        Shot(
            place=place,
            kind=draw(st.sampled_from(["calldata", "session"])),
            payload=draw(PAYLOADS),
            qos=draw(st.sampled_from([0, 1])),
            correlation=draw(_CORRELATION),
        )
        for place in [*places, *draw(st.lists(st.sampled_from(STRANGERS), max_size=3))]
    ]
    names = draw(st.lists(st.sampled_from(["agents", "reload", "dance", "ünï", "x" * 300]), max_size=2))
    shots += [
        Shot(place=name, kind="request", payload=draw(PAYLOADS), correlation=draw(_CORRELATION)) for name in names
    ]
    return shots


@settings(patient, max_examples=8)
@given(shots=_shots())
def test_whatever_is_published_is_answered_once(target: Target, shots: list[Shot]) -> None:
    """C3: by the whole program, through a real broker."""
    asyncio.run(target.fire(shots))


def test_a_response_topic_is_used_below_its_prefix_alone(target: Target) -> None:
    """C8: what merely looks like the prefix, or what the adapter itself obeys, is nobody's response topic."""
    below = f"{target.prefix}-{ANSWERS}"
    allowed = [f"{below}/me", f"{below}/../x", f"{below}//", f"{below}/$SYS", f"{below}/ünï code"]
    forbidden = [
        below,
        f"{below}x/me",
        f"{below[:-1]}/me",
        f"{below.upper()}/me",
        f"$SYS/{below}/me",
        f"/{below}/me",
        f"{target.prefix}/101/event",
        f"{target.prefix}/101/calldata/set",
        f"{target.prefix}/bridge/request/restart",
        f"{below}/a\u2028b",
        f"{below}/+/x",
        f"{below}/#",
        "",
    ]

    async def ask() -> None:
        await target.fire(
            [
                Shot(place=AGENTS[number], kind="calldata", payload=b"", correlation=b"rt", response_topic=topic)
                for number, topic in enumerate([*allowed, *forbidden])
            ]
        )
        await target.peer.wait_for(lambda: all(target.peer.on(topic) for topic in allowed))

    asyncio.run(ask())
    answers = [each.topic for each in list(target.peer.messages) if each.correlation == b"rt" and each.payload]
    results = [topic for topic in answers if topic.endswith("/result")]
    assert sorted(set(answers) - set(results)) == sorted(allowed)
    assert len(results) == len(allowed) + len(forbidden)
