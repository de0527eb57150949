"""What is counted: the program as its users run it, and the least that Python needs to do the same for one agent.

`python -m bench.instructions.work GATEWAY_PORT CA_FILE BROKER_PORT DIRECTORY` does each of `JOBS` in a fork of its own,
so that all of them begin alike, and prints which process did which.

Rule of this file: the bare loops are the measure, so they stay as they are.
"""

import asyncio
import gc
import json
import os
import signal
import socket
import sqlite3
import ssl
import struct
import sys
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from adapter import app
from adapter.config import Config, load
from bench.instructions.peer import SIGNED_OUT
from bench.support import HOST

COUNTS = {"idle": 150, "event": 40}
"""How often each kind of job is done: once so often and once twice."""

PAUSE_S = {"idle": 0.002, "event": 0.1}
"""The pause between polls, far below P4's for idle ones; with events long enough for each to be out and deleted before
the next comes, so that each has its own transactions."""

_HOLD_S = 60.0
"""Longer than a run: what the program does beside its polls begins after it."""
_EARLY_S = 0.005
"""What the program adds to a pause."""
_READ_BYTES = 65536
_CONNECT, _PUBLISH = 0x10, 0x32
_ACK_BYTES = 4


class Arguments:
    """Where the others are."""

    def __init__(self, gateway_port: str, ca_file: str, broker_port: str, directory: str) -> None:
        self.gateway_port = int(gateway_port)
        self.ca_file = Path(ca_file)
        self.broker_port = int(broker_port)
        self.directory = Path(directory)

    @staticmethod
    def path(kind: str, count: int) -> str:
        """Give the path at which the gateway knows this process."""
        return f"/{os.getpid()}/{kind}/{count}"


# The program.


def _config(given: Arguments, kind: str, count: int) -> Config:
    name = f"{kind}-{count}"
    path = given.directory / f"{name}.yaml"
    settings = {
        "instance": name,
        "gateway": {
            "url": f"https://{HOST}:{given.gateway_port}{given.path(kind, count)}",
            "ca_file": str(given.ca_file),
            "hold": _HOLD_S,
            "timeout": 2 * _HOLD_S,
        },
        "mqtt": {"url": f"mqtt://{HOST}:{given.broker_port}", "topic_prefix": name},
        "storage": {"path": f"{name}.db"},
        "agents": [{"work_no": "101", "guid": "guid-of-the-agent"}],
        "log": {"level": os.environ.get("LL", "error")},
    }
    path.write_text(yaml.safe_dump(settings))
    config = load(path)
    return replace(config, gateway=replace(config.gateway, interval_s=(PAUSE_S[kind], PAUSE_S[kind])))


async def program(given: Arguments, kind: str, count: int) -> None:
    """Run the program until the gateway has had its polls."""
    await app.run(_config(given, kind, count))


# The least.


class _Line:
    """HTTPS on a socket that asyncio watches, with TLS in memory."""

    def __init__(self, given: Arguments, path: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = socket.create_connection((HOST, given.gateway_port))
        self._socket.settimeout(0)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=given.ca_file)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=HOST)
        self._request = f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nGuid: guid-of-the-agent\r\n\r\n".encode()
        self._arrived: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._socket, self._readable)

    async def connect(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._socket.send(self._outgoing.read())
                await self._more()
            else:
                self._socket.send(self._outgoing.read())
                return

    async def poll(self) -> Any:  # noqa: ANN401 - any JSON
        self._tls.write(self._request)
        self._socket.send(self._outgoing.read())
        answer = b""
        while True:
            await self._more()
            try:
                answer += self._tls.read(_READ_BYTES)
            except ssl.SSLWantReadError:
                continue
            head, _, body = answer.partition(b"\r\n\r\n")
            if len(body) == int(head.rpartition(b" ")[2]):
                return json.loads(body)

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()

    async def _more(self) -> None:
        self._arrived = self._loop.create_future()
        await self._arrived

    def _readable(self) -> None:
        self._incoming.write(self._socket.recv(_READ_BYTES))
        if not self._arrived.done():
            self._arrived.set_result(None)


class _Broker:
    """MQTT 3.1.1, QoS 1, as few bytes as it takes. It blocks: how often a loop turns meanwhile would be chance."""

    def __init__(self, given: Arguments) -> None:
        self._socket = socket.create_connection((HOST, given.broker_port))
        client_id = f"bare-{os.getpid()}".encode()
        connect = b"\x00\x04MQTT\x04\x02\x00\x00" + struct.pack("!H", len(client_id)) + client_id
        self._socket.sendall(bytes([_CONNECT, len(connect)]) + connect)
        self._receive(1)

    def publish(self, *messages: tuple[bytes, bytes]) -> None:
        packets = bytearray()
        for number, (topic, payload) in enumerate(messages, start=1):
            body = struct.pack("!H", len(topic)) + topic + struct.pack("!H", number) + payload
            packets += struct.pack("BBB", _PUBLISH, len(body) & 0x7F | 0x80, len(body) >> 7) + body
        self._socket.sendall(packets)
        self._receive(len(messages))

    def close(self) -> None:
        self._socket.close()

    def _receive(self, count: int) -> None:
        """Wait for so many CONNACKs or PUBACKs."""
        answers = self._socket.recv(count * _ACK_BYTES, socket.MSG_WAITALL)
        if len(answers) < count * _ACK_BYTES:
            raise ConnectionError("the broker hung up")


class _Store:
    """A database that keeps an event until the broker has it."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
            "CREATE TABLE entry (row INTEGER PRIMARY KEY, event TEXT);"
        )

    def add(self, event: str) -> int | None:
        return self._database.execute("INSERT INTO entry (event) VALUES (?)", (event,)).lastrowid

    def remove(self, row: int | None) -> None:
        self._database.execute("DELETE FROM entry WHERE row = ?", (row,))

    def close(self) -> None:
        self._database.close()


async def bare(given: Arguments, kind: str, count: int) -> None:
    """Poll; store, publish and delete each event."""
    line = _Line(given, f"{given.path(kind, count)}/resource/agentevent/101")
    broker, store = _Broker(given), _Store(given.directory / f"bare-{kind}-{count}.db")
    await line.connect()
    while (answer := await line.poll())["retcode"] != SIGNED_OUT:
        if "event" in answer:
            event = json.dumps(answer["event"])
            row = store.add(event)
            broker.publish((b"agents/101/events", event.encode()), (b"agents/101/event", event.encode()))
            store.remove(row)
        await asyncio.sleep(PAUSE_S[kind] + _EARLY_S)
    for part in (line, broker, store):
        part.close()


Job = Callable[[Arguments, str, int], Coroutine[Any, Any, None]]
JOBS: list[tuple[Job, str, int]] = [
    (job, kind, times * count) for kind, count in COUNTS.items() for job in (program, bare) for times in (1, 2)
]


def _fork(job: Job, kind: str, count: int, given: Arguments) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if job is bare:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself
        asyncio.run(job(given, kind, count))
        code = 0
    except Exception:  # noqa: BLE001 - nothing of the parent's is to run in a fork
        traceback.print_exc()
    os._exit(code)


def main() -> int:
    """Do all jobs at once; the exit code is 1 where one of them failed."""
    given = Arguments(*sys.argv[1:])
    gc.freeze()  # what is there already would be looked at now and then, and be counted by chance
    pids = {_fork(*job, given): f"{job[0].__name__} {job[1]} {job[2]}" for job in JOBS}
    print(json.dumps({name: pid for pid, name in pids.items()}), flush=True)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in pids)


if __name__ == "__main__":
    sys.exit(main())
