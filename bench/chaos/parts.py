"""The processes of a stage: Mosquitto, which keeps its memory on disk, the adapter, and the simulated gateway.

Rule of this file: a process that is started here is ended here, by its own id, whatever happens in between.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.support import HOST, BenchError

_START_S = 20.0
_END_S = 60.0
_LOOK_S = 0.01
_FREE_PORTS = range(10_000, 32_000)
"""Below those that the system gives to outgoing connections, so that a broker which was away finds its port free."""


class Part:
    """A process that can be started again and again, and hurt.

    Args:
        name: What it is called, and its log, below `directory`.
    """

    def __init__(self, name: str, command: Sequence[str], directory: Path) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        self._command = list(command)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The process that was started last."""
        if self._process is None:
            raise BenchError(f"{self.name} was never started")
        return self._process

    @property
    def started(self) -> bool:
        """Say whether it was ever started."""
        return self._process is not None

    @property
    def runs(self) -> bool:
        """Say whether it has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self, *, talks: bool = False) -> None:
        """Start it; with `talks`, what it prints is read, and not logged."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE if talks else asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE if talks else log,
                stderr=log,
                limit=1 << 24,
                start_new_session=True,
            )

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, where it still runs."""
        if self.runs:
            self.process.send_signal(number)

    async def kill(self) -> None:
        """Kill it, as nothing can be caught."""
        self.send(signal.SIGKILL)
        await self.process.wait()

    async def ended(self, within_s: float = _END_S) -> int:
        """Wait for its end; give its exit code.

        Raises:
            BenchError: It does not end.
        """
        try:
            async with asyncio.timeout(within_s):
                return await self.process.wait()
        except TimeoutError:
            raise BenchError(f"{self.name} does not end within {within_s:.0f} s") from None

    async def close(self) -> None:
        """End it, by force if it must be."""
        if not self.runs:
            return
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        with contextlib.suppress(BenchError):
            await self.ended(1.0)
        await self.kill()

    def last_words(self) -> str:
        """Give the end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])


def free_port() -> int:
    """Find a port that nobody listens on now."""
    for _ in range(100):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind((HOST, _FREE_PORTS[int.from_bytes(os.urandom(4)) % len(_FREE_PORTS)]))
            port: int = free.getsockname()[1]
            return port
    raise BenchError("no free port")


class Mosquitto(Part):
    """A Mosquitto with persistence: stopped, it remembers everything; killed, what it last wrote down.

    Args:
        host: The address at which it listens.

    Attributes:
        host: The address at which it listens, and...
        port: ...the port.
        lives: When it was started and ended, and whether it was killed.
    """

    def __init__(self, directory: Path, host: str = HOST) -> None:
        binary = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if binary is None:
            raise BenchError("install mosquitto")
        self.host, self.port = host, free_port()
        config, data = directory / "mosquitto.conf", directory / "mosquitto"
        data.mkdir()
        lines = [
            f"listener {self.port} {host}",
            "allow_anonymous true",
            "user root",  # otherwise it gives up root where it has it, and cannot write to the directory
            "persistence true",
            f"persistence_location {data}/",
            "max_queued_messages 0",
        ]
        config.write_text("\n".join(lines) + "\n")
        self.lives: list[tuple[float, float, bool]] = []
        self._began_at = 0.0
        super().__init__("mosquitto", [binary, "-c", str(config)], directory)

    async def begin(self) -> None:
        """Start it, and wait until it listens.

        Raises:
            BenchError: It does not.
        """
        await self.start()
        ends_at = time.monotonic() + _START_S
        while not await self._answers():
            if time.monotonic() > ends_at or not self.runs:
                raise BenchError(f"mosquitto does not start: {self.last_words()}")
            await asyncio.sleep(_LOOK_S)
        self._began_at = time.monotonic()

    async def end(self, *, killed: bool) -> None:
        """Stop it, so that it writes everything down, or kill it."""
        ended_at = time.monotonic()
        if killed:
            await self.kill()
        else:
            self.send(signal.SIGTERM)
            await self.ended()
        self.lives.append((self._began_at, ended_at, killed))

    def write_down(self) -> None:
        """Have it write down what it remembers: that is what it comes back with when it is killed."""
        self.send(signal.SIGUSR1)

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(self.host, self.port)
        except OSError:
            return False
        writer.close()
        return True


class Gateway(Part):
    """`bench.chaos.gateway`: orders in, answers out, one after the other.

    Attributes:
        ledger: The file with every poll.
        hello: What it said when it was ready.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        command = [sys.executable, "-m", "bench.chaos.gateway", "--directory", str(directory), *options]
        super().__init__("gateway", command, directory)
        self.ledger = directory / "ledger"
        self.hello: Any = None
        self._talking = asyncio.Lock()

    async def begin(self) -> None:
        """Start it, and hear where it is."""
        await self.start(talks=True)
        self.hello = await self._hear()

    async def order(self, do: str, **members: object) -> Any:  # noqa: ANN401 - any JSON
        """Have it do something, and hear what it says."""
        async with self._talking:
            if self.process.stdin is None:
                raise BenchError("the gateway cannot hear")
            self.process.stdin.write(json.dumps({"do": do, **members}).encode() + b"\n")
            return await self._hear()

    async def _hear(self) -> Any:  # noqa: ANN401 - any JSON
        line = b"" if self.process.stdout is None else await self.process.stdout.readline()
        if not line:
            raise BenchError(f"the gateway ended: {self.last_words()}")
        return json.loads(line)


def adapter(config: Path, directory: Path) -> Part:
    """Make the adapter as its users start it; it does not run yet."""
    return Part("adapter", [sys.executable, "-m", "adapter", "run", "-c", str(config)], directory)
