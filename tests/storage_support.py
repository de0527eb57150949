"""Real trouble for the storage: a disk that is full or read-only, writes that fail, files that are damaged.

The adapter runs as a process of its own, so that it can have a file system and limits of its own: the small disk is
mounted in its own mount namespace, is seen through ``/proc/PID/root``, and is gone when the process is.
"""

import asyncio
import contextlib
import os
import resource
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adapter.store import sql
from adapter.store.database import Database
from tests.adapter_support import Running, write
from tests.broker_support import DEADLINE_S, free_ports
from tests.cli_support import COMMAND, Program, reading
from tests.stage_support import Stage

_MOUNT = 'mount -t tmpfs -o "size=$1,mode=700" tmpfs "$2" && shift 2 && exec "$@"'


_BALLAST = "ballast"


def small_disk(size: str, place: Path) -> list[str]:
    """Give the beginning of a command line that runs the rest with a small disk of its own at `place`.

    Where neither root nor a user namespace may mount, the test fails in CI, and says so elsewhere.
    """
    unshare = ["unshare", "--mount", "--propagation", "private"]
    ways = [unshare] if os.geteuid() == 0 else []
    ways.append([*unshare, "--map-root-user"])
    place.mkdir(exist_ok=True)
    if shutil.which("unshare") is not None:
        for way in ways:
            prefix = [*way, "sh", "-c", _MOUNT, "sh", size, str(place)]
            if subprocess.run([*prefix, "true"], check=False, capture_output=True).returncode == 0:
                return prefix
    reason = "cannot mount a small disk: run as root, or allow user namespaces"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.xfail(reason)


def fill(directory: Path) -> Path:
    """Fill the disk below a directory to its last byte; give the file that did it."""
    ballast = directory / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (65536, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return ballast


def limit_file_size(pid: int, size_bytes: int | None) -> None:
    """Let a process write no file beyond a size (its writes fail with EFBIG, an I/O error to SQLite), or any again."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if size_bytes is None else size_bytes, hard))


async def fill_up(adapter: Running) -> None:
    """Fill the database of an adapter in this process up to `storage.max_mb`, but for a few pages."""

    def fill_file(database: Database) -> None:
        execute = database._connection.execute
        (page,), (most,), (pages,), (free,) = (
            execute(f"PRAGMA {name}").fetchone()
            for name in ("page_size", "max_page_count", "page_count", "freelist_count")
        )
        execute(sql.SET_ASIDE, (0.0, _BALLAST, "", bytes((most - pages + free - 16) * (page - 4))))

    await adapter.app._outbox._writer.write(fill_file)


async def make_room(adapter: Running) -> None:
    """Take out of the database what `fill_up` put in, in no transaction of those that still find it full."""
    await adapter.app._outbox._writer.read(
        lambda database: database._connection.execute("DELETE FROM aside WHERE topic = ?", (_BALLAST,))
    )


@dataclass(slots=True, kw_only=True)
class Process:
    """The adapter as a process.

    Attributes:
        program: What it says, and its end.
        directory: Where its database lies, as this process sees it.
        port: Its HTTP listener.
    """

    program: Program
    directory: Path
    port: int

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.program.process.pid

    async def metric(self, name: str) -> float:
        """Ask for one of its figures."""
        for line in (await self._get("metrics"))[1].splitlines():
            if line.startswith(f"ccgateway2mqtt_{name} "):
                return float(line.split()[1])
        raise AssertionError(name)

    async def wait_metric(self, name: str, value: float) -> None:
        """Wait until one of its figures is so."""
        async with asyncio.timeout(DEADLINE_S):
            while await self.metric(name) != value:  # noqa: ASYNC110 - another process has no event for us
                await asyncio.sleep(0.02)

    async def ready(self) -> bool:
        """Ask whether it is ready."""
        return (await self._get("readyz"))[0] == 200

    def lines(self, part: str) -> list[str]:
        """List what it said so far with `part` in it."""
        return [line for line in self.program.err if part in line]

    async def _get(self, name: str) -> tuple[int, str]:
        def get() -> tuple[int, str]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/{name}", timeout=DEADLINE_S) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, ""

        return await asyncio.to_thread(get)


@contextlib.asynccontextmanager
async def started(stage: Stage, *, disk: str | None = None, **sections: Any) -> AsyncIterator[Process]:  # noqa: ANN401 - YAML's values
    """Run the adapter of a stage as a process while the context lasts.

    Args:
        stage: Where it plays.
        disk: The size of a disk of its own for the database; `None` for the stage's directory.
        sections: Other members of the configuration's sections.
    """
    place = stage.directory / "disk"
    prefix = [] if disk is None else small_disk(disk, place)
    place.mkdir(exist_ok=True)
    (port,) = free_ports(1)
    values = {"storage": {"path": "disk/outbox.db"}, "http": {"listen": f"127.0.0.1:{port}"}} | sections
    path = write(stage.directory, stage.values(**values))
    process = await asyncio.create_subprocess_exec(
        *prefix,
        *COMMAND,
        "run",
        "-c",
        str(path),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with reading(process) as program:
        seen = place if disk is None else Path(f"/proc/{process.pid}/root{place}")
        yield Process(program=program, directory=seen, port=port)
