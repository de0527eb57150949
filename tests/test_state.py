"""The agent's state and calls, folded from events."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.answer import parse_answer
from adapter.catalogue import EVENT_TYPES, AgentStateName
from adapter.event import Event
from adapter.privacy import Mask
from adapter.state import AgentState, Call, Phase, Previous, decode, encode, fold, settle
from tests.hypothesis_support import patient

FIXTURES = Path(__file__).parent / "fixtures"
START = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
NEW = AgentState(since=START)


def event_of(event_type: str, content: object = None) -> Event:
    """Make an event as the gateway would send it."""
    body = {"retcode": "0", "event": {"eventType": event_type, "workNo": "101", "content": content}}
    (event,) = parse_answer(json.dumps(body).encode()).events
    return event


def live(state: AgentState, *events: tuple[str, object]) -> AgentState:
    """Fold events in, a second apart, counted on."""
    for event_type, content in events:
        seq = (state.seq or 0) + 1
        at = START + timedelta(seconds=seq)
        state = fold(state, event_of(event_type, content), at=at, event_id=f"id-{seq}", seq=seq)
    return state


def ring(call_id: str, **members: object) -> tuple[str, object]:
    """Make the event of an incoming call."""
    return ("AgentEvent_Ringing", {"caller": "138", "called": "400", "callid": call_id, "feature": 0, **members})


def talk(call_id: str) -> tuple[str, object]:
    """Make the event of a call answered."""
    return ("AgentEvent_Talking", {"callid": call_id})


def shown(state: AgentState) -> tuple[str | None, Phase] | None:
    """Say which call is shown, and its phase."""
    return None if state.call is None else (state.call.call_id, state.call.phase)


# --- state --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(EVENT_TYPES))
def test_each_sample_does_what_the_catalogue_says(name: str) -> None:
    """Each of the vendor's samples sets the state of its row, or leaves the state alone."""
    (event,) = parse_answer((FIXTURES / f"{name}.json").read_bytes()).events
    before = AgentState(since=START, state="rest", reason="old")

    after = fold(before, event, at=START + timedelta(seconds=9), event_id="x", seq=5)

    kind = EVENT_TYPES[name]
    assert (kind.state or "rest", "x", 5) == (after.state, after.event_id, after.seq)
    if kind.state is None:
        assert (after.since, after.reason, after.previous) == (START, "old", None)
    phase = kind.call if kind.call not in ("ended", "failed") else None
    assert phase == (after.call.phase if after.call else None)
    if after.call:
        assert after.call.call_id == "1456403549-15"


def test_unknown_event_changes_nothing_but_the_counter() -> None:
    """An event type that nobody knows is taken in, and changes neither state nor calls."""
    before = live(NEW, ("AgentState_Ready", None), ring("1"))

    after = live(before, ("AgentEvent_Nobody_Knows", {"callid": "1", "reason": "x"}))

    assert (before.state, before.since, before.calls) == (after.state, after.since, after.calls)
    assert (after.event_id, after.seq) == ("id-3", 3)


def test_since_and_previous() -> None:
    """`since` moves with the state alone; `previous` says what was before and how long."""
    state = live(NEW, ("AgentState_Ready", None), ring("1"), talk("1"), ("AgentState_Busy", None))

    assert (state.state, state.since) == ("in_call", START + timedelta(seconds=4))
    assert state.previous == Previous(state="idle", seconds=3.0)


def test_same_state_again_moves_nothing() -> None:
    """A second event of the same state keeps `since` and `previous`, and brings its own reason."""
    first = live(NEW, ("AgentState_SetNotReady_Success", {"reason": "200"}))

    second = live(first, ("AgentState_SetNotReady_Success", {"reason": "201"}))

    assert (first.reason, second.reason) == ("200", "201")
    assert (first.since, first.previous) == (second.since, second.previous)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"reason": "200"}, "200"),
        ({"reason": 200}, "200"),
        ({"reason": ""}, None),
        ({}, None),
        ("x", None),
        (None, None),
    ],
)
def test_reason_is_the_gateways_text(content: object, reason: str | None) -> None:
    """`reason` is content.reason as text, null where there is none."""
    assert reason == live(NEW, ("AgentState_SetNotReady_Success", content)).reason


def test_reason_goes_with_the_state_that_it_was_for() -> None:
    """The next state has its own reason or none; events that set no state leave it."""
    busy = live(NEW, ("AgentState_SetRest_Success", {"reason": "3"}), ("AgentState_Rest_Timeout", {"reason": "9"}))

    assert busy.reason == "3"
    assert live(busy, ("AgentState_Ready", None)).reason is None


def test_clock_set_back_gives_no_negative_time() -> None:
    """A clock that was set back makes the previous state last 0 seconds, not less."""
    state = fold(NEW, event_of("AgentState_Ready"), at=START - timedelta(hours=1), event_id="x", seq=1)

    assert state.previous == Previous(state="unknown", seconds=0.0)


def test_p13_shutdown_signs_out_and_ends_all_calls() -> None:
    """P13: after AgentOther_ShutdownService the agent is signed out and in no call."""
    state = live(NEW, ring("1"), ("AgentOther_ShutdownService", {"loginTime": "1"}))

    assert (state.state, state.calls) == ("signed_out", ())
    again = live(state, ring("2"), ("AgentOther_ShutdownService", None))
    assert (again.since, again.calls) == (state.since, ())


# --- calls --------------------------------------------------------------------------------------------------


def test_call_from_ringing_to_release() -> None:
    """A call keeps its parties and direction over its phases, and is gone with its release."""
    state = live(NEW, ring("1"))
    assert state.call == Call(call_id="1", phase="ringing", caller="138", called="400", direction="in")

    state = live(state, talk("1"))
    assert state.call == Call(call_id="1", phase="talking", caller="138", called="400", direction="in")

    state = live(state, ("AgentEvent_Hold", "1"))
    assert shown(state) == ("1", "held")

    state = live(state, ("AgentEvent_Conference", {"callId": "1", "partner": "138,8102"}))
    assert shown(state) == ("1", "conference")

    state = live(state, ("AgentEvent_Call_Release", "1"))
    assert (state.call, state.state) == (None, "unknown")


def test_call_out() -> None:
    """An outgoing call shows the other phone as the called one."""
    state = live(NEW, ("AgentEvent_Customer_Alerting", {"otherPhone": "139", "callid": "1"}))
    assert state.call == Call(call_id="1", phase="calling_out", called="139")

    state = live(state, ("AgentEvent_Talking", {"callid": "1", "caller": "8102", "feature": "7"}))
    assert state.call == Call(call_id="1", phase="talking", caller="8102", called="139", direction="out")


@pytest.mark.parametrize(
    ("feature", "direction"),
    [
        (0, "in"),
        ("0", "in"),
        (6, "internal"),
        ("7", "out"),
        (43, "out"),
        (44, "out"),
        (45, "out"),
        (41, None),
        (51, None),
        (53, None),
        (99, None),
        (None, None),
        ("x", None),
    ],
)
def test_direction_from_feature(feature: object, direction: str | None) -> None:
    """`feature`, a number or text, tells the direction; where it tells none it is null."""
    call = live(NEW, ring("1", feature=feature)).call

    assert call is not None
    assert direction == call.direction


def test_feature_without_direction_keeps_the_known_one() -> None:
    """A help or conference feature leaves the direction that the call had."""
    call = live(NEW, ring("1"), ("AgentEvent_Conference", {"callid": "1", "feature": 53})).call

    assert call is not None
    assert call.direction == "in"


@pytest.mark.parametrize(
    "content", ["1", {"callid": "1"}, {"callId": "1"}, {"CALLID": "1"}, {"callid": 1}, None, {}, "", {"callid": ""}, 1]
)
def test_end_of_a_call_by_any_spelling_or_none(content: object) -> None:
    """A call ends by its id in any spelling, as a bare string too; an end without an id ends the call shown."""
    assert live(NEW, ring("1"), ("AgentEvent_Call_Release", content)).calls == ()


def test_end_of_an_unknown_call_changes_nothing() -> None:
    """An end that names another call leaves the calls as they are; without any call, too."""
    state = live(NEW, ring("1"))

    assert state.calls == live(state, ("AgentEvent_Call_Release", "2"), ("AgentEvent_No_Answer", "2")).calls
    assert live(NEW, ("AgentEvent_Call_Release", None), ("AgentEvent_Call_Out_Fail", "2")).calls == ()


def test_with_two_calls_the_newest_is_shown_and_then_the_one_on_hold() -> None:
    """With two calls the newest is shown; when it ends, the one on hold."""
    state = live(NEW, ring("1"), talk("1"), ("AgentEvent_Hold", "1"), ring("2"))
    assert shown(state) == ("2", "ringing")

    state = live(state, talk("2"), ("AgentEvent_Call_Release", "2"))
    assert shown(state) == ("1", "held")


def test_call_on_hold_goes_below_the_other() -> None:
    """Where the agent goes back to the first call and puts the second on hold, the first is shown."""
    state = live(NEW, ring("1"), ("AgentEvent_Hold", "1"), talk("2"), ("AgentEvent_Hold", "2"))
    assert shown(state) == ("2", "held")

    state = live(state, talk("1"))
    assert shown(state) == ("1", "talking")

    assert shown(live(state, ("AgentEvent_Call_Release", None))) == ("2", "held")


@pytest.mark.parametrize("failure", ["Call_Out_Fail", "Inside_Call_Fail", "Connect_Fail", "Consult_Fail"])
def test_failure_ends_only_a_call_that_never_talked(failure: str) -> None:
    """A failed consultation does not end the customer's call that it may name; a call that rang out is ended."""
    name = f"AgentEvent_{failure}"
    alerting = ("AgentEvent_Customer_Alerting", {"otherPhone": "139", "callid": "2"})

    assert live(NEW, alerting, (name, "2")).calls == ()
    assert live(NEW, ring("2"), (name, "2")).calls == ()
    for phase in ("AgentEvent_Talking", "AgentEvent_Hold", "AgentEvent_Conference"):
        state = live(NEW, ring("1"), (phase, {"callid": "1"}))
        assert state.calls == live(state, (name, "1")).calls
    assert shown(live(NEW, talk("1"), alerting, (name, None))) == ("1", "talking")


def test_call_without_an_id() -> None:
    """A call whose id was never told is shown all the same, and takes the id of the next event."""
    state = live(NEW, ("AgentEvent_Ringing", None))
    assert state.call == Call(call_id=None, phase="ringing")

    assert [call.call_id for call in live(state, talk("1")).calls] == ["1"]
    assert live(state, ("AgentEvent_Call_Release", "1")).calls == ()


def test_event_without_an_id_is_about_the_call_shown() -> None:
    """An event of a call that names none moves the call that is shown."""
    state = live(NEW, ring("1"), ("AgentEvent_Talking", {"feature": 53}))

    assert [(call.call_id, call.phase) for call in state.calls] == [("1", "talking")]


def test_calls_that_never_end_do_not_pile_up() -> None:
    """A gateway that never tells a call's end does not make the state grow without bounds."""
    state = live(NEW, *(ring(str(number)) for number in range(50)))

    assert [call.call_id for call in state.calls] == [str(number) for number in range(42, 50)]


def test_masked_numbers_are_what_the_call_shows() -> None:
    """The call is folded from the masked event; a dropped number is null."""
    event = event_of(*ring("1"))
    for method, caller in (("last4", "***"), ("drop", None)):
        mask = Mask(members=None, method=method, key=b"")  # type: ignore[arg-type] # a literal in a loop is text
        call = fold(NEW, mask.apply(event), at=START, event_id="x", seq=1).call
        assert call is not None
        assert caller == call.caller


def test_call_events_do_not_change_the_state() -> None:
    """Events of calls and phones only fill the call."""
    state = live(NEW, ("AgentState_Ready", None), ring("1"), talk("1"), ("AgentOther_PhoneBusy", None))

    assert (state.state, state.since) == ("idle", START + timedelta(seconds=1))


# --- settle -------------------------------------------------------------------------------------------------


def test_settle_on_the_same_state_changes_nothing() -> None:
    """Where agentstatus says what is known already, the state stays as it is, reason and all."""
    state = live(NEW, ("AgentState_SetNotReady_Success", {"reason": "200"}))

    assert settle(state, "busy", at=START + timedelta(hours=1)) is state


def test_settle_on_another_state() -> None:
    """Where agentstatus says another state, it begins now, without a reason; the last event stays the last."""
    state = live(NEW, ("AgentState_SetNotReady_Success", {"reason": "200"}))
    at = START + timedelta(seconds=61)

    settled = settle(state, "idle", at=at)

    assert (settled.state, settled.since, settled.reason) == ("idle", at, None)
    assert settled.previous == Previous(state="busy", seconds=60.0)
    assert (settled.event_id, settled.seq) == ("id-1", 1)


@pytest.mark.parametrize(
    ("name", "kept"),
    [("in_call", True), ("idle", False), ("work", False), ("signed_out", False), ("unknown", False)],
)
def test_settle_keeps_calls_only_in_a_call(name: AgentStateName, *, kept: bool) -> None:
    """A lost answer may have been a release: calls stay only where the agent is in one."""
    state = live(NEW, ring("1"))

    assert kept == bool(settle(state, name, at=START).calls)


def test_settle_in_a_call_keeps_the_state() -> None:
    """In a call before and after: nothing changes."""
    state = live(NEW, ring("1"), ("AgentState_Busy", None))

    assert settle(state, "in_call", at=START) is state


# --- storing ------------------------------------------------------------------------------------------------


def test_state_survives_the_database() -> None:
    """What is stored comes back equal."""
    state = live(NEW, ("AgentState_SetRest_Success", {"reason": "1"}), ring("1"), ring("2"))

    assert state == decode(encode(state))
    assert decode(encode(NEW)) == NEW


@pytest.mark.parametrize("stored", [b"", b"{}", b"x", b'{"since":"2026-01-31T12:00:00Z","state":"asleep"}'])
def test_state_of_another_version_is_none(stored: bytes) -> None:
    """What another version of the program wrote and this one cannot read is no state, and no crash."""
    assert decode(stored) is None


CONTENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(["", "1", "2", "x"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["callid", "callId", "caller", "feature", "reason", "otherPhone"]), inner)
    ),
    max_leaves=6,
)


@patient
@given(events=st.lists(st.tuples(st.sampled_from([*EVENT_TYPES, "Unknown"]), CONTENTS), max_size=12))
def test_any_events_fold(events: list[tuple[str, object]]) -> None:
    """Whatever events come with whatever content, they fold into a state that can be stored and read."""
    state = NEW
    for seq, (event_type, content) in enumerate(events, start=1):
        members = {"eventType": event_type, "content": content}
        event = Event(event_type=event_type, work_no=None, members={}, content=members["content"])
        state = fold(state, event, at=START + timedelta(seconds=seq), event_id=str(seq), seq=seq)

    assert state == decode(encode(state))
    assert len({call.call_id for call in state.calls}) == len(state.calls)
