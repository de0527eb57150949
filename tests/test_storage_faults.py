"""What happens to storage and to the clock in the field, done for real to a running adapter: D1, D2, D4, D5, D6."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from adapter import publisher
from adapter.agent.presence import Timing
from adapter.check import health
from adapter.config import Backoff
from adapter.errors import StorageDamagedError, StorageError, StorageFullError
from adapter.simulator import Fault
from adapter.store import database as database_module
from adapter.store import outbox as outbox_module
from adapter.store import writer
from adapter.store.database import Database
from adapter.store.outbox import Outbox, open_outbox
from adapter.store.records import AgentRecord, Change, Outgoing
from tests.adapter_support import write
from tests.broker_support import DEADLINE_S, Broker
from tests.cli_support import run_program
from tests.stage_support import Stage, staged
from tests.storage_support import fill, fill_up, limit_file_size, make_room, started
from tests.tcp_proxy import Proxy

pytestmark = pytest.mark.harm

SMALL = {"path": "outbox.db", "max_mb": 8}


def big(work_no: str, number: int, size: int = 60_000) -> dict[str, object]:
    """Make an event that the write-ahead log has to grow for, with a number to know it by."""
    return {"eventType": "Big", "workNo": work_no, "content": {"number": number, "text": "x" * size}}


def came(stage: Stage, work_no: str) -> list[tuple[int, int]]:
    """List `seq` and number of the events that came, each once, in the order of their coming."""
    seen = [(event["seq"], event["content"]["number"]) for event in stage.json(f"{work_no}/events")]
    return list(dict.fromkeys(seen))


def in_order(first: int, last: int) -> list[tuple[int, int]]:
    """Number what must have come."""
    return [(number, number) for number in range(first, last + 1)]


async def none_polls(stage: Stage, *work_nos: str) -> bool:
    """Watch for a second whether no poll of these agents starts."""
    before = [len(stage.simulator.polls(work_no)) for work_no in work_nos]
    end = time.monotonic() + 1.0
    await stage.simulator.wait_for(lambda: time.monotonic() > end)
    return before == [len(stage.simulator.polls(work_no)) for work_no in work_nos]


@pytest.mark.parametrize(
    ("harm", "reason"), [("full", "the disk is full"), ("failing", "disk I/O error")], ids=["full", "failing"]
)
async def test_d4_no_room_stops_the_polls_and_loses_nothing(
    tmp_path: Path, shared_broker: Broker, harm: str, reason: str
) -> None:
    """D2, D4: a disk is full, or fails to write: no poll starts, all is said, and goes on by itself with room."""
    async with (
        staged(tmp_path, shared_broker, agents=["101", "102"]) as stage,
        started(stage, disk="3m" if harm == "full" else None) as adapter,
    ):
        for work_no in ("101", "102"):
            stage.simulator.emit(work_no, big(work_no, 1))
            await stage.wait(f"{work_no}/events", seq=1)
        await adapter.wait_metric("outbox_entries", 0)
        if harm == "full":
            ballast = fill(adapter.directory)
        else:
            limit_file_size(adapter.pid, 4096)
        await stage.polling("101")
        for number in range(2, 5):
            stage.simulator.emit("101", big("101", number))
        told = await stage.wait("101/session", phase="stopped")
        await stage.wait("102/session", phase="stopped")
        for work_no in ("101", "102"):
            await stage.peer.wait_for_payload(stage.topic(f"{work_no}/availability"), b"offline")

        assert told["message"] == f"nothing can be stored: {reason}"
        assert await none_polls(stage, "101", "102")
        assert await adapter.metric("events_at_risk") == 1
        assert not await adapter.ready()

        if harm == "full":
            ballast.unlink()
        else:
            limit_file_size(adapter.pid, None)
        await stage.wait_count("101/events", 4)
        await stage.wait_count("102/session", 3)
        await stage.peer.wait_for(lambda: stage.on("101/availability")[-1].payload == b"online")
        assert came(stage, "101") == in_order(1, 4)
        assert [each["phase"] for each in stage.json("102/session")] == ["polling", "stopped", "polling"]
        assert await adapter.metric("events_at_risk") == 0
        assert await adapter.ready()
        adapter.program.send(signal.SIGTERM)
        assert await adapter.program.ended() == 0
        (first, last) = adapter.lines(" storage: ")
        assert f"outbox.db: {reason}; trying again" in first
        assert " warning " in first
        assert "back after" in last
        assert " info " in last


async def test_d4_what_is_lost_at_the_end_is_said(tmp_path: Path, shared_broker: Broker) -> None:
    """D4, D7: stopped on a full disk it ends in time with exit code 0, and says that an event goes with it."""
    async with staged(tmp_path, shared_broker) as stage, started(stage, disk="3m") as adapter:
        stage.simulator.emit("101", big("101", 1))
        await stage.wait("101/events", seq=1)
        await adapter.wait_metric("outbox_entries", 0)
        fill(adapter.directory)
        await stage.polling("101")
        stage.simulator.emit("101", big("101", 2))
        await stage.wait("101/session", phase="stopped")
        adapter.program.send(signal.SIGTERM)

        assert await adapter.program.ended() == 0
        assert adapter.lines("agent 101: lost at the end, since nothing can be stored: 1 events")


async def test_d4_max_mb_is_reached_and_left(tmp_path: Path, broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """D2, D4: without a broker the backlog grows to `storage.max_mb` and no further; with it all comes out in order."""
    caplog.set_level("INFO", "adapter.outage")
    timing = Timing(store_again_s=0.2)
    async with (
        staged(tmp_path, broker) as stage,
        Proxy(broker.ports["mqtt"]) as proxy,
        stage.running(
            timing=timing, storage=SMALL, gateway={"interval": [0.2, 0.2]}, mqtt={"url": proxy.url}
        ) as adapter,
    ):
        await stage.polling("101")
        broker.stop()
        outbox, number = adapter.app._outbox, 0

        def handed_over(count: int) -> bool:
            return outbox.depth + outbox.at_risk == count

        while not outbox.at_risk:
            number += 1
            stage.simulator.emit("101", big("101", number, 950_000))
            await stage.simulator.wait_for(partial(handed_over, number))
        stage.simulator.emit("101", big("101", number + 1))
        assert await none_polls(stage, "101")
        assert 6 < number < 12
        assert outbox.at_risk == 1
        assert not outbox.writable
        health = await adapter.app._bridge.health()
        assert b'"atRisk":1' in health.payload

        await proxy.reopen(broker, stage.peer)
        reason = "storage.max_mb (8) is reached"
        await stage.wait("101/session", phase="stopped", message=f"nothing can be stored: {reason}")
        await stage.wait_count("101/event", number + 1)
        assert came(stage, "101") == in_order(1, number + 1)
        await stage.peer.wait_for(lambda: stage.json("101/session")[-1]["phase"] == "polling")
        lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("storage: ")]
        assert len(lines) == 2
        assert f"outbox.db: {reason}" in lines[0]


async def test_d4_what_the_gateway_makes_of_it_is_said_and_mended(tmp_path: Path, shared_broker: Broker) -> None:
    """D4, P6: too long without a poll the gateway signs agents out: that is said, and who may is signed in again."""
    timing = Timing(store_again_s=0.1, signed_out_after_s=4.0, again=Backoff(initial_s=0.1, maximum_s=1.0))
    async with staged(tmp_path, shared_broker, agents=["101", "102"], poll_max_time_s=4.0) as stage:
        stage.simulator.sign_out("101")
        agents = [
            {"work_no": "101", "sign_in": {"password": "pw-101", "phone": "8101", "again": True}},
            {"work_no": "102", "guid": stage.simulator.guid("102")},
        ]
        async with stage.running(timing=timing, agents=agents, storage=SMALL) as adapter:
            for work_no in ("101", "102"):
                await stage.polling(work_no)
            await fill_up(adapter)
            stage.simulator.emit("102", big("102", 1, 300_000))
            for work_no in ("101", "102"):
                await stage.wait(
                    f"{work_no}/session",
                    phase="stopped",
                    message="nothing can be stored: storage.max_mb (8) is reached; "
                    "not polled for over 4 s: the gateway has signed the agent out by now",
                )
            await make_room(adapter)
            await stage.wait("102/events", seq=1)
            await stage.wait("102/session", phase="signed_out")
            await stage.simulator.wait_for(lambda: stage.simulator.signed_in("101"))
            await stage.polling("101")
            await stage.peer.wait_for(lambda: stage.json("101/session")[-1]["phase"] == "polling")
            await stage.peer.wait_for(lambda: stage.on("101/availability")[-1].payload == b"online")


async def test_d5_a_link_is_no_way_in(tmp_path: Path, shared_broker: Broker) -> None:
    """D5: exit code 3, by whichever name another process comes to the same file."""
    async with staged(tmp_path, shared_broker) as stage, stage.running() as adapter:
        await stage.polling("101")
        (tmp_path / "symbolic.db").symlink_to(tmp_path / "outbox.db")
        (tmp_path / "hard.db").hardlink_to(tmp_path / "outbox.db")
        paths = [
            write(tmp_path, stage.values(storage={"path": f"{link}.db"}), f"{link}.yaml")
            for link in ("symbolic", "hard")
        ]

        others = await asyncio.gather(*(run_program("run", "-c", path) for path in paths))

        assert [other.process.returncode for other in others] == [3, 3]
        for other in others:
            (line,) = other.err
            assert line.endswith("in use by another process; each adapter needs a storage.path of its own")
        assert not adapter.task.done()


@pytest.mark.parametrize(
    ("disk", "said"),
    [("1m,ro", "cannot be opened: Read-only file system"), ("64k", "cannot be used: database or disk is full")],
    ids=["read-only", "full"],
)
async def test_d4_a_start_without_a_place_to_write_is_one_line(
    tmp_path: Path, shared_broker: Broker, disk: str, said: str
) -> None:
    """D4, P12: a disk that is read-only, or has no room for a database: exit code 1, the reason, and no poll."""
    async with staged(tmp_path, shared_broker) as stage, started(stage, disk=disk) as adapter:
        assert await adapter.program.ended() == 1
        assert adapter.program.err == [f"{tmp_path}/disk/outbox.db: {said}"]
        assert stage.simulator.polls("101") == []


def left_by_a_kill(directory: Path) -> Path:
    """Leave a database as a kill does: with a write-ahead log that holds all of it."""
    path = directory / "outbox.db"
    (directory / "alive").mkdir(exist_ok=True)
    with Database(directory / "alive" / "outbox.db", 64) as database:
        database.run([lambda database: database.set_meta("key", b"v" * 100_000)])
        for suffix in ("", "-wal"):
            shutil.copy(directory / "alive" / f"outbox.db{suffix}", directory / f"outbox.db{suffix}")
    assert path.with_name("outbox.db-wal").stat().st_size > 100_000
    return path


def test_d4_the_log_begins_anew_where_it_cannot_grow(tmp_path: Path) -> None:
    """D4: on a full disk, as long as the file itself has room, what comes in and goes out is refused now and then only.

    The limit on the size of files is the process', so it is another one.
    """
    code = (
        "import resource, sys\nfrom functools import partial\nfrom pathlib import Path\n"
        "from adapter.errors import StorageFullError\nfrom adapter.store.database import Database\n"
        "from adapter.store.records import Change, Outgoing, Removals\n"
        "refused = 0\n"
        "with Database(Path(sys.argv[1]), 64) as database:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))\n"
        "    for row in range(1, 501):\n"
        "        change = Change(outgoing=[Outgoing(topic='t', payload=b'x' * 3000)])\n"
        "        store = partial(Database.store, changes=[(change, change.entries(row))])\n"
        "        gone = Removals(rows=(row - 1,), kept=(), slots=())\n"
        "        try:\n"
        "            database.run([partial(Database.forget_acknowledged, removals=gone), store])\n"
        "        except StorageFullError:\n"
        "            refused += 1\n"
        "            database.run([partial(Database.forget_acknowledged, removals=gone), store])\n"
        "print(refused, database.last_row)\n"
    )

    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "outbox.db")], check=False, capture_output=True)

    assert done.returncode == 0, done.stderr.decode()[-500:]
    assert 3 < int(done.stdout.split()[0]) < 50


@pytest.mark.parametrize("harm", ["half", "text", "no text", "no row", "emptied", "gone"])
def test_d6_what_is_damaged_is_set_aside_whole(tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    """D6: renamed with its log, for its owner alone, and said loudly; twice in a second too; a new one serves."""
    for round_ in (1, 2):
        path = left_by_a_kill(tmp_path)
        log = path.with_name("outbox.db-wal").read_bytes()
        if harm in {"emptied", "gone"}:
            path.unlink()
        else:
            with contextlib.closing(sqlite3.connect(path)) as other:  # its end folds the log in
                other.execute("INSERT INTO agent VALUES ('101', 'SECRET', NULL, '[]', 1, x'', 0, 0)")
                if harm == "no text":
                    other.execute("UPDATE agent SET guid = CAST(x'5345435245ff' AS TEXT)")
                elif harm == "no row":
                    other.execute("UPDATE agent SET cookies = 'SECRET'")
                other.commit()
        if harm == "emptied":
            path.touch()
        elif harm == "text":
            path.write_text("not a database, but somebody's notes\n" * 100)
        elif harm == "half":
            os.truncate(path, path.stat().st_size // 2)
        if harm != "gone":
            path.chmod(0o644)

        with Database(path, 64) as database:
            assert database.run([lambda database: database.set_meta("new", b"v")]) == [None]
            modes = {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir() if file.is_file()}

        assert len(asides(tmp_path)) == round_
        assert modes == {0o600}
        if harm in {"emptied", "gone"}:
            assert log in [file.read_bytes() for file in tmp_path.glob("*.damaged-*-wal")]
    assert caplog.text.count("is damaged (") == 2
    assert "SECRE" not in caplog.text


def test_d6_agents_go_on_where_they_can_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """D6, P8: a page of the backlog is damaged; GUIDs and `seq` are not, and go on in the new file."""
    path = tmp_path / "outbox.db"
    agents = {each: AgentRecord(work_no=each, guid=f"SECRET-{each}", seq=20, state=b"{}") for each in ("101", "102")}
    changes = [Change(agent=agent, outgoing=[Outgoing(topic="t", payload=b"y" * 50_000)]) for agent in agents.values()]
    with Database(path, 64) as database:
        database.run([partial(Database.store, changes=[(each, each.entries(n)) for n, each in enumerate(changes)])])
    broken = bytearray(path.read_bytes())
    for page in range(0, len(broken), 4096):
        if broken.count(b"y", page, page + 4096) > 4000:
            broken[page : page + 4096] = bytes([0xA5]) * 4096
    path.write_bytes(broken)

    with Database(path, 64) as database:
        assert database.agents() == agents
        assert database.depth() == (0, None)
    assert [file.read_bytes() for file in asides(tmp_path)] == [bytes(broken)]
    assert "storage: 2 agents could be read in it: GUID and seq go on" in caplog.text
    assert "SECRET" not in caplog.text


def test_d6_what_cannot_be_set_aside_is_left_alone(tmp_path: Path) -> None:
    """D6: the name for it is too long: one error that says so, and the file as it was."""
    path = tmp_path / f"{'x' * 240}.db"
    path.write_text("no database " * 100)

    with pytest.raises(StorageError, match="it is damaged, and cannot be set aside: File name too long"):
        Database(path, 64)
    assert path.read_text() == "no database " * 100


async def test_d6_a_disk_that_damages_all_is_not_filled_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D4, D6: damaged again within a minute, nothing is stored; later it is, in another file, and nothing is lost."""
    monkeypatch.setattr(writer, "_RETRY_S", 0.05)

    def event(number: int) -> Change:
        agent = AgentRecord(work_no="101", guid="G", seq=number)
        return Change(agent=agent, outgoing=[Outgoing(topic="t", payload=b"%d" % number, retain=True)])

    async with open_outbox(tmp_path / "outbox.db", 64) as outbox:
        await outbox.remember("key", b"kept")
        await outbox.commit(event(1))
        for _ in range(2):
            overwrite(tmp_path)
            await forget_pages(outbox)
            with contextlib.suppress(StorageFullError):
                await outbox.commit(event(2))
        with pytest.raises(StorageFullError, match="it is damaged again: "):
            await outbox.commit(event(3))
        assert len(asides(tmp_path)) == 1

        monkeypatch.setattr(database_module, "_AGAIN_S", 0.0)
        async with asyncio.timeout(DEADLINE_S):
            await writable(outbox)
        await outbox.commit(event(3))
        assert [entry.message.payload for entry in await outbox.next(10)] == [b"1", b"2", b"3"]
    with Database(tmp_path / "outbox.db", 64) as database:
        assert database.agents()["101"].seq == 3
        assert database.meta("key") == b"kept"
    assert len(asides(tmp_path)) == 2


async def writable(outbox: Outbox) -> None:
    """Wait until something can be written."""
    while not outbox.writable:  # noqa: ASYNC110 - it has no event for that
        await asyncio.sleep(0.02)


def asides(directory: Path) -> list[Path]:
    """List the databases that were set aside."""
    return [path for path in directory.glob("*.damaged-*") if not path.name.endswith(("-wal", "-shm"))]


def overwrite(directory: Path) -> None:
    """Write over all of an open database, as a disk does that has lost its mind."""
    for name in ("outbox.db", "outbox.db-wal"):
        with (directory / name).open("r+b") as file:
            file.write(b"\xa5" * os.fstat(file.fileno()).st_size)


def delete(directory: Path) -> None:
    """Delete an open database."""
    for path in directory.glob("outbox.db*"):
        path.unlink()


async def forget_pages(outbox: Outbox) -> None:
    """Have SQLite read from the disk again what it remembers: a database of a real size is not all in memory."""
    await outbox._writer.read(lambda database: database._connection.execute("PRAGMA shrink_memory"))


@pytest.mark.parametrize("harm", [overwrite, delete])
async def test_d6_damage_shows_while_it_runs(
    tmp_path: Path, shared_broker: Broker, harm: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """D2, D6: set aside and said; what is in memory goes on: polls, GUIDs, `seq`, and events, none of them lost."""
    async with staged(tmp_path, shared_broker, agents=["101", "102"]) as stage:
        async with stage.running() as adapter:
            for work_no in ("101", "102"):
                stage.simulator.emit(work_no, big(work_no, 1))
                await stage.wait(f"{work_no}/events", seq=1)
            await stage.simulator.wait_for(lambda: not adapter.app._outbox.depth)
            harm(tmp_path)
            await forget_pages(adapter.app._outbox)
            if harm is delete:
                with pytest.raises(StorageDamagedError):  # health looks for it every minute
                    await adapter.app._outbox.measure()
            for number in range(2, 5):
                stage.simulator.emit("101", big("101", number))
            await stage.wait("101/events", seq=4)
            assert adapter.app._outbox.writable
        assert came(stage, "101") == in_order(1, 4)
        with Database(tmp_path / "outbox.db", 64) as database:
            assert database.agents()["102"].guid == stage.simulator.guid("102")

        async with stage.running():  # each of them from what the new file holds
            for work_no, number in (("101", 5), ("102", 2)):
                stage.simulator.emit(work_no, big(work_no, number))
                await stage.wait(f"{work_no}/events", seq=number)
        assert came(stage, "102") == in_order(1, 2)
    said = [record.getMessage() for record in caplog.records if "is damaged" in record.getMessage()]
    assert len(said) == 1
    assert said[0].endswith("a new one begun")


@pytest.mark.parametrize("in_memory", [2000, 2])
async def test_d6_a_backlog_that_cannot_be_read_holds_nothing_up(
    tmp_path: Path, broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, in_memory: int
) -> None:
    """D6: what waits and is in memory goes out; what is in the damaged file alone is counted; and on it goes."""
    monkeypatch.setattr(outbox_module, "_FRESH", in_memory)
    async with (
        staged(tmp_path, broker) as stage,
        Proxy(broker.ports["mqtt"]) as proxy,
        stage.running(mqtt={"url": proxy.url}) as adapter,
    ):
        await stage.polling("101")
        broker.stop()
        # What is sent into a connection that is lost already is not in memory any more.
        await stage.simulator.wait_for(lambda: adapter.app._link.connection is None)
        for number in range(1, 5):
            stage.simulator.emit("101", big("101", number))
        await stage.simulator.wait_for(lambda: adapter.app._outbox.depth == 4)
        overwrite(tmp_path)
        await forget_pages(adapter.app._outbox)

        await proxy.reopen(broker, stage.peer)
        await stage.wait("101/events", seq=4)
        stage.simulator.emit("101", big("101", 5))
        await stage.wait("101/events", seq=5)

        assert came(stage, "101") == in_order(1 if in_memory > 4 else 3, 5)
        assert ("storage: 2 messages that waited for the broker are in the damaged file alone" in caplog.text) is (
            in_memory < 4
        )
        await stage.simulator.wait_for(lambda: not adapter.app._outbox.depth)


async def test_d6_what_was_read_of_a_backlog_goes_into_the_new_file(tmp_path: Path) -> None:
    """D6: a backlog is read some way ahead; what of it waits in memory is as safe afterwards as what comes."""
    waiting = [Outgoing(topic="t", payload=bytes([number])) for number in range(6)]
    async with open_outbox(tmp_path / "outbox.db", 64) as outbox:
        await outbox.commit(Change(outgoing=waiting))
    async with open_outbox(tmp_path / "outbox.db", 64) as outbox:
        assert len(await outbox.next(2)) == 2
        overwrite(tmp_path)
        await forget_pages(outbox)

        await outbox.commit(Change(outgoing=[Outgoing(topic="t", payload=b"new")]))

        assert outbox.depth == 7
    with Database(tmp_path / "outbox.db", 64) as database:
        found = [entry.message.payload for entry in database.entries(0, 100, 100)]
    assert found == [*(message.payload for message in waiting), b"new"]


async def test_d2_a_log_cut_short_keeps_what_was_committed_before(tmp_path: Path, broker: Broker) -> None:
    """D1, D2: killed with megabytes in the write-ahead log, and that cut or changed: all before that place is there.

    What was committed behind it is gone, and `seq` goes on from what is left: no hole, but numbers that a consumer
    may have seen with another `id`. A disk that keeps what it has confirmed never comes to that.
    """
    agents = [str(number) for number in range(101, 109)]
    samples: list[tuple[int, dict[str, int]]] = []
    async with (
        staged(tmp_path, broker, agents=agents) as stage,
        started(stage, gateway={"interval": [0.2, 0.2]}) as adapter,
    ):
        for work_no in agents:
            await stage.polling(work_no)
        broker.stop()
        path = tmp_path / "disk" / "outbox.db"
        log = path.with_name("outbox.db-wal")
        with (
            contextlib.closing(sqlite3.connect(path)) as reader,
            contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder,
        ):
            # While somebody reads what is there now, nothing that follows can leave the log.
            holder.execute("BEGIN").execute("SELECT count(*) FROM agent").fetchone()
            for number in range(1, 9):
                for work_no in agents:
                    stage.simulator.emit(work_no, big(work_no, number, 40_000))
            while not samples or sum(samples[-1][1].values()) < 64:
                stored = dict(reader.execute("SELECT work_no, seq FROM agent"))
                samples.append((log.stat().st_size, stored))
                await asyncio.sleep(0.05)
            adapter.program.process.kill()
            await adapter.program.ended()
            # Before the last connection is closed, which would fold the log in.
            whole, kept = path.read_bytes(), log.read_bytes()
            shared_memory = path.with_name("outbox.db-shm").read_bytes()
    assert len(kept) > 2_500_000
    chance = random.Random(3)  # noqa: S311 - places to cut at
    for round_ in range(24):
        place = chance.randrange(len(kept))
        cut = bytearray(kept if round_ % 2 else kept[:place])
        if round_ % 2:
            cut[place] ^= 0xFF
        copy = tmp_path / str(round_) / "outbox.db"
        copy.parent.mkdir()
        copy.write_bytes(whole)
        copy.with_name("outbox.db-wal").write_bytes(cut)
        if round_ % 3:
            copy.with_name("outbox.db-shm").write_bytes(shared_memory)

        with Database(copy, 64) as database:
            left = {work_no: agent.seq for work_no, agent in database.agents().items()}
            waiting: dict[str, list[int]] = {work_no: [] for work_no in agents}
            for entry in database.entries(0, 2**40, 1000):
                event = json.loads(entry.message.payload)
                waiting[event["workNo"]].append(event["seq"])

        assert not [*copy.parent.glob("*.damaged-*")]
        committed = [stored for size, stored in samples if size <= place]
        assert all(left[work_no] >= seq for stored in committed for work_no, seq in stored.items())
        assert waiting == {work_no: list(range(1, left.get(work_no, 0) + 1)) for work_no in agents}


async def test_a_clock_that_is_set_changes_no_age(
    tmp_path: Path, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C2, C4, D2: set by a day, the clock makes no event late or young, ends no `ttl`, and no hour of a result."""
    monkeypatch.setattr(publisher, "_LATE_S", 0.5)
    told = time.time
    async with staged(tmp_path, broker) as stage, stage.running() as adapter:
        await stage.send("101/calldata/set", {"calldata": "one", "id": "first"})
        first = await stage.wait("101/calldata/result", id="first", status="applied")
        await stage.polling("101")
        stage.simulator.script("101", Fault(status=503))
        await stage.send("101/calldata/set", {"calldata": "two", "id": "second", "ttl": 20})
        monkeypatch.setattr(time, "time", lambda: told() + 86_400)
        await stage.wait("101/calldata/result", id="second", status="applied")
        stage.simulator.emit("101", big("101", 1, 10))
        assert "replayed" not in await stage.wait("101/event", seq=1)
        await adapter.app._commands.forget()
        await stage.send("101/calldata/set", {"calldata": "one", "id": "first"})
        await stage.wait_count("101/calldata/result", 3)
        assert stage.json("101/calldata/result")[-1] == first
        assert [value for _, value in stage.simulator.calldata("101")] == ["one", "two"]
        assert health(tmp_path / "outbox.db") == "well"

        broker.stop()
        stage.simulator.emit("101", big("101", 2, 10))
        monkeypatch.setattr(time, "time", lambda: told() - 86_400)
        until = time.monotonic() + 1.0
        await stage.simulator.wait_for(lambda: time.monotonic() > until and adapter.app._outbox.depth == 1)
        assert 0.5 < (await adapter.app._outbox.measure())[0] < 30.0
        broker.start()
        await stage.peer.wait_subscribed()
        assert (await stage.wait("101/event", seq=2))["replayed"] is True
