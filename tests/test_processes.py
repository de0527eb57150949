"""`run --processes N` and the way between one process and a fleet, with real processes (issue 6, point 6)."""

import asyncio
import contextlib
import json
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil

from adapter.simulator import SimAgent, Simulator
from tests.adapter_support import decoded, running, settings, write
from tests.broker_support import Broker, Peer, free_ports
from tests.cli_support import Program, invoke_beside, program, run_program
from tests.cluster_support import servers, until
from tests.tcp_proxy import Proxy

HOLD_S = 0.5
AGENTS = [str(101 + number) for number in range(6)]
DEADLINE_S = 60.0


@contextlib.asynccontextmanager
async def simulated() -> AsyncIterator[Simulator]:
    """Run a gateway that renews GUIDs with nearly every poll."""
    agents = [SimAgent(work_no=work_no) for work_no in AGENTS]
    async with Simulator(agents=agents, hold_s=HOLD_S, guid_interval_s=1.0) as simulator:
        yield simulator


class Runs:
    """What several runs of the program have in common, one after the other.

    Attributes:
        emitted: How many events each agent was given.
    """

    def __init__(self, simulator: Simulator, path: Path) -> None:
        self.emitted = 0
        self._simulator = simulator
        self._path = path

    @contextlib.asynccontextmanager
    async def of(self, processes: int | None) -> AsyncIterator[Program]:
        """Run so many processes, or the program alone, until all agents have had an event and the context ends."""
        options = [] if processes is None else ["--processes", str(processes)]
        before = {work_no: len(self._simulator.polls(work_no)) for work_no in AGENTS}
        guids = {work_no: self._simulator.guid(work_no) for work_no in AGENTS}
        async with program("run", "-c", self._path, *options) as made:
            try:
                await self.polled(before)
            except TimeoutError as error:
                raise AssertionError("\n".join(made.err[-60:])) from error
            first = {work_no: self._simulator.polls(work_no)[before[work_no]].guid for work_no in AGENTS}
            assert first == guids, made.err
            try:
                await self.emit()
            except TimeoutError as error:
                waiting = [work_no for work_no in AGENTS if not self._simulator.drained(work_no)]
                raise AssertionError("\n".join([f"not taken: {waiting}", *made.err[-60:]])) from error
            yield made

    async def polled(self, before: dict[str, int]) -> None:
        """Wait until each agent has been polled again."""
        await self._simulator.wait_for(
            lambda: all(len(self._simulator.polls(work_no)) > before[work_no] for work_no in AGENTS), DEADLINE_S
        )

    async def emit(self) -> None:
        """Give each agent an event, and wait until they are taken."""
        self.emitted += 1
        for work_no in AGENTS:
            content = {"reason": str(self.emitted)}
            self._simulator.emit_sample(work_no, "AgentState_SetNotReady_Success", content)
        await self._simulator.wait_for(lambda: all(map(self._simulator.drained, AGENTS)), DEADLINE_S)

    async def stored(self) -> None:
        """Wait until what was taken is stored: no agent is polled again before (D1)."""
        await self.polled({work_no: len(self._simulator.polls(work_no)) for work_no in AGENTS})

    async def arrived(self, peer: Peer) -> None:
        """Wait until all events have come, and see that none is missing, and none came otherwise a second time."""

        def seen() -> dict[str, list[Any]]:
            return {work_no: decoded(peer.on(f"agents/{work_no}/events")) for work_no in AGENTS}

        await peer.wait_for(
            lambda: all(len({each["id"] for each in got}) >= self.emitted for got in seen().values()), DEADLINE_S
        )
        for work_no, got in seen().items():
            numbers = {event["id"]: event["seq"] for event in got}
            assert {(event["id"], event["seq"]) for event in got} == set(numbers.items()), f"agent {work_no}"
            assert list(numbers.values()) == list(range(1, self.emitted + 1)), f"agent {work_no}"
            assert [event["content"]["reason"] for event in {event["id"]: event for event in got}.values()] == [
                str(number) for number in range(1, self.emitted + 1)
            ]


async def stopped(made: Program) -> None:
    """Stop it as a unit does."""
    made.send(signal.SIGTERM)
    try:
        assert await made.ended(DEADLINE_S) == 0, made.err
    except TimeoutError as error:
        raise AssertionError("\n".join(made.err[-60:])) from error


def runs_on(process: psutil.Process) -> bool:
    """Say whether a process has not ended."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def members(made: Program) -> dict[str, psutil.Process]:
    """List the processes of members by their last argument."""
    found = {}
    for child in psutil.Process(made.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess, IndexError):
            if child.status() != psutil.STATUS_ZOMBIE and child.cmdline()[-1].startswith("--member"):
                found[child.cmdline()[-1]] = child
    return found


def joined(made: Program) -> set[str]:
    """List the members that have joined the fleet."""
    return {found[1] for line in made.err if (found := re.search(r"cluster: member (\S+)/", line))}


async def test_nothing_is_stranded(tmp_path: Path, broker: Broker) -> None:
    """Alone, 4, 2, 3 processes and alone again with events waiting: none is lost, nor any `seq` or GUID."""
    async with simulated() as simulator, Proxy(broker.ports["mqtt"]) as proxy:
        path = write(tmp_path, settings(simulator, broker, mqtt={"url": proxy.url}))
        runs = Runs(simulator, path)
        proxy.closed = True
        with Peer(broker, ["agents/#"]) as peer:
            for count in (None, 4, 2, 3):
                async with runs.of(count) as made:
                    await stopped(made)
            async with runs.of(None) as made:
                assert not path.with_name("ccgateway2mqtt.db.fleet").exists(), "all is in the database again"
                assert not peer.messages
                proxy.closed = False
                await runs.arrived(peer)
                await stopped(made)
        assert simulator.violations == []


async def test_killed_member_begins_again(tmp_path: Path, broker: Broker) -> None:
    """A member that is killed is started again, and its agents are polled on; `ps` shows nothing secret."""
    values: dict[str, Any] = {"instance": "centre", "http": {"listen": f"127.0.0.1:{free_ports(1)[0]}"}}
    async with simulated() as simulator:
        path = write(tmp_path, settings(simulator, broker, **values))
        runs = Runs(simulator, path)
        with Peer(broker, ["agents/#"]) as peer:
            async with runs.of(2) as made:
                await until(lambda: len(members(made)) == 2)
                await runs.stored()
                killed = members(made)["--member=1"]
                directory = tmp_path / "ccgateway2mqtt.db.fleet"
                modes = {path.name: path.stat().st_mode & 0o077 for path in (directory, *directory.glob("**/*.json"))}
                assert modes == {directory.name: 0, "fleet.json": 0, "running.json": 0}
                server = json.loads((directory / "nats" / "nats-server.conf").read_text())
                assert server["jetstream"]["sync_interval"] == "always", "what is acknowledged is on disk (D1)"
                assert (directory / "nats" / "nats-server.conf").stat().st_mode & 0o077 == 0
                secret = json.loads((directory / "fleet.json").read_text())["key"]
                for process in psutil.Process(made.process.pid).children(recursive=True):
                    shown = " ".join(
                        [*process.cmdline(), *(f"{key}={value}" for key, value in process.environ().items())]
                    )
                    assert secret not in shown
                    assert "password" not in shown
                killed.kill()
                await made.line(lambda line: "member centre-1 was killed by SIGKILL" in line, DEADLINE_S)
                before = {work_no: len(simulator.polls(work_no)) for work_no in AGENTS}
                await until(lambda: members(made).get("--member=1") not in {None, killed})
                await runs.polled(before)
                await runs.emit()
                await made.line(lambda line: "[centre-1] cluster: member centre-1/" in line, DEADLINE_S)
                await runs.arrived(peer)
                await stopped(made)


async def test_cluster_commands_find_the_members(tmp_path: Path, broker: Broker) -> None:
    """`cluster status`, `drain` and `undrain` reach an embedded fleet while it runs, and say where none does."""
    async with simulated() as simulator:
        path = write(tmp_path, settings(simulator, broker))
        storage = tmp_path / "ccgateway2mqtt.db"

        async def asked(*command: str) -> tuple[int, str]:
            done = await invoke_beside("cluster", *command, "-c", path)
            return done.exit_code, done.stdout or done.stderr

        async def agents() -> dict[str, int]:
            _, text = await asked("status", "--json")
            return {each["name"]: each["agents"] for each in json.loads(text)["members"]}

        alone = f"{path}: there is no section cluster in it, and no `run --processes` runs with {storage}\n"
        assert await asked("status") == (2, alone)
        async with Runs(simulator, path).of(2) as made:
            await until(lambda: {"main-1", "main-2"} == joined(made))
            assert await asked("drain", "main-1") == (0, "member main-1: has no agents any more\n")
            await until_async(agents, {"main-1": 0, "main-2": len(AGENTS)})
            assert (await asked("status"))[0] == 0
            assert await asked("undrain", "main-1") == (0, "member main-1: takes its share again\n")
            made.process.kill()
        gone = (1, f"{storage}: `run --processes` does not run with it\n")
        assert await asked("status") == gone
        async with program("run", "-c", path, "--processes", "2") as made:
            await until(lambda: {"main-1", "main-2"} == joined(made))
            assert set(await agents()) == {"main-1", "main-2"}
            await stopped(made)
        assert await asked("status") == gone
        assert not (tmp_path / "ccgateway2mqtt.db.fleet" / "running.json").exists()
        assert simulator.violations == []


async def until_async(look: Callable[[], Awaitable[object]], wanted: object) -> None:
    """Wait until what has to be asked for is as wanted."""
    async with asyncio.timeout(DEADLINE_S):
        while await look() != wanted:
            pass


async def test_killed_parent_takes_all_with_it(tmp_path: Path, broker: Broker) -> None:
    """A parent that is killed leaves no process behind, the next start goes on; a second one is refused (D5)."""
    async with simulated() as simulator, Proxy(broker.ports["mqtt"]) as proxy:
        path = write(tmp_path, settings(simulator, broker, mqtt={"url": proxy.url}))
        runs = Runs(simulator, path)
        with Peer(broker, ["agents/#"]) as peer:
            proxy.closed = True
            async with runs.of(2) as made:
                refused = await run_program("run", "-c", path, "--processes", "2")
                assert refused.process.returncode == 3, refused.err
                children = psutil.Process(made.process.pid).children(recursive=True)
                assert len(children) == 3, "two members and the server"
                await runs.stored()
                made.process.kill()
                try:
                    await until(lambda: not any(map(runs_on, children)))
                finally:
                    for child in filter(runs_on, children):
                        child.kill()
            proxy.closed = False
            async with runs.of(3) as made:
                await runs.arrived(peer)
                await stopped(made)


async def test_the_server_comes_back_and_a_reload_reaches_all(tmp_path: Path, broker: Broker, peer: Peer) -> None:
    """A server that is killed is started again, a member that was ended too; SIGHUP reaches all members."""
    async with simulated() as simulator:
        values = settings(simulator, broker)
        path = write(tmp_path, values)
        runs = Runs(simulator, path)
        async with runs.of(2) as made:
            await runs.stored()
            parent = psutil.Process(made.process.pid)
            (server,) = [child for child in parent.children() if child.name() == "nats-server"]
            server.kill()
            await made.line(lambda line: "nats-server is back" in line, DEADLINE_S)
            await runs.stored()
            await runs.emit()
            await runs.arrived(peer)
            assert len(members(made)) == 2, "they were there all the time"
            health = await run_program("health", "-c", path)
            assert (health.process.returncode, health.err) == (0, ["well"])

            ended = members(made)["--member=2"]
            ended.terminate()
            await made.line(lambda line: "member main-2 has ended, as somebody told it to" in line, DEADLINE_S)
            await until(lambda: members(made).get("--member=2") not in {None, ended})
            await until(lambda: sum("cluster: member main-2/" in line for line in made.err) == 2)
            simulator.add_agent("999")
            values["agents"].append({"work_no": "999", "guid": simulator.guid("999")})
            write(tmp_path, values)
            made.send(signal.SIGHUP)
            await simulator.wait_for(lambda: simulator.polled("999"), DEADLINE_S)
            await until(lambda: sum("reload: 1 added, 0 removed, 0 changed" in line for line in made.err) == 2)
            await stopped(made)


async def test_in_a_fleet_of_others_what_is_not_healed_ends_all(tmp_path: Path, broker: Broker) -> None:
    """With a section `cluster` the members join that fleet; what would be refused at each start ends all, with 2."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        values = settings(simulator, broker, cluster=nats.settings())
        path = write(tmp_path, values)
        other = write(tmp_path, values | {"instance": "other", "storage": {"path": "other.db"}}, "other.yaml")
        async with running(other) as member:
            await until(lambda: len(member.app._fleet.pollers) == len(AGENTS))
            async with program("run", "-c", path, "--processes", "2") as made:
                await until(lambda: len(member.app._fleet.pollers) < len(AGENTS))
                await stopped(made)
            await until(lambda: len(member.app._fleet.pollers) == len(AGENTS))
            write(tmp_path, values | {"agents": values["agents"][1:]})
            refused = await run_program("run", "-c", path, "--processes", "2")
        assert refused.process.returncode == 2
        assert "member other has another configuration" in "".join(refused.err)
        assert simulator.violations == []
