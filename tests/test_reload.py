"""A reload changes what it changes, and nothing else (C7)."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from adapter.errors import CommandError, ConfigError
from adapter.simulator import SimAgent
from tests.adapter_support import Running, write
from tests.broker_support import DEADLINE_S, Broker
from tests.stage_support import Stage, staged
from tests.tcp_proxy import Proxy

AGENTS = ["101", "102", "103"]


def agents(stage: Stage, *work_nos: str, **members: object) -> list[dict[str, Any]]:
    """Make the list of agents, all with the same further members."""
    return [{"work_no": work_no, "guid": stage.simulator.guid(work_no)} | members for work_no in work_nos]


def rewrite(stage: Stage, adapter: Running, **sections: object) -> None:
    """Write another configuration to where the adapter's is."""
    write(adapter.path.parent, stage.values(**sections), adapter.path.name)


async def test_agents_are_added_removed_and_changed(tmp_path: Path, shared_broker: Broker) -> None:
    """C7: by request; the others keep their connection and their pace, and no poll is lost or doubled."""
    async with (
        staged(tmp_path, shared_broker, agents=[*AGENTS, "104"]) as stage,
        stage.running(agents=agents(stage, *AGENTS)) as adapter,
    ):
        for work_no in AGENTS:
            await stage.polling(work_no)
        kept = {poll.connection for poll in stage.simulator.polls("101")}
        changed = [agents(stage, "102", name="Amina")[0]]
        rewrite(stage, adapter, agents=[*agents(stage, "101"), *changed, *agents(stage, "104")])
        await stage.send("bridge/request/reload", {"id": "r"})
        response = await stage.wait("bridge/response/reload", id="r")
        await stage.wait("102/state", name="Amina")
        await stage.polling("104")
        count = len(stage.simulator.polls("101"))
        await stage.simulator.wait_for(lambda: len(stage.simulator.polls("101")) > count + 1)
        await stage.peer.wait_for(lambda: stage.on("103/session")[-1].payload == b"")
        await stage.peer.wait_for(lambda: stage.on("103/availability")[-1].payload == b"")
        await stage.peer.wait_for(lambda: stage.on("103/state")[-1].payload == b"")

        assert response["data"] == {"added": ["104"], "removed": ["103"], "changed": ["102"]}
        assert {poll.connection for poll in stage.simulator.polls("101")} == kept
        assert not stage.simulator.polling("103")
        info = await stage.wait("bridge/info")
        await stage.peer.wait_for(lambda: stage.json("bridge/info")[-1]["config"]["agents"] == 3)
        assert info["startedAt"] == stage.json("bridge/info")[-1]["startedAt"]
        roster = stage.json("bridge/agents/1")[-1]["agents"]
        assert [agent["workNo"] for agent in roster] == ["101", "102", "104"]


async def test_the_first_agent_with_a_guid_file_is_followed(tmp_path: Path, shared_broker: Broker) -> None:
    """C7: where there was no GUID file to look at, there is one from the reload on that brings it."""
    path = tmp_path / "guid"
    async with (
        staged(tmp_path, shared_broker, agents=["101", "102"]) as stage,
        stage.running(agents=agents(stage, "101")) as adapter,
    ):
        await stage.polling("101")
        rewrite(stage, adapter, agents=[*agents(stage, "101"), {"work_no": "102", "guid_file": str(path)}])
        await adapter.app.reload()
        await stage.wait("102/session", phase="signed_out")
        path.write_text(stage.simulator.guid("102"))

        await stage.polling("102")


async def test_a_removed_agents_event_is_cleared_behind_its_events(tmp_path: Path, shared_broker: Broker) -> None:
    """Section 3: what it left behind goes out first, then the topic is cleared, and its row is forgotten."""
    async with (
        staged(tmp_path, shared_broker, agents=AGENTS) as stage,
        stage.running(agents=agents(stage, *AGENTS)) as adapter,
    ):
        await stage.polling("103")
        for _ in range(3):
            stage.simulator.emit_sample("103", "AgentState_Ready")
        await stage.wait("103/event", seq=1)
        rewrite(stage, adapter, agents=agents(stage, "101", "102"))
        await adapter.app.reload()
        await stage.peer.wait_for(lambda: stage.on("103/event")[-1].payload == b"")

        assert [each.payload == b"" for each in stage.on("103/event")].index(True) == len(stage.on("103/event")) - 1
        assert "103" not in adapter.app._fleet.pollers
        # It may come back, and begins anew.
        rewrite(stage, adapter, agents=agents(stage, *AGENTS))
        await adapter.app.reload()
        stage.simulator.emit_sample("103", "AgentState_Ready")
        await stage.peer.wait_for(lambda: stage.json("103/event")[-1]["seq"] in (1, 2, 3))


async def test_a_removed_agents_backlog_goes_out_before_it_is_cleared(tmp_path: Path, broker: Broker) -> None:
    """Section 3: removed while the broker is away, its events still go out, and its topic is empty at the end."""
    async with (
        staged(tmp_path, broker, agents=AGENTS) as stage,
        Proxy(broker.ports["mqtt"]) as proxy,
        stage.running(agents=agents(stage, "101", "103"), mqtt={"url": proxy.url}) as adapter,
    ):
        await stage.polling("103")
        broker.stop()
        for _ in range(3):
            stage.simulator.emit_sample("103", "AgentState_Ready")
        await stage.simulator.wait_for(lambda: adapter.app._outbox.depth == 3)
        rewrite(stage, adapter, agents=agents(stage, "101"), mqtt={"url": proxy.url})
        await adapter.app.reload()
        await proxy.reopen(broker, stage.peer)
        await stage.wait("103/event", seq=3)
        await stage.peer.wait_for(lambda: stage.on("103/event")[-1].payload == b"")

        assert [event["seq"] for event in stage.json("103/event")] == [1, 2, 3]


async def test_an_invalid_file_changes_nothing(tmp_path: Path, shared_broker: Broker) -> None:
    """C7: it says why, by response and log, and polling goes on."""
    async with staged(tmp_path, shared_broker) as stage, stage.running() as adapter:
        await stage.polling("101")
        adapter.path.write_text("agents: [}")
        with pytest.raises(ConfigError):
            await adapter.app.reload()
        adapter.path.unlink()
        await stage.send("bridge/request/reload", b"")
        response = await stage.wait("bridge/response/reload")
        adapter.app.reload_soon()
        await stage.peer.wait_for(
            lambda: [each for each in stage.json("bridge/log") if each["message"].startswith("reload: ")]
        )
        count = len(stage.simulator.polls("101"))
        await stage.simulator.wait_for(lambda: len(stage.simulator.polls("101")) > count + 1)

        assert response["status"] == "error"
        assert "config.yaml" in response["reason"]


async def test_what_needs_a_restart_is_named(tmp_path: Path, shared_broker: Broker) -> None:
    """C7: keys outside `agents` and `log` are refused by name; agents in the same file are not changed either."""
    async with (
        staged(tmp_path, shared_broker, agents=AGENTS) as stage,
        stage.running(agents=agents(stage, "101")) as adapter,
    ):
        await stage.polling("101")
        rewrite(
            stage,
            adapter,
            agents=agents(stage, "101", "102"),
            commands={"bridge": False},
            mqtt={"keepalive": 30},
            storage={"path": "outbox.db", "max_mb": 77},
        )
        with pytest.raises(CommandError) as refused:
            await adapter.app.reload()

        assert refused.value.reason == (
            "a restart is needed for mqtt.keepalive, storage.max_mb, commands.bridge; nothing was changed"
        )
        assert list(adapter.app._fleet.pollers) == ["101"]


async def test_a_command_for_an_agent_that_restarts_is_kept(tmp_path: Path, shared_broker: Broker) -> None:
    """C3, C7: one that waits, and one that comes while its last poll ends, go with the new poller."""
    async with (
        staged(tmp_path, shared_broker, agents=AGENTS, hold_s=1.0) as stage,
        stage.running(agents=agents(stage, "101")) as adapter,
    ):
        await stage.polling("101")
        await stage.send("101/calldata/set", {"calldata": "before", "id": "before"})
        rewrite(stage, adapter, agents=agents(stage, "101", name="N"))
        reloading = asyncio.create_task(adapter.app.reload())
        await stage.send("101/calldata/set", {"calldata": "meanwhile", "id": "meanwhile"})
        await reloading
        await stage.wait("101/calldata/result", id="meanwhile")

        assert [each["status"] for each in stage.json("101/calldata/result")] == ["applied", "applied"]
        assert [value for _, value in stage.simulator.calldata("101")] == ["before", "meanwhile"]


async def test_a_stop_during_a_reload_ends(tmp_path: Path, shared_broker: Broker) -> None:
    """D7: nothing is started again once the program stops, and both end."""
    async with staged(tmp_path, shared_broker, agents=AGENTS, hold_s=1.0) as stage:
        async with stage.running(agents=agents(stage, "101", "102")) as adapter:
            await stage.polling("101")
            await stage.polling("102")
            rewrite(stage, adapter, agents=agents(stage, "101", "103", name="N"))
            reloading = asyncio.create_task(adapter.app.reload())
            await asyncio.to_thread(_read, adapter.path)
            while "103" not in adapter.app._fleet.pollers and not reloading.done():  # noqa: ASYNC110 - no event for it
                await asyncio.sleep(0.005)
            assert await adapter.stop() == "stopped"
            await asyncio.wait_for(reloading, DEADLINE_S)
            with pytest.raises(CommandError, match="stopping"):
                await adapter.app.reload()
        assert not any(stage.simulator.polling(work_no) for work_no in AGENTS)


async def test_a_removed_agent_is_signed_out_where_configured(tmp_path: Path, shared_broker: Broker) -> None:
    """D7's `sign_out_at_exit` also holds for an agent that leaves the configuration."""
    sim = [SimAgent(work_no="101"), SimAgent(work_no="102", signed_in=False)]
    sign_in = {"password": "pw-102", "phone": "8102", "sign_out_at_exit": True}
    async with staged(tmp_path, shared_broker, agents=sim) as stage:
        both = [*agents(stage, "101"), {"work_no": "102", "sign_in": sign_in}]
        async with stage.running(agents=both) as adapter:
            await stage.polling("102")
            rewrite(stage, adapter, agents=agents(stage, "101"))
            await adapter.app.reload()

            assert not stage.simulator.signed_in("102")
            assert stage.simulator.signed_in("101")


async def test_the_log_level_is_reloaded(tmp_path: Path, shared_broker: Broker) -> None:
    """C7: `log` is one of the sections that need no restart."""
    import logging  # noqa: PLC0415 - only here

    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    async with staged(tmp_path, shared_broker) as stage:
        try:
            async with stage.running() as adapter:
                await stage.polling("101")
                rewrite(stage, adapter, log={"level": "debug", "format": "json"})
                assert await adapter.app.reload() == {"added": [], "removed": [], "changed": []}
                assert root.level == logging.DEBUG
                await stage.peer.wait_for(lambda: stage.json("bridge/info")[-1]["config"]["log"]["level"] == "debug")
        finally:
            for handler in [each for each in root.handlers if each not in before]:
                root.removeHandler(handler)
            root.setLevel(level)


async def test_sighup_reloads_and_sigterm_ends(tmp_path: Path, shared_broker: Broker) -> None:
    """C7, D7: in a process of its own; the exit code is 0."""
    async with staged(tmp_path, shared_broker, agents=AGENTS) as stage:
        path = write(tmp_path, stage.values(agents=agents(stage, "101")))
        program = (
            "import asyncio, sys\nfrom pathlib import Path\nfrom adapter import app\nfrom adapter.config import load\n"
            "asyncio.run(app.run(load(Path(sys.argv[1]))))\n"
        )
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(path))
        try:
            await stage.polling("101")
            write(tmp_path, stage.values(agents=agents(stage, "101", "102")))
            process.send_signal(signal.SIGHUP)
            await stage.polling("102")
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), DEADLINE_S) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
                await process.wait()
        assert stage.on("bridge/availability")[-1].payload == b"offline"


def _read(path: Path) -> str:
    return path.read_text()
