"""The adapter's place at the broker: connect, subscribe, say `online`, publish, and connect again.

The order on each connection: will -> CONNECT -> CONNACK -> SUBSCRIBE -> `online` -> the publisher begins.
"""

import asyncio
import contextlib
import logging
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NoReturn

import msgspec

from adapter.config import MqttConfig
from adapter.errors import BrokerAuthError, BrokerConnectionError, BrokerError, StartError, StorageFullError
from adapter.mark import Mark
from adapter.metrics import Counters
from adapter.mqtt import Connection, Dialer, Message, ProtocolName, Received, Refusal, read_retained
from adapter.publisher import Publisher
from adapter.standing import Standing
from adapter.store.outbox import Outbox
from adapter.subscriber import Subscriber, Subscription
from adapter.topics import Topics

_log = logging.getLogger(__name__)

_ALIVE_S = 150.0
"""How old the health of another instance may be for it to count as running: two reports may be missing."""
_LOOK_S = 2.0
"""How long to look for another instance, at most."""
_QUIET_S = 0.5
"""How long no answer takes to mean that there is none: MQTT has no other way to say so."""
_OFFLINE_S = 1.0
"""How long the farewell may take."""


class Link:
    """Keeps one connection to the broker.

    Args:
        mark: What keeps that broker's retained messages complete.
        subscriptions: Topic filters with their QoS.
        receive: Takes each message, and a function that acknowledges it.
        connected: Called at each connection, after `online`.
        remembered: The protocol that worked last time.
        own_starts: When this instance was started, this time and before, as `info` says it.

    Attributes:
        connection: The connection, while there is one.
        settled: Set once the first attempt is over, whichever way; a log-in refused later does not end the program.
    """

    def __init__(  # noqa: PLR0913 - what it ties together
        self,
        config: MqttConfig,
        *,
        outbox: Outbox,
        topics: Topics,
        counters: Counters,
        mark: Mark,
        subscriptions: list[Subscription],
        receive: Callable[[Received, Callable[[], None]], None],
        connected: Callable[[], None],
        remembered: ProtocolName | None,
        own_starts: frozenset[str],
    ) -> None:
        self.connection: Connection | None = None
        self.settled = asyncio.Event()
        self._config = config
        self._outbox = outbox
        self._counters = counters
        self._mark = mark
        self._subscriber = Subscriber(subscriptions)
        self._receive = receive
        self._connected = connected
        self._own_starts = own_starts
        self._topics = topics
        self._availability = topics.bridge("availability")
        self._dialer = Dialer(config, remembered=remembered)
        self._remembered = remembered
        self._publisher = Publisher(outbox, counters)
        self._standing = Standing(config.client_id)
        self._leaving = asyncio.Event()
        self._says_offline = False
        self._alone = False
        self._was_connected = False
        self._greets = True

    async def run(self) -> None:
        """Keep connected until `leave` is called.

        Raises:
            StartError: The broker refuses the first log-in, or another instance lives under the same prefix.
        """
        while not self._leaving.is_set():
            try:
                if not self._alone:
                    await self._refuse_company()
                    self._alone = True
                self._publisher.denied = False
                await self._connect_once()
            except BrokerAuthError as error:
                if not self._was_connected and not self.settled.is_set():
                    raise StartError(f"broker: log-in refused: {error}", exit_code=1) from error
                await self._rest(self._standing.refused(str(error)))
            except BrokerError as error:
                self.settled.set()
                await self._rest(self._standing.lost(str(error), known=self._publisher.denied))

    def leave(self) -> None:
        """Have `run` disconnect and return."""
        self._leaving.set()

    async def say_offline(self) -> None:
        """Publish `offline` ourselves, from now on: a clean DISCONNECT discards the will."""
        self._says_offline = True
        if self.connection is None or not self._greets:
            return
        taken = asyncio.Event()
        with contextlib.suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(_OFFLINE_S):
                self.connection.publish(self._available(b"offline"), lambda _: taken.set())
                await taken.wait()

    def repeat_availability(self) -> None:
        """Publish `online` once more, or `offline` while the adapter ends."""
        if self._greets:
            self.publish(self._available(b"offline" if self._says_offline else b"online"))

    def publish(self, message: Message) -> None:
        """Publish at once, where there is a connection: for what is worth nothing later.

        Not over one that follows several which ended soon: a broker may hang up over a topic that it denies.
        """
        if self.connection is not None and not self._standing.doubtful:
            with contextlib.suppress(BrokerError):
                self.connection.publish(message)

    async def _connect_once(self) -> None:
        """Hold one connection from CONNECT to its loss, or until `leave`."""
        early: list[Received] = []

        def take(received: Received) -> None:
            if self.connection is None:
                early.append(received)  # a broker may send what it retains before its answer to SUBSCRIBE
            else:
                self._take(received, connection)

        async with self._dialer.connect(
            client_id=self._config.client_id, on_message=take, will=self._available(b"offline")
        ) as connection:
            self._standing.made()  # before SUBSCRIBE: a rival with the same client id may be quicker
            try:
                async with self._subscriber.over(connection) as subscribing:
                    await self._use(connection, subscribing, early)
            finally:
                self._standing.ended(hung_up=connection.hung_up and not self._publisher.denied)
            await self._mark.leave_behind(connection)

    async def _use(
        self, connection: Connection, subscribing: asyncio.Task[NoReturn], early: Sequence[Received]
    ) -> None:
        """Use a connection until it is lost, or until `leave`."""
        self._greet(connection)
        self._counters.broker_connections += 1
        self.connection = connection
        for received in early:
            self._take(received, connection)
        if self._dialer.protocol is not None and self._dialer.protocol != self._remembered:
            self._remembered = self._dialer.protocol
            with contextlib.suppress(StorageFullError):
                await self._outbox.remember("protocol", self._remembered.encode())
        _log.log(
            logging.DEBUG if self._was_connected else logging.INFO,
            "broker: connected, MQTT %s",
            connection.protocol,
        )
        self._was_connected = True
        self._connected()
        self.settled.set()
        ways = [
            asyncio.create_task(self._publisher.run(connection), name="publisher"),
            asyncio.create_task(self._mark.run(connection), name="mark"),
            asyncio.create_task(connection.lost(), name="broker.lost"),
            asyncio.create_task(self._leaving.wait(), name="broker.leaving"),
            subscribing,
        ]
        try:
            done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.connection = None
            for way in ways:
                way.cancel()
            await asyncio.wait(ways)
        errors = [error for way in done if (error := way.exception()) is not None]
        if errors:
            raise errors[0]

    def _greet(self, connection: Connection) -> None:
        """Say `online`; the answer shows that the broker works, whatever it is."""

        def answered(refusal: Refusal | None) -> None:
            if refusal is not None and refusal.lasting:
                self._greets = False
                reason = f"{refusal.reason}; not published again before the next start"
                _log.error("broker: refuses %s: %s", self._availability, reason)
            if self.connection is connection:
                self._standing.answered()

        if self._greets:
            connection.publish(self._available(b"offline" if self._says_offline else b"online"), answered)
        else:
            self._standing.answered()

    def _take(self, received: Received, connection: Connection) -> None:
        if received.topic == self._mark.topic:
            self._mark.take(received)
            return
        self._receive(received, lambda: connection.ack(received))

    async def _refuse_company(self) -> None:
        """See that no other instance publishes under the same prefix: both would poll, and steal events (section 3).

        A crash leaves our own `online` and health behind; they are told from another's by the start that they name.
        """
        names = ("availability", "health", "info")
        topics = {name: self._topics.bridge(name) for name in names}
        looker = f"{self._config.client_id}-start-{uuid.uuid4().hex[:8]}"
        try:
            found = await read_retained(self._dialer, list(topics.values()), looker, _LOOK_S, quiet_s=_QUIET_S)
        except (BrokerAuthError, BrokerConnectionError):
            raise
        except BrokerError as error:
            _log.warning("broker: %s; another instance would not be noticed", error)
            return
        payload = {name: found[topic].payload for name, topic in topics.items() if topic in found}
        age_s = live_health_age_s(payload)
        if age_s is not None and _member(payload.get("info"), "startedAt") not in self._own_starts:
            reason = (
                f"broker: another instance is live under the prefix {self._config.topic_prefix!r}"
                f" (its health is {age_s:.0f} s old): stop it, or choose another mqtt.topic_prefix"
            )
            raise StartError(reason, exit_code=2)

    def _available(self, payload: bytes) -> Message:
        return Message(topic=self._availability, payload=payload, retain=True)

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._leaving.wait()


def live_health_age_s(bridge: Mapping[str, bytes]) -> float | None:
    """Say how old the health of a live instance is, in seconds; `None` where none is live.

    Args:
        bridge: What is retained on ``availability`` and ``health`` of `Topics.bridge`, by name.
    """
    age_s = _age_s(_member(bridge.get("health"), "at"))
    return age_s if bridge.get("availability") == b"online" and abs(age_s) < _ALIVE_S else None


def _member(payload: bytes | None, name: str) -> str | None:
    """Take a text member of what somebody has retained; `None` for anything else."""
    try:
        value = msgspec.json.decode(payload or b"{}")
    except (ValueError, RecursionError):
        return None
    member = value.get(name) if isinstance(value, dict) else None
    return member if isinstance(member, str) else None


def _age_s(moment: str | None) -> float:
    """Say how long ago a moment was; without end for what is none."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(moment or "")).total_seconds()
    except (ValueError, TypeError):
        return math.inf
