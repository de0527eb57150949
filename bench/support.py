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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

HOST = "127.0.0.1"

PAUSE_S = (0.205, 0.4)
"""The pause of the clients that we compare with, at least and at most, which is the adapter's own: P4's 200 to 500 ms
at the gateway, less what timers and round trips add."""

_START_TRIES = 5
_START_S = 10.0
_HURRY_S = 1.0
_END_S = 15.0
_LOOK_S = 0.05
_LISTEN_S = 30.0
_CPU_SCHEDULER = 2
"""CPUCLOCK_SCHED: user and system time together."""


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


def exit_code(run: Callable[[], bool]) -> int:
    """Run a benchmark, ended by a signal or not; give its exit code: 1 where something is not as it must be."""
    end_by_signal()
    raise_file_limit()
    try:
        return 0 if run() else 1
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def say(text: str) -> None:
    """Tell whoever waits how far a benchmark is."""
    print(text, file=sys.stderr, flush=True)


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
    """What a process and its children have used since their start.

    Attributes:
        cpu_s: User and system time of all of their threads, in seconds.
        rss_bytes: Their resident memory now.
    """

    cpu_s: float
    rss_bytes: int


class Program:
    """A process that runs while its context lasts, in a session of its own: Ctrl-C reaches it through us alone."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._name = name
        self._command = list(command)
        self._log = log
        self._environment = None if environment is None else os.environ | environment
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
                env=self._environment,
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
        family = [process, *process.children(recursive=True)]
        return Usage(
            cpu_s=sum(cpu_s(each.pid) for each in family), rss_bytes=sum(each.memory_info().rss for each in family)
        )

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.check()
        self._process.send_signal(number)

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


def cpu_s(pid: int) -> float:
    """Read a process's CPU clock: all of its threads, those that have ended too, and finer than the ticks of /proc.

    Source: clock_getcpuclockid(3), which makes a process's number into that of its clock in this way on Linux.
    """
    return time.clock_gettime(~pid << 3 | _CPU_SCHEDULER)


def python(name: str, module: str, arguments: Sequence[str], directory: Path) -> Program:
    """Make a program of a module of ours; what it logs goes into `directory`."""
    return Program(name, [sys.executable, "-m", module, *arguments], directory / f"{name}.log")


@contextlib.contextmanager
def mosquitto(directory: Path, host: str = HOST) -> Iterator[int]:
    """Run a Mosquitto on a free port of this machine, on the loopback unless told; gives the port.

    Raises:
        BenchError: It is not installed, or does not start.
    """
    binary = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if binary is None:
        raise BenchError("install mosquitto")
    for _ in range(_START_TRIES):
        with socket.socket() as free:
            free.bind((host, 0))
            port: int = free.getsockname()[1]
        config = directory / "mosquitto.conf"
        settings = ["allow_anonymous true", "max_queued_messages 0", "sys_interval 1"]
        # Or it holds a message back until the subscriber's system has confirmed the one before: up to 40 ms.
        settings.append("set_tcp_nodelay true")
        config.write_text("\n".join([f"listener {port} {host}", *settings, ""]))
        with Program("mosquitto", [binary, "-c", str(config)], directory / "mosquitto.log") as broker:
            # It ends at once where somebody was quicker with the port: then another one is tried.
            wait_until(lambda: not broker.runs or _answers(host, port), _START_S, "mosquitto")  # noqa: B023 - called at once
            if broker.runs:
                yield port
                return
    raise BenchError(f"mosquitto does not start: see {directory / 'mosquitto.log'}")


def listen(port: int, topic: str, host: str = HOST) -> str:
    """Wait for a message; empty where none comes."""
    command = ["mosquitto_sub", "-h", host, "-p", str(port), "-t", topic, "-C", "1", "-W", str(int(_LISTEN_S))]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
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
