"""What `run --processes`, or `run` alone, finds that an earlier start has left: it goes on from there (issue 6)."""

import asyncio
import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapter.cluster.moving_in import move_in
from adapter.cluster.processes import bring_back
from adapter.cluster.processes.ending import engine_of
from adapter.cluster.processes.server import EMBEDDED, embedded
from adapter.config import load
from adapter.store.outbox import Outbox, open_as, open_outbox
from adapter.store.records import Change
from tests.adapter_support import decoded, settings, write
from tests.broker_support import HOST, Broker, Peer, answers, free_ports
from tests.cli_support import COMMAND, invoke_beside, program, reading, run_program
from tests.cluster_support import servers
from tests.storage_support import fill, small_disk
from tests.tcp_proxy import Proxy
from tests.test_moving import KilledError, event, record
from tests.test_processes import AGENTS, DEADLINE_S, Runs, simulated, stopped

UNREADABLE = "INSERT INTO unreadable (at, work_no, reason, size_bytes, head) VALUES (0, '101', 'r', 1, x'00')"


def emptied(database: Path) -> None:
    """Leave a database as a member does that was ended before it had made its tables."""
    for part in database.parent.glob(f"{database.name}*"):
        part.unlink()
    database.touch()


async def test_what_members_kept_for_a_person_comes_back(tmp_path: Path, broker: Broker) -> None:
    """One that was ended at its very start, and one whose database is damaged, are in nobody's way (D6)."""
    async with simulated() as simulator:
        path = write(tmp_path, settings(simulator, broker))
        fleet = tmp_path / "ccgateway2mqtt.db.fleet"
        runs = Runs(simulator, path)
        async with runs.of(2) as made:
            await stopped(made)
        with closing(sqlite3.connect(fleet / "1.db")) as connection, connection:
            connection.execute(UNREADABLE)
        emptied(fleet / "2.db")
        (fleet / "3.db").write_bytes(b"no database" * 1000)
        async with runs.of(None) as made:
            assert not fleet.exists()
            await stopped(made)
    async with open_outbox(tmp_path / "ccgateway2mqtt.db", 100) as outbox:
        assert await outbox.kept_for_a_person() == (1, 0)
    (aside,) = tmp_path.glob("ccgateway2mqtt.db.damaged-3-*")  # noqa: ASYNC240 - one look at a directory of the test's
    assert aside.read_bytes().startswith(b"no database")


async def test_a_first_start_that_was_ended_halfway_strands_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended between two agents, a program alone finds both again."""
    agents = [{"work_no": work_no, "guid": "first"} for work_no in ("101", "102")]
    gateway, mqtt = {"url": "https://gateway.example/agentgateway"}, {"topic_prefix": "site/agents"}
    config = load(write(tmp_path, {"gateway": gateway, "mqtt": mqtt, "agents": agents}))
    waiting = [event("101", 1), event("102", 1)]
    async with open_as(Outbox, config.storage.path, 100) as outbox:
        for each, work_no in zip(waiting, ("101", "102"), strict=True):
            await outbox.commit(Change(agent=record(work_no, 1), outgoing=[each]))
        config.storage.fleet.mkdir(mode=0o700)
        async with embedded(config) as told:
            own = replace(config, cluster=told.section())
            async with engine_of(own) as (engine, codec):
                append = engine.append

                async def killed(subject: str, *args: Any, **members: Any) -> int:  # noqa: ANN401 - what `append` takes
                    if subject == engine.journal("102"):
                        raise KilledError
                    return await append(subject, *args, **members)

                monkeypatch.setattr(engine, "append", killed)
                with pytest.raises(KilledError):
                    await move_in(outbox, own, engine, codec, EMBEDDED)
    await bring_back(config)

    assert not config.storage.fleet.exists()
    async with open_outbox(config.storage.path, 100) as outbox:
        assert [entry.message for entry in await outbox.next(10)] == waiting
        assert outbox.agents == {"101": record("101", 1), "102": record("102", 1)}


async def test_a_server_that_cannot_start_leaves_one_process_as_it_was(tmp_path: Path, broker: Broker) -> None:
    """Who tries `--processes` where it does not work goes on with one process; nothing has moved yet."""
    async with simulated() as simulator:
        path = write(tmp_path, settings(simulator, broker))
        store = tmp_path / "ccgateway2mqtt.db.fleet" / "nats" / "store"
        store.parent.mkdir(parents=True)
        store.touch()
        refused = await run_program("run", "-c", path, "--processes", "2")
        assert refused.process.returncode == 1
        assert refused.err[-1].startswith("nats-server ended at its start: ")
        async with Runs(simulator, path).of(None) as made:
            await stopped(made)


async def test_a_fleet_that_was_taken_away_is_not_begun_anew(tmp_path: Path, broker: Broker) -> None:
    """Without what the members had, agents would be polled with GUIDs of long ago: it is refused, with what to do."""
    async with simulated() as simulator:
        path = write(tmp_path, settings(simulator, broker))
        fleet = tmp_path / "ccgateway2mqtt.db.fleet"
        async with Runs(simulator, path).of(1) as made:
            await stopped(made)
        shutil.rmtree(fleet)
        for options in (("--processes", "1"), ()):
            refused = await run_program("run", "-c", path, *options)
            assert refused.process.returncode == 2
            assert fleet.name in refused.err[-1]
            assert not fleet.exists()


async def test_a_member_that_cannot_start_keeps_no_agents_from_the_others(tmp_path: Path, broker: Broker) -> None:
    """With its port in use it is tried again and again; the other one has all agents meanwhile."""
    (port,) = [port for port in free_ports(20) if not answers(port + 1)][:1]
    async with simulated() as simulator, await asyncio.start_server(lambda *_: None, HOST, port + 1):
        path = write(tmp_path, settings(simulator, broker, http={"listen": f"{HOST}:{port}"}))
        async with program("run", "-c", path, "--processes", "2") as made:
            await made.line(lambda line: "member main-2 ended with 1; begins again in" in line, DEADLINE_S)
            status = await invoke_beside("cluster", "status", "-c", path, "--json")
            assert [each["name"] for each in json.loads(status.stdout)["members"]] == ["main-1"]


async def test_a_disk_that_was_full_is_written_again(tmp_path: Path, broker: Broker) -> None:
    """D4: with room the server is started again, which would not store by itself any more, and nothing is lost."""
    async with simulated() as simulator, Proxy(broker.ports["mqtt"]) as proxy:
        disk = tmp_path / "disk"
        prefix = small_disk("4m", disk)
        values = settings(simulator, broker, storage={"path": str(disk / "a.db")}, mqtt={"url": proxy.url})
        command = [*prefix, *COMMAND, "run", "-c", str(write(tmp_path, values)), "--processes", "2"]
        proxy.closed = True
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        with Peer(broker, ["agents/#"]) as peer:
            async with reading(process) as made:
                await simulator.wait_for(lambda: all(simulator.polled(work_no) for work_no in AGENTS), DEADLINE_S)
                ballast = fill(Path(f"/proc/{process.pid}/root{disk}"))
                for number in range(10):
                    simulator.emit("101", {"eventType": "Big", "workNo": "101", "content": [number, "x" * 4000]})
                await made.line(lambda line: "nats-server could not store: " in line, DEADLINE_S)
                ballast.unlink()
                await simulator.wait_for(lambda: simulator.drained("101"), DEADLINE_S)
                proxy.closed = False
                await peer.wait_for(
                    lambda: len({event["id"] for event in decoded(peer.on("agents/101/events"))}) == 10, DEADLINE_S
                )
                await stopped(made)
        numbers = {event["id"]: (event["seq"], event["content"][0]) for event in decoded(peer.on("agents/101/events"))}
        assert list(numbers.values()) == [(number + 1, number) for number in range(10)]


async def test_from_a_fleet_of_others_to_an_embedded_one(tmp_path: Path, broker: Broker) -> None:
    """After `cluster leave` the members' own databases are of a fleet that is no more: that stops nobody."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        values = settings(simulator, broker)
        path = write(tmp_path, values | {"cluster": nats.settings()})
        runs = Runs(simulator, path)
        async with runs.of(2) as made:
            await stopped(made)
        left = await invoke_beside("cluster", "leave", "-c", path)
        assert left.exit_code == 0, left.stderr
        write(tmp_path, values)
        async with runs.of(2) as made:
            await stopped(made)
        async with runs.of(None) as made:
            await stopped(made)
        assert simulator.violations == []
