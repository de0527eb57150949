"""Tests of the examples that start the adapter: the systemd unit, the container's files.

The broker's and Node-RED's examples have tests of their own, in test_examples_broker.py and test_examples_flow.py.
"""

import fnmatch
import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import trustme
import yaml

from adapter.config import load
from adapter.payloads import (
    CallDataCommand,
    EventPayload,
    HealthPayload,
    InfoPayload,
    LogPayload,
    MarkPayload,
    RequestPayload,
    ResponsePayload,
    ResultPayload,
    RosterPage,
    SessionCommand,
    SessionPayload,
    StatePayload,
)
from tests.examples_support import EXAMPLES, ROOT, find

VENV_BIN = Path(sys.executable).parent
UNIT = EXAMPLES / "systemd/ccgateway2mqtt.service"
COMPOSE = EXAMPLES / "compose/compose.yaml"


def unit_settings() -> dict[str, str]:
    """Read the unit's settings; of one that stands twice, the last."""
    lines = UNIT.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say about the unit, and its exposure is low."""
    program = "/opt/ccgateway2mqtt/bin/ccgateway2mqtt"
    text = UNIT.read_text(encoding="utf-8")
    unit = tmp_path / UNIT.name
    unit.write_text(text.replace(f"ExecStart={program}", "ExecStart=/bin/true"), encoding="utf-8")
    assert f"ExecStart={program} run -c " in text
    systemd_analyze = find("systemd-analyze")

    for command in (["verify", "--man=no"], ["security", "--offline=yes", "--threshold=15"]):
        completed = subprocess.run(
            [systemd_analyze, "--no-pager", *command, str(unit)], capture_output=True, text=True, check=False
        )
        assert completed.returncode == 0, completed.stdout
        # A setting that it does not know is only said, with status 0.
        assert completed.stderr == ""


def test_the_unit_stops_cleanly_and_does_not_loop() -> None:
    """Polls get 30 s to end (D7), HUP reloads (C7), and what cannot heal (exit codes 2 and 3) is not tried again."""
    settings = unit_settings()

    assert settings["KillSignal"] == "SIGTERM"
    assert int(settings["TimeoutStopSec"]) == 30
    assert settings["ExecReload"] == '/bin/sh -c "kill -HUP $MAINPID"'
    assert settings["Restart"] == "on-failure"
    assert settings["RestartPreventExitStatus"] == "2 3"
    assert int(settings["LimitNOFILE"]) >= 4096
    assert settings["LimitCORE"] == "0"


def instructions() -> list[tuple[str, str]]:
    """Read the Dockerfile: each instruction and its arguments, with continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def test_hadolint_finds_nothing() -> None:
    """The Dockerfile passes hadolint with every rule on."""
    completed = subprocess.run(
        [VENV_BIN / "hadolint", "--no-color", ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )

    assert (completed.returncode, completed.stdout) == (0, "")
    assert "hadolint ignore" not in (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_the_image_runs_the_adapter_itself() -> None:
    """No shell stands between a signal and the adapter, it is not root, and its data is on a volume."""
    last = dict(instructions())

    assert json.loads(last["ENTRYPOINT"]) == ["ccgateway2mqtt"]
    assert json.loads(last["CMD"]) == ["run", "-c", "/config/config.yaml"]
    assert last["USER"] == "10001:10001"
    assert json.loads(last["VOLUME"]) == ["/data"]
    assert last["STOPSIGNAL"] == "SIGTERM"
    health = last["HEALTHCHECK"].partition("CMD")[2]
    assert json.loads(health) == ["ccgateway2mqtt", "health", "-c", "/config/config.yaml"]
    assert "--constraint constraints.txt" in " ".join(rest for word, rest in instructions() if word == "RUN")


def ignored(path: str) -> bool:
    """Say whether .dockerignore keeps `path` out; the last line that matches it or a parent decides."""
    parts = path.split("/")
    parents = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
    out = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        candidates = parts if "**/" in line else parents
        if pattern and not line.startswith("#") and any(fnmatch.fnmatchcase(name, pattern) for name in candidates):
            out = not line.startswith("!")
    return out


def test_the_build_sees_what_it_copies_and_no_more() -> None:
    """Everything that is copied is there and let through; history, secrets and tests stay out."""
    sources = [
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]

    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert [source for source in sources if ignored(source)] == []
    assert not ignored("adapter/topics.py")
    for path in (".git/config", ".venv/bin/python", "secrets.yaml", "config.yaml", "x.db", "tests/__init__.py"):
        assert ignored(path)
    assert ignored("adapter/__pycache__/topics.cpython-311.pyc")


def test_compose_fits_its_schema() -> None:
    """The compose file is valid after the Compose specification's schema."""
    command = [str(VENV_BIN / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)

    assert completed.returncode == 0, completed.stdout


def test_compose_stops_cleanly_and_keeps_its_files_together() -> None:
    """Each service is locked down and given 30 s (D7); what it is handed is declared, at the paths it reads."""
    compose = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    adapter, broker = compose["services"]["adapter"], compose["services"]["broker"]
    for service in (adapter, broker):
        assert service["stop_grace_period"] == "30s"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        for kind in ("configs", "secrets"):
            assert {use["source"] for use in service[kind]} <= set(compose[kind])
    assert (COMPOSE.parent / adapter["build"]).resolve() == ROOT
    assert (COMPOSE.parent / compose["configs"]["mosquitto"]["file"]).is_file()
    assert adapter["healthcheck"]["test"][1:] == ["ccgateway2mqtt", "health", "-c", "/config/config.yaml"]
    assert adapter["volumes"] == ["adapter-data:/data"]
    assert adapter["tmpfs"] == ["/tmp"]  # noqa: S108 - a name inside the container
    assert adapter["ulimits"]["core"] == 0

    # What mosquitto.conf names is what the broker is handed.
    conf = (EXAMPLES / "mosquitto/mosquitto.conf").read_text(encoding="utf-8")
    named_files = set(re.findall(r"^\w+ (/etc/mosquitto/\S+)$", conf, re.MULTILINE))
    assert named_files == {use["target"] for use in broker["secrets"]}
    assert f"persistence_location {broker['volumes'][0]['target']}/" in conf


def test_compose_comes_with_a_configuration_that_fits(tmp_path: Path) -> None:
    """The configuration beside compose.yaml loads with the files that compose hands over, and uses the volume."""
    compose = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    adapter = compose["services"]["adapter"]
    text = (EXAMPLES / "compose/config.yaml").read_text(encoding="utf-8")
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "secrets.yaml").write_text('mqtt_password: "secret"\nguid_101: "a.AgentGateway0"\n', encoding="utf-8")
    (tmp_path / "secrets.yaml").chmod(0o600)
    handed_over = {Path(use["target"]).name for kind in ("configs", "secrets") for use in adapter[kind]}
    certificates = {name for name in handed_over if name.endswith(".pem")}
    for name in certificates:
        trustme.CA().cert_pem.write_to_path(str(tmp_path / name))

    config = load(tmp_path / "config.yaml")

    assert config.mqtt.addresses[0].host in compose["services"]
    assert {config.mqtt.ca_file, config.gateway.ca_file} == {tmp_path / name for name in certificates}
    assert config.storage.path.parent == Path("/data")


def test_every_example_of_a_page_exists() -> None:
    """A link of an example's README that leads to no other site leads to a file."""
    for page in EXAMPLES.glob("*/README.md"):
        links = re.findall(r"\]\((?!https://)([^)#]+)", page.read_text(encoding="utf-8"))
        assert [link for link in links if not (page.parent / link).exists()] == [], page


SHOWN_PAYLOADS = {
    "event": EventPayload,
    "state": StatePayload,
    "session": SessionPayload,
    "calldata/set": CallDataCommand,
    "calldata/result": ResultPayload,
    "session/set": SessionCommand,
    "bridge/info": InfoPayload,
    "bridge/agents/<page>": RosterPage,
    "bridge/health": HealthPayload,
    "bridge/mark": MarkPayload,
    "bridge/log": LogPayload,
    "bridge/request/<name>": RequestPayload,
    "bridge/response/<name>": ResponsePayload,
}


def test_the_payloads_of_the_topics_page_are_as_published() -> None:
    """Each payload that docs/topics.md shows is one of its topic's type, member by member."""
    page = (ROOT / "docs/topics.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### `([^`]+)`\n(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE)
    shown = {topic: re.findall(r"^```json\n(.*?)^```$", text, re.DOTALL | re.MULTILINE) for topic, text in sections}

    assert {topic for topic, blocks in shown.items() if blocks} == set(SHOWN_PAYLOADS)
    for topic, kind in SHOWN_PAYLOADS.items():
        (payload,) = shown[topic]
        msgspec.json.decode(payload, type=kind)


def test_every_rule_is_written_down() -> None:
    """docs/rules.md has each number that tests and comments refer to, once and in order."""
    page = (ROOT / "docs/rules.md").read_text(encoding="utf-8")
    numbers = re.findall(r"^\*\*([PCD]\d+a?), ", page, re.MULTILINE)

    expected = [f"P{number}" for number in range(1, 15)] + [f"C{number}" for number in range(1, 10)]
    assert numbers == [*expected, "D1", "D2", "D3", "D4", "D4a", "D5", "D6", "D7"]
