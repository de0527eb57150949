"""The requests of those who run the program: `snapshot`, `log_level`, `diagnostics`."""

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from adapter import mark
from adapter.logs import set_level
from adapter.machine import disk_below, ephemeral_ports, open_files, open_files_limits
from adapter.payloads import DiagnosticsPayload
from adapter.topics import Topics
from tests.broker_support import Broker
from tests.stage_support import Stage, staged

RETAINED = ("event", "state", "session", "availability")


@pytest.fixture(autouse=True)
def level() -> Iterator[None]:
    """Put the levels back that a test changes."""
    loggers = [logging.getLogger(name) for name in ("", "httpx", "httpcore", "paho", "aiohttp.access", "asyncio")]
    before = [each.level for each in loggers]
    yield
    for each, was in zip(loggers, before, strict=True):
        each.setLevel(was)


def counts(stage: Stage, work_nos: list[str]) -> list[int]:
    """Count what came on each retained topic of agents."""
    return [len(stage.on(f"{work_no}/{name}")) for work_no in work_nos for name in RETAINED]


async def test_a_snapshot_sends_the_whole_fleet_again(
    tmp_path: Path, shared_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`snapshot`: what is retained of every agent goes again, once, as it was, so many a second; a second one waits."""
    monkeypatch.setattr(mark, "_SLICE", 4)
    work_nos = [f"{number}" for number in range(100, 110)]
    async with (
        staged(tmp_path, shared_broker, agents=work_nos, hold_s=5.0, quiet=False) as stage,
        stage.running() as adapter,
    ):
        for work_no in work_nos:
            stage.simulator.emit_sample(work_no, "AgentState_Ready")
        for work_no in work_nos:
            await stage.wait(f"{work_no}/event", seq=1)
            await stage.wait(f"{work_no}/state", seq=1)
        await adapter.app._outbox.flushed()
        before = counts(stage, work_nos)
        last = {topic: stage.on(topic)[-1] for work_no in work_nos for topic in (f"{work_no}/state",)}
        streams = [len(stage.on(f"{work_no}/events")) for work_no in work_nos]
        began_at = asyncio.get_running_loop().time()
        await stage.send("bridge/request/snapshot", {"id": "s1"})
        begun = await stage.wait("bridge/response/snapshot", id="s1")
        await stage.send("bridge/request/snapshot", {"id": "s2"})
        refused = await stage.wait("bridge/response/snapshot", id="s2")
        await stage.peer.wait_for(lambda: counts(stage, work_nos) == [count + 1 for count in before])
        took_s = asyncio.get_running_loop().time() - began_at

        assert begun["status"] == "ok"
        assert begun["data"]["topics"] == 4 * len(work_nos) + 2  # with the roster and `info`
        assert begun["data"]["seconds"] > 0
        assert (refused["status"], refused["reason"]) == ("error", "a snapshot is under way")
        assert took_s > 40 / 4 * 0.25 - 0.5
        assert all(stage.on(topic)[-1].payload == message.payload for topic, message in last.items())
        again = stage.json(f"{work_nos[0]}/event")[-1]
        assert (again["seq"], again["replayed"]) == (1, True)
        assert [len(stage.on(f"{work_no}/events")) for work_no in work_nos] == streams
        await stage.peer.wait_for(adapter.app._operations._snapshot.done)  # type: ignore[union-attr] # it began
        await stage.send("bridge/request/snapshot", {"id": "s3"})
        assert (await stage.wait("bridge/response/snapshot", id="s3"))["status"] == "ok"


async def test_the_log_level_changes_while_it_runs(
    tmp_path: Path, shared_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """`log_level`: the new level holds at once, for `bridge/log` too; libraries stay quiet (logs, rule 1)."""
    set_level("warning")
    log = logging.getLogger("adapter.test")
    async with staged(tmp_path, shared_broker) as stage, stage.running():
        await stage.send("bridge/request/log_level", {"id": "l1", "level": "debug"})
        raised = await stage.wait("bridge/response/log_level", id="l1")
        log.debug("now to be seen")
        assert not logging.getLogger("httpx").isEnabledFor(logging.INFO)
        await stage.send("bridge/request/log_level", {"id": "l2", "level": "error"})
        lowered = await stage.wait("bridge/response/log_level", id="l2")
        log.warning("no longer to be seen")
        log.error("as ever")
        await stage.wait("bridge/log", message="as ever")

    assert (raised["status"], raised["data"]) == ("ok", {"level": "debug", "before": "warning"})
    assert lowered["data"] == {"level": "error", "before": "debug"}
    assert "now to be seen" in caplog.text
    assert "log level: debug, by request; it was warning" in caplog.text
    assert "no longer to be seen" not in caplog.text
    assert "no longer to be seen" not in [line["message"] for line in stage.json("bridge/log")]


@pytest.mark.parametrize(
    "payload",
    ["", '{"id": "b"}', '{"id": "b", "level": "loud"}', '{"level": 1}', '{"level": "debug", "x": 1}', "debug"],
)
async def test_a_bad_log_level_changes_nothing(tmp_path: Path, shared_broker: Broker, payload: str) -> None:
    """`log_level`: what is no level is an error that says what was expected, with the sender's id."""
    set_level("warning")
    async with staged(tmp_path, shared_broker) as stage, stage.running():
        await stage.send("bridge/request/log_level", payload)
        refused = await stage.wait("bridge/response/log_level")

    assert refused == {
        "id": "b" if '"b"' in payload else None,
        "status": "error",
        "reason": 'expected {"level": "...", "id": "..."} with debug, info, warning or error as level',
        "data": None,
    }
    assert logging.getLogger().level == logging.WARNING


async def test_diagnostics_tell_what_helps(tmp_path: Path, shared_broker: Broker) -> None:
    """`diagnostics`: versions, health, limits and counts, exactly as its schema says; test_canary looks for secrets."""
    async with staged(tmp_path, shared_broker, agents=["101", "102"]) as stage, stage.running() as adapter:
        await stage.polling("101")
        await stage.polling("102")
        stage.simulator.emit(
            "101", json.dumps({"eventType": "AgentEvent_Ringing", "content": {"caller": "02079460000"}}).encode()
        )
        await stage.wait("101/event", seq=1)
        stage.simulator.emit_sample("102", "AgentState_Ready")
        await stage.wait("102/state", state="idle")
        await stage.send("bridge/request/diagnostics", {"id": "d1"}, correlation=b"c")
        response = await stage.wait("bridge/response/diagnostics", id="d1")
        told = msgspec.convert(response["data"], type=DiagnosticsPayload, strict=True)

        assert stage.on("bridge/response/diagnostics")[0].correlation == b"c"
        assert told.info.agents.configured == 2
        assert told.health.events == 2
        assert sum(told.states.values()) == 2
        assert told.states["idle"] >= 1
        assert told.broker.protocol == "5"
        assert told.broker.connections == 1
        assert told.storage.writable
        assert told.storage.filesystem
        assert (told.storage.unreadable_kept, told.storage.aside_kept) == (0, 0)
        assert 10 < told.system.open_files < (told.system.open_files_limit or 10**9)
        assert {"paho-mqtt", "httpx", "msgspec", "openssl", "sqlite"} <= told.system.libraries.keys()
        assert "02079460000" not in json.dumps(response)
        assert str(adapter.path.parent) not in json.dumps(response)
        assert len(json.dumps(response)) < 8192


def test_the_machine_is_looked_at() -> None:
    """Linux tells all of it; a directory's disk is that of the innermost mount."""
    soft, hard = open_files_limits()
    assert soft is None or (hard or soft) >= soft
    assert 3 <= open_files() < 100_000
    assert 1000 < (ephemeral_ports() or 0) <= 65_535
    assert disk_below(Path("/proc/self")).filesystem == "proc"
    assert disk_below(Path("/dev/shm")).filesystem == "tmpfs"  # noqa: S108 - a mount that every Linux has
    assert disk_below(Path("/")).free_bytes > 0


def test_every_request_is_documented() -> None:
    """docs/topics.md has a line for each request."""
    from adapter.channels import REQUESTS  # noqa: PLC0415 - only here

    text = (Path(__file__).parent.parent / "docs/topics.md").read_text(encoding="utf-8")
    table = text.partition(f"### `{Topics('bridge').prefix}/request/<name>`")[2].partition("###")[0]

    assert [name for name in REQUESTS if f"| `{name}` |" not in table] == []
