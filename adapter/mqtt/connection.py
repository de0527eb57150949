"""One MQTT connection, as an async context manager: what the packets mean.

Rules of this file:
1. The outbox is the only memory of unsent messages: a new paho client for each connection, clean start always, and
   nothing is sent again from here.
2. Left without an exception, a connection ends with DISCONNECT; left with one, without, so that the will goes out
   [MQTT-3.14.4-3].
3. A command is acknowledged by `ack()` alone (C3), and every callback comes on the event loop's thread, never from
   within a call of ours.
4. paho's exceptions and types end here.

Source: MQTT Version 5.0 and MQTT Version 3.1.1, OASIS Standards; the clauses are cited where they apply.
"""

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NoReturn, Self, cast

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from adapter.config import BrokerAddress, MqttConfig
from adapter.errors import BrokerAuthError, BrokerConnectionError, BrokerError
from adapter.mqtt.gathered import Gathering
from adapter.mqtt.message import (
    Message,
    Received,
    Refusal,
    parse_received,
    parse_refusal,
)
from adapter.mqtt.packets import encode_publish
from adapter.mqtt.paho_loop import PahoLoop

ProtocolName = Literal["5", "3.1.1"]
OnAck = Callable[[Refusal | None], None]

CONNECT_TIMEOUT_S = 10.0
"""Seconds from the first name look-up to CONNACK: a broker that is there answers within one."""

ACK_TIMEOUT_S = 60.0
"""Seconds without any PUBACK for the oldest message, after which the connection counts as lost."""

FLUSH_S = 3.0
"""Seconds that a clean end may take to write what is still in line, DISCONNECT included."""

SETTLE_S = 1.0
"""Seconds for which a clean end waits for acknowledgments before."""

IN_FLIGHT = 200
"""QoS 1 messages in flight at most, whatever the broker allows: enough for thousands a second over a slow link. Their
PUBACKs may come in one go, and everything else waits while they are handed on."""

_FIRST_ID, _LAST_ID = 32_768, 65_535
"""Packet identifiers of PUBLISH. paho counts those of SUBSCRIBE from 1, and comes here in no connection."""

_RECEIVE_MAXIMUM = 100
"""Commands that a broker may send without an acknowledgment: the rest waits there, and not in our memory."""

_MAXIMUM_PACKET_BYTES = 4 * 1024 * 1024
"""The largest packet that a broker may send: some times the largest event. MQTT allows 256 MB, which anybody who may
publish commands could have us hold. A 3.1.1 broker cannot be told; its own limit has to do."""

_NOT_SPOKEN = 0x84
_LOG_IN_REFUSED = frozenset({0x86, 0x87, 0x8A, 0x8C})
"""CONNACK: bad user name or password, not authorized, banned, bad authentication method. Source: MQTT 5.0, 3.2.2.2;
paho gives the return codes 4 and 5 of 3.1.1 as the first two."""


class ProtocolRefusedError(BrokerConnectionError):
    """The broker does not speak this version of MQTT, or hung up before answering, which can mean the same.

    Attributes:
        said: Whether it said so.
    """

    def __init__(self, reason: str, *, said: bool) -> None:
        self.said = said
        super().__init__(reason)


class SubscriptionRefusedError(BrokerError):
    """The broker does not grant a subscription.

    Attributes:
        refusals: Why, by topic filter.
    """

    def __init__(self, place: str, refusals: Mapping[str, Refusal]) -> None:
        self.refusals = dict(refusals)
        refused = ", ".join(f"{topic} ({refusal.reason})" for topic, refusal in refusals.items())
        super().__init__(f"{place}: subscription refused: {refused}")


class Connection:
    """One connection to the broker in one protocol version; used once, as an async context manager.

    Entering it raises BrokerConnectionError (not there, TLS, no answer), its subclass ProtocolRefusedError, or
    BrokerAuthError.

    Attributes:
        place: Where the broker is, for people.
        protocol: The version spoken, ``"5"`` or ``"3.1.1"``.
        receive_maximum: How many QoS 1 messages may be in flight: the broker's Receive Maximum
            [MQTT-3.3.4-9]; 65,535, which is all packet identifiers, where it names none.
        maximum_packet_size: Bytes of the largest packet that the broker takes; `None` where it names none.
        maximum_qos: The highest QoS that it takes.
        retain_available: Whether it retains messages.
        acknowledged: How many messages the broker has answered with PUBACK.
        hung_up: Whether the other side ended the connection, perhaps over what it was sent.
    """

    def __init__(  # noqa: PLR0913 - what a connection is made of
        self,
        config: MqttConfig,
        address: BrokerAddress,
        *,
        client_id: str,
        will: Message | None,
        protocol: ProtocolName,
        on_message: Callable[[Received], None],
        tls: ssl.SSLContext | None,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        self.place = str(address)
        self.protocol = protocol
        self.receive_maximum = 65_535
        self.maximum_packet_size: int | None = None
        self.maximum_qos = 2
        self.retain_available = True
        self.acknowledged = 0
        self.hung_up = False
        self._config = config
        self._five = protocol == "5"
        self._address = address
        self._on_message = on_message
        self._connect_timeout_s = connect_timeout_s
        self._loop = asyncio.get_running_loop()
        self._gone = asyncio.Event()
        self._answered = asyncio.Event()
        self._loss = BrokerConnectionError("")
        self._connack: asyncio.Future[None] = self._loop.create_future()
        self._subacks: dict[int, asyncio.Future[list[ReasonCode]]] = {}
        self._acks: dict[int, OnAck] = {}
        self._oldest = (0, 0.0)
        self._held: deque[tuple[Message, OnAck]] = deque()
        self._last_id = _LAST_ID
        self._unacknowledged: dict[int, Received] = {}
        self._client = self._new_client(client_id, will, tls)
        self._line = PahoLoop(self._client, self._look_for_silence, self._on_pubacks)

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            self._line.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._gone.is_set():
                # paho closes the socket behind DISCONNECT. An answer that comes meanwhile would lie there unread, and
                # TCP resets such a connection: the broker would not see our DISCONNECT, and publish the will.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(SETTLE_S):
                        while self.in_flight and not self._gone.is_set():
                            self._answered.clear()
                            await self._answered.wait()
                self._client.disconnect()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(FLUSH_S):
                        await self._gone.wait()
        finally:
            self._line.close()
            self._end("closed")

    @property
    def in_flight(self) -> int:
        """How many QoS 1 messages wait for their PUBACK, those held back here included."""
        return len(self._acks) + len(self._held)

    def publish(self, message: Message, on_ack: OnAck | None = None) -> None:
        """Hand a message to the broker, in order; returns at once, and `on_ack` comes later, never from within.

        More than `receive_maximum`, or `IN_FLIGHT`, are not sent: what exceeds it waits here, in order, for a PUBACK.
        A connection that is lost acknowledges nothing any more.

        Args:
            message: What to publish.
            on_ack: Called once: with `None` when the broker took the message over (PUBACK), or with the reason why
                it did not ("Not authorized", or too large for it). Left out where nobody wants to know; not called
                with QoS 0, except with the reason why the message cannot be sent at all.

        Raises:
            BrokerConnectionError: The connection is lost; nothing was sent.
        """
        self._check()
        if message.qos == 0:
            self._send(message, on_ack or _nobody_asks)
        elif self._held or not self._has_room():
            self._held.append((message, on_ack or _nobody_asks))
        else:
            self._send(message, on_ack or _nobody_asks)

    def flush(self) -> None:
        """Write now what was published, instead of behind all else that this turn of the event loop brings."""
        self._line.flush()

    async def subscribe(self, filters: Sequence[tuple[str, int]], *, patient: bool = False) -> None:
        """Subscribe to topic filters, each with its QoS, and wait until the broker has agreed.

        Args:
            filters: The topic filters.
            patient: Whether to wait as long as for a PUBACK: the answer may come behind those to many messages.

        Raises:
            SubscriptionRefusedError: It refused one of them.
            BrokerConnectionError: The connection was lost, or there was no answer.
        """
        self._check()
        _, mid = self._client.subscribe(list(filters))
        assert mid is not None, "paho has a socket while the connection is not gone"  # noqa: S101 - for mypy
        suback = self._subacks[mid] = self._loop.create_future()
        try:
            async with asyncio.timeout(ACK_TIMEOUT_S if patient else self._connect_timeout_s):
                reasons = await suback
        except TimeoutError as err:
            raise BrokerConnectionError(f"{self.place}: no answer to SUBSCRIBE") from err
        finally:
            self._subacks.pop(mid, None)
        refusals = {
            topic: Refusal(str(reason), reason.value)
            for (topic, _), reason in zip(filters, reasons, strict=True)
            if reason.is_failure
        }
        if refusals:
            raise SubscriptionRefusedError(self.place, refusals)

    def ack(self, received: Received) -> None:
        """Acknowledge a received message, so that the broker forgets it (C3).

        Call it in the order in which messages came [MQTT-4.6.0-2]. A message of another connection, of QoS 0, or one
        that was acknowledged already is left alone: its identifier may be another message's by now.
        """
        if self._unacknowledged.get(received.mid) is received:
            del self._unacknowledged[received.mid]
            self._client.ack(received.mid, received.qos)

    async def lost(self) -> NoReturn:
        """Wait until the connection is gone.

        Raises:
            BrokerConnectionError: It is, and why.
        """
        await self._gone.wait()
        raise self._loss

    def _new_client(self, client_id: str, will: Message | None, tls: ssl.SSLContext | None) -> Client:
        config = self._config
        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if self._five else True,  # with MQTT 5, clean start is what connect() does first
            protocol=MQTTProtocolVersion.MQTTv5 if self._five else MQTTProtocolVersion.MQTTv311,
            transport="websockets" if config.scheme in ("ws", "wss") else "tcp",
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.username_pw_set(config.username, config.password)
        client.ws_set_options(self._address.path)
        if client.transport == "tcp":
            client.tls_set_context(cast(ssl.SSLContext, Gathering(tls)))
        elif tls is not None:
            client.tls_set_context(tls)
        if will is not None:
            client.will_set(will.topic, will.payload, will.qos, will.retain)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_received
        return client

    async def _open(self) -> None:
        address, seconds = self._address, self._connect_timeout_s
        try:
            async with asyncio.timeout(seconds):
                properties = _connect_properties() if self._five else None
                await self._line.connect(address.host, address.port, self._config.keepalive_s, seconds, properties)
                await self._connack
        except TimeoutError as err:
            raise BrokerConnectionError(f"{self.place}: no answer within {seconds:g} s") from err
        except (OSError, ValueError) as err:
            raise BrokerConnectionError(f"{self.place}: {_explain(err)}") from err

    def _send(self, message: Message, on_ack: OnAck) -> None:
        packet_id = self._next_id() if message.qos else 0
        limit = self.maximum_packet_size
        try:
            packet = encode_publish(message, packet_id, five=self._five)
            if limit is not None and len(packet) > limit:
                raise ValueError(f"larger than the broker's limit of {limit} bytes")  # noqa: TRY301 - as the others
        except ValueError as err:
            self._loop.call_soon(on_ack, Refusal(str(err)))
            return
        if message.qos:
            self._acks[packet_id] = on_ack
        self._line.write(packet)

    def _next_id(self) -> int:
        """Give a packet identifier that nothing in flight has, nor anything of paho's."""
        while True:
            self._last_id = self._last_id + 1 if self._last_id < _LAST_ID else _FIRST_ID
            if self._last_id not in self._acks:
                return self._last_id

    def _check(self) -> None:
        if self._gone.is_set():
            raise self._loss

    def _has_room(self) -> bool:
        return len(self._acks) < min(self.receive_maximum, IN_FLIGHT)

    def _end(self, reason: str) -> None:
        if self._gone.is_set():
            return
        self._loss = BrokerConnectionError(f"{self.place}: {reason}")
        self._gone.set()
        self._answered.set()
        if not self._connack.done():
            self._connack.set_exception(ProtocolRefusedError(f"{self._loss}, before CONNACK", said=False))
        for suback in self._subacks.values():
            if not suback.done():
                suback.set_exception(self._loss)

    def _look_for_silence(self) -> None:
        oldest, now = next(iter(self._acks), 0), self._loop.time()
        if oldest != self._oldest[0]:
            self._oldest = (oldest, now)
        elif oldest and now - self._oldest[1] > ACK_TIMEOUT_S:
            self._line.close()
            self._end(f"no acknowledgment (PUBACK) within {ACK_TIMEOUT_S:g} s")

    def _on_connect(self, _client: Client, _userdata: object, _flags: object, reason: ReasonCode, granted: Any) -> None:  # noqa: ANN401 - paho's Properties have dynamic members
        if self._connack.done():  # the deadline has just passed
            return
        text = f"{self.place}: {reason}"
        if not reason.is_failure:
            self.receive_maximum = getattr(granted, "ReceiveMaximum", self.receive_maximum)
            self.maximum_packet_size = getattr(granted, "MaximumPacketSize", None)
            self.maximum_qos = getattr(granted, "MaximumQoS", self.maximum_qos)
            self.retain_available = bool(getattr(granted, "RetainAvailable", self.retain_available))
            self._connack.set_result(None)
        elif reason.value in _LOG_IN_REFUSED:
            self._connack.set_exception(BrokerAuthError(text))
        elif reason.value == _NOT_SPOKEN:
            self._connack.set_exception(ProtocolRefusedError(text, said=True))
        else:
            self._connack.set_exception(BrokerConnectionError(text))

    def _on_disconnect(self, _client: Client, _userdata: object, flags: Any, reason: ReasonCode, _: object) -> None:  # noqa: ANN401 - paho's DisconnectFlags
        if not flags.is_disconnect_packet_from_server:
            if reason == "Keep alive timeout":
                self._end(f"the broker is silent for {self._config.keepalive_s} s")
                return
            self.hung_up = reason.is_failure and not self._gone.is_set()
            self._end("connection closed" if reason.is_failure else "disconnected")
        else:
            self.hung_up = not self._gone.is_set()
            self._end(f"the broker ended the connection: {reason}")

    def _on_pubacks(self, pubacks: list[tuple[int, int]]) -> None:
        came = [
            (on_ack, code) for packet_id, code in pubacks if (on_ack := self._acks.pop(packet_id, None)) is not None
        ]
        self.acknowledged += len(came)
        while self._held and self._has_room():
            self._send(*self._held.popleft())
        for on_ack, code in came:
            on_ack(parse_refusal(code))
        self._answered.set()

    def _on_subscribe(self, _client: Client, _userdata: object, mid: int, reasons: list[ReasonCode], _: object) -> None:
        suback = self._subacks.get(mid)
        if suback is not None and not suback.done():
            suback.set_result(reasons)

    def _on_received(self, client: Client, _userdata: object, message: MQTTMessage) -> None:
        received = parse_received(message)
        if received is None:
            client.ack(message.mid, message.qos)
            return
        if received.qos:
            self._unacknowledged[received.mid] = received
        self._loop.call_soon(self._on_message, received)


def _connect_properties() -> Properties:
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho leaves it untyped
    properties.ReceiveMaximum = _RECEIVE_MAXIMUM
    properties.MaximumPacketSize = _MAXIMUM_PACKET_BYTES
    return properties


def _explain(err: Exception) -> str:
    if isinstance(err, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {err.verify_message}"
    if isinstance(err, OSError) and err.strerror:
        return err.strerror
    return str(err) or type(err).__name__


def _nobody_asks(_refusal: Refusal | None) -> None:
    pass
