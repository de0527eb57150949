"""Joining a fleet: what the program is built of where it is a member of one."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

from adapter.agent.presence import Shared
from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine, connect
from adapter.cluster.fleet import SharedFleet
from adapter.cluster.journal import Journal
from adapter.cluster.membership import Membership
from adapter.cluster.topics import MemberTopics
from adapter.config import Config
from adapter.store.outbox import open_as

_STORAGE = "cluster"
"""Under which the database remembers that it is a member's."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What a member has instead of what a program alone has.

    Attributes:
        outbox: The outbox.
        topics: The topics: those of the bridge are the member's own.
    """

    outbox: Journal
    topics: MemberTopics
    _engine: Engine
    _codec: Codec
    _membership: Membership

    def fleet(self, shared: Shared, tasks: asyncio.TaskGroup) -> SharedFleet:
        """Make the fleet."""
        return SharedFleet(shared, tasks, self._membership, self.outbox, self._engine, self._codec)


@contextlib.asynccontextmanager
async def join(config: Config) -> AsyncIterator[Joined]:
    """Become a member of the fleet that the configuration names, while the context lasts.

    Raises:
        StartError: The servers refuse it, or the other members have another configuration.
        StorageError: `storage.path` is in use or cannot be opened.
    """
    if config.cluster is None:
        raise AssertionError("nothing to join")
    topics = MemberTopics(config.mqtt.topic_prefix, config.instance)
    codec = Codec(config.cluster.keys)
    async with connect(config.cluster, config.instance) as engine:
        await engine.prepare()
        make = partial(Journal, engine=engine, codec=codec, topics=topics)
        async with open_as(make, config.storage.path, config.storage.max_mb, durable=False) as journal:
            storage = await _prepare(journal)
            membership = Membership(engine, config, storage=storage)
            await membership.enlist()
            yield Joined(journal, topics, engine, codec, membership)


async def _prepare(journal: Journal) -> str:
    """Empty the database, whose contents the journals have; give what it is known by."""
    known = await journal.recall(_STORAGE)
    storage = uuid.uuid4().hex if known is None else known.decode()
    await journal.begin_empty()
    await journal.remember(_STORAGE, storage.encode())
    return storage
