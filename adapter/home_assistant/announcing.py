"""Keeping Home Assistant's discovery messages right at the broker.

```
connection -> read what is retained -> send what differs, clear what belongs to no agent -> wait for a reload or a birth
```

Rules of this file:
1. Nothing is stored but the prefix: what should be there follows from the configuration, what is there is read back.
2. One message after the other, at most `PER_SECOND`, each after the acknowledgment of the last: nobody else protects
   Home Assistant from a large fleet, and a broker that hangs up over a message does so over that one.
3. What is not ours, or another instance's, is never touched.
"""

import asyncio
import contextlib
import logging
import math
import random
import uuid
from collections.abc import Awaitable, Callable
from typing import NoReturn

from adapter.config import AgentConfig, Config
from adapter.errors import BrokerConnectionError, BrokerError, StorageFullError
from adapter.home_assistant.devices import instance_of, object_id, render_agent, render_bridge
from adapter.mqtt import Connection, Dialer, Message, Received, Refusal, read_retained
from adapter.topics import BRIDGE, discovery

_log = logging.getLogger(__name__)

PER_SECOND = 50
"""Messages a second that Home Assistant is sent, at most."""

_READ_S = 10.0
"""How long reading back may take."""
_QUIET_S = 0.5
"""How long no message takes to mean that all were read."""

_PUT_OFF_S = 5.0
"""How long a message rests that the broker does not take for now."""

_TRIES = 3
"""After how many connections in a row that ended over the first message of ours it is the message's fault."""
_SILENT_S = 600.0
"""How long nothing is announced then: each try costs all agents a connection."""


class Announcing:
    """Announces the devices of one configuration, and then of the next.

    Args:
        config: The configuration at the start.
        before: The prefix under which something was announced at last; empty for none.
        remember: Remembers such a prefix over restarts: what is there is cleared when it is not wanted any more.
        show: Sends again what is retained of an agent, or with ``bridge`` that the adapter is there.
        after_birth_s: How long after Home Assistant's birth message all is sent again, at least and at most: not with
            everybody else at the same moment.
    """

    def __init__(
        self,
        config: Config,
        *,
        before: str,
        remember: Callable[[str], Awaitable[None]],
        show: Callable[[str], None],
        after_birth_s: tuple[float, float],
    ) -> None:
        self._config = config
        self._before = before
        self._remember = remember
        self._show = show
        self._after_birth_s = after_birth_s
        self._dialer = Dialer(config.mqtt)
        self._on = config.home_assistant.discovery
        self._prefix = config.home_assistant.prefix
        self._connections: asyncio.Queue[Connection] = asyncio.Queue()
        self._wanted: dict[str, AgentConfig | None] = {}
        self._foreign: set[str] = set()
        self._due: dict[str, None] = {}
        self._to_show: dict[str, None] = {}
        self._changed = asyncio.Event()
        self._birth: asyncio.TimerHandle | None = None
        self._losses = 0
        self._silent_until = 0.0
        self._told: set[str] = set()
        self.introduce(config)

    def introduce(self, config: Config) -> None:
        """Go on with another configuration: what is new or changed is announced, what is gone is cleared."""
        self._config = config
        old, self._wanted = self._wanted, self._devices()
        gone = [topic for topic in old if topic not in self._wanted]
        changed = [topic for topic, agent in self._wanted.items() if topic not in old or old[topic] != agent]
        self._send_soon(*gone, *changed)

    def connected(self, connection: Connection) -> None:
        """Go on over a new connection."""
        self._connections.put_nowait(connection)

    def receive(self, received: Received) -> None:
        """Take a message; the birth of Home Assistant has everything sent again.

        A birth message that is retained says nothing of now: what Home Assistant lacks, it reads at the broker.
        """
        home = self._config.home_assistant
        if received.topic != home.birth_topic or received.payload != home.birth_payload.encode() or received.retain:
            return
        if self._birth is None:
            delay_s = random.uniform(*self._after_birth_s)  # noqa: S311 - keeps no secret
            self._birth = asyncio.get_running_loop().call_later(delay_s, self._all_again)

    async def run(self) -> NoReturn:
        """Announce until cancelled."""
        try:
            if not self._before:
                await self._go_by(self._prefix)
            while True:
                connection = await self._connections.get()
                try:
                    await self._serve(connection)
                except BrokerConnectionError as error:
                    _log.debug("home assistant: %s", error)
        finally:
            if self._birth is not None:
                self._birth.cancel()

    def _devices(self) -> dict[str, AgentConfig | None]:
        """List what is to be announced, by topic; the adapter itself is `None`."""
        if not self._on:
            return {}
        agents, most = self._config.agents, self._config.home_assistant.max_agents
        if len(agents) > most:
            _log.warning("home assistant: %d of %d agents are announced (home_assistant.max_agents)", most, len(agents))
        devices = {self._topic(BRIDGE): None} | {self._topic(agent.work_no): agent for agent in agents[:most]}
        return {topic: agent for topic, agent in devices.items() if topic not in self._foreign}

    def _topic(self, name: str) -> str:
        return discovery(self._prefix, object_id(self._config.instance, name))

    def _render(self, topic: str) -> bytes:
        """Make what is to be retained on a topic; nothing where it is to be cleared."""
        if topic not in self._wanted:
            return b""
        agent = self._wanted[topic]
        return render_bridge(self._config) if agent is None else render_agent(self._config, agent)

    def _send_soon(self, *topics: str) -> None:
        self._due.update(dict.fromkeys(topics))
        self._changed.set()

    def _all_again(self) -> None:
        self._birth = None
        self._send_soon(*self._wanted)
        self._to_show = {BRIDGE if agent is None else agent.work_no: None for agent in self._wanted.values()}

    async def _serve(self, connection: Connection) -> NoReturn:
        """Keep the messages right while a connection stands.

        Raises:
            BrokerConnectionError: It is lost.
        """
        lost = asyncio.create_task(connection.lost(), name="home-assistant.lost")
        work = asyncio.create_task(self._work(connection), name="home-assistant.work")
        try:
            await asyncio.wait([lost, work], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (lost, work):
                task.cancel()
            await asyncio.wait([lost, work])
        (work if lost.cancelled() else lost).result()
        raise AssertionError("neither returns")

    async def _work(self, connection: Connection) -> NoReturn:
        if self._on:
            await self._hear_of_births(connection)
        known = await self._compare()
        while True:
            await self._send_all(connection)
            if known and not self._due:
                await self._go_by(self._prefix if self._on else "")
            await self._changed.wait()

    async def _send_all(self, connection: Connection) -> None:
        """Send what is due, and after that what is to be shown again."""
        loop = asyncio.get_running_loop()
        self._changed.clear()
        while self._due and loop.time() >= self._silent_until:
            await self._send(connection, next(iter(self._due)))
            await asyncio.sleep(1 / PER_SECOND)
        while self._to_show and not self._due:
            name = next(iter(self._to_show))
            del self._to_show[name]
            self._show(name)
            await asyncio.sleep(2 / PER_SECOND)  # state and availability

    async def _hear_of_births(self, connection: Connection) -> None:
        try:
            await connection.subscribe([(self._config.home_assistant.birth_topic, 0)], patient=True)
        except BrokerConnectionError:
            raise
        except BrokerError as error:
            self._tell(f"{error}; a restart of Home Assistant is not noticed")

    async def _compare(self) -> bool:
        """Read what is retained; what differs is sent, and what is ours and belongs to nobody is cleared.

        Returns:
            Whether it could be read.
        """
        looker = f"{self._config.mqtt.client_id}-discovery-{uuid.uuid4().hex[:8]}"
        prefixes = {self._prefix, self._before or self._prefix}
        known = True
        try:
            found = await read_retained(
                self._dialer, [discovery(prefix, "+") for prefix in prefixes], looker, _READ_S, quiet_s=_QUIET_S
            )
        except BrokerError as error:
            self._tell(f"{error}; what is left of agents that are gone is not cleared")
            known, found = False, {}
        for topic, received in found.items():
            await asyncio.sleep(0)  # polls go on between any two: to look at all of them takes some 50 ms
            instance = instance_of(received.payload)
            if instance == self._config.instance:
                if topic not in self._wanted:
                    self._send_soon(topic)
            elif instance is not None and topic in self._wanted:
                self._leave_to(instance, topic)
        retained = {topic: received.payload for topic, received in found.items()}
        for topic in list(self._wanted):
            await asyncio.sleep(0)
            if retained.get(topic) == self._render(topic):
                self._due.pop(topic, None)
            else:
                self._send_soon(topic)
        return known

    def _leave_to(self, instance: str, topic: str) -> None:
        """Leave a topic to the instance that announces its own there: `b_1` of `a` and `1` of `a_b` make one id."""
        self._foreign.add(topic)
        del self._wanted[topic]
        self._due.pop(topic, None)
        self._tell(f"{topic} is announced by the instance {instance}: one of the two needs another name")

    async def _send(self, connection: Connection, topic: str) -> None:
        """Send one message, and wait until the broker has it or refuses it."""
        answered: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()

        def take(refusal: Refusal | None) -> None:
            if not answered.done():
                answered.set_result(refusal)

        connection.publish(Message(topic=topic, payload=self._render(topic), retain=True), take)
        del self._due[topic]
        try:
            refusal = await answered
        except asyncio.CancelledError:
            self._lost_over(topic)
            raise
        self._losses = 0
        if refusal is None:
            return
        if not refusal.lasting:
            self._send_soon(topic)
            await asyncio.sleep(_PUT_OFF_S)
        elif refusal.code is None:
            self._tell(f"{topic}: {refusal.reason}; not announced")
        else:
            self._silent_until = math.inf
            self._tell(f"broker refuses {topic}: {refusal.reason}; nothing is announced before the next start")

    def _lost_over(self, topic: str) -> None:
        """Note that a connection ended with a message of ours under way: some brokers hang up over a denied one.

        What became of it, the next connection reads.
        """
        self._losses += 1
        if self._losses >= _TRIES:
            loop = asyncio.get_running_loop()
            self._silent_until = loop.time() + _SILENT_S
            loop.call_later(_SILENT_S, self._changed.set)
            self._tell(f"broker hangs up over {topic}; nothing is announced for {_SILENT_S:g} s")

    async def _go_by(self, prefix: str) -> None:
        """Remember where something is announced from now on."""
        if prefix != self._before:
            with contextlib.suppress(StorageFullError):
                await self._remember(prefix)
                self._before = prefix

    def _tell(self, text: str) -> None:
        """Log what a person should mend, once."""
        if text not in self._told:
            self._told.add(text)
            _log.error("home assistant: %s", text)
