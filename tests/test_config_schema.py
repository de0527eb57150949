"""The configuration's contract for editors, and the examples that newcomers begin with."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from jsonschema import Draft202012Validator

from adapter.config import load
from adapter.config.grammar import AGENT, SCHEMA, SIGN_IN, section_at
from adapter.config.rules import Each, OrOff, Section, Word
from adapter.config.schema import json_schema
from adapter.errors import ConfigError
from tests.config_support import KEY

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"


class _EditorLoader(yaml.SafeLoader):
    """Reads as an editor does that was told of our tags: what follows them is text."""


def _text(loader: _EditorLoader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


for tag in ("!secret", "!env_var", "!include"):
    _EditorLoader.add_constructor(tag, _text)


def _as_an_editor_reads(text: str) -> Any:  # noqa: ANN401 - whatever YAML holds
    return yaml.load(text, Loader=_EditorLoader)  # noqa: S506 - built on the safe one


def _mistakes(text: str) -> list[str]:
    errors = Draft202012Validator(json_schema()).iter_errors(_as_an_editor_reads(text))
    return [error.json_path for error in errors]


@pytest.fixture
def examples(tmp_path: Path) -> Path:
    """Copy the examples as a user does: with secrets, and with the files that full.yaml names."""
    directory = tmp_path / "examples"
    directory.mkdir()
    for path in (*EXAMPLES.glob("*.yaml"), *EXAMPLES.glob("*.example")):
        shutil.copy(path, directory / path.name.removesuffix(".example"))
    (directory / "secrets.yaml").chmod(0o600)
    authority = trustme.CA()
    issued = authority.issue_cert("adapter")
    for name in ("gateway-ca.pem", "broker-ca.pem", "nats-ca.pem"):
        authority.cert_pem.write_to_path(str(directory / name))
    issued.cert_chain_pems[0].write_to_path(str(directory / "adapter.pem"))
    issued.private_key_pem.write_to_path(str(directory / "adapter-key.pem"))
    return directory


def _all_taken_in(text: str) -> str:
    """Take in the keys that full.yaml leaves out: ``#key: value``, without a space."""
    return re.sub(r"^( *)#(?=\w+:)", r"\1", text, flags=re.MULTILINE)


def _keys(rule: Word, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    match rule:
        case Section():
            for key, member in rule.members.items():
                yield (*path, str(key))
                yield from _keys(member, (*path, str(key)))
        case Each():
            yield from _keys(rule.item, path)
        case OrOff():
            yield from _keys(rule.section, path)


def _keys_of(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for key, member in value.items():
            yield (*path, key)
            yield from _keys_of(member, (*path, key))
    elif isinstance(value, list):
        for item in value:
            yield from _keys_of(item, path)


def test_schema_in_the_repository_is_the_one_of_the_code() -> None:
    """schemas/config.json is written by ``python -m adapter.config.schema``, and has not drifted."""
    written = subprocess.run([sys.executable, "-m", "adapter.config.schema"], cwd=ROOT, check=True, capture_output=True)

    assert (ROOT / "schemas/config.json").read_bytes() == written.stdout
    assert json.loads(written.stdout) == json_schema()


def test_schema_is_one() -> None:
    """The contract itself keeps to JSON Schema 2020-12, and describes every key."""
    schema = json_schema()

    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    for path in _keys(SCHEMA):
        assert len(path) <= 3
    described = json.dumps(schema).count('"description"')
    assert described == len(list(_keys(SCHEMA)))


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("gateway: {url: https://g, hodl: 1}\nagents: []", "$.gateway"),
        ("gateway: {}\nagents: []", "$.gateway"),
        ("gateway: {url: https://g, interval: [0.1, 0.5]}\nagents: []", "$.gateway.interval[0]"),
        ("gateway: {url: https://g, auth_mode: 2}\nagents: []", "$.gateway.auth_mode"),
        ("gateway: {url: https://g}\nagents: [{work_no: 1, guid: a}]", "$.agents[0].work_no"),
        ("gateway: {url: https://g}\nagents: [{work_no: bridge, guid: a}]", "$.agents[0].work_no"),
        ("gateway: {url: https://g}\nagents: [{work_no: a}]", "$.agents[0]"),
        ("gateway: {url: https://g}\nagents: [{work_no: a, guid: a, guid_file: b}]", "$.agents[0]"),
        ("gateway: {url: https://g}\nagents: []\nhttp: true", "$.http"),
        ("gateway: {url: https://g}\nagents: []\nstorage: {max_mb: 1}", "$.storage.max_mb"),
        ("gateway: {url: https://g}\nagents: []\nmqtt: {topic_prefix: 'a/+'}", "$.mqtt.topic_prefix"),
    ],
)
def test_editors_see_mistakes(text: str, path: str) -> None:
    """An editor marks what the program would refuse."""
    assert _mistakes(text) == [path]


@pytest.mark.parametrize(
    "text",
    [
        "gateway: !include g.yaml\nagents: !include a.yaml\nmqtt: !include m.yaml",
        "gateway: {url: !env_var URL}\nagents: [{work_no: a, guid: !secret g}]\nprivacy: false\nhttp: ~",
        "gateway: {url: !secret u}\nagents: [{work_no: a, sign_in: {password: !secret p, phone: !env_var P}}]",
        "gateway: {url: https://g}\nagents: []\nmqtt: {protocol: 5, password: !secret p, username: !secret u}",
    ],
)
def test_editors_take_our_tags(text: str) -> None:
    """What an editor sees of ``!secret``, ``!env_var`` and ``!include`` is text, where these are of use."""
    assert _mistakes(text) == []


@pytest.mark.parametrize("name", ["minimal.yaml", "full.yaml"])
def test_examples_are_sound(examples: Path, name: str) -> None:
    """Each example can be loaded with the secrets beside it, and editors find nothing in it."""
    text = (examples / name).read_text()

    config = load(examples / name)

    assert config.agents
    assert _mistakes(text) == []
    first_line = text.split("\n", 1)[0]
    [schema] = re.findall(r"^# yaml-language-server: \$schema=(\S+)$", first_line)
    assert (EXAMPLES / schema).resolve() == ROOT / "schemas/config.json"


def test_included_example_is_sound(examples: Path) -> None:
    """The list of agents fits the contract of agents, and shows each of their keys."""
    agents = _as_an_editor_reads((examples / "agents.yaml").read_text())

    assert _mistakes(json.dumps({"gateway": {"url": "https://g"}, "agents": agents})) == []
    assert {path for agent in agents for path in _keys_of(agent)} == set(_keys(AGENT))


def test_minimal_is_minimal(examples: Path) -> None:
    """Nothing can be left out of the minimal example."""
    lines = (examples / "minimal.yaml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("#")]

    for line in kept:
        (examples / "minimal.yaml").write_text("\n".join(other for other in kept if other != line))
        with pytest.raises(ConfigError):
            load(examples / "minimal.yaml")


def test_full_shows_every_key_with_its_default(examples: Path) -> None:
    """Full means full, and what it shows as defaults are the defaults."""
    text = (examples / "full.yaml").read_text()
    shown = set(_keys_of(_as_an_editor_reads(_all_taken_in(text))))
    full, minimal = load(examples / "full.yaml"), load(examples / "minimal.yaml")

    assert shown == {path for path in _keys(SCHEMA) if path[:1] != ("agents",)} | {("agents",)}
    assert replace(full, agents=(), path=minimal.path) == replace(minimal, agents=())


def test_full_can_be_taken_at_its_word(examples: Path) -> None:
    """The keys that are left out of the full example are sound once they are taken in, with TLS to the broker."""
    text = _all_taken_in((examples / "full.yaml").read_text()).replace(
        "mqtt://localhost:1883", "mqtts://localhost:8883"
    )
    text = re.sub(r"^  credentials: .*\n", "", text, flags=re.MULTILINE)  # which excludes username
    (examples / "full.yaml").write_text(text)
    with (examples / "secrets.yaml").open("a") as secrets:
        secrets.write(f"cluster_key: {KEY}\nformer_cluster_key: {KEY}\nnats_password: change-me\n")

    config = load(examples / "full.yaml")

    assert config.http is not None
    assert config.privacy is not None
    assert config.cluster is not None
    assert config.cluster.urls[0] == "tls://nats1.example:4222"
    assert config.mqtt.response_prefix == "responses"
    assert _mistakes(text) == []


def test_sections_by_path() -> None:
    """The grammar is found by the keys that lead into it."""
    assert section_at([]) is SCHEMA
    assert section_at(["agents", 7]) is AGENT
    assert section_at(["agents", 7, "sign_in"]) is SIGN_IN
    assert isinstance(section_at(["privacy"]), Section)
    assert [section_at(path) for path in (["agents"], ["instance"], ["instance", "x"], ["gone"])] == [None] * 4
