"""The table of event types and retcodes."""

from pathlib import Path

import pytest

from adapter.catalogue import (
    ALREADY_SIGNED_IN,
    EVENT_TYPES,
    NEVER_RETRY_SIGN_IN,
    NUMBER_MEMBERS,
    RETCODES,
    SHUTDOWN,
    SIGNED_OUT_RETCODES,
    SUCCESS,
    AgentStateName,
    CallEffect,
    retcode_meaning,
    state_of_status,
)

FIXTURES = Path(__file__).parent / "fixtures"


def test_each_event_type_has_a_sample() -> None:
    """Every event type of the table has a sample answer, and every sample of an event is in the table."""
    samples = {path.stem for path in FIXTURES.glob("*.json") if path.stem[0].isalpha()}

    assert set(EVENT_TYPES) == samples


STATES: dict[str, AgentStateName] = {
    "AgentState_Ready": "idle",
    "AgentState_Busy": "in_call",
    "AgentState_Work": "work",
    "AgentState_SetNotReady_Success": "busy",
    "AgentState_CancelNotReady_Success": "idle",
    "AgentState_SetRest_Success": "rest",
    "AgentState_CancelRest_Success": "idle",
    "AgentState_SetWork_Success": "work",
    "AgentState_CancelWork_Success": "idle",
    "AgentState_Force_Ready": "idle",
    "AgentState_Force_SetNotReady": "busy",
    "AgentOther_InService": "unknown",
    "AgentOther_ShutdownService": "signed_out",
}

CALLS: dict[str, CallEffect] = {
    "AgentEvent_Ringing": "ringing",
    "AgentEvent_Auto_Answer": "talking",
    "AgentEvent_Customer_Alerting": "calling_out",
    "AgentEvent_Talking": "talking",
    "AgentEvent_Hold": "held",
    "AgentEvent_Conference": "conference",
    "AgentEvent_No_Answer": "ended",
    "AgentEvent_Call_Release": "ended",
    "AgentEvent_Call_Out_Fail": "failed",
    "AgentEvent_Inside_Call_Fail": "failed",
    "AgentEvent_Connect_Fail": "failed",
    "AgentEvent_Consult_Fail": "failed",
}


def test_only_state_and_sign_in_events_set_the_state() -> None:
    """The state comes from AgentState_* and sign-in and sign-out events alone (SPEC, section 3)."""
    assert {name: entry.state for name, entry in EVENT_TYPES.items() if entry.state is not None} == STATES


def test_only_call_events_touch_the_call() -> None:
    """The events of calls that begin, move and end one are these and no others."""
    assert {name: entry.call for name, entry in EVENT_TYPES.items() if entry.call is not None} == CALLS


def test_every_event_type_says_what_it_means() -> None:
    """Interfaces show a meaning for each event type."""
    assert all(entry.meaning for entry in EVENT_TYPES.values())


def test_number_members_are_those_of_the_vendors_pages() -> None:
    """`mask: numbers` covers every member that carries a phone number, in each of its spellings."""
    expected = {"caller", "called", "transFrom", "transfrom", "otherPhone", "partner", "number", "dialeddigits"}
    expected |= {"addrOut", "addrSelf", "addrCalled", "addrCaller", "participant"}

    assert expected == NUMBER_MEMBERS


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (0, "unknown"),
        (1, "unknown"),
        (2, "signed_out"),
        (3, "busy"),
        (4, "idle"),
        ("4", "idle"),
        (5, "work"),
        (6, "idle"),
        (7, "in_call"),
        (8, "rest"),
        (9, "rest"),
        (10, "unknown"),
        (None, "unknown"),
    ],
)
def test_agentstatus_codes(code: object, state: AgentStateName) -> None:
    """Each code of agentstatus stands for the state that SPEC section 3 names."""
    assert state == state_of_status(code)


def test_p6_p7_retcodes_that_mean_signed_out() -> None:
    """P6, P7: these retcodes and no others end a session."""
    assert {"000-001", "000-003", "100-006", "105-005", "105-006", "105-007"} == SIGNED_OUT_RETCODES


def test_c6_retcodes_after_which_no_sign_in_is_tried() -> None:
    """C6: a sign-in that locks accounts is not tried again, and all of these codes have a meaning."""
    assert {"100-004", "100-020", "110-016"} == NEVER_RETRY_SIGN_IN
    assert set(RETCODES) >= NEVER_RETRY_SIGN_IN | SIGNED_OUT_RETCODES | {SUCCESS, ALREADY_SIGNED_IN}
    assert SHUTDOWN in EVENT_TYPES


@pytest.mark.parametrize(
    ("retcode", "meaning"),
    [
        ("100-006", "the agent is not signed in"),
        ("101-004", "a refusal about: conference"),
        ("999-999", None),
        ("", None),
    ],
)
def test_meaning_of_a_retcode(retcode: str, meaning: str | None) -> None:
    """A retcode is explained to people: by itself, by its family, or not at all."""
    assert meaning == retcode_meaning(retcode)
