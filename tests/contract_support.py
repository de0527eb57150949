"""Checks that everything published is what `adapter.payloads` promises: each topic has its type."""

import re
from typing import Any

import msgspec

from adapter import payloads
from tests.broker_support import Peer

_PLAIN = (b"online", b"offline")
_TYPES: dict[str, Any] = {
    r"[^/]+/events?": payloads.EventPayload,
    r"[^/]+/state": payloads.StatePayload,
    r"[^/]+/session": payloads.SessionPayload,
    r"[^/]*/(calldata|session)/result": payloads.ResultPayload,
    r"bridge/(member/[^/]+/)?info": payloads.InfoPayload,
    r"bridge/agents/\d+": payloads.RosterPage,
    r"bridge/(member/[^/]+/)?health": payloads.HealthPayload,
    r"bridge/(member/[^/]+/)?mark": payloads.MarkPayload,
    r"bridge/log": payloads.LogPayload,
    r"bridge/response/[^/]+": payloads.ResponsePayload,
}
_MAY_BE_CLEARED = re.compile(r"[^/]+/(event|state|session|availability)|bridge/agents/\d+")


def valid(peer: Peer, prefix: str = "agents") -> int:
    """Decode every message below `prefix` strictly as its topic's type; give how many there were.

    Commands and requests are left out: those are the senders'.
    """
    count = 0
    for message in list(peer.messages):
        topic = message.topic.removeprefix(f"{prefix}/")
        if topic == message.topic or topic.endswith("/set") or topic.startswith("bridge/request/"):
            continue
        count += 1
        if topic.endswith("/availability"):
            assert message.payload in _PLAIN or message.payload == b"", message
            continue
        if not message.payload:
            assert _MAY_BE_CLEARED.fullmatch(topic), message
            continue
        types = [made for pattern, made in _TYPES.items() if re.fullmatch(pattern, topic)]
        assert len(types) == 1, f"nothing is promised of {message.topic}"
        decoded = msgspec.json.decode(message.payload, type=types[0], strict=True)
        if isinstance(decoded, payloads.ResponsePayload) and isinstance(decoded.data, dict) and "page" in decoded.data:
            msgspec.convert(decoded.data["agents"], list[payloads.AgentSnapshot], strict=True)
    return count
