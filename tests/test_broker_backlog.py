"""A backlog, narrow brokers and half-delivered commands: what is true now goes first, nothing is lost or done twice."""

import json
import ssl
import time
from pathlib import Path

import pytest

from adapter import standing
from adapter.config import Backoff
from adapter.store.outbox import open_outbox
from adapter.store.records import AgentRecord, Change, Outgoing
from tests.adapter_support import wait_for
from tests.broker_support import Broker, Peer, certificates, mosquitto
from tests.fault_support import emit, seqs, until
from tests.stage_support import Stage, staged
from tests.tcp_proxy import PUBACK, PUBLISH, Proxy, Talk, kind, topic, unchanged

pytestmark = pytest.mark.harm

BACKLOG = 6_000
"""Events: many times what is in memory or on its way."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compress the times of an outage."""
    monkeypatch.setattr(standing, "_AGAIN", Backoff(initial_s=0.05, maximum_s=1.0))


async def fill(stage: Stage, count: int) -> None:
    """Leave so many events of agent 101 in the outbox, an hour old."""
    members = {"eventType": "Old", "workNo": "101", "content": None, "receivedAt": "2026-01-01T00:00:00.000Z"}
    async with open_outbox(stage.directory / "outbox.db", 1024) as outbox:
        for first in range(1, count, 1000):
            outgoing = [
                Outgoing(
                    topic=stage.topic("101/event"),
                    payload=json.dumps(members | {"id": f"00000000-0000-4000-8000-{seq:012}", "seq": seq}).encode(),
                    retain=True,
                )
                for seq in range(first, first + 1000)
            ]
            record = AgentRecord(work_no="101", seq=first + 999)
            await outbox.commit(Change(outgoing=outgoing, made_at=time.time() - 3600, agent=record))


async def test_what_is_true_now_goes_ahead_of_a_backlog(tmp_path: Path, shared_broker: Broker) -> None:
    """Section 3: after an hour away, state, session and availability are right at once; the events follow in order."""
    async with staged(tmp_path, shared_broker) as stage:
        await fill(stage, BACKLOG)
        with Peer(shared_broker, [stage.topic(f"101/{name}") for name in ("state", "session", "availability")]) as now:
            async with stage.running(mqtt={"stream": False}) as adapter:
                await now.wait_for_payload(stage.topic("101/availability"), b"online")
                await wait_for(now, stage.topic("101/session"), lambda session: session["phase"] == "polling")
                emit(stage, 1)
                await wait_for(now, stage.topic("101/state"), lambda state: state["seq"] == BACKLOG + 1)
                depth = adapter.app._outbox.depth
                await until(lambda: not adapter.app._outbox.depth, 120)
                await until(lambda: len(stage.on("101/event")) > BACKLOG)
        events = stage.json("101/event")

    assert depth > BACKLOG / 4
    assert [event["seq"] for event in events] == list(range(1, BACKLOG + 2))
    assert all(event["replayed"] for event in events[:-1])


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts"])
async def test_a_broker_that_takes_one_at_a_time(tmp_path: Path, scheme: str) -> None:
    """Receive Maximum 1, and a TLS front that packs what the broker sends into one record: all goes on, in order."""
    certs = certificates(tmp_path / "certificates")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certs.cert_file, certs.key_file)
    narrow, tls = (["max_inflight_messages 1"], None) if scheme == "mqtt" else ([], server)
    with mosquitto(tmp_path / "m", extra=narrow) as broker:
        async with (
            staged(tmp_path, broker, agents=["101", "102"]) as stage,
            Proxy(broker.ports["mqtt"], tls=tls, gather_s=0.05 if tls else 0.0) as front,
            stage.running(mqtt={"url": front.url, "ca_file": str(certs.ca_file)} if tls else {}) as adapter,
        ):
            await stage.polling("102")
            await until(lambda: adapter.app._link.connection is not None)
            for work_no in ("101", "102"):
                emit(stage, 10, work_no)
            for number in range(2):
                await stage.send("101/calldata/set", {"calldata": "x", "id": str(number)})
            for number in range(2):
                await stage.wait("101/calldata/result", id=str(number), status="applied")
            await until(lambda: seqs(stage) == seqs(stage, "102") == list(range(1, 11)))


async def test_c3_a_command_whose_puback_is_lost_is_done_once(tmp_path: Path, shared_broker: Broker) -> None:
    """C3, C4: stored, its PUBACK lost with the connection, and sent again: done once, with one answer for all."""
    async with (
        staged(tmp_path, shared_broker) as stage,
        Proxy(shared_broker.ports["mqtt"]) as proxy,
        stage.running(mqtt={"url": proxy.url}) as adapter,
    ):
        await stage.polling("101")
        await until(lambda: adapter.app._link.connection is not None)
        delivered: list[bytes] = []

        def deliver(packet: bytes, _talk: Talk) -> bytes:
            if kind(packet) == PUBLISH and topic(packet) == stage.topic("101/calldata/set"):
                delivered.append(packet)
            return packet

        def lose(packet: bytes, talk: Talk) -> bytes:
            if kind(packet) == PUBACK and len(delivered) == 1:
                talk.cut()
                return b""
            return packet

        connections = len(proxy.accepted)
        proxy.down, proxy.up = deliver, lose
        command = {"calldata": "once", "id": "c1"}
        await stage.send("101/calldata/set", command)
        await stage.wait("101/calldata/result", id="c1", status="applied")
        proxy.up = unchanged
        await until(lambda: len(proxy.accepted) > connections and adapter.app._link.connection is not None)
        await until(lambda: not adapter.app._outbox.depth)

        def redeliver(packet: bytes, talk: Talk) -> bytes:
            if kind(packet) == PUBLISH and topic(packet) == stage.topic("101/calldata/set"):
                talk.answer(packet)  # a broker that repeats it by itself, too
                return bytes([packet[0] | 0x08]) + packet[1:]
            return packet

        answers = len(stage.on("101/calldata/result"))
        proxy.down = redeliver
        await stage.send("101/calldata/set", command)
        await stage.wait_count("101/calldata/result", answers + 2)
        results = stage.on("101/calldata/result")

        assert len({result.payload for result in results}) == 1
        assert [value for _, value in stage.simulator.calldata("101")] == ["once"]
