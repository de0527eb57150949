"""The page, looked at by axe-core: nothing on it keeps out who reads it by ear, by keyboard, or in large print."""

from typing import Any, Literal

import pytest
from axe_playwright_python.async_playwright import Axe  # type: ignore[import-untyped] # it has no types
from playwright.async_api import Browser, Page, ViewportSize, expect

from adapter.nats import NatsServer
from adapter.wall import Settings, serve
from tests.wall_page_support import RINGING, open_wall, show_everything

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.page]

Scheme = Literal["light", "dark"]
DESK: ViewportSize = {"width": 1920, "height": 1080}
PHONE: ViewportSize = {"width": 360, "height": 740}
LOOKS: list[tuple[Scheme, ViewportSize]] = [("light", DESK), ("dark", DESK), ("light", PHONE), ("dark", PHONE)]


async def violations(page: Page) -> list[tuple[str, Any]]:
    """Let axe-core look at the page with every rule that it has, best practices too."""
    results = await Axe().run(page, options={"resultTypes": ["violations"]})
    found = results.response["violations"]
    return [(one["id"], [(node["target"], node["failureSummary"]) for node in one["nodes"]]) for one in found]


@pytest.mark.parametrize(("scheme", "viewport"), LOOKS)
async def test_nobody_is_kept_out(
    browser: Browser, embedded: NatsServer, scheme: Scheme, viewport: ViewportSize
) -> None:
    """Everything on the wall at once, its boxes open, then one agent in full: no rule of axe-core is broken."""
    async with open_wall(browser, embedded, color_scheme=scheme, viewport=viewport) as wall:
        page = wall.page
        await show_everything(wall)
        for box in ("view", "send"):
            if await page.locator(f"#{box}").is_hidden():
                await page.click(f"#{box}-toggle")
        await page.fill("#send-value", "x")
        await page.click("#send-button")
        await wall.feed.bridge("offline")
        await expect(page.locator("#away")).to_be_visible()
        assert await violations(page) == []

        await wall.feed.bridge()
        await wall.feed.event("301", "AgentEvent_Talking", {"caller": "13800138000"})
        await wall.feed.state("301", "in_call", call=RINGING)
        await wall.tile("301").locator(".name").click()
        await expect(page.locator("#detail-events li")).to_have_count(3)
        assert await violations(page) == []


@pytest.mark.parametrize(("scheme", "viewport"), LOOKS)
async def test_nobody_is_kept_out_of_the_log_in(browser: Browser, scheme: Scheme, viewport: ViewportSize) -> None:
    """The log-in with a warning and an error breaks no rule either, and fits onto the screen."""
    async with serve("127.0.0.1", 0, Settings(broker=None, ask=True)) as url:
        page = await browser.new_page(color_scheme=scheme, viewport=viewport)
        await page.goto(url)
        await page.fill("#login-broker", "ws://broker.example/?x")
        await page.click("#login-form button")
        await expect(page.locator("#login-said")).to_have_text("The address has no ? and no #.")
        await expect(page.locator("#login-broker")).to_be_focused()
        assert await violations(page) == []
        await page.fill("#login-broker", "ws://broker.example")
        await expect(page.locator("#login-warning")).to_contain_text("Without TLS")
        assert await violations(page) == []
        wide = "() => document.querySelector('#login').scrollWidth - document.querySelector('#login').clientWidth"
        assert await page.evaluate(wide) <= 0
        await page.close()
