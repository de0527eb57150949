"""Engines and journals of members on real NATS servers, with a line between that loses answers when it is told to."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

import msgspec

from adapter.clock import lasting_time
from adapter.cluster.answers import Stored
from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine, connect
from adapter.cluster.journal import Journal
from adapter.cluster.lease import Terms
from adapter.cluster.term import Term
from adapter.config import ClusterConfig
from adapter.store.outbox import open_as
from adapter.store.records import AgentRecord, Change, Outgoing
from adapter.topics import Topics
from tests.cluster_support import KEY, Servers

LONG_S = 600.0


def config_of(nats: Servers, *, url: str | None = None, key: str = KEY, replicas: int | None = None) -> ClusterConfig:
    """Make a section `cluster`."""
    return ClusterConfig(
        urls=tuple((url or nats.url).split(",")),
        name="test",
        keys=(key,),
        username=None,
        password=None,
        credentials=None,
        ca_file=None,
        cert_file=None,
        key_file=None,
        replicas=replicas or len(nats.nodes),
        moves=1,
    )


@contextlib.asynccontextmanager
async def engine_of(config: ClusterConfig, name: str = "a") -> AsyncIterator[Engine]:
    """Connect a member."""
    async with connect(config, name) as engine:
        await engine.prepare()
        yield engine


@contextlib.asynccontextmanager
async def journal_of(
    directory: Path, config: ClusterConfig, name: str = "a", *, max_mb: int = 100
) -> AsyncIterator[tuple[Journal, Engine, Term]]:
    """Open a member's outbox, and begin a term."""
    async with engine_of(config, name) as engine:
        make = partial(Journal, engine=engine, codec=Codec(config.keys), topics=Topics("agents"))
        async with open_as(make, directory / f"{name}.db", max_mb, durable=False) as journal:
            term = Term(f"{name}/1", Terms(poll_s=0.0, length_s=LONG_S))
            term.grant(lasting_time())
            journal.begin(term)
            yield journal, engine, term


def event(record: AgentRecord, number: int) -> Change:
    """Make what an answer with an event changes."""
    payload = msgspec.json.encode({"id": f"id-{number}", "seq": number})
    topic = Topics("agents").event(record.work_no)
    return Change(agent=replace(record, seq=number), outgoing=[Outgoing(topic=topic, payload=payload, retain=True)])


async def pages(engine: Engine, work_no: str) -> list[Stored]:
    """Read all of an agent's journal."""
    found: list[Stored] = []
    place = 1
    while (page := await engine.following(work_no, place)) is not None:
        found.append(page)
        place = page.revision + 1
    return found


class Line:
    """A TCP connection to a server that loses what the server says, when it is told to.

    Attributes:
        deaf: Whether answers are lost.
        port: Where it listens.
    """

    def __init__(self, port: int) -> None:
        self.deaf = False
        self.port = 0
        self._to = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """What `cluster.url` says."""
        return f"nats://127.0.0.1:{self.port}"

    def mend(self) -> None:
        """Cut what stands, and lose nothing of what comes then."""
        self.deaf = False
        for writer in self._writers:
            writer.transport.abort()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1")
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers |= {writer, back}
        for task in (self._pass(reader, back, lossy=False), self._pass(there, writer, lossy=True)):
            running = asyncio.get_running_loop().create_task(task)
            self._tasks.add(running)
            running.add_done_callback(self._tasks.discard)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, lossy: bool) -> None:
        try:
            with contextlib.suppress(OSError):
                while piece := await reader.read(65_536):
                    if not (lossy and self.deaf):
                        writer.write(piece)
        finally:
            self._writers.discard(writer)
            writer.close()
