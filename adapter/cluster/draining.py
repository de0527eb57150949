"""`cluster drain` and `undrain`: a member is told what is wanted of it by a hint, as often as it takes."""

import asyncio
from collections.abc import Callable, Iterable

from adapter.cluster.engine import Engine
from adapter.cluster.entry import Entry, entry_of
from adapter.cluster.observing import Seen, attached, observe
from adapter.config import Config
from adapter.errors import StartError

_TOLD_S = 0.5
"""How often a member is told what is wanted of it, and looked at."""


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
    async with attached(config) as engine:
        seen = await observe(engine, config)
        if name not in seen.members:
            raise StartError(f"cluster: no member {name}; there are {_listed(seen.members)}", exit_code=1)
        if leaving and not _heirs(seen, name):
            raise StartError(f"cluster: no other member would take over what {name} has", exit_code=1)
        term, entry = seen.members[name].term, seen.members[name]
        try:
            async with asyncio.timeout(within_s):
                while entry.leaving != leaving or (leaving and entry.agents):
                    if entry.leaving != leaving:
                        await engine.talk.tell("drain" if leaving else "undrain", name.encode())
                    await asyncio.sleep(_TOLD_S)
                    entry = await _entry(engine, name, term)
        except TimeoutError:
            reason = f"still has {entry.agents} agents" if entry.leaving == leaving else "does not answer"
            raise StartError(f"cluster: member {name} {reason} after {within_s:g} s", exit_code=1) from None
    tell(f"member {name}: {'has no agents any more' if leaving else 'takes its share again'}")


def _heirs(seen: Seen, name: str) -> list[str]:
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
