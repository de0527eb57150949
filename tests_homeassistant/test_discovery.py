"""Discovery, as the real Home Assistant takes it (docs/home-assistant.md)."""

from pathlib import Path

from adapter.simulator import SimAgent
from tests.adapter_support import wait_for
from tests.broker_support import Broker
from tests_homeassistant.hub import Hub
from tests_homeassistant.stage import gone, staged

ENTITIES = {
    "event.agent_{}_event",
    "sensor.agent_{}_state",
    "sensor.agent_{}_call",
    "binary_sensor.agent_{}_in_call",
    "binary_sensor.agent_{}_signed_in",
    "sensor.agent_{}_last_event",
    "text.agent_{}_calldata",
}
BUTTONS = {"button.agent_{}_sign_in", "button.agent_{}_sign_out"}
BRIDGE = {
    "binary_sensor.ccgateway2mqtt_{}_connected",
    "sensor.ccgateway2mqtt_{}_agents_polled",
    "sensor.ccgateway2mqtt_{}_outbox_depth",
    "binary_sensor.ccgateway2mqtt_{}_gateway_reachable",
    "sensor.ccgateway2mqtt_{}_version",
    "button.ccgateway2mqtt_{}_reload",
}


def named(names: set[str], name: str) -> set[str]:
    """Put a work number or an instance into names of entities."""
    return {each.format(name) for each in names}


async def test_entities_appear(tmp_path: Path, broker: Broker, hub: Hub) -> None:
    """Every agent is a device behind the adapter's, with its entities; buttons are there where we may sign in."""
    agents = (
        SimAgent(work_no="201", name="Amina", group="Support"),
        SimAgent(work_no="202", name="Yusuf", signed_in=False),
    )
    async with staged(tmp_path, broker, "appear", agents):
        await hub.wait_state("sensor.agent_201_state", "idle")
        await hub.wait_state("sensor.agent_202_state", "idle")
        await hub.wait_state("sensor.ccgateway2mqtt_appear_agents_polled", "2")
        wanted = named(ENTITIES, "201") | named(ENTITIES | BUTTONS, "202") | named(BRIDGE, "appear")
        registry = {entry["entity_id"]: entry for entry in await hub.registry()}
        assert set(registry) == wanted
        disabled = {name for name, entry in registry.items() if entry["disabled_by"]}
        assert disabled == {"sensor.agent_201_last_event", "sensor.agent_202_last_event"}
        assert {name for name in wanted - disabled if hub.states[name].state == "unavailable"} == set()

        devices = {
            device["name"]: device for device in await hub.devices() if device["name"].startswith(("Agent", "cc"))
        }
        assert set(devices) == {"Agent 201 Amina", "Agent 202 Yusuf", "ccgateway2mqtt appear"}
        bridge = devices["ccgateway2mqtt appear"]
        assert (
            devices["Agent 201 Amina"]["via_device_id"] == devices["Agent 202 Yusuf"]["via_device_id"] == bridge["id"]
        )
        assert hub.states["sensor.agent_201_state"].attributes["agent_group"] == "Support"
    await gone(hub, *wanted)


async def test_call_is_followed(tmp_path: Path, broker: Broker, hub: Hub) -> None:
    """The sensors follow a call from ringing to its end, and the event entity takes each event once."""
    async with staged(tmp_path, broker, "call", [SimAgent(work_no="211")]) as stage:
        await hub.wait_state("sensor.agent_211_state", "idle")
        call = {"callid": "c-1", "caller": "02079460000", "called": "800", "feature": "0"}

        stage.simulator.emit_sample("211", "AgentEvent_Ringing", call)
        ringing = await hub.wait_state("sensor.agent_211_call", "ringing")
        assert ringing.attributes["caller"] == "02079460000"
        assert hub.states["binary_sensor.agent_211_in_call"].state == "off"

        stage.simulator.emit_sample("211", "AgentState_Busy")
        stage.simulator.emit_sample("211", "AgentEvent_Talking", call)
        await hub.wait_state("sensor.agent_211_call", "talking")
        await hub.wait_state("binary_sensor.agent_211_in_call", "on")
        await hub.wait_state("sensor.agent_211_state", "in_call")

        stage.simulator.emit_sample("211", "AgentEvent_Call_Release", "c-1")
        stage.simulator.emit_sample("211", "AgentState_Work")
        await hub.wait_state("sensor.agent_211_call", "none")
        await hub.wait_state("binary_sensor.agent_211_in_call", "off")
        await hub.wait_state("sensor.agent_211_state", "work")

        stage.simulator.emit("211", {"eventType": "AgentEvent_Of_Tomorrow", "workNo": "211"})
        last = await hub.wait_for(
            lambda: [e for e in hub.changes if e.attributes.get("event_type") == "other"], "a new event type"
        )
        assert last[0].attributes["gateway_type"] == "AgentEvent_Of_Tomorrow"
        events = [each.attributes for each in hub.changes if each.entity_id == "event.agent_211_event"]
        assert [each["event_type"] for each in events if each.get("event_id")] == [
            "AgentEvent_Ringing",
            "AgentState_Busy",
            "AgentEvent_Talking",
            "AgentEvent_Call_Release",
            "AgentState_Work",
            "other",
        ]


async def test_call_data(tmp_path: Path, broker: Broker, hub: Hub) -> None:
    """What is typed into the text goes with the agent's next poll (C2), though it looks like a command."""
    async with staged(tmp_path, broker, "data", [SimAgent(work_no="221")]) as stage:
        await hub.wait_state("sensor.agent_221_state", "idle")
        await hub.wait_state("text.agent_221_calldata", "unknown")
        await hub.call("text.set_value", "text.agent_221_calldata", value='{"calldata": "x"} é')
        result = await wait_for(stage.peer, "data/221/calldata/result", lambda _: True)

        assert result["status"] == "applied"
        assert [value for _, value in stage.simulator.calldata("221")] == ['{"calldata": "x"} é']


async def test_crash(tmp_path: Path, broker: Broker, hub: Hub) -> None:
    """After SIGKILL the last will makes everything unavailable; a new start brings it back as it is then."""
    async with staged(tmp_path, broker, "crash", [SimAgent(work_no="231", signed_in=False)]) as stage:
        await hub.wait_state("sensor.agent_231_state", "idle")
        await hub.wait_state("sensor.ccgateway2mqtt_crash_agents_polled", "1")
        connected = "binary_sensor.ccgateway2mqtt_crash_connected"
        shown = (named(ENTITIES | BUTTONS, "231") | named(BRIDGE, "crash")) - {"sensor.agent_231_last_event"}

        await stage.kill()
        await hub.wait_state(connected, "off")
        await hub.wait_for(
            lambda: {hub.states[name].state for name in shown - {connected}} == {"unavailable"}, "all unavailable"
        )

        await stage.start()
        await hub.wait_state(connected, "on")
        await hub.wait_state("sensor.agent_231_state", "idle")
        await hub.wait_for(lambda: "unavailable" not in {hub.states[name].state for name in shown}, "all available")


async def test_signed_out(tmp_path: Path, broker: Broker, hub: Hub) -> None:
    """A signed-out agent shows `signed_out`, cannot be sent call data, and its sign-in button works."""
    async with staged(tmp_path, broker, "out", [SimAgent(work_no="241", signed_in=False)]) as stage:
        await hub.wait_state("sensor.agent_241_state", "idle")
        stage.simulator.sign_out("241")
        await hub.wait_state("sensor.agent_241_state", "signed_out")
        await hub.wait_state("binary_sensor.agent_241_signed_in", "off")
        await hub.wait_state("text.agent_241_calldata", "unavailable")
        await hub.wait_state("button.agent_241_sign_out", "unavailable")

        await hub.call("button.press", "button.agent_241_sign_in")
        await hub.wait_state("sensor.agent_241_state", "idle")
        await hub.wait_state("binary_sensor.agent_241_signed_in", "on")
        assert stage.simulator.signed_in("241")

        await hub.call("button.press", "button.agent_241_sign_out")
        await hub.wait_state("sensor.agent_241_state", "signed_out")
        assert not stage.simulator.signed_in("241")


async def test_removed_agent(tmp_path: Path, broker: Broker, hub: Hub) -> None:
    """With an agent taken out of the configuration and the reload button pressed, all of it disappears."""
    agents = [SimAgent(work_no="251"), SimAgent(work_no="252")]
    async with staged(tmp_path, broker, "gone", agents) as stage:
        await hub.wait_state("sensor.agent_251_state", "idle")
        await hub.wait_state("sensor.agent_252_state", "idle")
        stage.configure("252")
        await hub.call("button.press", "button.ccgateway2mqtt_gone_reload")
        await gone(hub, *named(ENTITIES, "251"))

        assert {e["entity_id"] for e in await hub.registry()} == named(ENTITIES, "252") | named(BRIDGE, "gone")
        assert "Agent 251" not in {device["name"] for device in await hub.devices()}
        assert hub.states["sensor.agent_252_state"].state == "idle"
