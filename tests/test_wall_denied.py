"""The page with a log-in that may not read everything, on a broker that says so."""

from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from adapter.wall import Settings, serve
from tests.broker_support import Peer, nats
from tests.wall_support import moment

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.page]

STATE = f'{{"workNo": "101", "name": "Amina", "state": "idle", "since": "{moment(5)}", "call": null}}'


async def test_a_denied_subscription_is_told(browser: Browser, tmp_path: Path) -> None:
    """What a broker refuses to subscribe is tried some times, named, and all else is shown."""
    with nats(tmp_path / "nats", users={"wall": "w"}, deny="agents.*.calldata.result") as broker:
        settings = Settings(broker=broker.url("ws"), username="wall", password="w")  # noqa: S106 - made up
        with Peer(broker) as peer:
            await peer.publish("agents/101/state", STATE, retain=True)
        async with serve("127.0.0.1", 0, settings) as url:
            page = await browser.new_page()
            await page.goto(url)
            await expect(page.locator(".tile .state")).to_have_text("Idle")
            await expect(page.locator("#denied")).to_be_hidden()
            await expect(page.locator("#denied-text")).to_have_text(
                "This log-in may not read +/calldata/result: what they tell is missing here.", timeout=20_000
            )
            await expect(page.locator("#broker")).to_have_text("Broker connected")
            await page.close()
