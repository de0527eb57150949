"""A look at the broker: log-in, certificate, limits, and whether the adapter may publish and subscribe as it must.

It publishes for an agent that is nobody, ``check-<random>``, and nothing retained, so that nothing is left: what
clears a topic where the contract has that, else a payload as the contract wants it.
The adapter's own topics (`bridge/availability`, `info`, `health`, `mark`, `log`, a member's own) have one place each,
where others would take such a message for the adapter's; they are left alone.
"""

import asyncio
import contextlib
import uuid
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from adapter.config import AgentConfig, Config, MqttConfig
from adapter.doctor.certificate import look_at_certificate, remedy_for
from adapter.doctor.finding import Finding
from adapter.errors import BrokerAuthError, BrokerConnectionError, BrokerError
from adapter.event import timestamp
from adapter.intake import subscriptions
from adapter.mqtt import Connection, Dialer, Message, Received, Refusal, tls_context
from adapter.payloads import EventPayload, ResponsePayload, ResultPayload, RosterAgent, RosterPage
from adapter.topics import Topics

TIMEOUT_S = 10.0
_ECHO_S = 0.3
"""How long a message that was acknowledged may take to come back."""
_MANY_AGENTS = 500
_FEW_IN_FLIGHT, _FEW_FOR_MANY = 10, 50
"""Below so many messages in flight a backlog goes out slowly; each event is three messages."""
_SMALL_PACKET_BYTES = 64 * 1024
_AROUND_BYTES = 512
"""What a packet has besides its payload: its topic above all."""
_PAGE = 200
_RETAINED_PER_AGENT = 4


async def look_at_broker(config: Config, mqtt: MqttConfig) -> list[Finding]:
    """Log in beside a running adapter, under a name of its own, and look; where there are several, at one by one.

    Args:
        config: The configuration.
        mqtt: The broker, with the user to log in as.
    """
    each = [await _look_at_one(config, replace(mqtt, addresses=(address,))) for address in mqtt.addresses]
    return [finding for findings in each for finding in findings]


async def _look_at_one(config: Config, mqtt: MqttConfig) -> list[Finding]:
    place = f"broker {mqtt.addresses[0]}"
    look, findings = _Look(config, mqtt), list[Finding]()
    try:
        async with look.connected() as connection:
            findings.append(Finding("ok", place, f"logged in, MQTT {connection.protocol}"))
            if mqtt.scheme in ("mqtts", "wss"):
                findings.append(await _certificate(mqtt))
            findings.append(look.limits(connection))
            findings.append(await look.subscribing(connection))
        if connection.maximum_qos:
            findings.append(await look.publishing())
    except BrokerAuthError as error:
        remedy = "see mqtt.username and mqtt.password, and the users of the broker"
        findings.append(Finding("failed", "broker", str(error), remedy))
    except BrokerError as error:
        remedy = remedy_for(str(error), "mqtt") or "see mqtt.url, whether the broker runs, and a firewall in between"
        findings.append(Finding("failed", "broker", str(error), remedy))
    return findings


async def _certificate(config: MqttConfig) -> Finding:
    """See the certificate over a connection that speaks TLS alone: paho does not show the one of its own."""
    trust = tls_context(config)
    assert trust is not None, "there is TLS"  # noqa: S101 - for mypy
    (address,) = config.addresses
    try:
        async with asyncio.timeout(TIMEOUT_S):
            _, writer = await asyncio.open_connection(address.host, address.port, ssl=trust)
    except (OSError, TimeoutError) as error:
        raise BrokerConnectionError(f"{address}: {error}") from error
    try:
        return look_at_certificate(writer.get_extra_info("ssl_object"), trust, whose="broker", key="mqtt")
    finally:
        writer.transport.abort()


class _Look:
    def __init__(self, config: Config, mqtt: MqttConfig) -> None:
        self._config = config
        self._mqtt = mqtt
        self._dialer = Dialer(mqtt)
        self._topics = Topics(mqtt.topic_prefix)
        self._seen: set[str] = set()
        self._news = asyncio.Event()

    def connected(self) -> contextlib.AbstractAsyncContextManager[Connection]:
        """Connect."""
        client_id = f"{self._mqtt.client_id}-check-{uuid.uuid4().hex[:8]}"
        return self._dialer.connect(client_id=client_id, on_message=self._take, connect_timeout_s=TIMEOUT_S)

    def _take(self, received: Received) -> None:
        self._seen.add(received.topic)
        self._news.set()

    def limits(self, connection: Connection) -> Finding:
        """Compare what the broker allows with what so many agents need."""
        place, agents = "broker limits", len(self._config.agents)
        pages = [self._config.agents[first : first + _PAGE] for first in range(0, agents, _PAGE)]
        retained = _RETAINED_PER_AGENT * agents + len(pages) + 4
        needed = f"{agents} agents need {retained} retained messages"
        if connection.protocol != "5":
            return Finding("ok", place, f"not told with MQTT 3.1.1; {needed}")
        if not connection.retain_available:
            return Finding("failed", place, "no retained messages", "allow them there: dashboards read nothing else")
        if connection.maximum_qos < 1:
            return Finding("failed", place, "no QoS 1", "allow it there: without, nothing tells what has arrived")
        largest = max(map(_roster_bytes, pages), default=0)
        limit = connection.maximum_packet_size
        if limit is not None and limit < max(largest, _SMALL_PACKET_BYTES):
            text = f"packets up to {limit} bytes; the roster has {largest}, an event up to 1 MiB"
            remedy = "raise it there (Mosquitto: max_packet_size)"
            return Finding("failed" if limit < largest else "warning", place, text, remedy)
        few = _FEW_FOR_MANY if agents > _MANY_AGENTS else _FEW_IN_FLIGHT
        if connection.receive_maximum < few:
            text = f"{connection.receive_maximum} messages in flight, {agents} agents want {few}"
            return Finding("warning", place, text, "raise it there (Mosquitto: max_inflight_messages)")
        flight = "any number of" if connection.receive_maximum == 65_535 else f"{connection.receive_maximum}"  # noqa: PLR2004 - MQTT's word for it
        size = "of any size" if limit is None else f"up to {limit} bytes"
        return Finding("ok", place, f"{flight} messages in flight, {size}; {needed}")

    async def subscribing(self, connection: Connection) -> Finding:
        """Subscribe to all that the adapter does; what a broker then holds back (Mosquitto) cannot be seen."""
        names = ("mark", "availability", "health", "info")
        own = [self._topics.bridge(name) for name in names]
        if self._config.cluster is not None:
            own += [self._topics.member(self._config.instance, name) for name in names]
        filters = [*(topic for topic, _ in subscriptions(self._topics, self._config.commands)), *own]
        refused = []
        for each in filters:
            try:
                await connection.subscribe([(each, 0)])
            except BrokerConnectionError:
                raise
            except BrokerError:
                refused.append(each)
        if refused:
            remedy = "allow it there, or switch it off in commands"
            return Finding("failed", "broker ACL, read", f"not allowed: {', '.join(refused)}", remedy)
        return Finding("ok", "broker ACL, read", f"subscribed to {len(filters)} topics")

    async def publishing(self) -> Finding:
        """Publish for an agent that is nobody, on each kind of topic."""
        waiting = self._probes(f"check-{uuid.uuid4().hex[:8]}")
        count, denied, unseen = len(waiting), list[str](), list[str]()
        while waiting:
            async with self.connected() as connection:
                doubtful = False
                while waiting and not doubtful:  # some hang up over what they deny: the next have another connection
                    name, message = waiting.popitem()
                    if connection.protocol != "5":
                        with contextlib.suppress(BrokerError):  # it need not be allowed to read them
                            await connection.subscribe([(message.topic, 0)])
                    if not await self._allowed(connection, message):
                        denied.append(name)
                    elif connection.protocol != "5" and not await self._came_back(message.topic):
                        unseen.append(name)
                    doubtful = name in (*denied, *unseen)
        return self._judge(count, sorted(denied), sorted(unseen))

    def _probes(self, nobody: str) -> dict[str, Message]:
        """Make a message for each kind of topic, by its name in the documentation.

        They go out from the last to the first: the event before what clears its agent, or tables would keep showing it.
        """
        topics, now, name = self._topics, timestamp(datetime.now(UTC)), "check --online"
        result = ResultPayload(
            id=nobody, work_no=nobody, status="rejected", retcode=None, reason=name, received_at=now, finished_at=now
        ).render()
        payloads = dict.fromkeys((*topics.retained(nobody), topics.roster(0)), b"")
        payloads |= {topics.result(nobody, kind): result for kind in ("calldata", "session")}
        payloads[topics.response("check")] = ResponsePayload(id=nobody, status="ok", reason=None, data=name).render()
        if self._mqtt.stream:
            event = EventPayload(
                event_type=name, work_no=nobody, content=None, id=str(uuid.uuid4()), seq=1, received_at=now
            )
            payloads[topics.events(nobody)] = msgspec.json.encode(event)
        if self._config.home_assistant.discovery:
            payloads[f"{self._config.home_assistant.prefix}/device/{nobody}/config"] = b""
        return {
            topic.replace(nobody, "<workNo>"): Message(topic=topic, payload=payload)
            for topic, payload in payloads.items()
        }

    def _judge(self, count: int, denied: list[str], unseen: list[str]) -> Finding:
        place = "broker ACL, write"
        user = self._mqtt.username or "anonymous clients"
        text = f"denied: {', '.join(denied)}" if denied else ""
        if unseen:
            # With MQTT 3.1.1 what is denied is acknowledged too.
            text += f"{'; ' if denied else ''}acknowledged, but not seen again: {', '.join(unseen)}"
        if text:
            return Finding("failed" if denied else "warning", place, text, f"allow {user} to write there")
        return Finding("ok", place, f"{count} kinds of topics")

    async def _allowed(self, connection: Connection, message: Message) -> bool:
        """Publish a message; say whether the broker took it."""
        taken: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
        lost = asyncio.ensure_future(connection.lost())
        try:
            connection.publish(message, taken.set_result)
            first: list[asyncio.Future[Any]] = [taken, lost]
            await asyncio.wait(first, timeout=TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
            return taken.done() and taken.result() is None
        except BrokerConnectionError:
            return False
        finally:
            taken.cancel()
            lost.cancel()
            await asyncio.wait([lost])

    async def _came_back(self, topic: str) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ECHO_S):
                while topic not in self._seen:
                    self._news.clear()
                    await self._news.wait()
        return topic in self._seen


def _roster_bytes(agents: Sequence[AgentConfig]) -> int:
    """Count the bytes of a page of the roster, which is the largest message besides events."""
    page = [RosterAgent(work_no=agent.work_no, name=agent.name, group=agent.group) for agent in agents]
    return len(RosterPage(page=1, pages=1, agents=page).render()) + _AROUND_BYTES
