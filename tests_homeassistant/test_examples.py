"""examples/home-assistant/, loaded by the real Home Assistant as its README says."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright, expect

from adapter.simulator import SimAgent
from tests.broker_support import Broker, Peer
from tests.wall_support import find_browser
from tests_homeassistant.home_assistant import ROOT, HomeAssistant
from tests_homeassistant.hub import DEADLINE_S, Hub
from tests_homeassistant.stage import PREFIX, Stage, gone, staged

AGENTS = (
    SimAgent(work_no="101", name="Amina", group="Support", signed_in=False),
    SimAgent(work_no="102", name="Yusuf", group="Support"),
    SimAgent(work_no="103", name="Chiara", group="Orders"),
    SimAgent(work_no="104", name="Jonas", group="Orders", signed_in=False),
)
LAMP = {
    "name": "Agent 101",
    "default_entity_id": "light.agent_101",
    "unique_id": "lamp",
    "schema": "json",
    "command_topic": "test/lamp/set",
    "supported_color_modes": ["rgb"],
    "brightness": False,
}
NOTICE = "nobody_idle_support"
SHOTS = ROOT / "build/home-assistant/screenshots"
expect.set_options(timeout=DEADLINE_S * 1_000)
CALL = {"callid": "c-1", "caller": "+442079460000", "called": "800", "feature": "0"}


@pytest.fixture
async def stage(tmp_path: Path, broker: Broker, home: HomeAssistant, hub: Hub) -> AsyncIterator[Stage]:
    """Run the agents whom the examples name, all idle."""
    with Peer(broker) as peer:
        await peer.publish(f"{PREFIX}/light/lamp/config", json.dumps(LAMP), retain=True)
    await hub.wait_for(lambda: "light.agent_101" in hub.states, "the lamp")
    async with staged(tmp_path, broker, "main", AGENTS) as made:
        for agent in AGENTS:
            await hub.wait_state(f"sensor.agent_{agent.work_no}_state", "idle")
        events = {f"event.agent_{agent.work_no}_event" for agent in AGENTS}
        await hub.wait_for(lambda: events <= set(hub.states), "the event entities")
        yield made
    async with home.hub() as again:  # a test may have restarted Home Assistant
        await gone(again, *(f"sensor.agent_{agent.work_no}_state" for agent in AGENTS))


def lamp(stage: Stage) -> list[Any]:
    """List what the lamp was told."""
    return [json.loads(payload) for payload in stage.peer.payloads("test/lamp/set")]


def rung(stage: Stage) -> list[Any]:
    """List what the automation that was made from the blueprint has sent."""
    return [json.loads(payload) for payload in stage.peer.payloads("test/ringing")]


async def test_lamp(stage: Stage, hub: Hub) -> None:
    """The lamp is red while the agent is in a call, off after it, and off when the adapter dies during the next."""
    stage.simulator.emit_sample("101", "AgentState_Busy")
    red = await hub.wait_state("light.agent_101", "on")
    assert red.attributes["rgb_color"] == [255, 0, 0]
    stage.simulator.emit_sample("101", "AgentState_Work")
    await hub.wait_state("light.agent_101", "off")
    stage.simulator.emit_sample("101", "AgentState_Busy")
    await hub.wait_state("light.agent_101", "on")
    await stage.kill()
    await hub.wait_state("light.agent_101", "off")

    on = {"state": "ON", "color": {"r": 255, "g": 0, "b": 0}}
    await stage.peer.wait_for(lambda: lamp(stage)[-4:] == [on, {"state": "OFF"}, on, {"state": "OFF"}])


async def test_nobody_idle(stage: Stage, hub: Hub) -> None:
    """A notice is shown once nobody of the group has been idle for a while, and goes with the first who is."""

    def notices(what: str) -> list[dict[str, str]]:
        found = (event["notifications"] for event in hub.events if event["type"] == what)
        return [each[NOTICE] for each in found if NOTICE in each]

    await hub.ask("persistent_notification/subscribe")
    stage.simulator.emit_sample("101", "AgentState_SetNotReady_Success")
    stage.simulator.emit_sample("102", "AgentState_SetRest_Success")
    (shown,) = await hub.wait_for(lambda: notices("added"), "the notice")
    assert shown["message"].splitlines() == ["- Amina: busy", "- Yusuf: rest"]
    assert not notices("removed")

    stage.simulator.emit_sample("102", "AgentState_CancelRest_Success")
    await hub.wait_for(lambda: notices("removed"), "the end of the notice")


async def test_blueprint(stage: Stage, home: HomeAssistant, hub: Hub) -> None:
    """An event sets the automation off once, and neither a restart of Home Assistant nor one of the broker again."""
    stage.simulator.emit_sample("101", "AgentState_SetNotReady_Success")
    stage.simulator.emit_sample("101", "AgentEvent_Ringing", CALL)
    await stage.peer.wait_for(lambda: rung(stage))
    first = next(json.loads(each) for each in stage.peer.payloads("main/101/event") if b"Ringing" in each)
    event = {"type": "AgentEvent_Ringing", "id": first["id"], "replayed": False}
    assert rung(stage) == [event | {"caller": "+442079460000", "called": "800", "call_id": "c-1"}]
    told = await hub.wait_for(
        lambda: [each for each in hub.changes if each.attributes.get("event_id") == first["id"]], "the event"
    )
    assert [each.entity_id for each in told] == ["event.agent_101_event"]

    await asyncio.to_thread(home.stop)
    home.start()
    await asyncio.to_thread(home.wait)
    async with home.hub() as again:
        after = await again.wait_state("event.agent_101_event", told[0].state)
        assert after.attributes["event_id"] == first["id"]
        await again.wait_state("sensor.agent_101_call", "ringing")

        await asyncio.to_thread(stage.broker.restart)
        await stage.peer.wait_subscribed()
        await again.wait_state("event.agent_101_event", "unavailable")
        await again.wait_state("event.agent_101_event", told[0].state)
        stage.simulator.emit_sample("102", "AgentEvent_Ringing", CALL)
        await stage.peer.wait_for(lambda: len(rung(stage)) > 1)
        second = next(json.loads(each) for each in stage.peer.payloads("main/102/event") if b"Ringing" in each)
        assert [each["id"] for each in rung(stage)] == [first["id"], second["id"]]


async def test_dashboard(stage: Stage, home: HomeAssistant) -> None:
    """The dashboard shows everybody, with no card in error, and follows a call; its picture is below `build/`."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page = await browser.new_page(viewport={"width": 1280, "height": 800})
        await log_in(page, home)
        await page.goto(f"{home.url}/contact-centre/agents")
        everybody = page.locator("ha-markdown")
        await expect(everybody.get_by_role("row").filter(has_text="Yusuf")).to_contain_text("idle")
        for heading in ("Support", "Orders"):
            await expect(everybody).to_contain_text(heading)
        await expect(page.locator("hui-error-card")).to_have_count(0)

        stage.simulator.emit_sample("101", "AgentEvent_Ringing", CALL)
        stage.simulator.emit_sample("101", "AgentState_Busy")
        stage.simulator.emit_sample("101", "AgentEvent_Talking", CALL)
        stage.simulator.emit_sample("102", "AgentState_SetRest_Success")
        await expect(everybody.get_by_role("row").filter(has_text="Amina")).to_contain_text("in call")
        await expect(everybody.get_by_role("row").filter(has_text="Yusuf")).to_contain_text("rest")
        await expect(page.locator("hui-tile-card").nth(1)).to_contain_text("+442079460000")
        SHOTS.mkdir(parents=True, exist_ok=True)
        await page.screenshot(path=SHOTS / "dashboard.png")
        await browser.close()


async def log_in(page: Page, home: HomeAssistant) -> None:
    """Give a page the log-in that `home` holds, as the frontend itself keeps it."""
    tokens = home.tokens | {"hassUrl": home.url, "clientId": home.client_id, "expires": 4_102_444_800_000}
    await page.add_init_script(f"localStorage.setItem('hassTokens', JSON.stringify({json.dumps(tokens)}))")
