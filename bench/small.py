"""What the program takes for ten agents who wait: `python -m bench.small`, or `make bench-small`."""

import argparse
import subprocess
import sys
import time
from statistics import median

from bench.clients import configure
from bench.metrics import listen
from bench.report import Row, written
from bench.stage import Place, Setting, staged
from bench.support import Program, exit_code, python, say

_AGENTS = 10
_HOLD_S = 10.0
_START_S = 2 * _HOLD_S + 5.0
"""By then everybody has been polled, and what is collected once after that is."""
_HELP_RUNS = 5
_MB = 1e6

_MEMORY_MB, _CPU, _FIRST_S, _HELP_S = 60.0, 0.005, 1.5, 0.3
"""The bounds."""


def _adapter(place: Place) -> Program:
    return python("adapter", "adapter", ["run", "-c", str(configure(place, _AGENTS))], place.directory)


def _adapter_with_metrics(place: Place) -> Program:
    """Run it with the HTTP listener, and with what only that one shows."""
    path = configure(place, _AGENTS)
    listen(path)
    return python("adapter", "adapter", ["run", "-c", str(path)], place.directory)


def _help_s() -> float:
    began_at = time.monotonic()
    subprocess.run([sys.executable, "-m", "adapter", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began_at


def run(runs: int, seconds: float) -> bool:
    """Measure and print the table; give whether all bounds hold."""
    rows = []
    # The gateway counts as polled when one agent is, however many the adapter is told of.
    first_of_all = Setting(agents=1, spare=_AGENTS - 1, hold_s=_HOLD_S)
    for name, client in (("", _adapter), (", with http.listen", _adapter_with_metrics)):
        started_s, cpu, memory_mb = [], [], []
        for number in range(1, runs + 1):
            with staged(client, first_of_all, _START_S) as stage:
                found = stage.measure(seconds)
            started_s.append(stage.started_s)
            cpu.append(found.cpu_s / found.seconds)
            memory_mb.append(found.rss_bytes / _MB)
            say(f"run {number}{name}: {started_s[-1]:.2f} s, {cpu[-1]:.2%}, {memory_mb[-1]:.1f} MB")
        rows += [
            _row(f"resident memory{name}", median(memory_mb), _MEMORY_MB, "{:.1f} MB"),
            _row(f"CPU, of a core{name}", median(cpu), _CPU, "{:.2%}"),
            _row(f"start to the first poll{name}", median(started_s), _FIRST_S, "{:.2f} s"),
        ]
    rows.append(_row("--help", median(_help_s() for _ in range(_HELP_RUNS)), _HELP_S, "{:.2f} s"))
    print(written(rows))
    return all(row.met for row in rows)


def _row(what: str, value: float, at_most: float, form: str) -> Row:
    return Row(what=what, ours=form.format(value), at_most=form.format(at_most), met=value <= at_most)


def main() -> int:
    """Run the benchmark; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench.small", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3, help="of each (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="how long (default %(default)s)")
    given = parser.parse_args()
    return exit_code(lambda: run(given.runs, given.seconds))


if __name__ == "__main__":
    sys.exit(main())
