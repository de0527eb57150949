"""schemas/: made from the types of the code, and valid JSON Schema 2020-12.

What is published is held against them in `test_asyncapi`, whose schemas are the same.
"""

import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from jsonschema import Draft202012Validator

from adapter import contracts
from adapter.errors import StartError
from adapter.payloads import CallDataCommand, SessionCommand, StateName

ROOT = Path(contracts.__file__).parent.parent


def validator(name: str) -> Draft202012Validator:
    """Make the validator of a schema."""
    return Draft202012Validator(json.loads(contracts.read(name)))


@pytest.mark.parametrize("name", sorted(contracts.PAYLOADS))
def test_schemas_are_what_the_types_say(name: str) -> None:
    """A file that differs from its type is not up to date: `make schemas`."""
    assert json.loads(contracts.read(name)) == contracts.make(name)


def test_every_schema_has_its_type() -> None:
    """No schema is left over from a type that is gone, and none is missing; two have a source of their own."""
    assert contracts.names() == sorted({*contracts.PAYLOADS, "config", "asyncapi"})


@pytest.mark.parametrize("name", sorted({*contracts.PAYLOADS, "config"}))
def test_schemas_are_valid(name: str) -> None:
    """Each is JSON Schema 2020-12, says so, and has a title."""
    schema: dict[str, Any] = json.loads(contracts.read(name))

    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    assert schema["title"]
    Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", sorted(set(contracts.PAYLOADS) - {"event"}))
def test_schemas_allow_nothing_else(name: str) -> None:
    """A member that no type lists is not ours; only an event carries members of the gateway's."""
    errors = [error.message for error in validator(name).iter_errors({"surprise": 1})]

    assert any("surprise" in error for error in errors)


def test_writing_them_is_writing_the_files(tmp_path: Path) -> None:
    """`python -m adapter.contracts DIRECTORY` writes what is there, to the byte."""
    contracts.write(tmp_path)

    for name in contracts.PAYLOADS:
        assert (tmp_path / f"{name}.json").read_text() == contracts.read(name)


def test_an_unknown_name_is_told_with_all_that_there_are() -> None:
    """A name that is none, or a path, reads no file."""
    for name in ("nonsense", "../pyproject", "state.json", ""):
        with pytest.raises(StartError, match="unknown; there are asyncapi, calldata-command, config, diag") as caught:
            contracts.read(name)
        assert caught.value.exit_code == 2


def test_they_ship_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package finds them inside itself, a checkout beside."""
    assert contracts.directory() in (ROOT / "schemas", ROOT / "adapter" / "schemas")
    package = tmp_path / "adapter"
    (package / "schemas").mkdir(parents=True)
    monkeypatch.setattr(contracts, "__file__", str(package / "contracts.py"))

    assert contracts.directory() == package / "schemas"


@pytest.mark.parametrize(
    ("name", "kind", "sound", "broken"),
    [
        (
            "calldata-command",
            CallDataCommand,
            [{"calldata": "x"}, {"calldata": "x", "id": "a", "ttl": 3600}],
            [{}, {"calldata": ""}, {"calldata": 1}, {"calldata": "x", "ttl": 0}, {"calldata": "x", "id": "a" * 65}],
        ),
        (
            "session-command",
            SessionCommand,
            [{"action": "sign_in"}, {"action": "sign_in", "guid": "g"}, {"action": "sign_out", "id": "1"}],
            [{}, {"action": "signin"}, {"action": "sign_in", "guid": ""}, {"action": "sign_out", "id": ""}],
        ),
    ],
)
def test_commands_are_taken_as_their_schema_says(
    name: str, kind: type[msgspec.Struct], sound: list[dict[str, object]], broken: list[dict[str, object]]
) -> None:
    """The schema and the type that reads commands agree on what is sound."""
    for value in sound:
        validator(name).validate(value)
        msgspec.convert(value, type=kind)
    for value in broken:
        assert not validator(name).is_valid(value)
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(value, type=kind)


def test_states_are_the_contract() -> None:
    """The states are the seven words of section 3."""
    words = {"idle", "busy", "rest", "work", "in_call", "signed_out", "unknown"}

    assert set(get_args(StateName)) == words
    assert words == set(contracts.make("state")["properties"]["state"]["enum"])
