"""Between a database of a program alone and the journals of a fleet: nothing is lost on the way (issue 6, point 6)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from adapter.cluster import join, moving_in
from adapter.cluster.answers import asked
from adapter.cluster.codec import Codec, Page
from adapter.cluster.engine import Engine, connect
from adapter.cluster.leaving import leave
from adapter.cluster.moving_in import move_in
from adapter.cluster.moving_out import move_out
from adapter.config import Config, PrivacyConfig, load
from adapter.errors import StartError
from adapter.preparation import make_mask
from adapter.simulator import Simulator
from adapter.store.database import MEMBER, Database
from adapter.store.outbox import Outbox, open_as, open_outbox
from adapter.store.records import AgentRecord, Change, CommandRecord, Entry, Outgoing, Removals
from tests.adapter_support import decoded, running, settings, write
from tests.broker_support import Broker, Peer
from tests.cli_support import invoke_beside, run_program
from tests.cluster_support import Servers, servers, until
from tests.tcp_proxy import Proxy

FLEET = "test"


def configured(directory: Path, nats: Servers, agents: tuple[str, ...] = ("101", "102")) -> Config:
    """Make a configuration of a member."""
    path = directory / "config.yaml"
    values = {
        "gateway": {"url": "https://gateway.example/agentgateway"},
        "mqtt": {"topic_prefix": "site/agents"},
        "agents": [{"work_no": work_no, "guid": "first"} for work_no in agents],
        "cluster": nats.settings(),
    }
    path.write_text(yaml.safe_dump(values))
    return load(path)


def event(work_no: str, seq: int, size_bytes: int = 0) -> Outgoing:
    """Make an event that waits."""
    members = {"eventType": "AgentState_Ready", "workNo": work_no, "content": "x" * size_bytes}
    ours = {"id": f"{work_no}-{seq}", "seq": seq, "receivedAt": "2026-01-31T12:00:00.123Z"}
    payload = msgspec.json.encode(members | ours)
    topic = f"site/agents/{work_no}/event"
    return Outgoing(topic=topic, payload=payload, retain=True, stream_topic=f"{topic}s")


def record(work_no: str, seq: int) -> AgentRecord:
    """Make what outlives a restart of an agent."""
    return AgentRecord(work_no=work_no, guid=f"guid-{work_no}", cookies=(("LB", work_no),), seq=seq, own=True)


def result(work_no: str) -> Outgoing:
    """Make a result that waits."""
    return Outgoing(topic=f"site/agents/{work_no}/calldata/result", payload=b'{"id":"c1"}', correlation=b"\x01")


class KilledError(Exception):
    """The end of the program in the middle of something."""


class Fleet:
    """A database, and the fleet that it goes to."""

    def __init__(self, config: Config, engine: Engine) -> None:
        self.config = config
        self.engine = engine
        self.codec = Codec(config.cluster.keys if config.cluster is not None else ())

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Outbox]:
        """Open the database."""
        async with open_as(Outbox, self.config.storage.path, self.config.storage.max_mb) as outbox:
            yield outbox

    async def fill(self, *changes: Change) -> None:
        """Let a program alone store something."""
        async with self.open() as outbox:
            for change in changes:
                await outbox.commit(change)

    async def move_in(self) -> None:
        """Start as a member."""
        async with self.open() as outbox:
            await move_in(outbox, self.config, self.engine, self.codec, FLEET)

    async def move_out(self) -> None:
        """Leave."""
        async with self.open() as outbox:
            await move_out(outbox, self.config, self.engine, self.codec, FLEET)

    async def pages(self, work_no: str) -> list[Page]:
        """Read all that is in an agent's journal."""
        found, place = [], 1
        while (stored := await self.engine.following(work_no, place)) is not None:
            found.append(self.codec.read(stored.value))
            place = stored.revision + 1
        return found

    async def late(self, work_no: str) -> list[Outgoing]:
        """Read what came late of an agent."""
        found: list[Outgoing] = []
        place = 1
        while (stored := await self.engine.next_late(work_no, place)) is not None:
            found += self.codec.read(stored.value).outgoing
            place = stored.revision + 1
        return found

    async def line(self) -> list[Outgoing]:
        """Read what waits in the database."""
        async with open_outbox(self.config.storage.path, 1024) as outbox:
            return [entry.message for entry in await outbox.next(10_000)]


@contextlib.asynccontextmanager
async def fleet(directory: Path) -> AsyncIterator[Fleet]:
    """Have a database and a fleet, which nobody is a member of."""
    async with servers(directory) as nats:
        config = configured(directory, nats)
        assert config.cluster is not None
        async with connect(config.cluster, "a") as engine:
            await engine.prepare()
            yield Fleet(config, engine)


async def test_there_and_back(tmp_path: Path) -> None:
    """Agents, what waits of them in its order, and commands come back as they went; in between nobody else begins."""
    pending = CommandRecord(work_no="101", kind="calldata", id="c2", body=b"secret", received_at=1.0, expires_at=2.0)
    done = replace(pending, id="c1", body=b"", result=b"{}", finished_at=1.5)
    async with fleet(tmp_path) as made:
        ours = [event("101", 1), result("101"), event("101", 2)]
        published = Removals(rows=(), kept=((1, Entry(0, 0.0, event("102", 7))),), slots=())
        await made.fill(
            Change(agent=record("101", 2), outgoing=ours, commands=[done, pending]), Change(agent=record("102", 7))
        )
        async with made.open() as outbox:
            await outbox.read(lambda database: database.forget_acknowledged(published))
        await made.move_in()
        assert [page.newest for page in await made.pages("102")] == [event("102", 7).payload]
        pages = await made.pages("101")
        assert [(page.owner, page.seq, list(page.outgoing)) for page in pages] == [("", 2, ours)]
        assert made.codec.agent("101", pages[0]) == record("101", 2)
        with pytest.raises(StartError, match="ccgateway2mqtt cluster leave") as refused:
            await made.line()
        assert refused.value.exit_code == 2
        await made.move_in()
        assert len(await made.pages("101")) == 1, "once is enough"

        await made.move_out()
        assert await made.line() == ours
        async with made.open() as outbox:
            newest = await outbox.read(partial(Database.newest_value, topic="site/agents/102/event"))
            assert newest == event("102", 7).payload, "for a broker that loses it (D4a)"
            assert outbox.agents == {"101": record("101", 2), "102": record("102", 7)}
            assert outbox.pending == [pending]
            assert await outbox.admit(replace(done, result=None, body=b"again")) == done
        with pytest.raises(StartError, match="has not come to its end"):
            await made.move_in()


async def test_it_goes_on_after_a_kill_in_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended at any write to the servers, the next start brings each event to its journal once, in its order."""
    monkeypatch.setattr(moving_in, "_PART_BYTES", 1000)
    async with fleet(tmp_path) as made:
        outgoing = {work_no: [event(work_no, seq, 400) for seq in range(1, 9)] for work_no in ("101", "102")}
        changes = [Change(agent=record(work_no, 8), outgoing=each) for work_no, each in outgoing.items()]
        await made.fill(*changes)
        append, left = made.engine.append, 0

        async def killed(*args: Any, **members: Any) -> int:  # noqa: ANN401 - what `append` takes
            nonlocal left
            if not left:
                raise KilledError
            left -= 1
            place = await append(*args, **members)
            if not left:  # stored, and nobody has heard of it
                raise KilledError
            return place

        monkeypatch.setattr(made.engine, "append", killed)
        for kill in (1, 2, 3):
            left = kill
            with pytest.raises(KilledError):
                await made.move_in()
        monkeypatch.setattr(made.engine, "append", append)
        await made.move_in()
        for work_no, each in outgoing.items():
            pages = await made.pages(work_no)
            assert len(pages) > 2
            assert [message for page in pages for message in page.outgoing] == each
            assert pages[-1].seq == 8
            assert all(msgspec.json.decode(page.outgoing[-1].payload)["seq"] == page.seq for page in pages)


async def test_a_journal_that_is_there_is_not_written_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where the fleet knows an agent already, what waits goes there as late, the database is kept, and that is said."""
    async with fleet(tmp_path) as made:
        there, sealed = [event("101", 40)], made.codec.seal(record("101", 40))
        # Taken in by an owner who was struck out before it could be removed.
        await made.engine.append_late(
            "101", made.codec.write(record("101", 39), owner="a/1", sealed=sealed, outgoing=there), "y"
        )
        taken = await made.engine.next_late("101")
        assert taken is not None
        late = taken.revision
        theirs = made.codec.write(record("101", 40), owner="b/1", sealed=sealed, outgoing=there, late=late)
        await made.engine.append(made.engine.journal("101"), theirs, after=0, message_id="x")
        await made.fill(Change(agent=record("101", 2), outgoing=[event("101", 2)]))
        await made.move_in()
        assert [page.seq for page in await made.pages("101")] == [40]
        assert await made.late("101") == [*there, event("101", 2)]
        assert "agent 101: the fleet has a journal of it" in caplog.text
        (copy,) = tmp_path.glob("ccgateway2mqtt.db.kept-*")  # noqa: ASYNC240 - one look at a directory of the test's
        assert copy.stat().st_mode & 0o077 == 0
        with Database(copy, 100) as kept:
            assert kept.agents() == {"101": record("101", 2)}

        await made.move_out()
        first, back = await made.line()
        assert first == event("101", 40)
        seen = msgspec.json.decode(back.payload)
        assert (seen["id"], seen["seq"]) == ("101-2", 41), "the same id, and the next number there"


async def test_agents_that_are_not_configured_strand_nothing(tmp_path: Path) -> None:
    """What waits of an agent that nobody will poll goes out with another's, and what is retained of it is cleared."""
    async with fleet(tmp_path) as made:
        await made.fill(Change(agent=record("999", 1), outgoing=[event("999", 1)]))
        await made.move_in()
        ((first, *cleared),) = [page.outgoing for page in await made.pages("101")]
        assert first == event("999", 1)
        assert {(each.topic, each.payload, each.retain) for each in cleared} == {
            (f"site/agents/999/{name}", b"", True) for name in ("event", "state", "session", "availability")
        }
        assert not await made.pages("999")


async def test_servers_that_say_nothing_for_a_while_are_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A busy machine or a slow disk does not end the way back, which is said."""
    async with servers(tmp_path) as nats:
        config = configured(tmp_path, nats)
        assert config.cluster is not None
        async with connect(config.cluster, "a") as engine:
            await engine.prepare()
            made = Fleet(config, engine)
            await made.fill(Change(agent=record("101", 2), outgoing=[event("101", 2)]))
            await made.move_in()
            nats.nodes[0].freeze()
            moving = asyncio.create_task(made.move_out())
            await until(lambda: "moving: " in caplog.text)
            nats.nodes[0].thaw()
            await moving
            assert await made.line() == [event("101", 2)]


async def test_a_database_of_its_own_is_not_written_over(tmp_path: Path) -> None:
    """What a program alone has stored stays, where somebody would bring a fleet's agents there."""
    async with fleet(tmp_path) as made:
        await made.fill(Change(agent=record("101", 2), outgoing=[event("101", 2)]))
        with pytest.raises(StartError, match="a database of its own"):
            await made.move_out()
        assert await made.line() == [event("101", 2)]


async def test_another_fleet_is_not_left_silently(tmp_path: Path) -> None:
    """A member's database is not taken to another fleet: its agents are in the first one's journals."""
    async with fleet(tmp_path) as made:
        await made.move_in()
        async with made.open() as outbox:
            assert await outbox.recall(MEMBER)
            with pytest.raises(StartError, match="a member of another fleet"):
                await move_in(outbox, made.config, made.engine, made.codec, "other")


async def test_into_a_cluster_and_out_of_it(tmp_path: Path, broker: Broker) -> None:
    """A program alone joins a fleet, which leaves again: no event, `seq` or GUID is lost, and no member is run over."""
    async with (
        servers(tmp_path) as nats,
        Simulator(agents=["101"], hold_s=0.5, guid_interval_s=0.5) as simulator,
        Proxy(broker.ports["mqtt"]) as proxy,
    ):
        proxy.closed = True
        values = settings(simulator, broker, mqtt={"url": proxy.url})
        alone = write(tmp_path, values, "alone.yaml")
        member = write(tmp_path, values | {"cluster": nats.settings()}, "member.yaml")

        async def take_event(reason: str) -> None:
            simulator.emit_sample("101", "AgentState_SetNotReady_Success", {"reason": reason})
            await simulator.wait_for(lambda: simulator.drained("101"))

        async with running(alone) as adapter:
            await simulator.wait_for(lambda: simulator.guid("101") != values["agents"][0]["guid"])
            await take_event("1")
            await adapter.stop()
        polls = len(simulator.polls("101"))
        guid = simulator.guid("101")
        async with running(member) as adapter:
            await take_event("2")
            assert simulator.polls("101")[polls].guid == guid
            other = load(write(tmp_path, values | {"cluster": nats.settings(), "storage": {"path": "b.db"}}, "b.yaml"))
            with pytest.raises(StartError, match="stop all members first: main run"):
                await leave(other, lambda _: None)
            await adapter.stop()
        refused = await run_program("run", "-c", alone)
        assert refused.process.returncode == 2
        assert "ccgateway2mqtt cluster leave" in refused.err[-1]
        left = await invoke_beside("cluster", "leave", "-c", member)
        assert left.exit_code == 0, left.stderr
        polls = len(simulator.polls("101"))
        guid = simulator.guid("101")
        async with running(alone):
            await take_event("3")
            assert simulator.polls("101")[polls].guid == guid
            with Peer(broker, ["agents/101/events"]) as peer:
                proxy.closed = False
                await peer.wait_for(lambda: len({each["id"] for each in decoded(peer.messages)}) == 3)
                seen = {each["id"]: (each["seq"], each["content"]["reason"]) for each in decoded(peer.messages)}
        assert list(seen.values()) == [(1, "1"), (2, "2"), (3, "3")]
        assert simulator.violations == []


async def test_a_masked_number_is_the_same_from_all_members(tmp_path: Path) -> None:
    """With `privacy: {with: hash}` a number has one hash, whichever member polls the agent."""
    async with servers(tmp_path) as nats:
        config = configured(tmp_path, nats)
        made = []
        for name in ("a", "b"):
            storage = replace(config.storage, path=tmp_path / f"{name}.db")
            async with join(replace(config, instance=name, storage=storage)) as member:
                mask = await make_mask(PrivacyConfig(members=None, method="hash"), member.outbox)
                assert mask is not None
                made.append(mask.key)
        assert made[0] == made[1]


async def test_a_cancellation_is_not_forgotten() -> None:
    """Who is cancelled just as the answer comes is cancelled: else whoever waits for his end would wait for ever."""
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(asked(asyncio.wait_for(answer, 5.0)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    answer.set_result(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
