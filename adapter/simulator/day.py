"""A plausible day: agents who take calls, hold them, hand them over, rest, and go home.

Each process (a call, a rest, the stream of callers of a group) is a generator which yields the seconds until its
next step. They are stepped in the order of a virtual clock, so that a seed gives the same day however slow the
machine is, and a test can go through hours of it in no time.
"""

import asyncio
import heapq
import itertools
import random
import time
from collections.abc import Sequence

from adapter.simulator.agent import SimAgent
from adapter.simulator.calls import Call, Floor, Process, Stage, incoming, outgoing
from adapter.simulator.faults import status

NAMES = (
    "Amina", "Yusuf", "Mei", "Kwame", "Ingrid", "Mateo",
    "Priya", "Leilani", "Oleksandr", "Zainab", "Hiroshi", "Chloé",
)  # fmt: skip
GROUPS = ("Orders", "Support")

_FIRST_WORK_NO = 101
_BUSY_REASONS = ("1", "200", "201", "202")
_REST_REASONS = ("200", "203", "204")
_REST = 0.3
_BUSY = 0.55
_CALL_OUT = 0.92
_REMINDED = 0.2
_CALL_EVERY_S = 60.0
"""Seconds between two callers for each agent of a group: about half of the agents then talk at any time."""
_FIRST_S = (0.5, 3.0)
"""When the first agents are there and the first customers call: somebody is looking."""


def demo_agents(number: int) -> tuple[SimAgent, ...]:
    """Make agents with names, from 101 on, in two groups of the same size."""
    agents = []
    for index in range(number):
        turn, place = divmod(index, len(NAMES))
        name = NAMES[place] if turn == 0 else f"{NAMES[place]} {turn + 1}"
        group = GROUPS[index % len(GROUPS)]
        agents.append(SimAgent(work_no=str(_FIRST_WORK_NO + index), name=name, group=group))
    return tuple(agents)


class Day:
    """Lets a day pass for some agents of a simulator.

    Args:
        stage: The simulator.
        agents: Those whose day it is; agents of one group hand calls over to each other.
        seed: The same seed gives the same day, as long as the same agents are signed in.
        speed: Seconds of the day for each second of the clock.
        sign_outs: Whether agents go home; each goes on once somebody has signed it in again.
    """

    def __init__(
        self,
        stage: Stage,
        agents: Sequence[SimAgent],
        *,
        seed: int = 1,
        speed: float = 1.0,
        sign_outs: bool = True,
    ) -> None:
        self._stage = stage
        self._speed = speed
        self._sign_outs = sign_outs
        self._order = itertools.count()
        self._heap: list[tuple[float, int, Process]] = []
        self._now_s = 0.0
        self._floor = Floor(stage, agents, random.Random(seed), self._begin)  # noqa: S311  no secret
        groups: dict[str | None, list[str]] = {}
        for agent in agents:
            groups.setdefault(agent.group, []).append(agent.work_no)
            self._begin(self._presence(agent.work_no))
        for members in groups.values():
            self._begin(self._callers(members))
        self._begin(self._faults([agent.work_no for agent in agents]))

    async def run(self) -> None:
        """Let the day pass until cancelled."""
        began_at = time.monotonic()
        while True:
            wait_s = self._heap[0][0] / self._speed - (time.monotonic() - began_at)
            await asyncio.sleep(max(0.0, wait_s))
            self.step()

    def step(self) -> float:
        """Go to the next thing that happens, without waiting for it; give its time in seconds of the day."""
        self._now_s, _, process = heapq.heappop(self._heap)
        in_s = next(process, None)
        if in_s is not None:
            self._begin(process, in_s)
        return self._now_s

    def _begin(self, process: Process, in_s: float = 0.0) -> None:
        heapq.heappush(self._heap, (self._now_s + in_s, next(self._order), process))

    def _presence(self, work_no: str) -> Process:
        """Bring an agent in once it is signed in; then what it does of itself, and at last the way home."""
        floor = self._floor
        yield floor.between(0, _FIRST_S[0])
        while True:
            while not self._stage.signed_in(work_no):
                yield 1.0
            floor.free.add(work_no)
            yield floor.between(5, 50)
            while self._stage.signed_in(work_no):
                if floor.take([work_no]) is not None:
                    yield from self._own_activity(work_no)
                yield floor.between(15, 60)
            floor.free.discard(work_no)

    def _callers(self, members: Sequence[str]) -> Process:
        """Let customers call a group."""
        floor = self._floor
        yield floor.between(*_FIRST_S)
        while True:
            work_no = floor.take(members)
            if work_no is not None:
                self._begin(incoming(floor, work_no, members))
            yield floor.between(0.3, 1.7) * _CALL_EVERY_S / len(members)

    def _faults(self, members: Sequence[str]) -> Process:
        """Let a load balancer say 503 now and then."""
        while True:
            yield self._floor.between(40, 90)
            self._stage.script(self._floor.draw.choice(members), status(503))

    def _own_activity(self, work_no: str) -> Process:
        floor = self._floor
        kind = floor.draw.random()
        cast: dict[str, Call | None] = {work_no: None}
        if kind < _REST:
            return floor.guarded(cast, self._pause(work_no, "Rest", _REST_REASONS, (20, 45)))
        if kind < _BUSY:
            return floor.guarded(cast, self._pause(work_no, "NotReady", _BUSY_REASONS, (8, 25)))
        if kind < _CALL_OUT or not self._sign_outs:
            return outgoing(floor, work_no)
        return floor.guarded(cast, self._go_home(work_no))

    def _pause(self, work_no: str, kind: str, reasons: Sequence[str], length_s: tuple[float, float]) -> Process:
        floor = self._floor
        floor.emit(work_no, f"AgentState_Set{kind}_Success", {"reason": floor.draw.choice(reasons)})
        yield floor.between(*length_s)
        if kind == "Rest" and floor.chance(_REMINDED):
            floor.emit(work_no, "AgentState_Rest_Timeout")
            yield floor.between(5, 10)
        floor.emit(work_no, f"AgentState_Cancel{kind}_Success")

    def _go_home(self, work_no: str) -> Process:
        login_time = str(int(time.time() * 1000))
        self._floor.emit(work_no, "AgentOther_ShutdownService", {"loginTime": login_time})
        # The event is fetched with the next poll, and ends the session; the agent is not to be called before.
        yield 30.0
