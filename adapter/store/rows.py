"""The rows of the database and the values that they hold, one into the other.

Rules of this file: columns stand in the order of `adapter.store.sql`.
"""

import json
from dataclasses import fields
from typing import Any

from adapter.store.records import AgentRecord, CommandRecord, Entry, Outgoing

_AGENT_COLUMNS = tuple(field.name for field in fields(AgentRecord))
_COMMAND_COLUMNS = tuple(field.name for field in fields(CommandRecord))
"""The members of both are stored in their order."""


def agent_row(agent: AgentRecord) -> tuple[Any, ...]:
    """Write an agent."""
    cookies = json.dumps(agent.cookies) if agent.cookies else "[]"
    return (agent.work_no, agent.guid, agent.guid_origin, cookies, agent.seq, agent.state, agent.own, agent.stay_out)


def agent_of(row: tuple[Any, ...]) -> AgentRecord:
    """Read an agent.

    Raises:
        ValueError: It is no row of `agent_row`.
        TypeError: The same.
    """
    members = dict(zip(_AGENT_COLUMNS, row, strict=True))
    if not (isinstance(members["seq"], int) and isinstance(members["state"], bytes)):
        raise TypeError
    members["cookies"] = tuple((name, value) for name, value in json.loads(members["cookies"]))
    return AgentRecord(**members | {name: bool(members[name]) for name in ("own", "stay_out")})


def entry_of(  # noqa: PLR0913, PLR0917 - the columns in their order
    row: int,
    made_at: float,
    topic: str,
    payload: bytes,
    retain: int,
    stream_topic: str | None,
    correlation: bytes | None,
) -> Entry:
    """Read an entry."""
    message = Outgoing(
        topic=topic, payload=payload, retain=bool(retain), stream_topic=stream_topic, correlation=correlation
    )
    return Entry(row, made_at, message)


def entry_row(entry: Entry) -> tuple[Any, ...]:
    """Write an entry."""
    out = entry.message
    return (entry.row, entry.made_at, out.topic, out.payload, out.retain, out.stream_topic, out.correlation)


def command_row(command: CommandRecord) -> tuple[Any, ...]:
    """Write a command."""
    return tuple(getattr(command, name) for name in _COMMAND_COLUMNS)


def command_of(row: tuple[Any, ...]) -> CommandRecord:
    """Read a command; raises as `agent_of`."""
    return CommandRecord(**dict(zip(_COMMAND_COLUMNS, row, strict=True)))
