"""`ccgateway2mqtt demo`: the main job on one machine with nothing configured.

```
simulator (HTTPS, its own CA) <-> adapter <-> nats-server (MQTT) <-> a line per event here
                                                   | (websocket)
                                                the live page
```

Everything is real but the gateway and its day. Rules of this file:
1. All of it lives in temporary directories and ends together, whatever ends it.
2. Should one part fail, all of it ends and says why: a demonstration that hangs shows nothing.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from adapter import app, wall
from adapter.config import MqttConfig, load
from adapter.contracts import directory as schemas
from adapter.demo_lines import Lines
from adapter.errors import BrokerConnectionError, StartError
from adapter.mqtt import Dialer
from adapter.nats import NatsServer, find_program, run_nats
from adapter.simulator import Day, SimAgent, Simulator, SimulatorError, demo_agents
from adapter.topics import Topics

_BROKER_AWAY_S = 8.0
"""How long the broker stays away when it was stopped: long enough to see it, short enough to wait for."""
_GUID_INTERVAL_S = 30.0
"""How often the simulated gateway renews GUIDs: often enough to happen while somebody looks."""
_LOOK_S = 0.2
_AGAIN_S = 0.1
"""Soon, to be back before the adapter: events on the stream are not retained."""
_USER = "demo"
_HEAD = """\
# yaml-language-server: $schema={schema}
# What `ccgateway2mqtt demo` used. Put in your gateway's url and ca_file, your broker's url, username and password,
# and your agents' credentials; then:  ccgateway2mqtt check -c FILE --online
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of the command.

    Attributes:
        agents: How many agents there are.
        port: The page's port; 0 for any that is free.
        duration: Seconds from when everything runs; `None` for ever.
        no_browser: Whether the page is not opened.
        config_out: Where to write the configuration that it uses; `None` for nowhere.
    """

    agents: int
    port: int
    duration: float | None
    no_browser: bool
    config_out: Path | None


async def run(options: Options) -> None:
    """Run the demonstration until its duration is over, or until Ctrl-C, SIGTERM or the terminal's end.

    Raises:
        AdapterError: Something it needs is missing, the port is in use, or a part of it failed.
    """
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    profiles = demo_agents(options.agents)
    lines = Lines({agent.work_no: agent.name or "" for agent in profiles}, told.set)
    with lines.logged():
        # Told to end while it still starts, it ends then too; told twice, it is not disturbed in cleaning up.
        show = asyncio.create_task(_show(options, profiles, lines), name="demo")
        waiting = asyncio.create_task(told.wait(), name="demo.told")
        await asyncio.wait([show, waiting], return_when=asyncio.FIRST_COMPLETED)
        for task in (waiting, show):
            task.cancel()
        await asyncio.wait([waiting, show])
    if not show.cancelled():
        show.result()
    lines.say("Ended; nothing is left behind.")


async def _show(options: Options, profiles: Sequence[SimAgent], lines: Lines) -> None:
    """Start everything, and keep it up until it is cancelled, its duration is over, or a part of it fails."""
    find_program()  # what is missing is said before anything starts
    password = secrets.token_urlsafe(12)
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ccgateway2mqtt-demo-")))
        gateway = Simulator(agents=profiles, signed_in=False, guid_interval_s=_GUID_INTERVAL_S, record=False)
        try:
            await stack.enter_async_context(gateway)
        except SimulatorError as error:
            raise StartError(str(error), exit_code=1) from error
        broker = await stack.enter_async_context(run_nats(username=_USER, password=password))
        # At once rather than in good order: nothing of its store is wanted again.
        stack.push_async_callback(broker.kill)
        text = _configuration(gateway, broker, profiles, password)
        path = directory / "config.yaml"
        _write_private(path, text)
        if options.config_out is not None:
            _write_private(options.config_out, text)
        settings = wall.Settings(broker=broker.websocket_url, username=_USER, password=password)
        try:
            page = await stack.enter_async_context(wall.serve("127.0.0.1", options.port, settings))
        except OSError as error:
            raise StartError(f"--port {options.port}: {error.strerror or error}", exit_code=1) from error
        config = load(path)
        lines.introduce(page, broker, path, options.config_out)
        if not options.no_browser and _has_screen():
            # Nobody waits for it: a browser can take its time, and Ctrl-C should not.
            threading.Thread(target=webbrowser.open, args=(page,), name="browser", daemon=True).start()
        stack.enter_context(_keys(broker))
        works = (_adapt(path), _follow(config.mqtt, lines), _keep(broker, lines), Day(gateway, profiles).run())
        await _together(works, options.duration)


async def _together(works: Sequence[Coroutine[Any, Any, None]], duration: float | None) -> None:
    """Run works until the first of them ends or `duration` seconds are over; then end all, and raise what ended one."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, timeout=duration, return_when=asyncio.FIRST_COMPLETED)
    finally:
        done = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in done:
        task.result()


async def _adapt(path: Path) -> None:
    """Run the adapter itself; asked to restart, it starts afresh."""
    while await app.run(load(path), handle_signals=False) == "restart":
        pass


def _configuration(gateway: Simulator, broker: NatsServer, profiles: Sequence[SimAgent], password: str) -> str:
    """Write down as YAML what the adapter of this demonstration uses."""
    sections = {
        "gateway": {"url": gateway.url, "ca_file": str(gateway.ca_file)},
        "mqtt": {"url": broker.mqtt_url, "username": _USER, "password": password},
        "agents": [
            {
                "work_no": agent.work_no,
                "name": agent.name,
                "group": agent.group,
                "sign_in": {
                    "password": agent.password or f"pw-{agent.work_no}",
                    "phone": agent.phone or f"8{agent.work_no}",
                    # By force where the agent is signed in elsewhere, and again after each sign-out.
                    "force": True,
                    "again": True,
                },
            }
            for agent in profiles
        ],
    }
    # The schema that this very program came with: there is no other address of it that is right for certain.
    head = _HEAD.format(schema=schemas() / "config.json")
    return head + yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read: passwords are in it."""
    try:
        with open(path, "w", encoding="utf-8", opener=_private) as file:
            os.fchmod(file.fileno(), 0o600)  # also one that was there before
            file.write(text)
    except OSError as error:
        raise StartError(f"--config-out {path}: {error.strerror}", exit_code=2) from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _has_screen() -> bool:
    """Say whether a browser with windows could open: one in this terminal would take it away."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


async def _follow(config: MqttConfig, lines: Lines) -> None:
    """Print a line per event, as any subscriber sees it."""
    topics = Topics(config.topic_prefix)
    dialer = Dialer(config)
    while True:
        with contextlib.suppress(BrokerConnectionError):
            async with dialer.connect(client_id="ccgateway2mqtt-demo-lines", on_message=lines.receive) as connection:
                await connection.subscribe([(topics.events("+"), 0)])
                await connection.lost()
        await asyncio.sleep(_AGAIN_S)


async def _keep(broker: NatsServer, lines: Lines) -> None:
    """Bring the broker back some time after it was stopped, whoever stopped it."""
    while True:
        await asyncio.sleep(_LOOK_S)
        if not broker.running:
            lines.notice(
                f"The broker is away, and is back in {_BROKER_AWAY_S:g} s. Polling goes on; events wait for it."
            )
            await asyncio.sleep(_BROKER_AWAY_S)
            await broker.restart()
            lines.notice(f"The broker is back (pid {broker.pid}). The adapter finds it soon, and sends what waited.")


@contextlib.contextmanager
def _keys(broker: NatsServer) -> Iterator[None]:
    """Let `b` and Enter stop the broker, where there is a terminal."""
    if sys.stdin is None or not sys.stdin.isatty():
        yield
        return
    loop, terminal = asyncio.get_running_loop(), sys.stdin.fileno()
    stops: set[asyncio.Task[None]] = set()

    def read() -> None:
        try:
            # In the background the keys are somebody else's, and reading them would stop this process.
            typed = os.read(terminal, 1024) if os.getpgrp() == os.tcgetpgrp(terminal) else b""
        except OSError:  # not the terminal that rules this process, or one that has gone away
            typed = b""
        if not typed:
            loop.remove_reader(terminal)
        elif typed.strip().lower() == b"b" and broker.running:
            stops.add(loop.create_task(broker.kill(), name="demo.stop-broker"))

    loop.add_reader(terminal, read)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
