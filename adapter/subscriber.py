"""Subscribing until the broker agrees, over one connection after the other.

A subscription can be refused for a while: nats-server answers 0x80 where JetStream has no leader, and with one of three
nodes away to every third subscription with QoS 1, each time after 5 s. An ACL can be changed meanwhile.

Rules of this file: each filter goes in a packet of its own, one after the other, so that what is published in between
waits for one of them at most; what was granted is not asked for again; a refusal ends no connection.

Source: nats-server issue #5498 for the every third.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import NoReturn

from adapter.config import Backoff
from adapter.mqtt import Connection, Refusal, SubscriptionRefusedError
from adapter.outage import Outage

Subscription = tuple[str, int]
"""A topic filter and its QoS."""

_AGAIN = Backoff(initial_s=1.0, maximum_s=60.0)
"""Pauses before what was refused is tried again."""
_FIRST_S = 2.0
"""How long events wait for the first round, at most: a broker that is well answers at once."""


class Subscriber:
    """Keeps subscriptions.

    Args:
        filters: What to subscribe to, at each connection anew.
    """

    def __init__(self, filters: Sequence[Subscription]) -> None:
        self._filters = filters
        self._granted: set[str] = set()
        self._outage = Outage("broker")

    @contextlib.asynccontextmanager
    async def over(self, connection: Connection) -> AsyncIterator[asyncio.Task[NoReturn]]:
        """Subscribe while the context lasts; entering waits for the first round, unless it takes long.

        Yields:
            What goes on with it; it ends by `BrokerConnectionError` alone.

        Raises:
            BrokerConnectionError: The connection is lost.
        """
        tried, begun = asyncio.Event(), asyncio.Event()
        work = asyncio.create_task(self._subscribe(connection, tried, begun), name="subscriber")
        trying = asyncio.create_task(tried.wait(), name="subscriber.first")
        try:
            await asyncio.wait([work, trying], timeout=_FIRST_S, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            # What is logged goes out by this connection, so not before it is in use.
            asyncio.get_running_loop().call_soon(begun.set)
            yield work
        finally:
            for task in (work, trying):
                task.cancel()
            await asyncio.wait([work, trying])
            if not work.cancelled():
                work.exception()  # whoever waits for the connection knows it already

    async def _subscribe(self, connection: Connection, tried: asyncio.Event, begun: asyncio.Event) -> NoReturn:
        missing, pauses = dict(self._filters), _AGAIN.delays()
        patient = False
        while missing:
            refusals: dict[str, Refusal] = {}
            for topic, qos in list(missing.items()):
                try:
                    await connection.subscribe([(topic, qos)], patient=patient)
                except SubscriptionRefusedError as error:
                    refusals |= error.refusals
                else:
                    self._granted.add(topic)
                    del missing[topic]
                patient = True  # from now on others may publish ahead of it
            tried.set()
            if refusals:
                await begun.wait()
                self._complain(SubscriptionRefusedError(connection.place, refusals))
                await asyncio.sleep(next(pauses))
        tried.set()
        self._outage.is_over()
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    def _complain(self, error: SubscriptionRefusedError) -> None:
        """Log a refusal once for as long as it lasts; as an error unless it looks as if it went by."""
        passing = not any(refusal.lasting for refusal in error.refusals.values())
        if passing and error.refusals.keys() <= self._granted:
            self._outage.begins("subscription", str(error))
        else:
            reason = f"{error}; allow it there, or switch it off in commands"
            self._outage.begins("subscription", reason, grave=True)
