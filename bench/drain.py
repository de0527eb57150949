"""A backlog: how long until the broker has 100,000 waiting events, and how long paho alone takes for the same.

```
database with events (made by the program's own outbox)  ->  ccgateway2mqtt run   -MQTT->  mosquitto
                     the same messages, in memory        ->  bench.bare_paho      -MQTT->  mosquitto
```

Each box is a process. They alternate, each time with a new broker and a new copy of the database; the window is from
CONNACK to when the last event is off the disk, and for paho to its last PUBACK.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from adapter.answer import parse_answer
from adapter.event import new_id, render_event
from adapter.simulator import SAMPLES, sample
from adapter.simulator.agent import SHUTDOWN
from adapter.store.outbox import open_outbox
from adapter.store.records import Change, Outgoing
from adapter.topics import Topics
from bench.support import HOST, BenchError, end_by_signal, mosquitto, python, table, wait_until

_TOPICS = Topics("agents")
_AGENTS = 200
_AT_ONCE = 1000
_START_S = 60.0
_END_S = 300.0
_LEFT = "SELECT EXISTS (SELECT 1 FROM entry)"

_WINDOW = 100
"""paho's `max_inflight_messages` with which it was quickest of 20, 100, 200, 500 and 1,000: it searches its window at
each PUBACK, so that more is slower."""
_DEFAULT_WINDOW = 20
"""That of paho itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """One backlog that was sent.

    Attributes:
        seconds: From CONNACK to the end.
        cpu_s: What the sender used meanwhile.
    """

    seconds: float
    cpu_s: float


async def _seed(path: Path, events: int) -> None:
    types = [event_type for event_type in SAMPLES if event_type != SHUTDOWN]
    work_nos = [str(101 + place) for place in range(_AGENTS)]
    turns = zip(range(events), cycle(work_nos), cycle(types), strict=False)
    change = Change()
    async with open_outbox(path, 1024) as outbox:
        for number, work_no, event_type in turns:
            answer = {"retcode": "0", "event": sample(event_type, work_no, ...)}
            (event,) = parse_answer(json.dumps(answer).encode()).events
            payload = render_event(event, event_id=new_id(), seq=number // _AGENTS + 1, received_at=datetime.now(UTC))
            topic, stream_topic = _TOPICS.event(work_no), _TOPICS.events(work_no)
            change.outgoing.append(Outgoing(topic=topic, payload=payload, retain=True, stream_topic=stream_topic))
            if len(change.outgoing) == _AT_ONCE:
                await outbox.commit(change)
                change = Change()
        await outbox.commit(change)


def seed(path: Path, events: int) -> None:
    """Have the program's own outbox store events of 200 agents that wait for the broker."""
    asyncio.run(_seed(path, events))


def _copy(seeded: Path, directory: Path) -> Path:
    """Copy the database and see it onto the disk: what the copy left to be written is not the sender's."""
    path = directory / "outbox.db"
    shutil.copyfile(seeded, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


@contextlib.contextmanager
def _online(port: int) -> Iterator[threading.Event]:
    """Watch for the adapter's `online`, which it says right before it begins to send."""
    seen, subscribed = threading.Event(), threading.Event()
    client = Client(CallbackAPIVersion.VERSION2, "bench")
    client.on_message = lambda *_: seen.set()
    client.on_subscribe = lambda *_: subscribed.set()
    client.connect(HOST, port)
    client.loop_start()
    client.subscribe(_TOPICS.bridge("availability"), qos=1)
    if not subscribed.wait(_START_S):
        raise BenchError("cannot subscribe")
    try:
        yield seen
    finally:
        client.disconnect()
        client.loop_stop()


def ours(seeded: Path) -> Drain:
    """Start the adapter on a copy of a database, and wait until it is empty."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        path = _copy(seeded, directory)
        port = stack.enter_context(mosquitto(directory))
        arguments = ["--agents", "1", "--hold", "10", "--events-per-second", "0", "--directory", str(directory)]
        gateway = stack.enter_context(python("gateway", "bench.gateway", arguments, directory)).hear()
        config = directory / "config.yaml"
        settings: dict[str, Any] = {
            "gateway": {"url": gateway["url"], "ca_file": gateway["ca_file"]},
            "mqtt": {"url": f"mqtt://{HOST}:{port}"},
            "storage": {"path": str(path)},
            "agents": [{"work_no": work_no, "guid": guid} for work_no, guid in gateway["guids"].items()],
        }
        config.write_text(yaml.safe_dump(settings))
        online = stack.enter_context(_online(port))
        program = stack.enter_context(python("adapter", "adapter", ["run", "-c", str(config)], directory))
        if not online.wait(_START_S):
            program.check()
            raise BenchError("the adapter does not connect")
        began_at, before = time.monotonic(), program.usage()
        looker = stack.enter_context(contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)))
        wait_until(lambda: not looker.execute(_LEFT).fetchone()[0], _END_S, "the end of the backlog")
        seconds = time.monotonic() - began_at
        return Drain(seconds=seconds, cpu_s=program.usage().cpu_s - before.cpu_s)


def bare_paho(seeded: Path, in_flight: int = _WINDOW) -> Drain:
    """Have paho alone publish the same messages."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        port = stack.enter_context(mosquitto(directory))
        arguments = ["--database", str(seeded), "--port", str(port), "--in-flight", str(in_flight)]
        program = stack.enter_context(python("bare_paho", "bench.bare_paho", arguments, directory))
        program.hear()
        program.tell("begin")
        return Drain(**program.hear())


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs of both, in the order in which they alternated.

    Attributes:
        events: How many waited.
        default: paho with its own window, once, to know.
    """

    events: int
    ours: list[Drain]
    bare: list[Drain]
    default: Drain

    @property
    def ratio(self) -> float:
        """Give how much longer the adapter takes than paho alone."""
        return median(each.seconds for each in self.ours) / median(each.seconds for each in self.bare)


def compare(events: int, runs: int) -> Comparison:
    """Let both send the same backlog, alternating."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        seeded = Path(directory) / "seeded.db"
        seed(seeded, events)
        ours_, bare = [], []
        for _ in range(runs):
            bare.append(bare_paho(seeded))
            ours_.append(ours(seeded))
        return Comparison(events=events, ours=ours_, bare=bare, default=bare_paho(seeded, _DEFAULT_WINDOW))


def main() -> int:
    """Run the benchmark; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench.drain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=100_000, help="how many wait (default %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each (default %(default)s)")
    given = parser.parse_args()
    end_by_signal()
    try:
        found = compare(given.events, given.runs)
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    columns = {
        "ccgateway2mqtt": found.ours,
        f"paho alone, {_WINDOW} in flight": found.bare,
        f"paho alone, its default of {_DEFAULT_WINDOW}": [found.default],
    }
    rows = [
        ["time, median", *(f"{median(run.seconds for run in runs):.1f} s" for runs in columns.values())],
        ["shortest to longest", *(_span([run.seconds for run in runs]) for runs in columns.values())],
        [
            "CPU per event, median",
            *(f"{median(run.cpu_s for run in runs) / found.events * 1e6:.0f} µs" for runs in columns.values()),
        ],
    ]
    print(table([f"{found.events:,} waiting events, two messages each", *columns], rows))
    print(f"\nTime: {found.ratio:.2f} x that of paho alone.")
    return 0


def _span(values: list[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f} s"


if __name__ == "__main__":
    sys.exit(main())
