"""Joining a fleet: what the program is built of where it is a member of one."""

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from functools import partial

from adapter.agent.presence import Shared
from adapter.bridge import Request
from adapter.cluster.codec import Codec
from adapter.cluster.commands import SharedCommands
from adapter.cluster.engine import Engine, connect
from adapter.cluster.fleet import SharedFleet
from adapter.cluster.journal import Journal
from adapter.cluster.membership import Membership
from adapter.cluster.moving_in import move_in
from adapter.cluster.requests import FleetRequests
from adapter.cluster.speaker import Speaker
from adapter.cluster.topics import MemberTopics
from adapter.config import Config
from adapter.fleet import Fleet
from adapter.intake import Flood
from adapter.privacy import KEY
from adapter.role import Figures, Stage, Voice
from adapter.store.database import MEMBER
from adapter.store.outbox import open_as
from adapter.subscriber import Subscription


class Member:
    """A member of a fleet: the role of a program that is not alone.

    Args:
        name: The fleet's.

    Attributes:
        outbox: The outbox.
        topics: The topics: those of the bridge are the member's own.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what it ties together
        self, name: str, outbox: Journal, topics: MemberTopics, engine: Engine, codec: Codec, membership: Membership
    ) -> None:
        self._name = name
        self.outbox = outbox
        self.topics = topics
        self._engine = engine
        self._codec = codec
        self._membership = membership
        self._fleet: SharedFleet
        self._commands: SharedCommands
        self._requests: FleetRequests

    def identity(self, config: Config) -> Config:
        """Give the configuration under the fleet's name."""
        return config if config.cluster is None else replace(config, instance=config.cluster.name)

    def fleet(self, shared: Shared, tasks: asyncio.TaskGroup) -> Fleet:
        """Make what polls our share of the agents."""
        self._fleet = SharedFleet(shared, tasks, self._membership, self.outbox, self._engine, self._codec)
        return self._fleet

    def commands(self, shared: Shared, _fleet: Fleet, flood: Flood) -> SharedCommands:
        """Make what takes commands for all agents, and obeys those for ours."""
        self._commands = SharedCommands(shared, self._fleet, flood, self._engine, self.outbox)
        return self._commands

    def subscriptions(self, _config: Config) -> list[Subscription]:
        """List the fleet's availability: commands and requests come to the speaker."""
        # QoS 0, which nats-server grants at once, also while it lacks a node.
        return [(f"{self.topics.prefix}/bridge/availability", 0)]

    def requests(self, requests: Mapping[str, Request]) -> dict[str, Request]:
        """Give what answers requests for all members."""
        self._requests = FleetRequests(self._engine, self._membership, self._fleet, requests)
        return self._requests.shared()

    def figures(self) -> Figures:
        """Measure this member's part in the fleet."""
        membership, fleet = self._membership, self._fleet
        values = {
            "cluster_members": ("Members that agents are shared among, as this one sees it.", len(membership.sharing)),
            "cluster_unlike_members": ("Members with another configuration than this one's.", len(membership.unlike)),
            "cluster_configured_agents": ("Agents in the list that members share.", len(fleet.configured)),
            "cluster_agents": ("Agents that are this member's.", len(self.outbox.pages.owned)),
            "cluster_lease_seconds": ("For how long this member's lease is good.", membership.term.left_s()),
            "cluster_leaving": ("1 while this member is drained, or stops.", membership.leaving),
            "cluster_speaks": ("1 while this member speaks for the fleet.", membership.speaker == membership.name),
            "cluster_claims_total": ("Agents that this member has taken.", fleet.taken),
            "cluster_struck_out_total": ("Times that others took this member for gone.", membership.strikes),
            "cluster_late_events_total": ("Events taken in that came to a former owner.", fleet.late.events),
        }
        return Figures(self._name, values)

    async def speak(self, stage: Stage, tasks: asyncio.TaskGroup) -> Voice:
        """Begin to be heard, whenever it is our turn to speak for the fleet."""
        speaker = Speaker(self.identity(stage.config), self._membership, self._engine, stage)
        await self._requests.serve()
        await self._commands.listen()
        await speaker.listen()
        task = tasks.create_task(speaker.run(), name="cluster.speaker")

        async def silence() -> None:
            speaker.close()
            await asyncio.wait([task])

        self._fleet.silence, self._fleet.say_offline = silence, speaker.say_offline
        return speaker


@contextlib.asynccontextmanager
async def join(config: Config) -> AsyncIterator[Member]:
    """Become a member of the fleet that the configuration names, while the context lasts.

    Raises:
        StartError: The servers refuse it, or the other members have another configuration, or another fleet has the
            agents of `storage.path`.
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
            await move_in(journal, config, engine, codec, config.cluster.name)
            await journal.begin_empty()
            # A number has one hash, whichever member polls the agent.
            await journal.remember(KEY, hmac.digest(config.cluster.keys[0].encode(), KEY.encode(), "sha256"))
            storage = (await journal.recall(MEMBER) or b"").decode()
            membership = Membership(engine, codec, config, storage=storage)
            await membership.enlist()
            try:
                yield Member(config.cluster.name, journal, topics, engine, codec, membership)
            except BaseException:
                if not journal.pages.owned:  # it could not start, and nobody is to wait for the end of its lease
                    await membership.leave()
                raise
