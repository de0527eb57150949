"""What is done to the adapter and its broker, and when: left to chance, which a seed repeats.

The seed repeats the choices and the times between them, not what the machine makes of them.
"""

import asyncio
import signal
from collections import Counter
from collections.abc import Awaitable, Callable

from bench.chaos.stage import Stage
from bench.support import BenchError

KILLS = ("polling", "start", "reload", "shutdown", "backlog")
"""At which moments the adapter is killed: each of them as often as the others, give or take one."""

_STORAGE_IN_USE = 3


class Plan:
    """Kills the adapter and starts it again, with trouble at the broker and at the gateway meanwhile.

    Args:
        pace: How long things last: 1 for the long form, less for a quick look.

    Attributes:
        kills: How often the adapter was killed, by moment.
        stops: How often it had ended by itself in time, before the kill that followed a SIGTERM.
        troubles: What was done besides.
    """

    def __init__(self, stage: Stage, pace: float) -> None:
        self.kills: Counter[str] = Counter()
        self.stops = 0
        self.troubles: Counter[str] = Counter()
        self._stage = stage
        self._pace = pace
        self._broker = asyncio.Lock()
        self._reports = 0

    async def run(self, kills: int, said: Callable[[str], None]) -> None:
        """Kill the adapter so many times.

        Raises:
            BenchError: It ended otherwise than it must.
        """
        deck: list[str] = []
        trouble = asyncio.create_task(self._trouble())
        try:
            while self.kills.total() < kills:
                deck = deck or self._stage.rng.sample(KILLS, len(KILLS))
                moment = deck.pop()
                await self._stage.adapter.start()
                await self._strike(moment)
                said(f"{self.kills.total()} of {kills} kills: {moment}")
                if trouble.done():
                    trouble.result()
        finally:
            trouble.cancel()
        await asyncio.wait([trouble])
        if not trouble.cancelled():
            trouble.result()

    async def _strike(self, moment: str) -> None:
        stage, rng = self._stage, self._stage.rng
        if moment == "start":
            await asyncio.sleep(rng.uniform(0, 2.5))
        else:
            await self._begun()
            await asyncio.sleep(rng.uniform(0, 4 * self._pace))
        match moment:
            case "reload":
                stage.change_agents()
                stage.adapter.send(signal.SIGHUP)
                await asyncio.sleep(rng.uniform(0, 0.8))
            case "shutdown":
                stage.adapter.send(signal.SIGTERM)
                await asyncio.sleep(rng.uniform(0, 1.5))
            case "backlog":
                async with self._broker:
                    await stage.broker.end(killed=False)
                    await asyncio.sleep(rng.uniform(1, 6) * self._pace)
                    await stage.broker.begin()
                connections = stage.relay.connections
                await stage.wait_until(lambda: stage.relay.connections > connections or not stage.adapter.runs, "way")
                await asyncio.sleep(rng.uniform(0, 1.5))
        if not stage.adapter.runs:
            code = stage.adapter.process.returncode
            if moment != "shutdown" or code:
                raise BenchError(f"the adapter ended with {code}: {stage.adapter.last_words()}")
            self.stops += 1
            return
        await stage.kill_adapter()
        self.kills[moment] += 1

    async def _begun(self) -> None:
        """Wait until the adapter polls."""
        stage = self._stage
        polls = (await stage.gateway.order("status"))["polls"]
        for _ in range(600):
            if (await stage.gateway.order("status"))["polls"] > polls:
                return
            if not stage.adapter.runs:
                raise BenchError(f"the adapter ended: {stage.adapter.last_words()}")
            await asyncio.sleep(0.05)
        raise BenchError(f"the adapter does not poll: {stage.adapter.last_words()}")

    # What happens besides.

    async def _trouble(self) -> None:
        """Make trouble at the broker and at the gateway until cancelled; whatever was begun is mended."""
        stage, rng = self._stage, self._stage.rng
        makers: dict[str, Callable[[], Awaitable[None]]] = {
            "broker stopped": self._broker_stopped,
            "broker killed": self._broker_killed,
            "broker frozen": self._broker_frozen,
            "connection to the broker cut": self._cut,
            "connection to the broker cut half way": self._cut_half_way,
            "connections to the gateway cut": lambda: stage.cut_gateway(rng.uniform(0.1, 1)),
            "gateway away": lambda: stage.gateway_away(rng.uniform(0.1, 2) * self._pace),
        }
        deck: list[str] = []
        while True:
            await asyncio.sleep(rng.uniform(0.5, 6) * self._pace)
            deck = deck or rng.sample(list(makers), len(makers))
            name = deck.pop()
            await asyncio.shield(asyncio.ensure_future(makers[name]()))
            self.troubles[name] += 1

    async def _broker_stopped(self) -> None:
        async with self._broker:
            await self._stage.broker_away(self._stage.rng.uniform(0.1, 4) * self._pace, killed=False)

    async def _broker_killed(self) -> None:
        async with self._broker:
            await self._stage.broker_away(self._stage.rng.uniform(0.1, 4) * self._pace, killed=True)

    async def _broker_frozen(self) -> None:
        async with self._broker:
            self._stage.broker.send(signal.SIGSTOP)
            await asyncio.sleep(self._stage.rng.uniform(0.5, 3) * self._pace)
            self._stage.broker.send(signal.SIGCONT)

    async def _cut(self) -> None:
        self._stage.relay.cut()

    async def _cut_half_way(self) -> None:
        self._stage.relay.cut_half_way()
