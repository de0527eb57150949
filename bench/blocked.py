"""Is the event loop ever blocked? `python -m bench.blocked`, or `make bench-blocked`.

One adapter with all agents goes through what could keep it from looking at what comes: a start with 100,000 events
waiting and no broker, the broker's coming, to which all agents are announced too (`home_assistant.discovery`), reloads
that add and remove an agent, and a broker that goes and comes back.
The adapter's own probe (`/metrics`) tells how long whatever came at a random moment waited meanwhile.
"""

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import yaml

from bench.chaos.parts import free_port
from bench.clients import configure
from bench.drain import seed
from bench.metrics import Delays, delays, listen, waiting
from bench.stage import Place, Setting, Stage, staged
from bench.support import HOST, Program, exit_code, python, say, table

_BOUND_S = 0.02
_SHARE = 0.999
_TIMES = 5
"""How often there is a reload, and how often the broker goes."""
_GONE_S = 2.0
_LOOK_S = 1.0
_HEAD = ["while", "looks", "p50", "p99", "p99.9", "over 20 ms", "verdict"]


class _Site:
    """Where the adapter finds its broker, which comes and goes, and its backlog; and where it is asked how it is."""

    def __init__(self, directory: Path) -> None:
        self.database = directory / "outbox.db"
        self.metrics_port = 0
        self._broker_port = free_port()
        self._broker = directory / "mosquitto.conf"
        self._broker.write_text(f"listener {self._broker_port} {HOST}\nallow_anonymous true\nmax_queued_messages 0\n")
        self._log = directory / "mosquitto.log"

    def broker(self) -> Program:
        """Run the broker while the context lasts."""
        binary = shutil.which("mosquitto", path="/usr/bin:/usr/sbin:/usr/local/sbin") or "mosquitto"
        return Program("mosquitto", [binary, "-c", str(self._broker)], self._log)

    def adapter(self, place: Place) -> Program:
        """Run the adapter."""
        path = self.configure(place, place.setting.agents)
        self.metrics_port = listen(path)
        return python("adapter", "adapter", ["run", "-c", str(path)], place.directory)

    def configure(self, place: Place, agents: int) -> Path:
        """Write the configuration with so many agents; what else is in it stays."""
        path = place.directory / "config.yaml"
        before = _read(path) if path.exists() else {"storage": {"path": str(self.database)}}
        configure(replace(place, port=self._broker_port), agents)
        discovery = {"home_assistant": {"discovery": True, "max_agents": agents}}
        path.write_text(yaml.dump(before | _read(path) | discovery, Dumper=yaml.CSafeDumper))
        return path


def _read(path: Path) -> dict[str, object]:
    values: dict[str, object] = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    return values


def measure(agents: int, events: int, seconds: float) -> dict[str, Delays]:
    """Go through all phases; gives what the probe saw in each."""
    seen: dict[str, Delays] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        site = _Site(Path(directory))

        @contextlib.contextmanager
        def phase(name: str) -> Iterator[None]:
            say(name)
            before = delays(site.metrics_port)
            yield
            seen[name] = delays(site.metrics_port).since(before)

        seed(site.database, events)
        say("the start")
        with staged(site.adapter, Setting(agents=agents, spare=1)) as stage:
            seen[f"the start, {events:,} events waiting, no broker"] = delays(site.metrics_port)
            with phase(f"polls, {events:,} events waiting, no broker"):
                stage.watch(seconds)
            with site.broker():
                with phase("the broker has come, all of them go out, and discovery"):
                    while waiting(site.metrics_port):
                        stage.watch(_LOOK_S)
                with phase("polls"):
                    stage.watch(seconds)
                with phase(f"{_TIMES} reloads, each for one agent"):
                    _reload(site, stage, seconds)
            with phase(f"the broker comes and goes {_TIMES} times"):
                for _ in range(_TIMES):
                    stage.watch(_GONE_S)
                    with site.broker():
                        stage.watch(seconds / _TIMES)
    return seen


def _reload(site: _Site, stage: Stage, seconds: float) -> None:
    agents = stage.place.setting.agents
    for number in range(1, _TIMES + 1):
        site.configure(stage.place, agents + number % 2)
        stage.client.send(signal.SIGHUP)
        stage.watch(seconds / _TIMES)


def _row(name: str, found: Delays) -> list[str]:
    p50, p99, p999 = (found.quantile(share) for share in (0.5, 0.99, _SHARE))
    verdict = "met" if p999 <= _BOUND_S else "not met"
    return [
        name,
        f"{found.count:,}",
        *(f"≤ {bound_s * 1000:g} ms" for bound_s in (p50, p99, p999)),
        f"{found.over(_BOUND_S)}",
        verdict,
    ]


def run(agents: int, events: int, seconds: float) -> bool:
    """Measure and print the table; give whether the bound holds in all phases."""
    seen = measure(agents, events, seconds)
    first, *others = seen.values()
    seen["all of that"] = sum(others, first)
    print(f"{agents:,} agents:\n")
    print(table(_HEAD, [_row(*each) for each in seen.items()]))
    return all(found.quantile(_SHARE) <= _BOUND_S for found in seen.values())


def main() -> int:
    """Run the benchmark; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench.blocked", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, default=5000, help="how many (default %(default)s)")
    parser.add_argument("--events", type=int, default=100_000, help="how many wait (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="how long a phase is (default %(default)s)")
    given = parser.parse_args()
    return exit_code(lambda: run(given.agents, given.events, given.seconds))


if __name__ == "__main__":
    sys.exit(main())
