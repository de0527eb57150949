"""The outbox of a member on real NATS servers: what is lost when, and what goes out twice (issue 6, points 2, 3, 5)."""

import asyncio
import base64
from dataclasses import replace
from pathlib import Path

import pytest

from adapter.cluster import pages as pages_module
from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine
from adapter.cluster.journal import Journal
from adapter.errors import ClusterError, ClusterUnavailableError
from adapter.store.records import AgentRecord, Outgoing
from tests.cluster_journal_support import Line, config_of, engine_of, event, journal_of, pages
from tests.cluster_support import servers, until

RECORD = AgentRecord(
    work_no="101",
    guid="guid-that-nobody-may-read",
    guid_origin="origin",
    cookies=(("route", "cookie-that-nobody-may-read"),),
    state=b"state-that-all-may-read",
)


def on_disk(directory: Path) -> bytes:
    """Read all that the first server has stored."""
    return b"".join(path.read_bytes() for path in directory.glob("nats-*/n0/**/*") if path.is_file())


async def pending(engine: Engine) -> bool:
    """Say whether an agent's newest page has something to publish."""
    newest = await engine.last("101")
    return newest is not None and bool(Codec.read(newest.value).outgoing)


async def line_of(journal: Journal) -> list[Outgoing]:
    """Take all that may go out."""
    return [entry.message for entry in await journal.next(100)]


async def test_what_is_stored_survives_the_loss_of_a_server(tmp_path: Path) -> None:
    """Point 5: when `commit` returns, the event is on several servers: the one that leads may die with its disk."""
    async with servers(tmp_path, 3) as nats, journal_of(tmp_path, config_of(nats)) as (journal, engine, _):
        assert await journal.claim("101", None) is not None
        await journal.commit(change := event(RECORD, 1))
        info = await engine._jetstream.stream_info(engine._stream)
        assert info.config.num_replicas == 3
        assert info.cluster is not None
        leader = next(node for node in nats.nodes if node.name == info.cluster.leader)

        await leader.kill()

        async with asyncio.timeout(60):
            while True:
                try:
                    newest = await engine.last("101")
                except ClusterUnavailableError:
                    continue
                break
        assert newest is not None
        page = Codec.read(newest.value)
        assert (page.seq, list(page.outgoing)) == (1, change.outgoing)


async def test_who_has_lost_an_agent_keeps_what_came_for_its_owner(tmp_path: Path) -> None:
    """Point 3: an answer that a former owner still receives is kept apart, with its id, and published by the owner."""
    async with servers(tmp_path) as nats, journal_of(tmp_path, config_of(nats)) as (journal, engine, _):
        lost: list[str] = []
        heard: list[bytes] = []
        journal.pages.lost = lost.append
        await engine.talk.listen("late", heard.append)
        await journal.claim("101", None)
        async with journal_of(tmp_path, config_of(nats), "b") as (other, _, _):
            assert await other.claim("101", await engine.last("101")) is not None

            await journal.commit(change := event(RECORD, 1))

            assert lost == ["101"]
            assert not journal.pages.owns("101")
            assert await line_of(journal) == []
            late = await engine.next_late("101")
            assert late is not None
            assert list(Codec.read(late.value).outgoing) == change.outgoing
            await until(lambda: heard == [b"101"])
            assert len(await pages(engine, "101")) == 1


@pytest.mark.parametrize("count", [1, 3])
async def test_a_page_whose_acknowledgment_is_lost_is_there_once(tmp_path: Path, count: int) -> None:
    """Point 5: an event whose acknowledgment is lost is in the journal once, goes out once, and the agent is ours."""
    async with servers(tmp_path, count) as nats, engine_of(config_of(nats)) as direct:
        lines = [Line(node.port) for node in nats.nodes]
        async with lines[0]:
            # Servers tell clients of one another: this one is to know of the line alone.
            lossy = config_of(nats, url=lines[0].url)
            async with journal_of(tmp_path, lossy) as (journal, engine, _):
                engine._client._server_pool[:] = engine._client._server_pool[:1]
                await journal.claim("101", None)
                lines[0].deaf = True
                storing = asyncio.create_task(journal.commit(change := event(RECORD, 1)))
                async with asyncio.timeout(30):
                    while not await pending(direct):  # noqa: ASYNC110 - a server does not tell
                        await asyncio.sleep(0.02)
                lines[0].mend()
                async with asyncio.timeout(60):
                    await storing

                assert [list(Codec.read(page.value).outgoing) for page in await pages(direct, "101")][-1:] == [
                    change.outgoing
                ]
                assert await line_of(journal) == change.outgoing
                assert await direct.next_late("101") is None
                await journal.commit(event(RECORD, 2))
                assert journal.pages.owns("101")


async def test_a_successor_goes_on_where_the_last_owner_stopped(tmp_path: Path) -> None:
    """Point 2 and 5: what was not published goes out again with its id and `seq`; GUID, cookies, state are kept."""
    async with servers(tmp_path) as nats, journal_of(tmp_path, config_of(nats)) as (journal, engine, term):
        await journal.claim("101", None)
        changes = [event(RECORD, number) for number in (1, 2)]
        for change in changes:
            await journal.commit(change)
        term.end()

        async with journal_of(tmp_path, config_of(nats), "b") as (other, _, _):
            found = await other.claim("101", await engine.last("101"))

            assert found == replace(RECORD, seq=2)
            assert await line_of(other) == [message for change in changes for message in change.outgoing]


async def test_what_is_released_keeps_what_is_not_published(tmp_path: Path) -> None:
    """Point 4: a hand-over loses nothing that the broker has not acknowledged, and repeats nothing that it has."""
    async with servers(tmp_path) as nats, journal_of(tmp_path, config_of(nats)) as (journal, engine, _):
        for work_no in ("101", "102"):
            await journal.claim(work_no, None)
        waiting, published = event(RECORD, 1), event(replace(RECORD, work_no="102"), 1)
        await journal.commit(published)
        for entry in await journal.next(10):
            journal.acknowledge(entry.row)
        await journal.commit(waiting)

        await journal.pages.release("101", replace(RECORD, seq=1))
        await journal.pages.release("102", replace(RECORD, work_no="102", seq=1))

        assert not journal.pages.owns("101")
        assert await line_of(journal) == []
        newest = [await engine.last(work_no) for work_no in ("101", "102")]
        assert [None if stored is None else Codec.read(stored.value).owner for stored in newest] == ["", ""]
        async with journal_of(tmp_path, config_of(nats), "b") as (other, _, _):
            found = [await other.claim(work_no, await engine.last(work_no)) for work_no in ("101", "102")]
            assert found == [replace(RECORD, seq=1), replace(RECORD, work_no="102", seq=1)]
            assert await line_of(other) == waiting.outgoing


async def test_only_what_is_published_is_tidied_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point 5: a page goes when all that it has to publish is acknowledged, not before."""
    monkeypatch.setattr(pages_module, "_TIDY_S", 0.0)
    async with servers(tmp_path) as nats, journal_of(tmp_path, config_of(nats)) as (journal, engine, _):
        await journal.claim("101", None)
        changes = [event(RECORD, number) for number in (1, 2)]
        for change in changes:
            await journal.commit(change)
        first, second = await journal.next(10)
        journal.acknowledge(first.row)
        await journal.pages.tidy()
        kept = [message for page in await pages(engine, "101") for message in Codec.read(page.value).outgoing]
        assert kept == [message for change in changes for message in change.outgoing]

        journal.acknowledge(second.row)
        await journal.pages.tidy()

        (page,) = [Codec.read(stored.value) for stored in await pages(engine, "101")]
        assert (page.seq, page.outgoing, page.newest) == (2, (), changes[1].outgoing[0].payload)
        assert page.owner == "a/1"

        await journal.commit(event(RECORD, 3))
        (third,) = await journal.next(10)
        journal.acknowledge(third.row)
        await journal.commit(change := event(RECORD, 4))
        await journal.pages.tidy()
        kept = [message for page in await pages(engine, "101") for message in Codec.read(page.value).outgoing]
        assert kept == change.outgoing


async def test_the_next_event_tidies_what_is_published(tmp_path: Path) -> None:
    """Point 5: a journal does not grow by what the broker has."""
    async with servers(tmp_path) as nats, journal_of(tmp_path, config_of(nats)) as (journal, engine, _):
        await journal.claim("101", None)
        for number in range(1, 5):
            await journal.commit(event(RECORD, number))
            for entry in await journal.next(10):
                journal.acknowledge(entry.row)

        (page,) = await pages(engine, "101")
        assert Codec.read(page.value).seq == 4


async def test_nothing_goes_out_without_a_lease(tmp_path: Path) -> None:
    """Point 3: whose lease is over publishes nothing of an agent, since another may do so."""
    async with servers(tmp_path) as nats, journal_of(tmp_path, config_of(nats)) as (journal, _, term):
        await journal.claim("101", None)
        change = event(RECORD, 1)
        change.slots["agents/101/state"] = b"{}"
        await journal.commit(change)

        term.end()

        assert await journal.next(10) == []
        assert journal.next_slot() is None


async def test_secrets_are_stored_sealed(tmp_path: Path) -> None:
    """Point 2: no byte that the servers keep tells a GUID or a cookie; another key opens none."""
    async with servers(tmp_path) as nats:
        async with journal_of(tmp_path, config_of(nats)) as (journal, engine, _):
            await journal.claim("101", None)
            await journal.commit(event(RECORD, 1))
            await journal.pages.release("101", replace(RECORD, guid="another-guid-that-nobody-may-read"))
            stored = b"".join(page.value for page in await pages(engine, "101"))
        kept = on_disk(tmp_path)
        assert b"state-that-all-may-read" in kept
        assert b"state-that-all-may-read" in stored
        assert b"nobody-may-read" not in kept + stored
        other = base64.urlsafe_b64encode(bytes(32)).decode()

        async with journal_of(tmp_path, config_of(nats, key=other), "b") as (journal, engine, _):
            with pytest.raises(ClusterError, match=r"GUID of agent 101 was sealed with another cluster\.key"):
                await journal.claim("101", await engine.last("101"))
            assert not journal.pages.owns("101")


async def test_an_event_that_waits_for_a_quorum_outlives_its_poller(tmp_path: Path) -> None:
    """Point 5: what waits for servers is stored when they are back, also where its agent is handed over meanwhile."""
    async with servers(tmp_path) as nats, journal_of(tmp_path, config_of(nats)) as (journal, engine, _):
        await journal.claim("101", None)
        nats.nodes[0].freeze()
        storing = asyncio.create_task(journal.commit(change := event(RECORD, 1)))
        await asyncio.wait([storing], timeout=0.5)
        storing.cancel()
        await asyncio.wait([storing])
        with pytest.raises(ClusterUnavailableError):
            await journal.pages.release("101", replace(RECORD, seq=1))
        asked: list[bool] = []

        def waits() -> bool:
            asked.append(True)
            return True

        releasing = asyncio.create_task(journal.pages.release("101", replace(RECORD, seq=1), waits=waits))
        await until(lambda: asked)

        nats.nodes[0].thaw()
        async with asyncio.timeout(60):
            await releasing

        found = [Codec.read(page.value) for page in await pages(engine, "101")]
        assert [message for page in found for message in page.outgoing] == change.outgoing
        assert (found[-1].owner, found[-1].seq) == ("", 1)


async def test_a_page_on_its_way_is_not_taken_for_another_owner(tmp_path: Path) -> None:
    """Point 3: who is refused while its own page is still the newest asks again: nobody has the agent yet."""
    async with servers(tmp_path) as nats, journal_of(tmp_path, config_of(nats)) as (journal, engine, _):
        await journal.claim("101", None)
        lost: list[str] = []
        journal.pages.lost = lost.append
        append, refused = engine.append, list[int]()

        async def refused_once(*args: object, **more: object) -> int:
            if not refused:
                refused.append(1)
                return await append(engine.journal("101"), b"", after=0, message_id="a place that is not the last")
            return await append(*args, **more)  # type: ignore[arg-type] # as it came

        engine.append = refused_once  # type: ignore[method-assign] # what a server does for some milliseconds

        await journal.commit(change := event(RECORD, 1))

        assert lost == []
        assert await line_of(journal) == change.outgoing
