"""The gateway's answers as bytes: the empty one, one with an event, and refusals with their retcodes."""

import json
from collections.abc import Mapping

from adapter.simulator.agent import Event
from adapter.simulator.wire import Answer

EMPTY = b'{"message":"","retcode":"0"}'
"""The answer without an event, to the byte as clients have seen it."""

MESSAGES = {
    "000-001": "wrong method of obtaining agent events",
    "000-002": "bad parameter or address",
    "000-003": "no right to invite resouce",  # the typo is the gateway's
    "000-006": "message parameter error",
    "000-007": "repeated call",
    "100-001": "sign-in parameter empty or invalid",
    "100-002": "the agent has already signed in",
    "100-004": "wrong user or password",
    "100-006": "the agent has not signed in",
    "100-010": "wrong agent state at sign-out",
    "100-013": "invalid phone number",
    "100-021": "sign-in in progress, do not repeat",
}
"""What the retcodes of the simulator's own refusals mean."""


def compact(value: object) -> bytes:
    """Render JSON without spaces.

    Everything outside ASCII is escaped, so that half an emoji can leave too: a body with one raw would not be UTF-8.
    """
    return json.dumps(value, separators=(",", ":")).encode()


def refuse(code: str, *, status: int = 200, message: str | None = None) -> Answer:
    """Make the answer that carries a retcode."""
    text = MESSAGES.get(code, "") if message is None else message
    return Answer(status=status, body=compact({"message": text, "retcode": code}))


def render(event: Event) -> bytes:
    """Make the body that carries an event; one given as bytes goes out as it is."""
    text = event if isinstance(event, bytes) else compact(event)
    return b'{"message":"","retcode":"0","event":' + text + b"}"


def is_readable(body: bytes) -> bool:
    """Say whether a body is an answer that a client can act on."""
    try:
        value = json.loads(body.rstrip(b"\0").decode(errors="replace"))
    except (ValueError, RecursionError):
        return False
    return isinstance(value, Mapping) and "retcode" in value
