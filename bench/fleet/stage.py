"""The stage: a fleet, its servers, the gateway and the broker, and what can be done to each of them.

Rule of this file: what is done is a `Step` with its moments, so that the judge can tell what explains what.
"""

import asyncio
import contextlib
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec
import nats.errors
import nats.js.errors
import yaml

from adapter.cluster.entry import Entry
from adapter.cluster.shares import shares
from bench.chaos.gateway import Row
from bench.chaos.parts import Gateway, Mosquitto, Part
from bench.chaos.peers import Got, Subscriber
from bench.fleet.machines import HUB, Machine, machines
from bench.fleet.nodes import Place, Servers
from bench.support import BenchError

_LOOK_S = 0.1
_ASK_S = 2.0
_SETTLE_S = 120.0
_QUIET_S = 3.0
_ESTABLISHED = "01"
"""As in /proc/net/tcp."""
_NAME = "test"

Kind = Literal["kill", "isolate", "stop", "drain", "other"]
"""What a step may explain: ``kill`` and ``isolate`` an answer that nobody reads, ``stop`` and ``isolate`` a poll that
comes late; ``drain`` has a bound of its own."""


@dataclass(slots=True, kw_only=True)
class Step:
    """Something that is done to the fleet.

    Attributes:
        name: What it is called.
        kind: What it may explain.
        within_s: For how long an agent that moves may go unpolled, p99; `None` where there is no promise.
        victims: Who may lose its lease.
        began_at: Monotonic seconds before it.
        ended_at: ...when what was done was mended.
        settled_at: ...when all agents were polled by those whose share they are.
        struck_out: Who lost its lease meanwhile.
    """

    name: str
    kind: Kind
    within_s: float | None
    victims: frozenset[str]
    began_at: float = field(default_factory=time.monotonic)
    ended_at: float = float("inf")
    settled_at: float = float("inf")
    struck_out: list[str] = field(default_factory=list)


class Ledger:
    """The gateway's ledger, as far as it is written."""

    def __init__(self, path: Path) -> None:
        self.rows: list[Row] = []
        self._path = path
        self._read = 0

    def polled_since(self) -> dict[str, float]:
        """Read on; say when the last poll of each agent that has ended began."""
        with self._path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        self.rows += [Row(*json.loads(line)) for line in whole.splitlines()]
        found: dict[str, float] = {}
        for row in self.rows:
            found[row.work_no] = max(row.began_at, found.get(row.work_no, 0.0))
        return found


class Member(Part):
    """One member, on a machine of its own."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self.machine = machine
        self.directory = directory
        config = directory / "config.yaml"
        command = [*machine.prefix, sys.executable, "-m", "adapter", "run", "-c", str(config)]
        super().__init__(machine.name, command, directory)

    def configure(self, values: Mapping[str, object]) -> None:
        """Write its configuration."""
        own = {"instance": self.name, "storage": {"path": str(self.directory / "outbox.db")}}
        (self.directory / "config.yaml").write_text(yaml.safe_dump({**values, **own}))

    def peers(self) -> set[str]:
        """List the addresses that it has connections to."""
        lines = Path(f"/proc/{self.process.pid}/net/tcp").read_text().splitlines()[1:]
        remote = [line.split()[2].partition(":")[0] for line in lines if line.split()[3] == _ESTABLISHED]
        return {".".join(str(byte) for byte in reversed(bytes.fromhex(address))) for address in remote}

    def said(self, text: str) -> int:
        """Count in its log."""
        return self.log.read_text(errors="replace").count(text) if self.log.exists() else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How a stage is set.

    Attributes:
        agents: How many agents there are.
        members: How many share them.
        hold_s: How long a poll is held.
        events_per_s: How many events happen.
        patience: By how much an agent may go unpolled for longer than is promised, where the machine is busy otherwise.
    """

    agents: int
    members: int
    hold_s: float
    events_per_s: float
    patience: float = 1.0


class Stage:
    """All parts of one run.

    Attributes:
        members: The members, by number.
        servers: The NATS servers.
        machines: Their machines, likewise.
        recorder: The persistent subscriber.
        steps: What was done.
        lease_s: How long a lease lasts.
    """

    def __init__(self, setting: Setting, directory: Path) -> None:
        self.setting = setting
        self.lease_s = setting.hold_s + 5.0
        self.directory = directory
        self.broker = Mosquitto(directory, HUB)
        options = ["--host", HUB, "--agents", str(setting.agents), "--hold", str(setting.hold_s)]
        options += ["--events-per-second", str(setting.events_per_s), "--guid-interval", "6"]
        self.gateway = Gateway(directory, *options)
        names = [f"m{number}" for number in range(setting.members)]
        made = machines([*names, "n0", "n1", "n2"])
        self.machines = made[setting.members :]
        self.servers = Servers(directory, [Place(each.address, tuple(each.prefix)) for each in self.machines])
        self.members: list[Member] = []
        for machine in made[: setting.members]:
            (directory / machine.name).mkdir()
            self.members.append(Member(machine, directory / machine.name))
        filters = ["agents/+/event", "agents/+/events"]
        self.recorder = Subscriber(self.broker.port, filters, client_id="recorder", host=HUB)
        self.ledger = Ledger(self.gateway.ledger)
        self.steps: list[Step] = []

    @contextlib.asynccontextmanager
    async def standing(self) -> AsyncIterator["Stage"]:
        """Start everything but the members; end everything."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self.servers.close)
            for part in (self.gateway, self.broker, *self.members):
                stack.push_async_callback(part.close)
            await self.gateway.begin()
            await self.broker.begin()
            await self.servers.start()
            stack.enter_context(self.recorder)
            self._configure()
            yield self

    def _configure(self) -> None:
        hello = self.gateway.hello
        hold_s = self.setting.hold_s
        values = {
            "gateway": {"url": hello["url"], "ca_file": hello["ca_file"], "hold": hold_s, "timeout": hold_s + 5},
            "mqtt": {"url": f"mqtt://{HUB}:{self.broker.port}"},
            "agents": [{"work_no": work_no, "guid": guid} for work_no, guid in hello["guids"].items()],
            "cluster": self.servers.settings(name=_NAME),
        }
        for member in self.members:
            member.configure(values)

    # What is done.

    @contextlib.asynccontextmanager
    async def step(
        self, name: str, kind: Kind, within_s: float | None = None, victims: Sequence[Part] = ()
    ) -> AsyncIterator[Step]:
        """Do something, and wait until the fleet has settled."""
        before = [member.said("was struck out") for member in self.members]
        if within_s is not None:
            within_s *= self.setting.patience
        step = Step(name=name, kind=kind, within_s=within_s, victims=frozenset(part.name for part in victims))
        self.steps.append(step)
        yield step
        step.ended_at = time.monotonic()
        await self.settled(step.ended_at)
        step.settled_at = time.monotonic()
        after = [member.said("was struck out") for member in self.members]
        step.struck_out = [
            member.name for member, was, now in zip(self.members, before, after, strict=True) if now > was
        ]

    async def settled(self, since: float) -> None:
        """Wait until each member that runs polls its share and no more, and every agent was polled since a moment.

        Raises:
            BenchError: That did not come, or a member has ended.
        """
        ends_at = time.monotonic() + _SETTLE_S
        while True:
            why = self._unsettled(await self.leases(), since)
            if not why:
                return
            for member in self.members:
                if member.started and not member.runs and member.process.returncode not in {0, -9}:
                    raise BenchError(f"{member.name} ended: {member.last_words()}")
            if time.monotonic() > ends_at:
                raise BenchError(f"not settled within {_SETTLE_S:.0f} s: {why}")
            await asyncio.sleep(_LOOK_S)

    def _unsettled(self, leases: dict[str, Entry], since: float) -> str:
        running = {member.name for member in self.members if member.runs}
        if set(leases) != running:
            return f"leases of {sorted(leases)}"
        work_nos = list(self.gateway.hello["guids"])
        owners = list(shares(work_nos, sorted(running)).values())
        for name, lease in leases.items():
            if lease.agents != owners.count(name):
                return f"{name} polls {lease.agents} agents, its share is {owners.count(name)}"
        polled = self.ledger.polled_since()
        absent = [work_no for work_no in work_nos if polled.get(work_no, 0.0) < since]
        return f"{len(absent)} agents are not polled: {absent[:5]}" if absent else ""

    async def leases(self) -> dict[str, Entry]:
        """Read the leases of all members from the server that leads; none while none does."""
        bucket = f"{_NAME}_members"
        found: dict[str, Entry] = {}
        try:
            async with self.servers.client() as client:
                jetstream = client.jetstream(timeout=_ASK_S)
                for member in self.members:
                    with contextlib.suppress(nats.js.errors.NotFoundError):
                        message = await jetstream.get_last_msg(
                            f"KV_ccgateway2mqtt_{bucket}", f"$KV.ccgateway2mqtt_{bucket}.{member.name}"
                        )
                        if message.data:  # none is left of a lease that was given back
                            found[member.name] = msgspec.json.decode(message.data, type=Entry)
        except (nats.errors.Error, OSError):
            return {}
        return found

    async def leader(self) -> int:
        """Say which server leads the stream of the agents' journals.

        Raises:
            BenchError: None does.
        """
        for _ in range(100):
            with contextlib.suppress(nats.errors.Error, OSError, nats.js.errors.Error):
                async with self.servers.client() as client:
                    info = await client.jetstream(timeout=_ASK_S).stream_info(f"ccgateway2mqtt_{_NAME}_agents")
                if info.cluster is not None and info.cluster.leader:
                    return int(info.cluster.leader.removeprefix("n"))
            await asyncio.sleep(_LOOK_S)
        raise BenchError("no server leads the stream")

    # The end.

    async def rest(self) -> None:
        """Let no further event happen, and wait until all that happened has come to the subscriber."""
        await self.gateway.order("rest")
        quiet_since, seen = time.monotonic(), -1
        ends_at = quiet_since + _SETTLE_S
        while time.monotonic() - quiet_since < _QUIET_S:
            waiting = (await self.gateway.order("status"))["waiting"]
            if waiting or len(self.recorder.messages) != seen:
                quiet_since, seen = time.monotonic(), len(self.recorder.messages)
            if time.monotonic() > ends_at:
                raise BenchError(f"no rest: events wait for {waiting[:5]}")
            await asyncio.sleep(_LOOK_S)
        self.ledger.polled_since()

    async def stop(self) -> list[str]:
        """Stop all members as a service manager does; give what is wrong with how they end."""
        wrong = []
        for member in self.members:
            member.send(signal.SIGTERM)
        for member in self.members:
            code = await member.ended()
            log = member.log.read_text(errors="replace")
            if code:
                wrong.append(f"{member.name} ended with {code}: {member.last_words()}")
            if "Traceback" in log:
                wrong.append(f"a traceback of {member.name}: {log[log.index('Traceback') :][:1500]}")
        return wrong

    def retained(self) -> list[Got]:
        """Read the newest event of each agent that the broker keeps."""
        with Subscriber(self.broker.port, ["agents/+/event"], client_id="looker", persistent=False, host=HUB) as looker:
            ends_at = time.monotonic() + _SETTLE_S
            while len(looker.messages) < self.setting.agents and time.monotonic() < ends_at:
                time.sleep(_LOOK_S)
            return [message for message in looker.messages if message.retained]


async def until(true: Callable[[], object], what: str, within_s: float = _SETTLE_S) -> None:
    """Wait until something is true.

    Raises:
        BenchError: It was not.
    """
    ends_at = time.monotonic() + within_s
    while not true():
        if time.monotonic() > ends_at:
            raise BenchError(f"{what}: not within {within_s:.0f} s")
        await asyncio.sleep(_LOOK_S)


def addresses(places: Iterable[Machine]) -> list[str]:
    """List addresses."""
    return [each.address for each in places]
