"""The clients that are compared: the adapter, and what a user could pick instead (`rivals/`)."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml

from bench.stage import Client, Place
from bench.support import HOST, BenchError, Program, python

BUILD = Path(__file__).parent.parent / "build/rivals"
"""Where `make bench` builds and installs what the rivals need."""

_NODE_RED_FILES = Path(__file__).parent / "rivals/node_red"


def configure(place: Place, agents: int | None = None) -> Path:
    """Write the adapter's configuration with the first so many agents, by default those of the setting."""
    known = place.known(agents)
    config = place.directory / "config.yaml"
    settings = {
        "gateway": {
            "url": place.url,
            "ca_file": place.ca_file,
            "hold": place.setting.hold_s,
            "timeout": 2 * place.setting.hold_s,
        },
        "mqtt": {"url": f"mqtt://{HOST}:{place.port}"},
        "agents": [{"work_no": work_no, "guid": guid} for work_no, guid in known["guids"].items()],
    }
    config.write_text(yaml.dump(settings, Dumper=yaml.CSafeDumper))
    return config


def adapter(place: Place) -> Program:
    """Run the adapter as its users do, with everything that it has by default."""
    return python("adapter", "adapter", ["run", "-c", str(configure(place))], place.directory)


@contextlib.contextmanager
def _told(program: Program, place: Place) -> Iterator[Program]:
    with program:
        program.tell(json.dumps(place.known()))
        yield program


def aiohttp_loop(place: Place) -> contextlib.AbstractContextManager[Program]:
    """Run the bare loop of aiohttp on uvloop."""
    arguments = ["--hold", str(place.setting.hold_s)]
    return _told(python("aiohttp", "bench.rivals.aiohttp_loop", arguments, place.directory), place)


def go_loop(place: Place) -> contextlib.AbstractContextManager[Program]:
    """Run the bare loop of Go's net/http."""
    program = _built(BUILD / "go/poll")
    command = [str(program), "-hold", str(place.setting.hold_s)]
    return _told(Program("go", command, place.directory / "go.log"), place)


def node_red(place: Place) -> Program:
    """Run the Node-RED flow, with the broker."""
    program = _built(BUILD / "node_red/node_modules/node-red/red.js")
    for name in ("flow.json", "settings.js"):
        shutil.copy(_NODE_RED_FILES / name, place.directory)
    gateway = place.directory / "gateway.json"
    gateway.write_text(json.dumps(place.known()))
    environment = {
        "GATEWAY_FILE": str(gateway),
        "HOLD_MS": str(round(place.setting.hold_s * 1000)),
        "CA_FILE": place.ca_file,
        "BROKER_PORT": str(place.port),
    }
    command = ["node", str(program), "--userDir", str(place.directory)]
    return Program("node-red", command, place.directory / "node-red.log", environment)


def _built(path: Path) -> Path:
    if not path.exists():
        raise BenchError(f"{path} is not there: `make bench` builds it")
    return path


OURS = "ccgateway2mqtt"
AIOHTTP = "aiohttp on uvloop"
GO = "Go net/http"
NODE_RED = "Node-RED"

CLIENTS: dict[str, Client] = {OURS: adapter, AIOHTTP: aiohttp_loop, GO: go_loop, NODE_RED: node_red}
"""By the names that tables show."""
