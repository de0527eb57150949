"""What the tests of the embedded broker and of the page need: a plain MQTT client."""

import asyncio
import json
import shutil
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Self, TypedDict, Unpack, cast

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from adapter.nats import NatsServer
from adapter.payloads import (
    CallPayload,
    HealthPayload,
    OutboxHealth,
    PreviousState,
    ResultPayload,
    RosterAgent,
    RosterPage,
    SessionPayload,
    SessionPhase,
    StateName,
    StatePayload,
    Status,
)
from adapter.topics import Topics

DEADLINE_S = 30.0


async def until(condition: Callable[[], Any], *, deadline_s: float = DEADLINE_S) -> None:
    """Wait until `condition` holds; fail after `deadline_s` seconds."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail("the condition did not come true in time")
        await asyncio.sleep(0.005)


class Client:
    """An MQTT 3.1.1 client in a thread of its own: the other end of the broker in these tests."""

    def __init__(
        self,
        server: NatsServer,
        *,
        websocket: bool = False,
        username: str | None = None,
        password: str | None = None,
    ) -> None:
        self._port = server.websocket_port if websocket else server.mqtt_port
        self._paho = paho.Client(
            CallbackAPIVersion.VERSION2,
            protocol=MQTTProtocolVersion.MQTTv311,
            transport="websockets" if websocket else "tcp",
        )
        if websocket:
            self._paho.ws_set_options(path="/mqtt")
        if username is not None:
            self._paho.username_pw_set(username, password)
        self._paho.reconnect_delay_set(min_delay=1, max_delay=1)
        self._messages: list[tuple[str, bytes]] = []
        self._subscribed: set[int] = set()
        self._refused = False
        self._paho.on_message = self._on_message
        self._paho.on_connect = self._on_connect
        self._paho.on_subscribe = self._on_subscribe

    def _on_message(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        self._messages.append((message.topic, bytes(message.payload)))

    def _on_connect(self, *args: object) -> None:
        self._refused = cast("ReasonCode", args[3]).is_failure

    def _on_subscribe(self, *args: object) -> None:
        self._subscribed.add(cast("int", args[2]))

    async def __aenter__(self) -> Self:
        """Connect; a refused log-in is a ConnectionError."""
        await asyncio.to_thread(self._paho.connect, "127.0.0.1", self._port)
        self._paho.loop_start()
        await until(lambda: self._paho.is_connected() or self._refused)
        if self._refused:
            await self.__aexit__()
            raise ConnectionError
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Disconnect and end the thread."""
        self._paho.disconnect()
        await asyncio.to_thread(self._paho.loop_stop)

    async def subscribe(self, topic_filter: str) -> None:
        """Subscribe and wait for the SUBACK."""
        mid = self._paho.subscribe(topic_filter, qos=1)[1]
        await until(lambda: mid in self._subscribed)

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1) -> None:
        """Publish and wait for the PUBACK."""
        info = self._paho.publish(topic, payload, qos=qos, retain=retain)
        await until(info.is_published)

    def publish_soon(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Publish at QoS 0 without waiting."""
        self._paho.publish(topic, payload, qos=0, retain=retain)

    async def retained(self, topic: str) -> bytes:
        """Subscribe until the retained message of `topic` comes.

        More than once, as a nats-server 2.15 that was started a moment ago can grant a subscription and leave
        its retained messages out (seen once in a hundred starts on a busy machine; a second SUBSCRIBE brings them).
        """
        for _ in range(int(DEADLINE_S)):
            await self.subscribe(topic)
            try:
                async with asyncio.timeout(1):
                    await until(lambda: self.received(topic))
            except TimeoutError:
                continue
            break
        return self.received(topic)[-1]

    def connected(self) -> bool:
        """Say whether the connection is up; the library brings it back by itself."""
        return self._paho.is_connected()

    def received(self, topic: str) -> list[bytes]:
        """Return the payloads that came on `topic`, in order."""
        return [payload for name, payload in self._messages if name == topic]


def find_browser() -> str:
    """Find chromium or google-chrome on the PATH; without one the test fails, so that nothing passes unseen."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    return found or pytest.fail("no browser on the PATH: apt-get install chromium")


def moment(ago_s: float = 0) -> str:
    """Render the moment `ago_s` seconds ago as it stands on the wire."""
    at = datetime.now(UTC) - timedelta(seconds=ago_s)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class StateMembers(TypedDict, total=False):
    """What an agent's state may tell besides; what is left out is null."""

    name: str
    group: str
    reason: str
    call: CallPayload
    ago_s: float


class Feed:
    """Says on the topics what the adapter would say, in the adapter's own payload types."""

    def __init__(self, client: Client, prefix: str) -> None:
        self.client = client
        self.topics = Topics(prefix)
        self._seqs: dict[str, int] = {}

    async def bridge(self, availability: str = "online") -> None:
        """Say whether the adapter is there."""
        await self.client.publish(self.topics.bridge("availability"), availability.encode(), retain=True)

    async def roster(self, *agents: RosterAgent, page: int = 1) -> None:
        """Say which agents there are."""
        payload = RosterPage(page=page, pages=page, agents=list(agents)).render()
        await self.client.publish(self.topics.roster(page), payload, retain=True)

    async def health(self, *, depth: int = 0, oldest_seconds: float = 0, at_risk: int = 0) -> None:
        """Say how the adapter is."""
        payload = HealthPayload(
            at=moment(),
            uptime=60,
            polls=0,
            poll_errors=0,
            lost_answers=0,
            unreadable=0,
            events=0,
            publishes=0,
            outbox=OutboxHealth(depth=depth, oldest_seconds=oldest_seconds, bytes=4096, at_risk=at_risk),
            agents={},
            cpu_seconds=1,
            rss_bytes=1,
        ).render()
        await self.client.publish(self.topics.bridge("health"), payload, retain=True, qos=0)

    def render_state(self, work_no: str, state: StateName, **more: Unpack[StateMembers]) -> bytes:
        """Render an agent's state."""
        return StatePayload(
            work_no=work_no,
            name=more.get("name"),
            group=more.get("group"),
            state=state,
            reason=more.get("reason"),
            since=moment(more.get("ago_s", 0)),
            previous=PreviousState(state="idle", seconds=1.5),
            call=more.get("call"),
            event_id=None,
            seq=None,
        ).render()

    async def state(self, work_no: str, state: StateName, **more: Unpack[StateMembers]) -> None:
        """Say an agent's state."""
        payload = self.render_state(work_no, state, **more)
        await self.client.publish(self.topics.state(work_no), payload, retain=True)

    async def session(self, work_no: str, phase: SessionPhase, **more: object) -> None:
        """Say how an agent's session is, and its availability with it."""
        members: dict[str, Any] = {"retcode": None, "message": None} | more
        payload = SessionPayload(phase=phase, since=moment(), **members).render()
        await self.client.publish(self.topics.session(work_no), payload, retain=True)
        availability = b"online" if phase in ("polling", "signing_in") else b"offline"
        await self.client.publish(self.topics.availability(work_no), availability, retain=True)

    async def event(
        self, work_no: str, event_type: str, content: object = None, *, ago_s: float = 0, **more: object
    ) -> None:
        """Say an event of an agent, on the stream and retained."""
        self._seqs[work_no] = self._seqs.get(work_no, 0) + 1
        event = {
            "eventType": event_type,
            "workNo": work_no,
            "content": content,
            "id": str(uuid.uuid4()),
            "seq": self._seqs[work_no],
            "receivedAt": moment(ago_s),
        } | more
        payload = json.dumps(event).encode()
        await self.client.publish(self.topics.events(work_no), payload)
        await self.client.publish(self.topics.event(work_no), payload, retain=True)

    async def commands(self, work_no: str) -> Callable[[], list[dict[str, Any]]]:
        """Subscribe to an agent's call data; the function returned gives the commands that came."""
        topic = self.topics.command(work_no, "calldata")
        await self.client.subscribe(topic)
        return lambda: [json.loads(payload) for payload in self.client.received(topic)]

    async def result(self, work_no: str, command_id: str, status: Status, **more: object) -> None:
        """Answer a command."""
        members: dict[str, Any] = {"retcode": None, "reason": None} | more
        payload = ResultPayload(
            id=command_id, work_no=work_no, status=status, received_at=moment(), finished_at=moment(), **members
        ).render()
        await self.client.publish(self.topics.result(work_no, "calldata"), payload)
