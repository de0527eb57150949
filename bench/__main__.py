"""What the program costs beside what a user could pick instead: `python -m bench`, or `make bench`.

Each line of the table is the ratio of medians, of runs that take turns, in CPU time of the client's process. The whole
takes about 50 minutes; `--quick` about three, to compare changes with. The exit code is 1 where the adapter did
anything against the interface document, whatever the verdicts are.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from statistics import median

from bench import delay, drain, events, polls
from bench.clients import CLIENTS, OURS
from bench.polls import Scale
from bench.report import Bound, Row, written
from bench.support import exit_code, say

_EVENT_AGENTS = 200
_SHOWN = 5
_DRAIN = Bound(at_most=2, aim=1.3)
_DELAY_P50_MS, _DELAY_P99_MS, _DELAY_AIM_MS = 3, 10, 1
_PARTS = ("polls", "events", "drain", "delay")

_WAITING, _WAITING_QUICK = 100_000, 10_000
"""Events in the backlog that is sent."""
_WHOLE = Scale(runs=5, few=1000, many=5000, seconds=20, hold_s=10)
_QUICK = Scale(runs=1, few=200, many=1000, seconds=8, hold_s=3)


def run(scale: Scale, waiting: int, parts: Sequence[str], names: Sequence[str]) -> bool:
    """Measure, and print the table and how it came about.

    Args:
        scale: How much.
        waiting: How many events wait for the broker.
        parts: Which of `_PARTS`.
        names: Which clients, ours among them.

    Returns:
        Whether the adapter kept to the interface document.
    """
    rows: list[Row] = []
    details: list[str] = []
    violations: list[dict[str, object]] = []
    if "polls" in parts:
        idle = polls.measure(scale, names)
        rows += polls.rows(idle, scale)
        details.append(polls.details(idle))
        violations += [each for (_, name), runs in idle.items() if name == OURS for each in runs.violations()]
    if "events" in parts:
        handed = events.measure(scale.runs, _EVENT_AGENTS, scale.seconds)
        rows += events.rows(handed)
        details.append(events.details(handed))
        violations += [each for measurement in handed[OURS] for each in measurement.seen.violations]
    if "drain" in parts:
        rows.append(_drain_row(drain.compare(waiting, scale.runs)))
    if "delay" in parts:
        rows.append(_delay_row([delay.measure(_EVENT_AGENTS, scale.seconds) for _ in range(scale.runs)]))
    print("\n\n".join([written(rows), *details]))
    for violation in violations[:_SHOWN]:
        say(f"violation: {violation}")
    return not violations


def _drain_row(found: drain.Comparison) -> Row:
    ours, bare = (median(run.seconds for run in runs) for runs in (found.ours, found.bare))
    return Row(
        what=f"time for the outbox to drain {found.events:,} waiting events",
        ours=f"{ours:.1f} s",
        rival=f"paho alone: {bare:.1f} s",
        ratio=f"{found.ratio:.3g}",
        at_most=f"{_DRAIN.at_most:g}",
        aim=f"{_DRAIN.aim:g}",
        met=found.ratio <= _DRAIN.at_most,
    )


def _delay_row(found: Sequence[delay.Delays]) -> Row:
    half, most = (median(run.quantile_ms(share) for run in found) for share in (0.5, 0.99))
    missing = sum(run.missing for run in found)
    return Row(
        what=f"delay from the gateway's answer to a subscriber, {_EVENT_AGENTS} agents, every answer an event",
        ours=f"p50 {half:.1f} ms, p99 {most:.1f} ms" + (f", {missing} missing" if missing else ""),
        at_most=f"p50 {_DELAY_P50_MS:g} ms, p99 {_DELAY_P99_MS:g} ms",
        aim=f"p50 {_DELAY_AIM_MS:g} ms",
        met=half <= _DELAY_P50_MS and most <= _DELAY_P99_MS and not missing,
    )


def main() -> int:
    """Run the benchmarks; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer agents, one short run of each")
    parser.add_argument("--runs", type=int, help="of each client")
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=_PARTS, help="which parts")
    parser.add_argument(
        "--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS), help="which rivals for idle polls"
    )
    given = parser.parse_args()
    scale = _QUICK if given.quick else _WHOLE
    scale = dataclasses.replace(scale, runs=given.runs or scale.runs)
    waiting = _WAITING_QUICK if given.quick else _WAITING
    names = [name for name in CLIENTS if name == OURS or name in given.clients]
    return exit_code(lambda: run(scale, waiting, given.only, names))


if __name__ == "__main__":
    sys.exit(main())
