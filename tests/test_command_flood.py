"""Floods of commands and requests: bounded in every direction, and no poll waits for them (C5, P4, D4)."""

import asyncio
import contextlib
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from functools import partial
from pathlib import Path

import pytest

from adapter import commands as commands_module
from adapter.agent.presence import Timing
from adapter.command import settled
from adapter.commands import Commands
from adapter.intake import PER_SECOND, Flood, Line
from adapter.mqtt import Received
from adapter.store.outbox import open_outbox
from adapter.store.records import CommandRecord
from tests.broker_support import DEADLINE_S, HOST, Broker
from tests.stage_support import Stage, staged

pytestmark = pytest.mark.harm

_CONNECT = b"\x10\x11\x00\x04MQTT\x04\x02\x00\x00\x00\x05flood"
_MANY = 3000


def packet(topic: str, payload: bytes, qos: int, number: int) -> bytes:
    """Make a PUBLISH packet of MQTT 3.1.1."""
    name = topic.encode()
    identifier = (number % 65_535 + 1).to_bytes(2, "big") if qos else b""
    rest = len(name).to_bytes(2, "big") + name + identifier + payload
    length, left = bytearray(), len(rest)
    while left > 127:
        length.append(left % 128 | 128)
        left //= 128
    return bytes([0x30 | qos << 1, *length, left]) + rest


async def pour(broker: Broker, packets: Iterable[bytes]) -> None:
    """Send packets as one client, as fast as the broker takes them; return when it has them all."""
    reader, writer = await asyncio.open_connection(HOST, broker.ports["mqtt"])
    writer.write(_CONNECT)
    await reader.readexactly(4)
    everything = [*packets]
    forgetting = asyncio.create_task(_forget(reader))
    for start in range(0, len(everything), 200):
        writer.write(b"".join(everything[start : start + 200]))
        await writer.drain()
    writer.write(b"\xe0\x00")  # DISCONNECT: what comes before it has been read when the broker hangs up
    await asyncio.wait_for(forgetting, DEADLINE_S)
    writer.close()


async def _forget(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(65_536):
            pass


class Watch:
    """Looks again and again at what must stay small while a flood lasts."""

    def __init__(self, commands: Commands) -> None:
        self.turns = 0
        self.most_tasks = 0
        self.most_bytes = 0
        self._line = commands._line
        self._task = asyncio.create_task(self._look())

    async def _look(self) -> None:
        while True:
            self.turns += 1
            self.most_tasks = max(self.most_tasks, len(asyncio.all_tasks()))
            self.most_bytes = max(self.most_bytes, self._line._bytes)
            await asyncio.sleep(0.01)

    def end(self) -> None:
        """Look no more."""
        self._task.cancel()


async def test_a_flood_leaves_the_polls_alone(tmp_path: Path, shared_broker: Broker) -> None:
    """C5, P4: 3,000 messages at once, to one agent, to all, to none, valid and not, with requests in between."""
    agents = [str(number) for number in range(101, 121)]
    async with staged(tmp_path, shared_broker, agents=agents) as stage, stage.running() as adapter:
        for agent in agents:
            await stage.polling(agent)
        before = {agent: len(stage.simulator.polls(agent)) for agent in agents}
        big = b'{"calldata": "x"' + b" " * 16_000 + b"}"
        kinds = [
            ("101/calldata/set", b"value", 0),
            ("%s/calldata/set", b'{"calldata": "v"}', 1),
            ("%s/session/set", b'{"action": "sign_in"}', 0),
            ("%s/calldata/set", b"a\nb", 1),
            ("x%s/calldata/set", b"value", 1),
            ("bridge/request/agents", b"{}", 0),
            ("bridge/request/reload", b"[]", 1),
        ]
        packets = []
        for number in range(_MANY):
            topic, payload, qos = kinds[number % len(kinds)] if number % 100 else ("%s/calldata/set", big, 0)
            name = topic.replace("%s", agents[number % len(agents)])
            packets.append(packet(stage.topic(name), payload, qos, number))
        counters, watch = adapter.app._shared.counters, Watch(adapter.app._commands)
        began_at = time.monotonic()
        await pour(shared_broker, packets)
        expected = sum(b"/request/" not in each[:80] for each in packets)
        await stage.simulator.wait_for(lambda: counters.commands == expected, 3 * DEADLINE_S)
        await stage.send("120/session/set", {"action": "fence", "id": "fence"})
        await asyncio.sleep(1.0)  # for the second in which everything is dropped to end
        await stage.send("120/session/set", {"action": "fence", "id": "after"})
        await stage.wait("120/session/result", id="after")
        await stage.simulator.wait_for(lambda: adapter.app._outbox.depth == 0, DEADLINE_S)
        lasted_s = time.monotonic() - began_at
        watch.end()

        answered = Counter(each.topic.removeprefix(stage.prefix) for each in stage.peer.messages)
        for agent in agents:
            assert answered[f"/{agent}/calldata/result"] + answered[f"/{agent}/session/result"] <= 20 * (lasted_s + 2)
        responses = answered["/bridge/response/agents"] + answered["/bridge/response/reload"]
        assert 0 < responses <= 20 * (lasted_s + 2)
        assert counters.dropped_commands > 500
        assert 1 <= len(_summaries(stage)) <= lasted_s + 2
        assert watch.most_bytes <= 8 * 1024 * 1024
        assert watch.most_tasks < 3 * len(agents) + 100
        # What a busy machine does to times is not asserted here (`python -m bench.flood`), only that all are polled.
        await stage.simulator.wait_for(
            lambda: all(len(stage.simulator.polls(agent)) > before[agent] for agent in agents), DEADLINE_S
        )


async def test_a_line_does_few_things_at_once_and_rests() -> None:
    """C5: however much comes, it is done in order, at most `batch` at once, and the loop turns in between."""
    now, most, done, began = 0, 0, list[int](), list[int]()

    async def work(number: int) -> None:
        nonlocal now, most
        began.append(number)
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        done.append(number)

    line = Line("test", batch=7, rest_s=0.001)
    assert all(line.put(10, partial(work, number)) for number in range(100))
    for _ in range(10):
        await asyncio.sleep(0)
    assert 0 < len(began) <= 7
    await line.close(DEADLINE_S)

    assert done == [*range(100)]
    assert most == 7
    assert line._bytes == 0


async def test_a_line_is_bounded_and_ends() -> None:
    """C5: what exceeds 8 MiB is refused; closing waits for no more than it is told, and ends what is under way."""
    never = asyncio.Event()

    async def work() -> None:
        await never.wait()

    line = Line("test", batch=1, rest_s=0.0)
    assert sum(line.put(100_000, work) for _ in range(200)) in (82, 83)
    assert not line.put(100_000, work)
    assert line.put(1, work)
    await line.close(0.0)
    assert [task for task in asyncio.all_tasks() if task.get_name() == "test"] == []


async def test_commands_wait_for_the_agents_to_be_there(tmp_path: Path, shared_broker: Broker) -> None:
    """C5: what comes before the agents are started is not told that they are unknown, and goes behind what waited."""
    async with staged(tmp_path, shared_broker) as stage, stage.running() as adapter:
        await stage.polling("101")
        commands = Commands(adapter.app._shared, adapter.app._fleet.pollers, Flood())
        acknowledged: list[str] = []
        received = Received(
            topic="t", payload=b"early", retain=False, qos=1, mid=1, correlation=None, response_topic=None
        )
        commands.receive(received, "101", "calldata", lambda: acknowledged.append("early"))
        waited = CommandRecord(work_no="101", kind="calldata", id="waited", body=b"waited", received_at=time.time())
        await commands.restore([waited])
        await asyncio.sleep(0)
        assert acknowledged == []
        commands.begin()
        await stage.wait_count("101/calldata/result", 2)
        await commands.close()

        assert acknowledged == ["early"]
        assert [value for _, value in stage.simulator.calldata("101")] == ["waited", "early"]


@contextlib.asynccontextmanager
async def no_room(path: Path, table: str) -> AsyncIterator[None]:
    """Let nothing be stored in one table of a database while the context lasts, as if the disk were full."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"CREATE TRIGGER full BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'full'); END")
        try:
            yield
        finally:
            other.execute("DROP TRIGGER full")


@pytest.mark.parametrize(
    ("kind", "refused", "good"),
    [("calldata", {"calldata": "a\nb"}, {"calldata": "x"}), ("session", {"action": "dance"}, {"action": "sign_out"})],
)
async def test_what_was_refused_is_never_executed_later(
    tmp_path: Path, shared_broker: Broker, kind: str, refused: dict[str, str], good: dict[str, str]
) -> None:
    """C1, C3: a kill between a refusal and its result leaves nothing that the next run could take for a command."""
    path, saved = tmp_path / "outbox.db", tmp_path / "saved.db"
    async with staged(tmp_path, shared_broker, quiet=False) as stage:
        async with stage.running(timing=Timing(store_again_s=0.05)):
            await stage.polling("101")
            async with no_room(path, "entry"):
                await stage.send(f"101/{kind}/set", {**refused, "id": "c"})
                await stage.simulator.wait_for(lambda: _rows(tmp_path, "SELECT id FROM command"))
                # As a kill would leave it.
                with (
                    contextlib.closing(sqlite3.connect(path)) as now,
                    contextlib.closing(sqlite3.connect(saved)) as copy,
                ):
                    now.backup(copy)
                    copy.execute("DROP TRIGGER full")
        path.unlink()
        saved.rename(path)
        before = len(stage.on(f"101/{kind}/result"))
        async with stage.running():
            await stage.polling("101")
            await stage.send(f"101/{kind}/set", {**good, "id": "c"})
            await stage.wait_count(f"101/{kind}/result", before + 1)

        last = stage.json(f"101/{kind}/result")[-1]
        assert (last["status"], last["retcode"]) == ("rejected", None)
        assert stage.simulator.calldata("101") == []


async def test_nothing_piles_up_while_nothing_can_be_stored(tmp_path: Path, shared_broker: Broker) -> None:
    """D4: commands, repeats and requests wait in their bounded line, and are answered once there is room."""
    timing = Timing(store_again_s=0.05)
    async with staged(tmp_path, shared_broker, agents=["101", "102"], quiet=False) as stage:
        async with stage.running(timing=timing) as adapter:
            await stage.polling("101")
            await stage.send("101/calldata/set", {"calldata": 1, "id": "first"})
            await stage.wait("101/calldata/result", id="first")
            async with no_room(tmp_path / "outbox.db", "entry"):
                for number in range(15):
                    await stage.send("101/calldata/set", {"calldata": 1, "id": "first"}, qos=0)
                    await stage.send("102/calldata/set", {"calldata": 1, "id": f"n{number}"}, qos=0)
                    await stage.send("bridge/request/agents", {"id": f"r{number}"})
                outage = adapter.app._shared.storage_outage
                await stage.simulator.wait_for(lambda: {"commands", "requests"} <= outage._suffering)
                assert adapter.app._outbox._insisting == set()
                assert len(adapter.app._commands._line._waiting) <= 30
                assert len(adapter.app._bridge._line._waiting) <= 15
            await stage.wait_count("101/calldata/result", 16)
            await stage.wait_count("102/calldata/result", 15)
            await stage.wait_count("bridge/response/agents", 15)
            await stage.simulator.wait_for(lambda: not {"commands", "requests"} & outage._suffering)

        assert len({each.payload for each in stage.on("101/calldata/result")}) == 1
        assert [each["id"] for each in stage.json("bridge/response/agents")] == [f"r{number}" for number in range(15)]


async def test_as_many_results_are_remembered_as_there_is_room_for(tmp_path: Path) -> None:
    """C4: those over an hour old go, and the oldest beyond a quarter of the storage; what waits stays."""
    async with open_outbox(tmp_path / "outbox.db", 64) as outbox:
        pending = CommandRecord(work_no="1", kind="calldata", id="pending", body=b"x", received_at=1.0)
        assert await outbox.admit(pending) is None
        commands = [
            CommandRecord(work_no="1", kind="calldata", id=f"c{number}", body=b"x", received_at=1.8e9)
            for number in range(2500)
        ]
        await asyncio.gather(*(outbox.admit(settled(command, status="rejected")) for command in commands))
        await outbox.forget_commands(0.0, keep=300)
        found = await asyncio.gather(*(outbox.admit(command) for command in commands))
        kept = [each for each in found if each is not None]
        assert 290 <= len(kept) <= 301  # some have the same time to the microsecond
        assert {each.id for each in kept} <= {f"c{number}" for number in range(2190, 2500)}
        await outbox.forget_commands(time.time() + 1, keep=300)
        assert await outbox.admit(commands[-1]) is None
        assert await outbox.admit(pending) == pending


async def test_made_up_ids_do_not_fill_the_storage(
    tmp_path: Path, shared_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C4, D4: the running program forgets as it goes, not only once a minute."""
    monkeypatch.setattr(commands_module, "_FORGET_EVERY", 10)
    monkeypatch.setattr(commands_module, "_REMEMBERED_PER_MB", 1)
    agents = ["101", "102", "103", "104"]
    async with staged(tmp_path, shared_broker, agents=agents) as stage:
        async with stage.running(storage={"path": "outbox.db", "max_mb": 8}):
            await stage.polling("101")
            for number in range(60):
                await stage.send(f"{agents[number % 4]}/calldata/set", {"calldata": 1, "id": f"made-up-{number}"})
            for agent in agents:
                await stage.wait_count(f"{agent}/calldata/result", 15)
            await stage.send("x" * 65 + "/calldata/set", {"calldata": "x", "id": "never-an-agent"})
            await stage.wait("x" * 65 + "/calldata/result", reason="unknown agent")
            ids = {identifier for (identifier,) in _rows(tmp_path, "SELECT id FROM command")}

        assert len(ids) <= 8 + 10
        assert "never-an-agent" not in ids
        assert "made-up-59" in ids


async def test_a_command_keeps_little_once_it_has_its_result(tmp_path: Path, shared_broker: Broker) -> None:
    """C4, C6: neither call data nor correlation data stay for the hour; too much of the latter is refused."""
    async with staged(tmp_path, shared_broker) as stage, stage.running():
        await stage.polling("101")
        await stage.send("101/calldata/set", {"calldata": "kept-no-longer", "id": "a"}, correlation=b"C" * 4000)
        await stage.send("101/calldata/set", {"calldata": "x", "id": "b"}, correlation=b"C" * 65_000)
        await stage.wait("101/calldata/result", id="a", status="applied")
        refused = await stage.wait("101/calldata/result", id="b")
        await stage.simulator.wait_for(lambda: not _rows(tmp_path, "SELECT * FROM entry"))
        rows = _rows(tmp_path, "SELECT * FROM command")

        assert refused["reason"] == "correlation data and response topic: 65000 bytes, at most 4096 are allowed"
        lengths = {each.correlation and len(each.correlation) for each in stage.on("101/calldata/result")}
        assert lengths == {4000, 65_000}
        assert len(rows) == 2
        assert sum(len(value) for row in rows for value in row if isinstance(value, bytes | str)) < 1000


async def test_a_packet_without_measure_is_not_taken_in(tmp_path: Path, shared_broker: Broker) -> None:
    """C1: a message of 5 MB is left with the broker, one of 1 MB is answered; what follows them is done as ever."""
    async with staged(tmp_path, shared_broker) as stage, stage.running() as adapter:
        await stage.polling("101")
        for qos in (0, 1):
            await stage.send("101/calldata/set", b"x" * 5_000_000, qos=qos)
        await stage.send("101/calldata/set", b"x" * 1_000_000)
        await stage.send("101/calldata/set", {"calldata": "after", "id": "after"})
        await stage.wait("101/calldata/result", id="after", status="applied")

        assert adapter.app._shared.counters.commands == 2
        assert adapter.app._shared.counters.broker_connections == 1
        assert [each["reason"] for each in stage.json("101/calldata/result")] == ["over 16384 bytes", None]


async def test_reloads_wait_for_each_other_in_a_line(tmp_path: Path, shared_broker: Broker) -> None:
    """C7: a flood of them is one at a time, and no more than the limit; a stop still stops."""
    async with staged(tmp_path, shared_broker) as stage, stage.running() as adapter:
        await stage.polling("101")
        await asyncio.gather(*(stage.send("bridge/request/reload", {"id": f"r{n}"}) for n in range(60)))
        await stage.wait_count("bridge/response/reload", PER_SECOND)
        tasks = [task.get_name() for task in asyncio.all_tasks()]
        await stage.peer.wait_for(lambda: _summaries(stage))  # the second of the flood is over
        await stage.send("bridge/request/reload", b"{")
        await stage.wait("bridge/response/reload", status="error")

        assert tasks.count("requests") <= 1
        assert {each["status"] for each in stage.json("bridge/response/reload")} == {"ok", "error"}
        assert await adapter.stop() == "stopped"


async def test_a_refused_request_is_logged_once_in_a_row(tmp_path: Path, shared_broker: Broker) -> None:
    """Section 3: whoever asks is told each time; the log is not there to be filled by strangers."""
    async with staged(tmp_path, shared_broker) as stage, stage.running():
        await stage.polling("101")
        for number in range(10):
            await stage.send("bridge/request/dance", {"id": f"r{number}"})
        await stage.wait_count("bridge/response/unknown", 10)
        await stage.send("bridge/request/agents", b"x" * 2000)
        assert (await stage.wait("bridge/response/agents"))["reason"] == "over 1024 bytes"
        await stage.peer.wait_for(lambda: len(_refusals(stage)) == 2)


def _refusals(stage: Stage) -> list[str]:
    return [each["message"] for each in stage.json("bridge/log") if each["message"].startswith("request ")]


def _summaries(stage: Stage) -> list[str]:
    return [each["message"] for each in stage.json("bridge/log") if "dropped" in each["message"]]


def _rows(directory: Path, statement: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(directory / "outbox.db")) as database:
        return database.execute(statement).fetchall()
