"""The outbox on real SQLite: what is committed, in which order it comes out, and what a full disk may do."""

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from adapter.errors import StorageError, StorageFullError, StorageInUseError
from adapter.store import outbox as outbox_module
from adapter.store import writer as writer_module
from adapter.store.database import Database
from adapter.store.lock import Lock
from adapter.store.outbox import Outbox, open_outbox
from adapter.store.records import AgentRecord, Change, CommandRecord, Entry, Outgoing, Slot, Unreadable
from adapter.store.sql import ASIDE_KEPT, UNREADABLE_KEPT

DEADLINE_S = 30.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name a database that is not there yet."""
    return tmp_path / "outbox.db"


@pytest.fixture
async def outbox(path: Path) -> AsyncIterator[Outbox]:
    """Open an outbox of 64 MiB."""
    async with open_outbox(path, 64) as opened:
        yield opened


def change(*payloads: str, size: int = 0, **more: object) -> Change:
    """Make a change with one message for each payload."""
    outgoing = [
        Outgoing(topic="agents/101/event", payload=payload.encode().ljust(size, b"."), retain=True)
        for payload in payloads
    ]
    return Change(outgoing=outgoing, **more)  # type: ignore[arg-type] # members of Change


def texts(entries: list[Entry]) -> list[str]:
    """Give the payloads."""
    return [entry.message.payload.decode() for entry in entries]


async def until(predicate: Callable[[], object]) -> None:
    """Wait until something is true of the outbox."""
    async with asyncio.timeout(DEADLINE_S):
        while not predicate():  # noqa: ASYNC110 - the outbox has no event for everything that a test looks at
            await asyncio.sleep(0.005)


async def take_all(outbox: Outbox, limit: int = 500) -> list[Entry]:
    """Take whatever waits."""
    taken: list[Entry] = []
    while entries := await outbox.next(limit):
        taken += entries
    return taken


def rows(path: Path, statement: str) -> list[tuple[object, ...]]:
    """Ask another connection, which sees nothing but what is committed."""
    with contextlib.closing(sqlite3.connect(path)) as other:
        return other.execute(statement).fetchall()


async def test_a_commit_is_on_disk_when_it_returns(outbox: Outbox, path: Path) -> None:
    """D1: event, agent and newest value are all committed when `commit` returns."""
    agent = AgentRecord(
        work_no="101", guid="G", guid_origin="O", cookies=(("a", "b=c"),), seq=7, state=b"{}", own=True, stay_out=True
    )

    await outbox.commit(change("one", agent=agent, slots={"agents/101/state": b"idle"}))

    assert rows(path, "SELECT payload, retain FROM entry") == [(b"one", 1)]
    assert rows(path, "SELECT guid, seq FROM agent") == [("G", 7)]
    assert rows(path, "SELECT * FROM slot") == [("agents/101/state", b"idle", None)]


async def test_all_of_it_survives_a_restart(path: Path) -> None:
    """D1: what the program begins with is what it committed before."""
    agent = AgentRecord(work_no="101", guid="G", cookies=(("a", "b=c"),), seq=7, state=b"{}", own=True, stay_out=True)
    command = CommandRecord(work_no="101", kind="calldata", id="c", body=b"x", received_at=1.0, expires_at=2.0)
    async with open_outbox(path, 64) as first:
        await first.commit(change("one", "two", agent=agent, slots={"t": b"v"}))
        assert await first.admit(command) is None
        await first.remember("key", b"value")
    async with open_outbox(path, 64) as second:
        assert second.agents == {"101": agent}
        assert second.pending == [command]
        assert second.depth == 2
        assert await second.recall("key") == b"value"
        assert await second.recall("other") is None
        assert second.next_slot() is not None
        entries = await take_all(second)
        assert texts(entries) == ["one", "two"]
        assert [entry.row <= second.restarted_after for entry in entries] == [True, True]


async def test_what_comes_while_the_writer_is_busy_is_one_transaction(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Group commit: 50 agents that wait for the same fsync are served by one transaction, in order."""
    batches: list[int] = []
    gate = threading.Event()
    store = Database.store

    def slow_store(self: Database, changes: list[tuple[Change, list[Entry]]]) -> None:
        batches.append(len(changes))
        gate.wait(DEADLINE_S)
        store(self, changes)

    monkeypatch.setattr(Database, "store", slow_store)
    first = asyncio.create_task(outbox.commit(change("0")))
    await until(lambda: batches)
    others = [asyncio.create_task(outbox.commit(change(str(number)))) for number in range(1, 51)]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, *others)

    assert batches == [1, 50]
    assert texts(await take_all(outbox)) == [str(number) for number in range(51)]


async def test_acknowledged_entries_are_deleted_and_others_stay(outbox: Outbox, path: Path) -> None:
    """D1, D3: a row goes with its PUBACK, not before; `in_hand` counts until the deletion is on disk."""
    await outbox.commit(change("one", "two", "three"))
    entries = await take_all(outbox)
    assert outbox.in_hand == 3

    outbox.acknowledge(entries[1].row)
    await until(lambda: outbox.depth == 2)

    assert outbox.in_hand == 2
    assert rows(path, "SELECT payload FROM entry ORDER BY row") == [(b"one",), (b"three",)]


async def test_deletions_gather(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """D3: what the broker acknowledges is off the disk a hundred at once, however much is stored meanwhile."""
    monkeypatch.setattr(writer_module, "_GATHERED_S", 3600.0)
    await outbox.commit(change(*map(str, range(writer_module._GATHERED))))
    *most, last = await take_all(outbox)
    for entry in most:
        outbox.acknowledge(entry.row)
    await outbox.commit(change("one more"))
    assert outbox.depth == writer_module._GATHERED + 1

    outbox.acknowledge(last.row)

    await until(lambda: outbox.depth == 1)


async def test_d4a_what_was_acknowledged_a_moment_ago_is_offered_again(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D4a: also while its deletion waits for company: it is what a broker has most likely lost."""
    monkeypatch.setattr(writer_module, "_GATHERED_S", 3600.0)
    await outbox.commit(Change(outgoing=[Outgoing(topic="agents/101/event", payload=b"{}", retain=True)]))
    await outbox.commit(Change(slots={"agents/101/state": b"{}"}))
    for slot in _slots(outbox):
        outbox.acknowledge_slot(slot)
    for entry in await take_all(outbox):
        outbox.acknowledge(entry.row)

    await outbox.offer_again(outbox.marks_since(None, outbox.draw_line()), "", 10)

    assert {slot.topic for slot in _slots(outbox)} == {"agents/101/event", "agents/101/state"}


async def test_the_end_does_not_forget_what_the_broker_has_acknowledged(path: Path) -> None:
    """D3: a deletion that waits for company is on disk when the outbox is closed."""
    async with open_outbox(path, 64) as first:
        await first.commit(change("one", "two"))
        await first.commit(Change(slots={"a": b"v"}))
        for entry in await take_all(first):
            first.acknowledge(entry.row)
        for slot in _slots(first):
            first.acknowledge_slot(slot)
    async with open_outbox(path, 64) as second:
        assert second.depth == 0
        assert _slots(second) == []


async def test_a_rewind_reads_a_backlog_again(path: Path) -> None:
    """D2: what was read of it and not given out yet comes in its place."""
    async with open_outbox(path, 64) as first:
        await first.commit(change(*map(str, range(6))))
    async with open_outbox(path, 64) as second:
        assert texts(await second.next(2)) == ["0", "1"]
        second.rewind()
        assert texts(await second.next(3)) == ["0", "1", "2"]
        assert texts(await take_all(second)) == ["3", "4", "5"]


async def test_a_rewind_begins_again_with_what_is_not_acknowledged(outbox: Outbox) -> None:
    """D2: after a lost connection everything unacknowledged goes again, in order, what was never sent behind it."""
    await outbox.commit(change("1", "2", "3", "4"))
    entries = await outbox.next(3)
    outbox.acknowledge(entries[1].row)
    await until(lambda: outbox.depth == 3)
    await outbox.commit(change("5"))

    outbox.rewind()

    assert outbox.in_hand == 0
    assert texts(await take_all(outbox, limit=2)) == ["1", "3", "4", "5"]


async def test_an_acknowledged_entry_is_not_given_out_again(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """D3: not after a rewind either, while its deletion has to wait; and it is counted once."""
    await outbox.commit(change("1", "2", "3"))
    entries = await take_all(outbox)
    _refuse_writing(monkeypatch)
    outbox.acknowledge(entries[0].row)
    outbox.acknowledge(entries[1].row)
    await until(lambda: not outbox.writable)

    outbox.rewind()

    assert outbox.in_hand == 2
    assert texts(await take_all(outbox, limit=1)) == ["3"]
    monkeypatch.undo()
    outbox.acknowledge(entries[2].row)
    await until(lambda: outbox.depth == 0)
    assert outbox.in_hand == 0


async def test_a_backlog_is_on_disk_alone_and_keeps_its_order(outbox: Outbox) -> None:
    """More than 2,000 waiting entries leave memory, come back in order, and new ones go behind them."""
    await outbox.commit(change("0"))
    for first in range(1, 5001, 500):
        await outbox.commit(change(*map(str, range(first, first + 500))))
    assert len(outbox._fresh) == 2000

    taken = await outbox.next(700)
    await outbox.commit(change("5001"))
    taken += await take_all(outbox, 700)
    await outbox.commit(change("5002"))
    taken += await take_all(outbox)

    assert texts(taken) == [str(number) for number in range(5003)]
    assert outbox.depth == 5003


async def test_order_holds_where_taking_and_storing_mix(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is in memory or on disk, and however often a connection is lost: in order, none twice, none lost."""
    monkeypatch.setattr(outbox_module, "_FRESH", 5)
    sent: list[str] = []
    number = 0
    for round_ in range(40):
        for _ in range(round_ % 7):
            await outbox.commit(change(str(number), str(number + 1)))
            number += 2
        for entry in await outbox.next(3):
            outbox.acknowledge(entry.row)
            sent += texts([entry])
        if round_ % 5 == 4:
            outbox.rewind()
    while entries := await outbox.next(4):
        for entry in entries:
            outbox.acknowledge(entry.row)
        sent += texts(entries)

    assert sent == [str(each) for each in range(number)]
    await asyncio.wait_for(outbox.flushed(), DEADLINE_S)


async def test_only_the_newest_value_of_a_slot_waits(outbox: Outbox) -> None:
    """Of state, session and availability the newest value alone waits; acknowledged, none does."""
    for value in (b"1", b"2", b"3"):
        await outbox.commit(Change(slots={"t": value}))

    slot = outbox.next_slot()

    assert slot is not None
    assert slot.payload == b"3"
    assert outbox.next_slot() is None
    outbox.acknowledge_slot(slot)
    await asyncio.wait_for(outbox.flushed(), DEADLINE_S)


async def test_an_unacknowledged_slot_goes_again_with_its_newest_value(path: Path) -> None:
    """After a lost connection and after a restart, a value that no broker acknowledged is sent again; no other is."""
    async with open_outbox(path, 64) as first:
        await first.commit(Change(slots={"a": b"old", "b": b"kept", "c": b"done"}))
        taken = {slot.topic: slot for slot in _slots(first)}
        first.acknowledge_slot(taken["c"])
        first.show({"a": b"shown, not stored"})
        first.rewind()
        assert {slot.topic: slot.payload for slot in _slots(first)} == {"a": b"shown, not stored", "b": b"kept"}
    async with open_outbox(path, 64) as second:
        assert {slot.topic: slot.payload for slot in _slots(second)} == {"a": b"old", "b": b"kept"}


async def test_a_value_that_came_back_is_not_taken_for_acknowledged(path: Path) -> None:
    """An acknowledgment of `online` does not count for the `online` that follows an `offline`."""
    async with open_outbox(path, 64) as first:
        sent: list[Slot] = []
        for value in (b"online", b"offline", b"online"):
            await first.commit(Change(slots={"a": value}))
            sent += _slots(first)
        first.acknowledge_slot(sent[0])
        first.acknowledge_slot(sent[1])
        await first.remember("after", b"")
        first.rewind()
        assert [slot.payload for slot in _slots(first)] == [b"online"]
    async with open_outbox(path, 64) as second:
        assert [slot.payload for slot in _slots(second)] == [b"online"]


async def test_an_acknowledged_slot_is_not_sent_after_a_restart(path: Path) -> None:
    """The disk knows of an acknowledgment; a cleared topic is forgotten with it."""
    async with open_outbox(path, 64) as first:
        await first.commit(Change(slots={"a": b"v", "b": b""}))
        for slot in _slots(first):
            first.acknowledge_slot(slot)
        await asyncio.wait_for(first.flushed(), DEADLINE_S)
        assert await first.known_topics() == ["a"]
    async with open_outbox(path, 64) as second:
        assert _slots(second) == []


async def test_a_refused_slot_does_not_hold_up_the_end(outbox: Outbox) -> None:
    """What the broker does not take is not waited for when the program ends."""
    await outbox.commit(Change(slots={"a": b"v"}))
    flushed = asyncio.create_task(outbox.flushed())
    for slot in _slots(outbox):
        outbox.refuse_slot(slot)

    await asyncio.wait_for(flushed, DEADLINE_S)


async def test_what_the_broker_refuses_is_set_aside_once(outbox: Outbox, path: Path) -> None:
    """It leaves the line, and is kept for a person; refused again after a lost connection it is there once."""
    await outbox.commit(change("bad", "good"))
    bad, _ = await take_all(outbox)
    outbox.set_aside(bad, "Not authorized")
    outbox.set_aside(bad, "Not authorized")
    await until(lambda: not outbox._insisting)

    assert outbox.depth == 1
    assert outbox.in_hand == 1
    assert rows(path, "SELECT topic, reason, payload FROM aside") == [("agents/101/event", "Not authorized", b"bad")]


async def test_setting_aside_waits_for_room(outbox: Outbox, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D4: on a full disk the entry is set aside later, and does not keep its place in the window for ever."""
    monkeypatch.setattr(outbox_module, "_INSIST_S", 0.02)
    await outbox.commit(change("bad"))
    (bad,) = await take_all(outbox)
    with monkeypatch.context() as full:
        _refuse_writing(full)
        outbox.set_aside(bad, "why")
        await until(lambda: not outbox.writable)
        assert outbox.in_hand == 1
    await until(lambda: outbox.in_hand == 0)

    assert outbox.depth == 0
    assert rows(path, "SELECT payload FROM aside") == [(b"bad",)]


def test_what_is_kept_for_a_person_does_not_fill_the_disk(path: Path) -> None:
    """Only the newest refused messages and unreadable answers are kept."""
    kept = Unreadable(work_no="1", reason="r", head=b"", size_bytes=1, at=1.0)
    with Database(path, 64) as database:
        database.run([lambda d: d.store([(Change(unreadable=kept), [])] * (UNREADABLE_KEPT + 5))])
        entry = Entry(1, 1.0, Outgoing(topic="t", payload=b"p"))
        database.run(
            [
                work
                for _ in range(ASIDE_KEPT + 5)
                for work in (
                    partial(Database.store, changes=[(Change(), [entry])]),
                    partial(Database.set_aside, entry=entry, reason="r", at=1.0),
                )
            ]
        )
    assert rows(path, "SELECT count(*) FROM unreadable") == [(UNREADABLE_KEPT,)]
    assert rows(path, "SELECT count(*) FROM aside") == [(ASIDE_KEPT,)]


async def test_a_change_that_does_not_fit_is_refused_and_others_go_on(path: Path) -> None:
    """D4: at `storage.max_mb` storing is refused, reading and deleting go on, and then there is room again."""
    async with open_outbox(path, 8) as outbox:
        stored = 0
        with contextlib.suppress(StorageFullError):
            while stored < 100:
                await outbox.commit(change(str(stored), size=200_000))
                stored += 1
        assert 20 < stored < 100
        assert outbox.writable is False
        assert (await outbox.measure())[1] > 4_000_000
        assert await outbox.recall("nothing") is None

        for entry in await take_all(outbox):
            outbox.acknowledge(entry.row)
        await until(lambda: outbox.depth == 0 and outbox.writable)

        await outbox.commit(change("again", size=200_000))
        assert len(await take_all(outbox)) == 1


async def test_what_is_kept_of_a_backlog_never_stops_its_removal(path: Path) -> None:
    """D4, D4a: a line that fills the file empties, although large events then take the place of small retained ones."""
    agents = [f"agents/{number}/event" for number in range(300)]

    def events(size: int) -> list[Change]:
        return [Change(outgoing=[Outgoing(topic=topic, payload=bytes(size), retain=True)]) for topic in agents]

    async with open_outbox(path, 8) as outbox:
        for each in events(100):
            await outbox.commit(each)
        for entry in await take_all(outbox):
            outbox.acknowledge(entry.row)
        await until(lambda: outbox.depth == 0)
        with contextlib.suppress(StorageFullError):
            for each in events(1200) * 50:
                await outbox.commit(each)
        assert not outbox.writable

        while entries := await outbox.next(20):
            for entry in entries:
                outbox.acknowledge(entry.row)
            await until(lambda: outbox.in_hand == 0)

        await outbox.commit(change("again"))
    assert rows(path, "SELECT page_count * page_size < 10000000 FROM pragma_page_count, pragma_page_size") == [(1,)]


async def test_deletions_do_not_share_the_fate_of_what_does_not_fit(path: Path) -> None:
    """D4: who wants to store more than there is room for does not keep the deletions from making room."""
    async with open_outbox(path, 8) as outbox:
        await outbox.commit(change("1", "2"))
        entries = await take_all(outbox)
        refused = asyncio.create_task(outbox.commit(change("too much", size=10_000_000)))
        await asyncio.sleep(0)
        for entry in entries:
            outbox.acknowledge(entry.row)
        with pytest.raises(StorageFullError):
            await refused
        assert outbox.depth == 2
        with pytest.raises(StorageFullError):
            await outbox.commit(change("too much", size=10_000_000))

        assert outbox.depth == 0


async def test_deletions_that_cannot_be_stored_do_not_hold_up_a_verdict(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D4: where not even deletions go through, who wants to store is told so at once, and the loop does not spin."""
    monkeypatch.setattr(writer_module, "_RETRY_S", 0.05)
    await outbox.commit(change("1", "2"))
    entries = await take_all(outbox)
    tries = _refuse_writing(monkeypatch)
    outbox.acknowledge(entries[0].row)
    await until(lambda: not outbox.writable)

    for _ in range(3):
        with pytest.raises(StorageFullError):
            await asyncio.wait_for(outbox.commit(change("3")), 1.0)
    tried = len(tries)
    await asyncio.sleep(0.3)

    assert len(tries) - tried < 10
    monkeypatch.undo()
    await until(lambda: outbox.depth == 1)
    await outbox.commit(change("3"))


async def test_what_nobody_keeps_is_stored_when_there_is_room(
    outbox: Outbox, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`insist` returns at once on a full disk, and the change is stored later."""
    monkeypatch.setattr(outbox_module, "_INSIST_S", 0.02)
    with monkeypatch.context() as full:
        _refuse_writing(full)
        await outbox.insist(change("result"))
        assert outbox.depth == 0
    await until(lambda: outbox.depth == 1)

    assert rows(path, "SELECT payload FROM entry") == [(b"result",)]


async def test_closing_does_not_wait_for_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program ends on a full disk, too."""
    async with asyncio.timeout(DEADLINE_S):
        async with open_outbox(path, 64) as outbox:
            await outbox.commit(change("1"))
            (entry,) = await take_all(outbox)
            _refuse_writing(monkeypatch)
            await outbox.insist(change("2"))
            outbox.acknowledge(entry.row)
    assert rows(path, "SELECT payload FROM entry") == [(b"1",)]


async def test_the_age_counts_from_when_it_came(outbox: Outbox) -> None:
    """An event that waited for room is as old as it is: it goes out as replayed, and health shows its age."""
    await outbox.commit(change("late", made_at=time.time() - 60))

    (entry,) = await take_all(outbox)

    assert time.time() - entry.made_at >= 60
    assert (await outbox.measure())[0] >= 60


async def test_a_cancelled_caller_harms_nobody(outbox: Outbox) -> None:
    """A commit that was handed in is stored, though its caller is gone."""
    abandoned = asyncio.create_task(outbox.commit(change("abandoned")))
    await asyncio.sleep(0)
    abandoned.cancel()
    await outbox.commit(change("next"))

    assert texts(await take_all(outbox)) == ["abandoned", "next"]


async def test_a_repeated_command_finds_the_first(outbox: Outbox) -> None:
    """C4: the first command under an id is given instead of the repeat; forgotten after its hour."""
    first = CommandRecord(work_no="101", kind="calldata", id="c", body=b"x", received_at=1.0)
    repeat = CommandRecord(work_no="101", kind="calldata", id="c", body=b"y", received_at=2.0)
    other = CommandRecord(work_no="101", kind="session", id="c", body=b"y", received_at=2.0)
    done = CommandRecord(
        work_no="101", kind="calldata", id="c", body=b"", received_at=1.0, result=b"{}", finished_at=100.0
    )

    assert await outbox.admit(first) is None
    assert await outbox.admit(repeat) == first
    assert await outbox.admit(other) is None
    await outbox.commit(Change(commands=[done]))
    assert await outbox.admit(repeat) == done
    await outbox.forget_commands(100.5, keep=10)
    assert await outbox.admit(repeat) is None


async def test_agents_are_forgotten(path: Path) -> None:
    """An agent that left the configuration leaves no GUID behind."""
    async with open_outbox(path, 64) as outbox:
        await outbox.commit(Change(agent=AgentRecord(work_no="101", guid="G")))
        await outbox.commit(Change(forgotten=("101",)))

    assert rows(path, "SELECT * FROM agent") == []


async def test_a_second_one_in_this_process_is_refused(outbox: Outbox, path: Path) -> None:
    """D5: also within one process."""
    await outbox.remember("k", b"v")
    with pytest.raises(StorageInUseError, match="in use by another process"):
        async with open_outbox(path, 64):
            pass


async def test_a_second_process_is_refused(outbox: Outbox, path: Path) -> None:
    """D5: and the lock goes with its process, however that ends."""
    await outbox.remember("k", b"v")
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom adapter.store.database import Database\n"
        "from adapter.errors import StorageInUseError\n"
        "try:\n    Database(Path(sys.argv[1]), 64)\nexcept StorageInUseError as error:\n    sys.exit(str(error))\n"
        "os.kill(os.getpid(), 9)\n"
    )

    def attempt(place: Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([sys.executable, "-c", code, str(place)], check=False, capture_output=True, text=True)

    refused = await asyncio.to_thread(attempt, path)
    killed = await asyncio.to_thread(attempt, path.with_name("other.db"))

    assert (refused.returncode, "in use" in refused.stderr) == (1, True)
    assert killed.returncode == -9
    Database(path.with_name("other.db"), 64).close()


def test_a_reader_of_the_heartbeat_does_not_keep_the_adapter_out(path: Path) -> None:
    """Health checks hold the lock for an instant, longer on a busy machine; a start at that instant succeeds."""
    Lock(path).release()
    held = os.open(path.with_name(path.name + ".lock"), os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    timer = threading.Timer(0.2, os.close, [held])
    timer.start()

    Lock(path).release()
    timer.join()


def test_the_lock_carries_a_heartbeat(path: Path) -> None:
    """`ccgateway2mqtt health` reads it while the process lives: at first empty, then the last one, then nothing."""
    assert Lock.read(path) is None
    with Database(path, 64) as database:
        assert Lock.read(path) == {}
        database.lock.beat({"at": "2026-01-01T00:00:00.000Z", "writable": True})
        database.lock.beat({"at": "x"})
        assert Lock.read(path) == {"at": "x"}
        os.pwrite(database.lock._descriptor, b"[1]".ljust(256), 0)
        assert Lock.read(path) == {}
    assert Lock.read(path) is None
    path.with_name(path.name + ".lock").write_text('{"at": "of a process that was killed"}')
    with Database(path, 64):
        assert Lock.read(path) == {}


def test_files_are_for_their_owner_alone(path: Path) -> None:
    """Section 8: GUIDs are in there."""
    with Database(path, 64) as database:
        database.run([lambda d: d.set_meta("k", b"v")])
        files = sorted(path.parent.glob("outbox.db*"))
        assert [file.name for file in files] == ["outbox.db", "outbox.db-shm", "outbox.db-wal", "outbox.db.lock"]
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


@pytest.mark.parametrize("damage", ["header", "page"])
def test_a_damaged_file_is_set_aside(path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """D6: renamed, said loudly, and a new one begun."""
    with Database(path, 64) as database:
        large = change(*["x" * 3000] * 100)
        database.run([lambda d: d.store([(large, large.entries(1))])])
    broken = bytearray(path.read_bytes())
    if damage == "header":
        broken[:100] = b"no database".ljust(100)
    else:
        for page in range(5, len(broken) // 4096, 3):
            broken[page * 4096 : page * 4096 + 200] = bytes([0xA5]) * 200
    path.write_bytes(broken)

    with Database(path, 64) as database:
        assert database.depth() == (0, None)

    aside = [file for file in path.parent.glob("outbox.db.damaged-*") if not file.name.endswith(("-wal", "-shm"))]
    assert [file.read_bytes() for file in aside] == [bytes(broken)]
    assert "is damaged" in caplog.text


def test_a_newer_schema_is_refused_and_the_lock_is_free_again(path: Path) -> None:
    """A file of a newer version is left alone."""
    with contextlib.closing(sqlite3.connect(path)) as newer:
        newer.execute("PRAGMA user_version = 99")

    for _ in range(2):
        with pytest.raises(StorageError, match=r"newer version of this program \(schema 99\)"):
            Database(path, 64)


@pytest.mark.parametrize("what", ["directory", "foreign", "tables", "lock"])
def test_what_cannot_be_used_is_said(path: Path, what: str) -> None:
    """A place that is no file of ours ends the start with one error, and is not touched."""
    if what == "directory":
        path.mkdir()
    elif what == "lock":
        path = path.parent / "missing" / "outbox.db"
    else:
        with contextlib.closing(sqlite3.connect(path)) as foreign:
            foreign.execute("CREATE TABLE meta (a)")
            foreign.execute(f"PRAGMA user_version = {1 if what == 'tables' else 0}")

    with pytest.raises(StorageError, match=r"cannot be (used|opened)"):
        Database(path, 64)


async def test_a_file_that_cannot_be_read_is_a_storage_error(outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's own exceptions end at the port."""

    def broken(_: Database) -> tuple[int, float | None]:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(Database, "depth", broken)
    with pytest.raises(StorageError, match="cannot be read: disk I/O error"):
        await outbox.measure()


def test_half_a_transaction_is_none(path: Path) -> None:
    """A work that fails takes the others of its transaction with it."""
    with Database(path, 64) as database:

        def faulty(_: Database) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            database.run([lambda d: d.set_meta("k", b"v"), faulty])
        assert database.meta("k") is None


def _slots(outbox: Outbox) -> list[Slot]:
    taken: list[Slot] = []
    while (slot := outbox.next_slot()) is not None:
        taken.append(slot)
    return taken


def _refuse_writing(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let every transaction end as on a full disk; gives the times of the tries."""
    tries: list[float] = []

    def full(self: Database, _: object) -> list[object]:
        tries.append(time.monotonic())
        raise StorageFullError(str(self._path), "database or disk is full")

    monkeypatch.setattr(Database, "run", full)
    return tries
