"""From the journals of a fleet back to the database of a program alone; the rules are in `moving`."""

import logging
from functools import partial

from adapter.clock import steady_time
from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine
from adapter.cluster.late import numbered
from adapter.cluster.moving import FLEET, LEFT, insist
from adapter.config import Config
from adapter.errors import StartError
from adapter.store.database import MEMBER, Database
from adapter.store.outbox import Outbox
from adapter.store.records import AgentRecord, CommandRecord, Entry, Outgoing
from adapter.topics import Topics

_log = logging.getLogger(__name__)

_LATE_S = 60.0
"""By how much what comes back from a journal counts as late."""


async def move_out(outbox: Outbox, config: Config, engine: Engine, codec: Codec, fleet: str) -> None:
    """Put what the journals hold into a database, for a program alone. The journals stay, to be deleted then.

    Nobody else may be a member meanwhile. Done again after an end in between, it begins anew.

    Args:
        outbox: What is open of the database.
        config: The configuration.
        engine: The servers.
        codec: Reads pages.
        fleet: What the database knows the fleet by.

    Raises:
        StartError: The database holds something of its own.
        ClusterError: A page cannot be read.
        StorageError: The database cannot be read or written, or has no room.
    """
    if await outbox.recall(MEMBER) is None and (outbox.agents or outbox.depth):
        reason = f"{config.storage.path}: is a database of its own: nothing was brought there from the fleet"
        raise StartError(reason, exit_code=2)
    topics = Topics(config.mqtt.topic_prefix)
    await outbox.write(_begin_again)
    commands = [codec.open_command(found.value) for found in await insist(partial(engine.commands_of, "*"))]
    row = 1
    work_nos = await insist(partial(_agents, engine))
    for work_no in work_nos:
        record, outgoing, newest, settled = await insist(partial(_read, engine, codec, work_no))
        commands += settled
        entries = [Entry(row + number, steady_time() - _LATE_S, message) for number, message in enumerate(outgoing)]
        row += len(entries)
        kept = (topics.event(work_no), newest) if newest else None
        await outbox.write(partial(Database.take_in, agent=record, entries=entries, newest=kept))
    await outbox.write(partial(Database.take_in_commands, commands=commands))
    await outbox.write(partial(_become_its_own, fleet=fleet))
    _log.info("cluster: %d agents, and %d messages that wait, moved out of the fleet", len(work_nos), row - 1)


async def _agents(engine: Engine) -> list[str]:
    return sorted({*await engine.agents("agent"), *await engine.agents("late")})


async def _read(
    engine: Engine, codec: Codec, work_no: str
) -> tuple[AgentRecord, list[Outgoing], bytes, list[CommandRecord]]:
    """Read an agent, what it has to publish with what came late, its newest event where that is published, results."""
    settled: list[CommandRecord] = []
    record, newest = AgentRecord(work_no=work_no), b""
    outgoing: list[Outgoing] = []
    place, late = 1, 0
    while (found := await engine.following(work_no, place)) is not None:
        page = codec.read(found.value)
        record, newest, late = codec.agent(work_no, page), page.newest, page.late
        outgoing += page.outgoing
        settled += map(codec.open_command, page.settled)
        place = found.revision + 1
    while (found := await engine.next_late(work_no, late + 1)) is not None:
        for message in codec.read(found.value).outgoing:
            record, behind = numbered(record, message)
            outgoing.append(behind)
        late = found.revision
    return record, outgoing, newest, settled


def _begin_again(database: Database) -> None:
    database.clear()
    database.set_meta(MEMBER, b"leaving")


def _become_its_own(database: Database, fleet: str) -> None:
    database.forget_meta(MEMBER)
    database.forget_meta(FLEET)
    database.set_meta(LEFT, fleet.encode())
