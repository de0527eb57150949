"""The page, in a real browser against a real broker: what it shows, what it sends, and that it can be read."""

import asyncio
import json
import re

import httpx
import pytest
from playwright.async_api import Browser, expect

from adapter.nats import NatsServer, run_nats
from adapter.payloads import CallPayload, RosterAgent, Status
from adapter.wall import Settings, files_directory, serve
from tests.wall_page_support import RINGING, STATES, open_wall, show_everything
from tests.wall_support import moment, until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.page]


async def test_tiles_appear_in_their_groups(browser: Browser, embedded: NatsServer) -> None:
    """The roster gives names, groups and order; agents without a group stand last; the header counts states."""
    async with open_wall(browser, embedded) as wall:
        await expect(wall.page.locator("#waiting")).to_be_visible()
        await wall.feed.bridge()
        await wall.feed.roster(
            RosterAgent(work_no="102", name="Bruno", group="Support"),
            RosterAgent(work_no="101", name="Amina", group="Support"),
            RosterAgent(work_no="201", name=None, group="Sales"),
            RosterAgent(work_no="301", name="Chiara", group=None),
        )
        await wall.feed.state("101", "idle")
        await wall.feed.state("102", "busy", reason="200")
        await expect(wall.page.locator(".group")).to_have_text(["Sales", "Support", "No group"])
        await expect(wall.page.locator(".name")).to_have_text(["Agent 201", "Bruno", "Amina", "Chiara"])
        await expect(wall.tile("102").locator(".state")).to_have_text("Busy")
        await expect(wall.tile("102").locator(".note")).to_have_text("Reason 200")
        await expect(wall.tile("102").locator(".number")).to_have_text("102")
        await expect(wall.page.locator("#total")).to_have_text("4 agents")
        counts = wall.page.locator('.chip:not([hidden]):has(.chip-number:not(:text-is("0")))')
        await expect(counts).to_have_text(["1Idle", "1Busy", "2Unknown"])
        await expect(wall.page.locator("#adapter")).to_have_text("Adapter online")
        await expect(wall.page.locator("#waiting")).to_be_hidden()


async def test_a_tile_appears_from_its_state_alone(browser: Browser, embedded: NatsServer) -> None:
    """An agent without a roster is shown too, with what its state tells."""
    async with open_wall(browser, embedded) as wall:
        await wall.feed.state("101", "rest", name="Amina", group="Support")
        await expect(wall.tile("101").locator(".name")).to_have_text("Amina")
        await expect(wall.page.locator(".group")).to_have_text("Support")


async def test_changes_show_with_call_and_events(browser: Browser, embedded: NatsServer) -> None:
    """A change of state, the call with its phase and parties, its time, and the last events appear at once."""
    async with open_wall(browser, embedded) as wall:
        tile = wall.tile("101")
        await wall.feed.state("101", "idle", ago_s=3700)
        await expect(tile).to_have_attribute("data-state", "idle")
        await expect(tile.locator(".time")).to_have_text(re.compile(r"^1:01:4\d$"))
        await expect(tile.locator(".call")).to_be_hidden()
        await wall.feed.event("101", "AgentEvent_Ringing", {"caller": "13800138000"})
        await wall.feed.event("101", "AgentState_Busy")
        await wall.feed.state("101", "in_call", call=RINGING)
        await expect(tile.locator(".state")).to_have_text("In call")
        await expect(tile.locator(".phase")).to_have_text("Ringing")
        await expect(tile.locator(".party")).to_have_text("from 13800138000")
        await expect(tile.locator(".call-time")).to_have_text(re.compile(r"^0:0[1-9]$"))
        await expect(tile.locator(".what")).to_have_text(["Handling a call", "Ringing"])
        await expect(tile.locator(".events time").first).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))
        calling = CallPayload(call_id="c-2", phase="calling_out", caller="8101", called="02151234567", direction="out")
        await wall.feed.state("101", "in_call", call=calling)
        await expect(tile.locator(".phase")).to_have_text("Calling")
        await expect(tile.locator(".party")).to_have_text("to 02151234567")


async def test_an_offline_agent_looks_different(browser: Browser, embedded: NatsServer) -> None:
    """While an agent is offline its tile says "last known" and why, has a broken line and no state colour."""
    async with open_wall(browser, embedded) as wall:
        tile = wall.tile("101")
        await wall.feed.state("101", "idle")
        await wall.feed.session("101", "polling")
        await expect(tile).to_have_attribute("data-belief", "live")
        plate = tile.locator(".plate")
        colour = await plate.evaluate("e => getComputedStyle(e).backgroundColor")
        await wall.feed.session("101", "retrying", message="connection refused", attempt=7)
        await expect(tile).to_have_attribute("data-belief", "last-known")
        await expect(tile.locator(".known")).to_be_visible()
        await expect(tile.locator(".state")).to_have_text("Idle")
        await expect(tile.locator(".note")).to_have_text("Gateway not reached, attempt 7: connection refused")
        assert await tile.evaluate("e => getComputedStyle(e).borderTopStyle") == "dashed"
        assert await plate.evaluate("e => getComputedStyle(e).backgroundColor") != colour
        await wall.feed.session("101", "polling")
        await expect(tile).to_have_attribute("data-belief", "live")
        await expect(tile.locator(".known")).to_be_hidden()


async def test_a_signed_out_agent_is_not_last_known(browser: Browser, embedded: NatsServer) -> None:
    """Signed out is the truth, not the last thing known, and says the gateway's code."""
    async with open_wall(browser, embedded) as wall:
        tile = wall.tile("101")
        await wall.feed.state("101", "idle")
        await wall.feed.session("101", "signed_out", retcode="100-006", message="agent not signed in")
        await expect(tile).to_have_attribute("data-belief", "out")
        await expect(tile.locator(".state")).to_have_text("Signed out")
        await expect(tile.locator(".note")).to_have_text("agent not signed in (100-006)")
        await wall.feed.session("101", "stopped", message="storage is full")
        await expect(tile.locator(".note")).to_have_text("Not polled: storage is full")
        await wall.feed.session("101", "signing_in")
        await expect(tile.locator(".note")).to_have_text("Signing in …")


async def test_without_the_adapter_everything_is_last_known(browser: Browser, embedded: NatsServer) -> None:
    """When the adapter goes, a banner says so, and every tile is only the last known; also to a screen reader."""
    async with open_wall(browser, embedded) as wall:
        await wall.feed.bridge()
        await wall.feed.state("101", "idle")
        await wall.feed.session("101", "polling")
        await expect(wall.tile("101")).to_have_attribute("data-belief", "live")
        await wall.feed.bridge("offline")
        await expect(wall.page.locator("#away")).to_have_text(re.compile("Adapter offline since .* last one known"))
        await expect(wall.tile("101")).to_have_attribute("data-belief", "last-known")
        await expect(wall.page.locator("#spoken")).to_contain_text("Adapter offline since")
        await wall.feed.bridge()
        await expect(wall.page.locator("#away")).to_be_hidden()
        await expect(wall.tile("101")).to_have_attribute("data-belief", "live")


async def test_the_backlog_is_shown(browser: Browser, embedded: NatsServer) -> None:
    """What waits in the outbox, and what is at risk, stands in a banner until it is gone."""
    async with open_wall(browser, embedded) as wall:
        banner = wall.page.locator("#backlog")
        await wall.feed.health()
        await expect(wall.page.locator("#outbox")).to_have_text("Outbox empty")
        await expect(banner).to_be_hidden()
        await wall.feed.health(depth=1234, oldest_seconds=300, at_risk=1)
        await expect(banner).to_contain_text("1 event at risk")
        await expect(banner).to_contain_text("Backlog: 1,234 messages waiting, the oldest for 5 min")
        await expect(wall.page.locator("#outbox")).to_have_text("Outbox 1,234")
        await wall.feed.health()
        await expect(banner).to_be_hidden()
        await wall.feed.event("101", "AgentState_Ready", ago_s=40, replayed=True)
        await expect(banner).to_contain_text("1 event came late")
        await expect(wall.tile("101").locator(".late")).to_be_visible()


async def test_a_broker_outage_shows_and_heals(browser: Browser) -> None:
    """Cut off: a banner with the age of what is seen, and nothing to send. Back: what happened meanwhile is counted."""
    async with run_nats() as own, open_wall(browser, own) as wall:
        await wall.feed.bridge()
        await wall.feed.state("101", "idle")
        await wall.feed.event("101", "AgentState_Ready")
        await wall.page.fill("#send-value", "x")
        await expect(wall.page.locator("#send-button")).to_be_enabled()
        await own.kill()
        cut = wall.page.locator("#cut")
        await expect(cut).to_have_text(re.compile(r"Cut off from the broker since \S+ What you see is [1-9]\d* s old"))
        await expect(wall.page.locator("#send-button")).to_be_disabled()
        time_then = await wall.tile("101").locator(".time").text_content()
        await expect(cut).to_have_text(re.compile(r"is [3-9] s old"))
        assert await wall.tile("101").locator(".time").text_content() == time_then
        during = moment()
        await own.start()
        await expect(cut).to_be_hidden()
        await until(wall.feed.client.connected)
        for event_type in ("AgentEvent_Ringing", "AgentState_Busy", "AgentState_Work"):
            await wall.feed.event("101", event_type, receivedAt=during)
        await wall.feed.state("101", "work")
        await expect(wall.page.locator("#backlog")).to_have_text(
            re.compile(r"up after \d+ s without the broker: 3 events came late")
        )
        await expect(wall.tile("101").locator(".state")).to_have_text("Wrap-up")
        await expect(wall.page.locator("#spoken")).to_contain_text("Connected to the broker again")


@pytest.mark.parametrize("roster_first", [True, False])
async def test_an_agent_that_left_is_gone(browser: Browser, embedded: NatsServer, *, roster_first: bool) -> None:
    """Left out of the roster, its topics cleared, in either order: an agent has no tile and its group no heading."""
    async with open_wall(browser, embedded) as wall:
        amina = RosterAgent(work_no="101", name="Amina", group="Support")
        await wall.feed.roster(amina, RosterAgent(work_no="102", name="Bruno", group="Sales"))
        await wall.feed.state("101", "idle")
        await wall.feed.state("102", "idle")
        await expect(wall.page.locator(".group")).to_have_text(["Sales", "Support"])
        if roster_first:
            await wall.feed.roster(amina)
        await wall.feed.client.publish(wall.feed.topics.state("102"), b"", retain=True)
        if not roster_first:
            await wall.feed.roster(amina)
        await expect(wall.page.locator(".tile")).to_have_count(1)
        await expect(wall.page.locator(".group")).to_have_text(["Support"])


async def test_what_left_during_an_outage_is_gone(browser: Browser) -> None:
    """An agent removed while the page was cut off is found missing from what is retained."""
    async with run_nats() as own, open_wall(browser, own) as wall:
        amina = RosterAgent(work_no="101", name="Amina", group=None)
        await wall.feed.roster(amina, RosterAgent(work_no="102", name="Bruno", group=None))
        await wall.feed.state("101", "idle")
        await wall.feed.state("102", "idle")
        await expect(wall.page.locator(".tile")).to_have_count(2)
        await wall.page.context.set_offline(True)
        await own.restart()
        await until(wall.feed.client.connected)
        await wall.feed.client.publish(wall.feed.topics.state("102"), b"", retain=True)
        await wall.feed.roster(amina)
        await wall.page.context.set_offline(False)
        await expect(wall.page.locator(".tile")).to_have_count(1, timeout=15_000)


@pytest.mark.parametrize(
    ("status", "more", "shown"),
    [
        ("applied", {"retcode": "0"}, r"applied after \d+ s"),
        ("rejected", {"reason": "queue full"}, "rejected: queue full"),
        ("rejected", {"retcode": "000-003"}, r"rejected: \(000-003\)"),
        ("expired", {}, r"expired after \d+ s"),
    ],
)
async def test_call_data_comes_back(
    browser: Browser, embedded: NatsServer, status: Status, more: dict[str, str], shown: str
) -> None:
    """C2: what is sent says "goes with the next poll", waits, and shows its own result, not another sender's."""
    async with open_wall(browser, embedded) as wall:
        await wall.feed.roster(
            RosterAgent(work_no="101", name="Amina", group=None), RosterAgent(work_no="102", name="Bruno", group=None)
        )
        commands = await wall.feed.commands("102")
        await wall.page.select_option("#send-agent", "102")
        await wall.page.fill("#send-value", "order=4711 ü 😀")
        await wall.page.press("#send-value", "Enter")
        outcome = wall.page.locator(".sent-outcome")
        waits = r"goes with the next poll … [1-9]\d* s" if status == "applied" else "goes with the next poll"
        await expect(outcome).to_have_text(re.compile(waits))
        await until(commands)
        (command,) = commands()
        assert command["calldata"] == "order=4711 ü 😀"
        assert command["ttl"] == 60
        assert set(command) == {"calldata", "id", "ttl"}
        await wall.feed.result("102", "of somebody else", "rejected", reason="not yours")
        await wall.feed.client.publish(wall.feed.topics.result("102", "calldata"), b"no json")
        await wall.feed.result("102", command["id"], status, **more)
        await expect(outcome).to_have_text(re.compile(shown))
        await expect(wall.page.locator("#sent-list li")).to_have_attribute("data-outcome", status)
        await expect(wall.page.locator("#spoken")).to_contain_text(re.compile(f"Call data for Bruno.*{shown}"))
        await expect(wall.page.locator("#spoken")).not_to_contain_text("not yours")


async def test_call_data_without_a_result_says_so(browser: Browser, embedded: NatsServer) -> None:
    """Where no result comes within the time to live and two polls, the page says that it does not know."""
    async with open_wall(browser, embedded) as wall:
        await wall.feed.state("101", "idle")
        commands = await wall.feed.commands("101")
        await wall.page.fill("#send-value", "x")
        await wall.page.click("#send-button")
        await until(commands)
        # The page's clock alone jumps: Date.now, 86 s on.
        await wall.page.evaluate("() => { const now = Date.now; Date.now = () => now() + 86000; }")
        await expect(wall.page.locator(".sent-outcome")).to_have_text(re.compile("no result within 85 s"))
        await wall.feed.result("101", commands()[0]["id"], "applied")


async def test_call_data_is_measured_in_bytes(browser: Browser, embedded: NatsServer) -> None:
    """C1: 2,048 bytes of UTF-8 can be sent, one more cannot, nor nothing."""
    async with open_wall(browser, embedded) as wall:
        await wall.feed.state("101", "idle")
        await expect(wall.page.locator("#send-agent option")).to_have_count(1)
        button = wall.page.locator("#send-button")
        await expect(button).to_be_disabled()
        await wall.page.fill("#send-value", "ü" * 1024)
        await expect(button).to_be_enabled()
        await wall.page.fill("#send-value", "ü" * 1024 + "x")
        await expect(button).to_be_disabled()
        await expect(wall.page.locator("#send-size")).to_have_text("2,049 bytes, at most 2,048")
        await expect(wall.page.locator("#send-value")).to_have_attribute("aria-invalid", "true")


async def test_nothing_from_the_wire_becomes_markup(browser: Browser, embedded: NatsServer) -> None:
    """Markup in a name, a group, an event, its content, a call or a message is shown as the text it is."""
    evil = "<img src=x onerror=\"document.title='owned'\"><b class=owned>"
    async with open_wall(browser, embedded) as wall:
        await wall.feed.roster(RosterAgent(work_no="101", name=evil, group=evil))
        call = CallPayload(call_id=evil, phase="talking", caller=evil, called=evil, direction=None)
        await wall.feed.state("101", "in_call", call=call, reason=evil)
        await wall.feed.session("101", "retrying", message=evil)
        await wall.feed.event("101", evil, {"note": evil})
        await expect(wall.tile("101").locator(".name")).to_have_text(evil)
        await expect(wall.tile("101").locator(".events li")).to_have_count(1)
        await wall.tile("101").locator(".name").click()
        await expect(wall.page.locator("#detail-events .content")).to_contain_text("onerror")
        assert await wall.page.locator(".owned, main img, dialog img").count() == 0
        assert await wall.page.title() == "Agents"


async def test_a_broken_payload_breaks_nothing(browser: Browser, embedded: NatsServer) -> None:
    """Whatever comes on a topic, the page goes on with the next good one."""
    async with open_wall(browser, embedded) as wall:
        topics = wall.feed.topics
        for payload in (b"", b"{", b"[]", b"null", b"5", b'{"state": 5, "call": 1, "since": []}', b"\xff\xfe"):
            for topic in (*topics.retained("101"), topics.events("101"), topics.roster(1), topics.bridge("health")):
                wall.feed.client.publish_soon(topic, payload)
            wall.feed.client.publish_soon(f"{topics.prefix}/101/toString", payload)
            wall.feed.client.publish_soon(topics.result("101", "calldata"), payload)
        await wall.feed.state("101", "idle")
        await expect(wall.tile("101").locator(".state")).to_have_text("Idle")


async def test_details_and_keyboard(browser: Browser, embedded: NatsServer) -> None:
    """Arrows move between tiles, Enter opens an agent with its last events and their content, Escape closes."""
    async with open_wall(browser, embedded) as wall:
        for number in range(101, 121):
            await wall.feed.state(str(number), "idle", group="Sales" if number < 111 else "Support")
        for number in range(22):
            await wall.feed.event("101", "AgentEvent_Ringing", {"number": number})
        await expect(wall.tile("101").locator(".events li")).to_have_count(10)
        await expect(wall.page.locator('.name[tabindex="0"]')).to_have_count(1)
        await wall.tile("101").locator(".name").focus()
        focused = wall.page.locator(".tile:focus-within")
        for key, work_no in (
            ("ArrowRight", "102"),
            ("ArrowLeft", "101"),
            ("ArrowLeft", "101"),
            ("ArrowDown", "107"),
            ("ArrowDown", "111"),
            ("ArrowUp", "107"),
            ("End", "120"),
            ("Home", "101"),
        ):
            await wall.page.keyboard.press(key)
            await expect(focused).to_have_attribute("data-work-no", work_no)
        await wall.page.keyboard.press("Enter")
        detail = wall.page.locator("#detail")
        await expect(detail).to_be_visible()
        await expect(detail.locator("li")).to_have_count(22)
        await expect(detail.locator(".content").first).to_contain_text('"number": 21')
        await wall.feed.state("101", "in_call", call=RINGING)
        await expect(detail.locator("#fact-state")).to_contain_text("In call")
        await expect(detail.locator("#fact-call")).to_contain_text("Ringing · incoming · 13800138000 → 8101")
        await wall.page.keyboard.press("Escape")
        await expect(detail).to_be_hidden()
        await wall.tile("102").locator(".name").click()
        await wall.page.click("#detail-send")
        await expect(wall.page.locator("#send-agent")).to_have_value("102")
        await expect(wall.page.locator("#send-value")).to_be_focused()


async def test_a_state_can_be_looked_at_alone(browser: Browser, embedded: NatsServer) -> None:
    """Pressing a state's count shows its agents alone, pressing it again shows all."""
    async with open_wall(browser, embedded) as wall:
        await wall.feed.state("101", "idle", group="Sales")
        await wall.feed.state("102", "busy", group="Support")
        await expect(wall.page.locator(".tile:visible")).to_have_count(2)
        chip = wall.page.locator('.chip[data-state="busy"]')
        await chip.click()
        await expect(wall.page.locator(".tile:visible .state")).to_have_text(["Busy"])
        await expect(wall.page.locator(".group:visible")).to_have_text(["Support"])
        await expect(chip).to_have_attribute("aria-pressed", "true")
        await chip.click()
        await expect(wall.page.locator(".tile:visible")).to_have_count(2)


async def test_the_theme_can_be_chosen(browser: Browser, embedded: NatsServer) -> None:
    """Without a choice the system's preference holds; the button goes through light and dark, and is remembered."""
    async with open_wall(browser, embedded, color_scheme="dark") as wall:
        background = "() => getComputedStyle(document.body).backgroundColor"
        dark = await wall.page.evaluate(background)
        await wall.page.click("#theme")
        light = await wall.page.evaluate(background)
        assert light != dark
        await wall.page.reload()
        assert await wall.page.evaluate(background) == light
        await wall.page.click("#theme")
        await wall.page.emulate_media(color_scheme="light")
        assert await wall.page.evaluate(background) == dark
        await wall.page.click("#theme")
        assert await wall.page.evaluate(background) == light


async def test_no_motion_where_it_is_not_wanted(browser: Browser, embedded: NatsServer) -> None:
    """The ringing bell moves, but not for those who asked their system for less motion."""
    async with open_wall(browser, embedded) as wall:
        await wall.feed.state("101", "in_call", call=RINGING)
        await expect(wall.tile("101").locator(".phase")).to_be_visible()
        name = "() => getComputedStyle(document.querySelector('.phase-icon')).animationName"
        assert await wall.page.evaluate(name) == "ring"
        await wall.page.emulate_media(reduced_motion="reduce")
        assert await wall.page.evaluate(name) == "none"


AUDIT = """() => {
  const rgba = (text) => {
    const numbers = text.match(/[\\d.]+(e-?\\d+)?/g).map(Number);
    const scale = text.startsWith("color(") ? 255 : 1;
    return [...numbers.slice(0, 3).map((n) => n * scale), numbers[3] ?? 1];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const luminance = (colour) => {
    const [r, g, b] = colour.map((n) => n / 255).map((n) => (n <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const backgrounds = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
    const flat = layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
    const hatch = getComputedStyle(element.closest(".plate") ?? element).backgroundImage.match(/color\\([^)]*\\)/);
    return hatch ? [flat, over(rgba(hatch[0]), flat)] : [flat];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest(".unseen, option")) continue;
    const word = luminance(rgba(getComputedStyle(element).color));
    for (const background of backgrounds(element)) {
      const other = luminance(background);
      const ratio = (Math.max(word, other) + 0.05) / (Math.min(word, other) + 0.05);
      found.push([`${element.className || element.tagName}: ${walker.currentNode.data.trim()}`, ratio]);
    }
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_every_text_has_contrast(browser: Browser, embedded: NatsServer, scheme: str) -> None:
    """Every text of the page, state words above all, has a contrast of 4.5 : 1 to what is behind it, hatched or not.

    Source: WCAG 2.2, success criterion 1.4.3.
    """
    async with open_wall(browser, embedded, color_scheme=scheme) as wall:
        await show_everything(wall)
        found: list[tuple[str, float]] = await wall.page.evaluate(AUDIT)
        assert [text for text, _ in found if text.startswith("state: ")] != []
        assert len(found) > 60
        assert [(text, round(ratio, 2)) for text, ratio in found if ratio < 4.5] == []


@pytest.mark.parametrize(("agents", "density"), [(14, "roomy"), (30, "normal"), (70, "dense")])
async def test_state_words_are_large_and_whole(
    browser: Browser, embedded: NatsServer, agents: int, density: str
) -> None:
    """On a 1080p screen every state word is at least 32 px high and none is cut off, however many agents there are."""
    async with open_wall(browser, embedded) as wall:
        for number in range(agents):
            await wall.feed.state(str(101 + number), STATES[number % len(STATES)], ago_s=5000)
        await expect(wall.page.locator(".tile")).to_have_count(agents)
        await expect(wall.page.locator("main")).to_have_attribute("data-density", density)
        words = await wall.page.evaluate(
            "() => [...document.querySelectorAll('.state')].map((e) =>"
            " [e.textContent, parseFloat(getComputedStyle(e).fontSize), e.scrollWidth - e.clientWidth])"
        )
        assert {word for word, _, _ in words} >= {"Signed out", "Wrap-up", "In call", "Unknown"}
        assert [word for word, size, _ in words if size < 32] == []
        assert [word for word, _, beyond in words if beyond > 0] == []


async def test_a_phone_needs_no_sideways_scrolling(browser: Browser, embedded: NatsServer) -> None:
    """On a narrow phone nothing is wider than the screen, with banners, long names, and every box open."""
    async with open_wall(browser, embedded, viewport={"width": 320, "height": 640}) as wall:
        await show_everything(wall)
        long = "Alexandra-Konstantina Papadopoulou-Wolfeschlegelstein"
        await wall.feed.state("101", "signed_out", name=long, group=long)
        await expect(wall.tile("101").locator(".name")).to_have_text(long)
        await expect(wall.page.locator("#send")).to_be_hidden()
        await expect(wall.page.locator("#view")).to_be_hidden()
        await wall.page.click("#send-toggle")
        await wall.page.click("#view-toggle")
        await wall.page.select_option("#view-group", label=long)
        await expect(wall.page.locator(".tile:visible")).to_have_count(1)
        await wall.page.fill("#send-value", "x" * 500)
        await wall.page.click("#send-button")
        await expect(wall.page.locator("#sent-list li")).to_have_count(1)
        wide = "() => document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
        assert await wall.page.evaluate(wide) <= 0
        await wall.tile("101").locator(".name").click()
        assert await wall.page.locator("#detail").evaluate("e => e.scrollWidth - e.clientWidth") <= 0
        assert await wall.page.evaluate(wide) <= 0
        cut = "() => [...document.querySelectorAll('.state')].filter((e) => e.scrollWidth > e.clientWidth).length"
        assert await wall.page.evaluate(cut) == 0


async def test_five_hundred_agents_keep_their_tiles(browser: Browser, embedded: NatsServer) -> None:
    """With 500 tiles an update changes its tile in place: none is made anew or moved, and the last update is shown."""
    async with open_wall(browser, embedded) as wall:
        work_nos = [str(1001 + number) for number in range(500)]
        for page in range(3):
            agents = [
                RosterAgent(work_no=w, name=f"A {w}", group=None) for w in work_nos[page * 200 : page * 200 + 200]
            ]
            await wall.feed.roster(*agents, page=page + 1)
        for work_no in work_nos:
            wall.feed.client.publish_soon(wall.feed.topics.state(work_no), wall.feed.render_state(work_no, "idle"))
        await expect(wall.page.locator('.chip[data-state="idle"] .chip-number')).to_have_text("500")
        await expect(wall.page.locator(".tile")).to_have_count(500)
        await wall.page.evaluate(
            "() => { window.moved = 0; new MutationObserver((records) => { for (const record of records)"
            " for (const node of [...record.addedNodes, ...record.removedNodes])"
            " if (node.classList?.contains('tile')) window.moved += 1;"
            " }).observe(document.body, { subtree: true, childList: true }); }"
        )
        for number in range(300):
            work_no = work_nos[(number * 7) % 500]
            payload = wall.feed.render_state(work_no, "in_call" if number < 299 else "rest", call=RINGING)
            wall.feed.client.publish_soon(wall.feed.topics.state(work_no), payload)
        await expect(wall.tile(work_nos[(299 * 7) % 500]).locator(".state")).to_have_text("Rest")
        assert await wall.page.evaluate("() => window.moved") == 0


async def test_the_server_gives_files_and_settings_and_nothing_else(embedded: NatsServer) -> None:
    """Files and settings go out with the policy and are never kept; other paths and other host names get nothing."""
    settings = Settings(broker=embedded.websocket_url, prefix="site/agents", username="wall", password="pw")  # noqa: S106 - nobody's
    assert "pw" not in repr(settings)
    async with serve("127.0.0.1", 0, settings) as url, httpx.AsyncClient(base_url=url) as client:
        index = await client.get("/")
        assert index.text == await asyncio.to_thread((files_directory() / "index.html").read_text)
        assert index.headers["content-type"] == "text/html; charset=utf-8"
        assert index.headers["cache-control"] == "no-store"
        policy = index.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert f"connect-src 'self' {embedded.websocket_url.removesuffix('/mqtt')};" in policy
        told = (await client.get("/settings.json")).json()
        assert told == {
            "broker": embedded.websocket_url,
            "prefix": "site/agents",
            "ask": False,
            "username": "wall",
            "password": "pw",
        }
        for path in ("/__init__.py", "/nothing.js", "/%2e%2e/errors.py", "/a/b"):
            assert (await client.get(path)).status_code == 404
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example"):
            answer = await client.get("/settings.json", headers={"Host": host})
            assert answer.status_code == 421
            assert "pw" not in answer.text
        assert (await client.get("/wall.js", headers={"Host": "localhost"})).status_code == 200
    async with serve("127.0.0.1", 0, settings) as other:
        port = int(other.rsplit(":", 1)[1].strip("/"))
        with pytest.raises(OSError, match="address already in use"):
            async with serve("127.0.0.1", port, settings):
                pass


async def test_the_page_loads_nothing_from_elsewhere() -> None:
    """No file of the page names another server, and the vendored library says its version and licence."""
    directory = files_directory()

    def read(name: str) -> str:
        return (directory / name).read_text(encoding="utf-8")

    for path in directory.iterdir():
        if path.suffix in {".html", ".css", ".js"} and path.name != "mqtt.min.js":
            assert not re.search(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}/", read(path.name)), path.name
    version = re.search(r"MQTT\.js (\d+\.\d+\.\d+)", read("mqtt.README.txt"))
    assert version is not None
    assert json.dumps(version[1]) in read("mqtt.min.js")
    assert "The MIT License" in read("mqtt.LICENSE.txt")
