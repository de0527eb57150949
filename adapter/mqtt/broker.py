"""The broker port: opens MQTT connections in the protocol that the broker speaks.

In the picture it stands between the outbox's publisher and the broker. Who connects again, and when, is `app`'s
business: this port only raises. Below it lie `connection` (one connection), `message` (what goes over it)
and `paho_loop` (paho on our event loop); nobody else imports those.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from adapter.config import BrokerAddress, MqttConfig
from adapter.errors import BrokerAuthError, BrokerConnectionError, ConfigError, Problem
from adapter.mqtt.connection import (
    CONNECT_TIMEOUT_S,
    Connection,
    ProtocolName,
    ProtocolRefusedError,
    SubscriptionRefusedError,
)
from adapter.mqtt.message import Message, Received, Refusal

__all__ = [
    "Connection",
    "Dialer",
    "Message",
    "ProtocolName",
    "ProtocolRefusedError",
    "Received",
    "Refusal",
    "SubscriptionRefusedError",
    "read_retained",
    "tls_context",
]


def tls_context(config: MqttConfig) -> ssl.SSLContext | None:
    """Build what TLS needs, once for all connections; `None` for ``mqtt`` and ``ws``.

    Raises:
        ConfigError: A certificate or key cannot be read (any more: `config.load` has looked as well).
    """
    if config.scheme not in ("mqtts", "wss"):
        return None
    try:
        context = ssl.create_default_context(cafile=config.ca_file)
        if config.cert_file is not None:
            context.load_cert_chain(config.cert_file, config.key_file)
    except OSError as err:  # ssl.SSLError is one
        files = ", ".join(str(file) for file in (config.ca_file, config.cert_file, config.key_file) if file)
        raise ConfigError([Problem("mqtt", f"expected readable certificates, got {err} ({files})")]) from err
    if not config.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class Dialer:
    """Opens connections, one after the other, in the protocol that the broker speaks (`mqtt.protocol`).

    ``auto`` tries what worked last, at first 5, and then the other version where the broker refuses it or just hangs up
    before CONNACK, as nats-server does over websocket.

    Of several addresses it begins with the one that worked last, or where that has failed with the one behind it.

    Attributes:
        protocol: What to remember for the next start: what worked last. A broker that merely hung up does not unlearn
            5, since one that is just being stopped does the same.
    """

    def __init__(self, config: MqttConfig, *, remembered: ProtocolName | None = None) -> None:
        self.protocol = remembered
        self._config = config
        self._tls = tls_context(config)
        self._first = 0

    @contextlib.asynccontextmanager
    async def connect(
        self,
        *,
        client_id: str,
        on_message: Callable[[Received], None],
        will: Message | None = None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> AsyncIterator[Connection]:
        """Connect; leaving it with an exception lets the will go out.

        Args:
            client_id: The client id; a broker throws out an older connection of the same id [MQTT-3.1.4-3].
            on_message: Called with each message that comes, on the event loop's thread.
            will: What the broker publishes for us when the connection is lost.
            connect_timeout_s: Seconds for each address and version that is tried.

        Raises:
            BrokerConnectionError: No broker is there, its answer is not MQTT, or its certificate does not fit.
            BrokerAuthError: One refused the log-in: the others are not tried in this.
        """

        def attempt(address: BrokerAddress, protocol: ProtocolName) -> Connection:
            return Connection(
                self._config,
                address,
                client_id=client_id,
                will=will,
                protocol=protocol,
                on_message=on_message,
                tls=self._tls,
                connect_timeout_s=connect_timeout_s,
            )

        async with contextlib.AsyncExitStack() as stack:
            connection = await self._first_that_answers(stack, attempt)
            try:
                yield connection
            except BrokerConnectionError:
                self._turn()
                raise

    async def _first_that_answers(
        self, stack: contextlib.AsyncExitStack, attempt: Callable[[BrokerAddress, ProtocolName], Connection]
    ) -> Connection:
        """Try the addresses, each once."""
        failures: list[str] = []
        while True:
            address = self._config.addresses[self._first]
            try:
                return await self._first_that_works(stack, partial(attempt, address))
            except BrokerConnectionError as error:
                self._turn()
                failures.append(str(error))
                if len(failures) < len(self._config.addresses):
                    continue
                if len(failures) == 1:
                    raise
                raise BrokerConnectionError("; ".join(failures)) from error
            except BrokerAuthError:
                self._turn()
                raise

    def _turn(self) -> None:
        self._first = (self._first + 1) % len(self._config.addresses)

    async def _first_that_works(
        self, stack: contextlib.AsyncExitStack, attempt: Callable[[ProtocolName], Connection]
    ) -> Connection:
        if self._config.protocol != "auto":
            return await stack.enter_async_context(attempt(self._config.protocol))
        first: ProtocolName = self.protocol or "5"
        second: ProtocolName = "3.1.1" if first == "5" else "5"
        try:
            connection = await stack.enter_async_context(attempt(first))
        except ProtocolRefusedError as refused:
            try:
                connection = await stack.enter_async_context(attempt(second))
            except ProtocolRefusedError as other:
                if other.said and not refused.said:  # the first is spoken there: why it hung up is what matters
                    raise refused from other
                raise
            if refused.said or self.protocol != "5":
                self.protocol = second
        else:
            self.protocol = first
        return connection


async def read_retained(
    dialer: Dialer, topics: Sequence[str], client_id: str, wait_s: float, *, quiet_s: float = 0.5
) -> dict[str, Received]:
    """Read retained messages as another client with no will, and disconnect; changes nothing at the broker.

    Args:
        dialer: Opens the connection.
        topics: Topics or filters. Without wildcards it ends as soon as each has its message.
        client_id: Another than the adapter's own, which would be thrown off the broker.
        wait_s: The most seconds to gather, once subscribed.
        quiet_s: Seconds without a message after which no more are expected: MQTT has no mark for the last.

    Returns:
        From topic to its retained message; a topic that has none is missing.

    Raises:
        BrokerError: As `Dialer.connect` and `Connection.subscribe`.
    """
    found: dict[str, Received] = {}
    news = asyncio.Event()

    def take(received: Received) -> None:
        if received.retain:
            found[received.topic] = received
            news.set()

    async with dialer.connect(client_id=client_id, on_message=take) as connection:
        await connection.subscribe([(topic, 0) for topic in topics])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                while not found.keys() >= set(topics):
                    async with asyncio.timeout(quiet_s):
                        await news.wait()
                    news.clear()
    return found
