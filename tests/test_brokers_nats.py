"""Issue 6, point 7: NATS as the broker too. Three real nats-server nodes, the one in use is killed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

from adapter.agent.presence import Timing
from adapter.config import broker_at
from adapter.errors import BrokerError
from adapter.mqtt import Dialer
from tests.broker_support import HOST, Broker
from tests.cluster_support import Node, Servers, servers, until
from tests.fault_support import emit, seqs
from tests.stage_support import Stage, staged

READY_S = 120.0


async def speaks_mqtt(node: Node) -> None:
    """Wait until a node grants subscriptions: its streams have leaders, and all three nodes take part."""
    assert node.mqtt_port is not None
    dialer = Dialer(broker_at(f"mqtt://{HOST}:{node.mqtt_port}", "ready"), remembered="3.1.1")
    async with asyncio.timeout(READY_S):
        while True:
            with contextlib.suppress(BrokerError):
                async with dialer.connect(client_id=f"ready-{node.mqtt_port}", on_message=lambda _: None) as connection:
                    await connection.subscribe([("ready/+", 1)])
                    return
            await asyncio.sleep(0.1)


def as_broker(node: Node, directory: Path) -> Broker:
    """See a node as the broker that a listener connects to."""
    assert node.mqtt_port is not None
    return Broker(name="nats", command=[], ports={"mqtt": node.mqtt_port}, directory=directory, data=directory)


@contextlib.asynccontextmanager
async def cluster(directory: Path) -> AsyncIterator[Servers]:
    """Run three nodes that speak MQTT."""
    async with servers(directory, 3, mqtt=True) as nats:
        for node in nats.nodes:
            await speaks_mqtt(node)
        yield nats


async def command_taken(stage: Stage, name: str) -> None:
    """Send commands, as often as it takes, until one has its result."""
    for number in count():
        await stage.send("101/calldata/set", {"calldata": "x", "id": f"{name}-{number}"})
        with contextlib.suppress(TimeoutError):
            await until(lambda: any(told["id"].startswith(name) for told in stage.json("101/calldata/result")), 2.0)
            return


async def test_the_node_in_use_is_killed(tmp_path: Path) -> None:
    """Point 7: the adapter goes on over another node by itself, nothing is lost, and commands are taken again."""
    async with cluster(tmp_path) as nats:
        first, second, third = nats.nodes
        url = ",".join(f"mqtt://{HOST}:{node.mqtt_port}" for node in (first, second, third))
        async with (
            staged(tmp_path, as_broker(third, tmp_path)) as stage,
            stage.running(mqtt={"url": url}, timing=Timing(mark_s=0.5)) as adapter,
        ):
            await stage.polling("101")
            emit(stage, 3)
            await stage.wait("101/events", seq=3)
            await command_taken(stage, "before")
            connection = adapter.app._link.connection
            assert connection is not None
            assert connection.place == f"{HOST}:{first.mqtt_port}"

            await first.kill()
            emit(stage, 5)
            await stage.wait("101/events", seq=8)
            emit(stage, 5)
            await command_taken(stage, "after")
            await stage.wait("101/events", seq=13)
            await until(lambda: not adapter.app._outbox.depth)

            connection = adapter.app._link.connection
            assert connection is not None
            assert connection.place != f"{HOST}:{first.mqtt_port}"
        assert seqs(stage) == list(range(1, 14))
        assert len({(event["seq"], event["id"]) for event in stage.json("101/events")}) == 13
