"""The end of several processes on one machine: what they have goes back to `storage.path`.

Rule of this file: done again after an end in between, it goes on. The fleet's name and key go when nothing is left that
they are for.
"""

import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine, connect
from adapter.cluster.moving import FLEET, LEFT
from adapter.cluster.moving_in import move_in
from adapter.cluster.moving_out import move_out
from adapter.cluster.processes.server import EMBEDDED, embedded, is_named, kept_in, left_behind, store_of, until_gone
from adapter.config import Config
from adapter.store.database import Database, Lock
from adapter.store.outbox import Outbox, open_as

_DAMAGED = ".db.damaged-"


async def bring_back(config: Config) -> None:
    """Bring what several processes have back to `storage.path`. No member of them may run.

    Raises:
        StartError: The server cannot be started, or a member does not end.
        StorageError: The database is in use, or has no room.
        ClusterError: A journal cannot be read.
    """
    async with open_as(Outbox, config.storage.path, config.storage.max_mb) as outbox:
        await former_members_gone(config)
        if left_behind(config):
            await _end_fleet(outbox, config)
        await adopt_members(outbox, config)
        shutil.rmtree(config.storage.fleet)
        await outbox.write(lambda database: database.forget_meta(LEFT))


async def _end_fleet(outbox: Outbox, config: Config) -> None:
    """Bring what is in the journals of the embedded fleet back, and end it."""
    if await outbox.recall(LEFT) is None:
        async with embedded(config) as told:
            own = replace(config, cluster=told.section())
            async with engine_of(own) as (engine, codec):
                await move_in(outbox, own, engine, codec, EMBEDDED)  # where the start was ended in the middle of it
                await move_out(outbox, own, engine, codec, EMBEDDED)
    if store_of(config).exists():
        shutil.rmtree(store_of(config))
    kept_in(config).unlink()


async def adopt_members(outbox: Outbox, config: Config, *, but: str | None = None) -> None:
    """Bring what members have kept for a person to look at: in their databases, and set aside as damaged (D6).

    Args:
        outbox: Where it goes.
        config: Says where they are.
        but: The fleet whose members stay.
    """
    path = config.storage.path.resolve()
    for member in _databases(config):
        # Opened as its member would: one that was ended at its very start has no tables yet, one may be damaged.
        async with open_as(Outbox, member, config.storage.max_mb) as opened:
            fleet = await opened.recall(FLEET)
        if fleet is None or fleet.decode() != but:
            await outbox.read(partial(Database.adopt_kept, path=member))
            member.unlink()
    for aside in config.storage.fleet.glob(f"*{_DAMAGED}*"):
        number, _, rest = aside.name.partition(_DAMAGED)
        aside.rename(path.with_name(f"{path.name}.damaged-{number}-{rest}"))


@contextlib.asynccontextmanager
async def engine_of(config: Config) -> AsyncIterator[tuple[Engine, Codec]]:
    """Connect to a fleet, to move agents in or out."""
    if config.cluster is None:
        raise AssertionError("no fleet")
    async with connect(config.cluster, config.instance) as engine:
        await engine.prepare()
        yield engine, Codec(config.cluster.keys)


async def former_members_gone(config: Config) -> None:
    """Wait until the members of a parent that was killed are gone.

    Raises:
        StartError: They are not.
    """
    for path in _databases(config):
        await until_gone(partial(_is_open, path), f"{path}: the member of an earlier start")


def _is_open(path: Path) -> bool:
    return Lock.read(path) is not None


def _databases(config: Config) -> list[Path]:
    return sorted(config.storage.fleet.glob("*.db"))


async def is_to_end(config: Config) -> bool:
    """Say whether an embedded fleet is to end before members may be started.

    It has another name, other servers are to have the agents, or its end was begun.
    """
    return left_behind(config) and (config.cluster is not None or not is_named(config) or await _is_left(config))


async def _is_left(config: Config) -> bool:
    async with open_as(Outbox, config.storage.path, config.storage.max_mb) as outbox:
        return await outbox.recall(LEFT) == EMBEDDED.encode()
