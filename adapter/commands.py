"""From the command topics to an agent's poller: check, store, hand over, and answer once (C1 to C8).

Rules of this file: a command is acknowledged to the broker when it is stored, not before (C3); a flood of one
sender costs a look at a counter (C5); no payload is ever logged.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from adapter.agent.poller import Poller
from adapter.agent.presence import Shared
from adapter.command import Parsed, answers, finish, order_of, parse_call_data, parse_session, sender_id
from adapter.errors import CommandError, StorageFullError
from adapter.event import new_id
from adapter.gateway import is_guid
from adapter.mqtt import Received
from adapter.store.records import Change, CommandRecord

_log = logging.getLogger(__name__)

_REMIND_S = 60.0
"""How often a log line says that commands cannot be stored, while it is so (D4)."""

_CLOSE_S = 2.0
"""How long commands that were received may take to be stored at the end."""

_PER_SECOND = 20
"""Commands a second and agent; what exceeds it is dropped (C5)."""

REMEMBERED_S = 3600.0
"""How long a result is remembered, to answer a repeated id with it (C4)."""


class Flood:
    """Counts messages by sender's target and second, and tells once a second what was dropped (C5)."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self._dropped: dict[str, int] = {}
        self._until = 0.0

    def admits(self, target: str) -> bool:
        """Count a message; say whether it is within the limit."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._until:
            self._seen.clear()
            self._until = loop.time() + 1.0
        seen = self._seen[target] = self._seen.get(target, 0) + 1
        if seen <= _PER_SECOND:
            return True
        if not self._dropped:
            loop.call_later(1.0, self._tell)
        self._dropped[target] = self._dropped.get(target, 0) + 1
        return False

    def _tell(self) -> None:
        total, worst = sum(self._dropped.values()), max(self._dropped, key=lambda target: self._dropped[target])
        _log.warning("commands: %d dropped, most for %s: over %d a second", total, worst, _PER_SECOND)
        self._dropped.clear()


class Commands:
    """Takes the commands of all agents.

    Args:
        pollers: The agents of the configuration, as they are at each moment.
    """

    def __init__(self, shared: Shared, pollers: Mapping[str, Poller], flood: Flood) -> None:
        self._shared = shared
        self._pollers = pollers
        self._flood = flood
        self._prefix = shared.config.mqtt.response_prefix
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def receive(self, received: Received, work_no: str, kind: str, acknowledge: Callable[[], None]) -> None:
        """Take a message from a command topic.

        Args:
            received: The message.
            work_no: The agent, as the topic names it; it need not exist.
            kind: ``calldata`` or ``session``.
            acknowledge: Sends the PUBACK.
        """
        if self._closed:
            return
        self._shared.counters.commands += 1
        # All unknown agents count as one, or a sender who makes up numbers could fill the memory.
        if not self._flood.admits(work_no if work_no in self._pollers else "unknown agents"):
            self._shared.counters.dropped_commands += 1
            acknowledge()
            return
        task = asyncio.get_running_loop().create_task(self._take(received, work_no, kind, acknowledge), name="command")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def restore(self, pending: list[CommandRecord]) -> None:
        """Go on with the commands that had no result when the program ended."""
        for command in pending:
            await self._hand_over(command)

    async def close(self) -> None:
        """Take no more; wait until every command that was received is stored, or cannot be."""
        self._closed = True
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_CLOSE_S)
            for task in late:
                task.cancel()

    async def _take(self, received: Received, work_no: str, kind: str, acknowledge: Callable[[], None]) -> None:
        refusal: str | None = None
        parsed = Parsed(id=sender_id(received.payload), body=b"", ttl_s=None)
        try:
            parsed = _parse(received, kind)
        except CommandError as error:
            refusal = error.reason
        now = time.time()
        command = CommandRecord(
            work_no=work_no,
            kind=kind,
            id=parsed.id or new_id(),
            body=parsed.body,
            received_at=now,
            expires_at=None if parsed.ttl_s is None else now + parsed.ttl_s,
            correlation=received.correlation,
            response_topic=self._allowed(received.response_topic),
        )
        first = await self._admitted(command)
        acknowledge()
        if first is None:
            await self._hand_over(command, refusal)
        elif first.result is not None:
            repeated = replace(command, id=first.id)
            await self._shared.outbox.insist(Change(outgoing=answers(repeated, self._shared.topics, first.result)))

    async def _admitted(self, command: CommandRecord) -> CommandRecord | None:
        """Store a command when there is room; give the one already stored under its id instead, where there is one.

        Meanwhile it stays unacknowledged, and a broker sends only so many of these: the rest waits there.
        """
        outage = self._shared.storage_outage
        while True:
            try:
                first = await self._shared.outbox.admit(command)
            except StorageFullError as error:
                outage.begins("commands", f"nothing can be stored: {error}", remind_s=_REMIND_S)
                await asyncio.sleep(self._shared.timing.store_again_s)
            else:
                outage.ends("commands")
                return first

    async def _hand_over(self, command: CommandRecord, refusal: str | None = None) -> None:
        """Give a stored command to its agent, or answer it with a refusal."""
        try:
            self._dispatch(command, refusal)
        except CommandError as error:
            change = Change()
            finish(change, command, self._shared.topics, status="rejected", reason=error.reason)
            await self._shared.outbox.insist(change)

    def _dispatch(self, command: CommandRecord, refusal: str | None) -> None:
        poller = self._pollers.get(command.work_no)
        if refusal is not None:
            raise CommandError(refusal)
        if poller is None:
            raise CommandError("unknown agent")
        if command.kind == "calldata":
            poller.give(command)
        else:
            poller.order(order_of(command))

    def _allowed(self, topic: str | None) -> str | None:
        """Keep a response topic only below the configured prefix: a sender must not choose where the adapter writes."""
        if topic is None or self._prefix is None or not topic.startswith(self._prefix + "/"):
            return None
        return topic if topic.isprintable() and not set(topic) & {"+", "#"} else None


def _parse(received: Received, kind: str) -> Parsed:
    if received.retain:
        raise CommandError("retained")
    if kind == "calldata":
        return parse_call_data(received.payload)
    return parse_session(received.payload, is_guid=is_guid)
