"""The vendor's sample payload of every event type, by name.

Where the vendor's page shows a sample, this is it, with call ids and numbers that can be told apart; types that are
only known from clients have the members which those clients read. Oddities are the vendor's: `content` is null, a
string or an object, numbers are sometimes strings, and names are misspelt.

Source: CEC API reference, "Events"; see docs/gateway.md, "Event catalogue".
"""

import copy
import time
from collections.abc import Mapping

CALL_ID = "1456403549-15"

_CALL: dict[str, object] = {
    "caller": "40038",
    "called": "88880000",
    "callid": CALL_ID,
    "feature": 0,
    "type": "main",
    "mediaAbility": 1,
}
_RINGING: dict[str, object] = {**_CALL, "transfer": "no", "transFrom": "", "mediaType": 5}
_RECORD: dict[str, object] = {
    "jsonKey": ["taskId", "caller", "called", "recordID", "locationId", "fileName", "fileMediaType", "callId"],
    "taskId": 1,
    "caller": "40038",
    "called": "88880000",
    "recordID": "1456403600",
    "locationId": 1,
    "fileName": "Y:/1/0/20160225/101/1456403600.V3",
    "fileMediaType": "1",
    "callId": CALL_ID,
}
_PREVIEW_EX: dict[str, object] = {
    "controlid": "1125900125",
    "dialeddigits": "13800000001",
    "callData": "order 4711",
}
_INSPECTION: dict[str, object] = {"qcAgentId": "49990", "qcType": 8}

SAMPLES: dict[str, object] = {
    "AgentState_Ready": None,
    "AgentState_Busy": None,
    "AgentState_Work": None,
    "AgentState_SetNotReady_Success": {"reason": "200"},
    "AgentState_CancelNotReady_Success": None,
    "AgentState_SetRest_Success": {"reason": "200"},
    "AgentState_CancelRest_Success": None,
    "AgentState_Rest_Timeout": None,
    "AgentState_SetWork_Success": None,
    "AgentState_CancelWork_Success": None,
    "AgentState_Force_Ready": None,
    "AgentState_Force_SetNotReady": None,
    "AgentOther_InService": None,
    "AgentOther_ShutdownService": {"loginTime": "1471585949806"},
    "AgentOther_All_Agent_Busy": None,
    "AgentOther_Note": {"sender": "49990", "context": "Please call back before noon."},
    "AgentOther_Bulletin": {"sender": "49990", "context": "Maintenance tonight at 23:00."},
    "AgentEvent_Ringing": _RINGING,
    "AgentEvent_Auto_Answer": _RINGING,
    "AgentEvent_Incoming_CallInfo": {
        "callId": CALL_ID,
        "skillName": "Orders",
        "skillId": "1",
        "caller": "40038",
        "called": "88880000",
        "lastReleaseAgentId": "",
        "mediaType": 5,
        "releaseAndReQueueCount": 0,
        "releaseAndReQueueCallFlag": False,
    },
    "AgentEvent_Agent_Occupyed": None,
    "AgentEvent_Customer_Alerting": {
        "otherPhone": "13800000001",
        "otherPhoneWorkno": "",
        "callid": CALL_ID,
        "type": "main",
    },
    "AgentEvent_Talking": _CALL,
    "AgentEvent_Hold": CALL_ID,
    "AgentEvent_Conference": {"callid": CALL_ID, "partner": "40038,49998"},
    "AgentEvent_Call_Out_Fail": CALL_ID,
    "AgentEvent_Inside_Call_Fail": CALL_ID,
    "AgentEvent_No_Answer": CALL_ID,
    "AgentEvent_Call_Release": CALL_ID,
    "AgentEvent_Customer_Release": {"callid": CALL_ID, "number": "40038"},
    "AgentEvent_Connect_Fail": CALL_ID,
    "AgentEvent_Consult_Fail": CALL_ID,
    "AgentEvent_SuccTransResult": {"callId": CALL_ID, "result": 0},
    "AgentEvent_TransOutResult": {"callId": CALL_ID, "result": 0},
    "AgentEvent_ReturnFromIvr": CALL_ID,
    "AgentEvent_MediaSwith": {
        "callid": CALL_ID,
        "reason": 0,
        "caller": "40038",
        "called": "88880000",
        "mediaType": 19,
    },
    "AgentEvent_ReleaseRequest": CALL_ID,
    "AgentEvent_ReleaseResponse": CALL_ID,
    "AgentEvent_No_Answer_From_Cti": CALL_ID,
    "AgentEvent_AbandonCall": CALL_ID,
    "AgentEvent_ControlWindow_Notify": None,
    "AgentEvent_Orders_Notify": None,
    "AgentEvent_Preview": {"controlid": "1125900123", "dialeddigits": "13800000001"},
    "AgentEvent_Preview_CallOut": {
        "controlid": "1125900124",
        "dialeddigits": "13800000001",
        "callData": "order 4711",
    },
    "AgentEvent_Preview_CallOut_Ex": _PREVIEW_EX,
    "AgentEvent_Release_Preview": None,
    "AgentOther_PhoneAlerting": None,
    "AgentOther_PhoneOffhook": {"type": "main"},
    "AgentOther_PhoneRelease": {"phoneState": 2},
    "AgentOther_PhoneUnknow": None,
    "AgentOther_PhoneBusy": None,
    "AgentEvent_linkageCapability": {"result": 0},
    "AgentEvent_linkagePhoneStatus": {"result": 1},
    "AgentEvent_linkagePhoneMute": {"callId": CALL_ID},
    "AgentEvent_linkagePhoneTransferOut": {"addrOut": "13800000001", "addrSelf": "40038"},
    "AgentEvent_linkagePhoneCallOut": {
        "addrCalled": "13800000001",
        "addrCaller": "40038",
        "skillId": "1",
        "callId": "0-0",
    },
    "AgentMediaEvent_Record": _RECORD,
    "AgentMediaEvent_Record_Fail": _RECORD,
    "AgentMediaEvent_StopRecordDone": {
        "beginTime": "1456403600000",
        "endTime": "1456403660000",
        "taskId": 1,
        "fileMediaType": 2,
    },
    "AgentMediaEvent_Play": None,
    "AgentMediaEvent_Play_Succ": None,
    "AgentMediaEvent_PausePlayDone": None,
    "AgentMediaEvent_ResumePlayDone": None,
    "AgentMediaEvent_StopPlayDone": {"cause": 0},
    "QC_AgentState_Notify": {
        "jsonKey": ["subtype", "monitoredagent", "agentname", "mediaserver"],
        "subtype": "QC_AgentState_Login",
        "monitoredagent": "49996",
        "agentname": "Li",
        "mediaserver": "TTF",
    },
    "AgentOther_BeQcStart": _INSPECTION,
    "AgentOther_BeQcStop": _INSPECTION,
    "AgentConf_RequestSuccess": {"confId": "3001"},
    "AgentConf_RequestFailed": {"cause": 1},
    "AgentConf_Ringing": {"confId": "3001"},
    "AgentConf_SelfJoinResult": {"confId": "3001", "result": 0},
    "AgentConf_SelfLeaveResult": {"confId": "3001"},
    "AgentConf_ParticipantChanged": {
        "result": 0,
        "changeType": 0,
        "changeReason": 0,
        "confId": "3001",
        "participant": "13800000001",
        "participantType": 6,
        "deviceCallType": 1,
        "deviceType": 1,
    },
    "AgentConf_PresidentChanged": {"confId": "3001"},
    "AgentConf_Timeout": {"confId": "3001"},
    "AgentConf_StopParticipantVoice": {"result": 0},
    "AgentEvent_MessageData": {
        "jsonKey": ["callid", "caller", "called", "feature", "type", "message", "mediaAbility"],
        "callid": CALL_ID,
        "caller": "40038",
        "called": "88880000",
        "feature": "7",
        "type": "main",
        "message": "Where is my parcel? 📦",
        "mediaAbility": 5,
    },
    "AgentChat_Ring": {"callId": CALL_ID, "caller": "visitor-17", "called": "web"},
    "AgentChat_Connected": {"callId": CALL_ID},
    "AgentChat_Disconnected": {"callId": CALL_ID},
    "AgentChat_DataRecved": {"sender": "visitor-17", "callId": CALL_ID, "chatContent": "Hello, is anybody there?"},
    "AgentChat_CallOutCreated": {"callId": CALL_ID},
    "AgentChat_CalloutFailed": {"callId": CALL_ID},
    "AgentChat_TransferStart": {"callId": CALL_ID},
    "AgentChat_TransferFailed": {"callId": CALL_ID},
    "AgentChat_DELAY_EMAIL": None,
}
"""Event type to the sample of its `content`."""


def sample(event_type: str, work_no: str, content: object = ...) -> dict[str, object]:
    """Make an event from the vendor's sample, with the time of now.

    Args:
        event_type: One of `SAMPLES`; others have null as content.
        work_no: The agent that it names.
        content: Members to put over the sample's, or what to have in place of a content that has no members;
            left out: the sample as it is.
    """
    body = copy.deepcopy(SAMPLES.get(event_type))
    if isinstance(body, dict) and isinstance(content, Mapping):
        body.update(content)
    elif content is not ...:
        body = content
    return {
        "eventType": event_type,
        "eventGenTime": int(time.time() * 1000),
        "workNo": work_no,
        "content": body,
    }
