"""Holds what was published against the JSON Schemas of schemas/, with a validator that is none of ours."""

import json
from collections.abc import Iterable
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from adapter import contracts
from tests.broker_support import Got

_KINDS = {
    "event": "event",
    "events": "event",
    "state": "state",
    "session": "session",
    "calldata/result": "result",
    "session/result": "result",
    "calldata/set": "calldata-command",
    "session/set": "session-command",
}
_BRIDGE = {"info": "info", "health": "health", "log": "log", "mark": "mark"}
_PLAIN = {b"online", b"offline"}


@cache
def validator(name: str) -> Draft202012Validator:
    """Make the validator of a schema, which is one itself."""
    schema: dict[str, Any] = json.loads(contracts.read(name))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


def schema_of(topic: str, prefix: str = "agents") -> str | None:
    """Name the schema of a topic's payload; `None` where it is plain text."""
    levels = topic.removeprefix(f"{prefix}/").split("/")
    match levels:
        case [_, "availability"]:
            return None
        case ["bridge", "agents", _]:
            return "roster"
        case ["bridge", "request" | "response" as kind, _]:
            return kind
        case ["bridge", name]:
            return _BRIDGE[name]
        case [_, *kind]:
            return _KINDS["/".join(kind)]
        case _:
            raise AssertionError(f"no such topic: {topic}")


def validate(messages: Iterable[Got], prefix: str = "agents") -> set[str]:
    """Validate messages of the topic tree, and give the names of the schemas that they were held against.

    What clears a topic, and commands that are text, have no schema.
    """
    seen: set[str] = set()
    for message in messages:
        name = schema_of(message.topic, prefix)
        if name is None:
            assert message.payload in _PLAIN | {b""}, message
        elif message.payload and not message.topic.endswith("/set"):
            errors = [error.message for error in validator(name).iter_errors(json.loads(message.payload))]
            assert errors == [], (message.topic, message.payload, errors)
            seen.add(name)
    return seen
