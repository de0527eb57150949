"""The page on the whole chain: simulator, adapter, nats-server, browser, and call data all the way back."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright, expect

from adapter.nats import NatsServer, run_nats
from adapter.simulator import SimAgent, Simulator
from adapter.wall import Settings, serve
from tests.adapter_support import HOLD_S, running, write
from tests.wall_support import find_browser

AGENTS = (SimAgent(work_no="101", name="Amina", group="Orders"), SimAgent(work_no="102", name="Yusuf", group="Support"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Everything from the gateway to the page."""

    simulator: Simulator
    broker: NatsServer
    page: Page


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[Chain]:
    """Run the chain with two agents who are signed in elsewhere."""
    async with (
        Simulator(agents=AGENTS, hold_s=HOLD_S) as simulator,
        run_nats() as broker,
        serve("127.0.0.1", 0, Settings(broker=broker.websocket_url)) as url,
        async_playwright() as playwright,
    ):
        agents = [
            {"work_no": agent.work_no, "name": agent.name, "group": agent.group, "guid": agent.guid}
            for agent in simulator.agents
        ]
        gateway = {"url": simulator.url, "ca_file": str(simulator.ca_file), "hold": HOLD_S, "timeout": HOLD_S + 1}
        config = {"gateway": gateway, "mqtt": {"url": broker.mqtt_url}, "agents": agents}
        async with running(write(tmp_path, config)):
            browser = await playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
            page = await browser.new_page(viewport={"width": 1920, "height": 1080})
            await page.goto(url)
            yield Chain(simulator=simulator, broker=broker, page=page)
            await browser.close()
        assert simulator.violations == []


async def test_page_shows_the_gateway(chain: Chain) -> None:
    """Tiles appear for the configured agents, and a state that changes at the gateway changes on the page."""
    amina = chain.page.locator('.tile[data-work-no="101"]')
    await expect(amina.locator(".name")).to_have_text("Amina")
    await expect(chain.page.locator(".tile")).to_have_count(2)

    chain.simulator.emit_sample("101", "AgentState_SetRest_Success")

    await expect(amina).to_have_attribute("data-state", "rest")
    await expect(amina.locator(".state")).to_have_text("Rest")


async def test_call_data_of_the_page_is_applied(chain: Chain) -> None:
    """Call data sent from the page goes with the agent's next poll, and the page shows the result."""
    await expect(chain.page.locator(".tile")).to_have_count(2)
    await chain.page.select_option("#send-agent", "102")
    await chain.page.fill("#send-value", "order=4711 für Zoë")

    await chain.page.click("#send-button")

    sent = chain.page.locator("#sent-list li").first
    await expect(sent.locator(".sent-outcome")).to_contain_text("goes with the next poll")
    await expect(sent).to_have_attribute("data-outcome", "applied", timeout=10_000)
    assert [value for _, value in chain.simulator.calldata("102")] == ["order=4711 für Zoë"]


async def test_broker_stopped_in_the_middle(chain: Chain) -> None:
    """While the broker is away the page says so; when it is back, what happened meanwhile arrives."""
    amina = chain.page.locator('.tile[data-work-no="101"]')
    await expect(amina).to_have_attribute("data-belief", "live")

    await chain.broker.kill()
    await expect(chain.page.locator("#cut")).to_be_visible()
    for event_type in ("AgentState_SetNotReady_Success", "AgentState_CancelNotReady_Success", "AgentState_Work"):
        chain.simulator.emit_sample("101", event_type)
    await chain.simulator.wait_for(lambda: chain.simulator.queued("101") == 0)
    await chain.broker.restart()

    await expect(chain.page.locator("#cut")).to_be_hidden(timeout=20_000)
    await expect(amina).to_have_attribute("data-state", "work", timeout=20_000)
