"""Runs the command line: in this process for what it says, as a process of its own where signals matter."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from click.testing import CliRunner, Result

from adapter.cli import main

DEADLINE_S = 20.0
COMMAND = (sys.executable, "-m", "adapter")


def invoke(*arguments: str | Path) -> Result:
    """Run a command in this process; what it raises beyond its exit is raised here."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="ccgateway2mqtt")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


async def invoke_beside(*arguments: str | Path) -> Result:
    """Do as `invoke` does, in a thread: the event loop of the test, with a simulator on it, goes on."""
    return await asyncio.wait_for(asyncio.to_thread(invoke, *arguments), DEADLINE_S)


@dataclass(slots=True)
class Program:
    """A command in a process of its own.

    Attributes:
        out: The lines of its stdout so far.
        err: The lines of its stderr so far.
    """

    process: asyncio.subprocess.Process
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    _readers: list[asyncio.Task[None]] = field(default_factory=list)

    def read(self) -> None:
        """Begin to read what it says."""
        for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err)):
            if stream is not None:
                self._readers.append(asyncio.create_task(self._read(stream, lines)))

    async def _read(self, stream: asyncio.StreamReader, lines: list[str]) -> None:
        while line := await stream.readline():
            lines.append(line.decode(errors="replace").rstrip("\n"))
            async with self._news:
                self._news.notify_all()
        async with self._news:
            self._news.notify_all()

    async def line(self, wanted: Callable[[str], bool], deadline_s: float = DEADLINE_S) -> str:
        """Wait for a line on stdout or stderr, and give the first such."""

        def found() -> list[str]:
            return [line for line in (*self.out, *self.err) if wanted(line)]

        try:
            async with asyncio.timeout(deadline_s), self._news:
                await self._news.wait_for(lambda: found() or all(reader.done() for reader in self._readers))
        except TimeoutError:
            pass
        assert found(), f"no such line: {[*self.out, *self.err][-20:]}"
        return found()[0]

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    async def ended(self, deadline_s: float = DEADLINE_S) -> int:
        """Wait for its end, and for the last of its words; give its exit code."""
        async with asyncio.timeout(deadline_s):
            await self.process.wait()
            if self._readers:
                await asyncio.wait(self._readers)
        assert self.process.returncode is not None
        return self.process.returncode


@contextlib.asynccontextmanager
async def program(*arguments: str | Path, **environment: str) -> AsyncIterator[Program]:
    """Start a command as a process with pipes; one that still runs at the end is killed, with all its children."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *(str(argument) for argument in arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | environment,
    )
    async with reading(process) as made:
        yield made


@contextlib.asynccontextmanager
async def reading(process: asyncio.subprocess.Process) -> AsyncIterator[Program]:
    """Read what a process says while the context lasts, and kill what still runs at the end."""
    made = Program(process)
    made.read()
    try:
        yield made
    finally:
        if process.returncode is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()
        await process.wait()
        for reader in made._readers:
            reader.cancel()
        if made._readers:
            await asyncio.wait(made._readers)


async def run_program(*arguments: str | Path, **environment: str) -> Program:
    """Run a command as a process to its end; its exit code is in `process.returncode`."""
    async with program(*arguments, **environment) as made:
        await made.ended()
    return made


def told_soon(number: signal.Signals, until: Callable[[], object]) -> threading.Thread:
    """Send this process a signal as soon as a condition holds: what runs in the main thread takes it."""

    def send() -> None:
        end = time.monotonic() + DEADLINE_S
        while not until() and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def one_line(result: Result) -> str:
    """Give what a failed command said, which is one line on stderr and nothing on stdout."""
    lines = result.stderr.splitlines()
    assert result.stdout == ""
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    return lines[0]


def json_line(text: str) -> dict[str, object]:
    """Read the one line of JSON that a command printed."""
    (line,) = text.splitlines()
    value = json.loads(line)
    assert isinstance(value, dict)
    return value
