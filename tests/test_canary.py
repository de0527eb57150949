"""Secrets are nowhere but where they must be: the whole program at debug level, through every fault within reach.

GUIDs, passwords, cookies, a proxy's log-in and call data that can be recognised go in; whatever the program says
(log lines, topics, metrics, answers of commands) and leaves (the database, the process list) is searched for them.
"""

import asyncio
import contextlib
import dataclasses
import importlib
import json
import pkgutil
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import adapter
from adapter.command import finish
from adapter.config import load
from adapter.config.report import public
from adapter.config.source import read
from adapter.simulator import Simulator, faults
from adapter.store.outbox import open_outbox
from adapter.store.records import AgentRecord, Change, CommandRecord
from adapter.topics import Topics
from tests.adapter_support import settings, write
from tests.broker_support import HOST, Broker, Peer, certificates, free_ports, mosquitto
from tests.canary_support import FAULTS, MARK, Parrot, answer, leaks, secret
from tests.cli_support import COMMAND, DEADLINE_S, Program, program, reading, run_program
from tests.hostile_support import Proxy

pytestmark = pytest.mark.harm

FIXTURES = Path(__file__).parent / "fixtures"
BROKER_PASSWORD = secret("broker")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """Run a Mosquitto that lets one user in."""
    with mosquitto(tmp_path / "mosquitto", users={"adapter": BROKER_PASSWORD}) as made:
        yield made


@pytest.fixture
def peer(broker: Broker) -> Iterator[Peer]:
    """Listen to everything on the broker."""
    with Peer(broker) as listening:
        yield listening


def said(run: Program) -> bytes:
    """Give all that a program has said."""
    return "\n".join([*run.out, *run.err]).encode()


def told(peer: Peer) -> bytes:
    """Give all topics and payloads but those of commands, which hold what their senders write."""
    return b"\n".join(
        message.topic.encode() + b" " + message.payload
        for message in list(peer.messages)
        if not message.topic.endswith("/set") and "/request/" not in message.topic
    )


def command_line(run: Program) -> bytes:
    """Give what the process list shows of a program."""
    return " ".join(psutil.Process(run.process.pid).cmdline()).encode()


def values(parrot: Parrot, broker: Broker, agents: list[dict[str, Any]], **more: Any) -> dict[str, Any]:  # noqa: ANN401 - YAML's values
    """Make a configuration at debug level; `more` replaces whole sections."""
    gateway = {"url": parrot.url, "ca_file": str(parrot.ca_file), "hold": 0.3, "timeout": 3}
    return {
        "gateway": gateway | {"error_interval": [1.01, 2]},
        "mqtt": {"url": broker.url(), "username": "adapter", "password": BROKER_PASSWORD},
        "agents": agents,
        "storage": {"path": "outbox.db"},
        "home_assistant": {"discovery": True},
        "log": {"level": "debug"},
    } | more


async def send(work_no: str, value: str, path: Path) -> Program:
    """Send call data with the program's own command, by its stdin."""
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "calldata", work_no, "-", "-c", str(path)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    async with reading(process) as run:
        process.stdin.write(f"{value}\n".encode())
        process.stdin.close()
        await run.ended()
    return run


async def until(condition: Callable[[], object]) -> None:
    """Wait until something holds that no message tells of."""
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what another process does sets no event here
            await asyncio.sleep(0.02)


def columns(database: Path) -> set[str]:
    """List the tables and columns of a database in which a secret stands."""
    found = set()
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            rows = connection.execute(f"SELECT * FROM {table}")  # noqa: S608 - the database's own names
            names = [column[0] for column in rows.description]
            for row in rows:
                for name, value in zip(names, row, strict=True):
                    if MARK in (value if isinstance(value, bytes) else str(value).encode()):
                        found.add(f"{table}.{name}")
    return found


def count(database: Path, table: str) -> int:
    """Count the rows of a table."""
    query = f"SELECT count(*) FROM {table}"  # noqa: S608 - a test's own name
    try:
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            rows: int = connection.execute(query).fetchone()[0]
    except sqlite3.OperationalError:  # not made yet
        return 0
    return rows


def files(directory: Path) -> bytes:
    """Read the database with its write-ahead log and all else that lies beside it."""
    return b"\n".join(path.read_bytes() for path in sorted(directory.glob("outbox.db*")))


def modes(directory: Path) -> set[int]:
    """List the modes of the same files."""
    return {path.stat().st_mode & 0o777 for path in directory.glob("outbox.db*")}


SIGN_INS: dict[str, Callable[[str], bytes]] = {
    "locked": lambda secrets: answer(f'{{"retcode":"100-004","message":"wrong: {secrets}"}}'),
    "elsewhere": lambda secrets: answer(f'{{"retcode":"100-002","message":"in use: {secrets}"}}'),
    "no-guid": lambda secrets: answer(f'{{"retcode":"0","message":"{secrets}"}}'),
    "page": lambda secrets: answer(secrets, status="500 Error"),
    "words": answer,
}
"""Answers to a sign-in."""
COMMANDS = [
    ("calldata", b'{"calldata": "%s", "id": 7}'),
    ("calldata", b'{"calldata": "x", "ttl": "%s"}'),
    ("calldata", b'{"calldata": ["%s"]}'),
    ("calldata", b'{"calldata": "%s\\u0000"}'),
    ("calldata", b'{"calldata": "%s", "guid": "%s", "password": "%s"}'),
    ("calldata", b"%s\xff"),
    ("calldata", b"%s" + b"x" * 3000),
    ("session", b'{"action": "sign_in", "guid": "%s and more"}'),
    ("session", b'{"action": "sign_in", "guid": ["%s"]}'),
    ("session", b'{"action": "sign_in", "password": "%s"}'),
    ("session", b'{"action": "sign_out", "guid": "%s"}'),
    ("session", b'{"action": "%s"}'),
    ("session", b'{"action": "sign_in", "guid": "%s"'),
    ("session", b"%s"),
]
"""Commands that are refused, each with a secret in it."""


async def refused_commands(peer: Peer, work_no: str) -> None:
    """Send all of `COMMANDS`, and requests as bad; return when each has its result."""
    results = [f"agents/{work_no}/{kind}/result" for kind in ("calldata", "session")]
    value = secret("command").encode()
    for kind, payload in COMMANDS:
        await peer.publish(f"agents/{work_no}/{kind}/set", payload.replace(b"%s", value))
    await peer.wait_for(lambda: sum(len(peer.on(topic)) for topic in results) >= len(COMMANDS))
    assert all(b'"rejected"' in payload for topic in results for payload in peer.payloads(topic))
    for payload in (b'{"id": ["%s"]}', b'{"guid": "%s"}', b"%s"):
        await peer.publish("agents/bridge/request/reload", payload.replace(b"%s", value))
    await peer.wait_for(lambda: len(peer.on("agents/bridge/response/reload")) == 3)
    for payload in (b'{"level": "%s"}', b'{"level": "debug", "%s": 1}'):
        await peer.publish("agents/bridge/request/log_level", payload.replace(b"%s", value))
    await peer.wait_for(lambda: len(peer.on("agents/bridge/response/log_level")) == 2)


async def operate(peer: Peer) -> None:
    """Ask for all that the adapter tells of itself, and for all that it retains."""
    for name in ("diagnostics", "agents", "snapshot"):
        await peer.publish(f"agents/bridge/request/{name}", b'{"id": "o"}')
        await peer.wait_for(lambda name=name: peer.on(f"agents/bridge/response/{name}"))  # type: ignore[misc] # mypy cannot type a lambda's default
    assert b'"status":"ok"' in peer.payloads("agents/bridge/response/diagnostics")[0]


def bad_configurations(good: str) -> list[tuple[str, str]]:
    """Spoil a configuration, with secrets in it; each comes with a file of secrets."""
    value = secret("config")
    named = good.replace("agents:", "agents:\n- {work_no: '1', guid: !secret g}", 1)
    return [
        (f"{good}\nproxy: {value}\n", ""),
        (good.replace("level: debug", f"level: [{value}"), ""),
        (good.replace("  password:", f"  password: [{value}]\n  old:"), ""),
        (good.replace("  hold:", f"  proxy: ftp://u:{value}@h\n  hold:"), ""),
        (named, f"g: [{value}]"),
        (named, f"g: {value} x"),
        (named, f"g: '{value}"),
        (named, value),
        (named.replace("!secret g", "!env_var KANARI_GUID"), ""),
    ]


async def bad_reloads(peer: Peer, run: Program, path: Path) -> None:
    """Reload configurations that cannot be used, by signal and by request in turn; put the good one back."""
    good, responses = path.read_text(), "agents/bridge/response/reload"  # noqa: ASYNC240 - a small file
    for number, (text, secrets) in enumerate(bad_configurations(good)):
        path.write_text(text)  # noqa: ASYNC240 - as above
        path.with_name("secrets.yaml").write_text(secrets)
        lines, messages = len(run.err), len(peer.on(responses))
        if number % 2:
            run.send(signal.SIGHUP)
        else:
            await peer.publish("agents/bridge/request/reload", b"")
            await peer.wait_for(lambda messages=messages: len(peer.on(responses)) > messages)  # type: ignore[misc] # mypy cannot type a lambda's default
        await until(lambda lines=lines: any("reload: " in line for line in run.err[lines:]))  # type: ignore[misc] # as above
    path.write_text(good)  # noqa: ASYNC240 - as above


async def test_no_fault_shows_a_secret(tmp_path: Path, broker: Broker, peer: Peer) -> None:
    """Section 8, C6: whatever a gateway repeats, a sender writes or a file holds, no log, topic or metric shows it.

    Cookies and new GUIDs come with each agent's first answer, so that its second request tells them, and the call data;
    the second answer is the fault.
    """

    def first(_: str) -> bytes:
        renewed, cookie = secret("renewed"), secret("cookie")
        return answer(b'{"retcode":"0"}', f"Set-GUID: JSESSIONID={renewed}", f"Set-Cookie: lb={cookie}; Path=/")

    polled = {f"p-{name}": [first, fault] for name, fault in FAULTS.items()}
    signing = {f"s-{name}": [fault] for name, fault in SIGN_INS.items()}
    sign_ins = {name: {"password": secret("password"), "phone": "8", "force": True} for name in signing}
    agents: list[dict[str, Any]] = [{"work_no": name, "guid": secret("guid")} for name in (*polled, "well", "busy")]
    agents += [{"work_no": name, "sign_in": sign_in} for name, sign_in in sign_ins.items()]
    (port,) = free_ports(1)
    async with Parrot(tmp_path, {**polled, **signing}) as parrot:
        path = write(tmp_path, values(parrot, broker, agents, http={"listen": f"{HOST}:{port}"}))
        async with program("run", "-c", path, KANARI_GUID=f"{secret('guid')} x") as run:
            await peer.wait_for(lambda: peer.on("agents/well/session"))
            for name in polled:
                await peer.publish(f"agents/{name}/calldata/set", secret("calldata"))
            await refused_commands(peer, "busy")
            await bad_reloads(peer, run, path)
            await until(parrot.spent)
            await operate(peer)
            sent = await send("well", secret("calldata"), path)
            for garbage in (b"GET / HTTP/1.1\r\nX\x01y: z\r\n\r\n", b"GET /" + b"x" * 99_999 + b" HTTP/1.1\r\n\r\n"):
                _, writer = await asyncio.open_connection(HOST, port)
                writer.write(garbage)
                await writer.drain()
                writer.close()
            async with httpx.AsyncClient(base_url=f"http://{HOST}:{port}") as client:
                pages = [await client.get(page) for page in ("/metrics", "/healthz", "/readyz", f"/{secret('path')}")]
            looks = [await run_program(*words, "-c", path) for words in (("check", "--online"), ("health",))]
            async with program("watch", "-c", path) as watch:
                await until(lambda: "-watch-" in broker.log)
                watched = command_line(watch)
                watch.send(signal.SIGTERM)
                assert await watch.ended() == 0
            listed = command_line(run)
            run.send(signal.SIGTERM)
            assert await run.ended() == 0

    everything = [said(run), told(peer), listed, watched, said(watch), *map(said, (sent, *looks))]
    everything += [page.content for page in pages]
    assert [leaks(data) for data in everything] == [[] for _ in everything]
    # The harm was done: the gateway heard each kind of secret, and the program spoke of all faults but two.
    heard = b"".join(parrot.heard)
    kinds = [b"guid", b"renewed", b"cookie", b"calldata", b"password"]
    assert [kind for kind in kinds if MARK + b"-" + kind not in heard] == []
    assert b"aiohttp" not in said(run)
    quiet = {name for name in FAULTS if f"agent p-{name}: ".encode() not in said(run)}
    assert quiet <= {"odd-guid", "odd-cookie"}
    assert [look.process.returncode for look in (sent, *looks)] == [0, 0, 0]


def at_start(tmp_path: Path, broker: Broker, parrot: Parrot) -> dict[str, tuple[dict[str, Any], str]]:
    """Make configurations that cannot work, each with what the program says of it."""
    guid, wrong = secret("guid"), secret("wrong")
    agents = [{"work_no": "101", "guid": guid}]
    plain = values(parrot, broker, agents)
    other = certificates(tmp_path / "other").ca_file
    tls = plain["mqtt"] | {"url": broker.url("mqtts"), "ca_file": str(other)}
    return {
        "broker-password": (plain | {"mqtt": plain["mqtt"] | {"password": wrong}}, "ot authorized"),
        "broker-certificate": (plain | {"mqtt": tls}, "its certificate is refused"),
        "gateway-certificate": (
            plain | {"gateway": plain["gateway"] | {"ca_file": str(other)}},
            "certificate verify failed",
        ),
        "storage": (plain | {"storage": {"path": f"{tmp_path}/none/outbox.db"}}, "cannot be opened"),
        "password": (plain | {"mqtt": plain["mqtt"] | {"password": [wrong]}}, "mqtt.password"),
        "agent": (plain | {"agents": [{"work_no": "101", "guid": guid, "sign_in": wrong}]}, "sign_in"),
    }


async def test_no_start_that_fails_shows_a_secret(tmp_path: Path) -> None:
    """What cannot work is said without a secret: by the program, and by `check --online`."""
    users = {"adapter": BROKER_PASSWORD}
    with mosquitto(tmp_path / "mosquitto", users=users, schemes=("mqtt", "mqtts")) as broker:
        async with Parrot(tmp_path, {}) as parrot:
            cases = at_start(tmp_path, broker, parrot)
            connected = {"broker-password", "broker-certificate", "gateway-certificate"}

            async def run(name: str) -> bytes:
                config, expected = cases[name]
                directory = tmp_path / name
                directory.mkdir()
                path = write(directory, config)
                async with program("run", "-c", path) as run:
                    await run.line(lambda line: expected in line, deadline_s=3 * DEADLINE_S)
                look = said(await run_program("check", "--online", "-c", path)) if name in connected else b""
                return said(run) + look

            everything = await asyncio.gather(*map(run, cases))

    assert [leaks(data) for data in everything] == [[] for _ in everything]


async def test_a_proxy_that_repeats_its_log_in_shows_no_secret(tmp_path: Path, broker: Broker, peer: Peer) -> None:
    """`gateway.proxy` may hold a password: not even a refusal, with a reason of the proxy's choice, brings it back."""
    user, password = secret("user"), secret("proxy")
    refusal = f"HTTP/1.1 407 {user} {password}\r\nX: {password}\r\nContent-Length: 0\r\n\r\n".encode()
    async with (
        Simulator(agents=["101"], hold_s=0.3) as simulator,
        Proxy(refusal) as proxy,
    ):
        log = {"level": "debug", "format": "json"}
        gateway = {"proxy": proxy.address(f"{user}:{password}")}
        config = settings(simulator, broker, gateway=gateway, log=log, storage={"path": "outbox.db"})
        path = write(tmp_path, config)
        async with program("run", "-c", path) as run:
            await run.line(lambda line: "getAgentEvent" in line and "407" in line)
            looks = await run_program("check", "--online", "-c", path)
            run.send(signal.SIGTERM)
            await run.ended()
        assert b"Proxy-Authorization: Basic" in proxy.heads[0]

    assert [leaks(data) for data in (said(run), said(looks), told(peer), files(tmp_path))] == [[], [], [], []]


CRASH = """
import asyncio, sys
import adapter.app, adapter.agent.poller, adapter.commands, adapter.fleet
from adapter.cli import main

def fails(self, received, *_):
    raise ValueError(f"{self!r} {received!r} {received.payload} KANARI")

async def fails_later(self, *_):
    raise ValueError("KANARI")

adapter.commands.Commands.receive = fails
adapter.app.App.reload = fails_later
adapter.agent.poller.Poller._take_in = fails_later
main()
"""
"""The program with mistakes put into it: in a callback, in a task of its own, and in one whose end ends it all."""


async def test_a_mistake_of_the_program_shows_its_place_alone(tmp_path: Path, broker: Broker, peer: Peer) -> None:
    """A traceback could hold anything: of an exception that nobody foresaw, type and place are told, and no text."""
    value = secret("crash")
    async with Parrot(tmp_path, {"101": [answer]}) as parrot:
        parrot.go_on.clear()
        agents = [{"work_no": "101", "guid": secret("guid")}]
        path = write(tmp_path, values(parrot, broker, agents, log={"level": "debug", "format": "json"}))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CRASH.replace("KANARI", value), "run", "-c", str(path)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with reading(process) as run:
            await run.line(lambda line: "connected" in line)
            await peer.publish("agents/101/calldata/set", secret("calldata"))
            await run.line(lambda line: "asyncio: a mistake" in line and "ValueError at " in line)
            run.send(signal.SIGHUP)
            parrot.go_on.set()
            assert await run.ended() == 1

    assert [leaks(data) for data in (said(run), told(peer))] == [[], []]
    assert "a mistake of this program, please report it: ValueError at " in run.err[-1]


async def test_what_lies_on_the_disk(tmp_path: Path, broker: Broker, peer: Peer) -> None:
    """D1, C6: GUIDs and cookies lie in their agents' rows alone, call data until its result, passwords nowhere.

    Also after SIGKILL, with what SQLite leaves in free pages and in its write-ahead log; all files are the owner's.
    """
    calldata, password, guid = (secret(what) for what in ("calldata", "password", "guid"))
    sign_in = {"password": password, "phone": "8"}
    agents: list[dict[str, Any]] = [{"work_no": "101", "guid": guid}, {"work_no": "102", "sign_in": sign_in}]
    renewed = [secret("renewed") for _ in range(2)]
    headers = [f"Set-GUID: JSESSIONID={value}" for value in renewed]
    script: list[Callable[[str], bytes]] = [
        partial(lambda header, _: answer(b'{"retcode":"0"}', header), header) for header in headers
    ]
    async with Parrot(
        tmp_path, {"101": script, "102": [lambda _: answer(b'{"retcode":"0"}', "Set-GUID: x")]}
    ) as parrot:
        path = write(tmp_path, values(parrot, broker, agents))
        async with program("run", "-c", path) as run:
            await until(parrot.spent)
            sent = await send("101", calldata, path)
            assert sent.process.returncode == 0
            run.send(signal.SIGKILL)
            await run.ended()
        killed, found = files(tmp_path), modes(tmp_path)
        await peer.wait_for(lambda: peer.payloads("agents/bridge/availability")[-1:] == [b"offline"])
        told = len(peer.on("agents/bridge/info"))
        async with program("run", "-c", path) as run:
            await peer.wait_for(lambda: len(peer.on("agents/bridge/info")) > told)
            await peer.publish("agents/101/session/set", b'{"action":"sign_out","id":"1"}')
            await peer.wait_for(lambda: peer.on("agents/101/session/result"))
            run.send(signal.SIGTERM)
            await run.ended()

    assert found == {0o600}
    assert [word for word in (password, BROKER_PASSWORD) if word.encode() in killed] == []
    assert renewed[-1].encode() in killed
    assert leaks(files(tmp_path)) == []


async def test_masked_numbers_never_reach_the_disk(tmp_path: Path) -> None:
    """P14: with `privacy`, no event, state or unreadable answer leaves a number in the database or its log (WAL)."""
    number = "13800001234"
    names = ("AgentEvent_Ringing", "AgentEvent_Talking", "AgentEvent_Customer_Alerting")
    samples = [json.loads((FIXTURES / f"{name}.json").read_bytes())["event"] for name in names]
    (nobody,) = free_ports(1)
    async with Simulator(agents=["101", "102"], hold_s=0.3) as simulator:
        config = {
            "gateway": {"url": simulator.url, "ca_file": str(simulator.ca_file), "hold": 0.3, "timeout": 3},
            "mqtt": {"url": f"mqtt://{HOST}:{nobody}"},
            "agents": [{"work_no": agent.work_no, "guid": agent.guid} for agent in simulator.agents],
            "storage": {"path": "outbox.db"},
            "privacy": {"mask": "numbers", "with": "last4"},
            "log": {"level": "debug"},
        }
        path = write(tmp_path, config)
        for sample in samples:
            simulator.emit("101", sample)
        simulator.script("102", faults.garbage(f'{{"caller":"{number}"'.encode()), faults.garbage(number.encode()))
        async with program("run", "-c", path) as run:
            await until(lambda: count(tmp_path / "outbox.db", "unreadable") == 2)
            await until(lambda: count(tmp_path / "outbox.db", "entry") == 3)
            run.send(signal.SIGKILL)
            await run.ended()

    disk = files(tmp_path)
    assert b"*******1234" in disk
    assert [each for each in (number.encode(), b"13800001234", b"4008001111", b"8102000") if each in disk] == []
    assert number not in said(run).decode()


async def test_what_has_served_leaves_the_disk(tmp_path: Path) -> None:
    """C6: each minute, what is left of call data with a result and of older GUIDs goes: free pages, write-ahead log."""
    async with open_outbox(tmp_path / "outbox.db", 64) as outbox:
        for number in range(40):
            body = (secret("calldata") * 80).encode()
            command = CommandRecord(work_no="101", kind="calldata", id=f"{number}", body=body, received_at=0.0)
            await outbox.admit(command)
            change = Change(agent=AgentRecord(work_no="101", guid=secret("guid")))
            finish(change, command, Topics("agents"), status="applied")
            await outbox.commit(change)
        await outbox.commit(Change(agent=AgentRecord(work_no="101")))
        before = files(tmp_path)

        await outbox.forget_commands(0.0, 0)

        after = files(tmp_path)

    assert leaks(before) != []
    assert leaks(after) == []


SECRET = {"guid", "password", "proxy", "cookies", "payload", "body", "head", "key", "correlation", "members", "content"}
SECRET |= {"slots", "result", "message"}
"""Names of members that may hold a secret, or a caller's number."""
HARMLESS = {("CommandRecord", "result"), ("Entry", "message"), ("PrivacyConfig", "members"), ("Mask", "members")}
HARMLESS |= {("Check", "members"), ("Removals", "slots"), ("Seen", "members"), ("Seen", "content")}
"""Members with such a name that hold none: our own results, values that hide their own, names of members."""


def test_no_secret_is_in_a_repr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an assertion, a debugger or asyncio shows of a value is without GUIDs, passwords, cookies and call data."""
    for module in pkgutil.walk_packages(adapter.__path__, "adapter."):
        importlib.import_module(module.name)
    classes = {
        made
        for name, module in list(sys.modules.items())
        if name.startswith("adapter.")
        for made in vars(module).values()
        if isinstance(made, type) and dataclasses.is_dataclass(made)
        if made.__module__.startswith("adapter.") and not made.__module__.startswith("adapter.simulator")
    }
    shown = {
        (made.__name__, field.name)
        for made in classes
        for field in dataclasses.fields(made)
        if field.name in SECRET and field.repr
    }
    monkeypatch.setenv("KANARI", secret("guid"))
    (tmp_path / "secrets.yaml").write_text(f"p: {secret('password')}")
    (tmp_path / "secrets.yaml").chmod(0o600)
    proxy = f"http://u:{secret('proxy')}@h:1"
    path = tmp_path / "config.yaml"
    path.write_text(f"""
gateway: {{url: "https://h", proxy: "{proxy}"}}
mqtt: {{username: u, password: !secret p}}
agents: [{{work_no: "1", guid: !env_var KANARI}}, {{work_no: "2", sign_in: {{password: !secret p, phone: "8"}}}}]
""")
    config = load(path)

    assert len(classes) > 30
    assert shown - HARMLESS == set()
    assert leaks(repr((config, read(path), public(config))).encode()) == []
