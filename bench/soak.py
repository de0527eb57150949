"""A long run with everything going wrong a little: does the adapter need more and more? `python -m bench.soak`.

1,000 agents, and at a low rate: answers that fail, are cut, slow or unreadable; connections cut on both sides; the
broker stopped, killed and frozen; the gateway away; reloads with agents that go and come; commands; a burst of events
while the broker is away, up to `storage.max_mb` and back. Each of these happens once in the first two minutes, at
whose end memory and descriptors are measured: whatever is kept for good is there by then. At the end they may be 5 %
more at most, nothing may be lost without a cause, and nothing may stand against the interface document.
"""

import argparse
import asyncio
import random
import signal
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from bench.chaos.ending import evidence, judge_kept, judge_lost_answers, settle, stop
from bench.chaos.judge import Verdict, judge
from bench.chaos.judged import judged
from bench.chaos.stage import Setting, Stage
from bench.support import BenchError

_SAMPLE_S = 2.0
_WINDOW_S = 30.0
"""Over how long a measurement is taken: the median of what lies in it."""
_ALLOWED = 1.05
_MB = 1e6
_FIRST = "storage filled"
"""What needs the most memory and lasts longest is done first while warming up."""
_FILL_LOOKS = 20
_BURST = 8_000
"""Events, while there is no broker, that fill the storage."""
_FULL = " storage: back after "
"""What the adapter logs once for each time that nothing could be stored for a while."""
_SETTLE_S = 240.0
_HURRY_S = 3.0
"""Pause between two harms while warming up: all of them, and some peace, fit into two minutes."""
_LAST_HARM_S = 60.0
"""How long before the end the last harm is done, so that the end is measured in the same peace as the beginning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is run.

    Attributes:
        agents: How many.
        seconds: How long, from when all agents are polled.
        warm_up_s: After how much of that memory and descriptors are measured first.
        every_s: A harm is done so often after that.
        seed: Of everything that is left to chance.
    """

    agents: int
    seconds: float
    warm_up_s: float
    every_s: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the adapter has at one moment.

    Attributes:
        at: Seconds since all agents were polled.
        rss: Resident memory, bytes.
        pss: The same without its part of what is shared with other processes.
        descriptors: Open files and connections.
    """

    at: float
    rss: int
    pss: int
    descriptors: int


def sample(process: psutil.Process, began_at: float) -> Sample:
    """Measure the adapter."""
    memory = process.memory_full_info()
    return Sample(at=time.monotonic() - began_at, rss=memory.rss, pss=memory.pss, descriptors=process.num_fds())


def harms(stage: Stage) -> dict[str, Callable[[], Awaitable[None]]]:
    """List what is done to the parts, by name."""
    rng = stage.rng

    async def reload() -> None:
        stage.change_agents()
        stage.adapter.send(signal.SIGHUP)

    async def freeze() -> None:
        stage.broker.send(signal.SIGSTOP)
        await asyncio.sleep(rng.uniform(1, 5))
        stage.broker.send(signal.SIGCONT)

    async def cut() -> None:
        stage.relay.cut()

    async def cut_half_way() -> None:
        stage.relay.cut_half_way()

    async def fill() -> None:
        # More than `storage.max_mb` takes, with nobody to take it: the agents stop, and go on (D4).
        await stage.broker.end(killed=False)
        await stage.gateway.order("burst", each=_BURST // stage.setting.agents)
        for _ in range(_FILL_LOOKS):
            await asyncio.sleep(_SAMPLE_S)
            if await stage.metric("events_at_risk"):
                break
        await stage.broker.begin()

    return {
        "reload": reload,
        "broker stopped": lambda: stage.broker_away(rng.uniform(0.5, 10), killed=False),
        "broker killed": lambda: stage.broker_away(rng.uniform(0, 5), killed=True),
        "broker frozen": freeze,
        "broker cut": cut,
        "broker cut half way": cut_half_way,
        "gateway cut": lambda: stage.cut_gateway(rng.uniform(0.01, 0.3)),
        "gateway away": lambda: stage.gateway_away(rng.uniform(0.5, 5)),
        _FIRST: fill,
    }


async def harm_regularly(stage: Stage, options: Options, done: dict[str, int]) -> None:
    """Do each harm once while warming up, and then one by one, in turns, until shortly before the end."""
    doing = harms(stage)
    done |= dict.fromkeys(doing, 0)
    began_at = time.monotonic()
    pause_s = _HURRY_S
    while time.monotonic() - began_at < options.seconds - _LAST_HARM_S:
        names = stage.rng.sample(list(doing), len(doing))
        if not any(done.values()):
            names.sort(key=lambda name: name != _FIRST)
        for name in names:
            await asyncio.sleep(pause_s)
            if time.monotonic() - began_at > options.seconds - _LAST_HARM_S:
                break
            await doing[name]()
            done[name] += 1
        left_s = began_at + options.warm_up_s - time.monotonic()
        await asyncio.sleep(max(0.0, left_s))
        pause_s = options.every_s


async def run(options: Options, directory: Path) -> Verdict:
    """Run it.

    Raises:
        BenchError: A part ended, or something did not happen that must.
    """
    setting = Setting(
        agents=options.agents,
        guests=max(2, options.agents // 100),
        hold_s=10.0,
        events_per_s=options.agents / 50,
        trouble=0.005,
        guid_interval_s=60.0,
        senders=max(5, options.agents // 50),
        max_mb=8,  # the least that may be configured; 1,000 agents fill half of it for good,
        seed=options.seed,
    )
    stage = Stage(setting, directory, random.Random(options.seed))  # noqa: S311 - chance, no secret
    samples: list[Sample] = []
    done: dict[str, int] = {}
    async with stage.standing():
        await stage.adapter.start()
        await stage.all_polled()
        process = psutil.Process(stage.adapter.process.pid)
        began_at = time.monotonic()
        harming = asyncio.create_task(harm_regularly(stage, options, done))
        try:
            while time.monotonic() - began_at < options.seconds:
                if not stage.adapter.runs or (harming.done() and harming.exception() is not None):
                    await harming
                    raise BenchError(f"the adapter ended: {stage.adapter.last_words()}")
                samples.append(sample(process, began_at))
                progress(samples, options, done)
                await asyncio.sleep(_SAMPLE_S)
            await harming
        finally:
            harming.cancel()
        cpu = process.cpu_times()
        await settle(stage, _SETTLE_S)
        verdict = Verdict()
        await judge_lost_answers(stage, verdict)
        await settle(stage, _SETTLE_S)
        await stop(stage, verdict)
        judge_kept(stage, verdict)
        found = judge(await evidence(stage))
    judge_growth(samples, options, verdict)
    verdict.figures["times that the storage was full"] = f"{stage.adapter.log.read_text().count(_FULL)}"
    verdict.figures["CPU of the adapter, of a core"] = f"{(cpu.user + cpu.system) / samples[-1].at:.1%}"
    verdict.figures["harms"] = ", ".join(f"{name} {count}" for name, count in done.items())
    verdict.figures |= found.figures
    verdict.faults += found.faults
    return verdict


def progress(samples: list[Sample], options: Options, done: dict[str, int]) -> None:
    """Say every minute how it goes."""
    last = samples[-1]
    if len(samples) % (60 // _SAMPLE_S) == 1:
        text = f"{last.at:5.0f} of {options.seconds:.0f} s: RSS {last.rss / _MB:.1f} MB, PSS {last.pss / _MB:.1f} MB"
        print(f"{text}, {last.descriptors} descriptors, {sum(done.values())} harms", file=sys.stderr, flush=True)


def judge_growth(samples: list[Sample], options: Options, verdict: Verdict) -> None:
    """Hold the end against the end of the warming up."""
    windows = [
        [each for each in samples if end - _WINDOW_S <= each.at <= end] for end in (options.warm_up_s, samples[-1].at)
    ]
    for name, read, unit in (
        ("RSS", lambda each: each.rss / _MB, "MB"),
        ("PSS", lambda each: each.pss / _MB, "MB"),
        ("descriptors", lambda each: float(each.descriptors), ""),
    ):
        first, last = (statistics.median(read(each) for each in window) for window in windows)
        most = max(read(each) for each in samples)
        verdict.figures[f"{name} after the first {options.warm_up_s:.0f} s, at the end, at most"] = (
            f"{first:,.1f}, {last:,.1f} ({last / first - 1:+.1%}), {most:,.1f} {unit}".strip()
        )
        if last > first * _ALLOWED:
            verdict.faults.append(f"{name} grew by {last / first - 1:.1%}: from {first:,.1f} to {last:,.1f} {unit}")


def main() -> int:
    """Run the soak; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="bench.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--agents", type=int, default=1000, help="how many (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=1800, help="how long (default %(default)s)")
    parser.add_argument(
        "--warm-up", type=float, default=120, help="seconds of that before measuring (default %(default)s)"
    )
    parser.add_argument("--every", type=float, default=20, help="seconds between two harms (default %(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of all chance")
    parser.add_argument("--keep", type=Path, help="a directory for all logs and data, which stays")
    given = parser.parse_args()
    options = Options(
        agents=given.agents, seconds=given.seconds, warm_up_s=given.warm_up, every_s=given.every, seed=given.seed
    )
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    head = f"{options.agents:,} agents, {options.seconds:g} s, seed {options.seed}"
    return judged(partial(run, options), keep=given.keep, head=(head, "ccgateway2mqtt"))


if __name__ == "__main__":
    sys.exit(main())
