"""Kills the adapter at random moments and proves that nothing was lost: `python -m bench.chaos`, or `make chaos`.

The seed is printed at the start. The exit code is 1 where a promise was broken; the table says what was seen.
"""

import argparse
import random
import sys
import time
from functools import partial
from pathlib import Path

from bench.chaos.ending import evidence, judge_kept, judge_lost_answers, settle, stop
from bench.chaos.judge import Verdict, judge
from bench.chaos.judged import judged
from bench.chaos.plan import Plan
from bench.chaos.stage import Setting, Stage

_SETTLE_S = 180.0


async def run(options: argparse.Namespace, directory: Path) -> Verdict:
    """Run it.

    Raises:
        BenchError: A part ended, or something did not happen that must.
    """
    setting = Setting(
        agents=options.agents,
        guests=max(1, options.agents // 10),
        hold_s=0,
        events_per_s=0,
        trouble=0.01,
        guid_interval_s=4,
        senders=max(1, options.agents // 5),
        max_mb=1024,
        seed=options.seed,
    )
    stage = Stage(setting, directory, random.Random(options.seed))  # noqa: S311 - chance, no secret
    verdict = Verdict()
    began_at = time.monotonic()
    async with stage.standing():
        plan = Plan(stage, options.pace)
        await plan.run(options.kills, lambda text: print(text, file=sys.stderr, flush=True))
        await stage.adapter.start()
        await settle(stage, _SETTLE_S)
        verdict.figures["time under harm"] = f"{time.monotonic() - began_at:.0f} s"
        moments = ", ".join(f"{count} {moment}" for moment, count in plan.kills.items())
        verdict.figures["kills (SIGKILL) of the adapter"] = f"{plan.kills.total()}: {moments}"
        verdict.figures["stops in time by SIGTERM alone"] = f"{plan.stops}"
        verdict.figures |= {name: f"{count}" for name, count in plan.troubles.items()}
        await judge_lost_answers(stage, verdict)
        await settle(stage, _SETTLE_S)
        await stop(stage, verdict)
        judge_kept(stage, verdict)
        found = judge(await evidence(stage))
    verdict.figures |= found.figures
    verdict.faults += found.faults
    return verdict


def main() -> int:
    """Run the harm; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="of the adapter (default %(default)s)")
    parser.add_argument("--agents", type=int, default=60, help="how many (default %(default)s)")
    parser.add_argument("--pace", type=float, default=1.0, help="less makes it shorter (default %(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of all chance")
    parser.add_argument("--keep", type=Path, help="a directory for all logs and data, which stays")
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    head = f"{options.agents} agents, {options.kills} kills, seed {options.seed}"
    return judged(partial(run, options), keep=options.keep, head=(head, "seen"))


if __name__ == "__main__":
    sys.exit(main())
