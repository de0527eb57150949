"""The call data that waits for one agent's polls (C2)."""

import asyncio

from adapter.agent.presence import Presence
from adapter.catalogue import SUCCESS
from adapter.clock import steady_time
from adapter.command import finish
from adapter.errors import CommandError
from adapter.payloads import Status
from adapter.store.records import Change, CommandRecord
from adapter.topics import Topics

_ROOM = 4
"""How much call data may wait for an agent (C2)."""

_LONGEST_S = 3600.0
"""The longest `ttl` (C1): what was stored before the clock was set back waits no longer than that."""


class Mailbox:
    """Call data in the order of its coming; the first goes with the next poll.

    Attributes:
        waiting: What has no result yet.
    """

    def __init__(self, presence: Presence, topics: Topics) -> None:
        self._presence = presence
        self._topics = topics
        self.waiting: list[CommandRecord] = []
        self._under_way: CommandRecord | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def put(self, command: CommandRecord) -> None:
        """Let call data wait for a poll.

        Raises:
            CommandError: Enough waits already.
        """
        if len(self.waiting) >= _ROOM:
            raise CommandError("queue full")
        self.waiting.append(command)
        if command.expires_at is not None:
            loop = asyncio.get_running_loop()
            ttl_s = min(command.expires_at - steady_time(), _LONGEST_S)
            self._timers[command.id] = loop.call_later(ttl_s, self._expire, command)

    def take(self) -> str | None:
        """Give the call data that goes with the poll that now begins; `None` where none waits."""
        self._under_way = self.waiting[0] if self.waiting else None
        return None if self._under_way is None else self._under_way.body.decode()

    def sent(self, change: Change, *, retcode: str | None, reason: str | None) -> None:
        """Answer what went with a poll that came back as HTTP 200: it does not go again, whatever the answer says."""
        command, self._under_way = self._under_way, None
        if command is None:
            return
        self._remove(command)
        status: Status = "applied" if retcode == SUCCESS else "rejected"
        finish(change, command, self._topics, status=status, retcode=retcode, reason=reason)

    def not_sent(self) -> None:
        """Let what went with a failed poll go again with the next, unless its time is over."""
        command, self._under_way = self._under_way, None
        if command is not None and command.expires_at is not None and command.id not in self._timers:
            self._expire(command)

    def reject_all(self, change: Change, reason: str) -> None:
        """Answer all that waits: no poll will take it along."""
        for command in list(self.waiting):
            self._remove(command)
            finish(change, command, self._topics, status="rejected", reason=reason)

    def close(self) -> None:
        """Let what waits be, for another to go on with it."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _remove(self, command: CommandRecord) -> None:
        self.waiting.remove(command)
        timer = self._timers.pop(command.id, None)
        if timer is not None:
            timer.cancel()

    def _expire(self, command: CommandRecord) -> None:
        """End the tries of call data whose time is over, but not a poll under way."""
        self._timers.pop(command.id, None)
        if command is self._under_way:
            return
        self._remove(command)
        change = Change()
        finish(change, command, self._topics, status="expired", reason="no poll could take it along in time")
        self._presence.store_soon(change)
