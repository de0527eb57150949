"""The embedded nats-server, the fleet on it, and how that is found.

Rule of this file: what leads to the server is for its owner alone, and there while it runs.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
from cryptography.fernet import Fernet

from adapter.config import Backoff, ClusterConfig, Config
from adapter.errors import StartError
from adapter.nats import NatsServer
from adapter.store.lock import Lock

_log = logging.getLogger(__name__)

EMBEDDED = "processes"
"""What `storage.path` knows an embedded fleet by."""
AGAIN = Backoff(initial_s=1.0, maximum_s=60.0)
"""Pauses before what died begins again."""
WELL_S = 60.0
"""How long it has lived when the pauses begin with the first one again."""
_GONE_S = 20.0
"""How long what a parent that was killed has started may take to be gone."""
_LOOK_S = 0.05
_IN_USE = 3
_USER = "member"
_MOVES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """An embedded server, and the fleet on it."""

    url: str
    name: str
    key: str = field(repr=False)
    password: str = field(repr=False)

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


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is kept of an embedded fleet beside the server's store."""

    name: str
    key: str = field(repr=False)


def left_behind(config: Config) -> bool:
    """Say whether an embedded fleet has the agents of `storage.path`."""
    return kept_in(config).exists()


def kept_in(config: Config) -> Path:
    """Name the file that says so."""
    return config.storage.fleet / "fleet.json"


def store_of(config: Config) -> Path:
    """Name the directory that the server stores in."""
    return config.storage.fleet / "nats"


def is_named(config: Config) -> bool:
    """Say whether the embedded fleet is of this `instance`."""
    return _keep(config).name == config.instance


def _keep(config: Config) -> _Kept:
    """Recall the fleet's name and key; make them where there are none yet."""
    path = kept_in(config)
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=_Kept)
    kept = _Kept(config.instance, Fernet.generate_key().decode())
    _write(path, kept)
    return kept


def _write(path: Path, value: object) -> None:
    """Write a file for its owner alone, whole or not at all."""
    new = path.with_suffix(".new")
    with open(new, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(msgspec.json.encode(value))
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)


def _told_in(config: Config) -> Path:
    """Name the file that leads to the server, while that runs."""
    return config.storage.fleet / "running.json"


def reach(config: Config) -> Config:
    """Give a configuration a section `cluster` that leads to the embedded fleet which runs with it.

    Raises:
        StartError: None runs.
    """
    path, storage = _told_in(config), config.storage.path
    try:
        told = msgspec.json.decode(path.read_bytes(), type=Embedded)
    except FileNotFoundError:
        told = None
    except PermissionError as err:
        raise StartError(f"{path}: only the user who runs the adapter may read it", exit_code=1) from err
    if told is not None and Lock.read(storage) is not None:
        return replace(config, cluster=told.section())
    if left_behind(config):
        raise StartError(f"{storage}: `run --processes` does not run with it", exit_code=1)
    reason = f"{config.path}: there is no section cluster in it, and no `run --processes` runs with {storage}"
    raise StartError(reason, exit_code=2)


@contextlib.asynccontextmanager
async def embedded(config: Config) -> AsyncIterator[Embedded]:
    """Run the embedded server.

    Raises:
        StartError: It is not installed, does not start, or one is still there.
    """
    directory, told_in = store_of(config), _told_in(config)
    directory.mkdir(mode=0o700, exist_ok=True)
    password = secrets.token_urlsafe(24)
    told_in.unlink(missing_ok=True)  # of a parent that was killed
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        await until_gone(lambda: _is_held(lock), f"{directory}: the nats-server of an earlier start")
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
                kept = _keep(config)  # only now: a server that cannot be started has nothing
                told = Embedded(url=server.url, name=kept.name, key=kept.key, password=password)
                _write(told_in, told)
                yield told
            finally:
                told_in.unlink(missing_ok=True)
                keeping.cancel()
                await asyncio.wait([keeping])
        finally:
            await server.stop()
    finally:
        os.close(lock)


def _is_held(lock: int) -> bool:
    """Say whether a server has the store; else hold it: one lets go of it with its life."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


async def until_gone(there: Callable[[], bool], what: str) -> None:
    """Wait until something is gone that a parent which was killed has left.

    Raises:
        StartError: It stays.
    """
    ends_at = time.monotonic() + _GONE_S
    while there():
        if time.monotonic() > ends_at:
            raise StartError(f"{what} still runs: end it", exit_code=_IN_USE)
        await asyncio.sleep(_LOOK_S)


async def _keep_up(server: NatsServer) -> None:
    """Start the server again whenever it has ended: the members wait meanwhile."""
    pauses = AGAIN.delays()
    while True:
        began_at = time.monotonic()
        await server.ended()
        if time.monotonic() - began_at > WELL_S:
            pauses = AGAIN.delays()
        pause_s = next(pauses)
        fate = f"could not store: {server.failure}" if server.failure else "ended"
        _log.error("nats-server %s; begins again in %.0f s, nothing is polled meanwhile", fate, pause_s)
        await asyncio.sleep(pause_s)
        try:
            await server.start()
        except StartError as error:
            _log.error("%s", error)
        else:
            _log.info("nats-server is back")
