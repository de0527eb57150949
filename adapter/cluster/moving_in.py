"""From the database of a program that was alone into the journals of a fleet; the rules are in `moving`."""

import asyncio
import contextlib
import json
import logging
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import msgspec

from adapter.cluster.answers import Stored
from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine
from adapter.cluster.kept import command_key
from adapter.cluster.moving import FLEET, LEFT, insist
from adapter.config import Config
from adapter.errors import ClusterConflictError, StartError
from adapter.event import new_id
from adapter.store.database import MEMBER, Database
from adapter.store.outbox import Outbox
from adapter.store.records import AgentRecord, Change, CommandRecord, Outgoing
from adapter.topics import Topics

_log = logging.getLogger(__name__)

_MOVING = "moving"
"""Under which a database remembers the agents whose journals have been begun, perhaps."""
_AT_ONCE = 64
"""Agents under way at a time."""
_READ = 200
"""Entries read at a time."""
_PART_BYTES = 512 << 10
"""What one page has to publish at most: with what surrounds it, less than the 1 MiB that NATS takes unless told."""


class _Numbered(msgspec.Struct):
    """What is looked at of an event's payload."""

    seq: int


async def move_in(outbox: Outbox, config: Config, engine: Engine, codec: Codec, fleet: str) -> None:
    """Put what a database holds of a program that was alone into the journals, and empty it.

    Args:
        outbox: What is open of the database.
        config: The member's configuration.
        engine: The servers.
        codec: Writes pages.
        fleet: What the database knows the fleet by.

    Raises:
        StartError: Another fleet has its agents, or it was to move the other way and that has not come to its end.
        StorageError: The database cannot be read or written.
    """
    path = config.storage.path
    if await outbox.recall(LEFT) == fleet.encode():
        raise StartError(f"{path}: `cluster leave` has not come to its end: run it again", exit_code=2)
    if await outbox.recall(MEMBER) is None:
        await _MoveIn(outbox, config, engine, codec).run(fleet)
    elif (await outbox.recall(FLEET) or fleet.encode()) != fleet.encode():
        raise StartError(
            f"{path}: a member of another fleet had this database, and that fleet has its agents; "
            "bring them back first with `ccgateway2mqtt cluster leave -c FILE` and the section cluster of before",
            exit_code=2,
        )


class _MoveIn:
    """One way into the journals."""

    def __init__(self, outbox: Outbox, config: Config, engine: Engine, codec: Codec) -> None:
        self._outbox = outbox
        self._path = config.storage.path
        self._engine = engine
        self._codec = codec
        self._topics = Topics(config.mqtt.topic_prefix)
        self._agents = dict(outbox.agents)
        self._configured = {agent.work_no for agent in config.agents}
        self._carrier = next((agent.work_no for agent in config.agents), "")
        self._begun: set[str] = set()
        self._copied = False

    async def run(self, fleet: str) -> None:
        """Go it."""
        await self._outbox.read(partial(Database.be_durable, durable=True))
        await self._let_strangers_go()
        self._begun = set(json.loads(await self._outbox.recall(_MOVING) or b"[]"))
        await self._move_commands()
        rows = self._by_agent(await self._outbox.read(Database.places))
        # Those that were begun come first: what is remembered of them is replaced with what is begun next.
        known = rows.keys() | self._agents.keys()
        work_nos = sorted(known, key=lambda work_no: work_no not in self._begun)
        for start in range(0, len(work_nos), _AT_ONCE):
            await self._move({work_no: rows.get(work_no, []) for work_no in work_nos[start : start + _AT_ONCE]})
        await self._outbox.write(partial(_become_a_members, fleet=fleet))
        await self._outbox.read(partial(Database.be_durable, durable=False))
        if work_nos:
            count = sum(map(len, rows.values()))
            _log.info("cluster: %d agents, and %d messages that wait, moved into the fleet", len(work_nos), count)

    async def _let_strangers_go(self) -> None:
        """Clear what is retained of agents that left the configuration, as a program alone does at its start."""
        strangers = tuple(self._agents.keys() - self._configured)
        topics = [topic for work_no in strangers for topic in self._topics.retained(work_no)]
        outgoing = [Outgoing(topic=topic, payload=b"", retain=True) for topic in topics]
        change = Change(forgotten=strangers, outgoing=outgoing)
        if change:
            await self._outbox.write(lambda it: it.store([(change, change.entries(it.last_row + 1))]))
        for work_no in strangers:
            del self._agents[work_no]

    async def _move_commands(self) -> None:
        """Keep all commands, with their results, where the fleet does: those that have none yet go on there."""

        async def move(command: CommandRecord) -> None:
            admit = partial(self._engine.admit_command, command_key(command), self._codec.seal_command(command))
            with contextlib.suppress(ClusterConflictError):  # by an earlier try, and it may have its result by now
                await insist(admit)

        commands = await self._outbox.read(Database.commands)
        for start in range(0, len(commands), _AT_ONCE):
            await asyncio.gather(*map(move, commands[start : start + _AT_ONCE]))

    def _by_agent(self, places: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """Find whose the entries are; what is nobody's that anybody will poll goes with the first agent's."""
        found: dict[str, list[int]] = {}
        for topic, rows in places.items():
            work_no = topic.removeprefix(f"{self._topics.prefix}/").partition("/")[0]
            found.setdefault(work_no if work_no in self._configured else self._carrier, []).extend(rows)
        if "" in found:
            raise StartError(f"{self._path}: messages wait, and no agent is configured", exit_code=2)
        return {work_no: sorted(rows) for work_no, rows in found.items()}

    async def _move(self, agents: dict[str, list[int]]) -> None:
        """Move some agents."""
        there = await asyncio.gather(*(insist(partial(self._engine.last, work_no)) for work_no in agents))
        begun = self._begun | {work_no for work_no, last in zip(agents, there, strict=True) if last is None}
        await self._outbox.write(partial(Database.set_meta, key=_MOVING, value=json.dumps(sorted(begun)).encode()))
        self._begun = begun
        for work_no, last in zip(agents, there, strict=True):
            if last is not None and work_no not in begun:
                await self._keep_a_copy()
                _log.error(
                    "agent %s: the fleet has a journal of it: GUID and seq go on as there; %d messages that waited in "
                    "%s go out",
                    work_no,
                    len(agents[work_no]),
                    self._path,
                    extra={"work_no": work_no},
                )
        await asyncio.gather(*map(self._move_agent, agents, there, agents.values()))
        rows = [row for each in agents.values() for row in each]
        await self._outbox.write(partial(Database.hand_over, rows=rows, work_nos=list(agents)))
        self._begun -= agents.keys()

    async def _keep_a_copy(self) -> None:
        if not self._copied:
            self._copied = True
            copy = self._path.with_name(f"{self._path.name}.kept-{int(time.time())}")
            await self._outbox.read(partial(Database.copy_to, path=copy))
            _log.error("storage: what was in %s is kept as %s: look at it, and delete it", self._path, copy.name)

    async def _move_agent(self, work_no: str, last: Stored | None, rows: Sequence[int]) -> None:
        record = self._agents.get(work_no) or AgentRecord(work_no=work_no)
        messages = [
            entry.message
            for start in range(0, len(rows), _READ)
            for entry in await self._outbox.read(partial(Database.entries_at, rows=rows[start : start + _READ]))
        ]
        parts, place = _parts(messages), 0
        if last is not None and work_no in self._begun:  # by an earlier try
            if len(parts) == 1:
                return
            page = self._codec.read(last.value)
            done = next((n for n, part in enumerate(parts, 1) if not page.owner and page.outgoing == tuple(part)), 0)
            parts, place = parts[done:], last.revision if done else 0
        if parts and (last is None or place):
            parts = await self._append(record, parts, place)
        await self._append_late(record, parts)

    async def _append(self, record: AgentRecord, parts: list[list[Outgoing]], place: int) -> list[list[Outgoing]]:
        """Append an agent to its journal as nobody's; give what is left of it, where somebody has made it theirs."""
        sealed, newest = self._codec.seal(record), b""
        if not any(map(_seq_of, parts[-1])):
            newest = await self._outbox.read(partial(Database.newest_value, topic=self._topics.event(record.work_no)))
        for number, part in enumerate(parts):
            # Whoever takes the agent over between two parts goes on from what it has found.
            seq = record.seq if part is parts[-1] else max(map(_seq_of, part))
            data = self._codec.write(replace(record, seq=seq), owner="", sealed=sealed, outgoing=part, newest=newest)
            subject, message_id = self._engine.journal(record.work_no), new_id()
            append = partial(self._engine.append, subject, data, after=place, message_id=message_id)
            try:
                place = await insist(append)
            except ClusterConflictError:
                return parts[number:]
        return []

    async def _append_late(self, record: AgentRecord, parts: list[list[Outgoing]]) -> None:
        for part in parts:
            outgoing = [message for message in part if message.payload or not message.retain]
            if outgoing:
                data = self._codec.write(record, owner="", sealed=self._codec.seal(record), outgoing=outgoing)
                await insist(partial(self._engine.append_late, record.work_no, data, new_id()))


def _become_a_members(database: Database, fleet: str) -> None:
    database.clear()
    database.forget_meta(_MOVING)
    database.set_meta(FLEET, fleet.encode())
    database.set_meta(MEMBER, uuid.uuid4().hex.encode())


def _parts(messages: Iterable[Outgoing]) -> list[list[Outgoing]]:
    """Cut what is to be published into what one page may hold, each but the last with an event in it at its end."""
    parts: list[list[Outgoing]] = [[]]
    size_bytes = 0
    for message in messages:
        if size_bytes > _PART_BYTES and parts[-1] and _seq_of(parts[-1][-1]):
            parts.append([])
            size_bytes = 0
        parts[-1].append(message)
        size_bytes += len(message.payload) + len(message.correlation or b"")
    return parts


def _seq_of(message: Outgoing) -> int:
    """Read the number of an event; 0 of all else."""
    return msgspec.json.decode(message.payload, type=_Numbered).seq if message.retain and message.payload else 0
