"""The commands of a fleet where all members find them: on the servers, sealed, with their results, for an hour (C4)."""

import hashlib
from collections.abc import Iterable
from functools import partial

from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine
from adapter.cluster.quorum import Quorum
from adapter.errors import ClusterConflictError
from adapter.store.records import CommandRecord


class KeptCommands:
    """The commands that the servers keep."""

    def __init__(self, engine: Engine, codec: Codec, quorum: Quorum) -> None:
        self._engine = engine
        self._codec = codec
        self._quorum = quorum

    async def admit(self, command: CommandRecord) -> CommandRecord | None:
        """Keep a new command; give the one already kept under its id instead, where there is one (C3, C4)."""
        key, value = command_key(command), self._codec.seal_command(command)

        async def admit() -> CommandRecord | None:
            try:
                await self._engine.admit_command(key, value)
            except ClusterConflictError:
                kept = await self.read(key)
                return None if kept == command else kept
            return None

        return await self._quorum.ask(admit)

    async def read(self, key: str) -> CommandRecord | None:
        """Read a command; `None` where there is none.

        Raises:
            ClusterError: It cannot be read.
        """
        found = await self._engine.command(key)
        return None if found is None else self._codec.open_command(found.value)

    async def of(self, work_no: str) -> list[CommandRecord]:
        """Read the commands of an agent, oldest first. Raises as `read`."""
        return [self._codec.open_command(found.value) for found in await self._engine.commands_of(work_no)]

    async def settle(self, commands: Iterable[CommandRecord]) -> None:
        """Keep the results of commands; a journal that has them makes up for a crash before this."""
        for command in commands:
            value = self._codec.seal_command(command)
            await self._quorum.ask(partial(self._engine.settle_command, command_key(command), value))


def command_key(command: CommandRecord) -> str:
    """Name a command where it is kept: any text may be its id."""
    return f"{command.work_no}.{command.kind}.{hashlib.blake2b(command.id.encode(), digest_size=16).hexdigest()}"
