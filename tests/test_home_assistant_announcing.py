"""Discovery at a real broker, on its own: what is sent, how fast, and what is cleared or left alone (ECOSYSTEM, 1)."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from adapter.agent.presence import Timing
from adapter.config import Config
from adapter.errors import BrokerError
from adapter.home_assistant import announcing
from adapter.home_assistant.announcing import PER_SECOND
from adapter.home_assistant.devices import render_agent, render_bridge
from tests.broker_support import Broker, Peer, mosquitto
from tests.fault_support import until
from tests.home_assistant_support import AFTER_BIRTH_S, announcer, configured, retained, topic
from tests.tcp_proxy import PUBLISH, SUBACK, SUBSCRIBE, Proxy, Talk, identifier, kind
from tests.tcp_proxy import topic as topic_of

pytestmark = pytest.mark.harm

QUIET_S = 0.6
"""How long nothing more means that nothing more comes: many times what a look at the broker and one message take."""
SILENT_S = 2.5
"""How long nothing is announced after the broker hung up over it."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compress the times."""
    monkeypatch.setattr(announcing, "_QUIET_S", 0.1)
    monkeypatch.setattr(announcing, "_PUT_OFF_S", 0.05)
    monkeypatch.setattr(announcing, "_SILENT_S", SILENT_S)


@pytest.fixture
def watcher(broker: Broker) -> Iterator[Peer]:
    """Listen as Home Assistant does."""
    with Peer(broker, ["ha/#"]) as listening:
        yield listening


@pytest.fixture
async def proxy(broker: Broker) -> AsyncIterator[Proxy]:
    """Stand before the broker."""
    async with Proxy(broker.ports["mqtt"]) as made:
        yield made


def there(tmp_path: Path, broker: Broker, *agents: str, url: str | None = None, **sections: object) -> Config:
    """Make a configuration with this broker."""
    return configured(tmp_path, *agents, mqtt={"url": url or broker.url()}, **sections)


async def announced(watcher: Peer, *names: str, times: int = 1) -> None:
    """Wait until devices were announced so often."""
    await watcher.wait_for(lambda: all(len(watcher.on(topic(name))) >= times for name in names))


async def settled(watcher: Peer) -> int:
    """Wait until no more messages come; give how many there were."""
    count = -1
    while count != len(watcher.messages):
        count = len(watcher.messages)
        await asyncio.sleep(QUIET_S)
    return count


async def test_what_is_right_is_not_sent_again(tmp_path: Path, broker: Broker, watcher: Peer) -> None:
    """A second connection, or start, reads what is there; a broker that lost it is told all again."""
    async with announcer(there(tmp_path, broker, "101")) as made:
        async with made.connected():
            await announced(watcher, "bridge", "101")
        async with made.connected():
            assert await settled(watcher) == 2
    async with announcer(there(tmp_path, broker, "101")) as made, made.connected():
        assert await settled(watcher) == 2
    broker.restart(keep_data=False)
    await watcher.wait_subscribed()
    async with announcer(there(tmp_path, broker, "101")) as made, made.connected():
        await announced(watcher, "bridge", "101", times=2)


async def test_what_changed_meanwhile_is_sent(tmp_path: Path, broker: Broker, watcher: Peer) -> None:
    """By a newer version, another name, another topic prefix: the message differs from what is retained."""
    old = there(tmp_path, broker, "101")
    await watcher.publish(topic("101"), render_agent(old, old.agents[0]), retain=True)
    await watcher.publish(topic("bridge"), render_bridge(old), retain=True)

    async with announcer(there(tmp_path, broker, "101", commands={"calldata": False})) as made, made.connected():
        await announced(watcher, "101", times=2)
        await settled(watcher)

    assert len(watcher.on(topic("bridge"))) == 1


async def test_ours_without_an_agent_is_cleared_and_no_others_are_touched(
    tmp_path: Path, broker: Broker, watcher: Peer
) -> None:
    """Ours is what has our origin and our instance, whatever its topic looks like."""
    gone = there(tmp_path, broker, "999")
    other = there(tmp_path, broker, "1", instance="main_2")
    nobodys = {"ha/device/x/config": b"{}", topic("55"): b"no JSON", "ha/device/y/config": b'{"origin": {"name": 1}}'}
    foreign = nobodys | {
        topic("1", "main_2"): render_agent(other, other.agents[0]),
        topic("bridge", "main_2"): render_bridge(other),
        "ha/device/zigbee/config": json.dumps(
            {"origin": {"name": "zigbee2mqtt"}, "device": {"identifiers": ["ccgateway2mqtt.main.9"]}, "components": {}}
        ).encode(),
    }
    for name, payload in (foreign | {topic("999"): render_agent(gone, gone.agents[0])}).items():
        await watcher.publish(name, payload, retain=True)

    async with announcer(there(tmp_path, broker, "101")) as made, made.connected():
        await watcher.wait_for_payload(topic("999"), b"")
        await announced(watcher, "bridge", "101")
        await settled(watcher)

    assert (await retained(broker)).keys() == foreign.keys() | {topic("bridge"), topic("101")}
    assert all(len(watcher.on(name)) == 1 for name in foreign)


async def test_a_topic_of_another_instance_is_left_to_it(
    tmp_path: Path, broker: Broker, watcher: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    """`b_1` of `a` and `1` of `a_b` make one object id: who came first keeps it, and the other says so."""
    first = there(tmp_path, broker, "1", instance="a_b")
    await watcher.publish(topic("1", "a_b"), render_agent(first, first.agents[0]), retain=True)

    async with announcer(there(tmp_path, broker, "b_1", "2", instance="a")) as made, made.connected():
        await watcher.wait_for(lambda: watcher.on(topic("2", "a")))
        await settled(watcher)
        made.announcing.introduce(made.config)

        await settled(watcher)

    assert watcher.payloads(topic("1", "a_b")) == [render_agent(first, first.agents[0])]
    assert "is announced by the instance a_b" in caplog.text


async def test_a_reload_announces_what_is_new_or_changed(tmp_path: Path, broker: Broker, watcher: Peer) -> None:
    """What is gone is cleared, and what is the same is not sent."""
    named = {"work_no": "102", "name": "Amina", "guid": "g"}
    async with announcer(there(tmp_path, broker, "101", "102", "103")) as made, made.connected():
        await announced(watcher, "bridge", "101", "102", "103")

        made.announcing.introduce(configured(tmp_path, "101", named, "104", mqtt={"url": broker.url()}))

        await announced(watcher, "102", "103", times=2)
        await announced(watcher, "104")
        assert await settled(watcher) == 7
        assert watcher.payloads(topic("103"))[-1] == b""
        assert b"Agent 102 Amina" in watcher.payloads(topic("102"))[-1]


async def test_a_removal_while_the_broker_is_away_is_made_up_for(tmp_path: Path, broker: Broker, watcher: Peer) -> None:
    """The next connection reads what is left."""
    async with announcer(there(tmp_path, broker, "101", "102")) as made:
        async with made.connected():
            await announced(watcher, "bridge", "101", "102")
        made.announcing.introduce(there(tmp_path, broker, "101"))
        async with made.connected():
            await watcher.wait_for_payload(topic("102"), b"")

    assert topic("102") not in await retained(broker)


async def test_no_more_than_max_agents(
    tmp_path: Path, broker: Broker, watcher: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    """The first of the file are announced, and a warning says how many; what was announced before is cleared."""
    async with announcer(there(tmp_path, broker, "101", "102", "103")) as made, made.connected():
        await announced(watcher, "103")

    capped = there(tmp_path, broker, "101", "102", "103", home_assistant={"max_agents": 2})
    async with announcer(capped) as made, made.connected():
        await watcher.wait_for_payload(topic("103"), b"")

    assert (await retained(broker)).keys() == {topic("bridge"), topic("101"), topic("102")}
    assert "2 of 3 agents are announced (home_assistant.max_agents)" in caplog.text


async def test_fifty_a_second(tmp_path: Path, broker: Broker, watcher: Peer) -> None:
    """Nobody else protects Home Assistant from a large fleet."""
    agents = [str(number) for number in range(1, 76)]
    async with announcer(there(tmp_path, broker, *agents)) as made, made.connected():
        await announced(watcher, "bridge")
        began_at = asyncio.get_running_loop().time()
        await announced(watcher, *agents)

        assert asyncio.get_running_loop().time() - began_at >= (len(agents) - 1) / PER_SECOND
        assert PER_SECOND == 50


async def test_a_birth_has_everything_told_again(tmp_path: Path, broker: Broker, watcher: Peer) -> None:
    """After a random while: discovery first, then availability and state of each; several births make one round."""
    async with announcer(there(tmp_path, broker, "101", "102")) as made, made.connected():
        await announced(watcher, "bridge", "101", "102")
        await settled(watcher)
        began_at = asyncio.get_running_loop().time()

        await watcher.publish("ha/status", "online")
        await watcher.publish("ha/status", "online")
        await announced(watcher, "bridge", times=2)

        assert asyncio.get_running_loop().time() - began_at >= AFTER_BIRTH_S[0]
        await until(lambda: made.shown == ["bridge", "101", "102"])
        await settled(watcher)
        assert [len(watcher.on(topic(name))) for name in ("bridge", "101", "102")] == [2, 2, 2]
    assert Timing().after_birth_s == (1.0, 5.0)


@pytest.mark.parametrize(("payload", "retain"), [(b"offline", False), (b"online", True), (b"", False)])
async def test_what_is_no_birth_does_nothing(
    tmp_path: Path, broker: Broker, watcher: Peer, payload: bytes, *, retain: bool
) -> None:
    """Home Assistant's death, and a birth that is retained: that one says nothing of now."""
    if retain:
        await watcher.publish("ha/status", payload, retain=True)
    async with announcer(there(tmp_path, broker, "101")) as made, made.connected() as connection:
        await connection.subscribe([("other/status", 0)])
        await announced(watcher, "bridge", "101")
        await watcher.publish("other/status", "online")
        if not retain:
            await watcher.publish("ha/status", payload)

        await settled(watcher)

        assert len(watcher.on(topic("101"))) == 1
        assert made.shown == []


async def test_the_birth_message_can_be_another(tmp_path: Path, broker: Broker, watcher: Peer) -> None:
    """As it can in Home Assistant."""
    home = {"birth_topic": "ha/here", "birth_payload": "I am"}
    async with announcer(there(tmp_path, broker, "101", home_assistant=home)) as made, made.connected():
        await announced(watcher, "bridge", "101")
        await watcher.publish("ha/here", "I am")
        await announced(watcher, "bridge", "101", times=2)


async def test_switched_off_it_clears_what_it_announced(tmp_path: Path, broker: Broker, watcher: Peer) -> None:
    """It remembers that there was something, and forgets that when it is gone."""
    async with announcer(there(tmp_path, broker, "101")) as made, made.connected():
        await announced(watcher, "bridge", "101")
        assert made.remembered == ["ha"]

    off = there(tmp_path, broker, "101", home_assistant={"discovery": False})
    async with announcer(off, before="ha") as made, made.connected():
        await until(lambda: made.remembered)
        assert made.remembered == [""]

    assert await retained(broker) == {}


async def test_another_prefix_takes_the_place_of_the_old_one(tmp_path: Path, broker: Broker, watcher: Peer) -> None:
    """Below the old one nothing is left."""
    async with announcer(there(tmp_path, broker, "101")) as made, made.connected():
        await announced(watcher, "bridge", "101")

    new = there(tmp_path, broker, "101", home_assistant={"prefix": "home"})
    async with announcer(new, before="ha") as made, made.connected():
        await until(lambda: made.remembered)
        assert made.remembered == ["home"]

    assert await retained(broker) == {}
    assert (await retained(broker, "home/#")).keys() == {topic("bridge", prefix="home"), topic("101", prefix="home")}


async def test_a_broker_that_denies_it_is_asked_once(
    tmp_path: Path, broker: Broker, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """Brokers hang up over a denied message: nothing is tried again before the next start, and that is said."""
    tries: list[str] = []

    def deny(packet: bytes, talk: Talk) -> bytes:
        if kind(packet) != PUBLISH:
            return packet
        tries.append(topic_of(packet))
        talk.answer(b"\x40\x03" + identifier(packet) + b"\x87")
        return b""

    proxy.up = deny
    async with announcer(there(tmp_path, broker, "101", url=proxy.url)) as made:
        for _ in range(2):
            async with made.connected():
                await until(lambda: tries)
                await asyncio.sleep(QUIET_S)

    assert tries == [topic("bridge")]
    assert caplog.text.count("nothing is announced before the next start") == 1


async def test_a_message_that_is_refused_for_now_goes_later(
    tmp_path: Path, broker: Broker, proxy: Proxy, watcher: Peer
) -> None:
    """Quota exceeded and the like."""
    refused: list[str] = []

    def refuse(packet: bytes, talk: Talk) -> bytes:
        if kind(packet) != PUBLISH or len(refused) == 3:
            return packet
        refused.append(topic_of(packet))
        talk.answer(b"\x40\x03" + identifier(packet) + b"\x97")
        return b""

    proxy.up = refuse
    async with announcer(there(tmp_path, broker, "101", url=proxy.url)) as made, made.connected():
        await announced(watcher, "bridge", "101")


async def test_a_broker_that_hangs_up_over_it_is_left_alone(
    tmp_path: Path,
    broker: Broker,
    proxy: Proxy,
    watcher: Peer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After three connections that ended over the first message nothing is sent for ten minutes; then it is again."""

    def hang_up(packet: bytes, talk: Talk) -> bytes:
        if kind(packet) != PUBLISH:
            return packet
        talk.cut()
        return b""

    proxy.up = hang_up
    async with announcer(there(tmp_path, broker, "101", url=proxy.url)) as made:
        for _ in range(3):
            began_at = asyncio.get_running_loop().time()
            with pytest.raises(BrokerError):
                async with made.connected() as connection:
                    await connection.lost()
        proxy.up = lambda packet, _: packet
        async with made.connected():
            await announced(watcher, "bridge", "101")
            assert asyncio.get_running_loop().time() - began_at >= SILENT_S
    assert caplog.text.count(f"nothing is announced for {SILENT_S:g} s") == 1


async def test_connections_that_end_by_themselves_do_not_silence_it(
    tmp_path: Path, broker: Broker, proxy: Proxy, watcher: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    """A message that got through shows that the broker takes them: what was not announced goes next time."""
    agents = [str(number) for number in range(1, 8)]

    def cut_at_the_second(packet: bytes, talk: Talk) -> bytes:
        if kind(packet) == PUBLISH:
            sent.append(topic_of(packet))
            if len(sent) == 2:
                talk.cut()
                return b""
        return packet

    proxy.up = cut_at_the_second
    async with announcer(there(tmp_path, broker, *agents, url=proxy.url)) as made:
        for _ in range(4):
            sent: list[str] = []
            with pytest.raises(BrokerError):
                async with made.connected() as connection:
                    await connection.lost()
        proxy.up = lambda packet, _: packet
        async with made.connected():
            await announced(watcher, "bridge", *agents)
    assert "hangs up" not in caplog.text


async def test_one_that_is_too_large_for_the_broker_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The adapter is announced, agents are not, and that is said of each."""
    config = configured(tmp_path, "101")
    limit = (len(render_bridge(config)) + len(render_agent(config, config.agents[0]))) // 2
    with mosquitto(tmp_path / "small", extra=[f"max_packet_size {limit}"]) as broker, Peer(broker, ["ha/#"]) as watcher:
        async with announcer(there(tmp_path, broker, "101")) as made, made.connected():
            await announced(watcher, "bridge")
            await until(lambda: f"{topic('101')}: larger than the broker's limit" in caplog.text)
            assert await settled(watcher) == 1


async def test_what_may_not_be_read_is_sent_all_the_same(
    tmp_path: Path, broker: Broker, proxy: Proxy, watcher: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the right to read, what is left of gone agents stays, which is said; an old prefix is not forgotten."""

    def deny(packet: bytes, talk: Talk) -> bytes:
        if kind(packet) != SUBSCRIBE:
            return packet
        codes = b"\x87" * (packet.count(b"/config") or 1)
        talk.answer(bytes([SUBACK << 4, 3 + len(codes)]) + packet[2:4] + b"\x00" + codes)
        return b""

    proxy.up = deny
    async with announcer(there(tmp_path, broker, "101", url=proxy.url), before="old") as made, made.connected():
        await announced(watcher, "bridge", "101")
        await settled(watcher)
        assert made.remembered == []

    assert "what is left of agents that are gone is not cleared" in caplog.text
    assert "a restart of Home Assistant is not noticed" in caplog.text
