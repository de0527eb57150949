"""The page as `run` serves it (`http.wall`): the viewer brings the log-in, the adapter gives none out."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from adapter.simulator import Simulator
from adapter.wall import files_directory, render_policy
from tests.adapter_support import HOLD_S, running, settings, write
from tests.broker_support import HOST, Broker, free_ports, mosquitto

pytestmark = pytest.mark.asyncio(loop_scope="module")

ACL = Path(__file__).parent.parent / "examples/mosquitto/acl"
SECRET = "the adapter's own, 5f1b7c"  # noqa: S105 - made up
USERS = {"adapter": SECRET, "dashboard": "for the wall"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A running adapter that serves the page."""

    simulator: Simulator
    broker: Broker
    url: str


@pytest_asyncio.fixture(loop_scope="module")
async def served(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """Run simulator, Mosquitto with the shipped ACL, and the adapter; a parameter of True tells it the broker."""
    (port,) = free_ports(1)
    with mosquitto(tmp_path / "mosquitto", schemes=("mqtt", "ws"), users=USERS, acl=ACL.read_text()) as broker:
        http = {"listen": f"{HOST}:{port}", "wall": True}
        if getattr(request, "param", False):
            http["wall_broker"] = broker.url("ws")
        async with (
            Simulator(agents=["101", "102"], hold_s=HOLD_S) as simulator,
            running(write(tmp_path, settings(simulator, broker, http=http))),
        ):
            yield Served(simulator=simulator, broker=broker, url=f"http://{HOST}:{port}/wall/")


async def log_in(page: Page, served: Served, password: str, *, keep: bool = False) -> None:
    """Fill in the log-in and send it."""
    if await page.locator("#login-broker").is_editable():
        await page.fill("#login-broker", served.broker.url("ws").removesuffix("/mqtt"))
    await page.fill("#login-username", "dashboard")
    await page.fill("#login-password", password)
    await page.locator("#login-keep").set_checked(keep)
    await page.click("#login-form button")


async def test_the_viewer_logs_in(browser: Browser, served: Served) -> None:
    """A wrong password is told and not tried again; the right one shows the agents; it is gone with the page."""
    page = await browser.new_page()
    await page.goto(served.url)
    await expect(page.locator("#login")).to_be_visible()
    await expect(page.locator("#broker")).to_have_text("Not logged in")
    await log_in(page, served, "wrong")
    await expect(page.locator("#login-said")).to_have_text("The broker does not take this user name and password.")
    refusals = served.broker.log.count("not authorised")

    await log_in(page, served, USERS["dashboard"])
    await expect(page.locator("#login")).to_be_hidden()
    await expect(page.locator(".tile")).to_have_count(2)
    served.simulator.emit_sample("101", "AgentState_SetRest_Success")
    await expect(page.locator('.tile[data-work-no="101"] .state')).to_have_text("Rest")
    assert served.broker.log.count("not authorised") == refusals
    assert await page.evaluate("() => JSON.stringify(localStorage)") == "{}"
    assert await page.locator("#login-password").input_value() == ""

    await page.reload()
    await expect(page.locator("#login")).to_be_visible()
    await expect(page.locator(".tile")).to_have_count(0)
    await page.close()


@pytest.mark.parametrize("served", [True], indirect=True)
async def test_a_screen_can_keep_its_log_in(browser: Browser, served: Served) -> None:
    """Kept on request, it serves after a reload and through an outage of the broker; logging out forgets it."""
    page = await browser.new_page()
    await page.goto(served.url)
    await expect(page.locator("#login-broker")).not_to_be_editable()
    await log_in(page, served, USERS["dashboard"], keep=True)
    await expect(page.locator(".tile")).to_have_count(2)
    await page.reload()
    await expect(page.locator(".tile")).to_have_count(2)
    await expect(page.locator("#login")).to_be_hidden()

    served.broker.stop()
    await expect(page.locator("#cut-text")).to_contain_text("Cut off from the broker since")
    await page.reload()
    await expect(page.locator("#broker")).to_have_text("Broker not reached")
    served.broker.start()
    await expect(page.locator("#broker")).to_have_text("Broker connected", timeout=20_000)

    await page.click('[aria-label="Log out of the broker"]')
    await expect(page.locator("#login")).to_be_visible()
    assert await page.evaluate("() => JSON.stringify(localStorage)") == "{}"
    await page.close()


async def test_a_broker_that_does_not_answer_is_told(browser: Browser, served: Served) -> None:
    """An address where nobody listens is named with what to look at, and another one can be entered at once."""
    page = await browser.new_page()
    await page.goto(served.url)
    (port,) = free_ports(1)
    await page.fill("#login-broker", f"ws://{HOST}:{port}")
    await page.click("#login-form button")
    await expect(page.locator("#login-said")).to_contain_text(
        f"No answer from ws://{HOST}:{port}/mqtt; it is tried again"
    )
    await log_in(page, served, USERS["dashboard"])
    await expect(page.locator(".tile")).to_have_count(2)
    await page.close()


@pytest.mark.parametrize("served", [False, True], indirect=True)
async def test_no_log_in_is_given_out(served: Served) -> None:
    """The adapter's password, name and GUIDs are in nothing that it serves; the policy holds for every answer."""
    broker = served.broker.url("ws")
    async with httpx.AsyncClient(base_url=served.url) as client:
        told = (await client.get("settings.json")).json()
        known = told["broker"] is not None
        assert told == {
            "broker": broker if known else None,
            "prefix": "agents",
            "ask": True,
            "username": None,
            "password": None,
        }
        for path in files_directory().iterdir():
            if not path.is_file():
                continue
            answer = await client.get(path.name)
            assert answer.status_code == (404 if path.suffix == ".py" else 200)
            assert answer.headers["content-security-policy"] == render_policy(broker if known else None)
            assert SECRET not in answer.text
        redirect = await client.get(served.url.removesuffix("/"))
        assert (redirect.status_code, redirect.headers["location"]) == (302, "wall/")
        assert redirect.headers["content-security-policy"] == render_policy(broker if known else None)
        metrics = await client.get("../metrics")
        assert metrics.status_code == 200


async def test_without_the_key_there_is_no_page(tmp_path: Path, shared_broker: Broker) -> None:
    """`http.wall` is off by default."""
    (port,) = free_ports(1)
    async with (
        Simulator(agents=["101"], hold_s=HOLD_S) as simulator,
        running(write(tmp_path, settings(simulator, shared_broker, http={"listen": f"{HOST}:{port}"}))),
        httpx.AsyncClient(base_url=f"http://{HOST}:{port}") as client,
    ):
        assert [(await client.get(path)).status_code for path in ("/healthz", "/wall", "/wall/", "/")] == [
            200,
            404,
            404,
            404,
        ]


async def test_the_policy_names_the_broker_or_any_websocket() -> None:
    """With a known broker the page can send a password nowhere else; without, to a websocket that the viewer names."""
    assert "connect-src 'self' wss://broker.example:8084; " in render_policy("wss://broker.example:8084/mqtt")
    assert "connect-src 'self' ws: wss:; " in render_policy(None)
    for policy in (render_policy(None), render_policy("ws://b")):
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert policy.endswith("base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
