"""The demonstration as whoever tries the program sees it: what it says, and that nothing of it stays."""

import asyncio
import contextlib
import fcntl
import gc
import json
import os
import re
import signal
import socket
import stat
import sys
import termios
import time
import webbrowser
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from adapter import app, demo
from adapter.demo_lines import Lines, describe
from adapter.errors import BrokerError, StartError
from adapter.nats import NatsServer, run_nats
from adapter.simulator import Day
from tests.adapter_support import HOLD_S, running, wait_for
from tests.broker_support import HOST, Broker, Peer
from tests.cli_support import COMMAND, Program, invoke, invoke_beside, program, reading, run_program, told_soon
from tests.wall_support import until

EVENT = re.compile(r"\d\d:\d\d:\d\d +(\d+) (\S+) +(Agent\w+)")
ENDED = "Ended; nothing is left behind."


class Shown:
    """What a running demo has said of itself."""

    def __init__(self, page: str, broker_port: int, broker_pid: int, config: Path) -> None:
        self.page = page
        self.port = broker_port
        self.pid = broker_pid
        self.config = config

    async def settings(self) -> dict[str, Any]:
        """Fetch what the page knows; the page itself is there as well."""
        async with httpx.AsyncClient() as client:
            assert "<title>" in (await client.get(self.page)).text
            told: dict[str, Any] = (await client.get(f"{self.page}settings.json")).json()
        return told

    async def broker(self) -> Broker:
        """Give the embedded broker as tests know brokers, with the log-in that the page is told."""
        told = await self.settings()
        here = self.config.parent
        return Broker(
            name="nats", command=[], ports={"mqtt": self.port}, directory=here, data=here,
            username=told["username"], password=told["password"],
        )  # fmt: skip


async def introduced(show: Program) -> Shown:
    """Wait until the demo has introduced itself."""
    await show.line(lambda line: "Ctrl-C ends it all." in line)
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(show.out))
    page = re.search(r"^The live page +(http://127\.0\.0\.1:\d+/)", text, re.MULTILINE)
    broker = re.search(r"^The broker +mqtt://127\.0\.0\.1:(\d+) \(nats-server, pid (\d+)\)", text, re.MULTILINE)
    config = re.search(r"^In a terminal +ccgateway2mqtt watch -c (\S+)", text, re.MULTILINE)
    assert page, text
    assert broker, text
    assert config, text
    return Shown(page[1], int(broker[1]), int(broker[2]), Path(config[1]))


@pytest.fixture
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the demo's temporary directories below one of the test's, and name that."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    return directory


async def gone(shown: Shown, temporary: Path) -> None:
    """See that neither the broker's process nor a directory is left."""
    assert not psutil.pid_exists(shown.pid)
    assert await asyncio.to_thread(os.listdir, temporary) == []


async def test_a_short_demo(nothing_left: Path, tmp_path: Path) -> None:
    """It says where the page is, serves it, prints a line per event, and ends after its duration with exit 0."""
    config = tmp_path / "out.yaml"
    began = time.monotonic()
    arguments = ("--duration", "5", "--no-browser", "--agents", "4", "--config-out", config)
    async with program("demo", *arguments) as show:
        shown = await introduced(show)
        told = await shown.settings()
        assert told["broker"].startswith("ws://127.0.0.1:")
        assert await show.ended() == 0
    assert time.monotonic() - began < 12
    lines = show.out[show.out.index("") + 1 :]
    events = [EVENT.match(line) for line in lines]
    assert all(events[:-1])
    assert {"101", "102"} <= {match[1] for match in events if match} <= {"101", "102", "103", "104"}
    assert any(match and match[3] == "AgentState_Ready" and match[2] == "Amina" for match in events)
    assert lines[-1] == ENDED
    assert max(map(len, lines)) <= 100
    assert show.err == []
    await gone(shown, nothing_left)


@pytest.mark.parametrize(
    ("number", "broker"),
    [
        (signal.SIGINT, "running"),
        (signal.SIGINT, "stopped"),
        (signal.SIGINT, "frozen"),
        (signal.SIGTERM, "running"),
        (signal.SIGHUP, "stopped"),
    ],
)
async def test_it_ends_soon_and_whole(nothing_left: Path, number: signal.Signals, broker: str) -> None:
    """Ctrl-C, SIGTERM and the terminal's end end it within 3 s, however the broker is; nothing is left."""
    async with program("demo", "--no-browser", "--agents", "2") as show:
        shown = await introduced(show)
        await show.line(lambda line: "AgentState_Ready" in line)
        if broker == "stopped":
            os.kill(shown.pid, signal.SIGTERM)
            await show.line(lambda line: "The broker is away" in line)
        elif broker == "frozen":
            os.kill(shown.pid, signal.SIGSTOP)
        began = time.monotonic()
        show.send(number)
        show.send(number)  # told twice, it cleans up all the same
        assert await show.ended() == 0
        assert time.monotonic() - began < 3
    assert show.out[-1] == ENDED
    assert show.err == []
    await gone(shown, nothing_left)


async def test_it_ends_while_it_still_starts(nothing_left: Path) -> None:
    """Ctrl-C is heeded before everything is up."""
    async with program("demo", "--no-browser") as show:
        await until(lambda: list(nothing_left.iterdir()))
        show.send(signal.SIGINT)
        assert await show.ended() == 0
    assert not any("Traceback" in line for line in show.err)
    assert await asyncio.to_thread(os.listdir, nothing_left) == []


async def test_a_terminal_that_is_gone(nothing_left: Path) -> None:
    """When its lines can be written no more, it ends as if told to."""
    read_end, write_end = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "demo", "--no-browser", "--agents", "2",
        stdin=asyncio.subprocess.DEVNULL, stdout=write_end, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    os.close(write_end)
    async with reading(process) as show:
        assert b"live page" in await asyncio.to_thread(os.read, read_end, 1000)
        os.close(read_end)
        assert await show.ended() in (0, 1)
    assert show.err == []
    assert await asyncio.to_thread(os.listdir, nothing_left) == []


async def test_the_broker_comes_back_with_what_waited(nothing_left: Path) -> None:
    """Stopped by its pid, the broker is back after 8 s; the backlog goes out in order, and health tells of it."""
    async with program("demo", "--no-browser", "--agents", "6") as show:
        shown = await introduced(show)
        with Peer(await shown.broker(), ["agents/+/events", "agents/bridge/health"]) as page:
            await show.line(lambda line: "AgentEvent_Talking" in line)
            os.kill(shown.pid, signal.SIGTERM)
            stopped = time.monotonic()
            await show.line(lambda line: "The broker is away, and is back in 8 s." in line)
            back = await show.line(lambda line: "The broker is back" in line)
            assert 7.5 < time.monotonic() - stopped < 14
            backlog = await wait_for(page, "agents/bridge/health", lambda health: health["outbox"]["depth"] > 0)
            assert backlog["outbox"]["oldestSeconds"] > 1
            drained = await wait_for(
                page,
                "agents/bridge/health",
                # What has waited is out; what has come since may be on its way.
                lambda health: (
                    health["outbox"]["oldestSeconds"] < backlog["outbox"]["oldestSeconds"]
                    and health["at"] > backlog["at"]
                ),
            )
            assert drained["publishes"] > backlog["publishes"]
            by_agent: dict[str, list[int]] = {}
            for message in page.messages:
                if message.topic.endswith("/events"):
                    event = json.loads(message.payload)
                    by_agent.setdefault(event["workNo"], []).append(event["seq"])
            assert len(by_agent) > 3
            for numbers in by_agent.values():
                # Each at least once, in order; one whose PUBACK was cut off is repeated.
                assert sorted(set(numbers)) == list(range(numbers[0], numbers[-1] + 1))
                assert numbers == sorted(numbers)
        show.send(signal.SIGINT)
        assert await show.ended() == 0
    pid = re.search(r"pid (\d+)", back)
    assert pid is not None
    assert not psutil.pid_exists(int(pid[1]))
    await gone(shown, nothing_left)


def test_a_port_in_use_is_exit_1(nothing_left: Path) -> None:
    """The page's port in use is one line, and what had been started is gone."""
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        done = invoke("demo", "--no-browser", "--port", str(port))
    assert re.fullmatch(rf"--port {port}: .*in use.*\n", done.stderr)
    assert (done.stdout, done.exit_code) == ("", 1)
    assert list(nothing_left.iterdir()) == []


def test_without_the_simulators_package(nothing_left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the simulator lacks is one line, and nothing is left."""
    monkeypatch.setitem(sys.modules, "trustme", None)
    done = invoke("demo", "--no-browser")
    assert "pip install 'ccgateway2mqtt[demo]'" in done.stderr
    assert (done.stdout, done.exit_code) == ("", 1)
    assert list(nothing_left.iterdir()) == []


async def test_the_configuration_it_writes_is_a_starting_point(tmp_path: Path, broker: Broker) -> None:
    """Edited in URL, CA and credentials alone, it passes `check --online` and runs against `simulate` elsewhere."""
    config = tmp_path / "config.yaml"
    config.write_text("of somebody who left it open")
    config.chmod(0o644)
    show = await run_program("demo", "--no-browser", "--duration", "1", "--agents", "3", "--config-out", config)
    assert show.process.returncode == 0
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    text = config.read_text()
    schema = re.search(r"^# yaml-language-server: \$schema=(.*)$", text, re.MULTILINE)
    assert schema is not None
    assert json.loads(await asyncio.to_thread(Path(schema[1]).read_text))["$schema"]

    async with program("simulate", "--agents", "3", "--hold", str(HOLD_S)) as simulate:
        ready = json.loads(await simulate.line(lambda line: line.startswith("{")))
        values = yaml.safe_load(text)
        values["gateway"] |= {"url": ready["url"], "ca_file": ready["ca_file"]}
        values["mqtt"] = {"url": broker.url()}
        for mine, theirs in zip(values["agents"], ready["agents"], strict=True):
            assert mine["work_no"] == theirs["workNo"]
            mine["sign_in"] |= {"password": theirs["password"], "phone": theirs["phone"]}
        config.write_text(yaml.safe_dump(values, sort_keys=False))
        checked = await invoke_beside("check", "-c", config, "--online")
        assert checked.exit_code == 0, checked.stderr
        with Peer(broker) as peer:
            async with running(config):
                event = await wait_for(peer, "agents/101/event", lambda payload: payload["eventType"])
                assert event["workNo"] == "101"


@pytest.mark.parametrize(
    ("config_out", "said"), [("missing/out.yaml", "No such file or directory"), (".", "is a directory")]
)
def test_a_configuration_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config_out: str, said: str
) -> None:
    """It is said on a line, with exit 2, and nothing goes on."""
    monkeypatch.chdir(tmp_path)
    done = invoke("demo", "--no-browser", "--config-out", config_out)

    assert said in done.stderr.splitlines()[-1]
    assert (len(done.stderr.splitlines()), done.stdout, done.exit_code) == (1, "", 2)


# In a terminal.

CONTROLLING = (
    "import os,sys,fcntl,termios;os.setsid();fcntl.ioctl(0,termios.TIOCSCTTY,0);os.execv(sys.argv[1],sys.argv[1:])"
)


@contextlib.asynccontextmanager
async def in_a_terminal(*arguments: str) -> AsyncIterator[tuple[Program, int]]:
    """Run the demo on a terminal of its own; give it, and the terminal's other end to type at."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, b"\x28\x00\x64\x00\x00\x00\x00\x00")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CONTROLLING, *COMMAND, "demo", "--no-browser", *arguments,
        stdin=theirs, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    os.close(theirs)
    try:
        async with reading(process) as show:
            yield show, ours
    finally:
        with contextlib.suppress(OSError):
            os.close(ours)


async def test_a_key_stops_the_broker(nothing_left: Path) -> None:
    """`b` and Enter stop the broker; another key does nothing, and the end of the terminal ends it all."""
    async with in_a_terminal("--agents", "2") as (show, keys):
        shown = await introduced(show)
        os.write(keys, b"x\nb\n")
        await show.line(lambda line: "The broker is away" in line)
        os.close(keys)  # the kernel sends SIGHUP
        assert await show.ended() == 0
    await gone(shown, nothing_left)


@pytest.mark.parametrize("end", ["hang up", "background", "another's"])
async def test_keys_of_a_terminal_that_is_not_ours(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """A terminal that goes away, rules another process, or has another in front, is not read again and again."""
    ours, theirs = os.openpty()
    mine, loop = os.getpgrp(), asyncio.get_running_loop()
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        if end != "another's":
            monkeypatch.setattr(os, "tcgetpgrp", lambda _: mine if end == "hang up" else mine + 1)
        read, removed = list[int](), list[int]()
        kept, remove = os.read, loop.remove_reader

        def noted_read(descriptor: int, size: int) -> bytes:
            read.append(descriptor)
            return kept(descriptor, size)

        def noted_remove(descriptor: int) -> bool:
            removed.append(descriptor)
            return remove(descriptor)

        monkeypatch.setattr(os, "read", noted_read)
        monkeypatch.setattr(loop, "remove_reader", noted_remove)
        with demo._keys(NatsServer(Path(), username=None, password=None)):
            os.write(ours, b"\x04" if end == "hang up" else b"b\n")
            await until(lambda: theirs in removed)
        os.close(ours)
    assert (theirs in read) == (end == "hang up")


async def test_keys_stop_the_broker_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """`b` and Enter end the broker's process; anything else is no key."""
    ours, theirs = os.openpty()
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp())
        async with run_nats() as broker:
            with demo._keys(broker):
                os.write(ours, b"x\n")
                os.write(ours, b"B \n")
                await until(lambda: not broker.running)
                os.write(ours, b"b\n")
        os.close(ours)


def test_nobody_who_reads_ends_it() -> None:
    """A line that cannot be written says so to whoever can end the demo."""
    ended: list[bool] = []
    with Path("/dev/full").open("w") as full, contextlib.redirect_stdout(full):
        Lines({}, lambda: ended.append(True)).say("x" * 10_000)
        with contextlib.suppress(OSError):
            full.close()
    assert ended == [True]


# In this process: the parts of it, and how it ends when one of them fails.


def options(**members: Any) -> demo.Options:  # noqa: ANN401 - members by name
    """Make the options of a short demo."""
    made = {"agents": 3, "port": 0, "duration": 2.0, "no_browser": True, "config_out": None}
    return demo.Options(**(made | members))


def test_it_runs_in_this_process(
    capsys: pytest.CaptureFixture[str], nothing_left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a screen the page is opened in a browser; the broker goes and comes; SIGTERM ends it."""
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(demo, "_BROKER_AWAY_S", 0.2)
    monkeypatch.setenv("DISPLAY", ":0")
    output: list[str] = []

    def lasting() -> bool:
        output.append(capsys.readouterr().out)
        text = "".join(output)
        if (pid := re.search(r"pid (\d+)", text)) and "AgentOther_InService" in text and "is away" not in text:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid[1]), signal.SIGTERM)
        return "The broker is back" in text and text.count("InService") > 1

    teller = told_soon(signal.SIGTERM, lasting)
    asyncio.run(demo.run(options(duration=None, no_browser=False, config_out=nothing_left.parent / "out.yaml")))
    teller.join()
    gc.collect()

    page = re.search(r"The live page +(\S+)", re.sub(r"\x1b\[[0-9;]*m", "", "".join(output)))
    assert page is not None
    assert opened == [page[1]]
    assert f"Configuration   {nothing_left.parent / 'out.yaml'}" in "".join(output)
    assert capsys.readouterr().out.endswith(f"{ENDED}\n")
    assert list(nothing_left.iterdir()) == []


async def idles(*_args: object, **_kwargs: object) -> app.Ending:
    """Stand in for an adapter: one that is cut off while it connects leaves sockets to the garbage collector."""
    await asyncio.Event().wait()
    return "stopped"


async def fails() -> None:
    """Fail as a part of the demo may."""
    await asyncio.sleep(0)
    raise BrokerError("out of order")


@pytest.mark.parametrize("part", ["adapter", "lines", "broker", "day"])
def test_a_part_that_fails_ends_it(nothing_left: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Whichever part fails, the demo ends with what it said, and cleans up."""
    where, name = {
        "adapter": (app, "run"),
        "lines": (demo, "_follow"),
        "broker": (demo, "_keep"),
        "day": (Day, "run"),
    }[part]
    monkeypatch.setattr(app, "run", idles)
    monkeypatch.setattr(where, name, lambda *_args, **_kwargs: fails())

    done = invoke("demo", "--no-browser")

    assert done.stderr == "out of order\n"
    assert done.exit_code == 1
    assert ENDED not in done.stdout
    assert list(nothing_left.iterdir()) == []


def test_a_broker_that_cannot_come_back_ends_it(nothing_left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the broker does not start again, that is said, and the demo ends."""
    monkeypatch.setattr(demo, "_BROKER_AWAY_S", 0.1)
    monkeypatch.setattr(app, "run", idles)

    async def refuse(_server: object) -> None:
        await asyncio.sleep(0)
        raise StartError("nats-server did not start: it said nothing", exit_code=1)

    monkeypatch.setattr(NatsServer, "restart", refuse)
    follow = demo._follow

    async def stop_then_follow(*arguments: Any) -> None:  # noqa: ANN401 - as it is
        for child in psutil.Process().children():
            if child.name() == "nats-server":  # brokers of other tests are children of this process too
                child.terminate()
        await follow(*arguments)

    monkeypatch.setattr(demo, "_follow", stop_then_follow)

    done = invoke("demo", "--no-browser")

    assert done.stderr == "nats-server did not start: it said nothing\n"
    assert done.exit_code == 1
    assert list(nothing_left.iterdir()) == []


def test_a_restart_that_is_asked_for(monkeypatch: pytest.MonkeyPatch, nothing_left: Path) -> None:
    """A request for a restart starts the adapter afresh."""
    endings: list[app.Ending] = ["restart", "restart", "stopped"]
    runs: list[str] = []

    async def end(*_args: object, **_kwargs: object) -> app.Ending:
        await asyncio.sleep(0)
        runs.append("run")
        return endings[len(runs) - 1]

    monkeypatch.setattr(app, "run", end)
    asyncio.run(demo.run(options(duration=None)))

    assert len(runs) == 3
    assert list(nothing_left.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, ""),
        ("1456403549-15", "1456403549-15"),
        ({"caller": "4711", "called": "8101", "feature": 0}, "4711 → 8101"),
        ({"caller": "", "called": "8101"}, "8101"),
        ({"reason": "200", "more": {}, "empty": ""}, "reason 200"),
        ({}, ""),
    ],
)
def test_contents_in_few_words(content: object, said: str) -> None:
    """An event's content is told so that a person sees what it is about."""
    assert describe(content) == said
