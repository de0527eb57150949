"""`ccgateway2mqtt calldata` as another sender among others: what it waits for, and when it stops waiting."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapter import send
from adapter.config import MqttConfig, broker_at
from adapter.errors import BrokerConnectionError, StartError
from adapter.payloads import ResultPayload
from tests.broker_support import Broker, Got, Peer, mosquitto

AT = "2026-01-01T00:00:00.000Z"


@pytest.fixture
def prefix() -> str:
    """Name a prefix of the test's own."""
    return f"send-{uuid.uuid4().hex[:8]}"


@pytest.fixture
async def other(shared_broker: Broker, prefix: str) -> AsyncIterator[Peer]:
    """Stand in for an adapter, and for whoever else is on the broker."""
    with Peer(shared_broker, [f"{prefix}/#"]) as peer:
        yield peer


def result(command: Got, **members: object) -> bytes:
    """Make the result of a command."""
    identifier = json.loads(command.payload)["id"]
    made: dict[str, Any] = {"id": identifier, "workNo": "101", "status": "applied", "retcode": "0", "reason": None}
    return json.dumps(made | {"receivedAt": AT, "finishedAt": AT} | members).encode()


def sending(config: MqttConfig, ttl_s: int = 60) -> asyncio.Task[ResultPayload]:
    """Send call data to agent 101."""
    return asyncio.create_task(send.call_data(config, "101", "ä", ttl_s, lambda _: None))


async def taken(peer: Peer, prefix: str) -> Got:
    """Wait for the command."""
    topic = f"{prefix}/101/calldata/set"
    await peer.wait_for(lambda: peer.on(topic))
    return peer.on(topic)[0]


async def test_it_takes_its_own_result_alone(shared_broker: Broker, other: Peer, prefix: str) -> None:
    """Junk, results of others and a repeated result do not disturb it; the command is as section 4 says, C1."""
    task = sending(broker_at(shared_broker.url(), prefix), ttl_s=7)
    command = await taken(other, prefix)
    assert json.loads(command.payload) == {"calldata": "ä", "id": json.loads(command.payload)["id"], "ttl": 7}
    assert (command.qos, command.retain) == (1, False)

    topic = f"{prefix}/101/calldata/result"
    deep = b'{"x":' + b"[" * 50_000
    for junk in (
        b"",
        b"{",
        b"\xff",
        b'{"id":"\xff"}',
        b"[]",
        deep,
        result(command, id="other"),
        result(command, more=1),
    ):
        await other.publish(topic, junk)
    await other.publish(topic, result(command, status="expired", retcode=None))
    await other.publish(topic, result(command))

    assert (await task).status == "expired"


async def test_an_adapter_that_is_away_is_said_at_once(shared_broker: Broker, other: Peer, prefix: str) -> None:
    """Where `bridge/availability` is retained as `offline`, nobody takes the command: a clean start throws it away."""
    await other.publish(f"{prefix}/bridge/availability", b"offline", retain=True)

    with pytest.raises(StartError, match=f"no adapter runs: {prefix}/bridge/availability is offline") as caught:
        await sending(broker_at(shared_broker.url(), prefix))

    assert caught.value.exit_code == 1


async def test_an_adapter_that_goes_away_later_is_waited_for(shared_broker: Broker, other: Peer, prefix: str) -> None:
    """An adapter that restarts has stored the command, and answers when it is back (C3)."""
    availability = f"{prefix}/bridge/availability"
    await other.publish(availability, b"online", retain=True)
    task = sending(broker_at(shared_broker.url(), prefix))
    command = await taken(other, prefix)
    await other.publish(availability, b"offline", retain=True)
    await other.publish(availability, b"online", retain=True)
    await other.publish(f"{prefix}/101/calldata/result", result(command))

    assert (await task).status == "applied"


async def test_no_result_in_time(shared_broker: Broker, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an adapter that answers it ends some time after the command's `ttl`."""
    monkeypatch.setattr(send, "_OVER_S", 0.2)

    with pytest.raises(StartError, match=r"no result within 0\.2 s: does the adapter run\?"):
        await sending(broker_at(shared_broker.url(), prefix), ttl_s=0)


async def test_a_broker_that_goes_away(broker: Broker, peer: Peer) -> None:
    """The loss of the connection ends the wait, and says so."""
    task = sending(broker_at(broker.url(), "agents"))
    await taken(peer, "agents")
    broker.kill()

    with pytest.raises(BrokerConnectionError):
        await task


async def test_a_broker_that_refuses_the_command(tmp_path: Path) -> None:
    """Without the right to send, the broker's refusal is said at once (MQTT 5)."""
    acl = "user wall\ntopic read agents/#\n"
    with mosquitto(tmp_path / "mosquitto", users={"wall": "w"}, acl=acl) as broker:
        config = replace(broker_at(broker.url(), "agents"), username=broker.username, password=broker.password)
        with pytest.raises(StartError, match=r"the broker refuses agents/101/calldata/set: Not authorized") as caught:
            await sending(config)

    assert caught.value.exit_code == 1


@pytest.mark.parametrize(("work_no", "value"), [("bridge", "x"), ("1/2", "x"), ("", "x"), ("101", "\udcff")])
async def test_what_cannot_be_sent_is_wrong_usage(shared_broker: Broker, work_no: str, value: str) -> None:
    """A work number that is none, and text that is none, are refused before anything is sent."""
    with pytest.raises(StartError, match="expected") as caught:
        await send.call_data(broker_at(shared_broker.url(), "agents"), work_no, value, 1, lambda _: None)

    assert caught.value.exit_code == 2
