"""schemas/: made from the types of the code, valid JSON Schema 2020-12, and true of what is published."""

import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from jsonschema import Draft202012Validator

from adapter import contracts
from adapter.errors import StartError
from adapter.payloads import CallDataCommand, SessionCommand, StateName
from adapter.simulator import Simulator
from tests.adapter_support import running, settings, wait_for, write
from tests.broker_support import Broker, Got, Peer
from tests.contracts_support import schema_of, validate, validator

ROOT = Path(contracts.__file__).parent.parent


@pytest.mark.parametrize("name", sorted(contracts.PAYLOADS))
def test_schemas_are_what_the_types_say(name: str) -> None:
    """A file that differs from its type is not up to date: `make schemas`."""
    assert json.loads(contracts.read(name)) == contracts.make(name)


def test_every_schema_has_its_type() -> None:
    """No schema is left over from a type that is gone, and none is missing; the configuration has its own source."""
    assert contracts.names() == sorted({*contracts.PAYLOADS, "config"})


@pytest.mark.parametrize("name", contracts.names())
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
        with pytest.raises(StartError, match="unknown; there are calldata-command, config, event") as caught:
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


async def test_what_is_published_is_what_the_schemas_say(
    tmp_path: Path, simulator: Simulator, shared_broker: Broker
) -> None:
    """A run with events, calls, failures, commands, requests and a sign-out: each payload is valid."""
    prefix = "contracts"
    values = settings(simulator, shared_broker, instance=prefix, mqtt={"topic_prefix": prefix})
    with Peer(shared_broker, [f"{prefix}/#"]) as peer:
        async with running(write(tmp_path, values)):
            await simulator.wait_for(lambda: simulator.polling("101") and simulator.polling("102"))
            await peer.publish(f"{prefix}/101/calldata/set", b'{"calldata": "x", "id": "c1"}')
            await peer.publish(f"{prefix}/101/calldata/set", b"")
            await peer.publish(f"{prefix}/bridge/request/agents", b'{"id": "r1"}')
            await peer.publish(f"{prefix}/bridge/request/nonsense", b"{")
            for kind in ("AgentState_Ready", "AgentEvent_Ringing", "AgentState_Busy", "AgentEvent_Talking"):
                simulator.emit_sample("101", kind)
            odd = b'{"eventType": "New_One", "workNo": null, "content": "\\ud83d", "id": 7, "seq": 1.0, "big": 1e400}'
            simulator.emit("101", odd)
            simulator.emit_sample("102", "AgentOther_ShutdownService")
            await wait_for(peer, f"{prefix}/101/event", lambda event: event["eventType"] == "New_One")
            await wait_for(peer, f"{prefix}/102/session", lambda session: session["phase"] == "signed_out")
            await peer.publish(f"{prefix}/102/session/set", b'{"action": "sign_out", "id": "s1"}')
            await wait_for(peer, f"{prefix}/102/session/result", lambda result: result["id"] == "s1")
            await wait_for(peer, f"{prefix}/101/calldata/result", lambda result: result["id"] == "c1")
            await wait_for(peer, f"{prefix}/bridge/response/agents", lambda response: response["id"] == "r1")
            await wait_for(peer, f"{prefix}/bridge/log", lambda log: log["message"])
        requests = (f"{prefix}/bridge/request/nonsense",)
        seen = validate([message for message in peer.messages if message.topic not in requests], prefix)

    assert seen >= {"event", "state", "session", "info", "roster", "health", "log", "result", "response", "request"}


@pytest.mark.parametrize("payload", [b"{}", b'{"n": -1}', b'{"n": "1"}', b'{"n": 1, "m": 1}'])
def test_the_check_finds_what_is_wrong(payload: bytes) -> None:
    """A payload that its schema does not allow fails a test that validates it."""
    message = Got(topic="agents/bridge/mark", payload=payload, retain=True, qos=1, content_type=None, correlation=None)
    assert validate([]) == set()
    with pytest.raises(AssertionError):
        validate([message])


@pytest.mark.parametrize("topic", ["agents/101/nonsense", "agents/bridge/nonsense", "agents"])
def test_the_check_knows_every_topic(topic: str) -> None:
    """A topic that the contract does not name fails a test that validates it."""
    with pytest.raises((KeyError, AssertionError)):
        schema_of(topic)
