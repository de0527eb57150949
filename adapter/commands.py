"""From the command topics to an agent's poller: check, store, hand over, and answer once (C1 to C8).

Rules of this file: a command is acknowledged to the broker when it is stored, not before (C3); what is refused at
the door is stored with its result, so that no restart can take it for one that waits; no payload is ever logged.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from adapter.agent.poller import Poller
from adapter.agent.presence import Shared
from adapter.clock import steady_time
from adapter.command import (
    MAX_PAYLOAD_BYTES,
    Parsed,
    answers,
    check_properties,
    finish,
    order_of,
    parse_call_data,
    parse_session,
    sender_id,
    settled,
)
from adapter.errors import CommandError, StorageFullError
from adapter.event import new_id
from adapter.gateway import is_guid
from adapter.intake import Flood, Line, when_stored
from adapter.mqtt import Received
from adapter.store.records import Change, CommandRecord
from adapter.topics import is_work_no

_CLOSE_S = 2.0
"""How long commands that were received may take to be stored at the end."""

_BATCH, _REST_S = 25, 0.05
"""500 commands a second for all agents together: a fraction of what one core does, and all agents of a large centre
within seconds. Beyond that QoS 1 messages wait at the broker, and what comes with QoS 0 is dropped."""

_REMEMBERED_S = 3600.0
"""How long a result is remembered, to answer a repeated id with it (C4)."""

_REMEMBERED_PER_MB = 256
"""How many results are remembered for each MiB of `storage.max_mb`: about a quarter of it, or who sends made-up ids
could fill it, and polling would stop (D4). The default has room for what three agents' topics can take in an hour."""

_EARLY = 1000
"""Commands that may come before the agents are there."""

_FORGET_EVERY = 500
"""After how many commands it is seen to that no more are remembered."""


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
        self._remembered = shared.config.storage.max_mb * _REMEMBERED_PER_MB
        self._taken = 0
        self._line = Line("commands", batch=_BATCH, rest_s=_REST_S)
        self._early: list[tuple[Received, str, str, Callable[[], None]]] | None = []
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
        if self._early is not None and len(self._early) < _EARLY:
            self._early.append((received, work_no, kind, acknowledge))
            return
        self._shared.counters.commands += 1
        # All unknown agents count as one, or a sender who makes up numbers could fill the memory.
        target = work_no if self._knows(work_no) else "unknown agents"
        if not self._flood.admits(target):
            self._shared.counters.dropped_commands += 1
            acknowledge()
            return
        if len(received.payload) > MAX_PAYLOAD_BYTES:  # enough of it to say so
            received = replace(received, payload=received.payload[: MAX_PAYLOAD_BYTES + 1])
        size_bytes = len(received.topic) + len(received.payload)
        size_bytes += len(received.correlation or b"") + len(received.response_topic or "")
        if not self._line.put(size_bytes, partial(self._take, received, work_no, kind, acknowledge)):
            self._shared.counters.dropped_commands += 1
            self._flood.drop(target)
            acknowledge()

    def begin(self) -> None:
        """Do what has come meanwhile, now that the agents are there: before, each of them was unknown."""
        early, self._early = self._early or [], None
        for received in early:
            self.receive(*received)

    async def restore(self, pending: list[CommandRecord]) -> None:
        """Go on with the commands that had no result when the program ended."""
        for command in pending:
            change = self._hand_over(command)
            if change:
                await self._shared.outbox.insist(change)

    async def forget(self) -> None:
        """Forget results that are old, or too many.

        Raises:
            StorageFullError: Not even that can be stored.
        """
        await self._shared.outbox.forget_commands(steady_time() - _REMEMBERED_S, self._remembered)

    async def close(self) -> None:
        """Take no more; wait until what was received is stored, or cannot be."""
        self._closed = True
        await self._line.close(_CLOSE_S)

    async def _take(self, received: Received, work_no: str, kind: str, acknowledge: Callable[[], None]) -> None:
        """Store a command, acknowledge it, and give it to its agent; or answer it at once.

        While it cannot be stored it stays unacknowledged, and a broker sends only so many of these: the rest waits
        there.
        """
        outbox = self._shared.outbox
        command = self._judged(received, work_no, kind)
        first: CommandRecord | None = None
        if is_work_no(work_no):  # anything else never was an agent, and is not worth remembering
            first = await when_stored(self._shared, "commands", partial(outbox.admit, command))
        result = command.result if first is None else first.result
        if result is not None:
            outgoing = answers(self._addressed(command, received), self._shared.topics, result)
            await when_stored(self._shared, "commands", partial(outbox.commit, Change(outgoing=outgoing)))
        acknowledge()
        if first is None and result is None:
            change = self._hand_over(command)
            if change:
                await when_stored(self._shared, "commands", partial(outbox.commit, change))
        self._taken += 1
        if self._taken % _FORGET_EVERY == 0:
            with contextlib.suppress(StorageFullError):
                await self.forget()

    def _judged(self, received: Received, work_no: str, kind: str) -> CommandRecord:
        """Make the command that a message is; one that is refused already has its result."""
        refusal: str | None = None
        parsed = Parsed(id=None, body=b"", ttl_s=None)
        try:
            parsed = _parse(received, kind)
            check_properties(received.correlation, self._allowed(received.response_topic))
            self._check_agent(work_no)
        except CommandError as error:
            refusal = error.reason
        command = CommandRecord(
            work_no=work_no,
            kind=kind,
            id=parsed.id or (refusal and sender_id(received.payload)) or new_id(),
            body=parsed.body,
            received_at=time.time(),
            expires_at=None if parsed.ttl_s is None else steady_time() + parsed.ttl_s,
        )
        if refusal is not None:
            return settled(command, status="rejected", reason=refusal)
        return self._addressed(command, received)

    def _addressed(self, command: CommandRecord, received: Received) -> CommandRecord:
        """Note where this message's sender wants its answer (C8)."""
        response_topic = self._allowed(received.response_topic)
        return replace(command, correlation=received.correlation, response_topic=response_topic)

    def _hand_over(self, command: CommandRecord) -> Change:
        """Give a stored command to its agent; gives the change that a refusal makes."""
        change = Change()
        try:
            self._dispatch(command)
        except CommandError as error:
            finish(change, command, self._shared.topics, status="rejected", reason=error.reason)
        return change

    def _dispatch(self, command: CommandRecord) -> None:
        poller = self._poller(command.work_no)
        if command.kind == "calldata":
            poller.give(command)
        else:
            poller.order(order_of(command))

    def _check_agent(self, work_no: str) -> None:
        """Refuse what is for no agent of ours."""
        if not self._knows(work_no):
            raise CommandError("unknown agent")

    def _knows(self, work_no: str) -> bool:
        """Say whether there is such an agent."""
        return work_no in self._pollers

    def _poller(self, work_no: str) -> Poller:
        poller = self._pollers.get(work_no)
        if poller is None:
            raise CommandError("unknown agent")
        return poller

    def _allowed(self, topic: str | None) -> str | None:
        """Keep a response topic only below the configured prefix: a sender must not choose where the adapter writes.

        Topics that the adapter itself obeys are nobody's response topic: a result there would be the next command.
        """
        if topic is None or self._prefix is None or not topic.startswith(self._prefix + "/"):
            return None
        topics = self._shared.topics
        if topics.parse_command(topic) is not None or topics.parse_request(topic) is not None:
            return None
        return topic if topic.isprintable() and not set(topic) & {"+", "#"} else None


def _parse(received: Received, kind: str) -> Parsed:
    if received.retain:
        raise CommandError("retained")
    if kind == "calldata":
        return parse_call_data(received.payload)
    return parse_session(received.payload, is_guid=is_guid)
