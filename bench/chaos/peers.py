"""Who is at the broker besides the adapter: a subscriber with a persistent session, and a sender of commands.

Both are paho in threads of its own, and share no code with the adapter.
"""

import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Self

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion

from bench.support import HOST, BenchError

_AGAIN_S = (1, 1)
_START_S = 20.0
_KEEPALIVE_S = 600
"""Long, since a broker that is stopped for a while is not one that is away."""


@dataclass(frozen=True, slots=True)
class Got:
    """A message as it came: `retained` is the flag that the broker sets on what it had kept for a new subscription."""

    at: float
    topic: str
    payload: bytes
    retained: bool


class Subscriber:
    """Collects what comes on some topics, in a session that outlives its connections (QoS 1, no clean session).

    Attributes:
        messages: What came, in order.
        forgotten: How often the broker had forgotten the session.
    """

    def __init__(
        self, port: int, filters: list[str], *, client_id: str, persistent: bool = True, host: str = HOST
    ) -> None:
        self.messages: list[Got] = []
        self.forgotten = 0
        self._host, self._port = host, port
        self._filters = [(each, 1) for each in filters]
        self._subscribed = threading.Event()
        self._connected_once = False
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id, clean_session=not persistent, protocol=MQTTProtocolVersion.MQTTv311
        )
        self._client.reconnect_delay_set(*_AGAIN_S)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._on_message

    def __enter__(self) -> Self:
        self._client.connect(self._host, self._port, _KEEPALIVE_S)
        self._client.loop_start()
        if not self._subscribed.wait(_START_S):
            raise BenchError("cannot subscribe")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(self, client: Client, _data: object, flags: Any, reason: Any, _properties: object) -> None:  # noqa: ANN401 - paho's
        if reason.is_failure:
            return
        if self._connected_once and not flags.session_present:
            self.forgotten += 1
        self._connected_once = True
        client.subscribe(self._filters)

    def _on_message(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        self.messages.append(Got(time.monotonic(), message.topic, bytes(message.payload), message.retain))


@dataclass(slots=True, kw_only=True)
class Sent:
    """A command, and what became of it.

    Attributes:
        sent_at: Each time it was sent.
        extra: How often it is sent again after its result.
        results: The results that came.
    """

    work_no: str
    id: str
    value: str
    sent_at: list[float] = field(default_factory=list)
    extra: int = 0
    results: list[bytes] = field(default_factory=list)


class Sender:
    """Sends call data to agents, each the next when it has a result, and repeats with the same id until then.

    Args:
        again_s: When it repeats. Long enough for a result to come by itself.
        extra: How often each command is sent again although it has its result (C4).
    """

    def __init__(self, port: int, work_nos: list[str], *, again_s: float, extra: int) -> None:
        self.commands: dict[str, Sent] = {}
        self.resting = False
        self._again_s = again_s
        self._extra = extra
        self._port = port
        self._open: dict[str, Sent | None] = dict.fromkeys(work_nos)
        self._client = Client(CallbackAPIVersion.VERSION2, "sender", protocol=MQTTProtocolVersion.MQTTv311)
        self._client.reconnect_delay_set(*_AGAIN_S)

    def __enter__(self) -> Self:
        self._client.connect(HOST, self._port, _KEEPALIVE_S)
        self._client.loop_start()
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    @property
    def unanswered(self) -> list[str]:
        """The ids that wait for a result."""
        return [command.id for command in self.commands.values() if not command.results]

    def heard(self, payload: bytes) -> None:
        """Take a result."""
        command = self.commands.get(json.loads(payload)["id"])
        if command is not None:
            command.results.append(payload)

    def step(self) -> None:
        """Send what is due."""
        now = time.monotonic()
        for work_no, command in self._open.items():
            if command is None or (command.results and not command.extra):
                self._open[work_no] = None if self.resting else self._next(work_no)
            elif not command.sent_at or now - command.sent_at[-1] >= self._again_s:
                if command.results:
                    command.extra -= 1
                self._send(command, now)

    def _next(self, work_no: str) -> Sent:
        number = len(self.commands) + 1
        command = Sent(work_no=work_no, id=f"command-{number}", value=f"call data {number}: é+%/", extra=self._extra)
        self.commands[command.id] = command
        return command

    def _send(self, command: Sent, now: float) -> None:
        payload = json.dumps({"calldata": command.value, "id": command.id, "ttl": 3600})
        info = self._client.publish(f"agents/{command.work_no}/calldata/set", payload, qos=0)
        if info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS:
            command.sent_at.append(now)
