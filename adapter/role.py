"""What the program is: alone with its agents, or a member of a fleet. `app` builds its parts by it.

Rule of this file: whoever is alone never hears of members; `adapter.cluster` has a role of its own.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from adapter.agent.presence import Shared
from adapter.bridge import Bridge, Request
from adapter.commands import Commands
from adapter.config import Config
from adapter.fleet import Fleet
from adapter.gateway import Gateway
from adapter.intake import Flood, subscriptions
from adapter.link import Link
from adapter.mqtt import Connection, Received
from adapter.store.outbox import Outbox, open_outbox
from adapter.subscriber import Subscription
from adapter.topics import Topics


@dataclass(frozen=True, slots=True)
class Figures:
    """What `/metrics` tells of others like us.

    Attributes:
        fleet: The name of what we are together, a label of each.
        values: Each by the end of its name, with what it tells; that of a counter ends in ``_total``.
    """

    fleet: str = ""
    values: Mapping[str, tuple[str, float]] = field(default_factory=dict)


class Voice(Protocol):
    """Who says at the broker that the adapter is there, and is told of by Home Assistant's discovery."""

    def linked(self, connection: Connection, /) -> None:
        """Take note of a new connection of the link."""

    def repeat_availability(self) -> None:
        """Publish `online` once more."""

    def hear(self, received: Received, /) -> bool:
        """Take a message, where it is about being there; say whether it was."""

    async def tell_health(self) -> None:
        """Tell others like us how we are."""

    def introduce(self, config: Config, /) -> None:
        """Go on with another configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The parts of a program that stands, for a voice of its own beside the link.

    Attributes:
        config: The configuration.
        link: The connection that events go out by.
        bridge: What answers requests.
        receive: Takes what comes from the broker, and a function that acknowledges it.
        connected: Called with each new connection that others are told of.
    """

    config: Config
    link: Link
    bridge: Bridge
    receive: Callable[[Received, Callable[[], None]], None]
    connected: Callable[[Connection], None]


class Role(Protocol):
    """What the program is."""

    @property
    def outbox(self) -> Outbox:
        """Its outbox."""

    @property
    def topics(self) -> Topics:
        """Its topics."""

    def identity(self, config: Config, /) -> Config:
        """Give the configuration under which others know the adapter."""

    def fleet(self, shared: Shared, tasks: asyncio.TaskGroup, /) -> Fleet:
        """Make what polls."""

    def commands(self, shared: Shared, fleet: Fleet, flood: Flood, /) -> Commands:
        """Make what takes commands."""

    def subscriptions(self, config: Config, /) -> list[Subscription]:
        """List what the link subscribes to."""

    def requests(self, requests: Mapping[str, Request], /) -> dict[str, Request]:
        """Give what answers requests, of what answers them here."""

    def figures(self) -> Figures:
        """Measure what `/metrics` tells of others like us."""

    async def speak(self, stage: Stage, tasks: asyncio.TaskGroup, /) -> Voice:
        """Begin to be heard, when the parts stand."""


@dataclass(frozen=True, slots=True)
class Alone:
    """A program that has all agents to itself."""

    outbox: Outbox
    topics: Topics

    def identity(self, config: Config) -> Config:
        """Give the configuration as it is."""
        return config

    def fleet(self, shared: Shared, tasks: asyncio.TaskGroup) -> Fleet:
        """Make what polls all agents."""
        return Fleet(Gateway(shared.config.gateway), shared, tasks)

    def commands(self, shared: Shared, fleet: Fleet, flood: Flood) -> Commands:
        """Make what takes the commands of all agents."""
        return Commands(shared, fleet.pollers, flood)

    def subscriptions(self, config: Config) -> list[Subscription]:
        """List the topics of commands and requests."""
        return subscriptions(self.topics, config.commands)

    def requests(self, requests: Mapping[str, Request]) -> dict[str, Request]:
        """Give what answers requests as it is."""
        return dict(requests)

    def figures(self) -> Figures:
        """Measure nothing: there are no others."""
        return Figures()

    async def speak(self, stage: Stage, _tasks: asyncio.TaskGroup) -> Voice:
        """Be heard by the link."""
        return _Linked(stage)


@dataclass(frozen=True, slots=True)
class _Linked:
    """The link, which is all the voice that a program needs."""

    stage: Stage

    def linked(self, connection: Connection) -> None:
        self.stage.connected(connection)

    def repeat_availability(self) -> None:
        self.stage.link.repeat_availability()

    def hear(self, _received: Received) -> bool:
        return False

    async def tell_health(self) -> None:
        """There are no others."""

    def introduce(self, config: Config) -> None:
        """Nobody asks for it."""


@contextlib.asynccontextmanager
async def alone(config: Config) -> AsyncIterator[Alone]:
    """Open what a program has that is alone.

    Raises:
        StorageError: `storage.path` is in use or cannot be opened.
    """
    async with open_outbox(config.storage.path, config.storage.max_mb) as outbox:
        yield Alone(outbox, Topics(config.mqtt.topic_prefix))
