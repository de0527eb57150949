"""What a fleet relies on of JetStream, on real servers (issue 6, points 2 and 5)."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from adapter.cluster.engine import Engine
from adapter.errors import ClusterConflictError, ClusterTooLargeError, ClusterUnavailableError, StartError
from tests.cluster_journal_support import Line, config_of, engine_of, pages
from tests.cluster_support import known, servers, take_messages_of, until

LIMIT_BYTES = 1024 * 1024
"""What a server takes that was not told otherwise."""
SOON_S = 15.0
"""By when who asks without a quorum is told: an answer is waited for 2 s, on a busy machine somewhat longer."""


async def test_a_lease_is_changed_by_compare_and_set(tmp_path: Path) -> None:
    """Point 2: of two who see the same lease one can change it, and who has lost it cannot renew it."""
    async with servers(tmp_path) as nats, engine_of(config_of(nats)) as engine:
        first = await engine.enlist("a", b"1")
        with pytest.raises(ClusterConflictError):
            await engine.enlist("a", b"other")
        second = await engine.enlist("a", b"2", replacing=first)
        with pytest.raises(ClusterConflictError):
            await engine.enlist("a", b"other", replacing=first)
        with pytest.raises(ClusterConflictError):
            await engine.strike("a", first)
        found = await engine.member("a")
        assert found is not None
        assert (found.revision, found.value) == (second, b"2")

        await engine.strike("a", second)

        with pytest.raises(ClusterConflictError):
            await engine.enlist("a", b"3", replacing=second)
        assert await engine.member("a") is None
        assert await engine.members() == {}
        assert not await engine.anybody()
        third = await engine.enlist("a", b"3")
        assert {name: stored.revision for name, stored in (await engine.members()).items()} == {"a": third}
        assert await engine.anybody()


async def test_a_struck_out_name_can_be_taken_once(tmp_path: Path) -> None:
    """Point 2: of many who want the name of one that is gone, one gets it."""
    async with servers(tmp_path) as nats, engine_of(config_of(nats)) as engine, engine_of(config_of(nats)) as other:
        await engine.strike("a", await engine.enlist("a", b""))

        taken = await asyncio.gather(
            *(each.enlist("a", b"%d" % number) for number in range(20) for each in (engine, other)),
            return_exceptions=True,
        )

        assert sum(isinstance(one, int) for one in taken) == 1
        assert sum(isinstance(one, ClusterConflictError) for one in taken) == 39


async def test_a_journal_is_appended_to_behind_its_newest_page(tmp_path: Path) -> None:
    """Point 5: who does not know the newest page appends nothing."""
    async with servers(tmp_path) as nats, engine_of(config_of(nats)) as engine:
        subject = engine.journal("101")
        first = await engine.append(subject, b"1", after=0, message_id="1")
        with pytest.raises(ClusterConflictError):
            await engine.append(subject, b"other", after=0, message_id="other")
        await engine.append(engine.journal("102"), b"beside", after=0, message_id="beside")

        second = await engine.append(subject, b"2", after=first, message_id="2")

        assert [(page.revision, page.value) for page in await pages(engine, "101")] == [(first, b"1"), (second, b"2")]
        newest = await engine.last("101")
        assert newest is not None
        assert newest.revision == second
        assert await engine.last("103") is None


@pytest.mark.parametrize("count", [1, 3])
async def test_what_is_appended_again_is_there_once(tmp_path: Path, count: int) -> None:
    """Point 5: a repeated message has the place that it had; one server alone says that it is not the last."""
    async with servers(tmp_path, count) as nats, engine_of(config_of(nats)) as engine:
        subject = engine.journal("101")
        first = await engine.append(subject, b"1", after=0, message_id="1")
        await engine.append(subject, b"2", after=first, message_id="2")

        if count == 1:
            with pytest.raises(ClusterConflictError):
                await engine.append(subject, b"1", after=0, message_id="1")
        else:
            assert await engine.append(subject, b"1", after=0, message_id="1") == first

        assert [page.value for page in await pages(engine, "101")] == [b"1", b"2"]


async def test_a_page_alone_removes_all_before_it(tmp_path: Path) -> None:
    """Point 5: what is published goes from one agent's journal, and from nobody else's."""
    async with servers(tmp_path) as nats, engine_of(config_of(nats)) as engine:
        subject = engine.journal("101")
        first = await engine.append(subject, b"1", after=0, message_id="1")
        await engine.append(engine.journal("102"), b"beside", after=0, message_id="beside")

        second = await engine.append(subject, b"2", after=first, message_id="2", alone=True)

        assert [(page.revision, page.value) for page in await pages(engine, "101")] == [(second, b"2")]
        assert [page.value for page in await pages(engine, "102")] == [b"beside"]
        with pytest.raises(ClusterConflictError):
            await engine.append(subject, b"3", after=first, message_id="3", alone=True)
        assert [page.value for page in await pages(engine, "101")] == [b"2"]
        await engine.remove(second)
        assert await pages(engine, "101") == []
        assert [page.value for page in await pages(engine, "102")] == [b"beside"]


async def test_a_page_that_is_too_large_is_not_sent(tmp_path: Path) -> None:
    """Point 5: a server hangs up on who sends more than it takes, headers included; a new limit is heard of."""
    async with servers(tmp_path) as nats, engine_of(config_of(nats)) as engine:
        subject = engine.journal("101")
        place = await engine.append(subject, bytes(LIMIT_BYTES - 256), after=0, message_id="1" * 32)
        for size in (LIMIT_BYTES - 60, LIMIT_BYTES, LIMIT_BYTES + 1):
            with pytest.raises(
                ClusterTooLargeError, match=f"{size + 256} bytes .* take {LIMIT_BYTES}: raise max_payload"
            ):
                await engine.append(subject, bytes(size), after=place, message_id="2" * 32)
            with pytest.raises(ClusterTooLargeError):
                await engine.append_late("101", bytes(size), message_id="2" * 32)
        assert await engine.member("a") is None

        take_messages_of(nats.nodes[0], 8 * LIMIT_BYTES)

        await known(lambda: engine.append(subject, bytes(LIMIT_BYTES + 1), after=place, message_id="3"))
        assert [len(page.value) for page in await pages(engine, "101")] == [LIMIT_BYTES - 256, LIMIT_BYTES + 1]


async def test_what_comes_late_is_kept_in_order(tmp_path: Path) -> None:
    """Point 3: an answer that a former owner still has is kept apart, once, until the owner has taken it in."""
    async with servers(tmp_path) as nats, engine_of(config_of(nats)) as engine:
        await engine.append(engine.journal("101"), b"page", after=0, message_id="page")
        for number in (b"1", b"1", b"2"):
            await engine.append_late("101", number, message_id=f"late-{number.decode()}")

        assert await engine.agents("late") == await engine.agents("agent") == ["101"]
        taken = []
        while (found := await engine.next_late("101")) is not None:
            taken.append(found.value)
            await engine.remove(found.revision)

        assert taken == [b"1", b"2"]
        assert await engine.agents("late") == []
        assert [page.value for page in await pages(engine, "101")] == [b"page"]


async def test_an_answer_that_is_lost_is_not_taken_for_a_refusal(tmp_path: Path) -> None:
    """Point 2: who gets no answer knows nothing, and finds out by looking."""
    async with servers(tmp_path) as nats, Line(nats.nodes[0].port) as line:
        lossy = config_of(nats, url=line.url)
        async with engine_of(config_of(nats)) as direct, engine_of(lossy) as engine:
            first = await engine.enlist("a", b"1")
            line.deaf = True
            with pytest.raises(ClusterUnavailableError):
                await engine.enlist("a", b"2", replacing=first)
            line.mend()

            found = await direct.member("a")
            assert found is not None
            assert found.value == b"2"
            newest = await known(lambda: engine.member("a"))
            assert newest == found


async def test_hints_reach_all_members(tmp_path: Path) -> None:
    """Point 4: a member that hands an agent over need not be waited for."""
    async with servers(tmp_path) as nats, engine_of(config_of(nats)) as engine, engine_of(config_of(nats)) as other:
        heard: list[bytes] = []
        await engine.talk.listen("released", heard.append)
        await other.talk.listen("released", heard.append)
        await other.members()  # whose answer comes behind the subscription

        await engine.talk.tell("released", b"101")

        await until(lambda: heard == [b"101", b"101"])


async def test_more_replicas_than_servers_are_refused(tmp_path: Path) -> None:
    """Point 5: what is to be on three servers is not kept on one."""
    async with servers(tmp_path) as nats:
        with pytest.raises(StartError, match=r"cluster\.replicas is 3"):
            async with engine_of(config_of(nats, replicas=3)):
                raise AssertionError


async def test_without_a_quorum_nothing_is_promised(tmp_path: Path) -> None:
    """Point 5: with one of three servers left every change fails soon, and works again when another one is back."""
    async with servers(tmp_path, 3) as nats, engine_of(config_of(nats)) as engine:
        revision, other = await engine.enlist("a", b"1"), await engine.enlist("c", b"1")
        place = await engine.append(engine.journal("101"), b"1", after=0, message_id="1")
        beside = await engine.append(engine.journal("102"), b"1", after=0, message_id="beside")
        changes: list[Callable[[Engine], Awaitable[object]]] = [
            lambda engine: engine.enlist("a", b"2", replacing=revision),
            lambda engine: engine.enlist("b", b"2"),
            lambda engine: engine.strike("c", other),
            lambda engine: engine.append(engine.journal("101"), b"2", after=place, message_id="2"),
            lambda engine: engine.append_late("101", b"late", message_id="late"),
            lambda engine: engine.remove(beside),
        ]
        for node in nats.nodes[1:]:
            await node.kill()

        for change in changes:
            began = time.monotonic()
            with pytest.raises(ClusterUnavailableError):
                await change(engine)
            assert time.monotonic() - began < SOON_S

        await nats.nodes[1].start()

        async def appended() -> None:
            try:
                await engine.append(engine.journal("101"), b"2", after=place, message_id="2")
            except ClusterConflictError:  # what was asked for in vain may be on its way, or there
                newest = await engine.last("101")
                if newest is None or newest.value != b"2":
                    raise ClusterUnavailableError("on its way") from None

        await known(appended)
        assert [page.value for page in await known(lambda: pages(engine, "101"))] == [b"1", b"2"]
        assert set(await known(engine.members)) <= {
            "a",
            "b",
            "c",
        }  # what was asked for in vain may have been done since
        assert await known(lambda: engine.member("d")) is None
