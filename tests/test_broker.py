"""The broker port against real brokers: Mosquitto over TCP, TLS and websockets, nats-server over TCP and websocket.

What no well-behaved broker does (silence, rubbish, a topic that is not UTF-8) is played by a few bytes over a socket.
"""

import asyncio
import contextlib
import dataclasses
import resource
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapter.config import BrokerAddress, MqttConfig
from adapter.errors import BrokerAuthError, BrokerConnectionError, BrokerError, ConfigError
from adapter.mqtt import (
    Connection,
    Dialer,
    Message,
    ProtocolRefusedError,
    Received,
    Refusal,
    paho_loop,
    read_retained,
    tls_context,
)
from adapter.mqtt import connection as mqtt_connection
from tests.broker_support import HOST, Broker, Peer, certificates, free_ports, mosquitto, nats

DEADLINE_S = 30.0
CONNACK = b"\x20\x03\x00\x00\x00"
WILL = Message(topic="a/bridge/availability", payload=b"offline", retain=True)


def config_of(broker: Broker, scheme: str = "mqtt", **changes: Any) -> MqttConfig:  # noqa: ANN401 - any member
    """Make the configuration that reaches `broker` over `scheme`."""
    certs = broker.certificates
    members = {"username": broker.username, "password": broker.password, "ca_file": certs.ca_file if certs else None}
    return config_to(changes.pop("port", broker.ports[scheme]), **{"scheme": scheme, **members, **changes})


def config_to(port: int, **changes: Any) -> MqttConfig:  # noqa: ANN401 - any member
    """Make a configuration for whatever listens on `port`."""
    scheme = changes.get("scheme", "mqtt")
    members: dict[str, Any] = {
        "url": f"{scheme}://{HOST}:{port}",
        "scheme": scheme,
        "addresses": (BrokerAddress(host=changes.pop("host", HOST), port=port, path="/mqtt"),),
        "username": None,
        "password": None,
        "client_id": "adapter-test",
        "protocol": "auto",
        "ca_file": None,
        "cert_file": None,
        "key_file": None,
        "verify": True,
        "keepalive_s": 60,
        "topic_prefix": "a",
        "stream": True,
        "response_prefix": None,
    }
    return MqttConfig(**{**members, **changes})


def dial(
    config: MqttConfig,
    on_message: Callable[[Received], None] = lambda _: None,
    **more: Any,  # noqa: ANN401 - passed on
) -> contextlib.AbstractAsyncContextManager[Connection]:
    """Connect the way the program does."""
    return Dialer(config).connect(**{"client_id": "adapter-test", "on_message": on_message, **more})


def dial_once(config: MqttConfig, **more: Any) -> Connection:  # noqa: ANN401 - passed on
    """Make a single connection, with its deadlines in the test's hand."""
    members = {"client_id": "adapter-test", "will": None, "protocol": "5", "on_message": lambda _: None, "tls": None}
    return Connection(config, config.addresses[0], **{**members, **more})


class Acks:
    """Collects what `on_ack` is told, in order."""

    def __init__(self) -> None:
        self.reasons: list[str | None] = []
        self._news = asyncio.Event()

    def __call__(self, refusal: Refusal | None) -> None:
        """Take an acknowledgment."""
        self.reasons.append(None if refusal is None else refusal.reason)
        self._news.set()

    async def wait(self, count: int = 1) -> list[str | None]:
        """Wait until `count` acknowledgments have come."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.reasons) < count:
                self._news.clear()
                await self._news.wait()
        return self.reasons


async def published(connection: Connection, topic: str, payload: bytes, **more: Any) -> str | None:  # noqa: ANN401 - members of Message
    """Publish one message and wait for its PUBACK."""
    acks = Acks()
    connection.publish(Message(topic=topic, payload=payload, **more), acks)
    assert acks.reasons == [], "on_ack is never called from within publish"
    return (await acks.wait())[0]


def open_files() -> int:
    """Count this process's file descriptors."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def lost(connection: Connection) -> str:
    """Wait until the connection is gone; returns why."""
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(BrokerConnectionError) as caught:
            await connection.lost()
    return str(caught.value)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """Run a Mosquitto with a plain listener."""
    with mosquitto(tmp_path / "broker") as running:
        yield running


@contextlib.asynccontextmanager
async def playing(
    play: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    *,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """Listen on a free port and let `play` talk to each who connects; gives the port."""
    talks: set[asyncio.Task[None]] = set()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with closing(writer):
            await play(reader, writer)

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.add(asyncio.create_task(talk(reader, writer)))

    async with await asyncio.start_server(accept, HOST, ssl=tls) as server:
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            for each in talks:
                each.cancel()
            await asyncio.gather(*talks, return_exceptions=True)


@contextlib.asynccontextmanager
async def closing(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Close a stream at the end, whatever became of it; the other side may go when it likes."""
    try:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            yield
    finally:
        writer.close()
        if writer.get_extra_info("ssl_object") is not None:
            writer.transport.abort()  # asyncio would wait for the other side's end of TLS
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def relayed(
    port: int, down: Callable[[asyncio.StreamReader], Coroutine[None, None, None]]
) -> AsyncIterator[asyncio.StreamWriter]:
    """Connect to the broker at `port`: gives the way up, while `down` takes care of what comes back."""
    reader, writer = await asyncio.open_connection(HOST, port)
    async with closing(writer):
        answers = asyncio.create_task(down(reader))
        try:
            yield writer
        finally:
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)


async def read_packet(reader: asyncio.StreamReader) -> bytes:
    """Read one short MQTT packet."""
    head = await reader.readexactly(2)
    return head + await reader.readexactly(head[1])


# Every way to a broker


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts", "ws", "wss"])
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_publish_over_each_transport_of_mosquitto(tmp_path: Path, scheme: str, protocol: str) -> None:
    """A message is acknowledged, arrives and is retained, over TCP, TLS and websockets, in both versions."""
    with mosquitto(tmp_path, schemes=[scheme], users={"adapter": "secret"}) as broker, Peer(broker) as peer:
        async with dial(config_of(broker, scheme, protocol=protocol)) as connection:
            reason = await published(connection, "a/101/event", b'{"seq": 1}', retain=True)

            assert reason is None
            assert connection.protocol == protocol
        await peer.wait_for_payload("a/101/event", b'{"seq": 1}')
        with Peer(broker) as late:
            await late.wait_for(lambda: late.messages)
        assert late.messages[0].retain


@pytest.mark.parametrize("scheme", ["mqtt", "ws"])
async def test_nats_server_is_reached_by_falling_back_to_3_1_1(tmp_path: Path, scheme: str) -> None:
    """`auto` falls back where nats-server refuses MQTT 5 (TCP) or just hangs up (websocket), and remembers it."""
    with nats(tmp_path) as broker, Peer(broker) as peer:
        dialer = Dialer(config_of(broker, scheme))
        for _ in range(2):
            async with dialer.connect(client_id="adapter-test", on_message=lambda _: None) as connection:
                assert await published(connection, "a/101/event", b"{}", retain=True) is None
                assert connection.protocol == "3.1.1"
            assert dialer.protocol == "3.1.1"
        await peer.wait_for(lambda: len(peer.on("a/101/event")) == 2)


async def test_a_broker_that_says_no_is_believed(tmp_path: Path) -> None:
    """A broker that refuses 5 in so many words is met with 3.1.1 the next time."""
    with nats(tmp_path) as broker:
        dialer = Dialer(config_of(broker), remembered="5")
        async with dialer.connect(client_id="adapter-test", on_message=lambda _: None) as connection:
            assert connection.protocol == "3.1.1"

        assert dialer.protocol == "3.1.1"


async def test_a_hang_up_alone_does_not_unlearn_5(broker: Broker) -> None:
    """A broker that hangs up may just be stopping: 3.1.1 is tried at once, and 5 again the next time."""
    calls = 0

    async def hang_up_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await reader.read(1)
            return

        async def down(up: asyncio.StreamReader) -> None:
            writer.write(await up.read(4096))

        async with relayed(broker.ports["mqtt"], down) as up:
            up.write(await reader.read(4096))
            await reader.read()

    async with playing(hang_up_once) as port:
        config = config_of(broker, port=port)
        dialer = Dialer(config, remembered="5")
        async with dialer.connect(client_id="adapter-test", on_message=lambda _: None) as connection:
            assert connection.protocol == "3.1.1"

        assert dialer.protocol == "5"


@pytest.mark.parametrize("scheme", ["mqtt", "ws"])
async def test_a_version_that_was_asked_for_is_not_replaced(tmp_path: Path, scheme: str) -> None:
    """`protocol: 5` at a broker without it is an error, not another version."""
    with nats(tmp_path) as broker:
        with pytest.raises(ProtocolRefusedError) as caught:
            async with dial(config_of(broker, scheme, protocol="5")):
                pass

        assert caught.value.said or scheme == "ws"  # there it often hangs up before it has said so


async def test_5_is_tried_where_the_remembered_3_1_1_is_refused(broker: Broker) -> None:
    """A broker that no longer speaks the remembered version is tried with the other one."""

    async def only_5(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = await read_packet(reader)
        if hello[8] == 4:  # [MQTT-3.1.2-2]: "unacceptable protocol version", then the end
            writer.write(b"\x20\x02\x00\x01")
            return

        async def down(up: asyncio.StreamReader) -> None:
            writer.write(await read_packet(up))

        async with relayed(broker.ports["mqtt"], down) as up:
            up.write(hello)
            await reader.read()

    async with playing(only_5) as port:
        dialer = Dialer(config_to(port), remembered="3.1.1")
        async with dialer.connect(client_id="adapter-test", on_message=lambda _: None) as connection:
            assert connection.protocol == "5"

        assert dialer.protocol == "5"


# What a message carries


async def test_json_is_announced_and_correlation_comes_back(broker: Broker) -> None:
    """C8: MQTT 5 messages say that they are JSON, where they are, and carry correlation data."""
    with Peer(broker) as peer:
        async with dial(config_of(broker)) as connection:
            await published(connection, "a/json", b'{"a": 1}')
            await published(connection, "a/plain", b"online")
            await published(connection, "a/result", b"{}", correlation=b"\x00c")
            await published(connection, "a/plain-result", b"text", correlation=b"c")
            connection.publish(Message(topic="a/log", payload=b"{}", qos=0))
            await peer.wait_for(lambda: peer.on("a/log"))

        seen = {each.topic: (each.content_type, each.correlation, each.qos) for each in peer.messages}
    assert seen == {
        "a/json": ("application/json", None, 1),
        "a/plain": (None, None, 1),
        "a/result": ("application/json", b"\x00c", 1),
        "a/plain-result": (None, b"c", 1),
        "a/log": ("application/json", None, 0),
    }


async def test_correlation_is_left_out_of_3_1_1(broker: Broker) -> None:
    """A result goes out in MQTT 3.1.1 too, without what that cannot carry."""
    with Peer(broker) as peer:
        async with dial(config_of(broker, protocol="3.1.1")) as connection:
            assert await published(connection, "a/result", b"{}", correlation=b"c") is None
        await peer.wait_for(lambda: peer.messages)
    assert peer.messages[0].correlation is None


async def test_a_command_carries_what_its_sender_asked_for(broker: Broker) -> None:
    """C8: correlation data and response topic of a received message are there; a retained one says so (C4)."""
    inbox: asyncio.Queue[Received] = asyncio.Queue()
    with Peer(broker) as peer:
        await peer.publish("a/101/calldata/set", "old", retain=True)
        async with dial(config_of(broker), inbox.put_nowait) as connection:
            await connection.subscribe([("a/+/calldata/set", 1)])
            retained = await inbox.get()
            await peer.publish("a/101/calldata/set", "new", correlation=b"7", response_topic="my/answer")
            live = await inbox.get()
            await peer.publish("a/101/calldata/set", "fast", qos=0)
            fast = await inbox.get()

            assert (retained.payload, retained.retain, retained.correlation) == (b"old", True, None)
            assert (live.payload, live.retain) == (b"new", False)
            assert (live.topic, live.qos) == ("a/101/calldata/set", 1)
            assert (live.correlation, live.response_topic) == (b"7", "my/answer")
            assert (fast.qos, fast.mid) == (0, 0)


# Acknowledgments


async def test_c3_a_message_is_acknowledged_by_ack_alone(tmp_path: Path) -> None:
    """C3: a broker that allows one unacknowledged message sends the second only after the first one's `ack`."""
    inbox: asyncio.Queue[Received] = asyncio.Queue()
    with mosquitto(tmp_path, extra=["max_inflight_messages 1"]) as broker, Peer(broker, ["other"]) as peer:
        async with dial(config_of(broker, protocol="3.1.1"), inbox.put_nowait) as connection:
            await connection.subscribe([("a/#", 1)])
            for number in (b"1", b"2", b"3"):
                await peer.publish("a/101/calldata/set", number)
            first = await inbox.get()
            await published(connection, "other", b"a round trip, in which the second would have come")

            assert first.payload == b"1"
            assert inbox.empty()

            connection.ack(first)
            second = await inbox.get()
            assert second.payload == b"2"

            connection.ack(first)  # twice, or of another connection: must not acknowledge what now has its identifier
            connection.ack(dataclasses.replace(second))
            await published(connection, "other", b"a round trip")
            assert inbox.empty()

            connection.ack(second)
            assert (await inbox.get()).payload == b"3"


async def test_a_refused_publish_says_why(tmp_path: Path) -> None:
    """A publish that the broker's ACL denies comes back with the reason of its PUBACK."""
    with mosquitto(tmp_path, users={"adapter": "secret"}, acl="user adapter\ntopic write a/#\n") as broker:
        async with dial(config_of(broker)) as connection:
            assert await published(connection, "a/101/event", b"{}") is None
            # The last one: Mosquitto 2.0.11 ends an MQTT 5 connection after this PUBACK.
            assert await published(connection, "elsewhere", b"{}") == "Not authorized"


async def test_twenty_thousand_messages_arrive_in_order(tmp_path: Path) -> None:
    """With a large window every message is acknowledged once and arrives in order."""
    count = 20_000
    with mosquitto(tmp_path, extra=["max_inflight_messages 2000"]) as broker, Peer(broker) as peer:
        acks = Acks()
        async with dial(config_of(broker)) as connection:
            for number in range(count):
                connection.publish(Message(topic="a/101/event", payload=b"%d" % number), acks)
            assert connection.in_flight == count

            assert await acks.wait(count) == [None] * count
            assert connection.in_flight == 0
        await peer.wait_for(lambda: len(peer.messages) == count)
        assert [int(each.payload) for each in peer.messages] == list(range(count))


async def test_receive_maximum_is_kept(tmp_path: Path) -> None:
    """No more messages are on their way than the broker's Receive Maximum; the rest waits in order."""
    with mosquitto(tmp_path, extra=["max_inflight_messages 5"]) as broker:
        sent = outstanding = most = 0
        news = asyncio.Condition()

        def nothing_more_to_send() -> bool:
            return outstanding == 5 or sent == 100

        async def counting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent, outstanding, most

            async def down(up: asyncio.StreamReader) -> None:
                nonlocal outstanding
                while True:
                    packet = await read_packet(up)
                    if packet[0] == 0x40:  # let no PUBACK through while more could be sent
                        async with news:
                            await news.wait_for(nothing_more_to_send)
                            outstanding -= 1
                    writer.write(packet)

            async with relayed(broker.ports["mqtt"], down) as up:
                while True:
                    packet = await read_packet(reader)
                    async with news:
                        sent += packet[0] & 0xF0 == 0x30
                        outstanding += packet[0] & 0xF0 == 0x30
                        most = max(most, outstanding)
                        news.notify_all()
                    up.write(packet)

        with Peer(broker) as peer:
            acks = Acks()
            async with playing(counting) as port, dial(config_to(port)) as connection:
                assert connection.receive_maximum == 5
                for number in range(101):
                    topic = "a/\x07" if number in {0, 50} else "a/101/event"  # refused here, and takes no place
                    connection.publish(Message(topic=topic, payload=b"%d" % number), acks)
                connection.publish(Message(topic="a/101/event", payload=b"101"), acks)
                await acks.wait(102)
            assert most == 5
            await peer.wait_for(lambda: len(peer.messages) == 100)
            assert [int(each.payload) for each in peer.messages] == [*range(1, 50), *range(51, 102)]


async def test_without_a_receive_maximum_all_identifiers_may_be_used(tmp_path: Path) -> None:
    """MQTT 3.1.1 names no limits."""
    with nats(tmp_path) as broker:
        async with dial(config_of(broker)) as connection:
            assert (connection.receive_maximum, connection.maximum_packet_size) == (65_535, None)


async def test_a_message_over_the_maximum_packet_size_is_not_sent(tmp_path: Path) -> None:
    """What is larger than the broker takes is refused here; to the byte, for the broker would hang up."""
    with mosquitto(tmp_path, extra=["max_packet_size 1000"]) as broker, Peer(broker) as peer:
        async with dial(config_of(broker)) as connection:
            assert connection.maximum_packet_size == 1000
            # 1 type, 2 length, 2 + 7 topic, 2 identifier, 1 property length; JSON has 19 more of properties.
            for payload, extra in ((b"x" * 985, 0), (b"{" * 966, 0), (b"x" * 987, 2)):
                qos = 0 if extra else 1
                acks = Acks()
                connection.publish(Message(topic="a/large", payload=payload, qos=qos), acks)
                connection.publish(Message(topic="a/large", payload=payload + b"+", qos=qos), acks)
                await acks.wait(2 - (qos == 0))
                assert "larger than the broker's limit of 1000 bytes" in acks.reasons
            assert await published(connection, "a/small", b"still there") is None
        await peer.wait_for(lambda: peer.on("a/small"))
        assert sorted(len(each.payload) for each in peer.on("a/large")) == [966, 985, 987]


@pytest.mark.parametrize("topic", ["", "a/\x00", "a/\n", "a/+/b", "a/#", "a/\ud83d", "a" * 70_000])
async def test_a_topic_that_would_end_the_connection_is_refused(broker: Broker, topic: str) -> None:
    """A message with an impossible topic is refused by itself instead of ending each connection anew."""
    async with dial(config_of(broker)) as connection:
        reason = await published(connection, topic, b"{}")

        assert reason
        assert "topic" in reason.lower() or "utf-8" in reason
        assert await published(connection, "a/fine", b"{}") is None


async def test_a_faulty_callback_does_not_end_the_connection(broker: Broker) -> None:
    """An exception in `on_ack` goes to the event loop's handler, and the next message is acknowledged."""
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(str(context["exception"])))

    def faulty(_: Refusal | None) -> None:
        raise LookupError("on purpose")

    async with dial(config_of(broker)) as connection:
        connection.publish(Message(topic="a/1", payload=b"{}"), faulty)
        connection.publish(Message(topic="a/2", payload=b"{}"))

        assert await published(connection, "a/3", b"{}") is None
        assert told == ["on purpose"]


# How it ends


async def test_the_will_goes_out_after_an_exception(broker: Broker) -> None:
    """Left with an exception, the broker says `offline` for us."""
    with Peer(broker) as peer:
        with contextlib.suppress(LookupError):
            async with dial(config_of(broker), will=WILL):
                raise LookupError
        await peer.wait_for_payload(WILL.topic, b"offline")
    assert peer.messages[0].qos == 1


async def test_the_will_does_not_go_out_after_a_clean_end(broker: Broker) -> None:
    """Left without an exception, everything published before still goes out, and the will does not."""
    with Peer(broker) as peer:
        async with dial(config_of(broker), will=WILL) as connection:
            connection.publish(Message(topic="a/last", payload=b"words"))
        await peer.wait_for(lambda: peer.on("a/last"))
        with contextlib.suppress(LookupError):
            async with dial(config_of(broker), will=dataclasses.replace(WILL, topic="a/second")):
                raise LookupError
        await peer.wait_for(lambda: peer.on("a/second"))
        assert peer.on(WILL.topic) == []
        assert await lost(connection) == f"{HOST}:{broker.ports['mqtt']}: disconnected"


async def test_the_last_answers_do_not_stand_in_the_way_of_a_clean_end(broker: Broker) -> None:
    """What the broker still sends when DISCONNECT is due is read first: TCP would reset the connection over it."""
    with Peer(broker) as peer:
        for number in range(20):
            async with dial(config_of(broker), will=WILL) as connection:
                await connection.subscribe([("a/own", 0)])
                connection.publish(Message(topic="a/own", payload=b"%d" % number))
        await peer.wait_for(lambda: len(peer.on("a/own")) == 20)
        async with dial(config_of(broker)) as connection:
            await published(connection, "a/last", b"a round trip, in which a will would have come")
        await peer.wait_for(lambda: peer.on("a/last"))
        assert peer.on(WILL.topic) == []


async def test_a_clean_end_does_not_wait_for_a_frozen_broker(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaving takes a bounded time also where nothing can be written; the will then tells the truth."""
    monkeypatch.setattr(mqtt_connection, "FLUSH_S", 0.1)
    with Peer(broker) as peer:
        async with asyncio.timeout(DEADLINE_S), dial(config_of(broker, protocol="3.1.1"), will=WILL) as connection:
            broker.send(signal.SIGSTOP)
            for _ in range(20):
                connection.publish(Message(topic="a/bulk", payload=bytes(1_000_000)))
        broker.send(signal.SIGCONT)
        await peer.wait_for_payload(WILL.topic, b"offline")
    assert (await lost(connection)).endswith("closed")


async def test_a_killed_broker_is_noticed(broker: Broker) -> None:
    """`lost` ends when the broker is gone; nothing is taken afterwards, and a connection to nobody is refused."""
    async with dial(config_of(broker)) as connection:
        waiting = asyncio.create_task(lost(connection))
        broker.kill()

        assert await waiting == f"{HOST}:{broker.ports['mqtt']}: connection closed"
        with pytest.raises(BrokerConnectionError, match="connection closed"):
            connection.publish(Message(topic="a/1", payload=b"{}"))
        with pytest.raises(BrokerConnectionError, match="connection closed"):
            await connection.subscribe([("a/#", 1)])
    with pytest.raises(BrokerConnectionError, match=f"{HOST}:{broker.ports['mqtt']}: Connection refused"):
        async with dial(config_of(broker)):
            pass


async def test_the_broker_may_say_why_it_ends() -> None:
    """An MQTT 5 broker's reason for its DISCONNECT is told."""

    async def too_fast(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(CONNACK + b"\xe0\x02\x96\x00")
        await reader.read()

    async with playing(too_fast) as port, dial(config_to(port)) as connection:
        assert await lost(connection) == f"{HOST}:{port}: the broker ended the connection: Message rate too high"
        assert connection.hung_up


async def test_a_second_client_of_the_same_id_throws_the_first_off(broker: Broker) -> None:
    """Whoever connects with the adapter's client id ends its connection, which it notices [MQTT-3.1.4-3]."""
    async with dial(config_of(broker)) as first, dial(config_of(broker)):
        await lost(first)


async def test_a_silent_broker_is_noticed_by_the_keepalive(broker: Broker) -> None:
    """A broker that no longer answers, over a link that stays up, is noticed within about twice the keepalive."""
    async with dial(config_of(broker, keepalive_s=1)) as connection:
        broker.send(signal.SIGSTOP)

        assert "silent" in await lost(connection)


async def test_a_broker_that_acknowledges_nothing_is_left(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """No PUBACK for too long counts as a lost connection, so that the outbox sends it again over a new one."""
    monkeypatch.setattr(mqtt_connection, "ACK_TIMEOUT_S", 0.4)
    monkeypatch.setattr(paho_loop, "TICK_S", (0.2, 0.2))
    async with dial(config_of(broker)) as connection:
        assert await published(connection, "a/1", b"{}") is None
        broker.send(signal.SIGSTOP)
        connection.publish(Message(topic="a/2", payload=b"{}"))

        assert "no acknowledgment (PUBACK) within 0.4 s" in await lost(connection)
        assert (connection.acknowledged, connection.hung_up) == (1, False)


async def test_nothing_is_sent_again_by_itself(broker: Broker) -> None:
    """What a lost connection had not acknowledged is not sent by the next one: that is the outbox's part."""
    acks = Acks()
    dialer = Dialer(config_of(broker))
    async with dialer.connect(client_id="adapter-test", on_message=lambda _: None) as connection:
        broker.send(signal.SIGSTOP)
        connection.publish(Message(topic="a/once", payload=b"{}"), acks)
        broker.kill()
        await lost(connection)
    broker.start()
    with Peer(broker) as peer:
        async with dialer.connect(client_id="adapter-test", on_message=lambda _: None) as connection:
            assert await published(connection, "a/next", b"{}") is None
        await peer.wait_for(lambda: peer.on("a/next"))
    assert peer.on("a/once") == []
    assert acks.reasons == []


async def test_1100_open_files_do_not_hinder_a_reconnect(broker: Broker, tmp_path: Path) -> None:
    """With 1,100 files open and the broker bounced, we connect again and publish: select(2) could not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(4096, hard)), hard))
    dialer = Dialer(config_of(broker))
    path = tmp_path / "file"
    path.touch()
    with contextlib.ExitStack() as files, Peer(broker) as peer:
        async with dialer.connect(client_id="adapter-test", on_message=lambda _: None) as connection:
            for _ in range(1_100):
                files.enter_context(path.open())
            broker.restart()
            await lost(connection)
        await peer.wait_subscribed()
        while files.enter_context(path.open()).fileno() <= 1_100:  # what was lost left lower numbers free
            pass
        async with dialer.connect(client_id="adapter-test", on_message=lambda _: None) as connection:
            assert await published(connection, "a/101/event", b"{}") is None
            await peer.wait_for(lambda: peer.on("a/101/event"))


# Transports under strain


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts", "ws", "wss"])
async def test_nothing_is_lost_where_the_socket_is_full(tmp_path: Path, scheme: str) -> None:
    """Packets and frames that could be written in part only go on where they stopped, on every transport."""
    count = 60
    with mosquitto(tmp_path, schemes=[scheme], extra=["max_inflight_messages 1000"]) as broker, Peer(broker) as peer:
        async with dial(config_of(broker, scheme)) as connection:
            acks = Acks()
            broker.send(signal.SIGSTOP)
            for number in range(count):
                connection.publish(Message(topic="a/101/event", payload=b"%d " % number + bytes(100_000)), acks)
            for _ in range(5):  # fill the socket's buffers while nobody reads
                await asyncio.sleep(0)
            broker.send(signal.SIGCONT)
            assert await acks.wait(count) == [None] * count
        await peer.wait_for(lambda: len(peer.messages) == count)
        assert [int(each.payload.split()[0]) for each in peer.messages] == list(range(count))


@pytest.mark.parametrize("scheme", ["mqtts", "wss"])
async def test_many_packets_in_one_tls_record_are_all_read(tmp_path: Path, scheme: str) -> None:
    """A TLS front that gathers many packets into one record leaves none of them lying, although no more data comes."""
    plain = "mqtt" if scheme == "mqtts" else "ws"
    certs = certificates(tmp_path / "certificates")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certs.cert_file, certs.key_file)
    hold = asyncio.Event()
    with mosquitto(tmp_path / "broker", schemes=["mqtt", "ws"]) as broker, Peer(broker, ["none"]) as peer:

        async def front(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            async def down(up: asyncio.StreamReader) -> None:
                while data := await up.read(8_192):
                    gathered = data
                    if hold.is_set():
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(0.3):
                                while True:
                                    gathered += await up.read(8_192)
                    writer.write(gathered)  # one call, one record of up to 16 KB

            async with relayed(broker.ports[plain], down) as up:
                while data := await reader.read(8_192):
                    up.write(data)

        async with playing(front, tls=server) as port:
            inbox: asyncio.Queue[Received] = asyncio.Queue()
            config = config_to(port, scheme=scheme, ca_file=certs.ca_file)
            async with dial(config, inbox.put_nowait) as connection:
                await connection.subscribe([("a/#", 0)])
                hold.set()
                for number in range(100):
                    await peer.publish("a/1", b"%d" % number, qos=0)
                async with asyncio.timeout(DEADLINE_S):
                    numbers = [int((await inbox.get()).payload) for _ in range(100)]
    assert numbers == list(range(100))


async def test_others_have_their_turn_while_much_is_read(tmp_path: Path) -> None:
    """C5, P4: however many packets lie ready behind TLS, they are read a few milliseconds' worth at a time."""
    count = 10_000
    certs = certificates(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certs.cert_file, certs.key_file)
    turns, came_in, all_there = 0, set[int](), asyncio.Event()
    left = count

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4_096)
        writer.write(b"\x20\x03\x00\x00\x00" + b"\x30\x05\x00\x01a\x00x" * count)
        await writer.drain()
        await reader.read()

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def take(_: Received) -> None:
        nonlocal left
        left -= 1
        came_in.add(turns)
        if not left:
            all_there.set()

    async with playing(play, tls=server) as port:
        turning = asyncio.create_task(turn())
        async with dial(config_to(port, scheme="mqtts", ca_file=certs.ca_file, protocol="5"), take):
            async with asyncio.timeout(2 * DEADLINE_S):
                await all_there.wait()
        turning.cancel()
    assert len(came_in) > 20


async def test_few_messages_are_in_flight_however_many_a_broker_allows(tmp_path: Path) -> None:
    """C5: paho reads as many packets in one go as are in flight; the rest waits here, and goes on in order."""
    count = 3 * mqtt_connection.IN_FLIGHT
    with mosquitto(tmp_path, extra=["max_inflight_messages 0"]) as broker, Peer(broker) as peer:
        async with dial(config_of(broker)) as connection:
            acks = Acks()
            broker.send(signal.SIGSTOP)
            for number in range(count):
                connection.publish(Message(topic="a/101/event", payload=b"%d" % number), acks)
            assert len(connection._acks) == mqtt_connection.IN_FLIGHT
            broker.send(signal.SIGCONT)
            assert await acks.wait(count) == [None] * count
        await peer.wait_for(lambda: len(peer.messages) == count)
    assert [int(each.payload) for each in peer.messages] == list(range(count))


# Who is let in


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_a_refused_log_in_is_told_apart(tmp_path: Path, protocol: str) -> None:
    """A wrong password is BrokerAuthError in both versions, and never shows the password."""
    with mosquitto(tmp_path, users={"adapter": "secret"}) as broker:
        with pytest.raises(BrokerAuthError) as caught:
            async with dial(config_of(broker, protocol=protocol, password="wrong-one")):  # noqa: S106 - a test's
                pass

        assert "wrong-one" not in str(caught.value)


async def test_a_log_in_refused_by_nats_is_told_apart(tmp_path: Path) -> None:
    """The same at nats-server, after the fallback."""
    with nats(tmp_path, users={"adapter": "secret"}) as broker, pytest.raises(BrokerAuthError):
        async with dial(config_of(broker, password="wrong")):  # noqa: S106 - a test's
            pass


@pytest.mark.parametrize("scheme", ["mqtts", "wss"])
async def test_a_certificate_of_another_authority_is_refused(tmp_path: Path, scheme: str) -> None:
    """A broker whose certificate does not fit is not connected to, and no socket is left open; `verify: false` is."""
    stranger = certificates(tmp_path / "stranger")
    with mosquitto(tmp_path / "broker", schemes=[scheme]) as broker:
        config = config_of(broker, scheme, ca_file=stranger.ca_file)
        before = open_files()
        with pytest.raises(
            BrokerConnectionError, match=r"certificate is refused: .*(self.signed|local issuer)"
        ) as caught:
            async with dial(config):
                pass

        assert open_files() == before
        assert str(broker.ports[scheme]) in str(caught.value)
        async with dial(dataclasses.replace(config, verify=False)) as connection:
            assert await published(connection, "a/1", b"{}") is None


async def test_a_client_certificate_is_the_log_in(tmp_path: Path) -> None:
    """`cert_file` and `key_file` are shown to a broker that asks; without them it hangs up."""
    with mosquitto(tmp_path, schemes=["mqtts"], client_certificates=True) as broker:
        assert broker.certificates is not None
        cert, key = broker.certificates.client(tmp_path, "adapter")
        async with dial(config_of(broker, "mqtts", cert_file=cert, key_file=key)) as connection:
            assert await published(connection, "a/1", b"{}") is None
        with pytest.raises(BrokerConnectionError):
            async with dial(config_of(broker, "mqtts")):
                pass


@pytest.mark.parametrize("member", ["ca_file", "cert_file"])
def test_an_unreadable_certificate_is_a_config_error(tmp_path: Path, member: str) -> None:
    """A certificate file that is not one, or not there, is said with its path."""
    rubbish = tmp_path / "rubbish.pem"
    for make in (lambda: None, lambda: rubbish.write_text("no certificate")):
        make()
        with pytest.raises(ConfigError, match=r"rubbish\.pem"):
            tls_context(config_to(1, scheme="mqtts", **{member: rubbish}))


async def test_a_refused_subscription_is_an_error() -> None:
    """A subscription that the broker denies is not taken for one."""

    async def strict(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(CONNACK)
        subscribe = await read_packet(reader)
        writer.write(b"\x90\x05" + subscribe[2:4] + b"\x00\x01\x87")
        await reader.read()

    async with playing(strict) as port, dial(config_to(port)) as connection:
        with pytest.raises(BrokerError, match=r"subscription refused: secret/# \(Not authorized\)"):
            await connection.subscribe([("a/#", 1), ("secret/#", 1)])


async def test_an_unanswered_subscription_is_an_error(broker: Broker) -> None:
    """No SUBACK is a lost connection: after a deadline, or at once when the broker goes."""
    async with dial_once(config_of(broker), connect_timeout_s=0.3) as connection:
        broker.send(signal.SIGSTOP)
        with pytest.raises(BrokerConnectionError, match="no answer to SUBSCRIBE"):
            await connection.subscribe([("a/#", 1)])
        waiting = asyncio.create_task(connection.subscribe([("b/#", 1)]))
        await asyncio.sleep(0)
        broker.kill()
        with pytest.raises(BrokerConnectionError, match="connection closed"):
            await waiting


# Who is no broker


async def test_an_unresolvable_name_is_said() -> None:
    """A host name that does not exist is a broker that is not there."""
    with pytest.raises(BrokerConnectionError, match=r"nowhere\.invalid:1883: "):
        async with dial(config_to(1883, host="nowhere.invalid")):
            pass


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts", "ws"])
async def test_a_listener_that_says_nothing_is_given_up(scheme: str) -> None:
    """Whoever accepts the connection and is silent is given up after a deadline, while the loop goes on."""
    with (
        socket.create_server((HOST, 0)) as silent,
        pytest.raises(BrokerConnectionError, match=r"no answer within 0\.3 s|timed out"),
    ):
        async with dial(config_to(silent.getsockname()[1], scheme=scheme), connect_timeout_s=0.3):
            pass


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\nConnection: close\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept:\r\n\r\n",
        b"HTTP/1.1 101 \xff\xfe\r\nSec-WebSocket-Accept: \xff\r\n\r\n",
        b"",
    ],
)
async def test_what_is_no_websocket_is_refused(answer: bytes) -> None:
    """An HTTP server that speaks no websocket is a broker that is not there, and no socket is left open."""

    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    async with playing(web) as port:
        with pytest.raises(BrokerConnectionError, match=f"{HOST}:{port}: "):
            async with dial(config_to(port, scheme="ws")):
                pass


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts"])
async def test_what_is_no_mqtt_is_refused(scheme: str) -> None:
    """Another protocol's answer is a broker that is not there."""

    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with playing(web) as port:
        with pytest.raises(BrokerConnectionError):
            async with dial(config_to(port, scheme=scheme)):
                pass


async def test_a_broker_that_is_not_available_is_tried_again_later() -> None:
    """Any other refusal than of version or log-in is a lost connection: the caller comes back."""

    async def busy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(b"\x20\x03\x00\x89\x00")  # CONNACK, "server busy"

    async with playing(busy) as port:
        with pytest.raises(BrokerConnectionError, match="Server busy") as caught:
            async with dial(config_to(port)):
                pass
        assert type(caught.value) is BrokerConnectionError


async def test_a_topic_that_is_not_utf8_is_acknowledged_and_dropped() -> None:
    """A message that no filter of ours can mean does not stay at the broker, and does not end the connection."""
    acknowledged = asyncio.Event()

    async def careless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(CONNACK + b"\x32\x07\x00\x01\xff\x00\x09\x00x" + b"\x32\x07\x00\x01a\x00\x0a\x00y")
        assert await read_packet(reader) == b"\x40\x02\x00\x09"
        acknowledged.set()
        await reader.read()

    inbox: asyncio.Queue[Received] = asyncio.Queue()
    async with playing(careless) as port, dial(config_to(port, protocol="5"), inbox.put_nowait):
        async with asyncio.timeout(DEADLINE_S):
            await acknowledged.wait()
            assert (await inbox.get()).topic == "a"


@pytest.mark.parametrize("loop_closed", [False, True])
def test_an_abandoned_attempt_hangs_up(tmp_path: Path, *, loop_closed: bool) -> None:
    """A handshake that ends after nobody waits any more is hung up without CONNECT, also after the loop has ended."""
    certs = certificates(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certs.cert_file, certs.key_file)

    def shake_hands(sock: socket.socket) -> bytes:
        with server.wrap_socket(sock, server_side=True) as tls:
            return tls.recv(100)

    async def give_up(listener: socket.socket) -> socket.socket:
        loop = asyncio.get_running_loop()
        listener.settimeout(0)
        attempt = asyncio.create_task(
            dial(config_to(listener.getsockname()[1], scheme="mqtts", verify=False)).__aenter__()
        )
        sock, _ = await loop.sock_accept(listener)  # connected; now it waits for our part of TLS
        sock.settimeout(DEADLINE_S)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        if not loop_closed:
            assert await asyncio.to_thread(shake_hands, sock) == b""
        return sock

    with socket.create_server((HOST, 0)) as listener, asyncio.run(give_up(listener)) as sock:
        if loop_closed:
            assert shake_hands(sock) == b""


# Reading what is retained


@pytest.mark.parametrize("kind", [mosquitto, nats])
async def test_read_retained_reads_and_leaves_no_trace(
    tmp_path: Path, kind: Callable[[Path], contextlib.AbstractContextManager[Broker]]
) -> None:
    """The retained messages of some topics come back, those without one are missing, and nothing is published."""
    with kind(tmp_path) as broker, Peer(broker) as peer:
        await peer.publish("a/bridge/availability", "online", retain=True)
        await peer.publish("a/bridge/health", "{}", retain=True)
        config = config_of(broker)
        await peer.wait_for(lambda: len(peer.messages) == 2)

        both = await read_retained(Dialer(config), ["a/bridge/availability", "a/bridge/health"], "probe", DEADLINE_S)
        some = await read_retained(Dialer(config), ["a/bridge/health", "a/none"], "probe", DEADLINE_S, quiet_s=0.2)
        wild = await read_retained(Dialer(config), ["a/#"], "probe", DEADLINE_S, quiet_s=0.2)

        assert {topic: each.payload for topic, each in both.items()} == {
            "a/bridge/availability": b"online",
            "a/bridge/health": b"{}",
        }
        assert list(some) == ["a/bridge/health"]
        assert set(wild) == set(both)
        assert len(peer.messages) == 2


async def test_read_retained_ends_on_a_busy_topic_and_leaves_live_messages_out(broker: Broker) -> None:
    """Messages that are just being published are not retained ones, and do not make it wait for ever."""
    with Peer(broker) as peer:

        async def chatter() -> None:
            while True:
                await peer.publish("a/101/events", "{}", qos=0)

        talking = asyncio.create_task(chatter())
        await peer.wait_for(lambda: peer.messages)
        found = await read_retained(Dialer(config_of(broker)), ["a/#"], "probe", 1.0, quiet_s=0.2)
        talking.cancel()

        assert found == {}


async def test_ports_that_are_free_have_no_broker() -> None:
    """A port where nobody listens is refused at once."""
    (port,) = free_ports(1)
    with pytest.raises(BrokerConnectionError, match="Connection refused"):
        await read_retained(Dialer(config_to(port)), ["a"], "probe", 1.0)
