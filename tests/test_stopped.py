"""A process that is stopped for a while and goes on, as a suspended laptop or a frozen container does."""

import asyncio
import signal
from collections import Counter
from pathlib import Path

from adapter.simulator import SimAgent, Simulator
from tests.adapter_support import settings, write
from tests.broker_support import Broker, Peer
from tests.cli_support import program
from tests.cluster_support import until
from tests.test_cluster import events

_AGENTS = 20
_ROUNDS = 3
_STOPPED_S = 4.0
"""Longer than the timeout of a poll."""


async def test_what_came_while_the_process_stood_still_is_read(tmp_path: Path, shared_broker: Broker) -> None:
    """D1: an answer that is there when the process goes on is taken, however late its timer says that it is."""
    agents = [SimAgent(work_no=str(101 + number)) for number in range(_AGENTS)]
    async with Simulator(agents=agents, hold_s=1.0) as simulator:
        values = settings(simulator, shared_broker, gateway={"timeout": 2.0}, storage={"path": "a.db"})
        path = write(tmp_path, values)
        with Peer(shared_broker, ["agents/+/events"]) as peer:
            async with program("run", "-c", path) as adapter:
                emitted: Counter[str] = Counter()
                for _ in range(_ROUNDS):
                    await until(lambda: sum(simulator.polling(agent.work_no) for agent in agents) > _AGENTS / 2)
                    adapter.send(signal.SIGSTOP)
                    for agent in agents:
                        if simulator.polling(agent.work_no):
                            event = {"eventType": "AgentState_Ready", "workNo": agent.work_no, "content": None}
                            simulator.emit(agent.work_no, event)
                            emitted[agent.work_no] += 1
                    await asyncio.sleep(_STOPPED_S)
                    adapter.send(signal.SIGCONT)
                    await peer.wait_for(lambda: events(peer) >= emitted)
        assert events(peer) == emitted
