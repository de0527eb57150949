"""The troubles that a scripted answer can have, as values that can be combined.

A fault belongs to one answer. ``chunked() | slow(200)`` is one answer with both troubles. Faults which replace
the answer (`status`, `garbage`, `raw`, `retcode`, `hang`, `drop` without a number) come at once and take no
event out of the agent's queue; the others change how the regular answer, which may carry an event, is sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

Framing = Literal["length", "chunked", "close"]
"""How the end of a body is told: ``Content-Length``, chunked coding, or by closing the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is out of the ordinary with one answer; the defaults are an ordinary answer.

    Attributes:
        delay_s: Seconds to wait before the request is looked at.
        status: HTTP status of an answer which replaces the regular one.
        body: Body of an answer which replaces the regular one.
        readable: Whether a client can read `body`; `None`: find out by reading it as JSON.
        raw: Bytes to send in place of an HTTP answer; the connection is closed after them.
        retcode: Retcode of an answer which replaces the regular one.
        message: Text that goes with `retcode`.
        hang: Whether no answer comes at all, until the client leaves.
        drop: Whether the connection is closed at once, without an answer.
        drop_after_bytes: Cut the regular answer after so many bytes of it (its head counted in); negative: so many
            before its end.
        bytes_per_s: Send the answer slowly.
        framing: How the end of the body is told.
        headers: Header lines to add; a name that the answer has already is replaced.
        rotate: Whether the answer carries a new GUID in ``Set-GUID``, whatever the timer says.
    """

    delay_s: float = 0.0
    status: int | None = None
    body: bytes | None = None
    readable: bool | None = None
    raw: bytes | None = None
    retcode: str | None = None
    message: str | None = None
    hang: bool = False
    drop: bool = False
    drop_after_bytes: int | None = None
    bytes_per_s: float | None = None
    framing: Framing = "length"
    headers: tuple[tuple[str, str], ...] = ()
    rotate: bool = False

    def __or__(self, other: "Fault") -> "Fault":
        """Combine two faults of one answer; what `other` says wins, headers add up."""
        merged = {field.name: getattr(self, field.name) for field in fields(self)}
        for field in fields(other):
            value = getattr(other, field.name)
            if value != field.default:
                merged[field.name] = value
        merged["headers"] = self.headers + other.headers
        return Fault(**merged)

    @property
    def replaces(self) -> bool:
        """Say whether the regular answer is not given at all."""
        return (
            self.hang or self.drop or any(part is not None for part in (self.status, self.body, self.raw, self.retcode))
        )


NONE = Fault()
"""An ordinary answer."""


def status(code: int, body: bytes = b"") -> Fault:
    """Answer with an HTTP status such as 503 (from a load balancer, say) in place of the gateway's answer."""
    return Fault(status=code, body=body)


def drop(after_bytes: int | None = None) -> Fault:
    """Close the connection without an answer, or after so many bytes of the regular one.

    With a number the answer is made first, so an event that it carries is lost (also with 0). A negative number counts
    from the end: the answer lacks so many bytes.
    """
    return Fault(drop=True) if after_bytes is None else Fault(drop_after_bytes=after_bytes)


def hang() -> Fault:
    """Never answer; the connection stays open until the client leaves."""
    return Fault(hang=True)


def garbage(body: bytes, *, readable: bool | None = None) -> Fault:
    """Answer 200 with this body, whatever it is.

    Args:
        body: The bytes to send.
        readable: Whether the client can read it and may go on as usual; by default this is decided by whether
            it is a JSON object with a ``retcode``, trailing NULs aside.
    """
    return Fault(body=body, readable=readable)


def raw(data: bytes) -> Fault:
    """Send these bytes in place of an HTTP answer, then close."""
    return Fault(raw=data)


def retcode(code: str, message: str = "") -> Fault:
    """Refuse with a retcode in a 200 answer, as the gateway does."""
    return Fault(retcode=code, message=message)


def rotate() -> Fault:
    """Give out a new GUID with the regular answer, before its time."""
    return Fault(rotate=True)


def slow(bytes_per_second: float) -> Fault:
    """Send the regular answer slowly."""
    return Fault(bytes_per_s=bytes_per_second)


def chunked() -> Fault:
    """Send the regular answer in chunked coding."""
    return Fault(framing="chunked")


def close_delimited() -> Fault:
    """Send the regular answer without a length and end it by closing the connection."""
    return Fault(framing="close")


def headers(lines: Mapping[str, str]) -> Fault:
    """Add header lines to the regular answer: ``Set-Cookie``, another ``Content-Type``, a raw ``Set-GUID``."""
    return Fault(headers=tuple(lines.items()))


def delay(seconds: float) -> Fault:
    """Let the gateway think for so long before it looks at the request."""
    return Fault(delay_s=seconds)
