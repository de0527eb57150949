"""The fleet's own place at the broker, which one member at a time has: it is heard, and hears what is asked of all.

```
membership -> the speaker's connection: will "offline" -> commands, requests, discovery -> "online", info, health
```

Rules of this file:
1. The speaker is the member that has been there longest: what comes while another takes its place is lost, as it is
   while a program that is alone starts again. Two that overlap for a moment have one client id: the broker keeps one.
2. A member that dies takes `online` with it if it was the speaker; every other member that lives says `online` again.
3. Who leaves, and finds no lease when its own is gone, says `offline`: of several that leave at once, the last does.
4. A speaker whose lease is over says `offline`: where there is no quorum nobody polls, and where there is one another
   member says `online` again.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NoReturn

import msgspec

from adapter.cluster.engine import Engine
from adapter.cluster.membership import Membership
from adapter.config import Config
from adapter.errors import BrokerError, StorageError
from adapter.event import timestamp
from adapter.intake import subscriptions
from adapter.mqtt import Connection, Dialer, Message, Received
from adapter.outage import Outage
from adapter.payloads import AgentCounts, HealthPayload, OutboxHealth
from adapter.role import Stage
from adapter.subscriber import Subscriber
from adapter.topics import Topics

_log = logging.getLogger(__name__)

_LOOK_S = 0.25
"""How often it is looked at who speaks."""
_AGAIN_S = 1.0
"""When the broker is tried again."""
_REPORT_S = 60.0
_SETTLED_S = 3.0
"""How long it takes until agents are shared out anew, for the next report to tell of it."""
_FAREWELL_S = 1.0
"""How long the last `offline` may take."""


class Speaker:
    """Speaks for the fleet whenever it is this member's turn.

    Args:
        config: The configuration, under the fleet's name.
        membership: Says whose turn it is.
        engine: Brings what the other members tell.
        stage: What it speaks of.
    """

    def __init__(self, config: Config, membership: Membership, engine: Engine, stage: Stage) -> None:
        self._config = config
        self._membership = membership
        self._engine = engine
        self._stage = stage
        self._topics = Topics(config.mqtt.topic_prefix)
        self._client_id = f"ccgateway2mqtt-{config.instance}"
        self._dialer = Dialer(config.mqtt)
        self._subscriber = Subscriber(subscriptions(self._topics, config.commands))
        self._healths: dict[str, HealthPayload] = {}
        self._connection: Connection | None = None
        self._outage = Outage("broker")
        self._closing = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self) -> None:
        """Begin to hear how the others are, and to tell how we are."""
        await self._engine.talk.listen("health", self._hear_health)
        await self._engine.talk.listen("report", self._hear_report)

    async def run(self) -> None:
        """Speak when it is our turn, until `close`."""
        while not self._closing.is_set():
            pause_s = _LOOK_S
            if self._is_our_turn():
                try:
                    await self._speak()
                except BrokerError as error:
                    self._outage.begins("speaker", str(error))
                    pause_s = _AGAIN_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._closing.wait()

    def close(self) -> None:
        """Have `run` fall silent."""
        self._closing.set()

    async def say_offline(self) -> None:
        """Say for the fleet that nobody is left."""
        if self._stage.link.connection is not None:
            await self._say_offline(self._stage.link.connection)

    async def _say_offline(self, connection: Connection) -> None:
        taken = asyncio.Event()
        with contextlib.suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                connection.publish(self._available(b"offline"), lambda _: taken.set())
                await taken.wait()

    def linked(self, connection: Connection) -> None:
        """Do nothing: what goes out by the link is the member's own."""

    def repeat_availability(self) -> None:
        """Publish `online` once more, where we speak."""
        if self._connection is not None:
            with contextlib.suppress(BrokerError):
                self._connection.publish(self._available(b"online"))

    def hear(self, received: Received) -> bool:
        """Take what came on the fleet's availability, where that is it: nobody says `offline` while somebody lives."""
        if received.topic != self._topics.bridge("availability"):
            return False
        dying = received.payload == b"offline" and not received.retain
        if dying and self._membership.term.holds() and not self._membership.leaving:
            self._stage.link.publish(self._available(b"online"))
        return True

    async def tell_health(self) -> None:
        """Tell the other members how this one is."""
        with contextlib.suppress(StorageError):
            health = await self._stage.bridge.measure()
            await self._engine.talk.tell("health", msgspec.json.encode([self._membership.name, health]))

    def _is_our_turn(self) -> bool:
        ours = self._membership.speaker == self._membership.name
        return ours and self._membership.term.holds() and not self._closing.is_set()

    async def _speak(self) -> None:
        """Hold the fleet's connection until it is another's turn, or this member leaves.

        Raises:
            BrokerError: There is none, or it was lost.
        """

        def take(received: Received) -> None:
            self._stage.receive(received, lambda: connection.ack(received))

        async with (
            self._dialer.connect(
                client_id=self._client_id, on_message=take, will=self._available(b"offline")
            ) as connection,
            self._subscriber.over(connection) as subscribing,
        ):
            connection.publish(self._available(b"online"))
            self._connection = connection
            self._outage.is_over()
            _log.info("cluster: member %s speaks for the fleet", self._membership.name)
            self._stage.connected(connection)
            report = asyncio.create_task(self._report(connection), name="cluster.report")
            lost = asyncio.create_task(connection.lost(), name="cluster.lost")
            try:
                done: set[asyncio.Task[NoReturn]] = set()
                while self._is_our_turn() and not done:
                    done, _ = await asyncio.wait(
                        [lost, report, subscribing], timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED
                    )
                if not self._membership.term.holds():
                    await self._say_offline(connection)
            finally:
                self._connection = None
                for task in (report, lost):
                    task.cancel()
                await asyncio.wait([report, lost])
            for task in (lost, report, subscribing):
                if task.done() and not task.cancelled():
                    task.result()

    async def _report(self, connection: Connection) -> NoReturn:
        """Say how the fleet is, at once and then regularly; soon after members came or went."""
        loop = asyncio.get_running_loop()
        while True:
            members = set(self._membership.others)
            await self._engine.talk.tell("report", b"")
            await asyncio.sleep(_LOOK_S)
            self._show(connection)
            again_at = loop.time() + _REPORT_S
            while loop.time() < again_at:
                await asyncio.sleep(_SETTLED_S)
                if set(self._membership.others) != members:
                    break

    def _show(self, connection: Connection) -> None:
        healths = [health for name, health in self._healths.items() if name in self._membership.others]
        if not healths:
            return
        health = combined(healths)
        connection.publish(Message(topic=self._topics.bridge("health"), payload=health.render(), retain=True, qos=0))
        agents = AgentCounts(configured=len(self._config.agents), polling=health.agents.get("polling", 0))
        info = msgspec.structs.replace(self._stage.bridge.describe(), instance=self._config.instance, agents=agents)
        connection.publish(Message(topic=self._topics.bridge("info"), payload=info.render(), retain=True))

    def introduce(self, config: Config) -> None:
        """Go on with another list of agents."""
        self._config = config

    def _hear_report(self, _: bytes) -> None:
        task = asyncio.get_running_loop().create_task(self.tell_health(), name="cluster.health")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _hear_health(self, data: bytes) -> None:
        with contextlib.suppress(msgspec.DecodeError):
            name, health = msgspec.json.decode(data, type=tuple[str, HealthPayload])
            self._healths[name] = health

    def _available(self, payload: bytes) -> Message:
        return Message(topic=self._topics.bridge("availability"), payload=payload, retain=True)


def combined(healths: list[HealthPayload]) -> HealthPayload:
    """Add up how the members are."""

    def total(value: Callable[[HealthPayload], int]) -> int:
        return sum(map(value, healths))

    agents: dict[str, int] = {}
    for health in healths:
        for phase, count in health.agents.items():
            agents[phase] = agents.get(phase, 0) + count
    return HealthPayload(
        at=timestamp(datetime.now(UTC)),
        uptime=max(health.uptime for health in healths),
        polls=total(lambda health: health.polls),
        poll_errors=total(lambda health: health.poll_errors),
        lost_answers=total(lambda health: health.lost_answers),
        unreadable=total(lambda health: health.unreadable),
        events=total(lambda health: health.events),
        publishes=total(lambda health: health.publishes),
        outbox=OutboxHealth(
            depth=total(lambda health: health.outbox.depth),
            oldest_seconds=max(health.outbox.oldest_seconds for health in healths),
            bytes=total(lambda health: health.outbox.bytes),
            at_risk=total(lambda health: health.outbox.at_risk),
        ),
        agents=agents,
        cpu_seconds=round(sum(health.cpu_seconds for health in healths), 3),
        rss_bytes=total(lambda health: health.rss_bytes),
    )
