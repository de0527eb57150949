"""Discovery in the whole program: announced, told again after a birth, cleared by a reload and when it is switched off.

(ECOSYSTEM, 1.) What it does at the broker in detail is in test_home_assistant_announcing.py, what it says in
test_home_assistant_devices.py.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapter.agent.presence import Timing
from adapter.config import load
from adapter.errors import BrokerConnectionError
from adapter.home_assistant import announcing
from adapter.mqtt import Dialer, Message
from tests.adapter_support import write
from tests.broker_support import DEADLINE_S, Broker, Peer
from tests.cli_support import program
from tests.home_assistant_support import AFTER_BIRTH_S, retained, topic
from tests.stage_support import Stage, staged

BIRTH = Timing(after_birth_s=AFTER_BIRTH_S)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker on the loopback needs no half second to show what it retains."""
    monkeypatch.setattr(announcing, "_QUIET_S", 0.1)


@pytest.fixture
async def stage(tmp_path: Path, broker: Broker) -> AsyncIterator[Stage]:
    """Set a stage with two agents."""
    async with staged(tmp_path, broker, agents=["101", "102"]) as made:
        yield made


@pytest.fixture
def home(broker: Broker) -> Iterator[Peer]:
    """Listen to the discovery messages as a Home Assistant does."""
    with Peer(broker, ["ha/#"]) as listening:
        yield listening


def section(**more: Any) -> dict[str, Any]:  # noqa: ANN401 - YAML's values
    """Make the section `home_assistant`."""
    return {"discovery": True, "prefix": "ha", "birth_topic": "ha/status"} | more


async def test_agents_and_adapter_are_announced_and_told_again_after_a_birth(stage: Stage, home: Peer) -> None:
    """Each by one retained message of QoS 1; a birth repeats them with all availability and state, an event none."""
    topics = [topic(name, stage.prefix) for name in ("bridge", "101", "102")]
    async with stage.running(home_assistant=section(), timing=BIRTH):
        await home.wait_for(lambda: all(home.on(each) for each in topics))
        for work_no in ("101", "102"):
            await stage.polling(work_no)
        stage.simulator.emit_sample("101", "AgentState_SetNotReady_Success")
        await stage.wait("101/state", state="busy")
        await stage.wait_count("101/events", 1)
        assert [len(home.on(each)) for each in topics] == [1, 1, 1]
        said = ["bridge/availability", "101/availability", "102/availability", "101/state", "102/state"]
        before = {rest: len(stage.on(rest)) for rest in said}

        await home.publish("ha/status", "online")
        await home.wait_for(lambda: all(len(home.on(each)) == 2 for each in topics))
        for rest, count in before.items():
            await stage.wait_count(rest, count + 1)

        assert stage.json("101/state")[-1]["state"] == "busy"
        assert {stage.on(rest)[-1].payload for rest in said[:3]} == {b"online"}
        assert len(stage.on("101/events")) == 1

    assert [each.qos for each in home.on(topics[1])] == [1, 1]
    assert (await retained(stage.broker)).keys() == set(topics)


async def test_what_is_gone_from_the_configuration_is_gone(stage: Stage, home: Peer) -> None:
    """A reload without an agent clears it; the next start with discovery switched off clears all."""
    async with stage.running(home_assistant=section()) as adapter:
        await home.wait_for(lambda: home.on(topic("102", stage.prefix)))
        values = stage.values(home_assistant=section())
        values["agents"] = values["agents"][:1]
        write(adapter.path.parent, values)

        await adapter.app.reload()
        await home.wait_for_payload(topic("102", stage.prefix), b"")

        assert len(home.on(topic("101", stage.prefix))) == 1
    async with stage.running(home_assistant=section(discovery=False)):
        for name in ("bridge", "101"):
            await home.wait_for_payload(topic(name, stage.prefix), b"")

    assert await retained(stage.broker) == {}


async def test_switched_off_nothing_of_it_is_imported(stage: Stage) -> None:
    """The small adapter does not pay for it."""
    path = write(stage.directory, stage.values())
    async with program("run", "-c", path, PYTHONPROFILEIMPORTTIME="1") as adapter:
        await stage.polling("101")
        adapter.send(signal.SIGTERM)
        assert await adapter.ended() == 0

    assert any("adapter.fleet" in line for line in adapter.err)
    assert not any("adapter.home_assistant" in line for line in adapter.err)


async def test_the_will_of_an_old_connection_comes_before_online(stage: Stage, home: Peer) -> None:
    """The client id is a fixed one: the broker ends what is left of a connection before, and its will comes first.

    With another id at each start it would come when the broker misses that connection, and all would be unavailable.
    """
    config = load(write(stage.directory, stage.values(), "old.yaml")).mqtt
    will = Message(topic=stage.topic("bridge/availability"), payload=b"offline", retain=True)
    async with Dialer(config).connect(client_id=config.client_id, on_message=lambda _: None, will=will) as old:
        old.publish(Message(topic=will.topic, payload=b"online", retain=True))
        async with stage.running(home_assistant=section()):
            await home.wait_for(lambda: home.on(topic("101", stage.prefix)))
            told = [message.payload for message in stage.on("bridge/availability")]
        with pytest.raises(BrokerConnectionError):
            await asyncio.wait_for(old.lost(), DEADLINE_S)

    assert told == [b"online", b"offline", b"online"]
