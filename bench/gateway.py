"""A simulated gateway in a process of its own, which measures its clients: `python -m bench.gateway`.

It prints one line of JSON when it is ready, and one as the answer to each line on its standard input:

- ``status``: how many agents nobody has polled so far.
- ``begin``: begin a window: what came before no longer counts.
- ``end``: what came since: polls, pauses, events; and what was done against the interface document since the start.

It ends when its standard input does, and so never outlives who started it.
"""

import argparse
import asyncio
import dataclasses
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

from adapter.simulator import SAMPLES, Simulator
from adapter.simulator.agent import SHUTDOWN
from adapter.simulator.records import Pauses
from bench.support import raise_file_limit

_TICK_S = 0.05


async def _watch(simulator: Simulator, unseen: set[str]) -> None:
    """Take agents out of `unseen` once they are polled."""
    while unseen:
        unseen -= {work_no for work_no in unseen if simulator.polling(work_no)}
        await asyncio.sleep(_TICK_S)


async def _emit(simulator: Simulator, work_nos: list[str], events_per_s: float) -> None:
    """Let events happen, from agent to agent and from type to type, as many as are due by the clock."""
    turns = zip(itertools.cycle(work_nos), itertools.cycle(_harmless()), strict=False)
    began_at = time.monotonic()
    for number, (work_no, event_type) in enumerate(turns, start=1):
        simulator.emit_sample(work_no, event_type)
        await asyncio.sleep(max(0.0, began_at + number / events_per_s - time.monotonic()))


def _harmless() -> list[str]:
    """List the event types after which polling goes on."""
    return [event_type for event_type in SAMPLES if event_type != SHUTDOWN]


async def _serve(simulator: Simulator, work_nos: list[str], events_per_s: float) -> None:
    unseen = set(work_nos)
    tasks = [asyncio.create_task(_watch(simulator, unseen))]
    polls = 0
    while line := await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
        answer: dict[str, Any] = {}
        match line.strip():
            case "status":
                answer = {"unseen": len(unseen)}
            case "begin":
                simulator.all_pauses = Pauses()
                polls = simulator.poll_count
                if events_per_s:
                    tasks.append(asyncio.create_task(_emit(simulator, work_nos, events_per_s)))
            case "end":
                pauses = simulator.all_pauses
                answer = {
                    "polls": simulator.poll_count - polls,
                    "pauses": {"min_s": pauses.min_s, "max_s": pauses.max_s, "steps": sorted(pauses.steps.items())},
                    "queued": sum(simulator.queued(work_no) for work_no in work_nos),
                    "violations": [dataclasses.asdict(violation) for violation in simulator.violations],
                }
        print(json.dumps(answer), flush=True)
    for task in tasks:
        task.cancel()


async def _run(agents: int, hold_s: float, events_per_s: float, directory: Path) -> None:
    work_nos = [str(101 + place) for place in range(agents)]
    simulator = Simulator(agents=work_nos, hold_s=hold_s, directory=directory, lean=True, record=False)
    async with simulator:
        known = {agent.work_no: agent.guid for agent in simulator.agents}
        print(json.dumps({"url": simulator.url, "ca_file": str(simulator.ca_file), "guids": known}), flush=True)
        await _serve(simulator, work_nos, events_per_s)


def main() -> None:
    """Run until the standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, required=True)
    parser.add_argument("--hold", type=float, required=True)
    parser.add_argument("--events-per-second", type=float, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    options = parser.parse_args()
    raise_file_limit()
    asyncio.run(_run(options.agents, options.hold, options.events_per_second, options.directory))


if __name__ == "__main__":
    main()
