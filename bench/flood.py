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
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from bench.clients import adapter
from bench.stage import Setting, staged
from bench.support import HOST, exit_code, say, table

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


def run(agents: int, hold_s: float, seconds: float, per_second: int, only: str) -> bool:
    """Run all floods and print the table; give whether the adapter kept to the interface document."""
    good = True
    rows: list[list[str]] = []
    with staged(adapter, Setting(agents=agents, hold_s=hold_s)) as stage:
        directory = stage.place.directory
        floods: list[Flood | None] = [None, *(flood for flood in FLOODS if only in flood.name)]
        for flood in floods:
            stage.watch(_SPOKEN_S)
            with contextlib.ExitStack() as sending:
                sender = None
                if flood is not None:
                    sender = sending.enter_context(Sender(stage.place.port, flood, agents, per_second))
                found = stage.measure(seconds)
            seen = found.seen
            good = good and not seen.violations and not seen.short
            rows.append(
                [
                    "no flood" if flood is None else flood.name,
                    f"{0 if sender is None else sender.sent / found.seconds:,.0f}",
                    *(f"{seen.pause_ms(share)} ms" for share in (0.5, 0.99)),
                    f"{seen.longest_s * 1000:.0f} ms",
                    f"{seen.long:,}",
                    f"{found.cpu_s / found.seconds:.0%}",
                    f"{found.rss_bytes / 1e6:.1f} MB",
                    f"{sum(part.stat().st_size for part in directory.glob('*.db*')) / 1e6:.1f} MB",
                ]
            )
            say(" ".join(rows[-1]))
        for line in (directory / "adapter.log").read_text().splitlines()[-3:]:
            say(line)
    head = ["flood", "messages/s", "p50", "p99", "longest pause", "over 500 ms", "CPU", "memory", "database"]
    print(table(head, rows))
    return good


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
    return exit_code(lambda: run(given.agents, given.hold, given.seconds, given.per_second, given.only))


if __name__ == "__main__":
    sys.exit(main())
