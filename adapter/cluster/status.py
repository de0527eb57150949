"""`cluster status`, `drain` and `undrain`: a fleet as one sees it from outside, beside its members.

Rule of this file: nothing is stored. A member is told by a hint what is wanted of it, as often as it takes.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

import msgspec

from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine, connect
from adapter.cluster.lease import Terms
from adapter.cluster.membership import Entry, content_of, entry_of
from adapter.config import ClusterConfig, Config
from adapter.errors import ClusterUnavailableError, StartError

_AGAIN_S = 1.0
"""How long an agent may be nobody's on its way from one member to another."""
_TOLD_S = 0.5
"""How often a member is told what is wanted of it, and looked at."""
_AT_ONCE = 128
"""Journals that are read at a time."""
_SHOWN = 20


class Member(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A member.

    Attributes:
        agents: How many agents are its own.
        leaving: Whether it hands its agents over, or has.
        lease_seconds: How long ago its lease was renewed.
        live: Whether that lease still holds.
        same_configuration: Whether it has the configuration that was looked with, and a key of it.
    """

    name: str
    term: str
    version: str
    agents: int
    leaving: bool
    lease_seconds: float
    live: bool
    same_configuration: bool


class Server(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A server that stores the agents' journal.

    Attributes:
        in_step: Whether it has all of it.
    """

    name: str
    leads: bool
    in_step: bool


class Status(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A fleet.

    Attributes:
        configured: How many agents the configuration has.
        unowned: Those of them that no live member owns.
        messages: How many messages are in the agents' journals: one each, and what is not published yet.
        bytes: How large they are.
        late: How many of them came to a former owner, and were not taken in yet.
    """

    name: str
    configured: int
    unowned: list[str]
    members: list[Member]
    servers: list[Server]
    messages: int
    bytes: int
    late: int

    def render(self) -> str:
        """Write it as JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()

    def lines(self) -> list[str]:
        """Write it as a table for people."""
        rows = [("member", "term", "agents", "lease", "configuration", "")]
        rows += [
            (
                each.name,
                each.term,
                str(each.agents),
                f"{each.lease_seconds:.1f} s",
                "the same" if each.same_configuration else "another",
                "" if each.live and not each.leaving else "leaving" if each.live else "gone",
            )
            for each in self.members
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        servers = ", ".join(
            f"{each.name}{' (leads)' if each.leads else '' if each.in_step else ' (not in step)'}"
            for each in self.servers
        )
        return [
            *table,
            f"servers: {servers}",
            f"journals: {self.messages} messages, {self.bytes} bytes; {self.late} came late",
            f"agents: {self.configured}; {self.verdict}",
        ]

    @property
    def verdict(self) -> str:
        """Say whether every agent has a live owner."""
        if not self.unowned:
            return "each has a live owner"
        more = ", ..." if len(self.unowned) > _SHOWN else ""
        return f"{len(self.unowned)} without a live owner: {', '.join(self.unowned[:_SHOWN])}{more}"


async def look(config: Config) -> Status:
    """Look at the fleet that a configuration names.

    Raises:
        StartError: There is none, or its servers are not to be had.
    """
    async with _engine(config) as engine:
        seen = await _look(engine, config)
        owners = await _owners(engine, [agent.work_no for agent in config.agents])
        if any(owner not in seen.owners for owner in owners.values()):
            await asyncio.sleep(_AGAIN_S)
            seen = await _look(engine, config)
            moved = [work_no for work_no, owner in owners.items() if owner not in seen.owners]
            owners |= await _owners(engine, moved)
            seen = await _look(engine, config)
    agents, codec = Counter(owners.values()), Codec(_cluster(config).keys)
    leases = Terms.of(config.gateway.hold_s)
    return Status(
        name=_cluster(config).name,
        configured=len(config.agents),
        unowned=[work_no for work_no, owner in owners.items() if owner not in seen.owners],
        members=[
            Member(
                name=name,
                term=entry.term,
                version=entry.version,
                agents=agents[f"{name}/{entry.term}"],
                leaving=entry.leaving,
                lease_seconds=round(seen.ages_s[name], 1),
                live=seen.ages_s[name] <= leases.length_s,
                same_configuration=entry.content == seen.content and codec.knows(entry.proof),
            )
            for name, entry in sorted(seen.members.items())
        ],
        servers=seen.servers,
        messages=seen.messages,
        bytes=seen.bytes,
        late=seen.late,
    )


async def turn(config: Config, name: str, *, leaving: bool, within_s: float, tell: Callable[[str], None]) -> None:
    """Have a member hand its agents over and stay empty, or take its share again; return when it does.

    Args:
        config: Names the fleet.
        name: The member.
        leaving: Whether it is to be empty.
        within_s: How long that may take.
        tell: Takes lines for people.

    Raises:
        StartError: There is no such member, nobody would have its agents, or it takes longer.
    """
    async with _engine(config) as engine:
        seen = await _look(engine, config)
        if name not in seen.members:
            raise StartError(f"cluster: no member {name}; there are {_listed(seen.members)}", exit_code=1)
        if leaving and not _heirs(seen, name):
            raise StartError(f"cluster: no other member would take over what {name} has", exit_code=1)
        term, entry = seen.members[name].term, seen.members[name]
        try:
            async with asyncio.timeout(within_s):
                while entry.leaving != leaving or (leaving and entry.agents):
                    if entry.leaving != leaving:
                        await engine.tell("drain" if leaving else "undrain", name.encode())
                    await asyncio.sleep(_TOLD_S)
                    entry = await _entry(engine, name, term)
        except TimeoutError:
            reason = f"still has {entry.agents} agents" if entry.leaving == leaving else "does not answer"
            raise StartError(f"cluster: member {name} {reason} after {within_s:g} s", exit_code=1) from None
    tell(f"member {name}: {'has no agents any more' if leaving else 'takes its share again'}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
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
async def _engine(config: Config) -> AsyncIterator[Engine]:
    """Connect beside the members."""
    cluster = _cluster(config)
    try:
        async with connect(cluster, f"{config.instance}-operator", patiently=False) as engine:
            await engine.attach()
            yield engine
    except ClusterUnavailableError as error:
        raise StartError(f"cluster: {error}", exit_code=1) from error


def _cluster(config: Config) -> ClusterConfig:
    if config.cluster is None:
        raise StartError(f"{config.path}: there is no section cluster in it", exit_code=2)
    return config.cluster


async def _look(engine: Engine, config: Config) -> _Seen:
    leases, journals = (msgspec.json.decode(answer, type=_Information) for answer in await engine.describe("late.>"))
    if leases.state is None or journals.state is None:
        raise StartError(f"cluster: there is no fleet {_cluster(config).name} yet", exit_code=1)
    found = await engine.members()
    members = {name: entry for name, stored in found.items() if (entry := entry_of(stored.value)) is not None}
    # Both are the clock of the server that leads; whoever wrote in between is not from the future.
    ages_s = {name: max(0.0, _seconds(leases.ts) - _seconds(found[name].at)) for name in members}
    length_s = Terms.of(config.gateway.hold_s).length_s
    group = journals.cluster or _Group()
    followers = [Server(name=peer.name, leads=False, in_step=peer.current) for peer in group.replicas]
    return _Seen(
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


async def _owners(engine: Engine, work_nos: list[str]) -> dict[str, str]:
    """Read from the newest page of each agent's journal who owns it; empty where nobody does."""
    owners: dict[str, str] = {}
    for start in range(0, len(work_nos), _AT_ONCE):
        part = work_nos[start : start + _AT_ONCE]
        found = await asyncio.gather(*map(engine.last, part))
        pages = zip(part, found, strict=True)
        owners |= {work_no: "" if page is None else Codec.read(page.value).owner for work_no, page in pages}
    return owners


def _heirs(seen: _Seen, name: str) -> list[str]:
    """List the members that would take over what one has."""
    leaver = seen.members[name]
    return [
        other
        for other, entry in seen.members.items()
        if other != name
        and not entry.leaving
        and entry.content == leaver.content
        and f"{other}/{entry.term}" in seen.owners
    ]


async def _entry(engine: Engine, name: str, term: str) -> Entry:
    """Read a member's lease again."""
    found = await engine.member(name)
    entry = None if found is None else entry_of(found.value)
    if entry is None or entry.term != term:
        raise StartError(f"cluster: member {name} went away meanwhile", exit_code=1)
    return entry


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
