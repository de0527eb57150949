"""The delay from the gateway's answer to a subscriber, in P4's rhythm: every poll is answered at once, with an event.

```
bench.chaos.gateway (AGENT_POLL_WAIT_FLAG off)  <-HTTPS-  ccgateway2mqtt run  -MQTT->  mosquitto  -MQTT->  mosquitto_sub
```

Each box is a process. The gateway writes down when the last byte of each answer went to its socket, mosquitto_sub when
the event with that number came: in C, so that its own reading of 650 events a second is not measured too. The storage
is as it always is: on disk, with ``synchronous=FULL``, before the agent is polled again.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from bench.chaos.gateway import NUMBER, Row
from bench.support import (
    HOST,
    BenchError,
    end_by_signal,
    mosquitto,
    python,
    quantile,
    raise_file_limit,
    table,
    wait_until,
)

_START_S = 60.0
_WARM_UP_S = 3.0
_HOLD_S = 2.0
"""No poll is held: only the start is spread over this."""
_SETTLE_S = 1.0
_TOPICS = "agents/+/event"
_US = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Delays:
    """What came of the events that were handed out in the window.

    Attributes:
        seconds: The window's length.
        delays_us: From the gateway's answer to the subscriber in whole microseconds, in ascending order.
        missing: Events that did not come.
        cpu_s: What the adapter used in the window.
    """

    seconds: float
    delays_us: list[int]
    missing: int
    cpu_s: float

    def quantile_ms(self, share: float) -> float:
        """Give the delay in milliseconds that a share of all events does not exceed."""
        return quantile([(each, 1) for each in self.delays_us], share) / 1000

    @property
    def cpu_per_event_us(self) -> float:
        """Give the adapter's CPU time per event, from the poll to the PUBACK."""
        return self.cpu_s / len(self.delays_us) * _US


@contextlib.contextmanager
def _listening(port: int, directory: Path) -> Iterator[Path]:
    """Have mosquitto_sub write down what comes: Unix time in seconds, topic and payload."""
    binary = shutil.which("mosquitto_sub")
    if binary is None:
        raise BenchError("install mosquitto-clients")
    came = directory / "came"
    command = [binary, "-h", HOST, "-p", str(port), "-t", _TOPICS, "-F", "%U %t %p"]
    with came.open("wb") as out, subprocess.Popen(command, stdout=out) as subscriber:
        try:
            yield came
        finally:
            subscriber.terminate()


def _came(lines: Path) -> dict[tuple[str, int], float]:
    """Read when the events of each agent came first, by work number and the event's number."""
    came_at: dict[tuple[str, int], float] = {}
    for line in lines.read_bytes().split(b"\n")[:-1]:  # what follows the last end is not a whole line
        at, topic, payload = line.split(b" ", 2)
        came_at.setdefault((topic.decode().split("/")[1], json.loads(payload)[NUMBER]), float(at))
    return came_at


def measure(agents: int, seconds: float) -> Delays:
    """Let the adapter poll agents as fast as P4 allows, each answer an event, and time what comes.

    Raises:
        BenchError: One of the processes ended, or no events come.
    """
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        arguments = ["--agents", str(agents), "--full", "--directory", str(directory)]
        gateway = stack.enter_context(python("gateway", "bench.chaos.gateway", arguments, directory))
        known = gateway.hear()
        port = stack.enter_context(mosquitto(directory))
        config = directory / "config.yaml"
        settings = {
            "gateway": {"url": known["url"], "ca_file": known["ca_file"], "hold": _HOLD_S},
            "mqtt": {"url": f"mqtt://{HOST}:{port}"},
            "agents": [{"work_no": work_no, "guid": guid} for work_no, guid in known["guids"].items()],
        }
        config.write_text(yaml.safe_dump(settings))
        lines = stack.enter_context(_listening(port, directory))
        program = stack.enter_context(python("adapter", "adapter", ["run", "-c", str(config)], directory))

        def all_seen() -> bool:
            program.check()
            return len({work_no for work_no, _ in _came(lines)}) == agents

        wait_until(all_seen, _START_S, "an event of each agent")
        time.sleep(_WARM_UP_S)
        began_at, before = time.monotonic(), program.usage()
        time.sleep(seconds)
        ended_at, after = time.monotonic(), program.usage()
        time.sleep(_SETTLE_S)
        gateway.tell(json.dumps({"do": "rest"}))
        gateway.hear()
        handed_out = _handed_out(directory / "ledger", began_at, ended_at)
        came_at = _came(lines)
        ahead_s = time.time() - time.monotonic()
    delays_s = [came_at[event] - ahead_s - at for event, at in handed_out.items() if event in came_at]
    return Delays(
        seconds=ended_at - began_at,
        delays_us=sorted(round(delay_s * _US) for delay_s in delays_s),
        missing=len(handed_out) - len(delays_s),
        cpu_s=after.cpu_s - before.cpu_s,
    )


def _handed_out(ledger: Path, began_at: float, ended_at: float) -> dict[tuple[str, int], float]:
    """Read when the gateway answered with which event, in a window."""
    rows = (Row(*json.loads(line)) for line in ledger.read_text().splitlines())
    return {
        (row.work_no, row.number): row.ended_at
        for row in rows
        if row.number is not None and row.whole and began_at <= row.ended_at < ended_at
    }


def main() -> int:
    """Run the benchmark; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench.delay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, default=200, help="how many (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="how long each time (default %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="how often (default %(default)s)")
    given = parser.parse_args()
    end_by_signal()
    raise_file_limit()
    try:
        found = [measure(given.agents, given.seconds) for _ in range(given.runs)]
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    rows = [
        [
            str(number),
            f"{len(run.delays_us) / run.seconds:,.0f}",
            *(f"{run.quantile_ms(share):.1f} ms" for share in (0.5, 0.9, 0.99, 0.999, 1)),
            f"{run.cpu_per_event_us:,.0f} µs",
            str(run.missing),
        ]
        for number, run in enumerate(found, start=1)
    ]
    head = ["run", "events per second", "p50", "p90", "p99", "p99.9", "longest", "CPU per event", "missing"]
    print(table(head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
