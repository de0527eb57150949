"""Commands and their results as values: what senders may write, and what they get back (C1, C6).

Rules of this file: no I/O; a refusal says what the sender can do about it, and never shows call data or a GUID.
"""

import json
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from adapter.clock import steady_time
from adapter.errors import CommandError
from adapter.event import timestamp
from adapter.payloads import ResultPayload, Status
from adapter.store.records import Change, CommandRecord, Outgoing
from adapter.topics import Topics

_MAX_BYTES = 2048
"""Longest call data: far below the 8 KB which Tomcat, in which the gateway runs, allows for the head of a request."""
MAX_PAYLOAD_BYTES = 16 * 1024
"""Longest command: room for call data of which each character is escaped in JSON."""
_MAX_PROPERTIES_BYTES = 4096
"""Longest correlation data and response topic together: a command keeps them while it waits."""
_MAX_ID = 64
_SHOWN = 20
"""Characters of a member's name that a reason shows."""
_MAX_REASON = 500
"""Characters of a reason, which may be the gateway's text: results are remembered, and must stay small."""
_TTL_S = 60.0
_TTL_RANGE_S = (1, 3600)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A command's payload, understood.

    Attributes:
        id: The sender's id; `None` where it gave none.
        body: What is stored: the call data, or the order as JSON.
        ttl_s: Seconds for which to try; `None` for no end.
    """

    id: str | None
    body: bytes = field(repr=False)
    ttl_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A sign-in or sign-out.

    Attributes:
        action: What to do.
        guid: With ``sign_in``, that of a session begun elsewhere; `None` for the configured credentials.
        command: The command that gets the result; `None` where nobody waits for one.
    """

    action: Literal["sign_in", "sign_out"]
    guid: str | None = field(default=None, repr=False)
    command: CommandRecord | None = None


def sender_id(payload: bytes) -> str | None:
    """Find the sender's id in a command's payload, valid or not, so that a refusal can carry it."""
    try:
        members = _members(payload)
    except CommandError:
        return None
    identifier = None if members is None else members.get("id")
    return identifier if _is_id(identifier) else None


def parse_call_data(payload: bytes) -> Parsed:
    """Read a payload of `calldata/set` (C1).

    Raises:
        CommandError: Why it is refused.
    """
    members = _members(payload)
    if members is None or "calldata" not in members:
        return Parsed(id=None, body=_checked(payload.decode()), ttl_s=_TTL_S)
    _refuse_unknown(members, {"calldata", "id", "ttl"})
    value = members["calldata"]
    if not isinstance(value, str):
        raise CommandError(f"calldata: expected text, got {_kind(value)}")
    ttl_s = members.get("ttl", _TTL_S)
    low, high = _TTL_RANGE_S
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int | float) or not low <= ttl_s <= high:
        raise CommandError(f"ttl: expected seconds from {low} to {high}")
    return Parsed(id=_id_of(members), body=_checked(value), ttl_s=float(ttl_s))


def parse_session(payload: bytes, *, is_guid: Callable[[str], bool]) -> Parsed:
    """Read a payload of `session/set` (C6).

    Raises:
        CommandError: Why it is refused.
    """
    members = _members(payload)
    if members is None or "action" not in members:
        raise CommandError('expected {"action": "sign_in"} or {"action": "sign_out"}')
    _refuse_unknown(members, {"action", "guid", "id"})
    action = members["action"]
    if action not in ("sign_in", "sign_out"):
        raise CommandError('action: expected "sign_in" or "sign_out"')
    if "guid" in members:
        guid = members["guid"]
        if action == "sign_out":
            raise CommandError("guid: goes with sign_in only")
        if not isinstance(guid, str) or not is_guid(guid):
            raise CommandError("guid: expected printable ASCII without blanks, as the gateway gives it out")
    order = {name: members[name] for name in ("action", "guid") if name in members}
    return Parsed(id=_id_of(members), body=json.dumps(order).encode(), ttl_s=None)


def check_properties(correlation: bytes | None, response_topic: str | None) -> None:
    """Check what a command would keep besides its payload while it waits (C8).

    Raises:
        CommandError: It is too much.
    """
    size_bytes = len(correlation or b"") + len((response_topic or "").encode())
    if size_bytes > _MAX_PROPERTIES_BYTES:
        raise CommandError(
            f"correlation data and response topic: {size_bytes} bytes, at most {_MAX_PROPERTIES_BYTES} are allowed"
        )


def order_of(command: CommandRecord) -> Order:
    """Make the order that a stored command of the kind ``session`` holds."""
    stored: dict[str, Any] = json.loads(command.body)
    return Order(action=stored["action"], guid=stored.get("guid"), command=command)


def settled(
    command: CommandRecord, *, status: Status, retcode: str | None = None, reason: str | None = None
) -> CommandRecord:
    """Give a command its one result (C3).

    What has served goes: call data and GUIDs stay on disk no longer than they are needed, and what is remembered of
    a command is small.
    """
    now = datetime.now(UTC)
    result = ResultPayload(
        id=command.id,
        work_no=command.work_no,
        status=status,
        retcode=retcode,
        reason=None if reason is None else reason[:_MAX_REASON],
        received_at=timestamp(datetime.fromtimestamp(command.received_at, UTC)),
        finished_at=timestamp(now),
    ).render()
    return replace(command, body=b"", correlation=None, response_topic=None, result=result, finished_at=steady_time())


def finish(  # noqa: PLR0913 - a result has these members
    change: Change,
    command: CommandRecord,
    topics: Topics,
    *,
    status: Status,
    retcode: str | None = None,
    reason: str | None = None,
) -> None:
    """Add a command's one result to a change: stored with the command, and in line for its sender (C3)."""
    done = settled(command, status=status, retcode=retcode, reason=reason)
    change.commands.append(done)
    change.outgoing.extend(answers(command, topics, done.result or b""))


def answers(command: CommandRecord, topics: Topics, result: bytes) -> list[Outgoing]:
    """Address a result: to the result topic, and to the sender's response topic where that is allowed (C8)."""
    addresses = [topics.result(command.work_no, command.kind)]
    if command.response_topic is not None:
        addresses.append(command.response_topic)
    return [Outgoing(topic=topic, payload=result, correlation=command.correlation) for topic in addresses]


def _members(payload: bytes) -> Mapping[str, Any] | None:
    """Read a payload as a JSON object; `None` where it is some other text."""
    if not payload:
        raise CommandError("empty")
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise CommandError(f"over {MAX_PAYLOAD_BYTES} bytes")
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        raise CommandError("not UTF-8 text") from None
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _checked(value: str) -> bytes:
    """Check call data itself, whichever way it came."""
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        raise CommandError("calldata: half a character (a lone surrogate)") from None
    if not encoded:
        raise CommandError("empty")
    if len(encoded) > _MAX_BYTES:
        raise CommandError(f"calldata: {len(encoded)} bytes, at most {_MAX_BYTES} are allowed")
    if any(unicodedata.category(character) == "Cc" for character in value):
        raise CommandError("calldata: control characters are not allowed (a line break is one)")
    return encoded


def _refuse_unknown(members: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(members) - known)
    if unknown:
        shown = ", ".join(ascii(name[:_SHOWN]) for name in unknown[:3])
        raise CommandError(f"unknown member {shown}; expected {', '.join(sorted(known))}")


def _is_id(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_ID and value.isprintable()


def _id_of(members: Mapping[str, Any]) -> str | None:
    if "id" not in members:
        return None
    if not _is_id(members["id"]):
        raise CommandError(f"id: expected printable text of 1 to {_MAX_ID} characters")
    identifier: str = members["id"]
    return identifier


def _kind(value: object) -> str:
    return {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}.get(
        type(value), "null"
    )
