"""Agents that leave a fleet's configuration: what they leave behind is published and cleared, and nothing is lost."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import yaml

from adapter.cluster.codec import Codec
from adapter.cluster.journal import Journal
from adapter.cluster.kept import command_key
from adapter.cluster.late import waiting
from adapter.cluster.pages import TakenIn
from adapter.errors import ClusterUnavailableError
from adapter.event import Event, render_event
from adapter.store.records import AgentRecord, Change, CommandRecord, Outgoing
from adapter.topics import Topics
from tests.adapter_support import decoded
from tests.broker_support import Broker, Peer, mosquitto
from tests.cluster_journal_support import config_of, engine_of, event, journal_of, pages
from tests.cluster_support import KEY, READY_S, Servers, servers, until
from tests.test_cluster import configure, events, members, polled_by, simulated

GONE = "999"
RECORD = AgentRecord(work_no=GONE, guid="a-guid-of-before")
READY = {"eventType": "AgentState_Ready", "content": None}
CODEC = Codec([KEY])


def rendered(event_id: str, seq: int) -> Outgoing:
    """Make an event as its agent's owner stores it."""
    got = Event.from_members({"eventType": msgspec.Raw(b'"AgentState_Ready"'), "workNo": msgspec.Raw(b'"999"')})
    at = datetime.now(UTC) - timedelta(hours=1)
    payload = render_event(got, event_id=event_id, seq=seq, received_at=at)
    topics = Topics("agents")
    return Outgoing(topic=topics.event(GONE), payload=payload, retain=True, stream_topic=topics.events(GONE))


async def leave_behind(directory: Path, nats: Servers) -> CommandRecord:
    """Leave what a killed member leaves of an agent: an event, one that came late, and a command; give the command."""
    command = CommandRecord(work_no=GONE, kind="calldata", id="asked", body=b"customer", received_at=0.0)
    async with journal_of(directory, config_of(nats), "killed") as (journal, engine, _):
        await journal.claim(GONE, None)
        await journal.commit(Change(agent=replace(RECORD, seq=7), outgoing=[rendered("first", 7)]))
        late = CODEC.write(RECORD, owner="frozen/1", sealed=CODEC.seal(RECORD), outgoing=[rendered("second", 7)])
        await engine.append_late(GONE, late, "late")
        await journal.admit(command)
    return command


async def kept(nats: Servers) -> list[str]:
    """List the agents of whom the servers have anything."""
    async with engine_of(config_of(nats), "looks") as engine:
        return [*await engine.agents("agent"), *await engine.agents("late")]


async def forgotten(nats: Servers, work_no: str = GONE) -> None:
    """Wait until the servers have nothing of an agent."""
    async with engine_of(config_of(nats), "looks") as engine, asyncio.timeout(READY_S):
        while work_no in [*await engine.agents("agent"), *await engine.agents("late")]:
            pass


async def test_what_an_agent_leaves_goes_out_before_it_is_forgotten(tmp_path: Path, shared_broker: Broker) -> None:
    """D1 in a fleet: an agent that left the list while no member ran loses no event, and is cleared as a whole."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        command = await leave_behind(tmp_path, nats)
        path = configure(tmp_path, simulator, shared_broker, nats, "a")
        with Peer(shared_broker, [f"agents/{GONE}/#"]) as peer:
            for name in ("state", "session", "availability"):
                await peer.publish(f"agents/{GONE}/{name}", b"left by the last owner", retain=True)
            async with members([path]):
                await forgotten(nats)
                async with engine_of(config_of(nats), "looks") as engine:
                    found = await engine.command(command_key(command))
            seen = decoded(peer.on(f"agents/{GONE}/events"))
            assert [(each["id"], each["seq"]) for each in seen] == [("first", 7), ("second", 8)]
            (result,) = decoded(peer.on(f"agents/{GONE}/calldata/result"))
            assert (result["id"], result["status"], result["reason"]) == ("asked", "rejected", "unknown agent")
            assert found is not None
            assert CODEC.open_command(found.value).result is not None
            for topic in Topics("agents").retained(GONE):
                assert peer.payloads(topic)[-1] == b""


async def test_what_is_forgotten_had_been_published(tmp_path: Path) -> None:
    """D1 in a fleet: as long as the broker has not taken what is left, it stays; whoever is next begins again."""
    with mosquitto(tmp_path) as broker:
        async with servers(tmp_path) as nats, simulated() as simulator:
            await leave_behind(tmp_path, nats)
            paths = [configure(tmp_path, simulator, broker, nats, name) for name in ("a", "b")]
            broker.stop()
            async with members(paths[:1]) as running:
                journal = running[0].app._outbox
                assert isinstance(journal, Journal)
                await until(lambda: journal.pages.owns(GONE))
                await running[0].stop()
            assert GONE in await kept(nats)
            broker.start()
            with Peer(broker, [f"agents/{GONE}/#"]) as peer:
                async with members(paths[1:]):
                    await forgotten(nats)
                seen = decoded(peer.on(f"agents/{GONE}/events"))
    assert [(each["id"], each["seq"]) for each in seen] == [("first", 7), ("second", 8)]


async def test_an_agent_is_not_forgotten_while_a_member_has_it(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 6: one member reads a shorter list first; the agent is polled by who has it still, and numbered on."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        paths = [configure(tmp_path, simulator, shared_broker, nats, name) for name in ("a", "b")]
        work_nos = {agent.work_no for agent in simulator.agents}
        with Peer(shared_broker, ["agents/#"]) as peer:
            async with members(paths) as running:
                await until(lambda: all(polled_by(running)) and set.union(*polled_by(running)) == work_nos)
                gone = min(polled_by(running)[0])
                simulator.emit(gone, READY | {"workNo": gone})
                await peer.wait_for(lambda: events(peer)[gone] == 1)

                without(paths[0], gone)
                await running[0].app.reload()
                await until(lambda: gone in polled_by(running)[1])
                simulator.emit(gone, READY | {"workNo": gone})
                await peer.wait_for(lambda: events(peer)[gone] == 2)

                without(paths[1], gone)
                await running[1].app.reload()
                await forgotten(nats, gone)
                await peer.wait_for(lambda: peer.payloads(f"agents/{gone}/state")[-1] == b"")
                assert [each["seq"] for each in decoded(peer.on(f"agents/{gone}/events"))] == [1, 2]
                assert peer.payloads(f"agents/{gone}/event")[-1] == b""
        assert simulator.violations == []


def without(path: Path, work_no: str) -> None:
    """Take an agent out of a configuration."""
    values = yaml.safe_load(path.read_text())
    values["agents"] = [agent for agent in values["agents"] if agent["work_no"] != work_no]
    path.write_text(yaml.safe_dump(values))


async def test_an_agent_that_comes_back_is_polled_at_once(tmp_path: Path) -> None:
    """C7 in a fleet: taken out while the broker is away and put back, an agent is polled, and its `seq` goes on."""
    with mosquitto(tmp_path) as broker:
        async with servers(tmp_path) as nats, simulated() as simulator:
            paths = [configure(tmp_path, simulator, broker, nats, name) for name in ("a", "b")]
            before = paths[0].read_text(), paths[1].read_text()
            gone = simulator.agents[0].work_no
            async with members(paths) as running:
                await until(lambda: gone in set.union(*polled_by(running)))
                with Peer(broker, ["agents/#"]) as peer:
                    simulator.emit(gone, READY | {"workNo": gone})
                    await peer.wait_for(lambda: events(peer)[gone] == 1)
                broker.stop()
                for path, member in zip(paths, running, strict=True):
                    without(path, gone)
                    await member.app.reload()
                strays = [member.app._fleet._strays for member in running]  # type: ignore[attr-defined] # of SharedFleet
                await until(lambda: any(gone in each.under_way for each in strays))

                for path, text, member in zip(paths, before, running, strict=True):
                    path.write_text(text)
                    await member.app.reload()
                await until(lambda: gone in set.union(*polled_by(running)))
                broker.start()
                with Peer(broker, ["agents/#"]) as peer:
                    await peer.wait_subscribed()
                    simulator.emit(gone, READY | {"workNo": gone})
                    await peer.wait_for(lambda: events(peer)[gone] == 1)
                    (found,) = decoded(peer.on(f"agents/{gone}/events"))
                    assert found["seq"] == 2
            assert simulator.violations == []


async def test_what_came_late_is_numbered_once(tmp_path: Path) -> None:
    """Point 3: who takes something in and ends before it is removed leaves it to be removed, not to be told again."""
    async with servers(tmp_path) as nats:
        late = CODEC.write(RECORD, owner="z/1", sealed=CODEC.seal(RECORD), outgoing=[rendered("late", 7)])
        async with journal_of(tmp_path, config_of(nats)) as (journal, engine, _):
            await journal.claim(GONE, None)
            await engine.append_late(GONE, late, "late")
            async for place, messages in waiting(engine, CODEC, journal, GONE):
                await journal.commit(TakenIn(agent=replace(RECORD, seq=1), outgoing=list(messages), place=place))
                break  # the end, before it is removed
            assert await engine.agents("late") == [GONE]
            for entry in await journal.next(10):
                journal.acknowledge(entry.row)
            await journal.commit(event(replace(RECORD, seq=1), 2))
            assert [Codec.read(page.value).seq for page in await pages(engine, GONE)] == [2]
            await journal.pages.release(GONE, None)
            await journal.commit(TakenIn(agent=RECORD, outgoing=list(messages), place=place))
            assert await engine.next_late(GONE, place + 1) is None, "it is there for the next owner already"

        async with journal_of(tmp_path, config_of(nats), "b") as (journal, engine, _):
            await journal.claim(GONE, await engine.last(GONE))
            assert [each async for each in waiting(engine, CODEC, journal, GONE)] == []
            assert await engine.agents("late") == []


async def test_an_agent_is_not_ours_where_what_waits_has_no_room(tmp_path: Path) -> None:
    """D4 in a fleet: with a full disk an agent is not taken over by half; it is tried again, and nothing is lost."""
    async with servers(tmp_path) as nats:
        large = Outgoing(
            topic=f"agents/{GONE}/event", payload=b'{"id": "1", "x": "%s"}' % (b"x" * 900_000), retain=True
        )
        async with journal_of(tmp_path, config_of(nats)) as (journal, engine, term):
            await journal.claim(GONE, None)
            for number in range(3):
                await journal.commit(Change(agent=replace(RECORD, seq=number + 1), outgoing=[large]))
            term.end()

        async with journal_of(tmp_path, config_of(nats), "b", max_mb=1) as (journal, engine, _):
            with pytest.raises(ClusterUnavailableError, match="cannot be put in line"):
                await journal.claim(GONE, await engine.last(GONE))
            assert not journal.pages.owns(GONE)
            assert journal.pages.doubtful == {GONE}
        async with journal_of(tmp_path, config_of(nats), "c") as (journal, engine, _):
            assert await journal.claim(GONE, await engine.last(GONE)) == replace(RECORD, seq=3)
            assert [entry.message for entry in await journal.next(10)] == [large] * 3
