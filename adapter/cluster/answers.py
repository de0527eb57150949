"""What JetStream answers, and what may be wrong with that."""

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import nats.errors
import nats.js.errors

from adapter.cluster.servers import reason_of
from adapter.errors import ClusterConflictError, ClusterUnavailableError

_T = TypeVar("_T")

ANSWER_S: Final = 2.0
"""How long an answer is waited for. A server that leads no more says nothing; who asks again finds the next leader."""
NOT_FOUND: Final = 404
NONE_HERE: Final = 10074
"""JetStream's code for more replicas than there are servers."""
_OTHERWISE = 10058
"""JetStream's code for a stream that is there with another configuration."""
_WRONG_LAST = (10071, 10164)
_DELETED = frozenset({"DEL", "PURGE"})


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored value.

    Attributes:
        revision: At which it can be replaced.
        at: Of leases: when it was stored, by the clock of the server that leads.
    """

    revision: int
    value: bytes
    at: str = ""


def is_deletion(headers: Mapping[str, str]) -> bool:
    """Say whether a message of a bucket marks that its key was deleted."""
    return headers.get("KV-Operation") in _DELETED


_MISSING: object = object()


async def asked(question: Awaitable[_T], missing: object = _MISSING) -> _T:
    """Wait for an answer, and raise what may be wrong with it as this program does.

    Args:
        question: The request.
        missing: Given where there is no such thing.
    """
    try:
        return await waited(question)
    except nats.js.errors.KeyWrongLastSequenceError as err:
        raise ClusterConflictError("another revision") from err
    except nats.js.errors.APIError as err:
        if err.err_code in _WRONG_LAST:
            raise ClusterConflictError("another revision") from err
        if err.code == NOT_FOUND and missing is not _MISSING:
            return missing  # type: ignore[return-value] # the caller's own
        if err.err_code in (NONE_HERE, _OTHERWISE):
            raise
        raise ClusterUnavailableError(reason_of(err)) from err
    except (nats.errors.Error, OSError) as err:
        raise ClusterUnavailableError(reason_of(err)) from err


async def waited(question: Awaitable[_T]) -> _T:
    """Wait for nats-py, and be cancelled whenever that is asked for.

    It waits by `asyncio.wait_for`, which forgets before Python 3.12 a cancellation that comes together with the answer:
    who waits for the end of the task would wait for ever.
    """
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    try:
        return await question
    finally:
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError


def stored(message: object) -> Stored | None:
    """Give what nats-py read; `None` where there is nothing, or nothing any more."""
    if message is None:
        return None
    headers = getattr(message, "headers", None) or {}
    if is_deletion(headers):
        return None
    return Stored(message.seq, message.data or b"")  # type: ignore[attr-defined] # nats-py's own raw message
