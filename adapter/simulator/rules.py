"""What the interface document forbids, and how a client that does it is found out.

Source: the interface document *Obtaining Events of One Agent in Polling Mode*, in short: only GET; the headers
Content-Type and Guid; 200 to 500 ms between an answer and the next poll; more than 1 s after a status other than
200; no poll after 000-001, 000-003 or 100-006 before a new sign-in; one optional parameter, calldata.
"""

import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from adapter.simulator.agent import Agent
from adapter.simulator.wire import Request

PAUSE_S = 0.2
"""The shortest pause after an answer."""
ERROR_PAUSE_S = 1.0
"""After a status other than 200 a pause must be longer than this."""

ENDED = frozenset({"000-001", "000-003", "100-006", "105-005", "105-006", "105-007"})
"""Retcodes after which a client may not poll until the agent is signed in again."""

_CONTENT_TYPE = re.compile(r"application/json;\s*charset=utf-8", re.IGNORECASE)
_ENCODED = re.compile(r"(?:[A-Za-z0-9._~-]|%[0-9A-Fa-f]{2})+")


class QueryError(Exception):
    """The query of a poll is not what the document allows; carries the kind of violation."""

    def __init__(self, kind: str, text: str) -> None:
        self.kind = kind
        super().__init__(text)


def parse_calldata(query: str | None) -> str | None:
    """Decode the call data of a poll; `None` when there is no query.

    Raises:
        QueryError: It is not percent-encoded UTF-8, or another parameter is there.
    """
    if query is None:
        return None
    name, _, value = query.partition("=")
    if name != "calldata" or not value:
        raise QueryError("query", f"only calldata=<value> may be asked, got ?{query}")
    if "+" in value:
        raise QueryError("plus", f"a space is %20 and a plus is %2B, got {value}")
    if _ENCODED.fullmatch(value) is None:
        raise QueryError("calldata", f"not percent-encoded throughout: {value}")
    try:
        return unquote_to_bytes(value).decode()
    except UnicodeDecodeError as err:
        raise QueryError("calldata", f"not UTF-8 after decoding: {value}") from err


def header_violations(request: Request) -> Iterator[tuple[str, str]]:
    """List what is wrong with the headers of a poll, as kind and text."""
    content_type = request.headers.get("content-type")
    if content_type is None or _CONTENT_TYPE.fullmatch(content_type) is None:
        yield "content_type", f"Content-Type must be application/json; charset=UTF-8, got {content_type}"
    encoding = request.headers.get("accept-encoding", "identity")
    if encoding.lower() != "identity":
        yield "accept_encoding", f"no coding of answers is agreed on, got Accept-Encoding: {encoding}"


def pause_violation(agent: Agent, at: float) -> tuple[float | None, tuple[str, str] | None]:
    """Measure the pause before a poll that arrived at `at`.

    Returns:
        The pause in seconds (`None` for a first poll), and the violation if it is too short: ``pause`` after a
        200 answer, ``error_pause`` after a failure, ``left_pause`` after the client itself gave a poll up.
    """
    if agent.mark is None:
        return None, None
    since, kind = agent.mark
    pause_s = at - since
    if kind == "good":
        if pause_s < PAUSE_S:
            return pause_s, ("pause", f"{pause_s * 1000:.1f} ms after an answer; 200 ms is the least")
        return pause_s, None
    if pause_s <= ERROR_PAUSE_S:
        what = "a failure" if kind == "bad" else "leaving a poll"
        name = "error_pause" if kind == "bad" else "left_pause"
        return pause_s, (name, f"{pause_s * 1000:.0f} ms after {what}; it must be over 1 s")
    return pause_s, None


def guid_violation(agent: Agent, guid: str | None, connection: int) -> tuple[str, str] | None:
    """Find a GUID that should not have been sent, as kind and text."""
    if guid is None:
        return "guid", "no header Guid"
    if guid in agent.refused:
        return "after_end", "a poll with a GUID that was refused, and no new sign-in since"
    told = agent.told_guid
    if told is not None and guid != told[0] and told[1] in {None, connection}:
        return "old_guid", "an older GUID than the one that the last answer brought"
    return None
