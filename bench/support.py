"""What every benchmark needs: programs in processes of their own that are always ended, and what they use.

Rule of this file: a process that is started here is ended here, by its own id, whatever happens in between.
"""

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

HOST = "127.0.0.1"

_START_TRIES = 5
_START_S = 10.0
_HURRY_S = 1.0
_END_S = 15.0
_LOOK_S = 0.05


class BenchError(Exception):
    """A benchmark cannot go on; the text says why."""


def raise_file_limit() -> None:
    """Allow this process, and those it starts, as many open files as the system lets it: a connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def end_by_signal() -> None:
    """Have SIGINT and SIGTERM end this process by way of all `finally`, and let nothing disturb that."""

    def interrupt(_number: int, _frame: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


def wait_until(true: Callable[[], object], timeout_s: float, what: str) -> None:
    """Wait until something is true.

    Raises:
        BenchError: It was not within `timeout_s`.
    """
    ends_at = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > ends_at:
            raise BenchError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(_LOOK_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a process has used since its start.

    Attributes:
        cpu_s: User and system time of all of its threads, in seconds.
        rss_bytes: Its resident memory now.
    """

    cpu_s: float
    rss_bytes: int


class Program:
    """A process that runs while its context lasts, in a session of its own: Ctrl-C reaches it through us alone."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self._name = name
        self._command = list(command)
        self._log = log
        self._process: subprocess.Popen[str]

    def __enter__(self) -> Self:
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        for number, patience_s in ((signal.SIGTERM, _HURRY_S), (signal.SIGTERM, _END_S), (signal.SIGKILL, None)):
            if self._process.poll() is not None:
                break
            self._process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience_s)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def runs(self) -> bool:
        """Say whether it has not ended."""
        return self._process.poll() is None

    def check(self) -> None:
        """See that it still runs.

        Raises:
            BenchError: It has ended.
        """
        if not self.runs:
            last = self._log.read_text(errors="replace").strip().splitlines()[-5:]
            raise BenchError("\n".join([f"{self._name} ended with {self._process.returncode}", *last]))

    def usage(self) -> Usage:
        """Measure it."""
        self.check()
        process = psutil.Process(self._process.pid)
        times = process.cpu_times()
        return Usage(cpu_s=times.user + times.system, rss_bytes=process.memory_info().rss)

    def hear(self) -> Any:  # noqa: ANN401 - any JSON
        """Read a line of JSON that it prints."""
        stdout = self._process.stdout
        line = "" if stdout is None else stdout.readline()
        if not line:
            self._process.wait(_END_S)
            self.check()
        return json.loads(line)

    def tell(self, line: str) -> None:
        """Write it a line."""
        self.check()
        if self._process.stdin is not None:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()


def python(name: str, module: str, arguments: Sequence[str], directory: Path) -> Program:
    """Make a program of a module of ours; what it logs goes into `directory`."""
    return Program(name, [sys.executable, "-m", module, *arguments], directory / f"{name}.log")


@contextlib.contextmanager
def mosquitto(directory: Path) -> Iterator[int]:
    """Run a Mosquitto on a free loopback port; gives the port.

    Raises:
        BenchError: It is not installed, or does not start.
    """
    binary = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if binary is None:
        raise BenchError("install mosquitto")
    for _ in range(_START_TRIES):
        with socket.socket() as free:
            free.bind((HOST, 0))
            port: int = free.getsockname()[1]
        config = directory / "mosquitto.conf"
        config.write_text(f"listener {port} {HOST}\nallow_anonymous true\nmax_queued_messages 0\n")
        with Program("mosquitto", [binary, "-c", str(config)], directory / "mosquitto.log") as broker:
            # It ends at once where somebody was quicker with the port: then another one is tried.
            wait_until(lambda: not broker.runs or _answers(port), _START_S, "mosquitto")  # noqa: B023 - called at once
            if broker.runs:
                yield port
                return
    raise BenchError(f"mosquitto does not start: see {directory / 'mosquitto.log'}")


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False


def quantile(steps: Sequence[tuple[int, int]], share: float) -> int:
    """Give the step that a share of all values does not exceed.

    Args:
        steps: Values in ascending order, each with its count.
        share: Between 0 and 1.
    """
    rank = share * (sum(count for _, count in steps) - 1)
    seen = 0
    for value, count in steps:
        seen += count
        if seen > rank:
            return value
    raise BenchError("nothing was measured")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table; numbers stand right."""
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
