"""One event of an agent: what the gateway handed over, and how it goes out on MQTT.

`answer` makes events of the gateway's answers, `privacy` masks them, `state` folds them, and `render_event` turns
them into the payload of ``agents/<workNo>/event``. The wire's names of an event's members live here.

Rules of this file: what the gateway sent stays as it was sent. Members are kept as raw JSON (`msgspec.Raw`), so
that a number keeps each digit and an unknown member all that it holds (P11); `content` is a decoded copy to read.
"""

import json
import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Self

import msgspec

Members = Mapping[str, msgspec.Raw]
"""The members of a JSON object in their order; each value is raw JSON, valid and in UTF-8."""

NULL: Final = msgspec.Raw(b"null")

_OURS: Final = frozenset({"id", "seq", "receivedAt", "replayed", "gateway"})
"""Names of our own members. Theirs of one of these names moves into ``gateway: {...}``."""

_NO_EVENT_TYPE: Final = "an event without a text eventType"
_TEXT: Final = msgspec.json.Decoder(str)

_ALWAYS: Final = ("eventType", "workNo", "content")
"""Members of the gateway that are always there: null where it left one out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """An event as the gateway sent it.

    Attributes:
        event_type: The gateway's ``eventType``, for example ``AgentState_Ready``.
        work_no: The work number that the event names; it may be another than the polled agent's; `None` where
            it names none.
        members: All of its members, ``eventType``, ``workNo`` and ``content`` among them, as sent.
        content: The decoded ``content``, for reading: `None`, a dict, a call id as text, or whatever was sent.
    """

    event_type: str
    work_no: str | None
    members: Members = field(repr=False)
    content: object = field(repr=False)

    @classmethod
    def from_members(cls, members: Members) -> Self:
        """Make an event of the members of a JSON object.

        Raises:
            ValueError: There is no ``eventType``, or it is not text.
        """
        try:
            event_type = _TEXT.decode(members.get("eventType", NULL))
        except msgspec.ValidationError as err:
            raise ValueError(_NO_EVENT_TYPE) from err
        return cls(
            event_type=event_type,
            work_no=text_of(read_json(members.get("workNo", NULL))),
            members=members,
            content=read_json(members.get("content", NULL)),
        )


def read_json(raw: msgspec.Raw) -> object:
    """Decode valid JSON for reading.

    Where a number is too large for Python, all numbers in it come as their text or as infinity: JSON sets no
    bounds, and an event is never refused for a number that nobody reads.
    """
    try:
        return msgspec.json.decode(raw)
    except msgspec.ValidationError:
        return json.loads(bytes(raw), parse_int=str)


def text_of(value: object) -> str | None:
    """Take text from a member that the gateway sends as text or as a number; `None` for all else and for ""."""
    if isinstance(value, str):
        return value or None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return None


def render_event(event: Event, *, event_id: str, seq: int, received_at: datetime) -> bytes:
    """Render an event as it is stored and published.

    Args:
        event: What the gateway sent, masked where `privacy` asks for it.
        event_id: The event's own id, of `new_id`; the same on every redelivery.
        seq: The agent's counter, from 1.
        received_at: When the answer that held it was read.

    Returns:
        A JSON object in UTF-8: the gateway's members as they were sent, ours, and, where the gateway used one of
        our names, its members of these names in ``gateway``.
    """
    kept = {name: raw for name, raw in event.members.items() if name not in _OURS}
    for name in _ALWAYS:
        kept.setdefault(name, NULL)
    ours: dict[str, object] = {"id": event_id, "seq": seq, "receivedAt": timestamp(received_at)}
    moved = {name: raw for name, raw in event.members.items() if name in _OURS}
    if moved:
        ours["gateway"] = moved
    return msgspec.json.encode(kept | ours)


def mark_replayed(payload: bytes) -> bytes:
    """Add ``"replayed": true`` to a payload of `render_event`: it goes out late or after a restart."""
    return payload[:-1] + b',"replayed":true}'


def new_id() -> str:
    """Make an id for an event, a command or a request: a random UUID as text.

    Not by `uuid4`, which asks the operating system each time: an id is unique, and no secret.
    """
    return str(uuid.UUID(int=random.getrandbits(128), version=4))


def timestamp(moment: datetime) -> str:
    """Write an aware moment as RFC 3339 in UTC with milliseconds: ``2026-01-31T12:00:00.123Z``."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
