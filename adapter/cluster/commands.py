"""Commands in a fleet: the speaker takes them off the broker, every server keeps them, the agent's owner obeys.

```
broker -> speaker: judge, admit (key-value, compare-and-set), PUBACK -> hint -> owner: poller -> result -> broker
                                                                  claim ----^
```

Rules of this file: what is admitted is kept for an hour with its result (C4); a hint may be lost, so it is given again
a few times, and who claims an agent looks what waits for it.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from adapter.agent.presence import Shared
from adapter.cluster.engine import Engine
from adapter.cluster.fleet import SharedFleet
from adapter.cluster.journal import Journal
from adapter.cluster.kept import command_key
from adapter.commands import Commands
from adapter.errors import ClusterError
from adapter.intake import Flood
from adapter.store.records import Change, CommandRecord

_log = logging.getLogger(__name__)

_HINTS_S = (0.0, 1.0, 4.0, 15.0, 45.0)
"""When an owner is told of a command: at once, and again in case it was not there."""
_HELD = 20_000
"""How many commands are known to be under way here: far more than can wait. Which have a result, the servers know."""


class SharedCommands(Commands):
    """Takes the commands of all agents of a fleet, and obeys those of our own.

    Args:
        fleet: The agents.
        engine: Brings hints.
        journal: Keeps commands.
    """

    def __init__(self, shared: Shared, fleet: SharedFleet, flood: Flood, engine: Engine, journal: Journal) -> None:
        super().__init__(shared, fleet.pollers, flood)
        self._fleet = fleet
        self._engine = engine
        self._journal = journal
        self._held: dict[str, str] = {}
        self._working: set[asyncio.Task[None]] = set()
        fleet.claimed = self._look_for_waiting
        fleet.released = self._let_go

    async def listen(self) -> None:
        """Begin to hear of commands that other members took."""
        await self._engine.talk.listen("command", self._hear)

    async def restore(self, pending: list[CommandRecord]) -> None:
        """Go on with commands whose agent's poller was replaced by another."""
        for command in pending:
            self._held.pop(command_key(command), None)
        await super().restore(pending)

    def _knows(self, work_no: str) -> bool:
        return work_no in self._fleet.configured

    def _hand_over(self, command: CommandRecord) -> Change:
        """Give a stored command to its agent, where that is ours; else tell its owner."""
        if command.work_no in self._pollers and self._journal.pages.owns(command.work_no):
            return self._obey(command)
        if not self._knows(command.work_no):
            return super()._hand_over(command)
        loop = asyncio.get_running_loop()
        hint = f"{command.work_no} {command_key(command)}".encode()
        for delay_s in _HINTS_S:
            loop.call_later(delay_s, self._tell, hint)
        return Change()

    def _obey(self, command: CommandRecord) -> Change:
        key = command_key(command)
        if key in self._held:
            return Change()
        self._held[key] = command.work_no
        while len(self._held) > _HELD:
            del self._held[next(iter(self._held))]
        return super()._hand_over(command)

    def _tell(self, hint: bytes) -> None:
        self._soon(self._engine.talk.tell("command", hint))

    def _hear(self, data: bytes) -> None:
        work_no, _, key = data.decode().partition(" ")
        if key not in self._held and self._journal.pages.owns(work_no) and work_no in self._pollers:
            self._soon(self._take_over(key))

    async def _take_over(self, key: str) -> None:
        command = await self._journal.kept.read(key)
        if command is not None and command.result is None and self._journal.pages.owns(command.work_no):
            change = self._obey(command)
            if change:
                await self._shared.outbox.insist(change)

    def _look_for_waiting(self, work_no: str) -> None:
        """Obey what waits for an agent that has just become ours."""

        async def look() -> None:
            for command in await self._journal.kept.of(work_no):
                if command.result is None and self._journal.pages.owns(work_no):
                    change = self._obey(command)
                    if change:
                        await self._shared.outbox.insist(change)

        self._soon(look())

    def _let_go(self, work_no: str) -> None:
        """Forget what waited with an agent that is not ours any more: its next owner finds it."""
        self._held = {key: held for key, held in self._held.items() if held != work_no}

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        async def careful() -> None:
            try:
                await work
            except ClusterError as error:
                _log.debug("commands: %s", error)

        task = asyncio.get_running_loop().create_task(careful(), name="cluster.commands")
        self._working.add(task)
        task.add_done_callback(self._working.discard)
