"""What the tests of the embedded broker and of the page need: a plain MQTT client."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Self, cast

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from adapter.nats import NatsServer

DEADLINE_S = 15.0


async def until(condition: Callable[[], Any], *, deadline_s: float = DEADLINE_S) -> None:
    """Wait until `condition` holds; fail after `deadline_s` seconds."""
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            pytest.fail("the condition did not come true in time")
        await asyncio.sleep(0.02)


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

    def received(self, topic: str) -> list[bytes]:
        """Return the payloads that came on `topic`, in order."""
        return [payload for name, payload in self._messages if name == topic]
