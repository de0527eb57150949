"""A simulated gateway in a process of its own that hands out numbered events: `python -m bench.chaos.gateway`.

It prints one line of JSON when it is ready, and one as the answer to each line of JSON on its standard input, an
object with the member ``do``:

- ``status``: for whom events wait, how many polls came, and for how many agents none did yet.
- ``cut`` (`agents`): cut their connections, also between two polls. Answers with the moment.
- ``away`` / ``back``: the machine goes down with every connection; it comes back on the same port.
- ``script`` (`agents`, `bytes`): the answer to their next poll is cut after so many bytes; there are events for it.
- ``burst`` (`each`): so many large events for every agent at once.
- ``rest``: no further event and no further trouble comes by itself.
- ``end``: what was done against the interface document.

Every poll goes into the ledger, a file with one JSON list a line, as `Row` names them. It ends with its standard input.
"""

import argparse
import asyncio
import dataclasses
import itertools
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from adapter.simulator import SAMPLES, Fault, SimAgent, Simulator, faults, sample
from adapter.simulator.agent import SHUTDOWN
from adapter.simulator.records import Poll
from bench.support import HOST, raise_file_limit

NUMBER = "number"
"""The member of an event that says which one of its agent's it is, from 1 on."""
_FLUSH_S = 0.5
_LARGE_BYTES = 1000
_WHOLE_BYTES = 100
"""Fewer than any answer has, whether counted from its beginning or from its end."""


class Row(NamedTuple):
    """One poll in the ledger.

    Attributes:
        work_no: The agent.
        began_at: Monotonic seconds at which its first line arrived, and...
        ended_at: ...just before the last byte of the answer was written, or when the connection was gone.
        number: The number of the event that was taken from the queue for it; `None` without one, and for the
            gateway's own, such as at a sign-in.
        whole: Whether the answer was written whole to a connection that was up.
        good: Whether it was an HTTP 200 answer with retcode 0.
        guid: The GUID that it came with.
        new_guid: The GUID that its answer brought.
        calldata: What came with it.
        connection: Number of the connection that it came over.
    """

    work_no: str
    began_at: float
    ended_at: float
    number: int | None
    whole: bool
    good: bool
    guid: str | None
    new_guid: str | None
    calldata: str | None
    connection: int


def row_of(poll: Poll) -> Row:
    """Make the row of a poll that has ended."""
    event = poll.event
    return Row(
        work_no=poll.work_no,
        began_at=poll.started_at,
        ended_at=poll.started_at if poll.ended_at is None else poll.ended_at,
        number=event.get(NUMBER) if isinstance(event, dict) else None,
        whole=poll.outcome not in {"lost", "cut"},
        good=poll.status == 200 and poll.retcode == "0",  # noqa: PLR2004 - HTTP's
        guid=poll.guid,
        new_guid=poll.set_guid,
        calldata=poll.calldata,
        connection=poll.connection,
    )


def troubles(rng: random.Random) -> list[Callable[[], Fault]]:
    """List what can be wrong with one answer; after each of them the agent is polled on."""
    return [
        lambda: faults.status(rng.choice((500, 502, 503)), b"<html>no gateway</html>"),
        lambda: faults.status(302) | faults.headers({"Location": "https://127.0.0.1/elsewhere"}),
        faults.drop,
        lambda: faults.drop(rng.randrange(_WHOLE_BYTES)),
        lambda: faults.drop(-rng.randrange(1, _WHOLE_BYTES)),
        lambda: faults.drop(-rng.randrange(1, _WHOLE_BYTES)) | faults.slow(400),
        lambda: faults.garbage(b"<html>who are you?</html>"),
        lambda: faults.raw(b"SMTP ready\r\n"),
        lambda: faults.retcode("000-000", "unknown error"),
        lambda: faults.slow(500),
        faults.chunked,
        lambda: faults.chunked() | faults.slow(800),
        faults.close_delimited,
        faults.rotate,
        lambda: faults.delay(rng.uniform(0.05, 1.0)),
        lambda: faults.headers({"Set-Cookie": f"elbSession={rng.randrange(1000)}; path=/"}),
    ]


class Source:
    """Lets numbered events happen to agents, and puts troubles into some of their answers.

    Args:
        full: Whether an agent's next event happens as soon as the one before is handed out.
        trouble: Share of the polls that have a trouble.
    """

    def __init__(self, simulator: Simulator, ledger: TextIO, rng: random.Random, *, full: bool, trouble: float) -> None:
        self._simulator = simulator
        self._ledger = ledger
        self._rng = rng
        self._full = full
        self._trouble = trouble
        self._troubles = troubles(rng)
        self._types = itertools.cycle(event_type for event_type in SAMPLES if event_type != SHUTDOWN)
        self._numbers = {agent.work_no: itertools.count(1) for agent in simulator.agents}
        self.unseen = set(self._numbers)
        self.resting = False
        simulator.ledger = self._note

    def emit(self, work_no: str, *, large: bool = False) -> None:
        """Let an agent's next event happen."""
        event = sample(next(self._types), work_no, ...)
        if large:
            event["filling"] = "." * _LARGE_BYTES
        event[NUMBER] = next(self._numbers[work_no])
        self._simulator.emit(work_no, event)

    def fill(self) -> None:
        """Let the first event of each agent happen, and one in reserve."""
        for work_no in [*self._numbers, *self._numbers]:
            self.emit(work_no)

    async def emit_regularly(self, per_s: float) -> None:
        """Let events happen from agent to agent, as many as are due by the clock."""
        began_at = time.monotonic()
        for number, work_no in enumerate(itertools.cycle(self._numbers), start=1):
            if not self.resting:
                self.emit(work_no)
            await asyncio.sleep(max(0.0, began_at + number / per_s - time.monotonic()))

    def _note(self, poll: Poll) -> None:
        self._ledger.write(json.dumps(row_of(poll)) + "\n")
        self.unseen.discard(poll.work_no)
        if self.resting:
            return
        if self._full and poll.event is not None:
            self.emit(poll.work_no)
        if self._rng.random() < self._trouble:
            self._simulator.script(poll.work_no, self._rng.choice(self._troubles)())


async def _obey(simulator: Simulator, source: Source, order: dict[str, Any]) -> dict[str, Any]:
    """Do what a line on the standard input asks for, and answer it."""
    if order["do"] == "end":
        return {"violations": [dataclasses.asdict(violation) for violation in simulator.violations]}
    await _do(simulator, source, order)
    return {
        "at": time.monotonic(),
        "waiting": [agent.work_no for agent in simulator.agents if simulator.queued(agent.work_no)],
        "polls": simulator.poll_count,
        "unseen": len(source.unseen),
    }


async def _do(simulator: Simulator, source: Source, order: dict[str, Any]) -> None:
    match order["do"]:
        case "cut":
            for work_no in order["agents"]:
                simulator.cut(work_no, idle=True)
        case "away":
            await simulator.go_away()
        case "back":
            await simulator.come_back()
        case "script":
            for work_no in order["agents"]:
                simulator.script(work_no, faults.drop(order["bytes"]))
                source.emit(work_no)  # ends a poll that is held already
                source.emit(work_no)
        case "burst":
            for agent in simulator.agents * order["each"]:
                source.emit(agent.work_no, large=True)
        case "rest":
            source.resting = True


async def _flush(ledger: TextIO) -> None:
    while True:
        await asyncio.sleep(_FLUSH_S)
        ledger.flush()


async def _run(options: argparse.Namespace) -> None:
    agents = [SimAgent(work_no=str(101 + place)) for place in range(options.agents)]
    simulator = Simulator(
        agents=agents,
        host=options.host,
        hold_s=options.hold,
        poll_wait=not options.full,
        guid_interval_s=options.guid_interval,
        directory=options.directory,
        lean=True,
    )
    with (options.directory / "ledger").open("w", encoding="utf-8") as ledger:
        async with simulator:
            rng = random.Random(options.seed)  # noqa: S311 - chance, no secret
            source = Source(simulator, ledger, rng, full=options.full, trouble=options.trouble)
            tasks = [asyncio.create_task(_flush(ledger))]
            if options.full:
                source.fill()
            if options.events_per_second:
                tasks.append(asyncio.create_task(source.emit_regularly(options.events_per_second)))
            known = {agent.work_no: agent.guid for agent in simulator.agents}
            print(json.dumps({"url": simulator.url, "ca_file": str(simulator.ca_file), "guids": known}), flush=True)
            while line := await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
                answer = await _obey(simulator, source, json.loads(line))
                ledger.flush()
                print(json.dumps(answer), flush=True)
            for task in tasks:
                task.cancel()


def main() -> None:
    """Run until the standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agents", type=int, required=True)
    parser.add_argument("--host", default=HOST)
    parser.add_argument("--hold", type=float, default=10.0)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--events-per-second", type=float, default=0.0)
    parser.add_argument("--trouble", type=float, default=0.0)
    parser.add_argument("--guid-interval", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, required=True)
    raise_file_limit()
    asyncio.run(_run(parser.parse_args()))


if __name__ == "__main__":
    main()
