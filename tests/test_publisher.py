"""From the outbox to a real Mosquitto: order, the window, what is marked as replayed, and what is refused."""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapter import publisher as publisher_module
from adapter.errors import BrokerConnectionError, StorageError
from adapter.metrics import Counters
from adapter.mqtt import Connection, Dialer
from adapter.publisher import WINDOW, Publisher
from adapter.store.database import Database
from adapter.store.outbox import Outbox, open_outbox
from adapter.store.records import Change, Outgoing
from tests.broker_support import DEADLINE_S, Broker, Peer, mosquitto
from tests.stage_support import staged
from tests.test_broker import config_of

TOPIC, STREAM = "p/101/event", "p/101/events"


def events(first: int, count: int, *, stream: bool = True, size: int = 0, made_at: float | None = None) -> Change:
    """Make a change with numbered events."""
    outgoing = [
        Outgoing(
            topic=TOPIC,
            payload=json.dumps({"n": number, "fill": "x" * size}).encode(),
            retain=True,
            stream_topic=STREAM if stream else None,
        )
        for number in range(first, first + count)
    ]
    return Change(outgoing=outgoing, made_at=time.time() if made_at is None else made_at)


def numbers(peer: Peer, topic: str = STREAM) -> list[int]:
    """List the numbers of the events that came on a topic."""
    return [json.loads(payload)["n"] for payload in peer.payloads(topic) if payload]


@contextlib.asynccontextmanager
async def publishing(broker: Broker, publisher: Publisher) -> AsyncIterator[Connection]:
    """Publish over one connection."""
    dialer = Dialer(config_of(broker))
    async with dialer.connect(client_id="publisher", on_message=lambda _: None) as connection:
        task = asyncio.create_task(publisher.run(connection))
        try:
            yield connection
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, BrokerConnectionError):
                await task


@contextlib.asynccontextmanager
async def reconnecting(broker: Broker, publisher: Publisher) -> AsyncIterator[None]:
    """Publish over one connection after the other: Mosquitto 2.0.11 hangs up after each refusal."""

    async def run() -> None:
        while True:
            async with publishing(broker, publisher) as connection:
                with contextlib.suppress(BrokerConnectionError):
                    await connection.lost()

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def flushed(outbox: Outbox) -> None:
    """Wait until nothing waits."""
    await asyncio.wait_for(outbox.flushed(), DEADLINE_S)


async def test_a_backlog_and_what_comes_meanwhile_go_out_in_order(tmp_path: Path, broker: Broker, peer: Peer) -> None:
    """D1: 2,600 events from before the start and 300 new ones arrive in order, once; `in_hand` keeps to the window."""
    async with open_outbox(tmp_path / "db", 64) as first:
        await first.commit(events(0, 2600))
    counters = Counters()
    most = 0
    async with open_outbox(tmp_path / "db", 64) as outbox, publishing(broker, Publisher(outbox, counters)):
        for number in range(2600, 2900):
            await outbox.commit(events(number, 1))
            most = max(most, outbox.in_hand)
        await flushed(outbox)
        await peer.wait_for(lambda: len(numbers(peer)) >= 2900 and len(numbers(peer, TOPIC)) >= 2900)
        assert outbox.in_hand == 0

    assert numbers(peer) == numbers(peer, TOPIC) == list(range(2900))
    assert 0 < most <= WINDOW
    assert counters.publishes == 5800
    assert ["replayed" in json.loads(payload) for payload in peer.payloads(STREAM)] == [True] * 2600 + [False] * 300


async def test_no_more_than_the_window_is_in_hand(tmp_path: Path, broker: Broker) -> None:
    """D3: what a kill would repeat is at most the window, also where the broker acknowledges nothing for a while."""
    async with open_outbox(tmp_path / "db", 64) as outbox:
        await outbox.commit(events(0, 1200))
        async with publishing(broker, Publisher(outbox, Counters())):
            broker.send(signal.SIGSTOP)
            async with asyncio.timeout(DEADLINE_S):
                while outbox.in_hand < WINDOW:  # noqa: ASYNC110 - there is no event for it
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert outbox.in_hand == WINDOW
            broker.send(signal.SIGCONT)
            await flushed(outbox)


async def test_an_event_that_goes_out_late_is_marked(tmp_path: Path, broker: Broker, peer: Peer) -> None:
    """`replayed: true` is added to what goes out over 30 s late, and to nothing else."""
    async with open_outbox(tmp_path / "db", 64) as outbox, publishing(broker, Publisher(outbox, Counters())):
        await outbox.commit(events(0, 1, made_at=time.time() - 31))
        await outbox.commit(events(1, 1, made_at=time.time() - 20))
        await outbox.commit(Change(outgoing=[Outgoing(topic="p/result", payload=b"{}")], made_at=0.0))
        await outbox.commit(Change(outgoing=[Outgoing(topic="p/gone", payload=b"", retain=True)], made_at=0.0))
        await flushed(outbox)
        await peer.wait_for(lambda: peer.on("p/gone"))

    assert [json.loads(payload).get("replayed") for payload in peer.payloads(STREAM)] == [True, None]
    assert peer.payloads("p/result") == [b"{}"]
    assert peer.payloads("p/gone") == [b""]


async def test_newest_values_go_ahead_of_a_backlog(tmp_path: Path, broker: Broker, peer: Peer) -> None:
    """What a late subscriber reads there is true now: it does not wait for the backlog."""
    async with open_outbox(tmp_path / "db", 64) as outbox:
        await outbox.commit(events(0, 300))
        await outbox.commit(Change(slots={"p/101/state": b"idle"}))
        await outbox.commit(Change(slots={"p/101/state": b"busy"}))
        async with publishing(broker, Publisher(outbox, Counters())):
            await flushed(outbox)
            await peer.wait_for(lambda: len(numbers(peer)) == 300)

    assert peer.messages[0].topic == "p/101/state"
    assert peer.payloads("p/101/state") == [b"busy"]
    assert peer.messages[0].retain is False


async def test_without_a_stream_only_the_retained_topic_gets_the_event(
    tmp_path: Path, broker: Broker, peer: Peer
) -> None:
    """`mqtt.stream: false`: the second topic stays empty."""
    async with open_outbox(tmp_path / "db", 64) as outbox, publishing(broker, Publisher(outbox, Counters())):
        await outbox.commit(events(0, 3, stream=False))
        await flushed(outbox)
        await peer.wait_for(lambda: len(numbers(peer, TOPIC)) == 3)

    assert numbers(peer) == []


async def test_nothing_is_lost_where_connections_are(tmp_path: Path, broker: Broker, peer: Peer) -> None:
    """D2: a broker that is killed in the middle, three times: all arrive, order holds but for repeats."""
    async with open_outbox(tmp_path / "db", 64) as outbox:
        publisher = Publisher(outbox, Counters())
        await outbox.commit(events(0, 1500, size=500))
        for round_ in range(3):
            async with publishing(broker, publisher) as connection:
                await outbox.commit(events(1500 + round_, 1, size=500))
                broker.kill()
                with contextlib.suppress(BrokerConnectionError):
                    await connection.lost()
            broker.start()
            await peer.wait_subscribed()
        async with publishing(broker, publisher):
            await flushed(outbox)
            await peer.wait_for(lambda: 1502 in numbers(peer))

    seen = numbers(peer)
    firsts = list(dict.fromkeys(seen))
    assert firsts == sorted(firsts)
    assert seen[-1] == 1502
    assert outbox.depth == 0


async def test_what_an_acl_forbids_is_set_aside_and_the_rest_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A refused message is kept for a person and does not stop the others; one log line tells of it."""
    acl = "user adapter\ntopic readwrite p/#\ntopic deny p/secret\n"
    with mosquitto(tmp_path / "m", users={"adapter": "pw"}, acl=acl) as made, Peer(made) as peer:
        async with open_outbox(tmp_path / "db", 64) as outbox:
            await outbox.commit(events(0, 2))
            for _ in range(3):
                await outbox.commit(Change(outgoing=[Outgoing(topic="p/secret", payload=b"{}")]))
            await outbox.commit(Change(slots={"p/secret": b"state"}))
            await outbox.commit(events(2, 2))
            async with reconnecting(made, Publisher(outbox, Counters())):
                await flushed(outbox)
            await peer.wait_for(lambda: 3 in numbers(peer))
            assert (outbox.depth, outbox.in_hand) == (0, 0)

        with Database(tmp_path / "db", 64) as database:
            kept = database.read(lambda d: d._connection.execute("SELECT topic, reason FROM aside").fetchall())
            assert database.waiting_slots() == {"p/secret": b"state"}
    assert sorted(set(numbers(peer))) == [0, 1, 2, 3]
    assert kept == [("p/secret", "Not authorized")] * 3
    assert len([record for record in caplog.records if "refuses p/secret" in record.getMessage()]) == 1


async def test_what_is_too_large_for_the_broker_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Maximum Packet Size: a broker would hang up over it, each time again."""
    with mosquitto(tmp_path / "m", extra=["max_packet_size 2000"]) as made, Peer(made) as peer:
        async with open_outbox(tmp_path / "db", 64) as outbox, publishing(made, Publisher(outbox, Counters())):
            await outbox.commit(events(0, 1))
            await outbox.commit(events(1, 2, size=3000))
            await outbox.commit(events(3, 1))
            await flushed(outbox)
            await peer.wait_for(lambda: len(numbers(peer)) == 2)
    assert numbers(peer) == [0, 3]
    assert len([record for record in caplog.records if "larger than the broker's limit" in record.getMessage()]) == 1


async def test_a_line_that_cannot_be_read_is_read_again(
    tmp_path: Path, broker: Broker, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trouble of the disk does not end the publisher."""
    monkeypatch.setattr(publisher_module, "_READ_AGAIN_S", 0.05)
    failures = [StorageError("db", "cannot be read"), StorageError("db", "cannot be read")]
    read = Database.entries

    def entries(self: Database, after: int, upto: int, limit: int) -> object:
        if failures:
            raise failures.pop()
        return read(self, after, upto, limit)

    monkeypatch.setattr(Database, "entries", entries)
    async with open_outbox(tmp_path / "db", 64) as outbox:
        await outbox.commit(events(0, 3))
        async with publishing(broker, Publisher(outbox, Counters())):
            await flushed(outbox)
            await peer.wait_for(lambda: numbers(peer) == [0, 1, 2])


async def test_a_bounced_broker_repeats_with_the_same_id(tmp_path: Path, broker: Broker) -> None:
    """D2, end to end: a broker that restarts in the middle; each event once by its id, `seq` without a hole."""
    async with staged(tmp_path, broker) as stage, stage.running():
        await stage.polling("101")
        for number in range(6):
            stage.simulator.emit_sample("101", "AgentState_Ready")
            if number == 2:
                await asyncio.to_thread(broker.stop)
                await asyncio.to_thread(broker.start)
                await stage.peer.wait_subscribed()
        await stage.wait("101/event", seq=6)

        retained = stage.json("101/event")
        by_id = {event["id"]: event["seq"] for event in retained}
        assert len({event["seq"] for event in retained}) == len(by_id)
        assert retained[-1]["seq"] == 6
        assert len(stage.simulator.handed_out("101")) == 6


async def test_the_stream_can_be_switched_off(tmp_path: Path, shared_broker: Broker) -> None:
    """`mqtt.stream: false`, end to end."""
    async with staged(tmp_path, shared_broker) as stage, stage.running(mqtt={"stream": False}):
        await stage.polling("101")
        stage.simulator.emit_sample("101", "AgentState_Ready")
        event = await stage.wait("101/event", seq=1)

        assert "replayed" not in event
        assert stage.on("101/events") == []
