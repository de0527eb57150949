"""What the gateway's words mean: event types, retcodes and states, as data.

One table of event types serves everybody who has to know what an event does: `state` folds by it, `privacy`
masks by it, and the interfaces show its meanings. An event type that is not listed here is no error: it passes
through unchanged and changes no state (P11).

Rules of this file: data and look-ups only. The vendor's misspellings (`Occupyed`, `MediaSwith`, `PhoneUnknow`,
`DataRecved`) are kept: they are what the wire carries.

Source:
    CEC API Reference, "Agent Event Description" (pages 0490 to 0579 and 1343 to 1429) and "Error Codes". Event
    types marked "not in the documents" were seen in public clients alone; nothing was tried on a live gateway.
"""

from dataclasses import dataclass
from typing import Final, Literal

AgentStateName = Literal["idle", "busy", "rest", "work", "in_call", "signed_out", "unknown"]
"""The states of an agent, as published; ``work`` is the wrap-up after a call."""

CallEffect = Literal["ringing", "talking", "calling_out", "held", "conference", "ended", "failed"]
"""What an event does to the call that it names: its new phase, or its end.

``failed`` ends only a call that never talked: a consultation that fails must not end the customer's call.
"""


@dataclass(frozen=True, slots=True)
class EventType:
    """One type of event.

    Attributes:
        name: The gateway's ``eventType``, to the letter.
        meaning: What happened, in a few words for people.
        state: The agent's state after it; `None` where the event does not change it.
        call: What it does to the call that it names; `None` for nothing.
        numbers: The members of its content that carry a phone number.
    """

    name: str
    meaning: str
    state: AgentStateName | None = None
    call: CallEffect | None = None
    numbers: tuple[str, ...] = ()


_CALL = ("caller", "called", "transFrom", "transfrom")
_PARTIES = ("caller", "called")
_DIALED = ("dialeddigits",)

_TABLE: Final = (
    # Agent state. AgentState_Busy is "handling a call" on the vendor's page, whatever some clients paint.
    EventType("AgentState_Ready", "idle", state="idle"),
    EventType("AgentState_Busy", "handling a call", state="in_call"),
    EventType("AgentState_Work", "wrap-up begins", state="work"),
    EventType("AgentState_SetNotReady_Success", "busy", state="busy"),
    EventType("AgentState_CancelNotReady_Success", "busy ended", state="idle"),
    EventType("AgentState_SetRest_Success", "rest granted", state="rest"),
    EventType("AgentState_CancelRest_Success", "rest ended", state="idle"),
    EventType("AgentState_Rest_Timeout", "rest is over its time (a reminder: still resting)"),
    EventType("AgentState_SetWork_Success", "wrap-up granted", state="work"),
    EventType("AgentState_CancelWork_Success", "wrap-up ended", state="idle"),
    EventType("AgentState_Force_Ready", "made idle by an inspector; not in the documents", state="idle"),
    EventType("AgentState_Force_SetNotReady", "made busy by an inspector; not in the documents", state="busy"),
    # Sign-in, sign-out and notices
    EventType("AgentOther_InService", "sign-in begins", state="unknown"),
    EventType("AgentOther_ShutdownService", "signed out", state="signed_out"),
    EventType("AgentOther_All_Agent_Busy", "all agents are busy"),
    EventType("AgentOther_Note", "note received"),
    EventType("AgentOther_Bulletin", "bulletin received; not in the documents"),
    # Voice and video calls
    EventType("AgentEvent_Ringing", "incoming call", call="ringing", numbers=_CALL),
    EventType("AgentEvent_Auto_Answer", "call answered by itself", call="talking", numbers=_CALL),
    EventType("AgentEvent_Incoming_CallInfo", "call on its way", numbers=_PARTIES),
    EventType("AgentEvent_Agent_Occupyed", "reserved for a call"),
    EventType("AgentEvent_Customer_Alerting", "the other phone rings", call="calling_out", numbers=("otherPhone",)),
    EventType("AgentEvent_Talking", "talking", call="talking", numbers=_CALL),
    EventType("AgentEvent_Hold", "call on hold", call="held"),
    EventType("AgentEvent_Conference", "three-party call", call="conference", numbers=("partner",)),
    EventType("AgentEvent_Call_Out_Fail", "outgoing call failed", call="failed"),
    EventType("AgentEvent_Inside_Call_Fail", "inner call failed", call="failed"),
    EventType("AgentEvent_No_Answer", "not answered: the call is withdrawn", call="ended"),
    EventType("AgentEvent_Call_Release", "the agent left the call", call="ended"),
    EventType("AgentEvent_Customer_Release", "the customer left the call", numbers=("number",)),
    EventType("AgentEvent_Connect_Fail", "connection failed", call="failed"),
    EventType("AgentEvent_Consult_Fail", "consultation failed", call="failed"),
    EventType("AgentEvent_SuccTransResult", "result of a transfer"),
    EventType("AgentEvent_TransOutResult", "result of a transfer to an outside number; not in the documents"),
    EventType("AgentEvent_ReturnFromIvr", "call back from the voice menu"),
    EventType("AgentEvent_MediaSwith", "audio or video switched", numbers=_PARTIES),
    EventType("AgentEvent_ReleaseRequest", "release asked for; not in the documents"),
    EventType("AgentEvent_ReleaseResponse", "release answered; not in the documents"),
    EventType("AgentEvent_No_Answer_From_Cti", "no answer from the CTI server; not in the documents"),
    EventType("AgentEvent_AbandonCall", "call abandoned; not in the documents"),
    EventType("AgentEvent_ControlWindow_Notify", "notice for a client's window; not in the documents"),
    EventType("AgentEvent_Orders_Notify", "notice of orders; not in the documents"),
    # Outbound preview
    EventType("AgentEvent_Preview", "number to call offered", numbers=_DIALED),
    EventType("AgentEvent_Preview_CallOut", "previewed number is called", numbers=_DIALED),
    EventType("AgentEvent_Preview_CallOut_Ex", "previewed number is called", numbers=_DIALED),
    EventType("AgentEvent_Release_Preview", "preview withdrawn"),
    # The physical phone: about the device, not about the agent's state or call
    EventType("AgentOther_PhoneAlerting", "the agent's phone rings", numbers=("caller",)),
    EventType("AgentOther_PhoneOffhook", "the agent's phone is off the hook"),
    EventType("AgentOther_PhoneRelease", "the agent's phone is released"),
    EventType("AgentOther_PhoneUnknow", "the agent's phone is in an unknown state"),
    EventType("AgentOther_PhoneBusy", "the agent's phone is busy; not in the documents"),
    # Phone linkage
    EventType("AgentEvent_linkageCapability", "result of setting the phone linkage"),
    EventType("AgentEvent_linkagePhoneStatus", "the linked phone changed its state"),
    EventType("AgentEvent_linkagePhoneMute", "the linked phone is muted"),
    EventType("AgentEvent_linkagePhoneTransferOut", "the linked phone transfers", numbers=("addrOut", "addrSelf")),
    EventType("AgentEvent_linkagePhoneCallOut", "the linked phone calls", numbers=("addrCalled", "addrCaller")),
    # Recording and playback
    EventType("AgentMediaEvent_Record", "recording begins", numbers=_PARTIES),
    EventType("AgentMediaEvent_Record_Fail", "recording failed", numbers=_PARTIES),
    EventType("AgentMediaEvent_StopRecordDone", "recording ended"),
    EventType("AgentMediaEvent_Play", "playback begins"),
    EventType("AgentMediaEvent_Play_Succ", "playback granted"),
    EventType("AgentMediaEvent_PausePlayDone", "playback paused"),
    EventType("AgentMediaEvent_ResumePlayDone", "playback goes on"),
    EventType("AgentMediaEvent_StopPlayDone", "playback ended"),
    # Inspection; QC_AgentState_Notify is about another agent than the one who receives it
    EventType("QC_AgentState_Notify", "an inspected agent signed in or out"),
    EventType("AgentOther_BeQcStart", "inspection of this agent begins"),
    EventType("AgentOther_BeQcStop", "inspection of this agent ended"),
    # Conferences of agents; events of state come beside them
    EventType("AgentConf_RequestSuccess", "conference granted"),
    EventType("AgentConf_RequestFailed", "conference refused"),
    EventType("AgentConf_Ringing", "invited to a conference"),
    EventType("AgentConf_SelfJoinResult", "result of joining a conference"),
    EventType("AgentConf_SelfLeaveResult", "result of leaving a conference"),
    EventType("AgentConf_ParticipantChanged", "a conference's participant changed", numbers=("participant",)),
    EventType("AgentConf_PresidentChanged", "a conference's chair changed"),
    EventType("AgentConf_Timeout", "a conference's time is over"),
    EventType("AgentConf_StopParticipantVoice", "result of muting a participant"),
    # Multimedia, and the old text chat
    EventType("AgentEvent_MessageData", "text message of a customer", numbers=_PARTIES),
    EventType("AgentChat_Ring", "incoming chat; not in the documents"),
    EventType("AgentChat_Connected", "chat begins; not in the documents"),
    EventType("AgentChat_Disconnected", "chat ended; not in the documents"),
    EventType("AgentChat_DataRecved", "chat message received; not in the documents"),
    EventType("AgentChat_CallOutCreated", "outgoing chat begins; not in the documents"),
    EventType("AgentChat_CalloutFailed", "outgoing chat failed; not in the documents"),
    EventType("AgentChat_TransferStart", "chat is being transferred; not in the documents"),
    EventType("AgentChat_TransferFailed", "transfer of a chat failed; not in the documents"),
    EventType("AgentChat_DELAY_EMAIL", "chat goes on by e-mail; not in the documents"),
)

EVENT_TYPES: Final = {entry.name: entry for entry in _TABLE}
"""Every known event type, by its name."""

NUMBER_MEMBERS: Final = frozenset(name for entry in _TABLE for name in entry.numbers)
"""Every member that carries a phone number in any event: what ``privacy: {mask: numbers}`` covers."""

SHUTDOWN: Final = "AgentOther_ShutdownService"
"""The event that says for certain that the agent is signed out (P13)."""


# --- agentstatus --------------------------------------------------------------------------------------------

_STATUS: Final[dict[str, AgentStateName]] = {
    "2": "signed_out",
    "3": "busy",
    "4": "idle",
    "5": "work",
    "6": "idle",
    "7": "in_call",
    "8": "rest",
    "9": "rest",
}


def state_of_status(code: object) -> AgentStateName:
    """Translate the ``agentState`` of the request agentstatus, a number or its text; else ``unknown``."""
    return _STATUS.get(str(code), "unknown")


# --- retcodes -----------------------------------------------------------------------------------------------

SUCCESS: Final = "0"
"""The retcode of a request that was done."""

ALREADY_SIGNED_IN: Final = "100-002"
"""The sign-in's retcode after which a forced sign-in may follow, where it is configured (C6)."""

SIGNED_OUT_RETCODES: Final = frozenset(
    {"000-001", "000-003", "100-006", "105-005", "105-006", "105-007"},
)
"""The agent is signed out: stop polling and wait for the next sign-in (P6, P7)."""

NEVER_RETRY_SIGN_IN: Final = frozenset({"100-004", "100-020", "110-016"})
"""A sign-in refused with one of these is never tried again by itself: trying locks the account (C6)."""

RETCODES: Final = {
    "0": "success",
    "000-000": "unknown error",
    "000-001": "wrong method of obtaining agent events",
    "000-002": "wrong parameter or address",
    "000-003": "no permission: the sign-in may have expired",
    "000-004": "the agent is being switched over",
    "000-005": "the inspected agent is the inspector",
    "000-006": "wrong parameter in the message",
    "000-007": "repeated call",
    "100-001": "a parameter of the sign-in is empty or invalid",
    "100-002": "already signed in",
    "100-003": "resource not available",
    "100-004": "wrong user or password",
    "100-005": "wrong parameter of the sign-out",
    "100-006": "the agent is not signed in",
    "100-007": "internal exception",
    "100-008": "already signed out",
    "100-009": "change of state failed: no right",
    "100-010": "wrong state for a sign-out",
    "100-011": "a parameter of the sign-in is invalid",
    "100-012": "wrong agent type",
    "100-013": "the phone number is invalid",
    "100-014": "the phone number is outside the configured range",
    "100-015": "already signed in, and forced sign-in is switched off",
    "100-016": "the IP address is invalid",
    "100-017": "uPortal authentication failed",
    "100-018": "the VDN does not match the playback",
    "100-019": "wrong query of queues",
    "100-020": "the password has expired",
    "100-021": "a sign-in is under way",
    "105-001": "the agent is not in Redis",
    "105-002": "the agent is in disaster recovery",
    "105-003": "disaster recovery already done",
    "105-004": "could not be queued for disaster recovery",
    "105-005": "disaster recovery timed out: sign in again",
    "105-006": "the GUID does not match after disaster recovery: sign in again",
    "105-007": "disaster recovery is switched off: sign in again",
    "106-003": "too many multimedia sessions at once",
    "110-016": "the account is locked",
    "999-001": "wrong configuration of the server",
}
"""What each known retcode says, for messages to people."""

_FAMILIES: Final = {
    "101": "conference",
    "104": "download of recordings",
    "106": "multimedia",
    "107": "configuration interface",
    "110": "password",
    "200": "voice call",
    "300": "agent groups",
    "400": "call data and calls on hold",
    "500": "recording and playback",
    "600": "queues",
    "700": "text chat",
    "800": "video",
    "900": "inspection",
}


def retcode_meaning(retcode: str) -> str | None:
    """Say what a retcode means; where only its family is known, what it is about; else `None`."""
    known = RETCODES.get(retcode)
    family = _FAMILIES.get(retcode.partition("-")[0])
    return known or (f"a refusal about: {family}" if family else None)
