"""What tests of a faulty broker have in common: what was logged of it, and which events came."""

import asyncio
from collections.abc import Callable

import pytest

from tests.broker_support import DEADLINE_S
from tests.stage_support import Stage


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """List what was logged of the broker since the test began, each line with its level."""
    lines = [(record.levelname, record.getMessage()) for record in caplog.get_records("call")]
    return [f"{level} {text}" for level, text in lines if text.startswith("broker: ")]


async def until(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
    """Wait until `condition()` is true, for something that has no event."""
    async with asyncio.timeout(deadline_s):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


def seqs(stage: Stage, work_no: str = "101", name: str = "events") -> list[int]:
    """List the numbers of an agent's events in the order in which they came first, repeats left out."""
    return list(dict.fromkeys(event["seq"] for event in stage.json(f"{work_no}/{name}")))


def emit(stage: Stage, count: int, work_no: str = "101") -> None:
    """Have the gateway hand out events."""
    for _ in range(count):
        stage.simulator.emit_sample(work_no, "AgentState_Ready")
