"""Keeping what the broker retains complete, also where the broker forgets (D4a). Beside the publisher, in its shadow.

```
write .. PUBACK .. write .. PUBACK .. mark 7 .. write .. PUBACK .. [the broker is killed] .. connect: "mark 7"
                                                ^^^^^ may be gone, so it goes out again; what is older is there
```

A broker that comes back from an old snapshot comes back with that snapshot's mark. Rules of this file: nothing waits
for it; it never sends by itself what the outbox holds, it only has the outbox offer it again.
"""

import asyncio
import logging
from typing import NoReturn

import msgspec

from adapter.errors import BrokerConnectionError, BrokerError, StorageFullError
from adapter.mqtt import Connection, Message, Received, Refusal
from adapter.payloads import MarkPayload
from adapter.store.outbox import Outbox

_log = logging.getLogger(__name__)

_SLICE = 250
_SLICE_S = 0.25
"""So many values go out again in so many seconds: 1,000 a second, which leaves a broker room for what is new."""

PER_SECOND = _SLICE / _SLICE_S
"""How many retained values go out again in a second, at most."""

_FULL_S = 5.0
"""How long a full disk is left alone."""

_LARGEST = 2**53
"""No counter of ours comes here; and not every reader of JSON can count further."""


class Mark:
    """The mark of one broker, over all connections to it.

    Args:
        topic: Where it is retained.
        every_s: Seconds between two marks, at the least.
        wait_s: Seconds after which a broker has none.
    """

    def __init__(self, outbox: Outbox, topic: str, *, every_s: float, wait_s: float) -> None:
        self.topic = topic
        self._outbox = outbox
        self._every_s = every_s
        self._wait_s = wait_s
        self._found: asyncio.Future[int | None] | None = None
        self._seen = 0
        self._complete = False
        self._told = ""
        self._forbidden = False

    async def run(self, connection: Connection) -> NoReturn:
        """Read the mark back, have the outbox repeat what is newer, and mark what follows, until cancelled.

        Raises:
            BrokerConnectionError: The connection is lost.
        """
        self._complete = False
        last = self._outbox.draw_line()
        seen = await self._read_back(connection)
        known = "no mark" if seen is None else f"mark {seen}"
        await self._repeat(self._outbox.marks_since(seen, last), f"has {known}: what it may lack goes out again")
        self._seen = seen or 0
        self._complete = True
        while True:
            await self._outbox.unmarked.wait()
            await asyncio.sleep(self._every_s)
            await self.leave_behind(connection)

    async def repeat_all(self) -> None:
        """Have everything sent again that a broker has acknowledged: somebody asks for it, whatever is retained."""
        self._told = ""
        await self._repeat(
            self._outbox.marks_since(None, self._outbox.draw_line()), "is told again all that it retains"
        )

    def take(self, received: Received) -> None:
        """Take what came on `topic`: the retained mark, or our own while it is published."""
        if self._found is not None and not self._found.done() and received.retain:
            self._found.set_result(_count(received.payload))

    async def leave_behind(self, connection: Connection) -> None:
        """Publish a mark, where the broker has taken something over since the last.

        Raises:
            BrokerConnectionError: The connection is lost.
        """
        # Before all is told again, a mark would say that it was.
        if self._forbidden or not self._complete or not self._outbox.unmarked.is_set():
            return
        try:
            mark = await self._outbox.advance_mark(self._seen)
        except StorageFullError as error:
            self._outbox.unmarked.set()
            _log.debug("mark: %s", error)
            return
        message = Message(topic=self.topic, payload=MarkPayload(n=mark).render(), retain=True)
        connection.publish(message, self._answered)

    def _answered(self, refusal: Refusal | None) -> None:
        """Mark no more where that is denied: brokers hang up over it, and each time everything would go out again."""
        if refusal is not None and refusal.lasting:
            self._forbidden = True
            self._tell(logging.ERROR, f"refuses {self.topic}: {refusal.reason}; not published before the next start")

    async def _read_back(self, connection: Connection) -> int | None:
        """Read the mark that the broker retains; `None` where it has none, or does not show it."""
        self._found = asyncio.get_running_loop().create_future()
        try:
            # nats-server lets all wait that comes behind a subscription for which it has no quorum.
            await connection.subscribe([(self.topic, 0)], patient=True)
            async with asyncio.timeout(self._wait_s):
                return await self._found
        except TimeoutError:
            return None
        except BrokerConnectionError:
            raise
        except BrokerError as error:
            self._tell(logging.ERROR, f"{error}; all that is retained goes out again at each connection")
            return None
        finally:
            self._found = None

    async def _repeat(self, marks: range, why: str) -> None:
        """Have everything sent again that was acknowledged at one of `marks`."""
        topic: str | None = ""
        told = False
        while topic is not None:
            if self._outbox.slots_waiting < _SLICE:  # a slow broker sets the pace
                try:
                    topic = await self._outbox.offer_again(marks, topic, _SLICE)
                    if topic is not None and not told:
                        told = True
                        self._tell(logging.INFO, why)
                except StorageFullError as error:
                    _log.debug("mark: %s", error)
                    await asyncio.sleep(_FULL_S)
            await asyncio.sleep(_SLICE_S)

    def _tell(self, level: int, what: str) -> None:
        """Log what a connection showed, unless the last one showed the same: a broker may drop one after the other."""
        if what != self._told:
            self._told = what
            _log.log(level, "broker: %s", what)


def _count(payload: bytes) -> int | None:
    """Take the counter out of a mark; `None` for what is none of ours."""
    try:
        n = msgspec.json.decode(payload, type=MarkPayload).n
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return n if n < _LARGEST else None
