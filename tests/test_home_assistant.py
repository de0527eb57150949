"""Discovery at a real broker: what is announced, repeated, cleared and left alone (ECOSYSTEM, 1)."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.adapter_support import write
from tests.broker_support import Broker, Peer
from tests.stage_support import Stage, staged


@pytest.fixture
async def stage(tmp_path: Path, shared_broker: Broker) -> AsyncIterator[Stage]:
    """Set a stage with two agents."""
    async with staged(tmp_path, shared_broker, agents=["101", "102"]) as made:
        yield made


@pytest.fixture
def home(shared_broker: Broker) -> Any:  # noqa: ANN401 - a generator
    """Listen to the discovery messages of a Home Assistant."""
    with Peer(shared_broker, ["ha/#"]) as listening:
        yield listening


def section(**more: Any) -> dict[str, Any]:  # noqa: ANN401 - YAML's values
    """Make the section `home_assistant`."""
    return {"discovery": True, "prefix": "ha", "birth_topic": "ha/status"} | more


def topic(stage: Stage, name: str) -> str:
    """Name a discovery topic of the stage's own instance."""
    return f"ha/device/ccgateway2mqtt_{stage.prefix}_{name}/config"


async def test_one_message_for_each_agent_and_one_for_the_bridge(stage: Stage, home: Peer) -> None:
    """Each is retained, QoS 1, and has the three members that Home Assistant requires."""
    async with stage.running(home_assistant=section()):
        await home.wait_for(lambda: all(home.on(topic(stage, name)) for name in ("bridge", "101", "102")))

    with Peer(stage.broker, ["ha/#"]) as late:
        late.wait_for_blocking(lambda: all(late.on(topic(stage, name)) for name in ("bridge", "101", "102")))
        for name in ("bridge", "101", "102"):
            (message,) = late.on(topic(stage, name))
            assert (message.retain, message.qos) == (True, 1)
            assert json.loads(message.payload).keys() >= {"device", "origin", "components"}


async def test_an_agent_that_is_removed_is_cleared(stage: Stage, home: Peer) -> None:
    """A reload without it clears its message; the others stay (C7)."""
    async with stage.running(home_assistant=section()) as adapter:
        await home.wait_for(lambda: home.on(topic(stage, "101")) and home.on(topic(stage, "102")))
        values = stage.values(home_assistant=section())
        values["agents"] = values["agents"][:1]
        write(adapter.path.parent, values)
        await adapter.app.reload()
        await home.wait_for_payload(topic(stage, "102"), b"")

    assert len(home.on(topic(stage, "101"))) == 1
