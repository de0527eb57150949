"""What a fleet costs: the same program with and without a section `cluster`: `python -m bench.fleet.cost`.

One member with all agents, on a machine of its own, and three NATS servers on theirs; idle, and with events. CPU is the
kernel's time of the processes; bytes are those that pass a machine's interface in both directions, headers included,
so that what the gateway and the broker cost is what the program alone has, and the rest is the fleet's.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.chaos.parts import Gateway, Mosquitto, Part
from bench.fleet.machines import HUB, Machine, enter, machines
from bench.fleet.nodes import Place, Servers
from bench.fleet.stage import Member
from bench.support import BenchError, cpu_s, end_by_signal, raise_file_limit, say, table

_EVENT_EVERY_S = 10.0
"""How often an event happens to an agent, where any do: a busy centre."""
_START_S = 120.0
_LOOK_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What some processes have used since their start.

    Attributes:
        cpu_s: Their time.
        moved_bytes: What passed their machines' interfaces.
        written_bytes: What they had written to disk.
    """

    cpu_s: float
    moved_bytes: int
    written_bytes: int

    @classmethod
    def of(cls, parts: Sequence[Part]) -> "Sample":
        """Look at processes now."""
        pids = [part.process.pid for part in parts]
        return cls(
            cpu_s=sum(map(cpu_s, pids)), moved_bytes=sum(map(_moved, pids)), written_bytes=sum(map(_written, pids))
        )


def _moved(pid: int) -> int:
    for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, figures = line.partition(":")
        if name.strip() == "eth0":
            each = figures.split()
            return int(each[0]) + int(each[8])
    return 0


def _written(pid: int) -> int:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("write_bytes")).split()[1])


@contextlib.asynccontextmanager
async def polling(
    directory: Path, made: Sequence[Machine], options: argparse.Namespace, *, fleet: bool, busy: bool
) -> AsyncIterator[tuple[list[Part], list[Part]]]:
    """Run the program until it polls all agents; gives it, and the servers."""
    (directory / made[0].name).mkdir()
    broker = Mosquitto(directory, HUB)
    events_per_s = options.agents / _EVENT_EVERY_S if busy else 0.0
    simulated = ["--host", HUB, "--agents", str(options.agents), "--hold", str(options.hold)]
    gateway = Gateway(directory, *simulated, "--events-per-second", str(events_per_s))
    servers = Servers(directory, [Place(each.address, tuple(each.prefix)) for each in made[1:]])
    member = Member(made[0], directory / made[0].name)
    async with contextlib.AsyncExitStack() as stack:
        for part in (gateway, broker, member):
            stack.push_async_callback(part.close)
        stack.push_async_callback(servers.close)
        await broker.begin()
        await gateway.begin()
        values = {
            "gateway": {"url": gateway.hello["url"], "ca_file": gateway.hello["ca_file"], "hold": options.hold},
            "mqtt": {"url": f"mqtt://{HUB}:{broker.port}"},
            "agents": [{"work_no": work_no, "guid": guid} for work_no, guid in gateway.hello["guids"].items()],
        }
        if fleet:
            await servers.start()
            values |= {"cluster": servers.settings()}
        member.configure(values)
        await member.start()
        ends_at = time.monotonic() + _START_S
        while (await gateway.order("status"))["unseen"]:
            if time.monotonic() > ends_at or not member.runs:
                raise BenchError(f"not all agents are polled: {member.last_words()}")
            await asyncio.sleep(_LOOK_S)
        await asyncio.sleep(options.hold)
        yield [member], list(servers.nodes) if fleet else []


async def measure(
    made: Sequence[Machine], options: argparse.Namespace, *, fleet: bool, busy: bool
) -> tuple[Sample, Sample]:
    """Give what the program and the servers use in a second."""
    with tempfile.TemporaryDirectory(prefix="cost-") as directory:
        async with polling(Path(directory), made, options, fleet=fleet, busy=busy) as (members, nodes):
            began_at = time.monotonic()
            before = Sample.of(members), Sample.of(nodes)
            await asyncio.sleep(options.seconds)
            after = Sample.of(members), Sample.of(nodes)
            lasted_s = time.monotonic() - began_at
    program, servers = (
        Sample(
            cpu_s=(b.cpu_s - a.cpu_s) / lasted_s,
            moved_bytes=round((b.moved_bytes - a.moved_bytes) / lasted_s),
            written_bytes=round((b.written_bytes - a.written_bytes) / lasted_s),
        )
        for a, b in zip(before, after, strict=True)
    )
    return program, servers


def row(name: str, runs: Sequence[Sample], agents: int) -> list[str]:
    """Give a line of the table: medians, and the least and the most of the CPU."""
    cpu = sorted(run.cpu_s for run in runs)
    moved = statistics.median(run.moved_bytes for run in runs)
    written = statistics.median(run.written_bytes for run in runs)
    return [
        name,
        f"{statistics.median(cpu) * 100:.1f} % ({cpu[0] * 100:.1f} to {cpu[-1] * 100:.1f})",
        f"{statistics.median(cpu) / agents * 1e6:.0f} µs",
        f"{moved / agents:.0f}",
        f"{written / agents:.0f}",
    ]


async def run(options: argparse.Namespace) -> list[list[str]]:
    """Measure in turns, and give the lines of the table."""
    made = machines(["m0", "n0", "n1", "n2"])
    found: dict[tuple[bool, bool], list[tuple[Sample, Sample]]] = {}
    for number in range(options.runs):
        for busy in (False, True):
            for fleet in (False, True):
                say(f"run {number + 1}: {'with' if busy else 'no'} events, {'a fleet' if fleet else 'alone'}")
                found.setdefault((busy, fleet), []).append(await measure(made, options, fleet=fleet, busy=busy))
    rows = []
    for (busy, fleet), runs in found.items():
        what = f"{'an event every ' + format(_EVENT_EVERY_S, 'g') + ' s' if busy else 'idle'}, "
        rows.append(row(what + ("member" if fleet else "alone"), [each[0] for each in runs], options.agents))
        if fleet:
            rows.append(row(what + "three NATS servers", [each[1] for each in runs], options.agents))
    return rows


def main() -> int:
    """Run the benchmark; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench.fleet.cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, default=1000, help="how many (default %(default)s)")
    parser.add_argument("--hold", type=float, default=10.0, help="seconds of a poll (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long is measured (default %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="how often (default %(default)s)")
    options = parser.parse_args()
    end_by_signal()
    raise_file_limit()
    try:
        enter()
        rows = asyncio.run(run(options))
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    head = [f"{options.agents:,} agents", "CPU of one core", "CPU per agent and s", "bytes per agent and s", "written"]
    print(table(head, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
