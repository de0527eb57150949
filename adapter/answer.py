"""Read the gateway's answers: bytes to values, whatever the gateway's habits.

All that is known of its wire quirks is here (P11): content types that lie, charsets, byte order marks, NULs, halves
of emojis, an `event` in six shapes. What is left after that and cannot be read may have held an event; the error
keeps its head for a person to look at (P14).

Rules of this file: the functions take any bytes and raise nothing but `GatewayProtocolError`; what it lets through
is valid JSON in valid UTF-8, at most `MAX_DEPTH` levels deep, and otherwise as the gateway sent it, to the digit.
"""

import codecs
import re
import zlib
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

import msgspec

from adapter.errors import GatewayProtocolError
from adapter.event import NULL, Event, read_json, text_of

MAX_ANSWER_BYTES: Final = 1024 * 1024
"""A longer answer is unreadable, and is not read to its end (P14)."""

HEAD_BYTES: Final = 4096
"""How much of an unreadable answer is kept (P14)."""

MAX_DEPTH: Final = 64
"""A deeper nested answer is unreadable (P14); the outermost object is level 1."""

_RETCODE: Final = re.compile(r"[0-9A-Za-z._-]{1,16}")
"""What a retcode looks like: it is logged and published too, and must not be a GUID. All that is known are shorter."""

_TOO_DEEP: Final = f"nested deeper than {MAX_DEPTH} levels"
_NO_RETCODE: Final = "no retcode"

_BOM: Final = b"\xef\xbb\xbf"
_UTF_8: Final = frozenset({"", "utf-8", "utf8"})
_SUPERSETS: Final = {"gb2312": "gb18030", "gbk": "gb18030", "x-gbk": "gb18030"}
"""Servers say gb2312 and send GBK; gb18030 reads both. Source: WHATWG Encoding Standard, 4.2 and 10.1."""

_NO_CHARSETS: Final = frozenset({"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape"})
"""Codecs that Python knows by name like a charset, and which are none: some are slow, some warn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer of the gateway with HTTP status 200.

    Attributes:
        retcode: "0", or what the gateway refuses with, for example ``100-006``.
        message: The gateway's own words; often empty.
        events: The events that it hands over, oldest first: none or one, more on some old servers.
        result: The member ``result`` as raw JSON; `None` where it is absent or null.
    """

    retcode: str
    message: str = field(repr=False)
    events: tuple[Event, ...]
    result: msgspec.Raw | None = field(repr=False)


class _Wire(msgspec.Struct):
    retcode: msgspec.Raw = NULL
    message: msgspec.Raw = NULL
    event: msgspec.Raw = NULL
    result: msgspec.Raw = NULL


_WIRE: Final = msgspec.json.Decoder(_Wire)
_OBJECT: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_LIST: Final = msgspec.json.Decoder(list[msgspec.Raw])


def unpack(body: bytes, coding: str) -> bytes:
    """Unpack a body that came packed although that was not asked for, up to a little over `MAX_ANSWER_BYTES`.

    Args:
        body: As it came.
        coding: The header Content-Encoding; the body stays as it is under any but gzip and deflate, one of them.

    Raises:
        GatewayProtocolError: It is damaged.
    """
    if coding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        return body
    try:
        # 32 more than the window's bits: the header tells gzip from zlib.
        return zlib.decompressobj(zlib.MAX_WBITS + 32).decompress(body, MAX_ANSWER_BYTES + 1)
    except zlib.error as err:
        reason = f"packed as {coding}, and damaged"
        raise GatewayProtocolError(reason, head=body[:HEAD_BYTES], size_bytes=len(body)) from err


def parse_answer(body: bytes, charset: str | None = None) -> Answer:
    """Read the body of an answer, whatever its content type was.

    Args:
        body: The whole body; the gateway port has seen to `MAX_ANSWER_BYTES`.
        charset: What the header Content-Type declares; `None` or an unknown one means UTF-8.

    Raises:
        GatewayProtocolError: It is not a JSON object with a retcode, an event in it has no text ``eventType``, or it
            is nested too deep.
    """
    try:
        return _parse(_clean(body, charset))
    except (ValueError, msgspec.MsgspecError) as err:
        raise GatewayProtocolError(str(err), head=body[:HEAD_BYTES], size_bytes=len(body)) from err


def _parse(text: bytes) -> Answer:
    _check_depth(text)
    wire = _WIRE.decode(text)
    retcode = text_of(read_json(wire.retcode))
    if retcode is None or not _RETCODE.fullmatch(retcode):
        raise ValueError(_NO_RETCODE)
    message = read_json(wire.message)
    return Answer(
        retcode=retcode,
        message=message if isinstance(message, str) else "",
        events=() if wire.event == NULL else _parse_events(wire.event),
        result=None if wire.result == NULL else wire.result,
    )


def _parse_events(raw: msgspec.Raw) -> tuple[Event, ...]:
    """Read the member `event`: an object, {}, a list of them, or, as in some refusals, empty text."""
    text = bytes(raw)
    if text == b'""':
        return ()
    items = _LIST.decode(text) if text.startswith(b"[") else [raw]
    objects = [_OBJECT.decode(item) for item in items if item != NULL]
    return tuple(Event.from_members(members) for members in objects if members)


# --- cleaning -----------------------------------------------------------------------------------------------


def _clean(body: bytes, charset: str | None) -> bytes:
    """Turn the body into UTF-8 without a byte order mark, NULs and halves of characters."""
    if body.startswith(_BOM):
        body = body.removeprefix(_BOM)
    elif charset is not None:
        body = _transcode(body, charset.strip("\"' ").lower())
    if b"\0" in body:
        body = body.replace(b"\0", b"")
    if not body.isascii():
        body = _repair_utf_8(body)
    if b"\\u" in body:
        body = _ESCAPE.sub(_repair_escape, body)
    return body


def _transcode(body: bytes, charset: str) -> bytes:
    if charset in _UTF_8:
        return body
    try:
        codec = codecs.lookup(_SUPERSETS.get(charset, charset))
        if codec.name in _NO_CHARSETS:
            return body
        text = body.decode(codec.name, "replace")
    except (LookupError, ValueError):  # no such charset, or a codec that does not make text (base64)
        return body
    return text.removeprefix("\ufeff").encode("utf-8", "surrogatepass")


_CESU: Final = re.compile(rb"(\xed[\xa0-\xaf][\x80-\xbf]\xed[\xb0-\xbf][\x80-\xbf])|\xed[\xa0-\xbf][\x80-\xbf]")
"""A pair of surrogates, each written as three bytes, or one without its half. Source: Unicode TR 26 (CESU-8)."""

_ESCAPE: Final = re.compile(
    rb"""(?: (?P<nuls> (?:\\u0000)++ ) (?P<end> "? )
           | (?P<pair> \\u[dD][89abAB][0-9a-fA-F]{2} \\u[dD][c-fC-F][0-9a-fA-F]{2} )
           | (?P<half> \\u[dD][89a-fA-F][0-9a-fA-F]{2} )
           | \\. )""",
    re.VERBOSE | re.DOTALL,
)
"""One escape of a JSON string at a time, so that an escaped backslash before a `u` is not taken for one.

A run of NULs is taken whole, whether a quote follows or not: looked at one by one they would cost the square of
their number."""


def _repair_utf_8(body: bytes) -> bytes:
    try:
        body.decode()
    except UnicodeDecodeError:
        return _CESU.sub(_repair_cesu, body).decode("utf-8", "replace").encode()
    return body


def _repair_cesu(match: re.Match[bytes]) -> bytes:
    if match[1] is None:
        return "\ufffd".encode()
    pair = match[1].decode("utf-8", "surrogatepass")
    return pair.encode("utf-16", "surrogatepass").decode("utf-16").encode()


def _repair_escape(match: re.Match[bytes]) -> bytes:
    """Drop NULs at the end of a string, and put U+FFFD for half a surrogate pair."""
    if match["nuls"] and match["end"]:
        return match["end"]
    return rb"\ufffd" if match["half"] else match[0]


# --- depth --------------------------------------------------------------------------------------------------

_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
"""A string, whole or cut off by the end of the body; possessive, so that no input makes it slow."""

_NO_BRACE: Final = bytes(set(range(256)) - set(b"{}[]"))


def _check_depth(text: bytes) -> None:
    """Refuse what is nested deeper than `MAX_DEPTH`, without the recursion that depth is a danger to.

    Nearly no answer has as many braces as the limit, and so nearly none is looked through.
    """
    if text.count(b"{") + text.count(b"[") <= MAX_DEPTH:
        return
    braces = _STRING.sub(b"", text).translate(None, _NO_BRACE)
    if max(accumulate(1 if brace in b"{[" else -1 for brace in braces), default=0) > MAX_DEPTH:
        raise ValueError(_TOO_DEEP)
