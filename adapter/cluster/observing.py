"""A fleet as one sees it from outside, beside its members: what `cluster status` shows, and `drain` goes by.

Rule of this file: nothing is stored.
"""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

import msgspec

from adapter.cluster.engine import Engine, connect
from adapter.cluster.entry import Entry, content_of, entry_of
from adapter.cluster.lease import Terms
from adapter.config import ClusterConfig, Config
from adapter.errors import ClusterUnavailableError, StartError


class Server(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A server that stores the agents' journal.

    Attributes:
        in_step: Whether it has all of it.
    """

    name: str
    leads: bool
    in_step: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What there is at a moment.

    Attributes:
        members: All leases.
        ages_s: How old each is.
        owners: What live members are called in journals.
        content: What a lease says of a configuration like ours.
    """

    members: dict[str, Entry]
    ages_s: dict[str, float]
    owners: frozenset[str]
    content: str
    servers: list[Server]
    messages: int
    bytes: int
    late: int


class _Peer(msgspec.Struct):
    name: str
    current: bool = False


class _Group(msgspec.Struct):
    leader: str = ""
    replicas: list[_Peer] = []


class _State(msgspec.Struct):
    messages: int
    bytes: int
    subjects: dict[str, int] = {}


class _Information(msgspec.Struct):
    """What JetStream says of a stream; without a `state` there is none.

    Source:
        NATS documentation, "JetStream wire API Reference", `$JS.API.STREAM.INFO`.
    """

    ts: str = ""
    state: _State | None = None
    cluster: _Group | None = None


@contextlib.asynccontextmanager
async def attached(config: Config) -> AsyncIterator[Engine]:
    """Connect beside the members.

    Raises:
        StartError: The configuration names no fleet, or its servers are not to be had.
    """
    cluster = section_of(config)
    try:
        async with connect(cluster, f"{config.instance}-operator", patiently=False) as engine:
            await engine.attach()
            yield engine
    except ClusterUnavailableError as error:
        raise StartError(f"cluster: {error}", exit_code=1) from error


def section_of(config: Config) -> ClusterConfig:
    """Give the section that names the fleet.

    Raises:
        StartError: There is none.
    """
    if config.cluster is None:
        raise StartError(f"{config.path}: there is no section cluster in it", exit_code=2)
    return config.cluster


async def observe(engine: Engine, config: Config) -> Seen:
    """Look at the leases, and at what is said of the journals.

    Raises:
        StartError: There is no such fleet.
        ClusterUnavailableError: Nobody says.
    """
    leases, journals = (msgspec.json.decode(answer, type=_Information) for answer in await engine.describe("late.>"))
    if leases.state is None or journals.state is None:
        raise StartError(f"cluster: there is no fleet {section_of(config).name} yet", exit_code=1)
    found = await engine.members()
    members = {name: entry for name, stored in found.items() if (entry := entry_of(stored.value)) is not None}
    # Both are the clock of the server that leads; whoever wrote in between is not from the future.
    ages_s = {name: max(0.0, _seconds(leases.ts) - _seconds(found[name].at)) for name in members}
    length_s = Terms.of(config.gateway.hold_s).length_s
    group = journals.cluster or _Group()
    followers = [Server(name=peer.name, leads=False, in_step=peer.current) for peer in group.replicas]
    return Seen(
        members=members,
        ages_s=ages_s,
        owners=frozenset(f"{name}/{entry.term}" for name, entry in members.items() if ages_s[name] <= length_s),
        content=content_of(config),
        servers=[Server(name=group.leader, leads=True, in_step=True), *followers] if group.leader else followers,
        messages=journals.state.messages,
        bytes=journals.state.bytes,
        late=sum(journals.state.subjects.values()),
    )


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
