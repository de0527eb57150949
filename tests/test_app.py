"""The whole program: how it starts, how it stops, and with what it refuses to run (D7, sections 3, 6 and 8)."""

import asyncio
import contextlib
import json
import re
import resource
import signal
import socket
import sqlite3
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from urllib.error import HTTPError

import pytest
from prometheus_client.parser import text_string_to_metric_families

from adapter import __version__, commands, preparation
from adapter import app as application
from adapter.config import load
from adapter.errors import StartError, StorageFullError, StorageInUseError
from adapter.simulator import SimAgent, faults
from adapter.store.database import Database
from adapter.store.lock import Lock
from adapter.store.records import Change, Entry, Outgoing
from tests.adapter_support import Running, start, write
from tests.broker_support import DEADLINE_S, HOST, Broker, Peer, certificates, free_ports, mosquitto, nats
from tests.stage_support import Stage, staged
from tests.tcp_proxy import Proxy
from tests.test_broker import playing, relayed

# Stopping.


async def test_a_stop_lets_polls_end_and_publishes_what_they_bring(tmp_path: Path, shared_broker: Broker) -> None:
    """D7: first `bridge/availability` offline, then the poll under way ends, its event is stored and published."""
    async with staged(tmp_path, shared_broker, hold_s=2.0) as stage:
        async with stage.running() as adapter:
            await stage.polling("101")
            adapter.app.stop()
            await stage.peer.wait_for_payload(stage.topic("bridge/availability"), b"offline")
            assert stage.simulator.polling("101")
            stage.simulator.emit_sample("101", "AgentState_Ready")
            assert await asyncio.wait_for(adapter.task, DEADLINE_S) == "stopped"

        event = stage.json("101/event")[-1]
        topics = [each.topic.removeprefix(f"{stage.prefix}/") for each in stage.peer.messages]
        assert event["seq"] == 1
        assert "replayed" not in event
        last_offline = max(i for i, each in enumerate(stage.peer.messages) if each.payload == b"offline")
        assert topics[last_offline] == "bridge/availability"
        assert last_offline < topics.index("101/event"), [(each.topic, each.payload) for each in stage.peer.messages]
        assert [each.payload for each in stage.on("101/availability")] == [b"online"]


async def test_a_second_stop_hurries(tmp_path: Path, shared_broker: Broker) -> None:
    """D7: polls under way are not waited for any more."""
    async with staged(tmp_path, shared_broker, hold_s=20.0) as stage, stage.running() as adapter:
        await stage.polling("101")
        began = time.monotonic()
        adapter.app.stop()
        adapter.app.stop()
        await asyncio.wait_for(adapter.task, DEADLINE_S)

        assert time.monotonic() - began < 5


async def test_agents_are_signed_out_at_exit(tmp_path: Path, shared_broker: Broker) -> None:
    """D7: in parallel, where configured and signed in by the adapter; the gateway gets 3 s for all together."""
    sim = [SimAgent(work_no=work_no, signed_in=False) for work_no in ("101", "102", "103")]
    async with staged(tmp_path, shared_broker, agents=sim) as stage:
        agents = [
            {
                "work_no": work_no,
                "sign_in": {"password": f"pw-{work_no}", "phone": f"8{work_no}", "sign_out_at_exit": work_no != "103"},
            }
            for work_no in ("101", "102", "103")
        ]
        async with stage.running(agents=agents, gateway={"timeout": 8}) as adapter:
            for work_no in ("101", "102", "103"):
                await stage.polling(work_no)
            stage.simulator.script("102", faults.hang(), on="logout")
            began = time.monotonic()
            adapter.app.stop()
            await asyncio.wait_for(adapter.task, DEADLINE_S)
            took_s = time.monotonic() - began

        assert [stage.simulator.signed_in(work_no) for work_no in ("101", "102", "103")] == [False, True, True]
        assert 3.0 <= took_s < 6.5
        assert stage.json("101/session")[-1]["phase"] == "signed_out"


async def test_the_end_does_not_wait_for_a_broker_that_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D7: flushed for up to 5 s (here 1.5); what is left stays stored and goes out after the next start, replayed."""
    assert application._FLUSH_S == 5
    monkeypatch.setattr(application, "_FLUSH_S", 1.5)
    with mosquitto(tmp_path / "m") as broker:
        async with staged(tmp_path, broker) as stage:
            async with stage.running() as adapter:
                await stage.polling("101")
                broker.send(signal.SIGSTOP)
                stage.simulator.emit_sample("101", "AgentState_Ready")
                await stage.simulator.wait_for(lambda: stage.simulator.handed_out("101"))
                began = time.monotonic()
                adapter.app.stop()
                await asyncio.wait_for(adapter.task, 20)
                assert 1.5 < time.monotonic() - began < 9
                broker.send(signal.SIGCONT)
            async with stage.running():
                event = await stage.wait("101/event", seq=1, replayed=True)
            assert event["id"] == stage.json("101/events")[-1]["id"]


async def test_a_stop_without_a_broker_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D7: also where nobody answers at the broker's address: no connection attempt is waited for."""
    monkeypatch.setattr(application, "_SETTLE_S", 1.0)
    with socket.create_server((HOST, 0)) as deaf:
        dead = Broker(
            name="mosquitto", command=[], ports={"mqtt": deaf.getsockname()[1]}, directory=tmp_path, data=tmp_path
        )
        with mosquitto(tmp_path / "m") as broker:
            async with staged(tmp_path, broker) as stage:
                stage.broker = dead
                config = load(write(tmp_path, stage.values()))
                apps: list[application.App] = []
                task = asyncio.create_task(application.run(config, handle_signals=False, control=apps.append))
                await asyncio.sleep(0.3)
                apps[0].stop()
                began = time.monotonic()
                await asyncio.wait_for(task, 20)
                assert time.monotonic() - began < 5


async def test_an_abort_lets_the_will_out(tmp_path: Path, shared_broker: Broker) -> None:
    """Section 3: whoever looks at `bridge/availability` learns of a crash from the broker."""
    async with staged(tmp_path, shared_broker, quiet=False) as stage:
        process = await _spawn(stage)
        await stage.peer.wait_for_payload(stage.topic("bridge/availability"), b"online")
        process.kill()
        await process.wait()
        await stage.peer.wait_for_payload(stage.topic("bridge/availability"), b"offline")


async def test_a_connection_made_during_the_stop_stays_offline(tmp_path: Path, broker: Broker) -> None:
    """D7: a broker that bounces while polls end must not hear `online` again, which nobody would take back."""
    async with staged(tmp_path, broker, hold_s=3.0) as stage:
        async with stage.running() as adapter:
            await stage.polling("101")
            adapter.app.stop()
            await stage.peer.wait_for_payload(stage.topic("bridge/availability"), b"offline")
            await asyncio.to_thread(broker.restart)
            await stage.peer.wait_subscribed()
            await asyncio.wait_for(adapter.task, DEADLINE_S)
        with Peer(broker, [stage.topic("bridge/availability")]) as late:
            await late.wait_for(lambda: late.messages)
            assert [each.payload for each in late.messages] == [b"offline"]


async def test_a_restart_is_told_to_whoever_runs_it(tmp_path: Path, shared_broker: Broker) -> None:
    """Section 3: the request `restart` is answered, then everything ends as D7 says."""
    async with staged(tmp_path, shared_broker) as stage, stage.running() as adapter:
        await stage.polling("101")
        await stage.send("bridge/request/restart", {"id": "r"})
        assert await asyncio.wait_for(adapter.task, DEADLINE_S) == "restart"
        await stage.wait("bridge/response/restart", id="r", status="ok")


# Starting.


async def test_a_refused_log_in_at_the_start_ends_it(tmp_path: Path) -> None:
    """Section 6: exit 1, since a person has to do something; the database is free again."""
    with mosquitto(tmp_path / "m", users={"adapter": "right"}) as broker:
        async with staged(tmp_path, broker, quiet=False) as stage:
            path = write(tmp_path, stage.values(mqtt={"password": "wrong"}))
            for _ in range(2):
                with pytest.raises(StartError, match="log-in refused") as refused:
                    await start(path)
                assert refused.value.exit_code == 1
            assert "wrong" not in str(refused.value)


async def test_a_log_in_refused_later_is_tried_again(tmp_path: Path) -> None:
    """Section 6: polling goes on into the outbox, and all goes out once the broker accepts again."""
    users = {"adapter": "right"}
    with mosquitto(tmp_path / "m", users=users) as broker:
        passwords = tmp_path / "m" / "passwords"
        async with staged(tmp_path, broker) as stage:
            async with stage.running() as adapter:
                await stage.polling("101")
                good = passwords.read_text()
                broker.stop()
                passwords.write_text(good.replace("adapter:", "nobody:"))
                broker.start()
                await stage.simulator.wait_for(lambda: "log-in" in adapter.app._link._standing.outage._suffering)
                stage.simulator.emit_sample("101", "AgentState_Ready")
                await stage.simulator.wait_for(lambda: adapter.app._outbox.depth == 1)
                broker.stop()
                passwords.write_text(good)
                broker.start()
                await stage.peer.wait_subscribed()
                await stage.wait("101/event", seq=1)
            assert len(stage.simulator.handed_out("101")) == 1


async def test_a_broker_that_comes_later_gets_everything(tmp_path: Path) -> None:
    """Section 6: not there at the start, it is tried again with one log line, and no event is lost."""
    with mosquitto(tmp_path / "m") as broker:
        async with staged(tmp_path, broker) as stage, Proxy(broker.ports["mqtt"]) as proxy:
            broker.stop()
            async with stage.running(mqtt={"url": proxy.url}) as adapter:
                await stage.polling("101")
                for _ in range(3):
                    stage.simulator.emit_sample("101", "AgentState_Ready")
                await stage.simulator.wait_for(lambda: adapter.app._outbox.depth == 3)
                await proxy.reopen(broker, stage.peer)
                await stage.peer.wait_for(lambda: len(stage.on("101/event")) >= 3)
            assert [event["seq"] for event in stage.json("101/event")] == [1, 2, 3]


async def test_another_live_instance_is_refused(tmp_path: Path, shared_broker: Broker) -> None:
    """Section 3: two adapters would steal each other's events; exit 2 and say so."""
    async with staged(tmp_path, shared_broker, quiet=False) as stage, stage.running():
        await stage.wait_count("bridge/health", 1)
        await stage.wait_count("bridge/info", 1)
        second = tmp_path / "second"
        second.mkdir()
        path = write(second, stage.values(instance="second"))
        with pytest.raises(StartError, match=f"another instance is live under the prefix '{stage.prefix}'") as refused:
            await start(path)

        assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("availability", "health", "info"),
    [
        (b"offline", {"at": "NOW"}, {"startedAt": "other"}),
        (b"online", {"at": "OLD"}, {"startedAt": "other"}),
        (b"online", {"at": "NOW"}, {"startedAt": "OWN"}),
        (b"online", None, None),
        (b"online", b"[" * 60_000, b"\xff"),
        (b"online", {"at": "2026-01-01"}, {"startedAt": 5}),
        (b"online", {"at": "no time"}, b"[]"),
        (b"online", {"at": {}}, b""),
    ],
)
async def test_a_ghost_is_not_taken_for_another_instance(
    tmp_path: Path, shared_broker: Broker, availability: bytes, health: object, info: object
) -> None:
    """Section 3: what is old, our own from any of the last starts, or no message of an adapter, hinders no start."""
    async with staged(tmp_path, shared_broker, quiet=False) as stage:
        own = ["2026-01-01T00:00:00.000Z", "2026-01-01T00:00:01.000Z"]
        with Database(tmp_path / "outbox.db", 64) as database:
            database.run([lambda d: d.set_meta("starts", " ".join(own).encode())])
        now = datetime.now(UTC)
        words = {"NOW": now.isoformat(), "OLD": (now - timedelta(seconds=200)).isoformat(), "OWN": own[0]}

        def made(value: object) -> bytes:
            if isinstance(value, dict):
                named = {name: words.get(each, each) if isinstance(each, str) else each for name, each in value.items()}
                return json.dumps(named).encode()
            return value if isinstance(value, bytes) else b""

        left = {"availability": availability, "health": made(health), "info": made(info)}
        for name, payload in left.items():
            await stage.send(f"bridge/{name}", payload, retain=True)
        async with _unchecked(stage):
            await stage.polling("101")


async def test_a_start_is_remembered_for_the_next(tmp_path: Path, shared_broker: Broker) -> None:
    """Section 3: the ghost of the run before, with a fresh health, is known by its `startedAt`."""
    async with staged(tmp_path, shared_broker, quiet=False) as stage:
        for _ in range(2):
            process = await _spawn(stage)
            count = len(stage.on("bridge/health"))
            await stage.wait_count("bridge/health", count + 1)
            await stage.wait_count("bridge/info", 1)
            process.kill()
            await process.wait()
            await stage.peer.wait_for_payload(stage.topic("bridge/availability"), b"offline")
            await stage.send("bridge/availability", b"online", retain=True)
        async with stage.running():
            await stage.polling("101")


async def test_the_protocol_is_remembered(tmp_path: Path, shared_broker: Broker) -> None:
    """Section 3: what worked is tried first at the next start."""
    async with staged(tmp_path, shared_broker) as stage:
        async with stage.running():
            await stage.polling("101")
        async with stage.running() as adapter:
            assert adapter.app._link._dialer.protocol == "5"
            assert await adapter.app._outbox.recall("protocol") == b"5"


async def test_agents_that_left_between_two_runs_are_cleared(tmp_path: Path, shared_broker: Broker) -> None:
    """Section 3: their retained topics and their rows go; the others' stay."""
    async with staged(tmp_path, shared_broker, agents=["101", "102"]) as stage:
        async with stage.running():
            await stage.polling("102")
            stage.simulator.emit_sample("102", "AgentState_Ready")
            await stage.wait("102/event", seq=1)
            await stage.wait("101/session", phase="polling")
        only = [{"work_no": "101", "guid": stage.simulator.guid("101")}]
        async with stage.running(agents=only):
            for name in ("event", "state", "session", "availability"):
                await stage.peer.wait_for_payload(stage.topic(f"102/{name}"), b"")
        with Database(tmp_path / "outbox.db", 64) as database:
            assert list(database.agents()) == ["101"]
            assert not [topic for topic in database.slot_topics() if "/102/" in topic]
        assert stage.on("101/session")[-1].payload


async def test_a_full_disk_does_not_keep_it_from_starting(tmp_path: Path, shared_broker: Broker) -> None:
    """D4: started with a backlog that fills `storage.max_mb`, it publishes the backlog, and then all is well."""
    with Database(tmp_path / "outbox.db", 8) as database:
        row = 1
        with contextlib.suppress(StorageFullError):
            while True:
                message = Outgoing(topic="elsewhere/x/event", payload=b"x" * 3000)
                database.run([partial(Database.store, changes=[(Change(), [Entry(row, 1.0, message)])])])
                row += 1
    async with (
        staged(tmp_path, shared_broker) as stage,
        stage.running(storage={"path": "outbox.db", "max_mb": 8}) as adapter,
    ):
        await stage.polling("101")
        stage.simulator.emit_sample("101", "AgentState_Ready")
        await stage.wait("101/event", seq=1)
        await stage.simulator.wait_for(lambda: adapter.app._outbox.depth == 0)
        await stage.wait("bridge/info")
        await stage.wait("bridge/agents/1")
        assert adapter.app._outbox.writable
    assert row > 1000


async def test_a_second_program_on_the_same_database_is_refused(tmp_path: Path, shared_broker: Broker) -> None:
    """D5: exit 3 is made of this error."""
    async with staged(tmp_path, shared_broker) as stage, stage.running() as adapter:
        await stage.polling("101")
        with pytest.raises(StorageInUseError):
            await start(adapter.path)
        health = Lock.read(tmp_path / "outbox.db")

        assert health is not None
        assert (health["writable"], health["connected"]) == (True, True)


@pytest.mark.parametrize(("hard", "said"), [(256, True), (4096, False)])
def test_the_limit_of_open_files_is_raised(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, hard: int, said: bool
) -> None:
    """Each agent's connection is an open file: the limit is raised as far as the system lets us, else it is said."""
    limits = [(64, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: limits.append(wanted))
    preparation.raise_file_limit(500)

    assert limits[-1] == (hard, hard)
    assert ("raise LimitNOFILE" in caplog.text) is said


async def test_what_is_not_verified_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Section 6: at every start, in so many words."""
    certs = certificates(tmp_path / "c")
    with mosquitto(tmp_path / "m", schemes=["mqtts"], certs=certs) as broker:
        async with staged(tmp_path, broker) as stage:
            mqtt = {"url": broker.url("mqtts"), "verify": False}
            async with stage.running(gateway={"verify": False}, mqtt=mqtt):
                await stage.polling("101")
    assert "gateway.verify is false" in caplog.text
    assert "mqtt.verify is false" in caplog.text


async def test_numbers_are_masked_with_a_key_that_stays(tmp_path: Path, shared_broker: Broker) -> None:
    """Section 6: `hash` gives the same number the same text, over a restart too."""
    async with staged(tmp_path, shared_broker) as stage:
        for seq in (1, 2):
            async with stage.running(privacy={"with": "hash"}):
                await stage.polling("101")
                stage.simulator.emit_sample("101", "AgentEvent_Ringing")
                await stage.wait("101/event", seq=seq)
        first, second = [event["content"] for event in stage.json("101/event")]
        assert re.fullmatch(r"[0-9a-f]{64}", first["caller"])
        assert first["caller"] == second["caller"]


# Other ways to a broker.


@pytest.mark.parametrize("scheme", ["mqtt", "ws"])
async def test_it_runs_on_nats_server(tmp_path: Path, scheme: str) -> None:
    """Section 3: `protocol: auto` falls back to 3.1.1, over TCP and websocket; commands work as well."""
    with nats(tmp_path / "nats") as broker:
        async with staged(tmp_path, broker) as stage:
            async with stage.running(mqtt={"url": broker.url(scheme)}) as adapter:
                await _round_trip(stage)
                connection = adapter.app._link.connection
                assert connection is not None
                assert connection.protocol == "3.1.1"
            await stage.peer.wait_for_payload(stage.topic("bridge/availability"), b"offline")


@pytest.mark.parametrize("scheme", ["mqtts", "ws", "wss"])
async def test_it_runs_over_tls_and_websocket(tmp_path: Path, scheme: str) -> None:
    """Section 6: every scheme of `mqtt.url`, with the broker's certificate verified."""
    with mosquitto(tmp_path / "m", schemes=[scheme]) as broker:
        async with staged(tmp_path, broker) as stage:
            mqtt = {"url": broker.url(scheme)}
            if broker.certificates is not None:
                mqtt["ca_file"] = str(broker.certificates.ca_file)
            async with stage.running(mqtt=mqtt):
                await _round_trip(stage)


async def test_a_command_ahead_of_the_suback_is_answered(tmp_path: Path, shared_broker: Broker) -> None:
    """C4: a broker may send what it retains before its answer to SUBSCRIBE [MQTT-3.8.4], and waits for the PUBACK."""
    topic = b""

    async def early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def down(up: asyncio.StreamReader) -> None:
            while data := await up.read(4096):
                if data[:1] == b"\x90":  # ahead of SUBACK: PUBLISH, QoS 1, retained, no properties, payload "x"
                    body = len(topic).to_bytes(2, "big") + topic + b"\x00\x07" + b"\x00" + b"x"
                    writer.write(b"\x33" + bytes([len(body)]) + body)
                writer.write(data)

        async with relayed(shared_broker.ports["mqtt"], down) as up:
            while data := await reader.read(4096):
                up.write(data)

    async with playing(early) as port, staged(tmp_path, shared_broker) as stage:
        topic = stage.topic("101/calldata/set").encode()
        async with stage.running(mqtt={"url": f"mqtt://{HOST}:{port}"}):
            assert (await stage.wait("101/calldata/result"))["reason"] == "retained"


async def test_a_refused_subscription_does_not_stop_events(tmp_path: Path, shared_broker: Broker) -> None:
    """A broker that forbids to subscribe is told of; what the program is for goes on."""

    async def strict(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def down(up: asyncio.StreamReader) -> None:
            while True:
                packet = bytearray(await up.read(4096))
                if packet[:1] == b"\x90":  # SUBACK: length, identifier, no properties, then a reason for each filter
                    packet[5 : 2 + packet[1]] = b"\x87" * (packet[1] - 3)
                writer.write(packet)

        async with relayed(shared_broker.ports["mqtt"], down) as up:
            while data := await reader.read(4096):
                up.write(data)

    async with (
        playing(strict) as port,
        staged(tmp_path, shared_broker) as stage,
        stage.running(mqtt={"url": f"mqtt://{HOST}:{port}"}),
    ):
        await stage.polling("101")
        stage.simulator.emit_sample("101", "AgentState_Ready")
        await stage.wait("101/event", seq=1)
        said = [each["message"] for each in stage.json("bridge/log")]
        assert len([each for each in said if "Not authorized" in each and "switch it off in commands" in each]) == 1


# The HTTP listener.


async def test_the_http_listener_tells_how_it_is(tmp_path: Path, broker: Broker) -> None:
    """Section 6: metrics in Prometheus' form with no label per agent; ready only with broker and outbox."""
    (port,) = free_ports(1)
    async with staged(tmp_path, broker) as stage, stage.running(http={"listen": f"{HOST}:{port}"}) as adapter:
        await stage.polling("101")
        stage.simulator.emit_sample("101", "AgentState_Ready")
        await stage.wait("101/event", seq=1)
        await stage.wait_count("bridge/health", 1)
        status, text = await _get(port, "/metrics")
        families = {family.name: family for family in text_string_to_metric_families(text)}
        assert status == 200
        assert families["ccgateway2mqtt_events"].samples[0].value == 1
        assert families["ccgateway2mqtt_broker_connected"].samples[0].value == 1
        assert {each.labels["phase"]: each.value for each in families["ccgateway2mqtt_agents"].samples} == {
            "signed_out": 0,
            "signing_in": 0,
            "polling": 1,
            "retrying": 0,
            "stopped": 0,
        }
        assert families["ccgateway2mqtt_outbox_limit_bytes"].samples[0].value == 1024 * 1024 * 1024
        assert families["ccgateway2mqtt_outbox_writable"].samples[0].value == 1
        assert families["ccgateway2mqtt_start_time_seconds"].samples[0].value == pytest.approx(time.time(), abs=120)
        assert families["ccgateway2mqtt_cpu_seconds"].samples[0].value > 0
        assert families["ccgateway2mqtt_info"].samples[0].labels == {"version": __version__}
        assert all(each.name.startswith("ccgateway2mqtt_") for family in families.values() for each in family.samples)
        assert "101" not in {
            value for family in families.values() for each in family.samples for value in each.labels.values()
        }
        assert await _get(port, "/healthz") == (200, "ok\n")
        assert await _get(port, "/readyz") == (200, "ready\n")

        broker.stop()
        await stage.simulator.wait_for(lambda: adapter.app._link.connection is None)
        assert await _get(port, "/readyz") == (503, "not ready\n")
        assert await _get(port, "/healthz") == (200, "ok\n")
        broker.start()
        await stage.peer.wait_subscribed()


async def test_metrics_are_told_while_nothing_can_be_read(
    tmp_path: Path, shared_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody watches for just that."""
    (port,) = free_ports(1)

    def broken(_: Database) -> tuple[int, float | None]:
        raise sqlite3.OperationalError("disk I/O error")

    async with staged(tmp_path, shared_broker) as stage, stage.running(http={"listen": f"{HOST}:{port}"}) as adapter:
        await stage.polling("101")
        with monkeypatch.context() as trouble:
            trouble.setattr(Database, "depth", broken)
            await adapter.app._report()
            status, text = await _get(port, "/metrics")

        assert status == 200
        assert "ccgateway2mqtt_polls_total" in text


async def test_a_port_in_use_ends_the_start(tmp_path: Path, shared_broker: Broker) -> None:
    """Section 6: exit 1, and the error names the address."""
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        async with staged(tmp_path, shared_broker, quiet=False) as stage:
            with pytest.raises(StartError, match=rf"http\.listen: 127\.0\.0\.1:{port}") as refused:
                await start(write(tmp_path, stage.values(http={"listen": f"{HOST}:{port}"})))
            assert refused.value.exit_code == 1


# Regular work.


async def test_reports_come_by_themselves(
    tmp_path: Path, shared_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Section 3: health every 60 s, `info` where it changed, old commands forgotten, and a heartbeat."""
    monkeypatch.setattr(application, "_REPORT_S", 0.1)
    monkeypatch.setattr(application, "_BEAT_S", 0.1)
    monkeypatch.setattr(commands, "_REMEMBERED_S", -1.0)
    async with staged(tmp_path, shared_broker) as stage, stage.running():
        await stage.polling("101")
        await stage.send("101/calldata/set", {"calldata": 1, "id": "c"})
        await stage.wait("101/calldata/result", id="c")
        count = len(stage.on("bridge/health"))
        await stage.wait_count("bridge/health", count + 3)
        await stage.peer.wait_for(lambda: stage.json("bridge/info")[-1]["agents"] == {"configured": 1, "polling": 1})

        assert len(stage.on("bridge/info")) <= 4
        health = Lock.read(tmp_path / "outbox.db")
        assert health is not None
        assert health["connected"] is True
        await stage.send("101/calldata/set", {"calldata": "fresh", "id": "c"})
        await stage.wait("101/calldata/result", id="c", status="applied")


async def _round_trip(stage: Stage) -> None:
    """Let an event out and call data in."""
    await stage.polling("101")
    stage.simulator.emit_sample("101", "AgentState_Ready")
    await stage.wait("101/event", seq=1)
    await stage.send("101/calldata/set", {"calldata": "x", "id": "c"})
    assert (await stage.wait("101/calldata/result", id="c"))["status"] == "applied"
    assert [value for _, value in stage.simulator.calldata("101")] == ["x"]


@contextlib.asynccontextmanager
async def _unchecked(stage: Stage) -> AsyncIterator[Running]:
    adapter = await start(write(stage.directory, stage.values()))
    try:
        yield adapter
    finally:
        await adapter.stop()


async def _spawn(stage: Stage) -> asyncio.subprocess.Process:
    """Run the adapter in a process of its own, to kill it."""
    path = write(stage.directory, stage.values())
    program = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom adapter import app\nfrom adapter.config import load\n"
        "asyncio.run(app.run(load(Path(sys.argv[1]))))\n"
    )
    return await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(path))


async def _get(port: int, path: str) -> tuple[int, str]:
    def get() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(get)
