"""Harms a fleet and proves what holds all the same: `python -m bench.fleet`, or `make chaos-fleet`.

The exit code is 1 where a promise was broken; the tables say what was seen.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

from bench.chaos.judge import Verdict
from bench.chaos.judged import judged
from bench.fleet.judge import HEAD, Proof, judge
from bench.fleet.machines import enter
from bench.fleet.plan import Plan
from bench.fleet.stage import Setting, Stage
from bench.support import BenchError, table

_AWAY_S = 30.0
_SHORT = "kill leader both stop burst partition split drain"
"""What the short form does."""


async def run(options: argparse.Namespace, directory: Path) -> Verdict:
    """Run it, and print what was seen of each step.

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
    print(table(HEAD, [each.row() for each in seen]), end="\n\n")
    return verdict


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
    try:
        enter()
    except BenchError as error:
        parser.exit(1, f"{error}\n")
    head = f"{options.agents} agents, {options.members} members, hold {options.hold:g} s"
    return judged(partial(run, options), keep=options.keep, head=(head, "seen"))


if __name__ == "__main__":
    sys.exit(main())
