"""What a broker retains is complete again after it was killed, emptied or put back to an old snapshot (D4a)."""

import asyncio
import contextlib
import json
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from adapter import mark as mark_module
from adapter.agent.presence import Timing
from adapter.store import sql
from adapter.store.outbox import Outbox, open_outbox
from adapter.store.records import Change, Outgoing, Slot
from tests.adapter_support import write
from tests.broker_support import DEADLINE_S, Broker, Peer, nats
from tests.stage_support import Stage, staged

pytestmark = pytest.mark.harm

QUICK = Timing(mark_s=0.1, no_mark_s=1.0)
"""A mark soon after each change, and not long to wait for one that is not there."""

AGENT = ("event", "state", "session", "availability")
CHANGING = {"bridge/availability", "bridge/info", "bridge/health", "bridge/mark"}
RETAINED = {f"{work_no}/{name}" for work_no in ("101", "102") for name in AGENT} | CHANGING | {"bridge/agents/1"}


@contextlib.asynccontextmanager
async def two_agents(directory: Path, broker: Broker) -> AsyncIterator[Stage]:
    """Set up a stage with two agents."""
    async with staged(directory, broker, agents=["101", "102"]) as stage:
        yield stage


async def events_of_both(stage: Stage) -> None:
    """Let both agents have an event, and see it on the broker."""
    for work_no in ("101", "102"):
        await stage.polling(work_no)
        before = newest_seq(stage, work_no)
        stage.simulator.emit_sample(work_no, "AgentState_SetRest_Success")
        await stage.peer.wait_for(lambda: newest_seq(stage, work_no) > before)  # noqa: B023 - called at once


def newest_seq(stage: Stage, work_no: str) -> int:
    """Tell the number of an agent's newest event; a broker that was started again sends older ones too."""
    return max(
        (json.loads(message.payload)["seq"] for message in stage.on(f"{work_no}/event") if message.payload), default=0
    )


async def marked(stage: Stage) -> int:
    """Wait for a mark that stands for all that is published by now."""
    for _ in range(2):  # the first may have been on its way
        seen = len(stage.on("bridge/mark"))
        await stage.polling("101")
        stage.simulator.emit_sample("101", "AgentState_SetNotReady_Success")
        await stage.wait_count("bridge/mark", seen + 1)
    return int(stage.json("bridge/mark")[-1]["n"])


async def retained(stage: Stage) -> dict[str, bytes]:
    """Read what the broker retains, as a client that comes now does."""
    with Peer(stage.broker, [f"{stage.prefix}/#", "end"]) as late:
        await late.publish("end", b"")
        await late.wait_for(lambda: late.on("end"))
        return {
            message.topic.removeprefix(f"{stage.prefix}/"): message.payload
            for message in late.messages
            if message.retain
        }


async def until_retained(stage: Stage, wanted: Callable[[dict[str, bytes]], bool]) -> dict[str, bytes]:
    """Wait until what the broker retains is as wanted."""
    deadline = time.monotonic() + DEADLINE_S
    while not wanted(found := await retained(stage)):
        assert time.monotonic() < deadline, sorted(found)
    return found


def live(stage: Stage, rest: str) -> list[bytes]:
    """List what was published on a topic while the peer listened."""
    return [message.payload for message in stage.on(rest) if not message.retain]


def without_replayed(payload: bytes) -> object:
    """Read an event as it was before it went out again."""
    event = json.loads(payload)
    event.pop("replayed", None)
    return event


async def test_an_emptied_broker_has_it_all_again(tmp_path: Path, broker: Broker) -> None:
    """D4a: a broker that lost everything has every retained topic again, the event marked as replayed; no stream."""
    async with two_agents(tmp_path, broker) as stage, stage.running(timing=QUICK):
        await events_of_both(stage)
        await marked(stage)
        before = await retained(stage)
        streamed = len(stage.on("101/events"))
        broker.restart(keep_data=False)
        after = await until_retained(stage, lambda found: found.keys() >= RETAINED)

        assert set(before) == set(after) == RETAINED
        for topic in RETAINED - CHANGING - {"101/event", "102/event"}:
            assert after[topic] == before[topic], topic
        for topic in ("101/event", "102/event"):
            assert json.loads(after[topic])["replayed"] is True
            assert without_replayed(after[topic]) == without_replayed(before[topic])
        assert len(stage.on("101/events")) == streamed


async def test_a_broker_that_kept_it_is_not_sent_it_anew(tmp_path: Path, broker: Broker) -> None:
    """D4a: what was acknowledged before the mark does not go again, after a bounced broker nor at a new start."""
    async with two_agents(tmp_path, broker) as stage:
        async with stage.running(timing=QUICK) as adapter:
            await events_of_both(stage)
            await marked(stage)
            states = len(live(stage, "102/state"))
            broker.restart()
            await stage.peer.wait_subscribed()
            await marked(stage)
            assert len(live(stage, "102/event")) == 1
            assert len(live(stage, "102/state")) == states
            await adapter.stop()
        async with stage.running(timing=QUICK):
            await marked(stage)
            assert len(live(stage, "102/event")) == 1


async def test_a_broker_put_back_to_a_snapshot(tmp_path: Path, broker: Broker) -> None:
    """D4a: what is newer than the snapshot goes out again, what it holds does not, what was cleared is cleared."""
    async with two_agents(tmp_path, broker) as stage, stage.running(timing=QUICK) as adapter:
        await events_of_both(stage)
        await marked(stage)
        broker.stop()
        shutil.copytree(broker.data, tmp_path / "snapshot")
        broker.start()
        await stage.peer.wait_subscribed()
        await events_of_both(stage)
        newest = max((message.payload for message in stage.on("102/event")), key=lambda event: json.loads(event)["seq"])
        write(tmp_path, stage.values(agents=[{"work_no": "102", "guid": stage.simulator.guid("102")}]))
        await adapter.app.reload()
        for name in AGENT:
            await stage.peer.wait_for_payload(stage.topic(f"101/{name}"), b"")
        broker.stop()
        shutil.rmtree(broker.data)
        shutil.copytree(tmp_path / "snapshot", broker.data)
        broker.start()

        def mended(found: dict[str, bytes]) -> bool:
            event = found.get("102/event", b"{}")
            return without_replayed(event) == without_replayed(newest) and not any(t.startswith("101/") for t in found)

        await until_retained(stage, mended)


async def test_a_mark_of_another_history_is_no_mark(tmp_path: Path, broker: Broker) -> None:
    """D4a: a mark from beyond our own count says nothing: all goes out again, and the count goes on above it."""
    async with two_agents(tmp_path, broker) as stage:
        async with stage.running(timing=QUICK) as adapter:
            await events_of_both(stage)
            await marked(stage)
            await adapter.stop()
        broker.restart(keep_data=False)
        await stage.peer.wait_subscribed()
        await stage.send("bridge/mark", {"n": 700}, retain=True)
        async with stage.running(timing=QUICK):
            await until_retained(stage, lambda found: found.keys() >= RETAINED)
            await marked(stage)
            assert {"n": 701} in stage.json("bridge/mark")


@pytest.mark.parametrize(
    "payload", [b"x", b"{}", b"[" * 100_000, b'{"n":-1}', b'{"n":9007199254740992}', b'{"n":1e400}']
)
async def test_an_odd_mark_is_no_mark(tmp_path: Path, broker: Broker, payload: bytes) -> None:
    """D4a: whatever somebody has left there, all goes out again, and our count goes on."""
    async with two_agents(tmp_path, broker) as stage:
        async with stage.running(timing=QUICK) as adapter:
            await events_of_both(stage)
            before = await marked(stage)
            await adapter.stop()
        broker.restart(keep_data=False)
        await stage.peer.wait_subscribed()
        await stage.peer.publish(stage.topic("bridge/mark"), payload, retain=True)
        stage.peer.messages.clear()  # it is not ours, and need not keep our contract
        async with stage.running(timing=QUICK):
            await until_retained(stage, lambda found: found.keys() >= RETAINED)
            assert before < await marked(stage) < before + 10


async def test_a_forbidden_mark_is_said_and_does_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """D4a: where the broker does not let the mark be read, that is said, and all goes out again."""
    with nats(tmp_path / "nats", users={"adapter": "secret"}) as broker:
        configuration = tmp_path / "nats/nats.conf"
        allowed = configuration.read_text()
        configuration.write_text(
            allowed.replace(
                'password: "secret"', 'password: "secret", permissions: {subscribe: {deny: ["*.bridge.mark"]}}'
            )
        )
        broker.restart()
        async with two_agents(tmp_path, broker) as stage:
            async with stage.running(timing=QUICK) as adapter:
                await events_of_both(stage)
                await adapter.stop()
            configuration.write_text(allowed)
            broker.restart(keep_data=False)
            configuration.write_text(allowed)
            async with stage.running(timing=QUICK):
                await until_retained(stage, lambda found: found.keys() >= RETAINED)
    assert caplog.text.count("bridge/mark (Unspecified error); all that is retained goes out again") == 1


async def test_an_adapter_that_starts_after_its_broker_was_emptied(tmp_path: Path) -> None:
    """D4a: what is stored outlives the adapter too; with nats-server here, which is no other than Mosquitto in this."""
    with nats(tmp_path / "nats") as broker:
        async with two_agents(tmp_path, broker) as stage:
            async with stage.running(timing=QUICK) as adapter:
                await events_of_both(stage)
                await marked(stage)
                await adapter.stop()
            broker.restart(keep_data=False)
            await stage.peer.wait_subscribed()
            async with stage.running(timing=QUICK):
                await until_retained(stage, lambda found: found.keys() >= RETAINED)


async def test_a_stop_before_all_is_told_again_leaves_no_mark(tmp_path: Path, broker: Broker) -> None:
    """D4a: who stops while a broker that was emptied is still waited for tells it all at the next start."""
    async with two_agents(tmp_path, broker) as stage:
        async with stage.running(timing=QUICK) as adapter:
            await events_of_both(stage)
            await marked(stage)
            await adapter.stop()
        broker.restart(keep_data=False)
        await stage.peer.wait_subscribed()
        async with stage.running(timing=Timing(mark_s=0.1, no_mark_s=DEADLINE_S)) as adapter:
            await stage.polling("101")
            await stage.polling("102")
            await until_retained(stage, lambda found: "102/session" in found)
            await adapter.stop()
        assert "102/event" not in await retained(stage)
        async with stage.running(timing=QUICK):
            await until_retained(stage, lambda found: found.keys() >= RETAINED)


# What the outbox keeps for it.


def retained_event(payload: str) -> Change:
    """Make a change with an event."""
    return Change(outgoing=[Outgoing(topic="agents/101/event", payload=payload.encode(), retain=True)])


async def acknowledge_all(outbox: Outbox) -> None:
    """Take the whole line and have the broker acknowledge it."""
    while entries := await outbox.next(100):
        for entry in entries:
            outbox.acknowledge(entry.row)
    await asyncio.wait_for(outbox.flushed(), DEADLINE_S)


async def test_the_newest_event_stays_stored(tmp_path: Path) -> None:
    """D4a: of all events that the broker has, the newest of each topic stays; D3: none of them goes out by itself."""
    async with open_outbox(tmp_path / "o.db", 64) as outbox:
        for number in range(5):
            await outbox.commit(retained_event(str(number)))
        await acknowledge_all(outbox)
        assert outbox.next_slot() is None
        assert await outbox.offer_again(outbox.marks_since(None, outbox.draw_line()), "", 10) == "agents/101/event"
        slot = outbox.next_slot()
        assert slot is not None
        assert slot.payload == b"4"


async def test_an_acknowledgment_counts_by_its_moment(tmp_path: Path) -> None:
    """D4a: what a broker took over before the line is drawn it may lose, however late that comes to the disk."""
    async with open_outbox(tmp_path / "o.db", 64) as outbox:
        await outbox.commit(retained_event("event"))
        await outbox.commit(Change(slots={"agents/101/state": b"state"}))
        for slot in take_slots(outbox):
            outbox.acknowledge_slot(slot)
        for entry in await outbox.next(10):
            outbox.acknowledge(entry.row)

        await outbox.offer_again(outbox.marks_since(None, outbox.draw_line()), "", 10)

        assert [slot.payload for slot in take_slots(outbox)] == [b"event", b"state"]


@pytest.mark.parametrize("taken", ["before", "between", "after"])
async def test_what_waits_in_line_is_newer(tmp_path: Path, taken: str) -> None:
    """D4a, D2: an event that is offered again never goes out behind a newer one of its topic, which ends up stored."""
    async with open_outbox(tmp_path / "o.db", 64) as outbox:
        await outbox.commit(retained_event("old"))
        await acknowledge_all(outbox)
        marks = outbox.marks_since(None, outbox.draw_line())
        await outbox.commit(retained_event("new"))
        sent: list[bytes] = []
        if taken == "before":
            [entry] = await outbox.next(10)
            sent.append(entry.message.payload)
            await outbox.offer_again(marks, "", 10)
            sent += [slot.payload for slot in take_slots(outbox)]
        elif taken == "between":
            await outbox.offer_again(marks, "", 10)
            [entry] = await outbox.next(10)
            sent.append(entry.message.payload)
            sent += [slot.payload for slot in take_slots(outbox)]
        else:
            await outbox.offer_again(marks, "", 10)
            slots = take_slots(outbox)
            [entry] = await outbox.next(10)
            sent += [*(slot.payload for slot in slots), entry.message.payload]
            outbox.acknowledge_slot(slots[0])
        assert sent == ([b"old", b"new"] if taken == "after" else [b"new"])

        outbox.acknowledge(entry.row)
        await asyncio.wait_for(outbox.flushed(), DEADLINE_S)
        await outbox.offer_again(outbox.marks_since(None, outbox.draw_line()), "", 10)
        assert [slot.payload for slot in take_slots(outbox)] == [b"new"]


async def test_an_answer_that_never_came_brings_nothing_old_back(tmp_path: Path) -> None:
    """D4a, D2: an old event whose acknowledgment was lost does not go out again behind a newer one."""
    async with open_outbox(tmp_path / "o.db", 64) as outbox:
        await outbox.commit(retained_event("old"))
        await acknowledge_all(outbox)
        await outbox.commit(retained_event("new"))
        await outbox.offer_again(outbox.marks_since(None, outbox.draw_line()), "", 10)
        assert [slot.payload for slot in take_slots(outbox)] == [b"old"]
        await acknowledge_all(outbox)
        outbox.rewind()
        assert take_slots(outbox) == []


async def test_a_newer_value_is_not_replaced(tmp_path: Path) -> None:
    """D4a: a value that waits, or is sent, is newer than what the disk knows as acknowledged."""
    async with open_outbox(tmp_path / "o.db", 64) as outbox:
        await outbox.commit(Change(slots={"a": b"1", "b": b"1"}))
        for slot in take_slots(outbox):
            outbox.acknowledge_slot(slot)
        await asyncio.wait_for(outbox.flushed(), DEADLINE_S)
        outbox.show({"a": b"2"})
        sent = outbox.next_slot()
        outbox.show({"b": b"2"})
        await outbox.offer_again(outbox.marks_since(None, outbox.draw_line()), "", 10)

        assert sent is not None
        assert [(slot.topic, slot.payload) for slot in take_slots(outbox)] == [("b", b"2")]


async def test_offered_again_outlives_a_crash(tmp_path: Path) -> None:
    """D4a: what is offered again and not yet acknowledged waits at the next start, whatever mark is found then."""
    path = tmp_path / "o.db"
    async with open_outbox(path, 64) as outbox:
        await outbox.commit(Change(slots={f"t{number}": b"v" for number in range(5)}))
        while (slot := outbox.next_slot()) is not None:
            outbox.acknowledge_slot(slot)
        await asyncio.wait_for(outbox.flushed(), DEADLINE_S)
        marks = outbox.marks_since(None, outbox.draw_line())
        assert await outbox.offer_again(marks, "", 2) == "t1"
        assert await outbox.offer_again(marks, "t1", 2) == "t3"
    async with open_outbox(path, 64) as outbox:
        assert outbox.slots_waiting == 4


async def test_marks_tell_old_from_new(tmp_path: Path) -> None:
    """D4a: a broker with mark n lacks nothing that was acknowledged before n, and perhaps everything after."""
    async with open_outbox(tmp_path / "o.db", 64) as outbox:
        for number, value in enumerate(("a", "b", "c")):
            await outbox.commit(Change(slots={value: b"v"}))
            slot = outbox.next_slot()
            assert slot is not None
            outbox.acknowledge_slot(slot)
            await asyncio.wait_for(outbox.flushed(), DEADLINE_S)
            assert await outbox.advance_mark(0) == number + 1
        assert await outbox.offer_again(outbox.marks_since(3, outbox.draw_line()), "", 10) is None
        assert await outbox.offer_again(outbox.marks_since(1, outbox.draw_line()), "", 10) == "c"
        assert [slot.topic for slot in take_slots(outbox)] == ["b", "c"]
        assert await outbox.offer_again(outbox.marks_since(None, outbox.draw_line()), "", 10) == "a"


async def test_what_was_cleared_is_forgotten_in_the_end(tmp_path: Path) -> None:
    """D4a: that a topic was cleared is remembered for a week of marks, and then no more: the database does not grow."""
    path = tmp_path / "o.db"
    async with open_outbox(path, 64) as outbox:
        await outbox.commit(Change(slots={"gone": b""}))
        for slot in take_slots(outbox):
            outbox.acknowledge_slot(slot)
        await asyncio.wait_for(outbox.flushed(), DEADLINE_S)
        await outbox.advance_mark(0)
        assert await outbox.known_topics() == []
        assert await outbox.offer_again(outbox.marks_since(None, outbox.draw_line()), "", 10) == "gone"
        for slot in take_slots(outbox):
            outbox.acknowledge_slot(slot)
        await asyncio.wait_for(outbox.flushed(), DEADLINE_S)
        await outbox.advance_mark(sql.CLEARED_KEPT + 10)
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT count(*) FROM slot").fetchone() == (0,)


async def test_a_slow_broker_sets_the_pace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """D4a: no more is offered again than the broker takes: what it has not acknowledged is bounded."""
    monkeypatch.setattr(mark_module, "_SLICE", 10)
    monkeypatch.setattr(mark_module, "_SLICE_S", 0.01)
    async with open_outbox(tmp_path / "o.db", 64) as outbox:
        await outbox.commit(Change(slots={f"t{number:03}": b"v" for number in range(100)}))
        for slot in take_slots(outbox):
            outbox.acknowledge_slot(slot)
        await asyncio.wait_for(outbox.flushed(), DEADLINE_S)
        recall = asyncio.create_task(mark_module.Mark(outbox, "mark", every_s=1.0, wait_s=1.0).repeat_all())
        offered = 0
        while not recall.done():
            outbox.changed.clear()
            taken = take_slots(outbox)
            offered += len(taken)
            assert len(taken) <= 20
            for slot in taken:
                outbox.acknowledge_slot(slot)
            changed = asyncio.create_task(outbox.changed.wait())
            await asyncio.wait([changed, recall], return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
        assert offered == 100


def take_slots(outbox: Outbox) -> list[Slot]:
    """Take all newest values that wait."""
    taken = []
    while (slot := outbox.next_slot()) is not None:
        taken.append(slot)
    return taken
