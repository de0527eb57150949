"""The main job: an event at the gateway is a message on the broker, and call data goes back."""

import contextlib
import resource
from pathlib import Path

from adapter.simulator import Simulator
from tests.adapter_support import decoded, running, settings, wait_for, write
from tests.broker_support import Broker, Peer
from tests.tcp_proxy import Proxy


async def test_event_goes_out(tmp_path: Path, simulator: Simulator, broker: Broker, peer: Peer) -> None:
    """An event at the gateway is published retained and on the stream, and the state follows."""
    async with running(write(tmp_path, settings(simulator, broker))):
        await simulator.wait_for(lambda: simulator.polling("101"))
        simulator.emit_sample("101", "AgentState_SetNotReady_Success")
        event = await wait_for(peer, "agents/101/event", lambda _: True)
        state = await wait_for(peer, "agents/101/state", lambda payload: payload["state"] == "busy")

        assert event["eventType"] == "AgentState_SetNotReady_Success"
        assert event["seq"] == 1
        assert state["eventId"] == event["id"]
        assert peer.payloads("agents/101/events") == peer.payloads("agents/101/event")


async def test_call_data_before_the_first_poll(
    tmp_path: Path, simulator: Simulator, broker: Broker, peer: Peer
) -> None:
    """Call data that comes before an agent's first request waits for that, also where nothing is stored yet (C2)."""
    async with running(write(tmp_path, settings(simulator, broker))):
        assert not simulator.polls("102"), "the second agent begins half a hold later"
        await peer.publish("agents/102/calldata/set", b"early")
        result = await wait_for(peer, "agents/102/calldata/result", lambda _: True)

        assert result["status"] == "applied"
        assert [value for _, value in simulator.calldata("102")] == ["early"]


async def test_backlog_is_told_and_its_end(tmp_path: Path, simulator: Simulator, broker: Broker, peer: Peer) -> None:
    """A new connection is told at once how much has waited for it, and that it is all out when it is."""
    async with (
        Proxy(broker.ports["mqtt"]) as proxy,
        running(write(tmp_path, settings(simulator, broker, mqtt={"url": proxy.url}))) as adapter,
    ):
        await simulator.wait_for(lambda: simulator.polling("101"))
        broker.stop()
        for number in range(3):
            simulator.emit_sample("101", "AgentState_SetNotReady_Success", {"reason": str(number)})
        await simulator.wait_for(lambda: simulator.drained("101"))
        await proxy.reopen(broker, peer)
        await peer.wait_for(lambda: len(peer.on("agents/101/events")) == 3)

        await wait_for(peer, "agents/bridge/health", lambda health: health["outbox"]["depth"] >= 3)
        await wait_for(
            peer, "agents/bridge/health", lambda health: health["events"] == 3 and not health["outbox"]["depth"]
        )
        assert adapter.task.done() is False


async def test_1100_open_files(tmp_path: Path, simulator: Simulator, broker: Broker, peer: Peer) -> None:
    """With 1,100 files open before it starts, the adapter finds a broker that was bounced, and publishes again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))
    path = write(tmp_path, settings(simulator, broker))
    with contextlib.ExitStack() as files:
        for _ in range(1_100):
            files.enter_context(path.open())
        async with running(path):
            await simulator.wait_for(lambda: simulator.polling("101"))
            broker.stop()
            while files.enter_context(path.open()).fileno() <= 1_100:  # what was lost left lower numbers free
                pass
            broker.restart()
            await peer.wait_subscribed()
            simulator.emit_sample("101", "AgentState_SetRest_Success")
            event = await wait_for(peer, "agents/101/event", lambda _: True)

            assert event["eventType"] == "AgentState_SetRest_Success"


async def test_retrying_keeps_its_beginning(tmp_path: Path, simulator: Simulator, broker: Broker, peer: Peer) -> None:
    """While polls fail, each attempt is told, and `since` stays the moment at which they began to."""
    values = settings(simulator, broker, gateway={"error_interval": [1.01, 1.1]})
    async with running(write(tmp_path, values)):
        await simulator.wait_for(lambda: simulator.polling("101"))
        await simulator.go_away()
        await wait_for(peer, "agents/101/session", lambda session: session.get("attempt") == 3)
        await simulator.come_back()

        retrying = [each for each in decoded(peer.on("agents/101/session")) if each["phase"] == "retrying"]
        assert [each["attempt"] for each in retrying][:3] == [1, 2, 3]
        assert len({each["since"] for each in retrying}) == 1
