"""Does a poll or an agent cost more where there are more of them? `python -m bench.growth`, or `make bench-growth`.

Each number of agents is polled by a program of its own, in turns. A number that the limit of open files does not let
a process have is cut to what it does.
"""

import argparse
import resource
import sys
from collections.abc import Sequence
from statistics import median

from bench.clients import adapter
from bench.polls import Runs
from bench.report import spread
from bench.stage import Setting, staged
from bench.support import BenchError, exit_code, quantile, say, table

_SIZES = (10, 100, 1000, 5000, 10_000, 20_000)
_COMPARED = 1000
_AT_MOST = 1.2
_OTHER_FILES = 100
"""Open files of a process besides its agents' connections, at most."""
_ALONE_S = 3.0
_MB = 1e6


def _measure(agents: int, hold_s: float, seconds: float, settle_s: float | None) -> Runs:
    with staged(adapter, Setting(agents=agents, hold_s=hold_s), settle_s) as stage:
        return Runs(measured=[stage.measure(seconds)], started_s=[stage.started_s])


def run(sizes: Sequence[int], runs: int, hold_s: float, seconds: float) -> bool:
    """Measure all sizes and print the table; give whether all could be, and the adapter kept to the interface document.

    A size which cannot be measured is left out from then on.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _OTHER_FILES
    alone = Runs()
    failed: list[str] = []
    found = {min(agents, limit): Runs() for agents in sizes}
    for number in range(1, runs + 1):
        alone.add(_measure(1, hold_s, 1.0, _ALONE_S))
        for agents in list(found):
            try:
                found[agents].add(_measure(agents, hold_s, seconds, None))
            except BenchError as error:
                del found[agents]
                failed.append(f"{agents:,} agents: {error}")
                say(failed[-1])
            else:
                say(f"run {number}: {agents:,} agents: {found[agents].cpu_per_poll_us[-1]:,.0f} µs a poll")
    print("\n\n".join([table(_HEAD, [_line(agents, runs, alone) for agents, runs in found.items()]), *failed]))
    largest = max(found, default=0)
    if _COMPARED in found and largest > _COMPARED:
        for what, values in (
            ("CPU per poll", {agents: measured.cpu_per_poll_us for agents, measured in found.items()}),
            ("memory per agent", {agents: measured.kb_per_agent(alone) for agents, measured in found.items()}),
        ):
            ratio = median(values[largest]) / median(values[_COMPARED])
            verdict = "met" if ratio <= _AT_MOST else "not met"
            print(f"\n{what}, {largest:,} agents to {_COMPARED:,}: {ratio:.2f}, at most {_AT_MOST:g}: {verdict}")
    return not failed and not any(measured.violations() for measured in found.values())


def _line(agents: int, runs: Runs, alone: Runs) -> list[str]:
    return [
        f"{agents:,}",
        spread(runs.cpu_per_poll_us, "µs"),
        spread(runs.kb_per_agent(alone), "KB"),
        f"{median(each.rss_bytes for each in runs.measured) / _MB:,.0f} MB",
        f"{median(runs.started_s):.1f} s",
        f"{min(each.seen.shortest_s for each in runs.measured) * 1000:.0f} ms",
        f"{quantile(runs.pauses_ms(), 0.999)} ms",
        f"{max(each.gateway_cpu_s / each.seconds for each in runs.measured):.0%}",
        f"{len(runs.violations()):,}",
    ]


_HEAD = [
    "agents",
    "CPU per poll",
    "memory per agent",
    "memory in all",
    "start to all polling",
    "shortest pause",
    "p99.9",
    "CPU of the gateway, of a core, at most",
    "against the document",
]


def main() -> int:
    """Run the benchmark; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, nargs="+", default=_SIZES, help="how many (default %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="of each (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="how long (default %(default)s)")
    parser.add_argument("--hold", type=float, default=10, help="seconds a poll is held (default %(default)s)")
    given = parser.parse_args()
    return exit_code(lambda: run(given.agents, given.runs, given.hold, given.seconds))


if __name__ == "__main__":
    sys.exit(main())
