"""One broker and one Home Assistant for all tests, with examples/home-assistant/ in its configuration."""

import re
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.broker_support import Broker, mosquitto
from tests_homeassistant.home_assistant import ROOT, HomeAssistant, home_assistant
from tests_homeassistant.hub import Hub

EXAMPLES = ROOT / "examples/home-assistant"
_NOT_OURS = re.compile(
    r"aiohttp_fast_zlib|haffmpeg|libturbojpeg|"  # there are no cameras, and nobody waits for a page
    r"Error returned from MQTT server|failed to receive on socket|"  # the broker is away
    r"No ACK from MQTT server|client is not currently connected"
)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """Run a Mosquitto."""
    with mosquitto(tmp_path_factory.mktemp("mosquitto")) as made:
        yield made


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, broker: Broker) -> Iterator[HomeAssistant]:
    """Run a Home Assistant with the examples put where their README says."""
    directory = tmp_path_factory.mktemp("config")
    shutil.copytree(EXAMPLES, directory / "contact_centre")
    shutil.copytree(EXAMPLES / "blueprints", directory / "blueprints/automation/ccgateway2mqtt")
    shutil.copy(Path(__file__).parent / "ringing.yaml", directory)
    configuration = (EXAMPLES / "configuration.yaml").read_text(encoding="utf-8")
    with home_assistant(directory, f"{configuration}\nautomation test: !include ringing.yaml\n", broker) as made:
        yield made


@pytest.fixture
async def hub(home: HomeAssistant) -> AsyncIterator[Hub]:
    """Look at Home Assistant; at the end it must have had nothing to complain of."""
    seen = len(home.complaints())
    async with home.hub() as made:
        yield made
    complaints = [each for each in home.complaints()[seen:] if not _NOT_OURS.search(each)]
    assert not complaints, "\n".join(complaints)
