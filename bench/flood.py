"""A flood of commands from one client: what it does to the polls of all agents (C5, P4).

```
bench.gateway (simulator, measures pauses)  <-HTTPS-  ccgateway2mqtt run  -MQTT-  mosquitto  <-  this program
```

Each of `FLOODS` runs for some seconds, one after the other, with a window of its own at the gateway. Exit code 1 where
a pause was shorter than P4 allows, or the adapter did anything else against the interface document; pauses that are too
long are counted, since a busy machine makes them too: compare with the first row, which is without a flood.
"""

import argparse
import contextlib
import itertools
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bench.agents import Options, adapter
from bench.support import HOST, BenchError, Program, python, quantile, raise_file_limit, table, wait_until

_LONGEST_MS, _SHORTEST_MS = 500, 200
_START_S = 60.0
_BURST_S = 0.01
_SPOKEN_S = 5.0
_CONNECT = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x00\x00\x05flood"
_VALID = b'{"calldata": "value", "id": "%d"}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Flood:
    """What one client sends.

    Attributes:
        name: As the table shows it.
        topic: Its topic; ``%d`` becomes a work number.
        payload: Its payload; ``%d`` becomes the message's number.
        qos: 0 or 1.
        spread: To how many agents it goes in turn; 0 for all.
    """

    name: str
    topic: str = "agents/%d/calldata/set"
    payload: bytes = _VALID
    qos: int = 0
    spread: int = 1

    def packets(self, agents: int) -> Iterator[bytes]:
        """Make PUBLISH packets of MQTT 3.1.1, without end."""
        for number in itertools.count():
            topic = self.topic % (101 + number % (self.spread or agents)) if "%" in self.topic else self.topic
            payload = self.payload % number if b"%" in self.payload else self.payload
            identifier = (number % 65_535 + 1).to_bytes(2, "big") if self.qos else b""
            name = topic.encode()
            rest = len(name).to_bytes(2, "big") + name + identifier + payload
            yield bytes([0x30 | self.qos << 1]) + _length(len(rest)) + rest


FLOODS = (
    Flood(name="1 MiB each, QoS 0", payload=b"x" * 1_000_000),
    Flood(name="one agent, QoS 0"),
    Flood(name="one agent, QoS 1", qos=1),
    Flood(name="all agents, QoS 0", spread=0),
    Flood(name="all agents, QoS 1", qos=1, spread=0),
    Flood(name="all agents, refused, QoS 0", payload=b"a\nb", spread=0),
    Flood(
        name="orders to all agents, QoS 0", topic="agents/%d/session/set", payload=b'{"action": "sign_in"}', spread=0
    ),
    Flood(name="unknown agents, QoS 1", topic="agents/x%d/calldata/set", qos=1, spread=1_000_000),
    Flood(name="16 KiB each, all agents, QoS 0", payload=b'{"calldata": "x"' + b" " * 16_000 + b"}", spread=0),
    Flood(name="request agents, QoS 0", topic="agents/bridge/request/agents", payload=b"{}"),
    Flood(name="request reload, QoS 0", topic="agents/bridge/request/reload", payload=b"{}"),
)


class Sender:
    """One client that floods, while the context lasts.

    Attributes:
        sent: How many messages it has sent.
    """

    def __init__(self, port: int, flood: Flood, agents: int, per_second: int) -> None:
        self.sent = 0
        self._socket = socket.create_connection((HOST, port))
        self._packets = flood.packets(agents)
        self._per_second = per_second
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._forget_answers)]

    def __enter__(self) -> Self:
        self._socket.sendall(_CONNECT)
        self._socket.recv(4)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._socket.close()

    def _send(self) -> None:
        began_at = time.monotonic()
        while not self._ended.wait(_BURST_S):
            due = int((time.monotonic() - began_at) * self._per_second) - self.sent
            try:
                self._socket.sendall(b"".join(itertools.islice(self._packets, due)))
            except OSError:
                return
            self.sent += due

    def _forget_answers(self) -> None:
        with contextlib.suppress(OSError):
            while self._socket.recv(65_536):
                pass


def _length(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:  # noqa: PLR2004 - seven bits a byte
        encoded.append(number % 128 | 128)
        number //= 128
    return bytes([*encoded, number])


def _window(gateway: Program, program: Program, seconds: float) -> tuple[Any, float, float]:
    """Let a window pass; give what the gateway saw, and the adapter's CPU seconds and resident bytes."""
    gateway.tell("begin")
    gateway.hear()
    before = program.usage()
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        time.sleep(min(1.0, max(0.0, ends_at - time.monotonic())))
        program.check()
    after = program.usage()
    gateway.tell("end")
    return gateway.hear(), after.cpu_s - before.cpu_s, after.rss_bytes


def run(options: Options, per_second: int, only: str) -> bool:
    """Run all floods and print the table; give whether the adapter kept to the interface document."""
    good = True
    rows: list[list[str]] = []
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        arguments = ["--agents", str(options.agents), "--hold", str(options.hold_s), "--events-per-second", "0"]
        gateway = stack.enter_context(
            python("gateway", "bench.gateway", [*arguments, "--directory", str(directory)], directory)
        )
        program = stack.enter_context(adapter(gateway.hear(), options, directory))
        port = _port(directory)

        def all_polled() -> bool:
            program.check()
            gateway.tell("status")
            return not gateway.hear()["unseen"]

        wait_until(all_polled, options.hold_s + _START_S, "polls of all agents")
        floods: list[Flood | None] = [None, *(flood for flood in FLOODS if only in flood.name)]
        for flood in floods:
            time.sleep(_SPOKEN_S)
            with contextlib.ExitStack() as sending:
                sender = None
                if flood is not None:
                    sender = sending.enter_context(Sender(port, flood, options.agents, per_second))
                seen, cpu_s, rss_bytes = _window(gateway, program, options.seconds)
            pauses = [(step, count) for step, count in seen["pauses"]["steps"]]
            good = good and not seen["violations"] and not any(step < _SHORTEST_MS for step, _ in pauses)
            rows.append(
                [
                    "no flood" if flood is None else flood.name,
                    f"{0 if sender is None else sender.sent / options.seconds:,.0f}",
                    *(f"{quantile(pauses, share)} ms" for share in (0.5, 0.99)),
                    f"{seen['pauses']['max_s'] * 1000:.0f} ms",
                    f"{sum(count for step, count in pauses if step >= _LONGEST_MS):,}",
                    f"{cpu_s / options.seconds:.0%}",
                    f"{rss_bytes / 1e6:.1f} MB",
                    f"{sum(part.stat().st_size for part in directory.glob('*.db*')) / 1e6:.1f} MB",
                ]
            )
            print(rows[-1], file=sys.stderr, flush=True)
        for line in (directory / "adapter.log").read_text().splitlines()[-3:]:
            print(line, file=sys.stderr)
    head = ["flood", "messages/s", "p50", "p99", "longest pause", "over 500 ms", "CPU", "memory", "database"]
    print(table(head, rows))
    return good


def _port(directory: Path) -> int:
    """Read which port the adapter's broker has."""
    listener = (directory / "mosquitto.conf").read_text().splitlines()[0]
    return int(listener.split()[1])


def main() -> int:
    """Run the benchmark; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench.flood", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, default=100, help="how many (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=20, help="how long each flood lasts (default %(default)s)")
    parser.add_argument("--hold", type=float, default=2, help="seconds a poll is held (default %(default)s)")
    parser.add_argument("--per-second", type=int, default=10_000, help="messages a second (default %(default)s)")
    parser.add_argument("--only", default="", help="only the floods whose name has this in it")
    given = parser.parse_args()
    raise_file_limit()
    options = Options(agents=given.agents, seconds=given.seconds, hold_s=given.hold, events_per_s=0)
    try:
        return 0 if run(options, given.per_second, given.only) else 1
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
