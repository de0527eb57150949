"""How smooth the wall page is with many agents: tasks and frames, in a real chromium on a real broker.

```
make bench-wall                          # 500 agents, 50 events a second
make bench-wall ARGS="--agents 2000"
```

A task that holds the page's one thread for over 50 ms is one that a person begins to notice.

Source: W3C, Long Tasks API, section 1, for the 50 ms.
"""

import argparse
import asyncio
import itertools
import json
import random
import time

from playwright.async_api import Page, async_playwright, expect

from adapter.nats import run_nats
from adapter.payloads import CallPayload, RosterAgent, StateName
from adapter.wall import Settings, serve
from tests.wall_support import Client, Feed, StateMembers, find_browser

PAGE_SIZE = 200
GROUPS = ("Support", "Sales", "Orders", "Back office", "Evening shift")
STATES: tuple[StateName, ...] = ("idle", "in_call", "work", "busy", "rest")
FRAMES = """() => {
  window.frames = [];
  let last = 0;
  const frame = (now) => { if (last) window.frames.push(now - last); last = now; requestAnimationFrame(frame); };
  requestAnimationFrame(frame);
}"""
TAKE = "() => { const found = window.frames; window.frames = []; return found; }"
LONG_MS = 50
CATEGORIES = ["devtools.timeline", "disabled-by-default-devtools.timeline"]


def _tasks(trace: bytes) -> list[float]:
    """Take the tasks of the page's one thread out of a trace: milliseconds of CPU of each.

    CPU and not time, as a busy machine makes any task long.

    Source: Chromium, "Trace Event Format": `tdur` is a complete event's thread clock duration in microseconds.
    """
    events = json.loads(trace)["traceEvents"]
    threads = {(e["pid"], e["tid"]) for e in events if e.get("args", {}).get("name") == "CrRendererMain"}
    found = [e for e in events if e["name"] == "RunTask" and (e["pid"], e["tid"]) in threads]
    return [e.get("tdur", 0) / 1000 for e in found]


async def _told(page: Page, what: str, seconds: float) -> None:
    """Print a line of the table for what went on until now."""
    tasks = _tasks(await page.context.browser.stop_tracing())  # type: ignore[union-attr] # it has one
    frames = sorted(await page.evaluate(TAKE)) or [0.0]
    p99 = frames[max(0, int(len(frames) * 0.99) - 1)]
    long = [task for task in tasks if task > LONG_MS]
    print(
        f"| {what} | {sum(tasks) / seconds / 10:.0f} % | {len(long)} | {max(tasks, default=0):.0f} ms "
        f"| {len(frames) / seconds:.0f} | {p99:.0f} ms | {frames[-1]:.0f} ms |"
    )


async def _follow(feed: Feed, work_nos: list[str], rate: float, seconds: float) -> None:
    """Publish events with their state, `rate` a second, for some seconds; half of them with a call."""
    chance = random.Random(1)  # noqa: S311 - the same each time
    end = time.monotonic() + seconds
    for number in itertools.count():
        if time.monotonic() > end:
            return
        work_no = chance.choice(work_nos)
        state = chance.choice(STATES)
        call = CallPayload(call_id=str(number), phase="talking", caller="02079460000", called="800", direction="in")
        calls: StateMembers = {"call": call} if state == "in_call" else {}
        payload = feed.render_state(work_no, state, **calls)
        feed.client.publish_soon(feed.topics.state(work_no), payload)
        event = f'{{"eventType":"AgentState_Ready","id":"{number}","seq":{number},"receivedAt":null,"content":null}}'
        for topic in (feed.topics.events(work_no), feed.topics.event(work_no)):
            feed.client.publish_soon(topic, event.encode())
        await asyncio.sleep(1 / rate)


async def _seed(feed: Feed, work_nos: list[str]) -> None:
    """Retain what an adapter with these agents would."""
    await feed.bridge()
    for page_no, start in enumerate(range(0, len(work_nos), PAGE_SIZE), 1):
        some = work_nos[start : start + PAGE_SIZE]
        listed = [RosterAgent(work_no=w, name=f"Agent {w}", group=GROUPS[int(w) % len(GROUPS)]) for w in some]
        await feed.roster(*listed, page=page_no)
    for work_no in work_nos:
        await feed.state(work_no, "idle")
        await feed.session(work_no, "polling")


async def _type(page: Page, text: str, seconds: float) -> None:
    """Type into the search, spread over some seconds."""
    for letter in text:
        await page.type("#view-text", letter)
        await asyncio.sleep(seconds / len(text))


async def measure(agents: int, rate: float, seconds: float) -> None:
    """Measure and print."""
    work_nos = [str(1001 + number) for number in range(agents)]
    async with (
        run_nats() as broker,
        Client(broker) as client,
        serve("127.0.0.1", 0, Settings(broker=broker.websocket_url)) as url,
        async_playwright() as playwright,
    ):
        feed = Feed(client, "agents")
        await _seed(feed, work_nos)
        browser = await playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page = await browser.new_page(viewport={"width": 1920, "height": 1080})
        await page.add_init_script(f"({FRAMES})()")
        print("| what | CPU of the page | tasks over 50 ms | longest task | frames a second | 99 % within | longest |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        await browser.start_tracing(page=page, categories=CATEGORIES)
        began_at = time.monotonic()
        await page.goto(url)
        await expect(page.locator(".tile")).to_have_count(agents, timeout=60_000)
        took_s = time.monotonic() - began_at
        await _told(page, f"opened: {agents} agents after {took_s:.1f} s", took_s)
        for what, act in (
            ("nothing happens", None),
            (f"{rate:.0f} events a second", None),
            ("the same, in order of who is longest in their state", page.select_option("#view-order", "longest")),
            ("the same, while somebody types into the search", _type(page, "agent 13", seconds)),
        ):
            await browser.start_tracing(page=page, categories=CATEGORIES)
            began_at = time.monotonic()
            works = [asyncio.sleep(seconds)] if what.startswith("nothing") else [_follow(feed, work_nos, rate, seconds)]
            await asyncio.gather(*works, *([act] if act else []))
            await _told(page, what, time.monotonic() - began_at)
        await browser.close()


def main() -> None:
    """Read the options and measure."""
    options = argparse.ArgumentParser(description="How smooth the wall page is.")
    options.add_argument("--agents", type=int, default=500)
    options.add_argument("--rate", type=float, default=50, help="events a second")
    options.add_argument("--seconds", type=float, default=10, help="for each line of the table")
    given = options.parse_args()
    asyncio.run(measure(given.agents, given.rate, given.seconds))


if __name__ == "__main__":
    main()
