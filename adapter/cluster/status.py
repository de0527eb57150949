"""`cluster status`: the members of a fleet with their agents, its servers, and what is stored there."""

import asyncio
from collections import Counter

import msgspec

from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine
from adapter.cluster.lease import Terms
from adapter.cluster.observing import Server, attached, observe, section_of
from adapter.config import Config

_AGAIN_S = 1.0
"""How long an agent may be nobody's on its way from one member to another."""
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
    async with attached(config) as engine:
        seen = await observe(engine, config)
        owners = await _owners(engine, [agent.work_no for agent in config.agents])
        if any(owner not in seen.owners for owner in owners.values()):
            await asyncio.sleep(_AGAIN_S)
            seen = await observe(engine, config)
            moved = [work_no for work_no, owner in owners.items() if owner not in seen.owners]
            owners |= await _owners(engine, moved)
            seen = await observe(engine, config)
    agents, codec = Counter(owners.values()), Codec(section_of(config).keys)
    leases = Terms.of(config.gateway.hold_s)
    return Status(
        name=section_of(config).name,
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


async def _owners(engine: Engine, work_nos: list[str]) -> dict[str, str]:
    """Read from the newest page of each agent's journal who owns it; empty where nobody does."""
    owners: dict[str, str] = {}
    for start in range(0, len(work_nos), _AT_ONCE):
        part = work_nos[start : start + _AT_ONCE]
        found = await asyncio.gather(*map(engine.last, part))
        pages = zip(part, found, strict=True)
        owners |= {work_no: "" if page is None else Codec.read(page.value).owner for work_no, page in pages}
    return owners
