"""What the program sees to before it runs: open files, warnings, the key that masks phone numbers, its task group."""

import asyncio
import contextlib
import gc
import logging
import resource
import secrets
import sys
from collections.abc import AsyncIterator, Iterator

from adapter.config import Config, PrivacyConfig
from adapter.machine import FILES_BESIDES_AGENTS
from adapter.privacy import KEY, Mask
from adapter.store.outbox import Outbox

_log = logging.getLogger(__name__)

_SWITCH_S = 0.0005
"""For how long another thread may keep the interpreter that the event loop waits for. It lets go of it at each system
call, several times a poll: with Python's 5 ms, a reload that reads 3,000 agents in its thread delayed every poll."""

_HURRIED_SWITCH_S = 0.0001
"""The same while there is a thread that never waits: every poll's system call would wait for it for so long."""

_COLLECTIONS = (50, 5, 1 << 30)
"""New objects before a look at them, such looks before one at what they have left, and those before a full one: none
comes by itself."""

_COLLECT_ALL_S = 3600.0
"""How often all is looked through: at 5,000 agents that stops them for 0.1 s."""


def favour_the_event_loop() -> None:
    """Have the threads that store, or read a configuration, give way to the event loop soon."""
    sys.setswitchinterval(_SWITCH_S)


@contextlib.contextmanager
def faster_switches() -> Iterator[None]:
    """Have a thread that reads a configuration give way to the event loop sooner still."""
    sys.setswitchinterval(_HURRIED_SWITCH_S)
    try:
        yield
    finally:
        sys.setswitchinterval(_SWITCH_S)


@contextlib.contextmanager
def collections_put_off() -> Iterator[None]:
    """Have no garbage collection stop the event loop, until `spare_the_event_loop_collections` begins it again."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def spare_the_event_loop_collections(start_s: float) -> None:
    """Have garbage collection stop the event loop for milliseconds only, but for once an hour.

    What exists when the agents have started stays, and is never looked through again. What a poll makes goes with the
    next without being garbage, some twenty objects an agent; Python counts only by how much they become more, so that
    at 5,000 agents 100,000 of them waited for a look that took 50 ms (bench/README.md). Looking often makes each look
    short; a full one finds what was in use for long and left a circle of references behind, which no poll does.

    Args:
        start_s: How long starting takes.
    """
    await asyncio.sleep(start_s)
    gc.freeze()
    gc.set_threshold(*_COLLECTIONS)
    gc.enable()
    while True:
        await asyncio.sleep(_COLLECT_ALL_S)
        gc.collect()


async def make_mask(privacy: PrivacyConfig | None, outbox: Outbox) -> Mask | None:
    """Make the mask; its key is made once, and lives in the database."""
    if privacy is None:
        return None
    key = await outbox.recall(KEY)
    if key is None:
        key = secrets.token_bytes(32)
        await outbox.remember(KEY, key)
    return Mask(members=privacy.members, method=privacy.method, key=key)


@contextlib.asynccontextmanager
async def unwrapped_task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """Run a task group; where one task's error ends it, raise that error itself."""
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def raise_file_limit(agents: int) -> None:
    """Allow as many open files as the system lets us: each agent's connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit != resource.RLIM_INFINITY and limit < agents + FILES_BESIDES_AGENTS:
        _log.error("open files: the limit is %d, %d agents need more: raise LimitNOFILE (ulimit -n)", limit, agents)


def warn_of_the_unverified(config: Config) -> None:
    """Say at every start what is not verified."""
    if not config.gateway.verify:
        _log.warning("gateway.verify is false: anybody in between can read and send events")
    if not config.mqtt.verify:
        _log.warning("mqtt.verify is false: anybody in between can read and send messages")
