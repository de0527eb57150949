"""`cluster leave`: from the journals of a fleet back to one process alone.

Rule of this file: a fleet is deleted when all that it had is in the database, and nobody came meanwhile.
"""

import asyncio
from collections.abc import Callable

from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine, connect
from adapter.cluster.lease import Terms
from adapter.cluster.moving import LEFT
from adapter.cluster.moving_out import move_out
from adapter.config import Config
from adapter.errors import ClusterConflictError, StartError
from adapter.store.outbox import Outbox, open_as

_DRIFT = 1.01
"""By how much longer than a lease its holder is waited for."""


async def leave(config: Config, tell: Callable[[str], None]) -> None:
    """Bring all that a fleet has to `storage.path`, and delete the fleet. Ended in between, it is to be run again.

    Args:
        config: A member's configuration.
        tell: Called with each line that somebody may want to read.

    Raises:
        StartError: There is no fleet, a member of it still runs, or the database has something of its own.
        StorageError: The database is in use, or has no room.
        ClusterError: The servers are not to be had, or a journal cannot be read.
    """
    cluster, path = config.cluster, config.storage.path
    if cluster is None:
        reason = f"{config.path}: no section cluster; what `run --processes` has comes back with `run` alone"
        raise StartError(reason, exit_code=2)
    async with (
        open_as(Outbox, path, config.storage.max_mb) as outbox,
        connect(cluster, f"{config.instance}-leave") as engine,
    ):
        await engine.prepare()
        await _see_that_nobody_is_there(engine, Terms.of(config.gateway.hold_s), tell)
        if await outbox.recall(LEFT) != cluster.name.encode():
            await move_out(outbox, config, engine, Codec(cluster.keys), cluster.name)
        if await engine.members():
            raise StartError("cluster: a member was started meanwhile: stop it, and run this again", exit_code=2)
        await engine.dissolve()
        await outbox.write(lambda database: database.forget_meta(LEFT))
    tell(f"{path}: has all agents of {cluster.name}: take the section cluster out of {config.path}, and run it alone")


async def _see_that_nobody_is_there(engine: Engine, terms: Terms, tell: Callable[[str], None]) -> None:
    """Strike out the members that were killed, when their leases are over.

    Raises:
        StartError: A member renews its lease.
    """
    first = {name: stored.revision for name, stored in (await engine.members()).items()}
    if not first:
        return
    tell(f"cluster: looking for {terms.length_s:.0f} s whether {', '.join(sorted(first))} still run")
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + terms.length_s * _DRIFT
    while loop.time() < ends_at:
        await asyncio.sleep(terms.renew_s)
        found = {name: stored.revision for name, stored in (await engine.members()).items()}
        _refuse([name for name, revision in found.items() if first.get(name) != revision])
    for name, revision in first.items():
        try:
            await engine.strike(name, revision)
        except ClusterConflictError:
            if await engine.member(name) is not None:
                _refuse([name])


def _refuse(running: list[str]) -> None:
    if running:
        raise StartError(f"cluster: stop all members first: {', '.join(sorted(running))} run", exit_code=2)
