"""The wall page in a real browser, with the adapter's part of the broker behind it."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from playwright.async_api import Browser, Page, expect

from adapter.nats import NatsServer
from adapter.payloads import CallPayload, StateName
from adapter.wall import Settings, serve
from tests.wall_support import Client, Feed

STATES: tuple[StateName, ...] = ("idle", "busy", "rest", "work", "in_call", "signed_out", "unknown")
RINGING = CallPayload(call_id="c-1", phase="ringing", caller="13800138000", called="8101", direction="in")
_prefixes = (f"wall{number}" for number in itertools.count(1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wall:
    """An open page and the adapter's part of the broker behind it."""

    page: Page
    feed: Feed
    said: list[str]

    def tile(self, work_no: str) -> Any:  # noqa: ANN401 - playwright's Locator, whose methods are not fully typed
        """Locate an agent's tile."""
        return self.page.locator(f'.tile[data-work-no="{work_no}"]')


@asynccontextmanager
async def open_wall(browser: Browser, embedded: NatsServer, **options: Any) -> AsyncIterator[Wall]:  # noqa: ANN401 - playwright's
    """Open the page at an empty broker prefix; no error may have been thrown in it at the end."""
    prefix = next(_prefixes)
    settings = Settings(broker=embedded.websocket_url, prefix=prefix)
    options = {"viewport": {"width": 1920, "height": 1080}, "color_scheme": "light"} | options
    async with Client(embedded) as client, serve("127.0.0.1", 0, settings) as url:
        page = await browser.new_page(**options)
        errors: list[str] = []
        said: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: said.append(message.text))
        await page.goto(url)
        await expect(page.locator("#broker")).to_have_text("Broker connected")
        try:
            yield Wall(page=page, feed=Feed(client, prefix), said=said)
        finally:
            await page.close()
        assert errors == []
        assert not any("Content Security Policy" in line for line in said)


async def show_everything(wall: Wall) -> None:
    """Bring every colour of the page onto it: all states, believed and not, banners, a ringing call."""
    await wall.feed.bridge()
    await wall.feed.health(depth=3, oldest_seconds=9)
    for index, state in enumerate(STATES):
        await wall.feed.state(str(101 + index), state, name=f"Agent {index}", reason="200")
        await wall.feed.state(str(201 + index), state)
        await wall.feed.session(str(201 + index), "retrying", message="connection refused")
    await wall.feed.state("301", "in_call", call=RINGING)
    await wall.feed.event("301", "AgentEvent_Ringing", ago_s=40, replayed=True)
    await expect(wall.page.locator(".tile")).to_have_count(15)
    await expect(wall.page.locator('.tile[data-belief="last-known"]')).to_have_count(6)
    await expect(wall.page.locator("#backlog")).to_contain_text("came late")
