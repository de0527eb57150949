"""The whole: builds the parts, starts them in order, and stops them so that nothing is lost (D7).

```
gateway -> fleet of pollers -> OUTBOX -> link (publisher) -> broker
               ^                                  |
               +------- commands, bridge <--------+
```
"""

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from adapter.agent.presence import Shared, Timing
from adapter.bridge import Bridge, Request
from adapter.config import Config, load
from adapter.config.report import difference
from adapter.errors import AdapterError, CommandError, StorageError, StorageFullError
from adapter.event import timestamp
from adapter.intake import Flood
from adapter.link import Link
from adapter.logs import TopicHandler, set_up
from adapter.mark import Mark
from adapter.metrics import Counters
from adapter.mqtt import Connection, ProtocolName, Received
from adapter.operations import Operations
from adapter.outage import Outage
from adapter.preparation import (
    collections_put_off,
    faster_switches,
    favour_the_event_loop,
    make_mask,
    raise_file_limit,
    spare_the_event_loop_collections,
    unwrapped_task_group,
    warn_of_the_unverified,
)
from adapter.privacy import Mask
from adapter.role import Role, Stage, alone
from adapter.topics import BRIDGE

if TYPE_CHECKING:  # imported where it is switched on
    from adapter.home_assistant import Announcing

_log = logging.getLogger(__name__)

_REPORT_S = 60.0
"""How often health is published (section 3)."""
_FIRST_POLL_S = 2.0
"""How long after the last agent's first request it may be under way."""
_BEAT_S = 10.0
"""How often a sign of life is left for `ccgateway2mqtt health`."""
_SETTLE_S = 5.0
"""How long the agents' start waits for the first attempt to connect: what that says may end the program."""
_FLUSH_S = 5.0
"""How long the outbox may be flushed at the end (D7)."""
_STARTS_KEPT = 20
"""How many of its starts the adapter remembers: more than a crash loop makes between two connections."""

Ending = Literal["stopped", "restart"]


class App:
    """One run of the adapter, from start to stop.

    Attributes:
        read: Reads the configuration again for a reload.
    """

    def __init__(self, config: Config, role: Role, mask: Mask | None, timing: Timing) -> None:
        self.read: Callable[[Path], Config] = load
        self._role = role
        self._config = config
        self._outbox = role.outbox
        self._started_at = datetime.now(UTC)
        self._shared = Shared(
            config=config,
            outbox=role.outbox,
            topics=role.topics,
            counters=Counters(),
            gateway_outage=Outage("gateway"),
            storage_outage=Outage("storage"),
            mask=mask,
            timing=timing,
        )
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._ending: Ending = "stopped"
        self._reloading = asyncio.Lock()
        self._recovering: asyncio.Task[None] | None = None
        self._announcing: Announcing | None = None

    def stop(self) -> None:
        """Have `run` stop; asked a second time, polls under way are not waited for."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    async def run(self, ready: Callable[[], None]) -> Ending:
        """Run until `stop`, or until a request for a restart.

        Args:
            ready: Called once the agents are started.

        Raises:
            StartError: It cannot run as configured.
        """
        async with contextlib.AsyncExitStack() as stack:
            tasks = self._tasks = await stack.enter_async_context(unwrapped_task_group())
            stack.enter_context(collections_put_off())
            async with self._reloading:  # a SIGHUP may come at any time
                link = await self._start(stack)
            regular = [
                tasks.create_task(self._report_regularly(), name="report"),
                tasks.create_task(self._beat_regularly(), name="beat"),
                tasks.create_task(spare_the_event_loop_collections(self._starting_s()), name="collections"),
                tasks.create_task(self._fleet.watch_guid_files(), name="guid-files"),
            ]
            if self._announcing is not None:
                regular.append(tasks.create_task(self._announcing.run(), name="home-assistant"))
            ready()
            await self._stopping.wait()
            await self._stop(link, regular)
        return self._ending

    async def _start(self, stack: contextlib.AsyncExitStack) -> asyncio.Task[None]:
        """Build the parts and start them, the link to the broker first; give its task."""
        topics, timing = self._shared.topics, self._shared.timing
        protocol = await self._outbox.recall("protocol")
        self._fleet = self._role.fleet(self._shared, self._tasks)
        flood = Flood()
        self._bridge = Bridge(self._shared, self._fleet.pollers, flood, self._started_at)
        self._commands = self._role.commands(self._shared, self._fleet, flood)
        mark = Mark(self._outbox, topics.bridge("mark"), every_s=timing.mark_s, wait_s=timing.no_mark_s)
        self._link = Link(
            self._config.mqtt,
            outbox=self._outbox,
            topics=topics,
            counters=self._shared.counters,
            mark=mark,
            subscriptions=self._role.subscriptions(self._config),
            receive=self._receive,
            connected=self._connected,
            remembered=None if protocol is None else cast("ProtocolName", protocol.decode()),
            own_starts=await self._note_start(),
        )
        self._operations = Operations(self._shared, self._fleet.pollers, self._bridge, self._link, mark)
        own = {
            "agents": Request(lambda _: self._bridge.agents()),
            "reload": Request(lambda _: self.reload()),
            "restart": Request(lambda _: self._restart()),
        }
        self._bridge.requests = self._role.requests(self._operations.requests | own)
        handler = TopicHandler(topics.bridge("log"), self._link.publish)
        logging.getLogger().addHandler(handler)
        stack.callback(logging.getLogger().removeHandler, handler)
        if self._config.http is not None:
            # Imported here, so that who does not use it does not pay for aiohttp.
            from adapter.listener import Exporter, listen  # noqa: PLC0415 - see above
            from adapter.loop_delay import LoopDelay  # noqa: PLC0415 - see above

            exporter = Exporter(
                self._shared.counters,
                self._outbox,
                self._bridge,
                stack.enter_context(LoopDelay()),
                limit_bytes=self._config.storage.max_mb * 1024 * 1024,
                connected=lambda: self._link.connection is not None,
                others=self._role.figures,
            )
            await stack.enter_async_context(listen(self._config.http, exporter, topics.prefix))
        announced = (await self._outbox.recall("home_assistant") or b"").decode()
        if self._config.home_assistant.discovery or announced:
            from adapter.home_assistant import Announcing  # noqa: PLC0415 - as above

            self._announcing = Announcing(
                self._role.identity(self._config),
                before=announced,
                remember=lambda prefix: self._outbox.remember("home_assistant", prefix.encode()),
                show=self._show_again,
                after_birth_s=timing.after_birth_s,
            )
        stage = Stage(
            config=self._config,
            link=self._link,
            bridge=self._bridge,
            receive=self._receive,
            connected=self._announce_over,
        )
        self._voice = await self._role.speak(stage, self._tasks)
        link = self._tasks.create_task(self._link.run(), name="link")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_S):
                await self._link.settled.wait()
        self._link.settled.set()
        self._fleet.start(self._config.agents, after_kill=self._outbox.after_kill)
        await self._fleet.clear(self._fleet.strangers())
        await self._bridge.introduce(self._config)
        await self._commands.restore(self._outbox.pending)
        self._commands.begin()
        return link

    async def reload(self) -> dict[str, list[str]]:
        """Read the configuration again, and change what it changes (C7).

        Raises:
            ConfigError: It is not valid; nothing was changed.
            CommandError: It changes what only a restart can change; nothing was changed.
        """
        async with self._reloading:
            if self._stopping.is_set():
                raise CommandError("the adapter is stopping")
            with faster_switches():
                new = await asyncio.get_running_loop().run_in_executor(None, self.read, self._config.path)
            change = difference(self._config, new)
            if change.keys:
                raise CommandError(f"a restart is needed for {', '.join(change.keys)}; nothing was changed")
            if new.log != self._config.log:
                set_up(new.log)
            self._config = new
            if self._announcing is not None:
                self._announcing.introduce(self._role.identity(new))
            self._voice.introduce(self._role.identity(new))
            waiting = await self._fleet.change(new.agents, change.removed, change.changed, hurry=self._hurry)
            await self._bridge.introduce(new)
            await self._commands.restore(waiting)
            _log.info(
                "reload: %d added, %d removed, %d changed",
                len(change.added),
                len(change.removed),
                len(change.changed),
            )
            return {"added": change.added, "removed": change.removed, "changed": change.changed}

    def reload_soon(self) -> None:
        """Reload in the background, for SIGHUP; what is wrong is logged."""

        async def reload() -> None:
            try:
                await self.reload()
            except AdapterError as error:
                for line in str(error).splitlines():
                    _log.error("reload: %s", line)

        self._reload_task = asyncio.get_running_loop().create_task(reload(), name="reload")

    async def _restart(self) -> None:
        self._ending = "restart"
        # The response goes out with the flush of the stop that begins now.
        asyncio.get_running_loop().call_soon(self.stop)

    async def _stop(self, link: asyncio.Task[None], regular: list[asyncio.Task[None]]) -> None:
        """Stop in an order that loses nothing: say so, end the polls, sign out, flush, disconnect (D7)."""
        _log.info("stopping: polls under way may end first; a second signal does not wait for them")
        await self._link.say_offline()
        await self._fleet.stop(self._hurry)
        async with self._reloading:  # a reload under way ends polls as well
            await self._commands.close()
        await self._bridge.close()
        await self._operations.close()
        for task in regular if self._recovering is None else (*regular, self._recovering):
            task.cancel()
        if self._link.connection is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_S):
                    await self._outbox.flushed()
        self._link.leave()
        if self._link.connection is None:
            link.cancel()  # or it would wait for a broker that does not answer
        await asyncio.wait([link])
        _log.info("stopped: %d messages wait in %s", self._outbox.depth, self._config.storage.path)

    async def _note_start(self) -> frozenset[str]:
        """Remember this start; give the last ones, by which `info` that was left at the broker is known as our own."""
        stored = await self._outbox.recall("starts")
        starts = ([] if stored is None else stored.decode().split())[-_STARTS_KEPT:]
        starts.append(timestamp(self._started_at))
        with contextlib.suppress(StorageFullError):
            await self._outbox.remember("starts", " ".join(starts).encode())
        return frozenset(starts)

    # Regular work.

    def _starting_s(self) -> float:
        return self._fleet.start_s(len(self._config.agents)) + _FIRST_POLL_S

    async def _report_regularly(self) -> None:
        await asyncio.sleep(self._starting_s())
        while True:
            await self._report()
            await asyncio.sleep(_REPORT_S)

    async def _report(self) -> None:
        try:
            self._link.publish(await self._bridge.health())
            await self._bridge.refresh_info()
            await self._voice.tell_health()
            await self._commands.forget()
        except StorageError as error:
            _log.debug("report: %s", error)

    async def _report_recovery(self) -> None:
        """Tell at a connection what has waited for it, and tell again when all of that is out."""
        await self._report()
        if self._outbox.depth:
            await self._outbox.flushed()
            await self._report()

    def _connected(self) -> None:
        self._report_soon()
        if self._link.connection is not None:
            self._voice.linked(self._link.connection)

    def _announce_over(self, connection: Connection) -> None:
        if self._announcing is not None:
            self._announcing.connected(connection)

    def _show_again(self, name: str) -> None:
        """Send again what is retained of an agent, or with ``bridge`` that the adapter is there."""
        if name == BRIDGE:
            self._voice.repeat_availability()
        else:
            self._fleet.show_again(name)

    def _report_soon(self) -> None:
        if self._recovering is not None:
            self._recovering.cancel()
        self._recovering = self._tasks.create_task(self._report_recovery(), name="report")

    async def _beat_regularly(self) -> None:
        while True:
            self._outbox.beat(
                {
                    "at": time.monotonic(),  # the same for all processes, and nobody can set it
                    "writable": self._outbox.writable,
                    "connected": self._link.connection is not None,
                }
            )
            await asyncio.sleep(_BEAT_S)

    # What comes from the broker.

    def _receive(self, received: Received, acknowledge: Callable[[], None]) -> None:
        command = self._shared.topics.parse_command(received.topic)
        if command is not None:
            self._commands.receive(received, *command, acknowledge)
            return
        acknowledge()
        name = self._shared.topics.parse_request(received.topic)
        if self._voice.hear(received):
            return
        if name is not None:
            self._bridge.receive(name, received)
        elif self._announcing is not None:
            self._announcing.receive(received)


async def run(
    config: Config,
    *,
    ready: Callable[[], None] = lambda: None,
    timing: Timing | None = None,
    handle_signals: bool = True,
    control: Callable[[App], None] = lambda _: None,
) -> Ending:
    """Run the adapter with a configuration.

    Args:
        config: What `load` gave.
        ready: Called once the agents are started.
        timing: Other times than the program's own; for tests.
        handle_signals: Whether SIGTERM, SIGINT and SIGHUP are this run's; only in the main thread.
        control: Given the running program, to stop or reload it from within.

    Returns:
        Whether it was stopped, or asked to start afresh.

    Raises:
        StorageError: `storage.path` is in use or cannot be opened.
        StartError: It cannot run as configured.
    """
    raise_file_limit(len(config.agents))
    favour_the_event_loop()
    warn_of_the_unverified(config)
    if config.cluster is None:
        place: contextlib.AbstractAsyncContextManager[Role] = alone(config)
    else:
        from adapter.cluster import join  # noqa: PLC0415 - as above

        place = join(config)
    async with place as role:
        app = App(config, role, await make_mask(config.privacy, role.outbox), timing or Timing())
        control(app)
        if handle_signals:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, app.stop)
            loop.add_signal_handler(signal.SIGHUP, app.reload_soon)
        return await app.run(ready)
