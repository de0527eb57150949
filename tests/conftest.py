"""Fixtures that every test of the whole program needs: a simulator, a broker, and somebody who listens."""

from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from adapter.nats import NatsServer, run_nats
from adapter.simulator import Simulator
from tests.adapter_support import HOLD_S
from tests.broker_support import Broker, Peer, mosquitto
from tests.wall_support import find_browser


@pytest.fixture(scope="session")
def shared_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Run one Mosquitto for all tests that neither stop it nor need another configuration."""
    with mosquitto(tmp_path_factory.mktemp("mosquitto")) as broker:
        yield broker


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """Run a Mosquitto of the test's own."""
    with mosquitto(tmp_path / "mosquitto") as made:
        yield made


@pytest.fixture
def peer(broker: Broker) -> Iterator[Peer]:
    """Listen to everything on the broker."""
    with Peer(broker) as listening:
        yield listening


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    """Simulate a gateway with agents 101 and 102, signed in elsewhere."""
    async with Simulator(agents=["101", "102"], hold_s=HOLD_S) as made:
        yield made
        assert made.violations == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Run one browser for all tests of a file; every test has a page of its own."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def embedded() -> AsyncIterator[NatsServer]:
    """Run one nats-server for all tests of a file; every test has a topic prefix of its own."""
    async with run_nats() as server:
        yield server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Replace halves of characters in what a test has logged: pytest-xdist cannot pass them on between processes."""
    report = yield
    report.sections = [(name, text.encode(errors="replace").decode()) for name, text in report.sections]
    return report
