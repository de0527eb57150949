"""Issue 6, point 7: several brokers to go to, and subscriptions that are repeated until they are granted."""

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from adapter import standing, subscriber
from adapter.config import Backoff, MqttConfig, broker_at, load
from adapter.config.report import public
from adapter.doctor import examine
from adapter.errors import BrokerAuthError, BrokerConnectionError, BrokerError
from adapter.mqtt import Dialer
from adapter.purge import purge
from tests.adapter_support import decoded, wait_for, write
from tests.broker_support import HOST, Broker, Peer, free_ports, mosquitto, nats
from tests.cluster_support import servers
from tests.fault_support import emit, seqs, until
from tests.fault_support import told as told_of_broker
from tests.stage_support import staged
from tests.tcp_proxy import CONNECT, SUBACK, SUBSCRIBE, Proxy, Talk, identifier, kind


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Compress the times."""
    caplog.set_level("INFO", "adapter")
    monkeypatch.setattr(standing, "_AGAIN", Backoff(initial_s=0.05, maximum_s=0.5))
    monkeypatch.setattr(standing, "_STANDS_S", 0.4)
    monkeypatch.setattr(subscriber, "_AGAIN", Backoff(initial_s=0.2, maximum_s=0.4))


def to(*urls: str, **members: Any) -> MqttConfig:  # noqa: ANN401 - members of MqttConfig
    """Make the configuration of a client of several brokers."""
    return replace(broker_at(",".join(urls), "agents"), **members)


def nobody() -> str:
    """Name a port on which nobody listens."""
    (port,) = free_ports(1)
    return f"mqtt://{HOST}:{port}"


def dial(dialer: Dialer, **more: Any) -> Any:  # noqa: ANN401 - passed on
    """Connect as the adapter does."""
    return dialer.connect(client_id="adapter-test", on_message=lambda _: None, **more)


def told(caplog: pytest.LogCaptureFixture, subject: str) -> list[str]:
    """List what was logged of one thing at the broker."""
    return [line for line in told_of_broker(caplog) if f" {subject}: " in line or f"({subject})" in line]


# Which one.


async def test_the_next_is_tried_where_one_does_not_answer(shared_broker: Broker) -> None:
    """Who refuses the connection, or says nothing, is passed over at once; what answered comes first the next time."""
    with socket.create_server((HOST, 0)) as silent:
        quiet = f"mqtt://{HOST}:{silent.getsockname()[1]}"
        dialer = Dialer(to(nobody(), quiet, shared_broker.url()))
        async with dial(dialer, connect_timeout_s=0.5) as connection:
            assert connection.place == f"{HOST}:{shared_broker.ports['mqtt']}"
        async with dial(dialer, connect_timeout_s=0.5) as connection:
            assert connection.place == f"{HOST}:{shared_broker.ports['mqtt']}"
        silent.settimeout(0)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):  # the second time nobody came by
            silent.accept()


async def test_a_lost_connection_is_made_again_elsewhere(tmp_path: Path, shared_broker: Broker) -> None:
    """It begins with another than the one that has just failed, and stays there."""
    with mosquitto(tmp_path / "other") as other:
        places = [f"{HOST}:{broker.ports['mqtt']}" for broker in (shared_broker, other)]
        async with Proxy(shared_broker.ports["mqtt"]) as proxy:
            places[0] = f"{HOST}:{proxy.port}"
            dialer, seen = Dialer(to(proxy.url, other.url())), []
            with contextlib.suppress(BrokerConnectionError):
                async with dial(dialer) as connection:
                    seen.append(connection.place)
                    proxy.cut()
                    await connection.lost()
            for _ in range(2):
                async with dial(dialer) as connection:
                    seen.append(connection.place)
    assert seen == [places[0], places[1], places[1]]


async def test_all_that_failed_are_named() -> None:
    """Where none answers, the error holds what each of them did; one alone is told as ever."""
    first, second = nobody(), nobody()
    with pytest.raises(BrokerConnectionError) as caught:
        async with dial(Dialer(to(first, second))):
            pass
    parts = str(caught.value).split("; ")
    assert [part.partition(": ")[0] for part in parts] == [
        first.removeprefix("mqtt://"),
        second.removeprefix("mqtt://"),
    ]
    with pytest.raises(BrokerConnectionError) as caught:
        async with dial(Dialer(to(first))):
            pass
    assert str(caught.value) == parts[0]


async def test_a_refused_log_in_is_a_refused_log_in(tmp_path: Path, shared_broker: Broker) -> None:
    """Another broker is not tried in its place; the next attempt begins with that one, so that neither is hammered."""
    with mosquitto(tmp_path / "strict", users={"somebody": "else"}) as strict:
        dialer = Dialer(to(strict.url(), shared_broker.url(), username="adapter", password="wrong"))  # noqa: S106 - made up
        with pytest.raises(BrokerAuthError, match=str(strict.ports["mqtt"])):
            async with dial(dialer):
                pass
        async with dial(dialer) as connection:
            assert connection.place == f"{HOST}:{shared_broker.ports['mqtt']}"


async def test_who_hangs_up_is_not_said_to_lack_a_version(shared_broker: Broker) -> None:
    """A broker of 3.1.1 that hangs up before CONNACK is told by that, and not by what it thinks of MQTT 5."""

    def refuse(packet: bytes, talk: Talk) -> bytes:
        if kind(packet) == CONNECT and packet[8] == 5:
            talk.answer(b"\x20\x02\x00\x01")  # CONNACK of 3.1.1: unacceptable protocol version
        talk.hang_up()
        return b""

    async with Proxy(shared_broker.ports["mqtt"]) as proxy:
        proxy.up = refuse
        with pytest.raises(BrokerConnectionError, match=r"connection closed, before CONNACK"):
            async with dial(Dialer(to(proxy.url), remembered="3.1.1")):
                pass


# The program on two brokers.


async def test_events_go_on_over_another_broker(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 7: the first is away at the start, and comes back when the other fails, and is killed: nothing is lost."""
    with mosquitto(tmp_path / "first") as first:
        first.kill()
        async with staged(tmp_path, shared_broker) as stage, Proxy(shared_broker.ports["mqtt"]) as second:
            url = f"{first.url()},{second.url}"
            async with stage.running(mqtt={"url": url}) as adapter:
                await stage.polling("101")
                emit(stage, 3)
                await stage.wait("101/events", seq=3)
                first.start()
                with Peer(first, [f"{stage.prefix}/#"]) as there:
                    second.closed = True
                    second.cut()
                    emit(stage, 3)
                    await wait_for(there, stage.topic("101/events"), lambda event: event["seq"] == 6)
                    await there.publish(stage.topic("101/calldata/set"), "over the other one")
                    await wait_for(there, stage.topic("101/calldata/result"), lambda told: told["status"] == "applied")
                    shown = await wait_for(there, stage.topic("bridge/info"), lambda told: told["config"])
                    first.kill()
                    second.closed = False
                    emit(stage, 3)
                    await stage.wait("101/events", seq=9)
                await until(lambda: not adapter.app._outbox.depth)
            came = {event["seq"] for event in decoded(there.on(stage.topic("101/events")))}
            assert came | set(seqs(stage)) == set(range(1, 10))
            assert shown["config"]["mqtt"]["url"] == url


def test_no_password_is_shown(tmp_path: Path) -> None:
    """`bridge/info` shows the addresses, which hold no passwords."""
    values = {
        "gateway": {"url": "https://g"},
        "mqtt": {"url": "mqtt://a, mqtt://b:1", "username": "u", "password": "hunter2"},
        "agents": [{"work_no": "101", "guid": "g"}],
    }
    shown = public(load(write(tmp_path, values)))
    assert "hunter2" not in json.dumps(shown)
    assert shown["mqtt"]["url"] == "mqtt://a,mqtt://b:1"  # type: ignore[index] # a section


# Subscriptions.


def refusing(code: int, times: int, tries: list[float]) -> Callable[[bytes, Talk], bytes]:
    """Refuse the first subscriptions with QoS 1 in the broker's place; `tries` gets when each came."""

    def up(packet: bytes, talk: Talk) -> bytes:
        if kind(packet) != SUBSCRIBE or not packet[-1] & 3:
            return packet
        tries.append(asyncio.get_running_loop().time())
        if len(tries) > times:
            return packet
        talk.answer(b"\x90\x04" + identifier(packet) + b"\x00" + bytes([code]))
        return b""

    return up


async def test_a_subscription_is_repeated_until_it_is_granted(
    tmp_path: Path, shared_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Point 7: refused over and over, in growing pauses; events go out meanwhile, over the same connection."""
    tries: list[float] = []
    only = {"session": False, "bridge": False}
    async with staged(tmp_path, shared_broker) as stage, Proxy(shared_broker.ports["mqtt"]) as proxy:
        proxy.up = refusing(0x80, 4, tries)
        async with stage.running(mqtt={"url": proxy.url}, commands=only) as adapter:
            await stage.polling("101")
            emit(stage, 3)
            await stage.wait("101/events", seq=3)
            count = adapter.app._shared.counters.broker_connections
            await until(lambda: len(tries) > 4 and len(told(caplog, "subscription")) == 2)
            await stage.send("101/calldata/set", "at last")
            await stage.wait("101/calldata/result", status="applied")

            assert adapter.app._shared.counters.broker_connections == count == 1
            gaps = [later - former for former, later in pairwise(tries)]
            assert gaps[0] > 0.19
            assert gaps[2] > 0.29

            proxy.up = refusing(0x80, len(tries) + 2, tries)
            proxy.cut()
            await until(lambda: len(told(caplog, "subscription")) == 4)

            refused, back, again, healed = told(caplog, "subscription")
            topic = stage.topic("+/calldata/set")
            assert refused.startswith(
                f"ERROR broker: subscription: {HOST}:{proxy.port}: subscription refused: {topic} ("
            )
            assert refused.endswith("); allow it there, or switch it off in commands; trying again")
            assert again.startswith("WARNING ")
            assert again.endswith(f"{topic} (Unspecified error); trying again")
            assert all(line.startswith("INFO broker: back after ") for line in (back, healed))


async def test_events_do_not_wait_for_a_slow_answer(
    tmp_path: Path, shared_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Point 7: a broker that takes its time over a subscription gets events meanwhile, and the others are asked for."""
    monkeypatch.setattr(subscriber, "_FIRST_S", 0.2)
    held: list[tuple[Talk, bytes]] = []
    seen: list[float] = []

    def hold(packet: bytes, talk: Talk) -> bytes:
        if kind(packet) == SUBSCRIBE and packet[-1] & 3:
            seen.append(0.0)
        if kind(packet) == SUBSCRIBE and packet[-1] & 3 and not held:
            held.append((talk, identifier(packet)))
            return b""
        return packet

    async with staged(tmp_path, shared_broker) as stage, Proxy(shared_broker.ports["mqtt"]) as proxy:
        proxy.up = hold
        async with stage.running(mqtt={"url": proxy.url}) as adapter:
            await stage.polling("101")
            emit(stage, 1)
            await stage.wait("101/events", seq=1)
            assert len(proxy.accepted) == 2  # who looks for another instance, and the adapter
            ((talk, number),) = held
            talk.answer(b"\x90\x04" + number + b"\x00\x80")
            await until(lambda: len(seen) > 3)
            await stage.send("101/session/set", {"action": "sign_out", "id": "c"})
            await stage.wait("101/session/result", id="c")
            assert adapter.app._shared.counters.broker_connections == 1


async def test_the_answer_to_a_later_subscription_is_waited_for(shared_broker: Broker) -> None:
    """Point 7: once others publish ahead of it, an answer that takes longer than CONNACK may is no lost connection."""

    def slowly(packet: bytes, talk: Talk) -> bytes:
        if kind(packet) != SUBACK:
            return packet
        asyncio.get_running_loop().call_later(0.6, talk.answer, packet)
        return b""

    async with Proxy(shared_broker.ports["mqtt"]) as proxy:
        proxy.down = slowly
        async with dial(Dialer(to(proxy.url)), connect_timeout_s=0.3) as connection:
            await connection.subscribe([("a/#", 1)], patient=True)
            with pytest.raises(BrokerConnectionError, match="no answer to SUBSCRIBE"):
                await connection.subscribe([("a/#", 1)])


async def test_a_denied_subscription_is_one_error_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Point 7: what the ACL of nats-server denies is said once and tried again, until it is allowed there."""
    with nats(tmp_path / "nats", users={"adapter": "p"}, deny="*.*.session.set") as broker:
        async with staged(tmp_path, broker) as stage, Proxy(broker.ports["mqtt"]) as proxy:
            asked: list[str] = []

            def note(packet: bytes, _talk: Talk) -> bytes:
                if kind(packet) == SUBSCRIBE and packet[-1] & 3:
                    asked.append(packet[6:-1].decode())  # of MQTT 3.1.1, behind its identifier and a length
                return packet

            proxy.up = note
            async with stage.running(mqtt={"url": proxy.url}) as adapter:
                await stage.polling("101")
                await until(lambda: len(asked) >= 3 + 4)
                await stage.send("101/calldata/set", "x")
                await stage.wait("101/calldata/result", status="applied")
                (line,) = told(caplog, "subscription")
                filters = [stage.topic(name) for name in ("+/calldata/set", "+/session/set", "bridge/request/+")]
                assert asked[:7] == [*filters, *filters[1:2] * 4]
                assert adapter.app._shared.counters.broker_connections == 1
                proxy.cut()
                await until(lambda: len(asked) >= 3 + 4 + 3 + 2)
                assert told(caplog, "subscription") == [line]
                assert line.startswith("ERROR ")
                assert f"{stage.topic('+/session/set')} (Unspecified error); allow it there" in line

                configuration = tmp_path / "nats/nats.conf"
                configuration.write_text(configuration.read_text().replace("session.set", "other.set"))
                broker.restart()
                await until(lambda: len(told(caplog, "subscription")) == 2)
                await stage.peer.wait_subscribed()
                await stage.send("101/session/set", {"action": "sign_out", "id": "c"})
                await stage.wait("101/session/result", id="c")


@pytest.fixture(scope="session")
def dynamic_security() -> Path:
    """Find Mosquitto's plugin: its plain ACL file denies no subscription, it only holds back what would come."""
    return next(Path("/usr/lib").glob("**/mosquitto_dynamic_security.so"))


async def test_mosquitto_denies_a_subscription(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, dynamic_security: Path
) -> None:
    """Point 7: Mosquitto denies it with MQTT 5's own word for that; one error line as well."""
    rules = tmp_path / "rules.json"
    kinds = ("publishClientSend", "publishClientReceive", "subscribe", "unsubscribe")
    denied = {"acltype": "subscribePattern", "topic": "+/bridge/request/+", "allow": False}
    rules.write_text(
        json.dumps(
            {
                "defaultACLAccess": dict.fromkeys(kinds, True),
                "roles": [{"rolename": "all", "acls": [denied]}],
                "groups": [{"groupname": "anyone", "roles": [{"rolename": "all"}]}],
                "anonymousGroup": "anyone",
                "clients": [],
            }
        )
    )
    rules.chmod(0o666)
    extra = [f"plugin {dynamic_security}", f"plugin_opt_config_file {rules}"]
    with mosquitto(tmp_path / "mosquitto", extra=extra) as broker:
        async with staged(tmp_path, broker) as stage, Proxy(broker.ports["mqtt"]) as proxy:
            tries: list[float] = []
            proxy.up = refusing(0x80, 0, tries)
            async with stage.running(mqtt={"url": proxy.url}):
                await stage.polling("101")
                await until(lambda: len(tries) >= 3 + 3)
                emit(stage, 1)
                await stage.wait("101/events", seq=1)
    (line,) = told(caplog, "subscription")
    assert line.startswith("ERROR ")
    assert f"{stage.topic('bridge/request/+')} (Not authorized); allow it there" in line


# What a person asks for.


async def test_each_broker_is_looked_at(tmp_path: Path, shared_broker: Broker) -> None:
    """`check --online` tells of each address, whatever the others do."""
    away = nobody()
    async with staged(tmp_path, shared_broker) as stage:
        config = load(write(tmp_path, stage.values(mqtt={"url": f"{away},{shared_broker.url()}"})))
        found = await examine(config, config.mqtt, lambda _: None)
    places = [f"{finding.verdict} {finding.place}" for finding in found if finding.place.startswith("broker")]
    assert places[:2] == ["failed broker", f"ok broker {HOST}:{shared_broker.ports['mqtt']}"]
    assert away.removeprefix("mqtt://") in next(finding.text for finding in found if finding.place == "broker")
    assert "ok broker ACL, write" in places


async def test_each_broker_is_purged(tmp_path: Path, shared_broker: Broker) -> None:
    """`purge` clears what is retained at each; one that is away is told of, after the others."""
    with mosquitto(tmp_path / "other") as other:
        async with staged(tmp_path, shared_broker) as stage:
            url = f"{shared_broker.url()},{other.url()}"
            config = load(write(tmp_path, stage.values(mqtt={"url": url})))
            for broker in (shared_broker, other):
                with Peer(broker) as peer:
                    await peer.publish(stage.topic("bridge/availability"), b"offline", retain=True)
            told_of = (await purge(config, config.mqtt, yes=True, show=lambda _: None)).splitlines()
            assert told_of == [
                f"broker {HOST}:{broker.ports['mqtt']}: 1 retained topics cleared" for broker in (shared_broker, other)
            ]
            other.stop()
            with pytest.raises(BrokerError, match=f"nothing is retained.*; {HOST}:{other.ports['mqtt']}: "):
                await purge(config, config.mqtt, yes=True, show=lambda _: None)


async def test_the_fleet_is_heard_by_one_connection_until_it_is_subscribed(
    tmp_path: Path, shared_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Point 7: who speaks for a fleet stays connected while its subscriptions are refused, and is heard in the end."""
    tries: list[float] = []
    async with (
        servers(tmp_path) as cluster,
        staged(tmp_path, shared_broker) as stage,
        Proxy(shared_broker.ports["mqtt"]) as proxy,
    ):
        proxy.up = refusing(0x80, 6, tries)
        async with stage.running(mqtt={"url": proxy.url}, cluster=cluster.settings()):
            await until(lambda: any("back after" in line for line in told(caplog, "subscription")))
            await stage.polling("101")
            await stage.send("101/calldata/set", "at last")
            await stage.wait("101/calldata/result", status="applied")
    assert len([line for line in told(caplog, "subscription") if "trying again" in line]) == 1
    assert told(caplog, "speaker") == []
