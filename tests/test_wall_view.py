"""The page's choice of agents, its time line, and how it says that what it shows is old."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from playwright.async_api import Browser, expect

from adapter.nats import NatsServer
from adapter.payloads import CallPayload, RosterAgent
from tests.wall_page_support import RINGING, Wall, open_wall

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.page]

VISIBLE = ".tile:visible"


async def fleet(wall: Wall) -> None:
    """Put five agents of two groups and none onto the page."""
    await wall.feed.roster(
        RosterAgent(work_no="12", name="Zoë", group="Support"),
        RosterAgent(work_no="9", name="Amina", group="Support"),
        RosterAgent(work_no="101", name="Bruno", group="Sales"),
        RosterAgent(work_no="102", name=None, group="Sales"),
        RosterAgent(work_no="7", name="Chiara", group=None),
    )
    for seconds, (work_no, state) in enumerate(
        (("12", "idle"), ("9", "in_call"), ("101", "idle"), ("102", "busy"), ("7", "rest"))
    ):
        await wall.feed.state(work_no, state, ago_s=100 * (seconds + 1))  # type: ignore[arg-type] # from a literal
    await expect(wall.page.locator(VISIBLE)).to_have_count(5)
    await expect(wall.tile("7").locator(".state")).to_have_text("Rest")


async def expect_order(wall: Wall, *work_nos: str) -> None:
    """Wait until just these tiles are shown, in this order."""
    tiles = wall.page.locator(VISIBLE)
    await expect(tiles).to_have_count(len(work_nos))
    for index, work_no in enumerate(work_nos):
        await expect(tiles.nth(index)).to_have_attribute("data-work-no", work_no)


async def test_agents_can_be_searched_and_chosen_by_group(browser: Browser, embedded: NatsServer) -> None:
    """Text, group and state narrow what is shown together; counts follow text and group; the address keeps it all."""
    async with open_wall(browser, embedded) as wall:
        page = wall.page
        await fleet(wall)
        await expect_order(wall, "101", "102", "12", "9", "7")
        await expect(page.locator("#view-group option")).to_have_text(["All", "Sales", "Support", "No group"])

        await page.select_option("#view-group", label="Support")
        await expect_order(wall, "12", "9")
        await expect(page.locator("#total")).to_have_text("2 of 5 agents")
        await expect(page.locator('.chip[data-state="busy"] .chip-number')).to_have_text("0")
        await page.locator('.chip[data-state="idle"]').click()
        await expect_order(wall, "12")
        await expect(page.locator('.chip[data-state="in_call"] .chip-number')).to_have_text("1")
        await expect(page.locator("#spoken")).to_contain_text("1 agent of 5 shown.")
        await page.reload()
        await expect_order(wall, "12")
        await expect(page.locator("#view-group")).to_have_value("=Support")

        await wall.feed.state("12", "busy")
        await expect(page.locator("#none")).to_be_visible()
        await page.click("#none-all")
        await expect_order(wall, "101", "102", "12", "9", "7")
        await expect(page.locator("#view-text")).to_be_focused()
        for text, found in (("zOË", ["12"]), ("10", ["101", "102"]), ("sales", ["101", "102"]), ("chia", ["7"])):
            await page.fill("#view-text", text)
            await expect_order(wall, *found)
        await page.locator("#view-all").click()
        await page.select_option("#view-group", label="No group")
        await expect_order(wall, "7")


async def test_agents_can_be_put_in_order(browser: Browser, embedded: NatsServer) -> None:
    """By name, number, state, and by who is longest in their state: one list, in which a change finds its place."""
    async with open_wall(browser, embedded) as wall:
        await fleet(wall)
        for order, expected in (
            ("name", ["9", "101", "7", "12", "102"]),
            ("number", ["7", "9", "12", "101", "102"]),
            ("state", ["9", "101", "12", "102", "7"]),
            ("longest", ["7", "102", "101", "9", "12"]),
        ):
            await wall.page.select_option("#view-order", order)
            await expect_order(wall, *expected)
        await expect(wall.page.locator(".group:visible")).to_have_text(["All agents"])
        await expect(wall.tile("7").locator(".number")).to_have_text("7")
        await expect(wall.tile("102").locator(".number")).to_have_text("Sales")
        await wall.tile("7").locator(".name").focus()
        await wall.feed.state("7", "idle")
        await expect_order(wall, "102", "101", "9", "12", "7")
        await expect(wall.tile("7").locator(".name")).to_be_focused()


async def test_the_tab_key_finds_what_is_shown(browser: Browser, embedded: NatsServer) -> None:
    """With the tile hidden where the Tab key stopped, it stops at the first that is shown."""
    async with open_wall(browser, embedded) as wall:
        await fleet(wall)
        stop = wall.page.locator('.tile:has(.name[tabindex="0"])')
        await wall.tile("101").locator(".name").focus()
        await expect(stop).to_have_attribute("data-work-no", "101")
        await wall.page.select_option("#view-group", label="Support")
        await expect(stop).to_have_count(1)
        await expect(stop).to_have_attribute("data-work-no", "12")


async def test_the_time_line_has_events_and_calls(browser: Browser, embedded: NatsServer) -> None:
    """Calls stand among the events with their parties, phases and length; states and calls are a picture and a sum."""
    async with open_wall(browser, embedded) as wall:
        await wall.feed.state("101", "idle", ago_s=120)
        await wall.tile("101").locator(".name").click()
        line = wall.page.locator("#detail-events li")
        await expect(wall.page.locator("#detail-none")).to_be_visible()
        await wall.feed.event("101", "AgentEvent_Ringing", {"caller": "13800138000"}, ago_s=1)
        await wall.feed.state("101", "in_call", call=RINGING)
        await expect(line.locator(".what")).to_have_text(["Call · incoming · 13800138000 → 8101", "Ringing"])
        talking = CallPayload(call_id="c-1", phase="talking", caller="13800138000", called="8101", direction="in")
        await wall.feed.state("101", "in_call", call=talking)
        await expect(line.locator(".phases")).to_have_text(re.compile(r"^Ringing 0:0\d, Talking 0:0[1-9]$"))
        await expect(line.locator(".lasted")).to_have_text(re.compile(r"^0:0[1-9] so far$"))
        await wall.feed.state("101", "work")
        await expect(line.locator(".lasted")).to_have_text(re.compile(r"^0:\d\d$"))
        await expect(wall.page.locator("#detail-sums")).to_have_text(
            re.compile(r"^In the last 5 min: In call \d s, Idle (2 min|119 s), Wrap-up \d s\.$")
        )
        bands = "() => [...document.querySelectorAll('#detail-picture rect')].map((e) => e.dataset.state ?? 'call')"
        assert await wall.page.evaluate(bands) == ["idle", "idle", "in_call", "in_call", "work", "call"]
        second = CallPayload(call_id="c-2", phase="calling_out", caller="8101", called="800", direction="out")
        await wall.feed.state("101", "work", call=second)
        await expect(line.locator(".what").first).to_have_text("Call · outgoing · 8101 → 800")
        await expect(line).to_have_count(3)


def health(at: datetime) -> bytes:
    """Render a report of health of that time."""
    return (
        f'{{"at": "{at.isoformat(timespec="milliseconds").replace("+00:00", "Z")}", "outbox": {{"depth": 0}}}}'.encode()
    )


async def test_an_adapter_that_was_gone_before_is_dated(browser: Browser, embedded: NatsServer) -> None:
    """Opened while the adapter is offline, the page says when it was last heard of, not when the page was opened."""
    async with open_wall(browser, embedded) as wall:
        await wall.feed.state("101", "idle")
        await wall.feed.bridge("offline")
        await wall.feed.client.publish(
            wall.feed.topics.bridge("health"), health(datetime.now(UTC) - timedelta(minutes=7)), retain=True
        )
        await expect(wall.tile("101")).to_have_attribute("data-belief", "last-known")
        await wall.page.reload()
        await expect(wall.page.locator("#away-text")).to_have_text(
            re.compile(r"^Adapter offline\. Every state .* Last heard of at \d\d:\d\d:\d\d, 7 min ago\.$")
        )


async def test_an_adapter_that_hangs_is_told(browser: Browser, embedded: NatsServer) -> None:
    """Online, but without a word for over 150 s: what is seen may be out of date, and the page says so."""
    async with open_wall(browser, embedded) as wall:
        await wall.feed.bridge()
        await wall.feed.client.publish(
            wall.feed.topics.bridge("health"), health(datetime.now(UTC) - timedelta(minutes=4)), retain=True
        )
        await wall.page.reload()
        await expect(wall.page.locator("#away-text")).to_have_text(
            re.compile(r"^No word of the adapter for 4 min\. What you see may be out of date\. Last heard of at")
        )
        await wall.feed.health()
        await expect(wall.page.locator("#away")).to_be_hidden()
        await expect(wall.page.locator("#adapter")).to_have_text("Adapter online")


async def test_times_run_only_where_they_are_seen(browser: Browser, embedded: NatsServer) -> None:
    """With 500 tiles a tick of the clock writes to those on the screen and near it, not to all."""
    async with open_wall(browser, embedded) as wall:
        for number in range(500):
            work_no = str(1001 + number)
            wall.feed.client.publish_soon(wall.feed.topics.state(work_no), wall.feed.render_state(work_no, "idle"))
        await expect(wall.page.locator(".tile")).to_have_count(500, timeout=30_000)
        written = await wall.page.evaluate(
            """() => new Promise((resolve) => {
              const tiles = new Set();
              new MutationObserver((records) => {
                for (const { target } of records) tiles.add((target.parentElement ?? target).closest('.tile'));
              }).observe(document.querySelector('main'), { subtree: true, childList: true, characterData: true });
              setTimeout(() => resolve(tiles.size), 2500);
            })"""
        )
        on_screen = await wall.page.evaluate(
            "() => [...document.querySelectorAll('.tile')]"
            ".filter((e) => e.getBoundingClientRect().top < innerHeight + 200).length"
        )
        assert 0 < written <= on_screen < 100
        await wall.tile("1001").locator(".name").focus()
        await wall.page.keyboard.press("End")
        await expect(wall.tile("1500").locator(".time")).to_have_text(re.compile(r"^0:(0[2-9]|[1-5]\d)$"))
