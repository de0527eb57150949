"""Harm done to the connection between the real adapter and a real broker: cut, swallowed, refused, taken over (D2)."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from adapter import standing
from adapter.config import Backoff
from adapter.mqtt import connection as mqtt_connection
from adapter.mqtt import paho_loop
from tests.adapter_support import Running
from tests.broker_support import Broker, Peer, mosquitto
from tests.fault_support import emit, seqs, told, until
from tests.stage_support import Stage, staged
from tests.tcp_proxy import CONNECT, PUBACK, Proxy, Talk, kind, unchanged

pytestmark = pytest.mark.harm

STANDS_S = 0.4


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Compress the times of an outage."""
    caplog.set_level("INFO", "adapter")
    monkeypatch.setattr(standing, "_AGAIN", Backoff(initial_s=0.05, maximum_s=0.5))
    monkeypatch.setattr(standing, "_REFUSED_AGAIN_S", 0.5)
    monkeypatch.setattr(standing, "_STANDS_S", STANDS_S)


def more(proxy: Proxy, count: int) -> bool:
    """Say whether more than `count` connections were made."""
    return len(proxy.accepted) > count


@contextlib.asynccontextmanager
async def behind(stage: Stage, **more: Any) -> AsyncIterator[tuple[Proxy, Running]]:  # noqa: ANN401 - passed on
    """Run the adapter behind a proxy, polling and connected."""
    async with Proxy(stage.broker.ports["mqtt"]) as proxy, stage.running(mqtt={"url": proxy.url}, **more) as adapter:
        await stage.polling("101")
        await until(lambda: adapter.app._link.connection is not None)
        yield proxy, adapter


async def test_d2_a_broker_that_drops_each_connection(
    tmp_path: Path, shared_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """D2: events go out through it; the pauses grow though each connection is made; one line, and one when it stays."""
    async with staged(tmp_path, shared_broker) as stage, behind(stage) as (proxy, adapter):
        await until(lambda: not adapter.app._link._standing.outage._suffering)
        before, said = len(proxy.accepted), len(told(caplog))
        proxy.stands_s = 0.15
        proxy.cut()
        emit(stage, 8)
        await until(lambda: len(proxy.accepted) >= before + 7)
        proxy.stands_s = None
        proxy.cut()
        await stage.wait("101/events", seq=8)
        await until(lambda: not adapter.app._link._standing.outage._suffering)

        assert seqs(stage) == list(range(1, 9))
        gaps = [later - former for former, later in pairwise(proxy.accepted[before:])]
        assert gaps[5] > 0.15 + 0.35  # the longest pause, less its jitter
        assert [line.split(" ")[0] for line in told(caplog)[said:]] == ["WARNING", "ERROR", "INFO"]
        hint = told(caplog)[said + 1]
        assert f"another client may use the client id 'ccgateway2mqtt-{stage.prefix}'" in hint


async def test_d2_after_a_recovery_the_pauses_are_short_again(
    tmp_path: Path, shared_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that stood begins the pauses anew: each of many single cuts is over soon."""
    monkeypatch.setattr(standing, "_AGAIN", Backoff(initial_s=0.05, maximum_s=60.0))
    monkeypatch.setattr(standing, "_STANDS_S", 0.1)
    monkeypatch.setattr(standing, "_RELAPSE", 0)
    async with staged(tmp_path, shared_broker) as stage, behind(stage) as (proxy, adapter):
        async with asyncio.timeout(25):  # the pauses of one outage of nine attempts would be 34 s
            for _ in range(9):
                await until(lambda: not adapter.app._link._standing.outage._suffering and adapter.app._link.connection)
                count = len(proxy.accepted)
                proxy.cut()
                await until(partial(more, proxy, count))


async def test_who_drops_every_connection_after_a_while_has_one_outage(
    tmp_path: Path, shared_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections that stand for a little longer than an outage lasts are not told of one by one, for ever."""
    async with staged(tmp_path, shared_broker) as stage, behind(stage) as (proxy, _):
        before, proxy.stands_s = len(proxy.accepted), 1.5 * STANDS_S
        proxy.cut()
        await until(lambda: len(proxy.accepted) >= before + 4)

        assert len([line for line in told(caplog) if "back after" in line]) <= 1


async def test_d2_a_broker_that_never_acknowledges(
    tmp_path: Path, shared_broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D2: without PUBACK nothing leaves the outbox; it goes again, with the same `id`, over a new connection."""
    monkeypatch.setattr(mqtt_connection, "ACK_TIMEOUT_S", 0.6)
    monkeypatch.setattr(paho_loop, "TICK_S", (0.2, 0.2))
    async with staged(tmp_path, shared_broker) as stage, behind(stage) as (proxy, adapter):
        await until(lambda: not adapter.app._link._standing.outage._suffering)
        said, before = len(told(caplog)), len(proxy.accepted)
        proxy.down = lambda packet, _: b"" if kind(packet) == PUBACK else packet
        emit(stage, 3)
        await until(lambda: len(proxy.accepted) >= before + 2)
        assert adapter.app._outbox.depth == 3
        proxy.down = unchanged
        await until(lambda: not adapter.app._outbox.depth and not adapter.app._link._standing.outage._suffering)

        events = stage.json("101/events")
        assert len(events) > 3
        assert len({event["id"] for event in events}) == 3
        assert seqs(stage) == [1, 2, 3]
        lines = told(caplog)[said:]
        assert "no acknowledgment (PUBACK) within 0.6 s; trying again" in lines[0]
        assert [line for line in lines if "back after" in line] == lines[-1:]
        assert len(lines) <= 3


async def test_a_rival_with_the_same_client_id_is_told_of(
    tmp_path: Path, shared_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Two that throw each other off do so in growing pauses; the log says so once, and what waits goes out after it."""
    async with staged(tmp_path, shared_broker) as stage, stage.running() as adapter:
        await stage.polling("101")
        await until(lambda: adapter.app._link.connection is not None)
        counters = adapter.app._shared.counters
        rival = Peer(shared_broker, ["none"], client_id=f"ccgateway2mqtt-{stage.prefix}")  # comes back at once
        await asyncio.to_thread(rival.__enter__)
        try:
            emit(stage, 5)
            began, before = time.monotonic(), counters.broker_connections
            await until(lambda: [line for line in told(caplog) if "another client may use the client id" in line])
            await until(lambda: time.monotonic() - began > 1.5)
            assert counters.broker_connections - before < 9
        finally:
            await asyncio.to_thread(rival.__exit__, None, None, None)
        await stage.wait("101/events", seq=5)
        assert seqs(stage) == [1, 2, 3, 4, 5]
        assert len([line for line in told(caplog) if not line.startswith("INFO")]) == 2


async def test_a_broker_that_refuses_after_having_accepted(
    tmp_path: Path, shared_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """D2: hang-ups and "server busy" after a time of peace are one outage; polling goes on, all goes out after it."""
    async with staged(tmp_path, shared_broker) as stage, behind(stage) as (proxy, adapter):
        await until(lambda: not adapter.app._link._standing.outage._suffering)
        said, before = len(told(caplog)), len(proxy.accepted)

        def busy(packet: bytes, talk: Talk) -> bytes:
            if kind(packet) != CONNECT:
                return packet
            talk.answer(b"\x20\x03\x00\x89\x00")
            return b""

        proxy.closed = True
        proxy.cut()
        await until(lambda: len(proxy.accepted) >= before + 3)
        proxy.closed, proxy.up = False, busy
        emit(stage, 4)
        await until(lambda: len(proxy.accepted) >= before + 6 and adapter.app._outbox.depth == 4)
        proxy.up = unchanged
        await stage.wait("101/events", seq=4)
        await until(lambda: not adapter.app._link._standing.outage._suffering)

        assert seqs(stage) == [1, 2, 3, 4]
        assert [line.split(" ")[0] for line in told(caplog)[said:]] == ["WARNING", "INFO"]


async def test_a_log_in_that_is_refused_later_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Section 6: a password that is changed at the broker is one error line, however often it is tried."""
    with mosquitto(tmp_path / "m", users={"adapter": "right"}) as broker:
        passwords = tmp_path / "m" / "passwords"
        async with staged(tmp_path, broker, quiet=False) as stage, behind(stage) as (proxy, adapter):
            await until(lambda: not adapter.app._link._standing.outage._suffering)
            said, good = len(told(caplog)), passwords.read_text()
            broker.stop()
            passwords.write_text(good.replace("adapter:", "nobody:"))
            broker.start()
            await until(lambda: "log-in" in adapter.app._link._standing.outage._suffering)
            before = len(proxy.accepted)
            await until(lambda: len(proxy.accepted) >= before + 3)
            emit(stage, 3)
            await until(lambda: adapter.app._outbox.depth == 3)
            broker.stop()
            passwords.write_text(good)
            broker.start()
            await stage.peer.wait_subscribed()
            await stage.wait("101/event", seq=3)
            await until(lambda: not adapter.app._link._standing.outage._suffering)

            lines = told(caplog)[said:]
            assert [line.split(" ")[0] for line in lines] == ["WARNING", "ERROR", "INFO"]
            assert "log-in" in lines[1]
            assert "Not authorized" in lines[1]
            assert "right" not in "".join(lines)


async def test_what_lasts_is_not_doubted_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Health and log go out over a connection that lasts, however long relapses have made it until it stands."""
    monkeypatch.setattr(standing, "_STANDS_S", 0.05)
    ours = standing.Standing("client")
    doubted: list[bool] = []
    for _ in range(5):
        ours.made()
        ours.answered()
        await until(lambda: ours.stood)
        ours.ended(hung_up=True)
    for _ in range(standing._SHORT_LIVED):
        doubted.append(ours.doubtful)
        ours.made()
        ours.answered()
        ours.ended(hung_up=True)
    ours.made()
    ours.answered()
    doubted.append(ours.doubtful)
    assert doubted == [False, False, False, True]
    await until(lambda: not ours.doubtful)
    assert not ours.stood

    ours.ended(hung_up=True)
    ours.made()
    ours.answered()
    doubted.append(ours.doubtful)
    assert doubted[-1] is False, "the last one was not short-lived"
    ours.ended(hung_up=False)
