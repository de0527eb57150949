"""`ccgateway2mqtt purge`: what it clears, what it leaves alone, and when it refuses."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from adapter import purge
from adapter.config import load
from adapter.errors import BrokerError, StartError, StorageInUseError
from adapter.event import timestamp
from adapter.home_assistant.devices import render_agent
from adapter.simulator import Simulator
from adapter.store.lock import Lock
from tests.adapter_support import running, settings, wait_for, write
from tests.broker_support import Broker, Peer, mosquitto
from tests.cli_support import invoke, invoke_beside
from tests.cluster_support import KEY

WORD = "the root's"

OTHERS = {
    "agents/101/calldata/set": "retained by mistake",
    "agents/bridge/other": "x",
    "agents/room/state": '{"state": "warm"}',
    "agents/room/event": "x",
    "homeassistant/device/lamp/config": '{"device": {"identifiers": ["lamp"]}, "origin": {"name": "lamp"}}',
}
"""What other programs retain under the same names."""


@pytest.fixture
def path(tmp_path: Path, broker: Broker) -> Path:
    """Write a configuration of agent 101 alone, for a gateway that is not there."""
    return write(tmp_path, values(broker))


def values(broker: Broker, **sections: object) -> dict[str, Any]:
    """Make that configuration."""
    made: dict[str, Any] = {"gateway": {"url": "https://127.0.0.1:9/agentgateway"}, "mqtt": {"url": broker.url()}}
    made |= {"agents": [{"work_no": "101", "guid": "g"}], "home_assistant": {"discovery": True}}
    return made | sections


async def retain(peer: Peer, retained: dict[str, str]) -> None:
    """Have the broker retain payloads."""
    for topic, payload in retained.items():
        await peer.publish(topic, payload, retain=True)


async def retained_at(broker: Broker) -> dict[str, bytes]:
    """Read all that a broker retains."""
    with Peer(broker) as late:
        await late.publish("done", b"")
        await late.wait_for(lambda: late.on("done"))
    return {message.topic: message.payload for message in late.messages if message.retain}


def state_of(work_no: str) -> str:
    """Make the state of an agent."""
    members = {"name": None, "group": None, "state": "idle", "reason": None, "since": "2026-01-01T00:00:00.000Z"}
    return json.dumps({"workNo": work_no, **members, "previous": None, "call": None, "eventId": None, "seq": None})


async def test_all_that_an_adapter_leaves_is_cleared(tmp_path: Path, simulator: Simulator, broker: Broker) -> None:
    """After a run, its topics and Home Assistant's devices go, and what others retain stays; and its database goes."""
    config = write(tmp_path, settings(simulator, broker, home_assistant={"discovery": True}))
    database = load(config).storage.path
    with Peer(broker) as peer:
        async with running(config):
            await wait_for(peer, "agents/102/state", lambda state: state["workNo"])
            for name in ("101", "102", "bridge"):
                await wait_for(peer, f"homeassistant/device/ccgateway2mqtt_main_{name}/config", lambda told: told)
            await wait_for(peer, "agents/bridge/health", lambda told: told["at"])
            refused = await invoke_beside("purge", "-c", config, "--yes", "--storage")
        await retain(peer, OTHERS)
    left = await retained_at(broker)
    told = await invoke_beside("purge", "-c", config, "--storage")

    assert refused.exit_code == 3
    assert refused.stderr == f"{tmp_path}/ccgateway2mqtt.db: an adapter runs with it: stop it first\n"
    assert set(told.stdout.split()) == left.keys() - OTHERS.keys()
    count = len(told.stdout.split())
    assert told.stdout.split()[0].startswith("homeassistant/")
    assert told.stdout.split()[-1].startswith("agents/bridge/")
    assert f"{count} retained topics would be cleared" in told.stderr
    assert "would be deleted" in told.stderr
    assert await retained_at(broker) == left

    done = await invoke_beside("purge", "-c", config, "--yes", "--storage")
    assert done.exit_code == 0
    assert f"{count} retained topics cleared" in done.stderr
    assert await retained_at(broker) == {topic: payload.encode() for topic, payload in OTHERS.items()}
    assert not database.exists()
    again = await invoke_beside("purge", "-c", config, "--yes", "--storage")
    assert (again.exit_code, again.stdout) == (0, "")
    assert "nothing is retained that an anonymous client may read" in again.stderr


async def test_what_was_left_of_earlier_agents(path: Path, peer: Peer) -> None:
    """An agent that is in the configuration no more is known by its state; a device by the instance that it names."""
    config = load(path)
    gone = replace(config.agents[0], work_no="55")
    other = render_agent(replace(config, instance="other"), gone).decode()
    ours = {
        "homeassistant/device/anything/config": render_agent(config, gone).decode(),
        "agents/101/event": "{}",
        "agents/55/state": state_of("55"),
        "agents/55/availability": "offline",
        "agents/bridge/agents/3": "{}",
    }
    strange = {"homeassistant/device/x/config": other, "agents/7/state": state_of("8"), "agents/8/event": "{}"}
    await retain(peer, OTHERS | ours | strange)

    assert set(await purge.find(config, config.mqtt)) == set(ours)


async def test_a_live_adapter_elsewhere_is_left_alone(path: Path, broker: Broker, peer: Peer) -> None:
    """With another database, the adapter is known by what it says; an old word of it stops nobody."""
    topics = {"agents/bridge/availability": "online", "agents/101/availability": "online"}
    health = "agents/bridge/health"
    await retain(peer, topics | {health: json.dumps({"at": timestamp(datetime.now(UTC))})})
    live = await invoke_beside("purge", "-c", path, "--yes")
    before = await retained_at(broker)
    await retain(peer, {health: json.dumps({"at": "2020-01-01T00:00:00.000Z"})})
    old = await invoke_beside("purge", "-c", path, "--yes")

    assert live.exit_code == 2
    assert "an adapter is live under the prefix 'agents'" in live.stderr
    assert before.keys() == {*topics, health}
    assert old.exit_code == 0
    assert await retained_at(broker) == {}


async def test_another_instance_is_left_alone(path: Path, peer: Peer) -> None:
    """What says that it is another instance's is not cleared with this configuration."""
    info = {"version": "1", "instance": "other", "config": {}, "startedAt": "2020-01-01T00:00:00.000Z"}
    await retain(peer, {"agents/bridge/info": json.dumps(info | {"agents": {"configured": 1, "polling": 0}})})

    done = await invoke_beside("purge", "-c", path, "--yes")

    assert done.exit_code == 2
    assert "of the instance 'other', and the configuration's is 'main'" in done.stderr


async def test_a_fleet_is_cleared_as_one(tmp_path: Path, broker: Broker, peer: Peer) -> None:
    """Any member's configuration will do: what is retained is the fleet's, and every member's."""
    section = {"url": "nats://127.0.0.1:9", "name": "prod", "key": KEY}
    config = load(write(tmp_path, values(broker, instance="node-1", cluster=section)))
    info = {"version": "1", "instance": "prod", "config": {}, "startedAt": "2020-01-01T00:00:00.000Z"}
    devices = {
        name: render_agent(replace(config, instance=name), config.agents[0]).decode() for name in ("prod", "node-1")
    }
    ours = {
        "agents/bridge/info": json.dumps(info | {"agents": {"configured": 1, "polling": 0}}),
        "agents/bridge/member/node-1/availability": "offline",
        "agents/bridge/member/node-2/mark": '{"n": 1}',
        "homeassistant/device/fleet/config": devices["prod"],
    }
    await retain(peer, OTHERS | ours | {"homeassistant/device/alone/config": devices["node-1"]})

    assert set(await purge.find(config, config.mqtt)) == set(ours)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Broker]:
    """Run a broker whose adapter may read, and may write those of an agent alone."""
    acl = "user adapter\ntopic read #\ntopic write agents/101/+\nuser root\ntopic readwrite #\n"
    with mosquitto(tmp_path / "mosquitto", users={"adapter": "a", "root": WORD}, acl=acl) as broker:
        yield broker


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_what_the_broker_denies_is_told(tmp_path: Path, guarded: Broker, protocol: str) -> None:
    """Acknowledged or not, what is still retained is named, with exit code 1; another user may clear it."""
    mqtt = {"url": guarded.url(), "username": "adapter", "password": "a", "protocol": protocol}
    path = write(tmp_path, values(guarded, mqtt=mqtt))
    (tmp_path / "password").write_text(f"{WORD}\n")
    agent = [f"agents/101/{name}" for name in ("event", "state", "session", "availability")]
    with Peer(guarded, username="root", password=WORD) as root:
        await retain(root, dict.fromkeys([*agent, *(f"agents/bridge/agents/{page}" for page in range(1, 8))], "{}"))

        done = await invoke_beside("purge", "-c", path, "--yes")
        as_root = await invoke_beside(
            "purge", "-c", path, "--yes", "--username", "root", "--password-file", tmp_path / "password"
        )

    assert done.exit_code == 1
    assert "still retained: agents/bridge/agents/1, agents/bridge/agents/2" in done.stderr
    assert "and 2 more: does the broker allow adapter to write there?" in done.stderr
    assert as_root.exit_code == 0


async def test_a_broker_that_goes_away(path: Path, broker: Broker, peer: Peer) -> None:
    """The loss of the connection ends it with exit code 1."""
    config = load(path)
    topics = [f"homeassistant/device/{number}/config" for number in range(50)]
    clearing = asyncio.create_task(purge.clear(config, config.mqtt, topics))
    await peer.wait_for(lambda: peer.on(topics[0]))
    broker.kill()

    with pytest.raises(BrokerError):
        await clearing


def test_the_database_is_looked_at_before_it_is_deleted(tmp_path: Path) -> None:
    """A file that is no database stays; so does one that is in use (D5), and what was set aside (D6)."""
    database, told = tmp_path / "a.db", list[str]()
    purge.delete_storage(database, yes=True, tell=told.append)
    assert told == []
    database.write_text("a letter")
    with pytest.raises(StartError, match="expected a database of this program"):
        purge.delete_storage(database, yes=True, tell=told.append)
    database.write_bytes(b"")
    lock = Lock(database)
    with pytest.raises(StorageInUseError):
        purge.delete_storage(database, yes=True, tell=told.append)
    lock.release()
    aside = tmp_path / "a.db.damaged-20260101T000000"
    aside.touch()

    purge.delete_storage(database, yes=True, tell=told.append)

    assert list(tmp_path.iterdir()) == [aside]
    assert told == [
        f"{database}: deleted",
        f"{database}.lock: deleted",
        f"{aside}: left for you to look at, and then to delete",
    ]


def test_a_broker_that_is_not_there(tmp_path: Path) -> None:
    """It is said on one line, and the database stays."""
    path = write(
        tmp_path, {"gateway": {"url": "https://127.0.0.1:9"}, "mqtt": {"url": "mqtt://127.0.0.1:9"}, "agents": []}
    )
    (tmp_path / "ccgateway2mqtt.db").touch()

    done = invoke("purge", "-c", path, "--yes", "--storage")

    assert done.exit_code == 1
    assert "127.0.0.1:9" in done.stderr
    assert (tmp_path / "ccgateway2mqtt.db").exists()
