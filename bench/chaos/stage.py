"""The stage: all parts together, what can be done to them, and what is written down of it.

Rule of this file: whatever is done to a part is a `Harm` with its moment, so that the judge can tell a loss that a
harm explains from one that nothing explains.
"""

import asyncio
import contextlib
import json
import random
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from bench.chaos.gateway import Row
from bench.chaos.parts import Gateway, Mosquitto, Part, adapter, free_port
from bench.chaos.peers import Sender, Subscriber
from bench.chaos.relay import Published, Relay
from bench.support import HOST, BenchError

_LOOK_S = 0.05
_WAIT_S = 90.0
_RENAMED = 3
"""How many agents a reload gives another name, so that they start afresh."""
_HTTP_S = 10.0

HarmKind = Literal["kill", "cut", "away"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """What may cost an agent the answer that was on its way just then.

    Attributes:
        kind: ``kill`` of the adapter, ``cut`` of connections at the gateway, the gateway ``away``.
        began_at: Monotonic seconds just before it, and...
        ended_at: ...just after.
        agents: Whose connections were cut; `None`: everybody's.
    """

    kind: HarmKind
    began_at: float
    ended_at: float
    agents: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a stage is set.

    Attributes:
        agents: How many agents are polled, guests included.
        guests: How many of them come and go with each reload; these are signed in by the adapter.
        hold_s: How long a poll is held; 0: not at all, and an event is there for every poll.
        events_per_s: How many events happen, where polls are held.
        trouble: Share of the polls with a trouble of their own.
        guid_interval_s: Age at which the gateway replaces a GUID.
        senders: How many agents get call data, one after the other.
        max_mb: The adapter's `storage.max_mb`.
        seed: Of everything that is left to chance.
    """

    agents: int
    guests: int
    hold_s: float
    events_per_s: float
    trouble: float
    guid_interval_s: float
    senders: int
    max_mb: int
    seed: int


class Stage:
    """All parts of one run.

    Attributes:
        adapter: The program under harm.
        published: What it sent, as the relay saw it.
        recorder: The persistent subscriber.
        harms: What was done, in order.
        stayed: Work numbers that are in every version of the configuration.
    """

    def __init__(self, setting: Setting, directory: Path, rng: random.Random) -> None:
        self.setting = setting
        self.directory = directory
        self.rng = rng
        self.broker = Mosquitto(directory)
        options = ["--agents", str(setting.agents), "--seed", str(setting.seed), "--trouble", str(setting.trouble)]
        options += ["--guid-interval", str(setting.guid_interval_s)]
        if setting.hold_s:
            options += ["--hold", str(setting.hold_s), "--events-per-second", str(setting.events_per_s)]
        else:
            options += ["--full"]
        self.gateway = Gateway(directory, *options)
        self.published: list[Published] = []
        self.relay = Relay(self.broker.port, self.published.append)
        filters = ["agents/+/event", "agents/+/events", "agents/+/calldata/result", "agents/bridge/health"]
        self.recorder = Subscriber(self.broker.port, filters, client_id="recorder")
        work_nos = [str(101 + place) for place in range(setting.agents)]
        self.stayed = work_nos[: setting.agents - setting.guests]
        self._guests = work_nos[setting.agents - setting.guests :]
        self.sender = Sender(self.broker.port, self.stayed[: setting.senders], again_s=4.0, extra=1)
        self.harms: list[Harm] = []
        self.adapter: Part = adapter(directory / "config.yaml", directory)
        self.http_port = free_port()
        self.reloads = 0

    @contextlib.asynccontextmanager
    async def standing(self) -> AsyncIterator["Stage"]:
        """Start everything but the adapter; end everything."""
        async with contextlib.AsyncExitStack() as stack:
            for part in (self.gateway, self.broker, self.adapter):
                stack.push_async_callback(part.close)
            await self.gateway.begin()
            await self.broker.begin()
            await stack.enter_async_context(self.relay)
            stack.enter_context(self.recorder)
            stack.enter_context(self.sender)
            self.broker.write_down()
            self._configure()
            errand = asyncio.create_task(self._send())
            try:
                yield self
            finally:
                errand.cancel()

    async def _send(self) -> None:
        """Carry results to the sender, and have it send what is due."""
        seen = 0
        while True:
            upto = len(self.recorder.messages)
            for message in self.recorder.messages[seen:upto]:
                if message.topic.endswith("/result"):
                    self.sender.heard(message.payload)
            seen = upto
            self.sender.step()
            await asyncio.sleep(_LOOK_S)

    # The adapter's configuration.

    def _configure(self) -> None:
        hello, hold_s = self.gateway.hello, self.setting.hold_s or 1.0
        values = {
            "gateway": {
                "url": hello["url"],
                "ca_file": hello["ca_file"],
                "hold": hold_s,
                "timeout": 2 * hold_s + 2,
                "error_interval": [1.1, 4],
            },
            "mqtt": {"url": f"mqtt://{HOST}:{self.relay.port}"},
            "storage": {"path": str(self.directory / "outbox.db"), "max_mb": self.setting.max_mb},
            "http": {"listen": f"{HOST}:{self.http_port}"},
        }
        text = yaml.safe_dump(values) + "agents: !include agents.yaml\n"
        (self.directory / "config.yaml").write_text(text)
        self._write_agents()

    def _write_agents(self) -> None:
        guids = self.gateway.hello["guids"]
        agents: list[dict[str, Any]] = [{"work_no": work_no, "guid": guids[work_no]} for work_no in self.stayed]
        if self.reloads:
            for place in range(_RENAMED):
                agent = agents[(self.reloads * _RENAMED + place) % len(agents)]
                agent["name"] = f"Name {self.reloads}"
        for work_no in self.present[len(self.stayed) :]:
            sign_in = {"password": f"pw-{work_no}", "phone": f"8{work_no}", "force": True, "again": True}
            agents.append({"work_no": work_no, "sign_in": sign_in})
        (self.directory / "agents.yaml").write_text(yaml.safe_dump(agents))

    @property
    def present(self) -> list[str]:
        """The agents in the present version of the configuration: every other one has the guests."""
        return [*self.stayed, *(self._guests if self.reloads % 2 == 0 else [])]

    def change_agents(self) -> None:
        """Write another version of the agents: some with another name, guests gone or back. SIGHUP has it read."""
        self.reloads += 1
        self._write_agents()

    # Harm.

    async def _harm(self, kind: HarmKind, do: Callable[[], Any], agents: list[str] | None = None) -> None:
        began_at = time.monotonic()
        await do()
        whose = None if agents is None else frozenset(agents)
        self.harms.append(Harm(kind=kind, began_at=began_at, ended_at=time.monotonic(), agents=whose))

    async def kill_adapter(self) -> None:
        """Kill the adapter."""
        await self._harm("kill", self.adapter.kill)

    async def cut_gateway(self, share: float) -> None:
        """Cut the connections of some agents to the gateway."""
        agents = [work_no for work_no in self.stayed if self.rng.random() < share]
        await self._harm("cut", lambda: self.gateway.order("cut", agents=agents), agents)

    async def gateway_away(self, seconds: float) -> None:
        """Take the gateway down for a while."""
        await self._harm("away", lambda: self.gateway.order("away"))
        await asyncio.sleep(seconds)
        await self.gateway.order("back")

    async def broker_away(self, seconds: float, *, killed: bool) -> None:
        """Stop or kill the broker, and start it again after a while."""
        await self.broker.end(killed=killed)
        await asyncio.sleep(seconds)
        await self.broker.begin()

    # Looking.

    async def wait_until(self, true: Callable[[], object], what: str, within_s: float = _WAIT_S) -> None:
        """Wait until something is true.

        Raises:
            BenchError: It was not, or the adapter ended by itself meanwhile.
        """
        ends_at = time.monotonic() + within_s
        while not true():
            if time.monotonic() > ends_at:
                raise BenchError(f"{what}: not within {within_s:.0f} s")
            await asyncio.sleep(_LOOK_S)

    async def all_polled(self) -> None:
        """Wait until every agent was polled."""
        ends_at = time.monotonic() + self.setting.hold_s + _WAIT_S
        while (await self.gateway.order("status"))["unseen"]:
            if time.monotonic() > ends_at or not self.adapter.runs:
                raise BenchError(f"not all agents are polled: {self.adapter.last_words()}")
            await asyncio.sleep(_LOOK_S)

    def ledger(self) -> list[Row]:
        """Read what the gateway wrote down, in the order in which the polls ended."""
        with self.gateway.ledger.open(encoding="utf-8") as lines:
            return [Row(*json.loads(line)) for line in lines if line.endswith("\n")]

    def healths(self) -> list[dict[str, Any]]:
        """List what the adapter said of its health."""
        messages = list(self.recorder.messages)
        return [json.loads(message.payload) for message in messages if message.topic == "agents/bridge/health"]

    async def metric(self, name: str) -> int:
        """Read a figure that the adapter gives to Prometheus.

        Args:
            name: What follows the prefix of all of them.

        Raises:
            BenchError: Its metrics do not have it.
        """

        def read() -> str:
            with urllib.request.urlopen(f"http://{HOST}:{self.http_port}/metrics", timeout=_HTTP_S) as answer:
                return str(answer.read(), "utf-8")

        text = await asyncio.to_thread(read)
        for line in text.splitlines():
            if line.startswith(f"ccgateway2mqtt_{name} "):
                return int(float(line.split()[1]))
        raise BenchError(f"the metrics have no {name}")
