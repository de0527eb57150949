"""The main job: an event at the gateway is a message on the broker, and call data goes back."""

from pathlib import Path

from adapter.simulator import Simulator
from tests.adapter_support import running, settings, wait_for, write
from tests.broker_support import Broker, Peer


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
