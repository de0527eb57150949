"""What is done to a fleet, one after the other; each `Step` ends when all agents are polled by those whose they are."""

import asyncio
import signal
from collections.abc import Awaitable, Callable

from bench.fleet.stage import Member, Stage, addresses, until
from bench.support import say

_DRAIN_S = 1.0
"""How long an agent that is handed over may go unpolled, p99."""
_TAKE_OVER_S = 8.0
"""How long one may beyond `hold` whose member is gone without a word."""
_ELECTION_S = 10.0
"""How long the servers may take to choose another leader."""
_BURST = 3
"""Events for every agent at once, where a process is stopped just then."""


class Plan:
    """Does things to a fleet.

    Args:
        away_s: How long the servers are away as a whole.
    """

    def __init__(self, stage: Stage, *, away_s: float) -> None:
        self._stage = stage
        self._away_s = away_s
        self._take_over_s = stage.setting.hold_s + _TAKE_OVER_S
        self.steps: dict[str, Callable[[], Awaitable[None]]] = {
            "kill": self._kill,
            "node": self._kill_node,
            "leader": self._kill_leader,
            "both": self._kill_both,
            "two": self._kill_two,
            "pause": self._pause,
            "stop": self._stop,
            "burst": self._stop_in_burst,
            "partition": self._partition,
            "half": self._half,
            "silent": self._silent,
            "isolate": self._isolate,
            "split": self._split,
            "freeze": self._freeze_leader,
            "drain": self._drain,
            "broker": self._broker_away,
            "hung": self._broker_hangs,
            "away": self._away,
            "rolling": self._rolling,
            "all": self._kill_all,
        }

    async def run(self, wanted: list[str]) -> None:
        """Start the fleet, and do all that is wanted to it."""
        stage = self._stage
        say("start")
        async with stage.step("start of all members", "other"):
            await asyncio.gather(*(member.start() for member in stage.members))
        for name in wanted:
            say(name)
            await self.steps[name]()

    async def _start(self, *members: Member) -> None:
        names = ", ".join(member.name for member in members)
        async with self._stage.step(f"...{names} started again", "drain", _DRAIN_S):
            await asyncio.gather(*(member.start() for member in members))

    # Kills.

    async def _kill(self) -> None:
        member = self._stage.members[0]
        async with self._stage.step("kill -9 of a member", "kill", self._take_over_s):
            await member.kill()
        await self._start(member)

    async def _kill_node(self) -> None:
        number = (await self._stage.leader() + 1) % 3
        async with self._stage.step("kill -9 of a NATS server", "other", self._take_over_s):
            await self._node_away(number)

    async def _kill_leader(self) -> None:
        number = await self._stage.leader()
        async with self._stage.step("kill -9 of the NATS server that leads", "other", self._take_over_s):
            await self._node_away(number)

    async def _node_away(self, number: int) -> None:
        node = self._stage.servers.nodes[number]
        await node.kill()
        await self._stage.settled(asyncio.get_running_loop().time())
        await node.start()
        await self._stage.servers.ready()

    async def _kill_both(self) -> None:
        stage = self._stage
        member, node = stage.members[1], stage.servers.nodes[await stage.leader()]
        within_s = self._take_over_s + _ELECTION_S
        async with stage.step("kill -9 of a member and of the NATS server that leads", "kill", within_s):
            await asyncio.gather(member.kill(), node.kill())
        async with stage.step("...the server started again", "other"):
            await node.start()
            await stage.servers.ready()
        await self._start(member)

    async def _kill_two(self) -> None:
        two = self._stage.members[1:3]
        async with self._stage.step("kill -9 of two members at once", "kill", self._take_over_s):
            await asyncio.gather(*(member.kill() for member in two))
        await self._start(*two)

    async def _kill_all(self) -> None:
        members = self._stage.members
        async with self._stage.step("kill -9 of all members, and their start", "kill", self._take_over_s):
            await asyncio.gather(*(member.kill() for member in members))
            await asyncio.gather(*(member.start() for member in members))

    # Stops.

    async def _stopped(self, member: Member, seconds: float) -> None:
        member.send(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        member.send(signal.SIGCONT)

    async def _pause(self) -> None:
        stage, member = self._stage, self._stage.members[2]
        seconds = stage.lease_s - 3
        async with stage.step(f"SIGSTOP of a member for {seconds:g} s", "stop", seconds + _DRAIN_S):
            await self._stopped(member, seconds)

    async def _stop(self) -> None:
        stage, member = self._stage, self._stage.members[2]
        seconds = stage.lease_s + 5
        async with stage.step(f"SIGSTOP of a member for {seconds:g} s", "stop", self._take_over_s, [member]):
            await self._stopped(member, seconds)

    async def _stop_in_burst(self) -> None:
        stage, member = self._stage, self._stage.members[3 % len(self._stage.members)]
        name = f"SIGSTOP just while {_BURST} events come for every agent"
        async with stage.step(name, "stop", self._take_over_s, [member]):
            await stage.gateway.order("burst", each=_BURST)
            await asyncio.sleep(0.15)
            await self._stopped(member, stage.lease_s + 5)

    # Cuts.

    async def _partition(self) -> None:
        stage, member = self._stage, self._stage.members[0]
        async with stage.step("a member cut off from NATS", "isolate", self._take_over_s, [member]):
            member.machine.cut(addresses(stage.machines))
            await asyncio.sleep(stage.lease_s + 5)
            member.machine.heal()

    async def _half(self) -> None:
        stage, member = self._stage, self._stage.members[1]
        async with stage.step("a member that hears nothing of NATS", "isolate", self._take_over_s, [member]):
            member.machine.cut(addresses(stage.machines), outwards=False)
            await asyncio.sleep(stage.lease_s + 5)
            member.machine.heal()

    async def _silent(self) -> None:
        """Its server is gone as a machine without power is: nothing says so, and the others are there."""
        stage, member = self._stage, self._stage.members[1]
        server = next(each for each in stage.machines if each.address in member.peers())
        async with stage.step("a member cut off from the one NATS server that it talks to", "other", self._take_over_s):
            member.machine.cut([server.address])
            await asyncio.sleep(stage.lease_s + 5)
            member.machine.heal()

    async def _isolate(self) -> None:
        stage, member = self._stage, self._stage.members[2]
        async with stage.step("a member cut off from everything", "isolate", self._take_over_s, [member]):
            member.machine.cut(["0.0.0.0/0"])
            await asyncio.sleep(stage.lease_s + 5)
            member.machine.heal()

    async def _split(self) -> None:
        stage = self._stage
        number = await stage.leader()
        others = [each for place, each in enumerate(stage.machines) if place != number]
        within_s = self._take_over_s + _ELECTION_S
        async with stage.step("the NATS server that leads cut off from the others", "other", within_s):
            stage.machines[number].cut(addresses(others))
            await asyncio.sleep(stage.lease_s + 5)
            stage.machines[number].heal()

    async def _freeze_leader(self) -> None:
        stage = self._stage
        node = stage.servers.nodes[await stage.leader()]
        async with stage.step("SIGSTOP of the NATS server that leads", "other", self._take_over_s + _ELECTION_S):
            node.freeze()
            await asyncio.sleep(stage.lease_s + 5)
            node.thaw()

    async def _away(self) -> None:
        stage = self._stage
        async with stage.step(f"kill -9 of all NATS servers, away for {self._away_s:g} s", "other"):
            await asyncio.gather(*(node.kill() for node in stage.servers.nodes))
            await asyncio.sleep(self._away_s)
            await stage.servers.start()

    # What an operator does.

    async def _drained(self, member: Member) -> None:
        async with self._stage.step(f"SIGTERM of {member.name}", "drain", _DRAIN_S):
            member.send(signal.SIGTERM)
            await member.ended()
        await self._start(member)

    async def _drain(self) -> None:
        await self._drained(self._stage.members[3 % len(self._stage.members)])

    async def _broker_away(self) -> None:
        """Hand agents over whose events cannot be published meanwhile."""
        stage, member = self._stage, self._stage.members[0]
        async with stage.step("SIGTERM of a member while the broker is away", "drain", 2 * _DRAIN_S + 1):
            await stage.broker.end(killed=False)
            await asyncio.sleep(3)
            member.send(signal.SIGTERM)
            await until(lambda: not member.runs, "the end of a member")
            await stage.broker.begin()
        await self._start(member)

    async def _broker_hangs(self) -> None:
        """Hand agents over while what was sent of them is still on its way."""
        stage, member = self._stage, self._stage.members[1]
        async with stage.step("SIGTERM of a member while the broker hangs", "drain", 2 * _DRAIN_S + 1):
            stage.broker.send(signal.SIGSTOP)
            await asyncio.sleep(1)
            member.send(signal.SIGTERM)
            await until(lambda: not member.runs, "the end of a member")
            stage.broker.send(signal.SIGCONT)
        await self._start(member)

    async def _rolling(self) -> None:
        stage = self._stage
        for member in stage.members:
            await self._drained(member)
        for number, node in enumerate(stage.servers.nodes):
            async with stage.step(f"SIGTERM of NATS server {number}, and its start", "other", self._take_over_s):
                node.send(signal.SIGTERM)
                await node.ended()
                await node.start()
                await stage.servers.ready()
