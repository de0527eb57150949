"""The first of several processes: starts what the members need, and keeps them alive until it is told to end."""

import asyncio
import contextlib
import logging
import signal
import time
from dataclasses import replace

from adapter.cluster.moving import FLEET, LEFT
from adapter.cluster.moving_in import move_in
from adapter.cluster.processes.ending import adopt_members, bring_back, engine_of, former_members_gone, is_to_end
from adapter.cluster.processes.members import Member, Orders
from adapter.cluster.processes.server import AGAIN, EMBEDDED, WELL_S, embedded, left_behind
from adapter.config import Config
from adapter.errors import StartError
from adapter.store.lock import Lock
from adapter.store.outbox import Outbox, open_as

_log = logging.getLogger(__name__)

_NOT_HEALED = (2, 3)
"""Exit codes that mean the same at the next start."""
_FIRST_BEAT_S, _BEAT_S = 1.0, 10.0


async def run(config: Config, count: int) -> None:
    """Run members until SIGTERM or SIGINT.

    Args:
        config: What `load` gave.
        count: How many.

    Raises:
        StartError: They cannot run as configured, or not all ended well.
        StorageError: `storage.path` is in use or cannot be opened.
    """
    if await is_to_end(config):
        await bring_back(config)
    async with contextlib.AsyncExitStack() as stack:
        outbox = await stack.enter_async_context(open_as(Outbox, config.storage.path, config.storage.max_mb))
        await former_members_gone(config)
        await _see_that_it_is_there(outbox, config)
        config.storage.fleet.mkdir(mode=0o700, exist_ok=True)
        if config.cluster is None:
            told = await stack.enter_async_context(embedded(config))
            cluster, fleet = told.section(), EMBEDDED
            await outbox.write(lambda database: database.forget_meta(LEFT))
        else:
            told, cluster, fleet = None, config.cluster, config.cluster.name
        own = replace(config, cluster=cluster)
        async with engine_of(own) as (engine, codec):
            await move_in(outbox, own, engine, codec, fleet)
        await adopt_members(outbox, config, but=cluster.name)
        members = [Member(config, Orders(number=number, cluster=told)) for number in range(1, count + 1)]
        await _Parent(members, outbox).run()


async def _see_that_it_is_there(outbox: Outbox, config: Config) -> None:
    """Refuse to begin anew where an embedded fleet has all agents, and somebody has taken it away."""
    if config.cluster is None and not left_behind(config) and await outbox.recall(FLEET) == EMBEDDED.encode():
        path = config.storage.path
        reason = f"{config.storage.fleet}: is gone, with all that {path} had: put it back, or delete {path} as well"
        raise StartError(reason, exit_code=2)


class _Parent:
    """Keeps members alive until it is told to end."""

    def __init__(self, members: list[Member], outbox: Outbox) -> None:
        self._members = members
        self._outbox = outbox
        self._stopping = asyncio.Event()
        self._not_healed = 0

    async def run(self) -> None:
        """Do so."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._pass_on, signal.SIGHUP)
        beat = asyncio.create_task(self._beat_regularly(), name="beat")
        try:
            codes = await asyncio.gather(*map(self._attend, self._members))
        finally:
            beat.cancel()
        if self._not_healed:
            raise StartError("a member cannot run: all have ended", exit_code=self._not_healed)
        if any(codes):
            raise StartError("not all members ended well", exit_code=1)

    def _stop(self) -> None:
        """End all members; told again, they hurry."""
        if not self._stopping.is_set():
            _log.info("stopping: %d members hand over and end; a second signal hurries them", len(self._members))
        self._stopping.set()
        for member in self._members:
            member.end()

    def _pass_on(self, number: signal.Signals) -> None:
        for member in self._members:
            member.send(number)

    async def _attend(self, member: Member) -> int:
        """Run a member again whenever it has died; give the exit code of its end."""
        pauses, first = AGAIN.delays(), True
        while not self._stopping.is_set():
            began_at = time.monotonic()
            code = await member.run_once()
            if self._stopping.is_set():
                return 0 if code == -signal.SIGTERM else code  # before it could take the signal
            lived_s = time.monotonic() - began_at
            if first and lived_s < WELL_S and code in _NOT_HEALED:
                self._not_healed = code
                self._stop()
                return code
            first = False
            if code == 0:
                _log.info("member %s has ended, as somebody told it to, and begins afresh", member.name)
                continue
            if lived_s > WELL_S:
                pauses = AGAIN.delays()
            pause_s = next(pauses)
            fate = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            _log.error("member %s %s; begins again in %.0f s", member.name, fate, pause_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
        return 0

    async def _beat_regularly(self) -> None:
        """Leave a sign of life of all members where `ccgateway2mqtt health` looks."""
        while True:
            await asyncio.sleep(_FIRST_BEAT_S)
            beats = [beat for member in self._members if (beat := Lock.read(member.storage))]
            if beats:
                self._outbox.beat(
                    {
                        "at": min(beat["at"] for beat in beats),
                        "writable": all(beat["writable"] for beat in beats),
                        "connected": all(beat["connected"] for beat in beats),
                    }
                )
                await asyncio.sleep(_BEAT_S)
