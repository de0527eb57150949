"""A simulated gateway in a process of its own, which measures its clients: `python -m bench.gateway`.

It prints one line of JSON when it is ready, and one as the answer to each line on its standard input:

- ``status``: how many agents nobody has polled so far.
- ``begin``: begin a window: what came before no longer counts.
- ``end``: what came since: polls, pauses, events, polls that broke off; and what was done against the interface
  document since the start.

It ends when its standard input does, and so never outlives who started it. It runs on uvloop, whose connections take
a fraction of the memory, so that it carries more agents than its clients do.
"""

import argparse
import asyncio
import dataclasses
import gc
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop

from adapter.simulator import SAMPLES, Poll, Simulator, sample
from adapter.simulator.agent import SHUTDOWN
from adapter.simulator.records import Pauses
from bench.support import raise_file_limit

_TICK_S = 0.05
_HARMLESS = [event_type for event_type in SAMPLES if event_type != SHUTDOWN]
"""The event types after which polling goes on."""


async def _watch(simulator: Simulator, unseen: set[str]) -> None:
    """Take agents out of `unseen` once they were polled."""
    while unseen:
        unseen -= {work_no for work_no in unseen if simulator.polled(work_no)}
        await asyncio.sleep(_TICK_S)


async def _emit(simulator: Simulator, work_nos: list[str], events_per_s: float) -> None:
    """Let events happen, from agent to agent and from type to type, as many as are due by the clock."""
    turns = zip(itertools.cycle(work_nos), itertools.cycle(_HARMLESS), strict=False)
    began_at = time.monotonic()
    for number, (work_no, event_type) in enumerate(turns, start=1):
        simulator.emit_sample(work_no, event_type)
        await asyncio.sleep(max(0.0, began_at + number / events_per_s - time.monotonic()))


class _Ledger:
    """Counts how polls end, and, where every answer is to carry an event, has the next one wait for its agent."""

    def __init__(self, simulator: Simulator, work_nos: list[str], *, full: bool) -> None:
        self.ends: Counter[str] = Counter()
        self._simulator = simulator
        self._next = {work_no: self._events(work_no) for work_no in work_nos} if full else {}
        for work_no in self._next:
            self._emit(work_no)

    @staticmethod
    def _events(work_no: str) -> Iterator[bytes]:
        """Give an agent's events, one type after the other, rendered once."""
        return itertools.cycle([json.dumps(sample(each, work_no, ...)).encode() for each in _HARMLESS])

    def _emit(self, work_no: str) -> None:
        self._simulator.emit(work_no, next(self._next[work_no]))

    def __call__(self, poll: Poll) -> None:
        self.ends[poll.outcome] += 1
        if poll.event is not None and poll.work_no in self._next:
            self._emit(poll.work_no)


async def _serve(simulator: Simulator, work_nos: list[str], ledger: _Ledger, events_per_s: float) -> None:
    unseen = set(work_nos)
    tasks = [asyncio.create_task(_watch(simulator, unseen))]
    polls = 0
    while line := await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
        answer: dict[str, Any] = {}
        match line.strip():
            case "status":
                answer = {"unseen": len(unseen)}
            case "begin":
                gc.freeze()  # looking through thousands of agents again would stop them all, and count as their pauses
                simulator.all_pauses = Pauses()
                ledger.ends.clear()
                polls = simulator.poll_count
                if events_per_s:
                    tasks.append(asyncio.create_task(_emit(simulator, work_nos, events_per_s)))
            case "end":
                pauses = simulator.all_pauses
                answer = {
                    "polls": simulator.poll_count - polls,
                    "pauses": {"min_s": pauses.min_s, "max_s": pauses.max_s, "steps": sorted(pauses.steps.items())},
                    "events": ledger.ends["event"],
                    "broken": ledger.ends.total() - ledger.ends["event"] - ledger.ends["empty"],
                    "queued": sum(simulator.queued(work_no) for work_no in work_nos),
                    "violations": [dataclasses.asdict(violation) for violation in simulator.violations],
                }
        print(json.dumps(answer), flush=True)
    for task in tasks:
        task.cancel()


async def _run(options: argparse.Namespace) -> None:
    work_nos = [str(101 + place) for place in range(options.agents)]
    simulator = Simulator(
        agents=work_nos,
        hold_s=options.hold,
        poll_wait=not options.full,
        directory=options.directory,
        lean=True,
        record=False,
    )
    async with simulator:
        simulator.ledger = ledger = _Ledger(simulator, work_nos, full=options.full)
        known = {agent.work_no: agent.guid for agent in simulator.agents}
        print(json.dumps({"url": simulator.url, "ca_file": str(simulator.ca_file), "guids": known}), flush=True)
        await _serve(simulator, work_nos, ledger, options.events_per_second)


def main() -> None:
    """Run until the standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, required=True)
    parser.add_argument("--hold", type=float, required=True)
    parser.add_argument("--events-per-second", type=float, default=0)
    parser.add_argument("--full", action="store_true", help="AGENT_POLL_WAIT_FLAG off, and an event in every answer")
    parser.add_argument("--directory", type=Path, required=True)
    options = parser.parse_args()
    raise_file_limit()
    uvloop.run(_run(options))


if __name__ == "__main__":
    main()
