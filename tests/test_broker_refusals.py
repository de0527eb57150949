"""What a broker does not take: for now, never, or without saying so (D2). The rest goes on, in order."""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

from adapter import publisher as publisher_module
from adapter import standing
from adapter.agent.presence import Timing
from adapter.config import Backoff
from adapter.errors import BrokerConnectionError
from adapter.metrics import Counters
from adapter.mqtt import Dialer, Message
from adapter.publisher import Publisher
from adapter.store.outbox import open_outbox
from adapter.store.records import Change
from tests.broker_support import Broker, Peer, mosquitto, nats
from tests.fault_support import emit, seqs, told, until
from tests.stage_support import staged
from tests.tcp_proxy import PUBACK, PUBLISH, Proxy, Talk, identifier, kind, topic, unchanged
from tests.test_broker import config_of
from tests.test_publisher import events, flushed, numbers

pytestmark = pytest.mark.harm


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Compress the times."""
    caplog.set_level("INFO", "adapter")
    monkeypatch.setattr(standing, "_AGAIN", Backoff(initial_s=0.05, maximum_s=0.5))
    monkeypatch.setattr(standing, "_STANDS_S", 0.4)
    monkeypatch.setattr(publisher_module, "_PROBE_S", (0.1, 0.2))
    monkeypatch.setattr(publisher_module, "_PUT_OFF", Backoff(initial_s=0.2, maximum_s=1.0))


def aside(path: Path) -> list[tuple[str, str]]:
    """Read the topics and reasons of what was set aside."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT topic, reason FROM aside ORDER BY number").fetchall()


# For now.


async def test_d2_what_is_refused_for_now_is_tried_again(
    tmp_path: Path, shared_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """D2: quota exceeded and the like put an event off, in pauses; the connection stays, nothing is set aside."""
    codes = [0x97, 0x80, 0x83, 0x97]
    tries: list[float] = []

    async with staged(tmp_path, shared_broker) as stage, Proxy(shared_broker.ports["mqtt"]) as proxy:

        def refuse(packet: bytes, talk: Talk) -> bytes:
            if kind(packet) == PUBLISH and topic(packet) == stage.topic("101/events") and len(tries) < len(codes):
                talk.answer(b"\x40\x03" + identifier(packet) + bytes([codes[len(tries)]]))
                tries.append(asyncio.get_running_loop().time())
                return b""
            return packet

        async with stage.running(mqtt={"url": proxy.url}) as adapter:
            await stage.polling("101")
            await until(lambda: not adapter.app._outbox.depth)
            count = len(proxy.accepted)
            proxy.up = refuse
            emit(stage, 5)
            await stage.wait("101/events", seq=5)
            await until(lambda: not adapter.app._outbox.depth)
            await stage.send("101/calldata/set", "still connected")
            await stage.wait("101/calldata/result", status="applied")

            assert len(proxy.accepted) == count
            assert stage.json("101/event")[-1]["seq"] == 5
            assert seqs(stage) == [1, 2, 3, 4, 5]
            gaps = [later - former for former, later in pairwise(tries)]
            assert all(gap > 0.19 for gap in gaps)
            lines = [line for line in told(caplog) if "publishing" in line]
            assert len(lines) == 2
            assert "101/event is refused for now: Quota exceeded; trying again" in lines[0]
            assert "back after" in lines[1]
        assert aside(tmp_path / "outbox.db") == []


async def test_d2_a_newest_value_that_is_taken_in_the_end_lets_the_line_go_on(tmp_path: Path, broker: Broker) -> None:
    """D2: a backlog goes on behind a newest value that was put off, also where nothing else happens."""
    refused = 0

    def refuse_once(packet: bytes, talk: Talk) -> bytes:
        nonlocal refused
        if kind(packet) == PUBLISH and topic(packet) == "p/101/state" and not refused:
            refused += 1
            talk.answer(b"\x40\x03" + identifier(packet) + b"\x97")
            return b""
        return packet

    async with open_outbox(tmp_path / "db", 64) as outbox, Proxy(broker.ports["mqtt"]) as proxy:
        proxy.up = refuse_once
        await outbox.commit(events(0, 1200))
        await outbox.commit(Change(slots={"p/101/state": b"{}"}))
        dialer = Dialer(config_of(broker, port=proxy.port))
        async with dialer.connect(client_id="publisher", on_message=lambda _: None) as connection:
            sending = asyncio.create_task(Publisher(outbox, Counters()).run(connection))
            try:
                await flushed(outbox)
            finally:
                sending.cancel()
                await asyncio.wait([sending])
    assert refused == 1


async def test_d2_what_overtook_a_refused_one_goes_again_behind_it(tmp_path: Path, shared_broker: Broker) -> None:
    """D2: where the broker takes later events of a window and not an earlier one, the newest is still the last."""
    refused = 0

    def refuse_the_third(packet: bytes, talk: Talk) -> bytes:
        nonlocal refused
        if kind(packet) == PUBLISH and topic(packet) == "p/101/event" and b'"n": 2,' in packet and refused < 2:
            refused += 1
            talk.answer(b"\x40\x03" + identifier(packet) + b"\x97")
            return b""
        return packet

    with Peer(shared_broker, ["p/#"]) as peer:
        async with open_outbox(tmp_path / "db", 64) as outbox, Proxy(shared_broker.ports["mqtt"]) as proxy:
            proxy.up = refuse_the_third
            await outbox.commit(events(0, 6))
            dialer = Dialer(config_of(shared_broker, port=proxy.port))
            async with dialer.connect(client_id="publisher", on_message=lambda _: None) as connection:
                sending = asyncio.create_task(Publisher(outbox, Counters()).run(connection))
                await flushed(outbox)
                await peer.wait_for(lambda: numbers(peer, "p/101/event").count(5) == 2)
                sending.cancel()
                await asyncio.wait([sending])
        seen = numbers(peer, "p/101/event")
        await peer.publish("p/101/event", b"", retain=True)

    assert refused == 2
    assert seen == [0, 1, 3, 4, 5, 2, 3, 4, 5]


# Never, and said.


async def test_an_event_over_the_maximum_packet_size_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """D2: what the broker says that it never takes is set aside and said, once; the rest goes on in order."""
    with mosquitto(tmp_path / "m", extra=["max_packet_size 1500"]) as broker:
        async with staged(tmp_path, broker) as stage:
            async with stage.running() as adapter:
                await stage.polling("101")
                for number in range(6):
                    fill = "x" * (3000 if number in {2, 3} else 10)
                    stage.simulator.emit("101", {"eventType": "Large", "workNo": "101", "content": fill})
                await stage.wait("101/events", seq=6)
                await until(lambda: not adapter.app._outbox.depth)
            assert seqs(stage) == seqs(stage, name="event") == [1, 2, 5, 6]
        assert [reason for _, reason in aside(tmp_path / "outbox.db")] == [
            "larger than the broker's limit of 1500 bytes"
        ] * 2
    assert len([line for line in told(caplog) if "set aside" in line]) == 1


async def test_a_denied_topic_costs_the_others_little(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Mosquitto 2.0.11 hangs up at each denied PUBLISH: one try tells, the others' events go on, nothing goes round."""
    with mosquitto(tmp_path / "m", users={"adapter": "pw", "peer": "pw"}, acl="") as broker:
        async with staged(tmp_path, broker, agents=["101", "102"]) as stage:
            (tmp_path / "m" / "acl").write_text(
                f"user adapter\ntopic readwrite {stage.prefix}/#\ntopic deny {stage.prefix}/101/event\n"
            )
            broker.restart()
            await stage.peer.wait_subscribed()
            async with stage.running() as adapter:
                await stage.polling("102")
                for number in range(1, 9):
                    emit(stage, 1, "101")
                    emit(stage, 1, "102")
                    await stage.wait("102/events", seq=number)
                await until(lambda: adapter.app._shared.counters.events == 16 and not adapter.app._outbox.depth)
                connections = adapter.app._shared.counters.broker_connections
            assert seqs(stage, "102") == list(range(1, 9))
        assert aside(tmp_path / "outbox.db") == [(stage.topic("101/event"), "Not authorized")] * 8
    assert connections < 8
    assert len([line for line in told(caplog) if "refuses" in line]) == 1


async def test_a_broker_that_is_away_after_a_denial_is_not_hammered(tmp_path: Path, shared_broker: Broker) -> None:
    """The hang-up over a denied message is made good at once; what fails after it is an outage like any other."""
    async with staged(tmp_path, shared_broker) as stage, Proxy(shared_broker.ports["mqtt"]) as proxy:

        def deny(packet: bytes, talk: Talk) -> bytes:
            if kind(packet) == PUBLISH and topic(packet) == stage.topic("101/events"):
                talk.answer(b"\x40\x03" + identifier(packet) + b"\x87")
                talk.hang_up()
                proxy.closed = True
                return b""
            return packet

        async with stage.running(mqtt={"url": proxy.url}) as adapter:
            await stage.polling("101")
            await until(lambda: not adapter.app._outbox.depth)
            proxy.up = deny
            before = len(proxy.accepted)
            emit(stage, 1)
            await until(lambda: len(proxy.accepted) >= before + 10)  # two attempts at a time, one for each version
            gaps = [later - former for former, later in pairwise(proxy.accepted[before:])]

            assert max(gaps) > 0.35
            proxy.closed, proxy.up = False, unchanged
            await until(lambda: adapter.app._link.connection is not None)
    assert aside(tmp_path / "outbox.db") == [(stage.topic("101/event"), "Not authorized")]


async def test_denied_topics_of_the_bridge_do_not_end_every_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the adapter says of itself may all be denied, by a broker that hangs up over it: events go on."""
    monkeypatch.setattr(standing, "_AGAIN", Backoff(initial_s=0.05, maximum_s=0.2))
    with mosquitto(tmp_path / "m", users={"adapter": "pw"}, acl="") as broker:
        async with staged(tmp_path, broker) as stage:
            names = ("availability", "health", "mark", "log")
            denied = "".join(f"topic deny {stage.prefix}/bridge/{name}\n" for name in names)
            (tmp_path / "m" / "acl").write_text(f"user adapter\ntopic readwrite {stage.prefix}/#\n{denied}")
            broker.restart()
            await stage.peer.wait_subscribed()
            async with stage.running(timing=Timing(mark_s=0.1, no_mark_s=0.1)) as adapter:
                await stage.polling("101")
                emit(stage, 3)
                await stage.wait("101/events", seq=3)
                await until(lambda: [line for line in told(caplog) if "refuses" in line and "bridge/mark" in line])
                await until(lambda: adapter.app._link.connection and adapter.app._link._standing.stood)
                connections = adapter.app._shared.counters.broker_connections
                emit(stage, 3)
                await stage.wait("101/events", seq=6)
                await until(lambda: not adapter.app._outbox.depth)
                # A report that comes just now costs that connection, and those after which it is left out.
                ended = adapter.app._shared.counters.broker_connections - connections
                assert ended <= 1 + standing._SHORT_LIVED
            assert seqs(stage) == [1, 2, 3, 4, 5, 6]
    for name in ("availability", "mark"):
        assert len([line for line in told(caplog) if f"refuses {stage.topic(f'bridge/{name}')}" in line]) == 1


# Never, and not said.


@contextlib.asynccontextmanager
async def reconnecting(broker: Broker, publisher: Publisher, protocol: str) -> AsyncIterator[list[int]]:
    """Publish over one connection after the other, as the link does; gives their number."""
    count = [0]

    async def run() -> None:
        while True:
            with contextlib.suppress(BrokerConnectionError):
                dialer = Dialer(config_of(broker, protocol=protocol))
                async with dialer.connect(client_id="publisher", on_message=lambda _: None) as connection:
                    count[0] += 1
                    connection.publish(Message(topic="p/bridge/availability", payload=b"online"))
                    ways = [asyncio.create_task(publisher.run(connection)), asyncio.create_task(connection.lost())]
                    try:
                        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        for way in ways:
                            way.cancel()
                        await asyncio.wait(ways)
                    raise BrokerConnectionError("lost")
            await asyncio.sleep(0.05)

    task = asyncio.create_task(run())
    try:
        yield count
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.parametrize(
    ("protocol", "limit", "size"),
    [
        ("5", "message_size_limit 2000", 3000),
        ("3.1.1", "max_packet_size 2000", 3000),
        ("3.1.1", "nats-server's 1 MiB", 1_048_600),
    ],
)
async def test_d2_a_message_over_which_the_broker_hangs_up_is_found(
    tmp_path: Path, protocol: str, limit: str, size: int
) -> None:
    """D2: a limit that the broker keeps to itself does not stop the line: what breaks it is set aside, alone."""
    running = nats(tmp_path / "n") if "nats" in limit else mosquitto(tmp_path / "m", extra=[limit])
    with running as broker, Peer(broker, ["p/#"]) as peer:
        async with open_outbox(tmp_path / "db", 64) as outbox:
            await outbox.commit(events(0, 3))
            await outbox.commit(events(3, 1, size=size))
            await outbox.commit(events(4, 3))
            async with reconnecting(broker, Publisher(outbox, Counters()), protocol) as count:
                await flushed(outbox)
            await peer.wait_for(lambda: 6 in numbers(peer))
        assert list(dict.fromkeys(numbers(peer))) == [0, 1, 2, 4, 5, 6]
    assert aside(tmp_path / "db") == [("p/101/event", "the broker hangs up over it, perhaps for its size")]
    assert count[0] < 12


async def test_a_newest_value_over_which_the_broker_hangs_up_is_found(tmp_path: Path) -> None:
    """The same of a state or a page of the roster, which goes ahead of all events."""
    with mosquitto(tmp_path / "m", extra=["message_size_limit 2000"]) as broker, Peer(broker, ["p/#"]) as peer:
        async with open_outbox(tmp_path / "db", 64) as outbox:
            await outbox.commit(Change(slots={"p/bridge/info": b"x" * 3000, "p/101/state": b"{}"}))
            await outbox.commit(events(0, 3))
            async with reconnecting(broker, Publisher(outbox, Counters()), "5"):
                await flushed(outbox)
            await peer.wait_for(lambda: 2 in numbers(peer))
        assert peer.payloads("p/101/state")[-1] == b"{}"


async def test_d2_a_broker_that_hangs_up_for_another_reason_proves_nothing(
    tmp_path: Path, shared_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D2: an event that is on its way each time a connection ends is not set aside for that."""
    monkeypatch.setattr(publisher_module, "_PROBE_S", (0.5, 0.6))
    async with staged(tmp_path, shared_broker) as stage, Proxy(shared_broker.ports["mqtt"]) as proxy:
        async with stage.running(mqtt={"url": proxy.url}) as adapter:
            await stage.polling("101")
            await until(lambda: adapter.app._link.connection is not None)
            ours: set[bytes] = set()

            def note(packet: bytes, _talk: Talk) -> bytes:
                if kind(packet) == PUBLISH and topic(packet).startswith(stage.topic("101/event")):
                    ours.add(identifier(packet))
                return packet

            proxy.stands_s, proxy.up = 0.2, note
            proxy.down = lambda packet, _: b"" if kind(packet) == PUBACK and identifier(packet) in ours else packet
            before = len(proxy.accepted)
            proxy.cut()
            emit(stage, 3)
            await until(lambda: len(proxy.accepted) >= before + 7)
            assert adapter.app._outbox.depth == 3
            proxy.stands_s, proxy.down = None, unchanged
            proxy.cut()
            await until(lambda: not adapter.app._outbox.depth)
        assert seqs(stage) == [1, 2, 3]
    assert aside(tmp_path / "outbox.db") == []
