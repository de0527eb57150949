"""A member's process: what it is told by its parent, and how it is run again and again."""

import asyncio
import contextlib
import os
import signal
import sys
import threading
from dataclasses import dataclass, replace

import msgspec

from adapter.cluster.processes.server import Embedded
from adapter.config import Config
from adapter.errors import StartError


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a member has of its own.

    Attributes:
        number: From 1.
        cluster: The embedded server; `None` where the configuration names others.
    """

    number: int
    cluster: Embedded | None

    def give(self, config: Config) -> Config:
        """Make a member's configuration of the one that all read."""
        number, http = self.number, config.http
        instance = f"{config.instance}-{number}"
        return replace(
            config,
            instance=instance,
            mqtt=replace(config.mqtt, client_id=f"{config.mqtt.client_id}-{number}"),
            storage=replace(config.storage, path=config.storage.fleet / f"{number}.db"),
            http=None if http is None else replace(http, port=http.port and http.port + number - 1),
            cluster=config.cluster if self.cluster is None else self.cluster.section(),
            log=replace(config.log, member=instance),
        )


def take_orders(number: int) -> Orders:
    """Hear from the parent, by stdin, what this member has of its own; end with the parent from now on.

    Raises:
        StartError: Nobody says so.
    """
    try:
        cluster = msgspec.json.decode(sys.stdin.buffer.readline(), type=Embedded | None)
    except msgspec.DecodeError as err:
        raise StartError("--member is for `run --processes`", exit_code=2) from err
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    return Orders(number=number, cluster=cluster)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)  # as if killed: nobody passes signals on any more, and the next start goes on from here


class Member:
    """One member's process, again and again."""

    def __init__(self, config: Config, orders: Orders) -> None:
        given = orders.give(config)
        self.name = given.instance
        self.storage = given.storage.path
        self._orders = orders
        self._process: asyncio.subprocess.Process | None = None
        self._ending = False

    async def run_once(self) -> int:
        """Run it to its end; give its exit code, or less than 0 where a signal ended it."""
        # Its own session: Ctrl-C in a terminal reaches every process of a group, and we pass it on ourselves.
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, *sys.orig_argv[1:], f"--member={self._orders.number}"),
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.write(msgspec.json.encode(self._orders.cluster) + b"\n")
                await self._process.stdin.drain()
        if self._ending:
            self.end()
        code = await self._process.wait()
        self._process = None
        return code

    def end(self) -> None:
        """Have it end, also where it is just being started."""
        self._ending = True
        self.send(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, where it runs."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)
