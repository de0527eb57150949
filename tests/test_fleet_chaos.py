"""The short form of `make chaos-fleet`, and its judge: it must find what it is there to find (issue 6)."""

import asyncio
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.chaos.gateway import NUMBER, Row
from bench.chaos.peers import Got
from bench.fleet.judge import Proof, judge
from bench.fleet.stage import Kind, Step
from tests.chaos_support import row_of

pytestmark = pytest.mark.harm

_ROOT = Path(__file__).parent.parent
_WHOLE_S = 420.0
_HOLD_S = 2.0
_row = partial(row_of, lasts_s=0.2)


def _got(number: int, topic: str, **changes: Any) -> Got:  # noqa: ANN401 - any JSON
    value = {"eventType": "AgentState_Ready", NUMBER: number, "id": f"id-{number}", "seq": number} | changes
    return Got(100.3 + number / 2, f"agents/101/{topic}", json.dumps(value).encode(), retained=False)


def _both(number: int, **changes: Any) -> list[Got]:  # noqa: ANN401 - any JSON
    return [_got(number, topic, **changes) for topic in ("events", "event")]


def _step(kind: Kind = "other", began_at: float = 100.0, lasts_s: float = 10.0, **changes: Any) -> Step:  # noqa: ANN401
    members: dict[str, Any] = {"name": "it", "kind": kind, "within_s": None, "victims": frozenset()} | changes
    step = Step(**members)
    step.began_at, step.ended_at, step.settled_at = began_at, began_at + lasts_s, began_at + lasts_s
    return step


def _good() -> Proof:
    """Make a run of five events in which everything is right."""
    return Proof(
        rows=[_row(place) for place in range(1, 6)],
        received=[message for number in range(1, 6) for message in _both(number)],
        retained=[_got(5, "event")],
        violations=[],
        steps=[_step()],
        hold_s=_HOLD_S,
    )


def _with(**changes: Any) -> Proof:  # noqa: ANN401 - any of its fields
    return dataclasses.replace(_good(), **changes)


def _rows(change: Callable[[list[Row]], None]) -> list[Row]:
    rows = list(_good().rows)
    change(rows)
    return rows


def _received(change: Callable[[list[Got]], None]) -> list[Got]:
    received = list(_good().received)
    change(received)
    return received


_OVERLAP = _rows(lambda rows: rows.__setitem__(1, _row(2, ended_at=101.6)))
_HELD_ON = _rows(lambda rows: rows.insert(2, _row(2, began_at=101.25, ended_at=101.6, number=None, whole=False)))
_LATER = _rows(lambda rows: rows.__setitem__(4, _row(5, began_at=109.0, ended_at=109.2, connection=2)))
_LOST = _received(lambda received: received.__delitem__(slice(4, 6)))
_KILLED = _rows(lambda rows: rows.__setitem__(slice(3, 5), [_row(4, connection=2), _row(5, connection=2)]))
_SWAPPED = [*_both(1), *_both(3, seq=2), *_both(2, seq=3), *_both(4), *_both(5)]
_AFTER_KILL = [*_both(1), *_both(2), *_both(4, seq=3), *_both(5, seq=4)]


def test_the_judge_finds_nothing_where_nothing_is_wrong() -> None:
    """Repeats with the same id and seq are no fault, nor what a harm explains."""
    proofs = [
        _good(),
        _with(received=_received(lambda received: received.extend(_both(5, replayed=True)))),
        _with(rows=_LATER, steps=[_step("kill", within_s=8.0)]),
        _with(rows=_KILLED, received=_AFTER_KILL, retained=[_got(5, "event", seq=4)], steps=[_step("kill")]),
        _with(rows=_OVERLAP, steps=[_step("stop")]),
        _with(rows=_HELD_ON, steps=[_step("kill")]),
        _with(received=_SWAPPED, steps=[_step("stop")]),
        _with(steps=[_step(struck_out=["m0"], victims=frozenset({"m0"}))]),
    ]
    for proof in proofs:
        verdict, _ = judge(proof)
        assert verdict.faults == []


@pytest.mark.parametrize(
    ("proof", "promise"),
    [
        (_with(rows=_OVERLAP), "polls overlap"),
        (_with(rows=_OVERLAP, steps=[_step("kill")]), "polls overlap"),
        (_with(rows=_LATER, steps=[_step("kill", within_s=5.0)]), "unpolled for 6.80 s"),
        (_with(received=_LOST), "lost without a cause"),
        (_with(received=_LOST, steps=[_step("stop")]), "lost without a cause"),
        (_with(received=_good().received[1:]), "on one topic alone"),
        (_with(received=_received(lambda received: received.extend(_both(6)))), "nobody handed out"),
        (_with(received=_received(lambda received: received.extend(_both(5, id="other")))), "one seq for two events"),
        (_with(received=_received(lambda received: received.extend(_both(5, id="other", seq=6)))), "two ids"),
        (_with(received=_received(lambda received: received.extend(_both(5, state="other")))), "repeats that differ"),
        (_with(received=_LOST, steps=[_step("kill")]), "holes in seq"),
        (_with(received=_SWAPPED), "order: 2: agent 101 on events: number 2 after 3"),
        (_with(received=_received(lambda received: received.insert(0, received.pop(2)))), "order"),
        (_with(retained=[_got(4, "event")]), "not the newest"),
        (_with(retained=[]), "not the newest"),
        (
            _with(violations=[{"agent": "101", "kind": "pause", "text": "", "at": 101.0}], steps=[_step("drain")]),
            "inter",
        ),
        (_with(violations=[{"agent": "101", "kind": "second_poll", "text": "", "at": 101.0}]), "interface document"),
        (_with(steps=[_step(struck_out=["m0"])]), "struck out without a cause"),
    ],
)
def test_the_judge_finds_what_is_wrong(proof: Proof, promise: str) -> None:
    """Each promise of points 2, 3, 4 and 5, broken in one place, is named."""
    verdict, _ = judge(proof)

    assert [fault for fault in verdict.faults if promise in fault], verdict.faults


async def test_a_fleet_loses_nothing_whatever_is_killed_stopped_or_cut_off() -> None:
    """Points 2 to 5: a kill, a stop, a partition and a drain; polls apart, in time, and nothing lost."""
    options = ["--agents", "60", "--members", "3", "--hold", f"{_HOLD_S:g}"]
    options += ["--patience", "3"]  # other tests run beside it
    options += ["--only", "kill", "leader", "burst", "partition", "drain"]
    paths = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), str(_ROOT)]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.fleet",
        *options,
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_WHOLE_S):
            output, _ = await process.communicate()
    except TimeoutError:
        process.send_signal(signal.SIGINT)
        output, _ = await process.communicate()

    assert process.returncode == 0, f"make chaos-fleet ARGS='{' '.join(options)}':\n{output.decode()}"
