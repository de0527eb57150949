"""What a member does where its servers, its lease or a journal fail it (issue 6, points 2, 3 and 5)."""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import nats as nats_py
import pytest
import yaml

from adapter.clock import lasting_time
from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine
from adapter.cluster.fleet import SharedFleet
from adapter.cluster.journal import Journal
from adapter.cluster.lease import Terms
from adapter.cluster.term import Term
from adapter.store.outbox import open_as
from adapter.store.records import Change, Outgoing
from adapter.topics import Topics
from tests.broker_support import Broker
from tests.cluster_journal_support import config_of, engine_of
from tests.cluster_support import Servers, servers, take_messages_of, until
from tests.test_cluster import configure, members, polled_by, simulated

_LONG_S = 600.0
_AWAY_S = 3.8
"""Longer than a poll, and than an answer is waited for."""


@contextlib.asynccontextmanager
async def journal_of(directory: Path, nats: Servers) -> AsyncIterator[tuple[Journal, Engine]]:
    """Open a member's outbox on real servers, for a term of the test's."""
    config = config_of(nats)
    async with engine_of(config) as engine:
        make = partial(Journal, engine=engine, codec=Codec(config.keys), topics=Topics("agents"))
        async with open_as(make, directory / "a.db", 100, durable=False) as journal:
            yield journal, engine


def term_of(length_s: float) -> Term:
    """Begin a term whose lease was granted now."""
    term = Term("a/1", Terms(poll_s=0.0, length_s=length_s))
    term.grant(lasting_time())
    return term


async def test_a_claim_for_a_term_that_is_over_is_none(tmp_path: Path) -> None:
    """Point 3: who was struck out while a claim was on its way does not poll that agent, since others may have it."""
    async with servers(tmp_path) as nats, journal_of(tmp_path, nats) as (journal, engine):
        term = term_of(_LONG_S)
        journal.begin(term)
        claim = asyncio.create_task(journal.claim("101", None))
        await asyncio.sleep(0)
        term.end()

        assert await claim is None
        assert not journal.pages.owns("101")
        journal.begin(term_of(_LONG_S))
        assert await journal.claim("101", await engine.last("101")) is not None


async def test_what_waits_goes_out_when_the_lease_holds_again(tmp_path: Path) -> None:
    """Point 5: a lease that could not be renewed for a while holds nothing back for longer than that."""
    async with servers(tmp_path) as nats, journal_of(tmp_path, nats) as (journal, _):
        term = term_of(_LONG_S)
        journal.begin(term)
        await journal.claim("101", None)
        await journal.commit(Change(outgoing=[Outgoing(topic="t", payload=b"p")]))
        term.end()
        journal.changed.clear()
        assert await journal.next(10) == []

        term.grant(lasting_time())
        async with asyncio.timeout(30):
            await journal.changed.wait()

        assert [entry.message.topic for entry in await journal.next(10)] == ["t"]


async def test_an_event_that_is_too_large_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Point 5: its agent alone waits for who raises `max_payload`; others are polled, and the event is stored then."""
    async with servers(tmp_path) as nats, journal_of(tmp_path, nats) as (journal, engine):
        journal.begin(term_of(_LONG_S))
        record, other = await journal.claim("101", None), await journal.claim("102", None)
        assert record is not None
        assert other is not None
        event = Outgoing(topic="t", payload=bytes(2**20), retain=True)
        with caplog.at_level(logging.INFO):
            waiting = asyncio.create_task(journal.commit(Change(agent=replace(record, seq=1), outgoing=[event])))
            await until(lambda: journal.at_risk)
            assert journal.writable
            await journal.commit(Change(agent=replace(other, seq=1), outgoing=[Outgoing(topic="t", payload=b"p")]))
            assert not waiting.done()
            take_messages_of(nats.nodes[0], 2**23)
            async with asyncio.timeout(30):
                await waiting

        assert journal.at_risk == 0
        newest = await engine.last("101")
        assert newest is not None
        assert Codec.read(newest.value).outgoing == (event,)
        said = [entry.getMessage() for entry in caplog.records if entry.levelno > logging.INFO]
        assert len(said) == 1
        assert said[0].startswith("cluster: agent 101: ")
        assert "the servers take 1048576: raise max_payload" in said[0]
        assert re.search(r"cluster: back after .* s \(agent 101\)", caplog.text)


async def test_what_is_lost_at_the_end_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Point 5: what waits for a quorum goes with its process, and not without a word; what is stored is not counted."""
    async with servers(tmp_path) as nats, journal_of(tmp_path, nats) as (journal, _):
        journal.begin(term_of(_LONG_S))
        records = [await journal.claim(work_no, None) for work_no in ("101", "102", "103")]
        events = [Outgoing(topic="t", payload=b'{"id": "1"}', retain=True)] * 2
        changes = [Change(agent=replace(record, seq=1), outgoing=events) for record in records if record is not None]
        await journal.commit(changes.pop())
        await nats.nodes[0].kill()
        waiting = [asyncio.create_task(journal.commit(change)) for change in changes]
        await until(lambda: len(journal._unstored) == 2)

    await asyncio.wait(waiting)
    assert "cluster: lost at the end, since no servers stored it: 4 events of 2 agents" in caplog.text


async def test_a_hand_over_waits_for_a_quorum(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 4: an agent that could not be released in time is not left without anybody who may poll it."""
    async with servers(tmp_path, 3) as nats, simulated() as simulator:
        paths = [configure(tmp_path, simulator, shared_broker, nats, name) for name in ("a", "b")]
        work_nos = {agent.work_no for agent in simulator.agents}
        async with members(paths[:1]) as first:
            await until(lambda: polled_by(first)[0] == work_nos)
            fleet = first[0].app._fleet
            assert isinstance(fleet, SharedFleet)

            async def interrupt() -> None:
                await until(lambda: fleet._leaving)
                await asyncio.gather(*(node.kill() for node in nats.nodes[1:]))
                await asyncio.sleep(_AWAY_S)
                await asyncio.gather(*(node.start() for node in nats.nodes[1:]))

            interrupting = asyncio.create_task(interrupt())  # agents may have moved before the other has started
            async with members(paths[1:]) as second:
                await interrupting
                await until(lambda: all(polled_by([*first, *second])))
                await until(lambda: set.union(*polled_by([*first, *second])) == work_nos)


async def test_a_journal_that_cannot_be_read_is_its_agents_trouble(
    tmp_path: Path, shared_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """One agent's trouble stays its own: the others are polled, and a person is called."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        path = configure(tmp_path, simulator, shared_broker, nats, "a")
        work_nos = {agent.work_no for agent in simulator.agents}
        async with members([path]) as running:
            await until(lambda: polled_by(running)[0] == work_nos)
        client = await nats_py.connect(nats.url)
        await client.jetstream().publish("ccgateway2mqtt.test.agent.101", b"no page")
        await client.close()

        with caplog.at_level(logging.ERROR):
            async with members([path]) as running:
                await until(lambda: polled_by(running)[0] == work_nos - {"101"})
                await until(lambda: "agent 101: not polled" in caplog.text)
                assert not running[0].task.done()


async def test_an_agent_that_changes_while_it_moves_is_polled_by_one(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 3, C7: a reload that changes an agent begins no poll of it where it is being handed over."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        paths = [configure(tmp_path, simulator, shared_broker, nats, name) for name in ("a", "b")]
        work_nos = {agent.work_no for agent in simulator.agents}
        async with members(paths) as running, engine_of(config_of(nats), "operator") as engine:
            await until(lambda: all(polled_by(running)) and set.union(*polled_by(running)) == work_nos)
            fleet = running[0].app._fleet
            assert isinstance(fleet, SharedFleet)
            moving = min(polled_by(running)[0])
            await until(lambda: simulator.polling(moving))
            await engine.talk.tell("drain", b"a")
            await until(lambda: moving in fleet._leaving)
            for path, member in zip(paths, running, strict=True):
                values = yaml.safe_load(path.read_text())
                values["agents"] = [agent | {"name": "another"} for agent in values["agents"]]
                path.write_text(yaml.safe_dump(values))
                await member.app.reload()
            await until(lambda: polled_by(running) == [set(), work_nos])
            assert not fleet._running
        assert simulator.violations == []
