"""The configuration's contract in JSON Schema, made from the grammar that reads it.

``python -m adapter.config.schema > schemas/config.json`` writes it anew after a change of the grammar.
"""

import json
import sys

import voluptuous as vol

from adapter.config.grammar import SCHEMA
from adapter.config.rules import Each, OrOff, Rule, Section, Word


def json_schema() -> dict[str, object]:
    """Make the JSON Schema (2020-12) of a configuration file.

    An editor takes ``!secret NAME`` and ``!include FILE`` for text, so text is allowed for sections and lists too.
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration of ccgateway2mqtt",
        **_convert(SCHEMA),
        "type": "object",
    }


def _convert(rule: Word) -> dict[str, object]:
    match rule:
        case Section():
            schema: dict[str, object] = {
                "type": "object" if rule.one_of else ["object", "string"],
                "properties": {str(key): _member(key, member) for key, member in rule.members.items()},
                "additionalProperties": False,
            }
            if required := [str(key) for key in rule.members if isinstance(key, vol.Required)]:
                schema["required"] = required
            if rule.one_of:
                schema["oneOf"] = [{"required": [name]} for name in rule.one_of]
            return schema
        case Each():
            return {"type": ["array", "string"], "items": _convert(rule.item)}
        case OrOff():
            return {**_convert(rule.section), "type": ["object", "string", "null", "boolean"], "not": {"const": True}}
        case _:
            return dict(rule.schema)


def _member(key: vol.Marker, rule: Word) -> dict[str, object]:
    schema = {"description": key.description, **_convert(rule)}
    default = getattr(key, "default", vol.UNDEFINED)
    if not isinstance(default, vol.schema_builder.Undefined) and isinstance(rule, Rule):
        schema["default"] = default()
    return schema


if __name__ == "__main__":
    json.dump(json_schema(), sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
