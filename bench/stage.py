"""One client with a gateway and a broker of its own, each in a process of its own, and what it uses in a window.

```
bench.gateway (simulator, measures pauses)  <-HTTPS-  client  -MQTT->  mosquitto
```

Rule of this file: every client is measured in the same way, whoever wrote it.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.support import Program, listen, mosquitto, python, quantile, wait_until

_SHORTEST_MS, _LONGEST_MS = 200, 500
"""P4, at the gateway."""
_START_S, _START_EACH_S = 60.0, 0.01
"""What connecting all agents may take, besides the hold over which they are spread: altogether, and for each."""
_STEP_S = 1.0
_PUBLISHED = "$SYS/broker/messages/received"
"""All MQTT packets: from a client that only publishes with QoS 1 these are its PUBLISHes, and a few more. The broker's
count of PUBLISHes alone misses some."""
_US, _MS = 1e6, 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a client is put before.

    Attributes:
        agents: How many it polls.
        hold_s: How long the gateway holds a poll.
        full: Whether the gateway holds no poll, and has an event in every answer.
        spare: How many more agents the gateway knows, of which the client is not told.
    """

    agents: int
    hold_s: float = 10.0
    full: bool = False
    spare: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a client finds everything.

    Attributes:
        directory: For its files.
        url: The gateway's.
        ca_file: What signed the gateway's certificate.
        guids: From work number to GUID, of all that the gateway knows.
        port: The broker's.
        setting: What it is put before.
    """

    directory: Path
    url: str
    ca_file: str
    guids: dict[str, str]
    port: int
    setting: Setting

    def known(self, agents: int | None = None) -> dict[str, Any]:
        """Describe the gateway with the first so many agents, by default those of the setting."""
        first = list(self.guids.items())[: self.setting.agents if agents is None else agents]
        return {"url": self.url, "ca_file": self.ca_file, "guids": dict(first)}


Client = Callable[[Place], contextlib.AbstractContextManager[Program]]
"""Starts a client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What the gateway saw in a window.

    Attributes:
        polls: Polls that arrived.
        events: Events that it handed out.
        broken: Polls that ended otherwise than with a regular answer.
        pauses_ms: Pauses, whole milliseconds in ascending order, each with its count.
        shortest_s: The shortest of them.
        longest_s: The longest of them.
        violations: What the client did against the interface document since its start.
    """

    polls: int
    events: int
    broken: int
    pauses_ms: list[tuple[int, int]]
    shortest_s: float
    longest_s: float
    violations: list[dict[str, object]]

    @property
    def short(self) -> int:
        """Count the pauses under 200 ms."""
        return sum(count for step, count in self.pauses_ms if step < _SHORTEST_MS)

    @property
    def long(self) -> int:
        """Count the pauses over 500 ms."""
        return sum(count for step, count in self.pauses_ms if step >= _LONGEST_MS)

    def pause_ms(self, share: float) -> int:
        """Give the pause that a share of all does not exceed."""
        return quantile(self.pauses_ms, share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one client did and used in a window.

    Attributes:
        agents: How many it polled.
        seconds: The window's length.
        seen: What the gateway saw.
        cpu_s: What the client used.
        gateway_cpu_s: What the gateway used; near the window's length it is the gateway that was measured.
        rss_bytes: The client's memory when the window ended.
        published: Messages that the broker got from it.
    """

    agents: int
    seconds: float
    seen: Seen
    cpu_s: float
    gateway_cpu_s: float
    rss_bytes: int
    published: int

    @property
    def cpu_per_poll_us(self) -> float:
        """Give the client's CPU time per poll: the share of what runs anyway (health, timers) is in it."""
        return self.cpu_s / self.seen.polls * _US

    @property
    def cpu_per_event_us(self) -> float:
        """Give the client's CPU time per event, from the poll to the PUBACK."""
        return self.cpu_s / self.seen.events * _US


class Stage:
    """A client that polls all of its agents.

    Attributes:
        place: Where everything is.
        client: The process that is measured.
        started_s: Seconds from its start until all agents were polled.
    """

    def __init__(self, place: Place, gateway: Program, client: Program, started_s: float) -> None:
        self.place = place
        self.client = client
        self.started_s = started_s
        self._gateway = gateway

    def watch(self, seconds: float) -> None:
        """Wait, and fail at once where the client ends meanwhile."""
        ends_at = time.monotonic() + seconds
        while (left_s := ends_at - time.monotonic()) > 0:
            time.sleep(min(left_s, _STEP_S))
            self.client.check()

    def unseen(self) -> int:
        """Count the agents that nobody has polled so far."""
        return _unseen(self._gateway, self.client)

    @contextlib.contextmanager
    def seeing(self) -> Iterator[list[Seen]]:
        """Have the gateway look at what happens in the context; what it saw is in the list afterwards."""
        self._gateway.tell("begin")
        self._gateway.hear()
        found: list[Seen] = []
        yield found
        self._gateway.tell("end")
        seen = self._gateway.hear()
        found.append(
            Seen(
                polls=seen["polls"],
                events=seen["events"],
                broken=seen["broken"],
                pauses_ms=[(step, count) for step, count in seen["pauses"]["steps"]],
                shortest_s=seen["pauses"]["min_s"],
                longest_s=seen["pauses"]["max_s"],
                violations=seen["violations"],
            )
        )

    def measure(self, seconds: float) -> Measurement:
        """Measure the client for so long."""
        published = self._published()
        with self.seeing() as seen:
            began_at = time.monotonic()
            before, gateway_before = self.client.usage(), self._gateway.usage()
            self.watch(seconds)
            after, gateway_after = self.client.usage(), self._gateway.usage()
            lasted_s = time.monotonic() - began_at
        return Measurement(
            agents=self.place.setting.agents,
            seconds=lasted_s,
            seen=seen[0],
            cpu_s=after.cpu_s - before.cpu_s,
            gateway_cpu_s=gateway_after.cpu_s - gateway_before.cpu_s,
            rss_bytes=after.rss_bytes,
            published=self._published() - published,
        )

    def _published(self) -> int:
        """Ask the broker how many messages it got; it counts once a second."""
        return int(listen(self.place.port, _PUBLISHED))


@contextlib.contextmanager
def staged(client: Client, setting: Setting, settle_s: float | None = None) -> Iterator[Stage]:
    """Run a client; the context begins when all agents are polled and the start is over.

    Args:
        client: Which.
        setting: What it is put before.
        settle_s: How much later the start is over; `None`: when everybody's first poll is, so that connections are
            made, states read and stored.

    Raises:
        BenchError: One of the processes ended, or not all agents were polled in time.
    """
    arguments = ["--agents", str(setting.agents + setting.spare), "--hold", str(setting.hold_s)]
    arguments += ["--full"] if setting.full else []
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        arguments += ["--directory", str(directory)]
        gateway = stack.enter_context(python("gateway", "bench.gateway", arguments, directory))
        port = stack.enter_context(mosquitto(directory))
        place = Place(directory=directory, port=port, setting=setting, **gateway.hear())
        began_at = time.monotonic()
        program = stack.enter_context(client(place))
        limit_s = setting.hold_s + _START_S + setting.agents * _START_EACH_S
        wait_until(lambda: _unseen(gateway, program) <= setting.spare, limit_s, "polls of all agents")
        stage = Stage(place, gateway, program, time.monotonic() - began_at)
        stage.watch(setting.hold_s if settle_s is None else settle_s)
        yield stage


def _unseen(gateway: Program, client: Program) -> int:
    client.check()
    gateway.tell("status")
    unseen: int = gateway.hear()["unseen"]
    return unseen
