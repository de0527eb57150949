"""Harms a fleet and proves what holds all the same: `python -m bench.fleet`, or `make chaos-fleet`.

The exit code is 1 where a promise was broken; the tables say what was seen.
"""

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from pathlib import Path

from bench.chaos.judge import Verdict
from bench.fleet.judge import HEAD, Proof, Seen, judge
from bench.fleet.machines import enter
from bench.fleet.plan import Plan
from bench.fleet.stage import Setting, Stage
from bench.support import BenchError, end_by_signal, raise_file_limit, table

_AWAY_S = 30.0
_SHORT = "kill leader both stop burst partition split drain"
"""What the short form does."""


async def run(options: argparse.Namespace, directory: Path) -> tuple[Verdict, list[Seen]]:
    """Run it.

    Raises:
        BenchError: A part ended, or something did not happen that must.
    """
    setting = Setting(
        agents=options.agents,
        members=options.members,
        hold_s=options.hold,
        events_per_s=options.agents / 10,
        patience=options.patience,
    )
    stage = Stage(setting, directory)
    plan = Plan(stage, away_s=options.away)
    wanted = _SHORT.split() if options.short else options.only or list(plan.steps)
    began_at = time.monotonic()
    async with stage.standing():
        await plan.run(wanted)
        await stage.rest()
        wrong = await stage.stop()
        proof = Proof(
            rows=stage.ledger.rows,
            received=stage.recorder.messages,
            retained=stage.retained(),
            violations=(await stage.gateway.order("end"))["violations"],
            steps=stage.steps,
            hold_s=setting.hold_s,
        )
    verdict, seen = judge(proof)
    verdict.figures["time"] = f"{time.monotonic() - began_at:.0f} s"
    verdict.faults += wrong
    return verdict, seen


def main() -> int:
    """Run the harm; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench.fleet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, default=400, help="how many (default %(default)s)")
    parser.add_argument("--members", type=int, default=4, help="who share them (default %(default)s)")
    parser.add_argument("--hold", type=float, default=5.0, help="seconds of a poll (default %(default)s)")
    parser.add_argument("--away", type=float, default=_AWAY_S, help="seconds without NATS (default %(default)s)")
    parser.add_argument("--patience", type=float, default=1.0, help="multiplies the bounds of times (default 1)")
    parser.add_argument("--only", nargs="*", help="some of what is done, by name")
    parser.add_argument("--short", action="store_true", help=f"only: {_SHORT}")
    parser.add_argument("--keep", type=Path, help="a directory for all logs and data, which stays")
    options = parser.parse_args()
    end_by_signal()
    raise_file_limit()
    with contextlib.ExitStack() as stack:
        try:
            enter()
            directory = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-")))
            directory.mkdir(parents=True, exist_ok=True)
            verdict, steps = asyncio.run(run(options, directory))
        except BenchError as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    print(table(HEAD, [seen.row() for seen in steps]), end="\n\n")
    head = [f"{options.agents} agents, {options.members} members, hold {options.hold:g} s", "seen"]
    print(table(head, [list(row) for row in verdict.figures.items()]))
    for fault in verdict.faults:
        print(f"FAULT {fault}", file=sys.stderr)
    return 1 if verdict.faults else 0


if __name__ == "__main__":
    sys.exit(main())
