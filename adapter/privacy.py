"""Masks: phone numbers made unreadable before anything is stored or published.

The poller masks an event right after it was read (`Mask.apply`), so that neither the database nor a topic, nor the
state folded from it, ever holds the number.

Rules of this file: a text or number that is not masked stays byte for byte what the gateway sent. Objects are written
anew, so that a name which stands in one twice cannot bring its first value past the mask. Names of members are compared
without regard to case, because the gateway's own spelling varies (`transFrom`, `transfrom`) and a number that slips
through by its spelling would be a leak. An event's own `eventType` and `workNo` are never masked: they say what it is
and whose, and the topic shows the same; its `content` may be, and is then masked in all its leaves.
"""

import hashlib
import hmac
from dataclasses import dataclass, field, replace
from typing import Final, Literal

import msgspec

from adapter.catalogue import NUMBER_MEMBERS
from adapter.event import NULL, Event, read_json

Method = Literal["last4", "hash", "drop"]
"""How a masked member is shown: its last four digits, a keyed hash that is the same for the same number, or not."""

KEY: Final = "mask_key"
"""Under which a database has the key of the hash."""
_DIGITS_SHOWN: Final = 4
_NEVER: Final = frozenset({"eventType", "workNo"})

_CONSTANTS: Final = frozenset({b"null", b"true", b"false"})

_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True, slots=True, kw_only=True)
class Mask:
    """What to mask in events, and how.

    Attributes:
        members: Names of the members to mask; `None` for every member known to carry a phone number.
        method: How their values are masked.
        key: The key of ``hash``, secret, kept in the database: the same number gives the same hash.
    """

    members: frozenset[str] | None
    method: Method
    key: bytes = field(repr=False)
    _names: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names = NUMBER_MEMBERS if self.members is None else self.members
        object.__setattr__(self, "_names", frozenset(name.lower() for name in names))

    def apply(self, event: Event) -> Event:
        """Mask an event's members at any depth."""
        members = {
            name: masked
            for name, raw in event.members.items()
            if (masked := self._inside(raw) if name in _NEVER else self._member(name, raw)) is not None
        }
        return replace(event, members=members, content=read_json(members.get("content", NULL)))

    def _member(self, name: str, raw: msgspec.Raw) -> msgspec.Raw | None:
        """Mask one member: itself where it is to be masked, else what it holds; `None` drops it."""
        if name.lower() not in self._names:
            return self._inside(raw)
        return None if self.method == "drop" else self._leaves(raw)

    def _inside(self, raw: msgspec.Raw) -> msgspec.Raw:
        """Mask what is to be masked somewhere inside a value; text and numbers themselves stay."""
        text = bytes(raw)
        if text.startswith(b"{"):
            members = {name: self._member(name, value) for name, value in _OBJECT.decode(text).items()}
            return _raw({name: value for name, value in members.items() if value is not None})
        if text.startswith(b"["):
            return _raw([self._inside(item) for item in _LIST.decode(text)])
        return raw

    def _leaves(self, raw: msgspec.Raw) -> msgspec.Raw:
        """Mask every text and number of a value; null, true and false stay."""
        text = bytes(raw)
        if text.startswith(b"{"):
            return _raw({name: self._leaves(value) for name, value in _OBJECT.decode(text).items()})
        if text.startswith(b"["):
            return _raw([self._leaves(item) for item in _LIST.decode(text)])
        if text in _CONSTANTS:
            return raw
        value = msgspec.json.decode(text, type=str) if text.startswith(b'"') else text.decode()
        return _raw(",".join(self._number(part.strip()) for part in value.split(",")))

    def _number(self, number: str) -> str:
        """Mask one phone number; other characters than digits are masked with them."""
        if self.method == "hash":
            return hmac.new(self.key, number.encode(), hashlib.sha256).hexdigest() if number else ""
        digits = [place for place, character in enumerate(number) if character.isdecimal()]
        shown = digits[-_DIGITS_SHOWN:] if len(digits) > _DIGITS_SHOWN else []
        return "".join(character if place in shown else "*" for place, character in enumerate(number))


def _raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))
