"""Makes a scenario happen: one task per agent with a timeline."""

import asyncio
import random
import re
import time
from collections.abc import Mapping
from typing import Protocol

from adapter.simulator.agent import Event
from adapter.simulator.faults import Fault
from adapter.simulator.scenario import Repeated, Scenario, Step

_PLACEHOLDER = re.compile(r"\$\$?[A-Za-z0-9_]+")
_OWN = "$$"


class Stage(Protocol):
    """What a scenario needs of the simulator."""

    def emit(self, work_no: str, event: Event) -> None:
        """See `Simulator.emit`."""
        ...

    def emit_sample(self, work_no: str, event_type: str, content: object = ...) -> object:
        """See `Simulator.emit_sample`."""
        ...

    def script(self, work_no: str, *faults: Fault, on: str = "poll") -> None:
        """See `Simulator.script`."""
        ...

    def every(self, work_no: str, number: int, fault: Fault) -> None:
        """See `Simulator.every`."""
        ...

    def sign_in(self, work_no: str) -> str:
        """See `Simulator.sign_in`."""
        ...

    def sign_out(self, work_no: str, *, notify: bool = False) -> None:
        """See `Simulator.sign_out`."""
        ...

    def expire_guid(self, work_no: str) -> None:
        """See `Simulator.expire_guid`."""
        ...

    def set_status(self, work_no: str, code: int) -> None:
        """See `Simulator.set_status`."""
        ...

    def cut(self, work_no: str) -> None:
        """See `Simulator.cut`."""
        ...


class Player:
    """Plays a scenario on a stage.

    Args:
        stage: The simulator.
        scenario: What is to happen.
        speed: Seconds of the scenario for each second of the clock.
    """

    def __init__(self, stage: Stage, scenario: Scenario, *, speed: float = 1.0) -> None:
        self._stage = stage
        self._speed = speed
        self._scenario = scenario
        self._ids: dict[tuple[str, str], str] = {}
        self._call_count = 0

    async def run(self) -> None:
        """Go through all timelines, as many times as the scenario says."""
        for every in self._scenario.every:
            for work_no in every.agents:
                self._stage.every(work_no, every.polls, every.fault)
        done = 0
        while done < self._scenario.loops:
            self._ids.clear()
            began_at = time.monotonic()
            async with asyncio.TaskGroup() as group:
                for work_no, steps in self._scenario.timeline.items():
                    # Drawn from a generator of its own, so that one agent's steps do not depend on another's pace.
                    draw = random.Random(f"{self._scenario.seed}/{work_no}/{done}")  # noqa: S311  no secret
                    group.create_task(self._play(work_no, steps, draw, began_at), name=f"scenario[{work_no}]")
            # A scenario whose steps take no time must not keep the loop from turning.
            await asyncio.sleep(0)
            done += 1

    async def _play(self, work_no: str, steps: tuple[Step, ...], draw: random.Random, began_at: float) -> None:
        for step in steps:
            wait_s = draw.uniform(*step.after_s) / self._speed
            if step.at_s is not None:
                wait_s = max(0.0, began_at + step.at_s / self._speed - time.monotonic())
            await asyncio.sleep(wait_s)
            if isinstance(step.argument, Repeated):
                done = 0
                while done < step.argument.times:
                    self._forget_own(work_no)
                    await self._play(work_no, step.argument.steps, draw, time.monotonic())
                    done += 1
            else:
                self._do(work_no, step)

    def _do(self, work_no: str, step: Step) -> None:
        stage = self._stage
        match step.action:
            case "event":
                event_type, content = step.argument
                stage.emit_sample(work_no, event_type, self._filled(work_no, content))
            case "emit":
                stage.emit(work_no, self._filled_mapping(work_no, step.argument))
            case "fault":
                on, faults = step.argument
                stage.script(work_no, *faults, on=on)
            case "sign_out":
                stage.sign_out(work_no, notify=step.argument == "told")
            case "sign_in":
                stage.sign_in(work_no)
            case "expire_guid":
                stage.expire_guid(work_no)
            case "status":
                stage.set_status(work_no, step.argument)
            case "cut":
                stage.cut(work_no)

    def _forget_own(self, work_no: str) -> None:
        for key in [key for key in self._ids if key[0] == work_no]:
            del self._ids[key]

    def _filled(self, work_no: str, value: object) -> object:
        """Put call ids in place of ``$names``.

        ``$name`` is the same call for all agents in one pass; ``$$name`` is the agent's own, and a new one each time
        that steps are repeated.
        """
        if isinstance(value, Mapping):
            return self._filled_mapping(work_no, value)
        if isinstance(value, str) and _PLACEHOLDER.fullmatch(value):
            key = (work_no if value.startswith(_OWN) else "", value)
            if key not in self._ids:
                self._call_count += 1
                self._ids[key] = f"{int(time.time())}-{self._call_count}"
            return self._ids[key]
        return value

    def _filled_mapping(self, work_no: str, value: Mapping[str, object]) -> dict[str, object]:
        return {key: self._filled(work_no, member) for key, member in value.items()}
