"""One member's place in the fleet, on a real NATS server (issue 6, points 2, 3 and 6)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from adapter.clock import lasting_time
from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine
from adapter.cluster.entry import content_of
from adapter.cluster.membership import Membership
from adapter.config import Config, load
from adapter.errors import ClusterConflictError, ClusterUnavailableError, StartError
from tests.adapter_support import write
from tests.cluster_journal_support import Line, config_of, engine_of
from tests.cluster_support import KEY, known, servers, until

HOLD_S = 0.5
LEASE_S = HOLD_S + 5.0


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> Config:
    values = {
        "gateway": {"url": "http://127.0.0.1:1", "allow_http": True, "hold": 10},
        "mqtt": {"url": "mqtt://127.0.0.1:1"},
        "instance": "a",
        "agents": [{"work_no": work_no, "guid": "g"} for work_no in ("101", "102")],
        "cluster": {"url": "nats://127.0.0.1:1", "name": "test", "key": KEY, "replicas": 1},
    }
    made = load(write(tmp_path, values))
    return replace(made, gateway=replace(made.gateway, hold_s=HOLD_S))


def member(engine: Engine, config: Config, storage: str, key: str = KEY) -> Membership:
    """Make a member."""
    return Membership(engine, Codec([key]), config, storage=storage)


@contextlib.asynccontextmanager
async def kept(membership: Membership) -> AsyncIterator[None]:
    """Keep a member's lease while the context lasts."""
    task = asyncio.create_task(membership.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_another_member_of_the_same_name_waits(tmp_path: Path, config: Config) -> None:
    """Point 2: who has another storage gets the name when the lease is surely over, and not before."""
    async with servers(tmp_path) as nats, engine_of(config_of(nats)) as engine, engine_of(config_of(nats)) as other:
        first, second = member(engine, config, "there"), member(other, config, "here")
        await first.enlist()
        renewed_at = lasting_time()
        async with kept(first):
            waiting = asyncio.create_task(second.enlist())
            await until(lambda: first._entry.count > 3)
            assert not waiting.done()
            renewed_at = max(first._asked_at.values(), default=renewed_at)
        async with asyncio.timeout(60):
            await waiting

        assert lasting_time() - renewed_at > LEASE_S
        assert not first.term.holds()
        assert second.term.valid()
        assert second.term.owner != first.term.owner


async def test_a_process_that_starts_again_is_a_member_at_once(tmp_path: Path, config: Config) -> None:
    """Point 2: who has the storage of the one before knows that this one is gone; its agents are free at once."""
    async with servers(tmp_path) as nats, engine_of(config_of(nats)) as engine:
        before, after = member(engine, config, "same"), member(engine, config, "same")
        await before.enlist()

        async with asyncio.timeout(LEASE_S - 1.0):
            await after.enlist()
        async with kept(after):
            assert await after.is_alive(after.term.owner)
            assert not await after.is_alive(before.term.owner)


async def test_who_was_struck_out_begins_another_term(tmp_path: Path, config: Config) -> None:
    """Point 3: its agents are others' by then, and no poll of the old term is permitted any more."""
    async with servers(tmp_path) as nats, engine_of(config_of(nats)) as engine:
        membership = member(engine, config, "here")
        said: list[str] = []
        membership.struck_out = lambda: said.append(f"struck out: {membership.term.valid()}")
        membership.begun = lambda: said.append("begun")
        await membership.enlist()
        old = membership.term
        async with kept(membership):
            async with asyncio.timeout(30):
                while membership.term is old:
                    found = await engine.member("a")
                    if found is not None:
                        with contextlib.suppress(Exception):
                            await engine.strike("a", found.revision)
                    await asyncio.sleep(0.05)

        assert said[:3] == ["begun", "struck out: False", "begun"]
        assert not old.valid()
        assert membership.term.owner != old.owner


async def test_a_renewal_counts_from_when_it_was_asked_for(tmp_path: Path, config: Config) -> None:
    """Point 3: others count from when they saw it; so does who hears of it only when the next one is refused."""
    async with (
        servers(tmp_path) as nats,
        Line(nats.nodes[0].port) as line,
        engine_of(config_of(nats, url=line.url)) as engine,
    ):
        membership = member(engine, config, "here")
        await membership.enlist()
        line.deaf = True
        asked_at = lasting_time()
        with pytest.raises(ClusterUnavailableError):
            await membership._renew()
        given_up_at = lasting_time()
        line.mend()

        await known(membership._renew)

        left_until = lasting_time() + membership.term.left_s()
        assert asked_at + LEASE_S <= left_until < given_up_at + LEASE_S
        found = await engine.member("a")
        assert found is not None
        assert membership._revision == found.revision


async def test_who_was_replaced_does_not_renew_the_lease_of_another(tmp_path: Path, config: Config) -> None:
    """Point 3: another term of the same name is another's, whatever it has in common with ours."""
    async with servers(tmp_path) as nats, engine_of(config_of(nats)) as engine:
        before, after = member(engine, config, "same"), member(engine, config, "same")
        await before.enlist()
        await after.enlist()
        await after._renew()

        with pytest.raises(ClusterConflictError):
            await before._renew()
        assert before._entry.count == after._entry.count


async def test_who_ends_is_not_filled_again(tmp_path: Path, config: Config) -> None:
    """Point 4: `undrain` of a member that is about to end does not make the others wait for it to take agents."""
    async with servers(tmp_path) as nats, engine_of(config_of(nats)) as engine:
        membership = member(engine, config, "here")
        await membership.enlist()
        async with kept(membership):
            heard: list[bytes] = []
            await engine.talk.listen("undrain", heard.append)
            await membership.leave_soon()
            await engine.talk.tell("undrain", b"a")
            await until(lambda: heard)
            await engine.members()  # whose answer comes behind all that was told
            assert membership.leaving
            await until(lambda: membership.others["a"].leaving)


async def test_a_member_that_is_gone_is_struck_out(tmp_path: Path, config: Config) -> None:
    """Point 3: when its lease is over, and not before; one that renews is left alone."""
    async with servers(tmp_path) as nats, engine_of(config_of(nats)) as engine:
        gone, here = member(engine, replace(config, instance="gone"), "there"), member(engine, config, "here")
        also = member(engine, replace(config, instance="also"), "also here")
        for each in (gone, here, also):
            await each.enlist()
        began = lasting_time()
        async with kept(here), kept(also):
            await until(lambda: here.sharing == ["a", "also", "gone"])
            await until(lambda: here.sharing == ["a", "also"])
            took_s = lasting_time() - began
            assert not await here.is_alive(gone.term.owner)
            assert await here.is_alive(also.term.owner)

        assert took_s > LEASE_S
        assert not gone.term.holds()


async def test_a_lease_that_cannot_be_read_is_a_lease(tmp_path: Path, config: Config) -> None:
    """Point 2: a member of a newer version may write what this one cannot read: its agents are its own all the same."""
    async with servers(tmp_path) as nats, engine_of(config_of(nats)) as engine:
        membership = member(engine, config, "here")
        await membership.enlist()
        await engine.enlist("newer", b'{"another": "version"}')

        async with kept(membership):
            assert await membership.is_alive("newer/1")
            assert not await membership.is_alive("nobody/1")


async def test_an_owner_that_was_not_seen_is_not_gone(tmp_path: Path, config: Config) -> None:
    """Point 3: only what was seen since the question counts; without a quorum nobody is gone."""
    async with servers(tmp_path, 3) as nats, engine_of(config_of(nats)) as engine:
        here, new = member(engine, config, "here"), member(engine, replace(config, instance="b"), "there")
        await here.enlist()
        async with kept(here):
            await until(lambda: here._shown > 0)
            await new.enlist()
            assert "b" not in here.others
            assert await here.is_alive(new.term.owner)
            await asyncio.gather(*(node.kill() for node in nats.nodes[1:]))
            with pytest.raises(ClusterUnavailableError, match="nobody/1 is gone is not known"):
                await here.is_alive("nobody/1")


async def test_an_owner_that_is_gone_is_asked_for_once(tmp_path: Path, config: Config) -> None:
    """Point 3: a term never comes back, so who is gone costs one renewal, however many agents it had."""
    async with servers(tmp_path) as nats, engine_of(config_of(nats)) as engine:
        membership = member(engine, config, "here")
        await membership.enlist()
        async with kept(membership):
            assert not await membership.is_alive("nobody/1")
        renewals = membership._entry.count

        assert not await membership.is_alive("nobody/1")  # by nobody who would renew
        assert membership._entry.count == renewals


async def test_who_leaves_is_gone_at_once(tmp_path: Path, config: Config) -> None:
    """Point 4: nobody waits for the end of the lease of one that said goodbye, which takes nobody else's with it."""
    async with servers(tmp_path) as nats, engine_of(config_of(nats)) as engine:
        first, second = member(engine, config, "same"), member(engine, config, "same")
        await first.enlist()
        await second.enlist()

        await first.leave()
        assert await engine.member("a") is not None
        await second.leave()

        assert await engine.member("a") is None
        assert not second.term.valid()


async def test_a_member_with_other_agents_or_another_key_is_refused(tmp_path: Path, config: Config) -> None:
    """Point 6: a different content hash is refused loudly, with what differs; so is another key."""
    other_key = "A" * 43 + "="
    async with servers(tmp_path) as nats, engine_of(config_of(nats)) as engine:
        first = member(engine, config, "there")
        await first.enlist()
        fewer = replace(config, instance="b", agents=config.agents[:1])
        async with kept(first):
            with pytest.raises(StartError, match="member a has another configuration of gateway, agents or topics"):
                await member(engine, fewer, "here").enlist()
            with pytest.raises(StartError, match=r"member a has another cluster\.key"):
                await member(engine, replace(config, instance="b"), "here", other_key).enlist()
            assert await engine.member("b") is None
            alike = replace(config, instance="b", agents=config.agents[::-1])
            await member(engine, alike, "here").enlist()


def test_what_members_have_to_have_alike(config: Config) -> None:
    """Point 6: agents, gateway and topics are hashed; what differs from machine to machine is not."""
    same = [
        replace(config, instance="b"),
        replace(config, agents=config.agents[::-1]),
        replace(config, gateway=replace(config.gateway, ca_file=Path("elsewhere.pem"))),
        replace(config, mqtt=replace(config.mqtt, url="mqtt://elsewhere")),
    ]
    others = [
        replace(config, agents=config.agents[:1]),
        replace(config, gateway=replace(config.gateway, hold_s=2.0)),
        replace(config, mqtt=replace(config.mqtt, topic_prefix="other")),
    ]

    assert {content_of(each) for each in same} == {content_of(config)}
    assert len({content_of(each) for each in [config, *others]}) == 4


async def test_who_leaves_takes_a_renewal_along_that_its_end_cut_off(tmp_path: Path, config: Config) -> None:
    """Point 4: no lease stays of a member that has left, for others to wait for; the last one says `offline`."""
    async with servers(tmp_path) as nats, engine_of(config_of(nats)) as engine:
        first = member(engine, config, "here")
        await first.enlist()
        there = await engine.member("a")
        assert there is not None
        await engine.enlist("a", there.value, replacing=there.revision)  # of which its answer was not waited for

        await first.leave()

        assert not await engine.anybody()


async def test_who_leaves_leaves_the_next_of_its_name_alone(tmp_path: Path, config: Config) -> None:
    """Point 2: a member that was struck out, and does not know it yet, ends no other one's lease."""
    async with servers(tmp_path) as nats, engine_of(config_of(nats)) as engine:
        first, second = member(engine, config, "here"), member(engine, config, "here")
        await first.enlist()
        await second.enlist()

        await first.leave()

        assert await engine.anybody()
