"""`ccgateway2mqtt demo`: the main job on one machine with nothing configured.

```
simulator (HTTPS, its own CA) <-> adapter <-> nats-server (MQTT) <-> a line per event here
                                                   | (websocket)
                                                the live page
```

Everything is real but the gateway and its day. All of it lives in a temporary directory and ends together.
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
import tempfile
import time
import webbrowser
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from adapter import app, logs, wall
from adapter.broker import Dialer, Received
from adapter.config import LogConfig, MqttConfig, load
from adapter.errors import BrokerError, StartError
from adapter.nats import NatsServer, run_nats
from adapter.simulator import Day, SimAgent, Simulator, SimulatorError, demo_agents
from adapter.topics import Topics

_BROKER_AWAY_S = 8.0
"""How long the broker stays away when it was stopped: long enough to see it, short enough to wait for."""
_GUID_INTERVAL_S = 30.0
"""How often the simulated gateway renews GUIDs: often enough to happen while somebody looks."""
_USER = "demo"
_HEAD = """\
# yaml-language-server: $schema=https://raw.githubusercontent.com/ccgateway2mqtt/ccgateway2mqtt/main/schemas/config.json
# What `ccgateway2mqtt demo` used. Put in your gateway's url and ca_file, your broker, and your agents' credentials;
# then:  ccgateway2mqtt check -c FILE --online
"""


async def run(*, agents: int, port: int, duration: float | None, no_browser: bool, config_out: Path | None) -> None:
    """Run the demonstration until Ctrl-C, or for `duration` seconds.

    Raises:
        StartError: Something it needs is missing, or `port` is in use.
    """
    logs.set_up(LogConfig(level="warning", format="text"))
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stopping.set)
    profiles = demo_agents(agents)
    password = secrets.token_urlsafe(12)
    try:
        async with contextlib.AsyncExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ccgateway2mqtt-demo-")))
            gateway = Simulator(agents=profiles, signed_in=False, guid_interval_s=_GUID_INTERVAL_S, record=False)
            await stack.enter_async_context(gateway)
            broker = await stack.enter_async_context(run_nats(username=_USER, password=password))
            text = _HEAD + yaml.safe_dump(
                _configuration(gateway, broker, profiles, password), sort_keys=False, allow_unicode=True
            )
            path = directory / "config.yaml"
            path.write_text(text, encoding="utf-8")
            if config_out is not None:
                _write_private(config_out, text)
            settings = wall.Settings(broker=broker.websocket_url, username=_USER, password=password)
            try:
                page = await stack.enter_async_context(wall.serve("127.0.0.1", port, settings))
            except OSError as error:
                raise StartError(f"--port {port}: {error.strerror or error}", exit_code=1) from error
            _introduce(page, broker, config_out)
            if not no_browser and _has_screen():
                await asyncio.to_thread(webbrowser.open, page)
            config = load(path)
            names = {agent.work_no: agent.name or "" for agent in profiles}
            await stack.enter_async_context(
                _tasks(_follow(config.mqtt, names), _keep(broker), Day(gateway, profiles).run())
            )
            with _lines_from_terminal(broker):
                await _adapt(path, stopping, duration)
    except SimulatorError as error:
        raise StartError(str(error), exit_code=1) from error
    click.echo("ended; nothing is left behind", err=True)


async def _adapt(path: Path, stopping: asyncio.Event, duration: float | None) -> None:
    """Run the adapter itself until it is time to end."""
    started: list[app.App] = []
    adapter = asyncio.create_task(app.run(load(path), handle_signals=False, control=started.append), name="adapter")
    waiting = asyncio.create_task(stopping.wait(), name="demo.stopping")
    await asyncio.wait([adapter, waiting], timeout=duration, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for _ in range(2):
        # Twice: the simulated gateway's polls need not be waited for, and Ctrl-C should end at once.
        for one in started:
            one.stop()
    await adapter


def _configuration(
    gateway: Simulator, broker: NatsServer, profiles: Sequence[SimAgent], password: str
) -> dict[str, Any]:
    return {
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


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read: passwords are in it."""
    try:
        with open(path, "w", encoding="utf-8", opener=_private) as file:
            file.write(text)
    except OSError as error:
        raise StartError(f"--config-out {path}: {error.strerror}", exit_code=2) from error


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _introduce(page: str, broker: NatsServer, config_out: Path | None) -> None:
    """Say where to look."""
    click.echo(f"The live page:  {page}")
    click.echo(
        f"The broker:     {broker.mqtt_url} (nats-server, pid {broker.pid}); stop it, or press b and Enter, to see"
    )
    click.echo(f"                events wait in the outbox; it is back after {_BROKER_AWAY_S:g} s")
    if config_out is not None:
        click.echo(f"Configuration:  {config_out}")
    click.echo("Ctrl-C ends it.\n")


def _has_screen() -> bool:
    """Say whether a browser with windows could open: one in this terminal would take it away."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


async def _follow(config: MqttConfig, names: dict[str, str]) -> None:
    """Print a line per event, as any subscriber sees it."""
    topics = Topics(config.topic_prefix)

    def receive(received: Received) -> None:
        work_no = received.topic.split("/")[1]
        event = json.loads(received.payload)
        content = event["content"]
        shown = "" if content is None else json.dumps(content, ensure_ascii=False)
        late = "  (replayed)" if event.get("replayed") else ""
        clock = time.strftime("%H:%M:%S")
        click.echo(f"{clock}  {work_no:>5} {names.get(work_no, ''):<10} {event['eventType']:<34} {shown[:90]}{late}")

    dialer = Dialer(config)
    while True:
        with contextlib.suppress(BrokerError):
            async with dialer.connect(client_id="ccgateway2mqtt-demo-lines", on_message=receive) as connection:
                await connection.subscribe([(topics.events("+"), 0)])
                await connection.lost()
        await asyncio.sleep(0.5)


async def _keep(broker: NatsServer) -> None:
    """Bring the broker back some time after it was stopped, whoever stopped it."""
    while True:
        await asyncio.sleep(0.2)
        if not broker.running:
            click.echo(
                f"\nThe broker is away; it is back in {_BROKER_AWAY_S:g} s. The gateway is polled all the same.\n"
            )
            await asyncio.sleep(_BROKER_AWAY_S)
            await broker.restart()
            click.echo("\nThe broker is back: what waited goes out, in order.\n")


@contextlib.contextmanager
def _lines_from_terminal(broker: NatsServer) -> Iterator[None]:
    """Let `b` and Enter stop the broker, where there is a terminal."""
    loop = asyncio.get_running_loop()
    stops: set[asyncio.Task[None]] = set()

    def read() -> None:
        if sys.stdin.readline().strip().lower() == "b" and broker.running:
            stops.add(loop.create_task(broker.kill()))

    if not sys.stdin.isatty():
        yield
        return
    loop.add_reader(sys.stdin, read)
    try:
        yield
    finally:
        loop.remove_reader(sys.stdin)


@contextlib.asynccontextmanager
async def _tasks(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run works beside the block, and end them with it."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
