"""What an idle agent costs, ours and the rivals', at two sizes; with our larger one also the start and a reload."""

import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

from bench.clients import AIOHTTP, CLIENTS, GO, NODE_RED, OURS, configure
from bench.report import Bound, Row, compared, spread
from bench.stage import Measurement, Seen, Setting, Stage, staged
from bench.support import quantile, say, table, wait_until

_KB = 1e3
_MB = 1e6
_ALONE_S = 3.0
"""How long one agent is polled before the memory is looked at which the program has without agents."""
_RELOAD_WAIT_S = 30.0
_AFTER_RELOAD_S = 2.0
"""How much longer than a hold the polls are watched after a reload."""
_START_LIMIT_S, _RELOAD_LIMIT_S = 5.0, 1.0
_PAUSE_RANGE_MS = (200, 500)

CPU_BOUNDS = {
    ("few", AIOHTTP): Bound(at_most=0.8, aim=0.6),
    ("many", AIOHTTP): Bound(at_most=0.6, aim=0.4),
    ("few", GO): Bound(at_most=2.2, aim=1.0),
    ("many", GO): Bound(at_most=1.9, aim=1.0),
    ("few", NODE_RED): Bound(at_most=0.2, aim=0.1),
}
"""CPU per idle poll, by size and rival: who is named here is measured."""
_MEMORY_BOUND = Bound(at_most=0.8, aim=0.6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured.

    Attributes:
        runs: How often each client runs, in turns.
        few: Agents at the smaller size.
        many: Agents at the larger size.
        seconds: How long a window is.
        hold_s: How long the gateway holds a poll.
    """

    runs: int
    few: int
    many: int
    seconds: float
    hold_s: float

    @property
    def sizes(self) -> dict[str, int]:
        """Give both sizes by the names that the bounds have."""
        return {"few": self.few, "many": self.many}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """A reload that added one agent.

    Attributes:
        seconds: From the signal to the new agent's first poll.
        seen: What the gateway saw of all the others meanwhile and for a while after.
    """

    seconds: float
    seen: Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """What one client did at one size, or with a single agent, run by run."""

    measured: list[Measurement] = field(default_factory=list)
    started_s: list[float] = field(default_factory=list)
    reloads: list[Reload] = field(default_factory=list)

    def add(self, other: "Runs") -> None:
        """Take further runs in."""
        self.measured.extend(other.measured)
        self.started_s.extend(other.started_s)
        self.reloads.extend(other.reloads)

    @property
    def cpu_per_poll_us(self) -> list[float]:
        """Give the CPU per poll of each run."""
        return [each.cpu_per_poll_us for each in self.measured]

    def kb_per_agent(self, alone: "Runs") -> list[float]:
        """Give the memory per agent of each run: what is more than with one agent, divided."""
        base = median(each.rss_bytes for each in alone.measured)
        return [(each.rss_bytes - base) / (each.agents - 1) / _KB for each in self.measured]

    def pauses_ms(self) -> list[tuple[int, int]]:
        """Give the pauses of all runs together."""
        return sorted(step for each in self.measured for step in each.seen.pauses_ms)

    def violations(self) -> list[dict[str, object]]:
        """List what was done against the interface document."""
        seen = [each.seen for each in self.measured] + [each.seen for each in self.reloads]
        return [violation for each in seen for violation in each.violations]


Found = dict[tuple[str, str], Runs]
"""By size (``alone`` is a single agent) and client."""


def measure(scale: Scale, names: Sequence[str]) -> Found:
    """Measure clients in turns, at each size that has a bound for them."""
    found: Found = {}
    for run in range(1, scale.runs + 1):
        for name in names:
            with staged(CLIENTS[name], Setting(agents=1, hold_s=scale.hold_s), min(_ALONE_S, scale.hold_s)) as stage:
                found.setdefault(("alone", name), Runs()).measured.append(stage.measure(1.0))
        for size, agents in scale.sizes.items():
            for name in names:
                if name == OURS or (size, name) in CPU_BOUNDS:
                    runs = found.setdefault((size, name), Runs())
                    _measure_once(runs, name, agents, scale, reloaded=name == OURS and size == "many")
                    say(f"idle polls, run {run}: {name}, {agents:,} agents: {runs.cpu_per_poll_us[-1]:,.0f} µs a poll")
    return found


def _measure_once(runs: Runs, name: str, agents: int, scale: Scale, *, reloaded: bool) -> None:
    setting = Setting(agents=agents, hold_s=scale.hold_s, spare=int(reloaded))
    with staged(CLIENTS[name], setting) as stage:
        runs.started_s.append(stage.started_s)
        runs.measured.append(stage.measure(scale.seconds))
        if reloaded:
            runs.reloads.append(reload(stage))


def reload(stage: Stage) -> Reload:
    """Add the spare agent to the configuration, and see what becomes of all polls."""
    setting = stage.place.setting
    configure(stage.place, setting.agents + setting.spare)
    with stage.seeing() as seen:
        began_at = time.monotonic()
        stage.client.send(signal.SIGHUP)
        wait_until(lambda: not stage.unseen(), _RELOAD_WAIT_S, "a poll of the new agent")
        seconds = time.monotonic() - began_at
        stage.watch(setting.hold_s + _AFTER_RELOAD_S)
    return Reload(seconds=seconds, seen=seen[0])


def rows(found: Found, scale: Scale) -> Iterator[Row]:
    """Write the lines of the table."""
    for (size, name), bound in CPU_BOUNDS.items():
        if (size, name) in found:
            what = f"CPU per idle poll, {scale.sizes[size]:,} agents"
            ours, rival = found[size, OURS].cpu_per_poll_us, found[size, name].cpu_per_poll_us
            yield compared(what, ours, (name, rival), "µs", bound)
    if ("many", GO) in found:
        ours, rival = (found["many", name].kb_per_agent(found["alone", name]) for name in (OURS, GO))
        yield compared(f"memory per idle agent, {scale.many:,} agents", ours, (GO, rival), "KB", _MEMORY_BOUND)
    yield from _own_rows(found["many", OURS], scale)


def _own_rows(ours: Runs, scale: Scale) -> Iterator[Row]:
    shortest_ms = min(each.seen.shortest_s for each in ours.measured) * 1000
    largest = quantile(ours.pauses_ms(), 0.999)
    yield Row(
        what=f"pause between polls at the gateway, {scale.many:,} agents in one process, all runs",
        ours=f"shortest {shortest_ms:.1f} ms, p99.9 {largest} ms",
        at_most="none under 200 ms, p99.9 within 500 ms",
        met=shortest_ms >= _PAUSE_RANGE_MS[0] and largest < _PAUSE_RANGE_MS[1],
    )
    started_s = median(ours.started_s)
    yield Row(
        what=f"start to all {scale.many:,} agents polling",
        ours=f"{started_s:.1f} s ({min(ours.started_s):.1f} to {max(ours.started_s):.1f})",
        at_most=f"hold + {_START_LIMIT_S:g} s: {scale.hold_s + _START_LIMIT_S:g} s",
        met=started_s <= scale.hold_s + _START_LIMIT_S,
    )
    reload_s = median(each.seconds for each in ours.reloads)
    touched = sum(each.seen.broken + each.seen.short for each in ours.reloads)
    late = sum(each.seen.long for each in ours.reloads)
    yield Row(
        what=f"reload adding one agent to {scale.many:,}",
        ours=f"{reload_s:.2f} s, {touched} other polls broken off or early, {late} late",
        at_most=f"{_RELOAD_LIMIT_S:g} s, and no other poll touched",
        met=reload_s <= _RELOAD_LIMIT_S and not touched and not late,
    )


def details(found: Found) -> str:
    """Write how the lines came about: every client at every size."""
    lines = []
    for (size, name), runs in found.items():
        if size == "alone":
            continue
        many = runs.measured
        pauses = runs.pauses_ms()
        lines.append(
            [
                name,
                f"{many[0].agents:,}",
                spread(runs.cpu_per_poll_us, "µs"),
                spread(runs.kb_per_agent(found["alone", name]), "KB"),
                f"{median(each.rss_bytes for each in many) / _MB:,.0f} MB",
                f"{min(each.seen.shortest_s for each in many) * 1000:.0f} ms",
                f"{quantile(pauses, 0.999)} ms",
                f"{max(each.seen.longest_s for each in many) * 1000:.0f} ms",
                f"{sum(each.seen.long for each in many):,} of {sum(each.seen.polls for each in many):,}",
                f"{max(each.gateway_cpu_s / each.seconds for each in many):.0%}",
                f"{len(runs.violations()):,}",
            ]
        )
    return table(_DETAILS, lines)


_DETAILS = [
    "client",
    "agents",
    "CPU per poll",
    "memory per agent",
    "memory in all",
    "shortest pause",
    "p99.9",
    "longest",
    "over 500 ms",
    "CPU of the gateway, of a core, at most",
    "against the document",
]
