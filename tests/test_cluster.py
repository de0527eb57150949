"""A fleet from end to end, on real NATS servers, a real broker and the simulated gateway (issue 6, SPEC section 10)."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from adapter.errors import StartError
from adapter.simulator import SimAgent, Simulator
from tests.adapter_support import Running, decoded, settings, start, write
from tests.broker_support import Broker, Peer
from tests.cluster_support import Servers, servers, until

AGENTS = 8
HOLD_S = 1.0


@contextlib.asynccontextmanager
async def simulated() -> AsyncIterator[Simulator]:
    """Run a gateway with eight agents."""
    agents = [SimAgent(work_no=str(101 + number)) for number in range(AGENTS)]
    async with Simulator(agents=agents, hold_s=HOLD_S) as simulator:
        yield simulator


def configure(directory: Path, simulator: Simulator, broker: Broker, nats: Servers, name: str) -> Path:
    """Write a member's configuration."""
    values = settings(simulator, broker, instance=name, cluster=nats.settings(), storage={"path": f"{name}.db"})
    return write(directory, values, f"{name}.yaml")


@contextlib.asynccontextmanager
async def members(paths: Sequence[Path]) -> AsyncIterator[list[Running]]:
    """Run members in this process while the context lasts."""
    running: list[Running] = []
    try:
        running.extend([await start(path) for path in paths])
        yield running
    finally:
        for member in running:
            if not member.task.done():
                member.app.stop()
        await asyncio.gather(*(member.task for member in running), return_exceptions=True)


def polled_by(running: Sequence[Running]) -> list[set[str]]:
    """Say which agents each member polls."""
    return [set(member.app._fleet.pollers) for member in running]


async def test_each_agent_is_polled_by_one_member(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 2 and 4: agents are shared out, a leaver hands over, and nothing is lost, doubled or numbered twice."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        paths = [configure(tmp_path, simulator, shared_broker, nats, name) for name in ("a", "b")]
        work_nos = {agent.work_no for agent in simulator.agents}
        with Peer(shared_broker, ["agents/#"]) as peer:
            async with members(paths) as running:
                await until(lambda: all(polled_by(running)) and set.union(*polled_by(running)) == work_nos)
                await until(lambda: not set.intersection(*polled_by(running)))
                for work_no in work_nos:
                    simulator.emit(work_no, {"eventType": "AgentState_Ready", "workNo": work_no, "content": None})
                await peer.wait_for(lambda: events(peer) >= Counter(work_nos))
                assert await running[0].stop() == "stopped"
                await until(lambda: polled_by(running)[1] == work_nos)
                for work_no in work_nos:
                    simulator.emit(work_no, {"eventType": "AgentState_Busy", "workNo": work_no, "content": None})
                await peer.wait_for(lambda: events(peer) >= Counter([*work_nos, *work_nos]))
            seen = {work_no: decoded(peer.on(f"agents/{work_no}/events")) for work_no in work_nos}
        assert all([event["seq"] for event in each] == [1, 2] for each in seen.values())
        assert simulator.violations == []


def events(peer: Peer) -> Counter[str]:
    """Count the events by agent."""
    return Counter(message.topic.split("/")[1] for message in list(peer.messages) if message.topic.endswith("/events"))


async def test_another_configuration_is_refused(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 6: the same agents list on every member; a different content hash is refused loudly."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        path = configure(tmp_path, simulator, shared_broker, nats, "a")
        other = configure(tmp_path, simulator, shared_broker, nats, "b")
        other.write_text(other.read_text().replace("work_no: '108'", "work_no: '109'"))
        async with members([path]):
            with pytest.raises(StartError, match="member a has another configuration") as refused:
                await start(other)
    assert refused.value.exit_code == 2
