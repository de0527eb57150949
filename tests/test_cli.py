"""The command line of section 7: names, options, exit codes, and one line for each error."""

import asyncio
import contextlib
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from adapter import __version__, app, check, contracts
from adapter.cli import main
from adapter.simulator import Simulator
from adapter.store.lock import Lock
from tests.adapter_support import running, settings, wait_for, write
from tests.broker_support import HOST, Broker, Peer, answers, certificates, free_ports, mosquitto
from tests.cli_support import COMMAND, invoke, invoke_beside, json_line, one_line, program, run_program, told_soon

COMMANDS = {
    "demo": {"--agents", "--port", "--duration", "--no-browser", "--config-out"},
    "run": {"--config", "--processes"},
    "check": {"--config", "--online", "--username", "--password-file"},
    "watch": {"--config", "--broker", "--prefix", "--username", "--password-file"},
    "calldata": {"--config", "--ttl", "--username", "--password-file"},
    "simulate": {"--listen", "--agents", "--scenario", "--hold", "--auth-mode"},
    "schema": set[str](),
    "health": {"--config"},
    "cluster": set[str](),
    "cluster status": {"--config", "--json"},
    "cluster drain": {"--config", "--timeout"},
    "cluster undrain": {"--config", "--timeout"},
    "completion": set[str](),
    "purge": {"--config", "--yes", "--storage", "--username", "--password-file"},
}
SCENARIOS = Path(__file__).parent.parent / "examples" / "scenarios"


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def users(tmp_path: Path) -> Iterator[Broker]:
    """Run a Mosquitto that lets `adapter` in, and `wall` with another password."""
    with mosquitto(tmp_path / "mosquitto", users={"adapter": "adapter's", "wall": "the wall's"}) as broker:
        yield broker


def plain(broker: Broker | None = None, **sections: Any) -> dict[str, Any]:  # noqa: ANN401 - YAML's values
    """Make a configuration with a gateway that is not there, under a prefix of the test's own."""
    (nobody,) = free_ports(1)
    prefix = f"cli-{os.urandom(4).hex()}"
    made: dict[str, Any] = {
        "instance": prefix,
        "gateway": {"url": f"https://{HOST}:{nobody}/agentgateway", "hold": 0.3, "timeout": 2},
        "mqtt": {"url": f"mqtt://{HOST}:{nobody}" if broker is None else broker.url(), "topic_prefix": prefix},
        "agents": [{"work_no": "101", "guid": "secret-guid"}],
    }
    for name, value in sections.items():
        made[name] = made[name] | value if name in made and isinstance(value, dict) else value
    return made


def _found(pattern: str, text: str) -> set[str]:
    return set(re.findall(pattern, text, re.MULTILINE))


# What there is.


def test_commands_and_options_are_the_contract() -> None:
    """Each command has exactly the options of section 7."""
    assert _found(r"^  (\w+) ", invoke("--help").stdout.partition("Commands:")[2]) == {
        name for name in COMMANDS if " " not in name
    }
    for name, options in COMMANDS.items():
        helped = invoke(*name.split(), "--help")
        assert helped.exit_code == 0
        assert _found(r"^  (?:-\w, )?(--[a-z-]+)", helped.stdout.partition("Options:")[2]) - {"--help"} == options


def test_help_is_quick() -> None:
    """`--help` imports nothing that it does not need: 0.3 s of CPU, and much less of it our own."""
    began_s = os.times().children_user
    subprocess.run([*COMMAND, "--help"], check=True, capture_output=True)

    assert os.times().children_user - began_s < 0.3


def test_run_imports_no_more_than_it_needs(tmp_path: Path) -> None:
    """Who does not use the HTTP listener or a page in the terminal has nothing of them in memory."""
    command = [sys.executable, "-X", "importtime", "-m", "adapter", "run", "-c", str(tmp_path / "missing.yaml")]
    lines = subprocess.run(command, check=False, capture_output=True, text=True).stderr.splitlines()
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines if line.startswith("import time:")}

    assert {"adapter", "httpx", "paho"} <= imported
    assert imported & {"aiohttp", "prometheus_client", "rich", "pygments", "trustme"} == set()


def test_help_says_what_acls_to_set() -> None:
    """The main help names the topics that an ACL has to guard."""
    helped = invoke("--help").stdout
    assert "ACL" in helped
    assert "calldata/set" in helped


def test_version() -> None:
    """`--version` prints the version."""
    assert invoke("--version").stdout.split()[-1] == __version__


def test_the_module_is_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m adapter` is `ccgateway2mqtt`."""
    done = subprocess.run([*COMMAND, "--version"], check=True, capture_output=True, text=True)

    assert done.stdout.startswith("ccgateway2mqtt")
    monkeypatch.delitem(sys.modules, "adapter.__main__", raising=False)  # or Python warns of it
    assert runpy.run_module("adapter.__main__")["main"] is main


# Wrong usage.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "ccgateway2mqtt run: Missing option '-c' / '--config'"),
        (["rnu"], "No such command 'rnu'"),
        (["run", "--nonsense"], "No such option"),
        (["watch"], "give either -c FILE"),
        (["watch", "-c", "a", "--broker", "mqtt://b"], "give either -c FILE"),
        (["watch", "-c", "a", "--prefix", "b"], "give either -c FILE"),
        (["watch", "--broker", "ftp://b"], "--broker: expected"),
        (["watch", "--broker", "mqtt://b", "--prefix", "a/#"], "--prefix: expected"),
        (["simulate", "--listen", "nowhere"], "--listen: expected HOST:PORT"),
        (["simulate", "--scenario", "none.yaml"], "none.yaml"),
        (["demo", "--agents", "1"], "--agents"),
        (["schema", "nonsense"], "schema nonsense: unknown; there are asyncapi, calldata-command, config"),
        (["run", "-c", "none.yaml"], "none.yaml"),
        (["check", "-c", "none.yaml", "--password-file", "none.txt"], "none.txt"),
        (["calldata", "bridge", "x", "-c", "good.yaml"], "WORKNO: expected"),
        (["calldata", "101", "\udcff", "-c", "good.yaml"], "VALUE: expected UTF-8"),
        (["check", "-c", "good.yaml", "--online", "--password-file", "good.yaml"], "--password-file needs --username"),
        (["check", "-c", ".", "--online"], "is a directory"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(tmp_path: Path, arguments: list[str], said: str) -> None:
    """Whatever is wrong with the command is said on one line of stderr, with exit code 2."""
    write(tmp_path, plain(), "good.yaml")

    done = invoke(*arguments)

    assert said in done.stderr.splitlines()[-1]
    assert done.stdout == ""
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == (
        2 if "--password-file" in arguments and "good.yaml" in arguments[-1] else 1
    )


def test_no_command_shows_the_help() -> None:
    """Without a command, the help goes to stderr, with exit code 2."""
    done = invoke()

    assert "Commands:" in done.stderr
    assert done.exit_code == 2


@pytest.mark.parametrize("command", ["run", "check", "health", "watch"])
def test_every_mistake_of_a_configuration_is_told(tmp_path: Path, command: str) -> None:
    """A wrong configuration is exit 2, all of its mistakes on a line each with file and line, no secret among them."""
    path = write(tmp_path, plain(agents=[{"work_no": 101, "guid": "secret-guid"}], intsance="x", log={"level": "loud"}))

    done = invoke(command, "-c", path)

    lines = done.stderr.splitlines()
    assert done.exit_code == 2
    assert len(lines) == 3
    assert all(re.match(rf"{re.escape(str(path))}:\d+: ", line) for line in lines)
    assert "secret-guid" not in done.stderr


def test_an_unreadable_ca_file_is_exit_2(tmp_path: Path) -> None:
    """A CA file that cannot be read, or is none, ends it at once."""
    (tmp_path / "none.pem").write_text("no certificate")
    for name in ("none.pem", "missing.pem"):
        done = invoke("run", "-c", write(tmp_path, plain(gateway={"ca_file": name})))
        assert "gateway.ca_file" in one_line(done)
        assert done.exit_code == 2


def test_the_configuration_can_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CCGATEWAY2MQTT_CONFIG stands for `-c`, as in a container's health check."""
    monkeypatch.setenv("CCGATEWAY2MQTT_CONFIG", str(write(tmp_path, plain())))

    done = invoke("check")

    assert one_line(done).endswith("valid, 1 agents")
    assert done.exit_code == 0


# What nobody foresaw.


def test_a_mistake_of_ours_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception that is no answer to anything says where it was, without its text: that could hold a secret."""

    def fail(_path: Path) -> str:
        raise RuntimeError("guid-1")

    monkeypatch.setattr(check, "health", fail)

    done = invoke("health", "-c", write(tmp_path, plain()))

    line = one_line(done)
    assert re.search(r"a mistake of this program, please report it: RuntimeError at cli\.py:\d+", line)
    assert "guid-1" not in line
    assert done.exit_code == 1


@pytest.mark.parametrize("command", [["schema", "state"], ["--help"]])
def test_a_reader_that_goes_away_ends_it_quietly(command: list[str]) -> None:
    """A broken pipe at stdout is exit 1 without a word."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run([*COMMAND, *command], stdout=write_end, stderr=subprocess.PIPE, check=False)
    os.close(write_end)

    assert (done.returncode, done.stderr) == (1, b"")


def test_a_full_disk_at_stdout_is_one_line() -> None:
    """What cannot be written is said."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*COMMAND, "schema", "state"], stdout=full, stderr=subprocess.PIPE, check=False, text=True
        )

    assert done.stderr.splitlines() == ["[Errno 28] No space left on device"]
    assert done.returncode == 1


def test_nobody_at_stderr_changes_nothing(tmp_path: Path) -> None:
    """The exit code stays what it is when nobody reads stderr, or there is none."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run([*COMMAND, "run", "-c", "none.yaml"], stderr=write_end, check=False, cwd=tmp_path)
    os.close(write_end)

    assert done.returncode == 2


def test_names_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    """Output in an encoding which lacks a letter goes on with the letter's number."""
    code = (
        "import click; from adapter.cli import main;"
        r"main.add_command(click.Command('x', callback=lambda: click.echo('\u2192')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; main(['x'])"],
        env=os.environ | {"PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=True,
        cwd=tmp_path,
    )

    assert done.stdout == b"\\u2192\n"


@pytest.mark.parametrize(
    ("command", "package"), [("demo --no-browser", "trustme"), ("demo", "nats-server"), ("simulate", "trustme")]
)
def test_a_missing_extra_says_what_to_install(tmp_path: Path, command: str, package: str) -> None:
    """Without the packages of the extra `demo`, one line says how to get them."""
    code = {
        "trustme": "import sys; sys.modules['trustme'] = None",
        "nats-server": "from adapter import nats; nats.PACKAGE = 'no-such-package'",
    }[package]
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; from adapter.cli import main; main({command.split()})"],
        env=os.environ | {"PATH": ""},
        capture_output=True,
        check=False,
        text=True,
        cwd=tmp_path,
    )

    assert re.fullmatch(r".*pip install 'ccgateway2mqtt\[demo\]'\n", done.stderr)
    assert done.returncode in (1, 2)
    assert done.stdout == ""


# schema, health, simulate.


def test_schema_lists_and_prints() -> None:
    """`schema` lists the names, `schema NAME` prints one: JSON Schema, and AsyncAPI in YAML."""
    names = invoke("schema").stdout.split()

    assert names == sorted({*contracts.PAYLOADS, "config", "asyncapi"})
    assert invoke("schema", "asyncapi").stdout == contracts.read("asyncapi")
    names.remove("asyncapi")
    assert all(json.loads(invoke("schema", name).stdout)["$schema"].endswith("2020-12/schema") for name in names)


def test_health_says_how_the_adapter_is(tmp_path: Path) -> None:
    """Exit 0 while starting and while well, else 1 with a line that says what is wrong."""
    path = write(tmp_path, plain())

    def told() -> tuple[int, str]:
        done = invoke("health", "-c", path)
        return done.exit_code, one_line(done)

    database = tmp_path / "ccgateway2mqtt.db"
    well = {"at": time.monotonic(), "writable": True, "connected": True}
    assert told() == (1, f"{database}: no adapter runs with it")
    lock = Lock(database)
    try:
        assert told() == (0, "starting")
        lock.beat(well)
        assert told() == (0, "well")
        lock.beat(well | {"connected": False})
        assert told() == (0, "well, but not connected to the broker")
        lock.beat(well | {"writable": False})
        assert told() == (1, "the adapter cannot store events: is the disk full?")
        lock.beat(well | {"at": time.monotonic() - 60})
        code, said = told()
        assert code == 1
        assert re.fullmatch(r"the adapter has given no sign of life for \d+ s", said)
    finally:
        lock.release()
    assert told() == (1, f"{database}: no adapter runs with it")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_simulate_says_one_line_and_cleans_up(tmp_path: Path, number: signal.Signals) -> None:
    """`simulate` prints one line of JSON when it is ready, ends with 0 when told to, and leaves nothing behind."""
    async with program("simulate", "--agents", "2", "--auth-mode", "static", TMPDIR=str(tmp_path)) as simulate:
        ready = json.loads(await simulate.line(lambda line: line.startswith("{")))
        assert await asyncio.to_thread(Path(ready["ca_file"]).is_file)
        assert [agent["workNo"] for agent in ready["agents"]] == ["101", "102"]
        assert all(agent["guid"] for agent in ready["agents"])
        assert answers(int(ready["url"].split(":")[2].split("/")[0]))
        simulate.send(number)
        assert await simulate.ended() == 0
    assert (len(simulate.out), simulate.err) == (1, [])
    assert await asyncio.to_thread(os.listdir, tmp_path) == []


def test_simulate_plays_a_scenario() -> None:
    """`--scenario` brings its own agents; SIGTERM ends it with 0."""
    (port,) = free_ports(1)
    teller = told_soon(signal.SIGTERM, lambda: answers(port))
    done = invoke("simulate", "--listen", f"{HOST}:{port}", "--scenario", SCENARIOS / "busy.yaml", "--hold", "0.5")
    teller.join()

    ready = json_line(done.stdout)
    assert ready["url"] == f"https://{HOST}:{port}/agentgateway"
    assert done.exit_code == 0


def test_simulate_on_a_port_in_use_is_exit_1() -> None:
    """A port in use is one line, exit 1."""
    with socket.create_server((HOST, 0)) as taken:
        done = invoke("simulate", "--listen", f"{HOST}:{taken.getsockname()[1]}")

    assert "cannot listen" in one_line(done)
    assert done.exit_code == 1


def test_a_wrong_scenario_is_exit_2(tmp_path: Path) -> None:
    """A mistake in a scenario is told with its place, exit 2."""
    (tmp_path / "wrong.yaml").write_text("agents: ['101']\ntimeline: {'101': [{after: soon}]}\n")
    done = invoke("simulate", "--scenario", "wrong.yaml")

    assert "wrong.yaml:2: timeline.101[0].after: expected" in one_line(done)
    assert done.exit_code == 2


# check and calldata, against real parts.


async def test_check_online_reaches_both(tmp_path: Path, simulator: Simulator, users: Broker) -> None:
    """`check --online` reaches the gateway by TLS and logs in to the broker, under a name of its own."""
    path = write(tmp_path, settings(simulator, users, mqtt={"client_id": "main"}))
    done = await invoke_beside("check", "-c", path, "--online")

    lines = done.stderr.splitlines()
    assert done.exit_code == 0
    assert lines[0].endswith("valid, 2 agents")
    assert re.match(r"ok +gateway 127\.0\.0\.1:\d+: reached, TLSv1\.\d", lines[1])
    assert re.match(r"ok +broker 127\.0\.0\.1:\d+: logged in, MQTT 5", lines[4])
    assert re.fullmatch(rf"{re.escape(str(path))}: 11 checks, (all well|\d warnings?)", lines[-1])
    assert re.search(r"as main-check-[0-9a-f]{8} ", users.log)
    assert simulator.polls("101") == []


async def test_check_online_tells_what_fails(tmp_path: Path, simulator: Simulator, users: Broker) -> None:
    """A CA that does not fit and a wrong password are a line each, and exit 1."""
    other = certificates(tmp_path / "other").ca_file
    made = settings(simulator, users, gateway={"ca_file": str(other)}, mqtt={"password": "guessed"})
    done = await invoke_beside("check", "-c", write(tmp_path, made), "--online")

    lines = done.stderr.splitlines()
    assert done.exit_code == 1
    assert re.match("failed +gateway .*certificate verify failed", lines[1])
    assert re.match(r"(?i)failed +broker.*(not authori[sz]ed|bad user name)", lines[2])
    assert lines[-1].endswith("2 of 6 checks failed")
    assert len(lines) == 8
    assert "guessed" not in done.stderr


async def test_check_online_with_nobody_there(tmp_path: Path) -> None:
    """Nobody at the gateway's and the broker's address is a line each, and exit 1."""
    done = await invoke_beside("check", "-c", write(tmp_path, plain()), "--online")

    lines = done.stderr.splitlines()
    assert [line.split(":")[0] for line in lines[1:3]] == [f"failed  gateway {HOST}", "failed  broker"]
    assert done.exit_code == 1


async def test_check_as_another_user(tmp_path: Path, simulator: Simulator, users: Broker) -> None:
    """`--username` and `--password-file` replace the log-in; only the line's end is no part of the password."""
    path = write(tmp_path, settings(simulator, users, mqtt={"password": "guessed"}))
    (tmp_path / "password").write_text("the wall's\r\n")
    (tmp_path / "binary").write_bytes(b"\xff\xff")

    done = await invoke_beside("check", "-c", path, "--online", "--username", "wall", "--password-file", "password")
    binary = await invoke_beside("check", "-c", path, "--online", "--username", "wall", "--password-file", "binary")
    without = await invoke_beside("check", "-c", path, "--online", "--username", "wall")

    assert done.exit_code == 0
    assert binary.stderr.splitlines()[-1] == "binary: cannot be read as text"
    assert binary.exit_code == 2
    assert without.exit_code == 1


async def test_calldata_prints_the_result(tmp_path: Path, simulator: Simulator, shared_broker: Broker) -> None:
    """`calldata` waits for its result and prints it: exit 0 where it was applied, else 1."""
    path = write(tmp_path, settings(simulator, shared_broker, instance="cli-data", mqtt={"topic_prefix": "cli-data"}))
    async with running(path):
        await simulator.wait_for(lambda: simulator.polling("101"))
        applied = await invoke_beside("calldata", "101", "customer=4711 ä", "-c", path)
        rejected = await invoke_beside("calldata", "999", "x", "-c", path)

    result = json_line(applied.stdout)
    assert (result["status"], result["workNo"], applied.exit_code) == ("applied", "101", 0)
    assert applied.stderr.splitlines() == ["agent 101: goes with the next poll; waiting for the result"]
    assert any(poll.calldata == "customer=4711 ä" for poll in simulator.polls("101"))
    assert (json_line(rejected.stdout)["status"], rejected.exit_code) == ("rejected", 1)

    gone = await invoke_beside("calldata", "101", "x", "-c", path)
    assert gone.stderr.splitlines()[-1] == "no adapter runs: cli-data/bridge/availability is offline"
    assert (gone.stdout, gone.exit_code) == ("", 1)


def test_calldata_without_a_broker_is_exit_1(tmp_path: Path) -> None:
    """A broker that is not there is one line, exit 1."""
    done = invoke("calldata", "101", "x", "-c", write(tmp_path, plain()))

    assert "127.0.0.1" in one_line(done)
    assert done.exit_code == 1


def test_ctrl_c_while_waiting_is_exit_1(tmp_path: Path, shared_broker: Broker) -> None:
    """Ctrl-C before the result came is no success."""
    values = plain(shared_broker)
    with Peer(shared_broker, [f"{values['mqtt']['topic_prefix']}/101/calldata/set"]) as peer:
        teller = told_soon(signal.SIGINT, lambda: peer.messages)
        done = invoke("calldata", "101", "x", "-c", write(tmp_path, values))
        teller.join()

    assert done.stderr.splitlines()[-1] == "interrupted"
    assert (done.stdout, done.exit_code) == ("", 1)


# run: in this process, which is the main thread, and as a process of its own.


@contextlib.contextmanager
def peer_thread(broker: Broker, prefix: str, work: Callable[[Peer, Callable[[str], str]], None]) -> Iterator[Peer]:
    """Listen to a prefix, and do something there as soon as the adapter of this process is online."""
    with Peer(broker, [f"{prefix}/#"]) as peer:
        topic = f"{prefix}/{{}}".format

        def run() -> None:
            peer.wait_for_blocking(lambda: b"online" in peer.payloads(topic("bridge/availability")))
            work(peer, topic)

        thread = threading.Thread(target=run)
        thread.start()
        yield peer
        thread.join()


def test_run_ends_with_sigterm(tmp_path: Path, shared_broker: Broker) -> None:
    """SIGTERM stops the adapter: `offline` is published, exit 0, nothing on stdout (D7)."""
    values = plain(shared_broker)
    prefix = values["mqtt"]["topic_prefix"]
    with peer_thread(shared_broker, prefix, lambda *_: os.kill(os.getpid(), signal.SIGTERM)) as peer:
        done = invoke("run", "-c", write(tmp_path, values))
        peer.wait_for_blocking(lambda: peer.payloads(f"{prefix}/bridge/availability")[-1] == b"offline")

    assert done.exit_code == 0
    assert done.stdout == ""
    assert "secret-guid" not in done.stderr


def test_run_restarts_as_the_same_command(
    tmp_path: Path, shared_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request for a restart starts the very same command again, in the same process (C9, D7)."""
    values = plain(shared_broker)
    again: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: again.append((program, arguments)))

    def request(peer: Peer, topic: Callable[[str], str]) -> None:
        asyncio.run(peer.publish(topic("bridge/request/restart"), b""))

    with peer_thread(shared_broker, values["mqtt"]["topic_prefix"], request):
        done = invoke("run", "-c", write(tmp_path, values))

    assert again == [(sys.executable, sys.orig_argv)]
    assert done.exit_code == 0


@contextlib.asynccontextmanager
async def adapter_process(broker: Broker, path: Path, prefix: str) -> AsyncIterator[tuple[Any, Peer]]:
    """Run the adapter as a process, and wait until it is online."""
    with Peer(broker, [f"{prefix}/#"]) as peer:
        async with program("run", "-c", path) as adapter:
            await peer.wait_for(lambda: b"online" in peer.payloads(f"{prefix}/bridge/availability"))
            yield adapter, peer


async def test_run_as_a_process(tmp_path: Path, simulator: Simulator, shared_broker: Broker) -> None:
    """SIGHUP reloads, a request restarts it afresh with the same pid, SIGTERM ends it with 0; nothing on stdout."""
    prefix = "cli-process"
    values = settings(simulator, shared_broker, instance=prefix, mqtt={"topic_prefix": prefix})
    everybody = values["agents"]
    path = write(tmp_path, values | {"agents": everybody[:1]})
    async with adapter_process(shared_broker, path, prefix) as (adapter, peer):
        await simulator.wait_for(lambda: simulator.polling("101"))
        first = await wait_for(peer, f"{prefix}/bridge/info", lambda info: info["agents"]["configured"] == 1)

        write(tmp_path, values)
        adapter.send(signal.SIGHUP)
        await wait_for(peer, f"{prefix}/bridge/info", lambda info: info["agents"]["configured"] == 2)
        await simulator.wait_for(lambda: simulator.polling("102"))

        path.write_text("agents: [")
        adapter.send(signal.SIGHUP)
        await adapter.line(lambda line: "reload: " in line and "config.yaml" in line)
        write(tmp_path, values)

        await peer.publish(f"{prefix}/bridge/request/restart", b'{"id": "r1"}')
        again = await wait_for(peer, f"{prefix}/bridge/info", lambda info: info["startedAt"] > first["startedAt"])
        assert again["agents"]["configured"] == 2
        assert psutil.Process(adapter.process.pid).is_running()

        in_use = await run_program("run", "-c", path)
        assert in_use.process.returncode == 3
        assert in_use.err == [
            f"{tmp_path}/ccgateway2mqtt.db: in use by another process; each adapter needs a storage.path of its own"
        ]
        assert (await run_program("health", "-c", path)).process.returncode == 0

        adapter.send(signal.SIGTERM)
        assert await adapter.ended() == 0
        assert adapter.out == []
        assert not any("Traceback" in line for line in adapter.err)
        assert peer.payloads(f"{prefix}/bridge/availability")[-1] == b"offline"


def test_a_refused_log_in_at_start_is_exit_1(tmp_path: Path, users: Broker) -> None:
    """A broker that refuses the first log-in ends it at once, without the password."""
    done = invoke("run", "-c", write(tmp_path, plain(users, mqtt={"username": "adapter", "password": "guessed"})))

    assert "broker: log-in refused" in done.stderr.splitlines()[-1]
    assert "guessed" not in done.stderr
    assert done.exit_code == 1


def test_an_http_port_in_use_is_exit_1(tmp_path: Path, shared_broker: Broker) -> None:
    """A listener's port in use ends it at once."""
    with socket.create_server((HOST, 0)) as taken:
        address = f"{HOST}:{taken.getsockname()[1]}"
        done = invoke("run", "-c", write(tmp_path, plain(shared_broker, http={"listen": address})))

    assert address in done.stderr.splitlines()[-1]
    assert done.exit_code == 1


async def test_another_instance_under_the_prefix_is_exit_2(
    tmp_path: Path, simulator: Simulator, shared_broker: Broker
) -> None:
    """A second adapter with a storage of its own, under a prefix in use, is refused before it polls."""
    made = settings(simulator, shared_broker, instance="cli-first", mqtt={"topic_prefix": "cli-twice"})
    with Peer(shared_broker, ["cli-twice/#"]) as peer:
        async with running(write(tmp_path, made)):
            await wait_for(peer, "cli-twice/bridge/health", lambda payload: payload["at"])
            other = made | {"instance": "cli-second", "storage": {"path": "other.db"}}
            second = await run_program("run", "-c", write(tmp_path, other, "other.yaml"))

    assert second.process.returncode == 2
    assert "another instance is live" in second.err[-1]


def test_storage_that_cannot_be_opened_is_exit_1(tmp_path: Path, shared_broker: Broker) -> None:
    """A storage path that cannot be a file is one line, exit 1."""
    (tmp_path / "taken").mkdir()
    done = invoke("run", "-c", write(tmp_path, plain(shared_broker, storage={"path": "taken"})))

    assert "taken" in done.stderr.splitlines()[-1]
    assert done.exit_code in (1, 2)
    assert not any("Traceback" in line for line in done.stderr.splitlines())


def test_storage_in_use_is_exit_3(tmp_path: Path) -> None:
    """A second process on the same storage is refused (D5)."""
    lock = Lock(tmp_path / "ccgateway2mqtt.db")
    done = invoke("run", "-c", write(tmp_path, plain()))
    lock.release()

    assert done.stderr.splitlines()[-1].startswith(f"{tmp_path}/ccgateway2mqtt.db: in use by another process")
    assert done.exit_code == 3


def test_an_error_of_the_running_program_is_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operating system's error that nobody turned into one of ours is one line all the same."""

    async def fail(_config: object, **_options: object) -> app.Ending:
        await asyncio.sleep(0)
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr(app, "run", fail)
    done = invoke("run", "-c", write(tmp_path, plain()))

    assert one_line(done) == "[Errno 13] Permission denied: '/somewhere'"
    assert done.exit_code == 1
