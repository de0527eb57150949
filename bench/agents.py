"""Many agents over real HTTPS: what a poll costs, what an agent costs, and whether the pauses hold (P4).

```
bench.gateway (simulator, measures pauses)  <-HTTPS-  ccgateway2mqtt run  -MQTT->  mosquitto
                  the same, once more       <-HTTPS-  bench.bare_httpx
```

Each box is a process. Both clients run against a new gateway, one after the other; each of them also with a single
agent, to tell the program's own memory from its agents'. Exit code 1 where a pause of the adapter's was too short, or
anything else that it did was against the interface document.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from bench.support import (
    BenchError,
    Program,
    end_by_signal,
    mosquitto,
    python,
    quantile,
    raise_file_limit,
    table,
    wait_until,
)

_SHORTEST_MS = 200
_LONGEST_MS = 500
_START_S = 60.0
"""What connecting all agents may take, besides the hold over which they are spread."""
_STEP_S = 1.0
_MB, _KB = 1e6, 1e3
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is measured.

    Attributes:
        agents: How many.
        seconds: How long, once all agents are polled.
        hold_s: How long the gateway holds a poll.
        events_per_s: How many events happen, to all agents together.
    """

    agents: int
    seconds: float
    hold_s: float
    events_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one client did in the window.

    Attributes:
        agents: How many it polled.
        seconds: The window's length.
        polls: Polls that arrived at the gateway.
        pauses_ms: Pauses at the gateway, whole milliseconds in ascending order, each with its count.
        shortest_s: The shortest of them.
        longest_s: The longest of them.
        cpu_s: What the client used.
        gateway_cpu_s: What the gateway used; near the window's length it is the gateway that was measured.
        others_cpu_s: What everything else on the machine used.
        rss_bytes: The client's memory when the window began, and when it ended.
        queued: Events that it had not fetched at the end.
        violations: What it did against the interface document since its start.
    """

    agents: int
    seconds: float
    polls: int
    pauses_ms: list[tuple[int, int]]
    shortest_s: float
    longest_s: float
    cpu_s: float
    gateway_cpu_s: float
    others_cpu_s: float
    rss_bytes: tuple[int, int]
    queued: int
    violations: list[dict[str, object]]

    @property
    def cpu_per_poll_us(self) -> float:
        """Give the client's CPU time per poll."""
        return self.cpu_s / self.polls * 1e6


Client = Callable[[Any, Options, Path], contextlib.AbstractContextManager[Program]]
"""Starts a client for a gateway, which is described by what `bench.gateway` prints first."""


@contextlib.contextmanager
def adapter(gateway: Any, options: Options, directory: Path) -> Iterator[Program]:  # noqa: ANN401 - any JSON
    """Run the adapter as its users do, with a broker of its own."""
    with mosquitto(directory) as port:
        config = directory / "config.yaml"
        settings = {
            "gateway": {
                "url": gateway["url"],
                "ca_file": gateway["ca_file"],
                "hold": options.hold_s,
                "timeout": 2 * options.hold_s,
            },
            "mqtt": {"url": f"mqtt://127.0.0.1:{port}"},
            "agents": [{"work_no": work_no, "guid": guid} for work_no, guid in gateway["guids"].items()],
        }
        config.write_text(yaml.safe_dump(settings))
        with python("adapter", "adapter", ["run", "-c", str(config)], directory) as program:
            yield program


@contextlib.contextmanager
def bare_httpx(gateway: Any, options: Options, directory: Path) -> Iterator[Program]:  # noqa: ANN401 - any JSON
    """Run the loop that does nothing but poll."""
    with python("bare_httpx", "bench.bare_httpx", ["--hold", str(options.hold_s)], directory) as program:
        program.tell(json.dumps(gateway))
        yield program


def measure(client: Client, agents: int, seconds: float, options: Options) -> Measurement:
    """Run a client with a gateway of its own, and measure it from when all agents are polled.

    Raises:
        BenchError: One of the processes ended, or not all agents were polled in time.
    """
    arguments = ["--agents", str(agents), "--hold", str(options.hold_s)]
    arguments += ["--events-per-second", str(options.events_per_s)]
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        arguments += ["--directory", str(directory)]
        gateway = stack.enter_context(python("gateway", "bench.gateway", arguments, directory))
        program = stack.enter_context(client(gateway.hear(), options, directory))

        def all_polled() -> bool:
            program.check()
            gateway.tell("status")
            return not gateway.hear()["unseen"]

        wait_until(all_polled, options.hold_s + _START_S, "polls of all agents")
        # The start is over when everybody's first poll is: connections are made, states read and stored.
        _watch(program, options.hold_s)
        gateway.tell("begin")
        gateway.hear()
        began_at, busy_s = time.monotonic(), _busy_s()
        before, gateway_before = program.usage(), gateway.usage()
        _watch(program, seconds)
        after, gateway_after = program.usage(), gateway.usage()
        busy_s, lasted_s = _busy_s() - busy_s, time.monotonic() - began_at
        gateway.tell("end")
        seen = gateway.hear()
    cpu_s, gateway_cpu_s = after.cpu_s - before.cpu_s, gateway_after.cpu_s - gateway_before.cpu_s
    return Measurement(
        agents=agents,
        seconds=lasted_s,
        polls=seen["polls"],
        pauses_ms=[(step, count) for step, count in seen["pauses"]["steps"]],
        shortest_s=seen["pauses"]["min_s"],
        longest_s=seen["pauses"]["max_s"],
        cpu_s=cpu_s,
        gateway_cpu_s=gateway_cpu_s,
        others_cpu_s=max(0.0, busy_s - cpu_s - gateway_cpu_s),
        rss_bytes=(before.rss_bytes, after.rss_bytes),
        queued=seen["queued"],
        violations=seen["violations"],
    )


def _watch(program: Program, seconds: float) -> None:
    """Wait, and fail at once where the program ends meanwhile."""
    ends_at = time.monotonic() + seconds
    while (left_s := ends_at - time.monotonic()) > 0:
        time.sleep(min(left_s, _STEP_S))
        program.check()


def _busy_s() -> float:
    """Read how long the machine's cores were busy since it started, all together."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def rows(alone: Measurement, many: Measurement) -> list[str]:
    """Write one client's column.

    Args:
        alone: With one agent.
        many: With all of them.
    """
    pauses = many.pauses_ms
    begin, end = many.rss_bytes
    return [
        f"{many.agents:,}",
        f"{many.polls:,}",
        f"{many.shortest_s * 1000:.1f} ms",
        *(f"{quantile(pauses, share)} ms" for share in (0.5, 0.99, 0.999)),
        f"{many.longest_s * 1000:.1f} ms",
        f"{_short(many):,}",
        f"{_long(many):,}",
        f"{many.cpu_per_poll_us:,.0f} µs",
        f"{many.cpu_s / many.seconds:.1%}",
        f"{(end - alone.rss_bytes[1]) / (many.agents - alone.agents) / _KB:.0f} KB",
        f"{end / _MB:.1f} MB",
        f"{(end - begin) / _MB:+.1f} MB",
        f"{many.queued:,}",
        f"{many.gateway_cpu_s / many.seconds:.1%}",
        f"{many.others_cpu_s / many.seconds:.1%}",
    ]


_ROWS = [
    "agents",
    "polls in the window",
    "pause at the gateway, shortest",
    "p50",
    "p99",
    "p99.9",
    "longest",
    "pauses under 200 ms",
    "pauses over 500 ms",
    "CPU per poll",
    "CPU, of a core",
    "memory per agent",
    "memory in all",
    "its growth in the window",
    "events left at the gateway",
    "CPU of the gateway, of a core",
    "CPU of everything else, of a core",
]


def _short(measurement: Measurement) -> int:
    return sum(count for step, count in measurement.pauses_ms if step < _SHORTEST_MS)


def _long(measurement: Measurement) -> int:
    return sum(count for step, count in measurement.pauses_ms if step >= _LONGEST_MS)


def run(options: Options) -> bool:
    """Measure both clients and print the table.

    Returns:
        Whether the adapter kept to the interface document.
    """
    load = os.getloadavg()[0]
    columns: dict[str, tuple[Measurement, Measurement]] = {}
    for name, client in (("ccgateway2mqtt", adapter), ("bare httpx", bare_httpx)):
        print(f"{name}: 1 agent, then {options.agents:,}", file=sys.stderr, flush=True)
        columns[name] = (
            measure(client, 1, _STEP_S, options),
            measure(client, options.agents, options.seconds, options),
        )
    written = [rows(*column) for column in columns.values()]
    head = [f"{options.seconds:g} s, hold {options.hold_s:g} s, {options.events_per_s:g} events/s", *columns]
    print(table(head, [list(row) for row in zip(_ROWS, *written, strict=True)]))
    (alone, ours), (_, bare) = columns.values()
    ratio = ours.cpu_per_poll_us / bare.cpu_per_poll_us
    print(f"\nCPU per poll: {ratio:.2f} x the bare loop's. Load average: {load:.1f}, then {os.getloadavg()[0]:.1f}.")
    violations = [*alone.violations, *ours.violations]
    for violation in violations[:_SHOWN]:
        print(f"violation: {violation}", file=sys.stderr)
    return not violations and not _short(ours)


def main() -> int:
    """Run the benchmark; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench.agents", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, default=1000, help="how many, at least 2 (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=120, help="how long (default %(default)s)")
    parser.add_argument("--hold", type=float, default=10, help="seconds a poll is held (default %(default)s)")
    parser.add_argument("--events-per-second", type=float, default=0, help="of all agents (default %(default)s)")
    given = parser.parse_args()
    if given.agents < 2:  # noqa: PLR2004 - one to compare with, and one more
        parser.error("--agents: at least 2")
    end_by_signal()
    raise_file_limit()
    options = Options(
        agents=given.agents, seconds=given.seconds, hold_s=given.hold, events_per_s=given.events_per_second
    )
    try:
        return 0 if run(options) else 1
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
