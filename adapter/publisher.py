"""From the outbox to the broker: send in order, remove after PUBACK.

Rules of this file:
1. Newest values (slots) go ahead of the line, so that what a late subscriber reads is true now.
2. At most `WINDOW` entries are in hand: sent, and their removal not yet on disk. That is what a crash repeats (D3).
3. A new connection begins the line again at its oldest entry; repeats carry the same `id` and `seq`.
4. What the broker will never take is set aside, and the rest goes on.
"""

import asyncio
import logging
import time
from functools import partial
from typing import NoReturn

from adapter.errors import StorageError
from adapter.event import mark_replayed
from adapter.metrics import Counters
from adapter.mqtt import Connection, Message
from adapter.store.outbox import Outbox
from adapter.store.records import Entry, Slot
from adapter.topics import is_event

_log = logging.getLogger(__name__)

WINDOW = 500
"""Entries in hand: enough to keep a broker busy over a slow link, few enough to repeat after a crash."""

_LATE_S = 30.0
"""An event that goes out later than this after its coming is marked as replayed."""

_READ_AGAIN_S = 10.0
"""When the line is read again that could not be read."""


class Publisher:
    """Sends what the outbox holds over one connection after the other."""

    def __init__(self, outbox: Outbox, counters: Counters) -> None:
        self._outbox = outbox
        self._counters = counters
        self._unconfirmed: dict[int, int] = {}
        self._refused: set[str] = set()

    async def run(self, connection: Connection) -> NoReturn:
        """Send until cancelled.

        Raises:
            BrokerConnectionError: The connection is lost.
        """
        self._unconfirmed.clear()
        self._outbox.rewind()
        while True:
            self._outbox.changed.clear()
            while (slot := self._outbox.next_slot()) is not None:
                self._send_slot(connection, slot)
            room = WINDOW - self._outbox.in_hand
            try:
                entries = await self._outbox.next(room) if room > 0 else []
            except StorageError as error:
                _log.error("publisher: %s", error)
                await asyncio.sleep(_READ_AGAIN_S)
                continue
            for entry in entries:
                self._send(connection, entry)
            if not entries:
                await self._outbox.changed.wait()

    def _send_slot(self, connection: Connection, slot: Slot) -> None:
        payload = slot.payload
        if payload and is_event(slot.topic):
            payload = mark_replayed(payload)
        connection.publish(Message(topic=slot.topic, payload=payload, retain=True), partial(self._slot_taken, slot))

    def _slot_taken(self, slot: Slot, refusal: str | None) -> None:
        if refusal is None:
            self._counters.publishes += 1
            self._outbox.acknowledge_slot(slot)
        else:
            self._say_refused(slot.topic, refusal, "offered again at the next start")
            self._outbox.refuse_slot(slot)

    def _send(self, connection: Connection, entry: Entry) -> None:
        message, payload = entry.message, entry.message.payload
        if entry.is_event and (entry.row <= self._outbox.restarted_after or time.time() - entry.made_at > _LATE_S):
            payload = mark_replayed(payload)
        taken = partial(self._taken, entry)
        if message.stream_topic is None:
            self._unconfirmed[entry.row] = 1
        else:
            self._unconfirmed[entry.row] = 2
            connection.publish(Message(topic=message.stream_topic, payload=payload), taken)
        connection.publish(
            Message(topic=message.topic, payload=payload, retain=message.retain, correlation=message.correlation),
            taken,
        )

    def _taken(self, entry: Entry, refusal: str | None) -> None:
        """Note an acknowledgment; an event has two, one for each of its topics."""
        left = self._unconfirmed.get(entry.row)
        if left is None:
            return
        if refusal is not None:
            del self._unconfirmed[entry.row]
            self._say_refused(entry.message.topic, refusal, "set aside in the database")
            self._outbox.set_aside(entry, refusal)
            return
        self._counters.publishes += 1
        if left > 1:
            self._unconfirmed[entry.row] = left - 1
        else:
            del self._unconfirmed[entry.row]
            self._outbox.acknowledge(entry.row)

    def _say_refused(self, topic: str, refusal: str, fate: str) -> None:
        """Log the first refusal of each kind: an ACL that is missing would otherwise fill the log."""
        if refusal not in self._refused:
            self._refused.add(refusal)
            _log.error("broker: refuses %s: %s; %s", topic, refusal, fate)
