"""`run --processes N`: several members of one fleet on one machine, kept alive by the process that started them.

```
run --processes 4 -+-> nats-server, where no section cluster names others
       |           +-> members 1 to 4: run --member, told by a pipe what they have of their own
lock on storage.path
```

What they have lies in a directory beside `storage.path`: the members' databases, and where it is embedded the server's
store with the fleet's name and key. Rules of this file:
1. The process has the lock on `storage.path` (D5). What a program alone left there moves into the journals first, and
   back when one is run there again.
2. A member ends when the pipe from its parent does: whoever takes over may poll.
3. No secret stands on a command line or in an environment.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
from cryptography.fernet import Fernet

from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine, connect
from adapter.cluster.moving import LEFT
from adapter.cluster.moving_in import move_in
from adapter.cluster.moving_out import move_out
from adapter.config import Backoff, ClusterConfig, Config
from adapter.errors import StartError, StorageInUseError
from adapter.nats import NatsServer
from adapter.store.database import Database, Lock
from adapter.store.outbox import Outbox, open_as

_log = logging.getLogger(__name__)

_NOT_HEALED = (2, 3)
"""Exit codes that mean the same at the next start."""

_AGAIN = Backoff(initial_s=1.0, maximum_s=60.0)
"""Pauses before a member that died begins again."""
_WELL_S = 60.0
"""How long it has lived when the pauses begin with the first one again."""
_GONE_S = 20.0
"""How long members of a parent that was killed may take to be gone."""
_LOOK_S = 0.05
_FIRST_BEAT_S, _BEAT_S = 1.0, 10.0
_EMBEDDED = "processes"
"""What `storage.path` knows an embedded fleet by."""
_USER = "member"
_MOVES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a member has of its own.

    Attributes:
        number: From 1.
        cluster: The embedded server; `None` where the configuration names others.
    """

    number: int
    cluster: "Embedded | None"

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


class Embedded(msgspec.Struct, frozen=True, kw_only=True):
    """An embedded server, and the fleet on it."""

    url: str
    name: str
    key: str
    password: str

    def section(self) -> ClusterConfig:
        """Make a section `cluster`."""
        return ClusterConfig(
            urls=(self.url,),
            name=self.name,
            keys=(self.key,),
            username=_USER,
            password=self.password,
            credentials=None,
            ca_file=None,
            cert_file=None,
            key_file=None,
            replicas=1,
            moves=_MOVES,
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


# The embedded server.


class _Kept(msgspec.Struct, frozen=True):
    """What is kept of an embedded fleet beside the server's store."""

    name: str
    key: str


def left_behind(config: Config) -> bool:
    """Say whether an embedded fleet has the agents of `storage.path`."""
    return _kept_in(config).exists()


def _kept_in(config: Config) -> Path:
    return config.storage.fleet / "fleet.json"


def _keep(config: Config) -> _Kept:
    """Recall the fleet's name and key; make them where there are none yet."""
    path = _kept_in(config)
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=_Kept)
    kept = _Kept(config.instance, Fernet.generate_key().decode())
    new = path.with_suffix(".new")
    with open(new, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(msgspec.json.encode(kept))
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    return kept


@contextlib.asynccontextmanager
async def _embedded(config: Config) -> AsyncIterator[Embedded]:
    """Run the embedded server.

    Raises:
        StartError: It is not installed, does not start, or one is still there.
    """
    kept, directory = _keep(config), config.storage.fleet / "nats"
    directory.mkdir(mode=0o700, exist_ok=True)
    password = secrets.token_urlsafe(24)
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        await _hold(lock, directory)
        server = NatsServer(
            directory,
            username=_USER,
            password=password,
            lasting_bytes=config.storage.max_mb << 20,
            inherited=(lock,),
        )
        try:
            await server.start()
            keeping = asyncio.create_task(_keep_up(server), name="nats-server")
            try:
                yield Embedded(url=server.url, name=kept.name, key=kept.key, password=password)
            finally:
                keeping.cancel()
                await asyncio.wait([keeping])
        finally:
            await server.stop()
    finally:
        os.close(lock)


async def _hold(lock: int, directory: Path) -> None:
    """Wait until no server has the store: one that its parent could not end lets go of it with its life."""
    ends_at = time.monotonic() + _GONE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > ends_at:
                raise StorageInUseError(str(directory)) from None
            await asyncio.sleep(_LOOK_S)
        else:
            return


async def _keep_up(server: NatsServer) -> None:
    """Start the server again whenever it has ended: the members wait meanwhile."""
    pauses = _AGAIN.delays()
    while True:
        began_at = time.monotonic()
        await server.ended()
        if time.monotonic() - began_at > _WELL_S:
            pauses = _AGAIN.delays()
        pause_s = next(pauses)
        _log.error("nats-server ended; begins again in %.0f s, nothing is polled meanwhile", pause_s)
        await asyncio.sleep(pause_s)
        try:
            await server.start()
        except StartError as error:
            _log.error("%s", error)
        else:
            _log.info("nats-server is back")


async def bring_back(config: Config) -> None:
    """Bring what an embedded fleet has back to `storage.path`, and end it. No member of it may run.

    Raises:
        StartError: The server cannot be started, or the database has something of its own.
        StorageError: The database is in use, or has no room.
        ClusterError: A journal cannot be read.
    """
    async with open_as(Outbox, config.storage.path, config.storage.max_mb) as outbox:
        await _former_members_gone(config)
        if await outbox.recall(LEFT) is None:
            async with _embedded(config) as told:
                async with _engine_of(replace(config, cluster=told.section())) as (engine, codec):
                    await move_out(outbox, config, engine, codec, _EMBEDDED)
                for path in _databases(config):
                    await outbox.read(partial(Database.adopt_kept, path=path))
        # First what says that there is something.
        _kept_in(config).unlink()
        shutil.rmtree(config.storage.fleet)
        await outbox.write(lambda database: database.forget_meta(LEFT))


@contextlib.asynccontextmanager
async def _engine_of(config: Config) -> AsyncIterator[tuple[Engine, Codec]]:
    if config.cluster is None:
        raise AssertionError("no fleet")
    async with connect(config.cluster, config.instance) as engine:
        await engine.prepare()
        yield engine, Codec(config.cluster.keys)


async def _former_members_gone(config: Config) -> None:
    """Wait until the members of a parent that was killed are gone.

    Raises:
        StorageInUseError: They are not.
    """
    ends_at = time.monotonic() + _GONE_S
    for path in _databases(config):
        while Lock.read(path) is not None:
            if time.monotonic() > ends_at:
                raise StorageInUseError(str(path))
            await asyncio.sleep(_LOOK_S)


def _databases(config: Config) -> list[Path]:
    return list(config.storage.fleet.glob("*.db"))


async def _is_left(config: Config) -> bool:
    async with open_as(Outbox, config.storage.path, config.storage.max_mb) as outbox:
        return await outbox.recall(LEFT) == _EMBEDDED.encode()


# The parent.


async def run(config: Config, count: int) -> None:
    """Run members until SIGTERM or SIGINT.

    Args:
        config: What `load` gave.
        count: How many.

    Raises:
        StartError: They cannot run as configured, or not all ended well.
        StorageError: `storage.path` is in use or cannot be opened.
    """
    if left_behind(config) and (
        config.cluster is not None or _keep(config).name != config.instance or await _is_left(config)
    ):
        await bring_back(config)
    config.storage.fleet.mkdir(mode=0o700, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        outbox = await stack.enter_async_context(open_as(Outbox, config.storage.path, config.storage.max_mb))
        await _former_members_gone(config)
        told, own, fleet = None, config, _EMBEDDED
        if config.cluster is None:
            told = await stack.enter_async_context(_embedded(config))
            own = replace(config, cluster=told.section())
            await outbox.write(lambda database: database.forget_meta(LEFT))
        else:
            fleet = config.cluster.name
        async with _engine_of(own) as (engine, codec):
            await move_in(outbox, own, engine, codec, fleet)
        members = [_Member(config, Orders(number=number, cluster=told)) for number in range(1, count + 1)]
        await _Parent(members, outbox).run()


class _Member:
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


class _Parent:
    """Keeps members alive until it is told to end."""

    def __init__(self, members: list[_Member], outbox: Outbox) -> None:
        self._members = members
        self._outbox = outbox
        self._stopping = asyncio.Event()
        self._not_healed = 0

    async def run(self) -> None:
        """Do so."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._pass_on, signal.SIGHUP)
        beat = asyncio.create_task(self._beat_regularly(), name="beat")
        try:
            codes = await asyncio.gather(*map(self._attend, self._members))
        finally:
            beat.cancel()
        if self._not_healed:
            raise StartError("a member cannot run: all have ended", exit_code=self._not_healed)
        if any(codes):
            raise StartError("not all members ended well", exit_code=1)

    def _stop(self) -> None:
        """End all members; told again, they hurry."""
        if not self._stopping.is_set():
            _log.info("stopping: %d members hand over and end; a second signal hurries them", len(self._members))
        self._stopping.set()
        for member in self._members:
            member.end()

    def _pass_on(self, number: signal.Signals) -> None:
        for member in self._members:
            member.send(number)

    async def _attend(self, member: _Member) -> int:
        """Run a member again whenever it has died; give the exit code of its end."""
        pauses, first = _AGAIN.delays(), True
        while not self._stopping.is_set():
            began_at = time.monotonic()
            code = await member.run_once()
            if self._stopping.is_set():
                return 0 if code == -signal.SIGTERM else code  # before it could take the signal
            lived_s = time.monotonic() - began_at
            if first and lived_s < _WELL_S and code in _NOT_HEALED:
                self._not_healed = code
                self._stop()
                return code
            first = False
            if code == 0:
                _log.info("member %s has ended, as somebody told it to, and begins afresh", member.name)
                continue
            if lived_s > _WELL_S:
                pauses = _AGAIN.delays()
            pause_s = next(pauses)
            fate = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
            _log.error("member %s %s; begins again in %.0f s", member.name, fate, pause_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
        return 0

    async def _beat_regularly(self) -> None:
        """Leave a sign of life of all members where `ccgateway2mqtt health` looks."""
        while True:
            await asyncio.sleep(_FIRST_BEAT_S)
            beats = [beat for member in self._members if (beat := Lock.read(member.storage))]
            if beats:
                self._outbox.beat(
                    {
                        "at": min(beat["at"] for beat in beats),
                        "writable": all(beat["writable"] for beat in beats),
                        "connected": all(beat["connected"] for beat in beats),
                    }
                )
                await asyncio.sleep(_BEAT_S)
