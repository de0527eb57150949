"""From the outbox to the broker: send in order, remove after PUBACK.

Rules of this file:
1. Newest values (slots) go ahead of the line, so that what a late subscriber reads is true now.
2. At most `WINDOW` entries are in hand: sent, and their removal not yet on disk. That is what a crash repeats (D3).
3. A new connection begins the line again at its oldest entry; repeats carry the same `id` and `seq`.
4. What the broker does not take for now begins the line again as well, after a pause. What stands behind it on the same
   topic goes again, so that the last one is the last one.
5. What the broker will never take is set aside, and the rest goes on.
"""

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from adapter.clock import steady_time
from adapter.config import Backoff
from adapter.errors import StorageError
from adapter.event import mark_replayed
from adapter.metrics import Counters
from adapter.mqtt import Connection, Message, Refusal
from adapter.outage import Outage
from adapter.store.outbox import Outbox
from adapter.store.records import Entry, Slot
from adapter.suspicion import Key, Suspicion
from adapter.topics import is_event

_log = logging.getLogger(__name__)

WINDOW = 500
"""Entries in hand: enough to keep a broker busy over a slow link, few enough to repeat after a crash."""

_LATE_S = 30.0
"""An event that goes out later than this after its coming is marked as replayed."""

_READ_AGAIN_S = 10.0
"""When the line is read again that could not be read."""

_REMIND_S = 60.0
"""How often that is logged, while it is so (D4)."""

_PUT_OFF = Backoff(initial_s=1.0, maximum_s=30.0)
"""Pauses before a message is tried again that the broker did not take for now."""

_PROBE_S = (1.0, 3.0)
"""How long a connection stands before a suspected message is sent alone: one that ends by itself ends before."""

_DENIED_S = 600.0
"""How long a topic is left alone over which the broker hangs up, as Mosquitto 2.0.11 does at each denied PUBLISH: every
try costs all agents a connection."""

_NOT_DENIED = (0.0, Refusal(""))


@dataclass(slots=True)
class _Way:
    """A message on its way, from sending to the last PUBACK that it waits for.

    Attributes:
        left: PUBACKs that are still to come: an event has two, one for each of its topics.
    """

    item: Entry | Slot
    left: int

    @property
    def key(self) -> Key:
        return self.item.row if isinstance(self.item, Entry) else self.item.topic

    @property
    def topic(self) -> str:
        return self.item.message.topic if isinstance(self.item, Entry) else self.item.topic


_Ways = dict[Key, _Way]
"""What was sent since the line was begun last, oldest first. What answers to one before it tells nothing any more."""


class Publisher:
    """Sends what the outbox holds over one connection after the other.

    Attributes:
        denied: Whether the last connection ended over a message that the broker had refused.
    """

    def __init__(self, outbox: Outbox, counters: Counters) -> None:
        self.denied = False
        self._outbox = outbox
        self._counters = counters
        self._ways: _Ways = {}
        self._told: set[str] = set()
        self._suspicion = Suspicion()
        self._last_denied: tuple[str, Refusal] | None = None
        self._denied: dict[str, tuple[float, Refusal]] = {}
        self._outage = Outage("broker")
        self._unreadable = Outage("storage")
        self._put_off: dict[str, float] = {}
        self._pauses: Iterator[float] = _PUT_OFF.delays()
        self._again_at: float | None = None

    async def run(self, connection: Connection) -> NoReturn:
        """Send until cancelled.

        Raises:
            BrokerConnectionError: The connection is lost.
        """
        self._begin_line()
        probing = self._suspicion.probing
        try:
            if probing:
                await asyncio.sleep(random.uniform(*_PROBE_S))  # noqa: S311 - keeps no secret
            while True:
                await self._send_what_waits(connection)
        finally:
            if connection.hung_up:
                self._look_for_the_cause(connection, probing=probing)

    def _begin_line(self) -> None:
        self._ways = {}
        self._again_at = self._last_denied = None
        self._outbox.rewind()

    async def _send_what_waits(self, connection: Connection) -> None:
        self._outbox.changed.clear()
        while self._room() > 0 and (slot := self._outbox.next_slot()) is not None:
            self._send_slot(connection, slot)
        room = min(self._room(), WINDOW - self._outbox.in_hand) if self._again_at is None else 0
        try:
            entries = await self._outbox.next(room) if room > 0 else []
        except StorageError as error:
            self._unreadable.begins("publisher", str(error), remind_s=_REMIND_S, grave=True)
            await asyncio.sleep(_READ_AGAIN_S)
            return
        self._unreadable.is_over()
        for entry in entries:
            self._send(connection, entry)
        connection.flush()
        if not entries or not self._outbox.has_next:
            await self._wait()

    async def _wait(self) -> None:
        """Wait until there may be more to send, or what was put off may go again."""
        if self._again_at is None:
            await self._outbox.changed.wait()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._again_at):
                await self._outbox.changed.wait()
        if asyncio.get_running_loop().time() >= self._again_at:
            self._begin_line()

    @property
    def _one_by_one(self) -> bool:
        return self._suspicion.probing or bool(self._put_off)

    def _room(self) -> int:
        return (1 if self._one_by_one else WINDOW) - len(self._ways)

    def _send_slot(self, connection: Connection, slot: Slot) -> None:
        payload = slot.payload
        if payload and is_event(slot.topic):
            payload = mark_replayed(payload)
        self._hand_over(connection, slot, Message(topic=slot.topic, payload=payload, retain=True))

    def _send(self, connection: Connection, entry: Entry) -> None:
        message, payload = entry.message, entry.message.payload
        if entry.is_event and (entry.row <= self._outbox.restarted_after or steady_time() - entry.made_at > _LATE_S):
            payload = mark_replayed(payload)
        last = Message(topic=message.topic, payload=payload, retain=message.retain, correlation=message.correlation)
        if message.stream_topic is None:
            self._hand_over(connection, entry, last)
        else:
            self._hand_over(connection, entry, Message(topic=message.stream_topic, payload=payload), last)

    def _hand_over(self, connection: Connection, item: Entry | Slot, *messages: Message) -> None:
        for message in messages:
            until, refusal = self._denied.get(message.topic, _NOT_DENIED)
            if time.monotonic() < until:
                self._give_up(item, message.topic, refusal.reason)
                return
        way = _Way(item, len(messages))
        self._ways.pop(way.key, None)
        self._ways[way.key] = way
        for message in messages:
            connection.publish(message, partial(self._answered, self._ways, way, message.topic))

    def _answered(self, ways: _Ways, way: _Way, topic: str, refusal: Refusal | None) -> None:
        """Note what the broker says to one message of a way."""
        self._counters.publishes += refusal is None
        if ways is not self._ways or ways.get(way.key) is not way:
            return
        self._last_denied = None
        waited = self._one_by_one
        if refusal is None:
            way.left -= 1
            if way.left:
                return
            del ways[way.key]
            self._taken(way)
        else:
            del ways[way.key]
            if refusal.lasting:
                self._last_denied = (topic, refusal) if refusal.code is not None else None
                self._give_up(way.item, topic, refusal.reason)
            else:
                self._try_later(way, refusal)
        if waited or self._one_by_one:  # perhaps it was the last that the others waited for
            self._outbox.changed.set()

    def _taken(self, way: _Way) -> None:
        self._suspicion.taken(way.key)
        if isinstance(way.item, Entry):
            if self._again_at is not None and way.item.row > self._put_off.get(way.topic, way.item.row):
                return  # it overtook one that goes again, and goes again behind it
            self._outbox.acknowledge(way.item.row)
        else:
            self._outbox.acknowledge_slot(way.item)
        if self._again_at is None and self._put_off and (isinstance(way.item, Entry) or way.topic in self._put_off):
            self._put_off.clear()
            self._pauses = _PUT_OFF.delays()
            self._outage.is_over()

    def _try_later(self, way: _Way, refusal: Refusal) -> None:
        """Begin the line again after a pause: a newest value stays sent, an entry in line, until then."""
        row = way.item.row if isinstance(way.item, Entry) else math.inf
        self._put_off[way.topic] = min(row, self._put_off.get(way.topic, row))
        self._outage.begins("publishing", f"{way.topic} is refused for now: {refusal.reason}")
        if self._again_at is None:
            self._again_at = asyncio.get_running_loop().time() + next(self._pauses)

    def _give_up(self, item: Entry | Slot, topic: str, reason: str) -> None:
        """Take a message out of the way; log the first of each kind: an ACL that is missing would fill the log."""
        if isinstance(item, Entry):
            fate, payload = "set aside in the database", item.message.payload
            self._outbox.set_aside(item, reason)
        else:
            fate, payload = "offered again at the next start", item.payload
            self._outbox.refuse_slot(item)
        if reason not in self._told:
            self._told.add(reason)
            _log.error("broker: refuses %s (%d bytes): %s; %s", topic, len(payload), reason, fate)

    def _look_for_the_cause(self, connection: Connection, *, probing: bool) -> None:
        """See whether the broker has hung up over one message, which would go again and again otherwise."""
        self.denied = self._last_denied is not None
        if self._last_denied is not None:
            topic, refusal = self._last_denied
            self._denied[topic] = (time.monotonic() + _DENIED_S, refusal)
            return
        alone = probing and len(self._ways) == 1 and connection.acknowledged > 0
        guilty = self._suspicion.hung_up(self._ways, alone=alone)
        if guilty is not None:
            way = self._ways[guilty]
            self._give_up(way.item, way.topic, "the broker hangs up over it, perhaps for its size")
