"""A fleet as who runs it meets it: what has to be installed, `cluster status` and `cluster drain` (issue 6)."""

import asyncio
import base64
import contextlib
import itertools
import json
import logging
import os
import re
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import nkeys  # type: ignore[import-untyped] # it has none
import pytest
import yaml

from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine, connect
from adapter.cluster.entry import Entry, content_of
from adapter.cluster.membership import Membership
from adapter.cluster.servers import dial, hang_up, heed_cancellation
from adapter.cluster.shares import shares
from adapter.config import Config, load
from adapter.errors import ClusterUnavailableError, StartError
from adapter.nats import find_program
from bench.chaos.parts import Part
from tests.adapter_support import Running, decoded, settings, start, write
from tests.broker_support import HOST, Broker, Peer, answers, certificates, free_ports
from tests.cli_support import COMMAND, invoke, invoke_beside, one_line, run_program
from tests.cluster_support import servers, until
from tests.config_support import CLUSTER, KEY, SOUND, loaded
from tests.test_cluster import AGENTS, HOLD_S, configure, events, members, polled_by, simulated

KINDS = ("publish", "subscribe")
NOBODY = {
    "gateway": {"url": "https://127.0.0.1:9/agentgateway"},
    "mqtt": {"url": "mqtt://127.0.0.1:9"},
    "agents": [{"work_no": "101", "guid": "g"}],
    "storage": {"path": "no-such-directory/storage.db"},
}
MEMBER = NOBODY | {"cluster": {"url": "nats://127.0.0.1:9", "name": "prod", "key": KEY}}


# The extra.


@pytest.mark.parametrize("package", ["nats", "cryptography"])
def test_a_missing_extra_says_what_to_install(tmp_path: Path, package: str) -> None:
    """Point 1: without nats-py or cryptography a member ends at once with exit code 2, and says how to get them."""
    write(tmp_path, MEMBER)
    hide = f"import sys; sys.modules['{package}'] = None"
    done = subprocess.run(
        [sys.executable, "-c", f"{hide}; from adapter.cli import main; main(['run', '-c', 'config.yaml'])"],
        capture_output=True,
        check=False,
        text=True,
        cwd=tmp_path,
    )

    assert done.stderr == f"cluster: {package} is not installed: pip install 'ccgateway2mqtt[cluster]'\n"
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [(["--help"], 0), (["check", "-c", "member.yaml"], 0), (["run", "-c", "alone.yaml"], 1)],
)
def test_what_a_cluster_needs_is_imported_by_members_alone(
    tmp_path: Path, arguments: list[str], exit_code: int
) -> None:
    """Point 1: without the section nothing of nats-py or cryptography is loaded, nor by help, nor by `check`."""
    write(tmp_path, NOBODY, "alone.yaml")
    write(tmp_path, MEMBER, "member.yaml")
    command = [sys.executable, "-X", "importtime", *COMMAND[1:], *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}

    assert done.returncode == exit_code, lines[-1]
    assert "adapter.cli" in imported
    assert ("adapter.app" in imported) == (arguments[0] == "run")
    assert {name.partition(".")[0] for name in imported} & {"nats", "nkeys", "cryptography"} == set()
    assert "adapter.cluster" not in imported


# What all members have to have alike.


def entry(config: Config) -> Entry:
    """Make a lease of a member with this configuration."""
    return Entry(term="t", count=0, content=content_of(config), proof=Codec([KEY]).proof(), storage="s")


def test_a_configuration_is_the_same_in_every_process_and_directory(tmp_path: Path) -> None:
    """Point 6: the order of sets and the place of GUID files differ between processes, the hash does not."""
    hashes = set()
    code = (
        "import sys; from pathlib import Path; from adapter.config import load;"
        "from adapter.cluster.entry import content_of; print(content_of(load(Path(sys.argv[1]))))"
    )
    privacy = {"mask": ["caller", "called", "otherPhone", "phone"], "with": "hash"}
    agents = [{"work_no": "101", "guid_file": "101.txt"}, {"work_no": "102", "guid": "g"}]
    for seed in range(1, 4):
        directory = tmp_path / str(seed)
        directory.mkdir()
        path = write(directory, MEMBER | {"privacy": privacy, "agents": agents[:: 1 if seed % 2 else -1]})
        environment = os.environ | {"PYTHONHASHSEED": str(seed)}
        hashes.add(subprocess.check_output([sys.executable, "-c", code, str(path)], env=environment))

    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("section", "same"),
    [
        ("instance: b", True),
        ("storage: {path: b.db}", True),
        ("log: {level: debug}", True),
        ("http: {listen: 'localhost:1'}", True),
        ("mqtt: {url: 'mqtt://other'}", True),
        ("mqtt: {topic_prefix: other}", False),
        ("mqtt: {stream: false}", False),
        ("privacy: {}", False),
    ],
)
def test_what_members_have_to_have_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, *, same: bool
) -> None:
    """Point 6: gateway, agents, topics and privacy; name, database, log and broker's address are a member's own."""
    monkeypatch.chdir(tmp_path)

    assert (content_of(loaded(SOUND + CLUSTER)) == content_of(loaded(SOUND + CLUSTER + section))) is same


# The connection to the servers.


@contextlib.asynccontextmanager
async def server(directory: Path, **extra: Any) -> AsyncIterator[int]:  # noqa: ANN401 - of NATS
    """Run one NATS server with JetStream and something special; give its port."""
    (port,) = free_ports(1)
    config = {"server_name": "n", "host": HOST, "port": port, "jetstream": {"store_dir": str(directory / "n")}} | extra
    path = directory / "n.conf"
    path.write_text(json.dumps(config))
    node = Part("n", [str(find_program()), "-c", str(path)], directory)
    await node.start()
    try:
        await until(lambda: answers(port))
        yield port
    finally:
        await node.close()


def member(directory: Path, url: str, **section: Any) -> Path:  # noqa: ANN401 - YAML's values
    """Write the configuration of a member that finds neither gateway nor broker."""
    values: dict[str, Any] = {"storage": {"path": "here.db"}}
    cluster = {"url": url, "name": "prod", "key": KEY, "replicas": 1} | section
    return write(directory, MEMBER | values | {"cluster": cluster})


def log_in(word: str) -> dict[str, str]:
    """Make the keys of a log-in."""
    return {"username": "adapter", "password": word}


async def dialled(path: Path) -> None:
    """Connect as a configuration says, and hang up."""
    cluster = load(path).cluster
    assert cluster is not None
    await hang_up(await dial(cluster, "test"))


async def test_a_server_without_tls_is_told_no_password(tmp_path: Path) -> None:
    """Point 1: whoever is on the way and takes TLS away gets nothing, and the reason is said."""
    heard = b""

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal heard
        writer.write(b'INFO {"server_id":"x","auth_required":true,"tls_required":false}\r\n')
        heard += await reader.read()
        writer.close()

    trap = await asyncio.start_server(listen, HOST, 0)
    async with trap:
        port = trap.sockets[0].getsockname()[1]
        section = log_in("hunter2")
        with pytest.raises(ClusterUnavailableError, match="does not demand TLS"):
            await dialled(member(tmp_path, f"tls://{HOST}:{port}", **section))
    assert heard == b""


async def test_certificates_of_both_sides(tmp_path: Path) -> None:
    """Point 1: a server that asks for a certificate gets ours; without it, or with another authority, nothing works."""
    ours = certificates(tmp_path / "tls")
    cert, key = ours.client(tmp_path, "adapter")
    tls = {"cert_file": str(ours.cert_file), "key_file": str(ours.key_file), "ca_file": str(ours.ca_file)}
    async with server(tmp_path, tls=tls | {"verify": True}) as port:
        whole = {"ca_file": str(ours.ca_file), "cert_file": str(cert), "key_file": str(key)}
        url = f"tls://{HOST}:{port}"
        await dialled(member(tmp_path, url, **whole))
        for less in ({"ca_file": whole["ca_file"]}, {}):
            with pytest.raises(ClusterUnavailableError):
                await dialled(member(tmp_path, url, **less))


async def test_a_refused_log_in_ends_a_member(tmp_path: Path) -> None:
    """Point 1: a wrong password is exit 1 at once, and not a server that is waited for; the password is not told."""
    users = {"users": [{"user": "adapter", "password": "right"}]}
    async with server(tmp_path, authorization=users) as port:
        url = f"nats://{HOST}:{port}"
        await dialled(member(tmp_path, url, **log_in("right")))
        done = await run_program("run", "-c", member(tmp_path, url, **log_in("hunter2")))

    assert (done.process.returncode, done.out) == (1, [])
    assert done.err[-1] == "cluster: log-in refused"
    assert "hunter2" not in "".join(done.err)


def _signed(signer: nkeys.KeyPair, subject: nkeys.KeyPair, name: str, what: dict[str, Any]) -> str:
    """Make a token as NATS knows them: signed with an NKEY."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    claims = {
        "jti": uuid.uuid4().hex,
        "iat": int(time.time()),
        "iss": signer.public_key.decode(),
        "sub": subject.public_key.decode(),
        "name": name,
        "nats": what | {"version": 2},
    }
    body = f"{part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{part(claims)}"
    return f"{body}.{base64.urlsafe_b64encode(signer.sign(body.encode())).decode().rstrip('=')}"


async def test_a_log_in_by_credentials(tmp_path: Path) -> None:
    """Point 1: a file of NATS credentials is a log-in; one of another account is refused."""
    kinds = [nkeys.PREFIX_BYTE_OPERATOR, *[nkeys.PREFIX_BYTE_ACCOUNT] * 3, nkeys.PREFIX_BYTE_USER]
    seeds = [nkeys.encode_seed(os.urandom(32), kind) for kind in kinds]
    operator, system, account, stranger, user = (nkeys.from_seed(bytearray(seed)) for seed in seeds)
    limits = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn", "leaf"), -1) | {"wildcards": True}
    known = {
        each.public_key.decode(): _signed(operator, each, "a", {"type": "account", "limits": limits})
        for each in (system, account)
    }
    extra = {
        "operator": _signed(operator, operator, "o", {"type": "operator"}),
        "system_account": system.public_key.decode(),
        "resolver": "MEMORY",
        "resolver_preload": known,
    }
    paths: list[Path] = []
    for issuer in (account, stranger):
        token = _signed(issuer, user, "u", {"type": "user", "subs": -1, "data": -1, "payload": -1})
        paths.append(tmp_path / f"{len(paths)}.creds")
        marked = {"NATS USER JWT": token, "USER NKEY SEED": bytes(seeds[-1]).decode()}
        paths[-1].write_text(
            "".join(f"-----BEGIN {mark}-----\n{text}\n------END {mark}------\n\n" for mark, text in marked.items())
        )
    async with server(tmp_path, **extra) as port:
        url = f"nats://{HOST}:{port}"
        await dialled(member(tmp_path, url, credentials=str(paths[0])))
        with pytest.raises(StartError, match="log-in refused"):
            await dialled(member(tmp_path, url, credentials=str(paths[1])))


async def test_servers_that_are_not_there_yet_are_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Point 1: a member that starts before its servers says so in one line, and goes on when they come."""
    (port,) = free_ports(1)
    cluster = load(member(tmp_path, f"nats://{HOST}:{port}")).cluster
    assert cluster is not None

    async def joined() -> None:
        async with connect(cluster, "a") as engine:
            await engine.prepare()

    with caplog.at_level(logging.INFO):
        joining = asyncio.create_task(joined())
        await until(lambda: caplog.messages)
        path = tmp_path / "late.conf"
        path.write_text(json.dumps({"host": HOST, "port": port, "jetstream": {"store_dir": str(tmp_path / "late")}}))
        node = Part("late", [str(find_program()), "-c", str(path)], tmp_path)
        await node.start()
        try:
            await asyncio.wait_for(joining, 60)
        finally:
            await node.close()

    assert "cluster: servers: " in caplog.messages[0]
    assert caplog.messages[0].endswith("; trying again")
    assert "cluster: back after" in caplog.messages[1]
    assert len(caplog.messages) == 2


async def test_what_is_denied_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Point 1: servers drop what a user may not do without an answer; the log names it, once."""
    denied = {"publish": {"deny": ["$JS.API.STREAM.CREATE.>"]}}
    users = {"users": [{"user": "adapter", "password": "p", "permissions": denied}]}
    async with server(tmp_path, authorization=users) as port:
        cluster = load(member(tmp_path, f"nats://{HOST}:{port}", **log_in("p"))).cluster
        assert cluster is not None
        async with connect(cluster, "a") as engine:
            for _ in range(2):
                with pytest.raises(ClusterUnavailableError):
                    await engine._layout.make(engine._jetstream)

    lines = [line for line in caplog.messages if line.startswith("cluster: denied to adapter: ")]
    assert len(lines) == 1
    assert "$js.api.stream.create." in lines[0]  # nats-py has made it small


async def test_a_cancellation_that_gets_lost_is_heeded() -> None:
    """SIGTERM ends a member also where it comes together with an answer: Python 3.11 sees the answer alone."""
    answer = asyncio.get_running_loop().create_future()

    async def work() -> None:
        await asyncio.wait_for(answer, 60)
        heed_cancellation()
        await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    answer.set_result(None)
    task.cancel()
    await asyncio.wait([task], timeout=30)

    assert task.cancelled()


# cluster status, drain and undrain.


async def seen(path: Path) -> dict[str, Any]:
    """Take what `cluster status --json` prints; its exit code goes by the agents that nobody has."""
    done = await invoke_beside("cluster", "status", "-c", path, "--json")
    status: dict[str, Any] = json.loads(done.stdout)
    assert done.exit_code == (1 if status["unowned"] else 0), done.output
    return status


def is_settled(running: list[Running]) -> bool:
    """Say whether each of two members, a and b, polls its share, and nothing is on its way."""
    assigned = shares([str(101 + number) for number in range(AGENTS)], ["a", "b"])
    return polled_by(running) == [{each for each, name in assigned.items() if name == member} for member in ("a", "b")]


async def test_status(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 6: members with their agents, terms and leases, the servers, what is stored, and who has nobody."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        paths = [configure(tmp_path, simulator, shared_broker, nats, name) for name in ("a", "b")]
        none_yet = await invoke_beside("cluster", "status", "-c", paths[0])
        async with members(paths) as running:
            await until(lambda: is_settled(running))
            both, table = await seen(paths[0]), await invoke_beside("cluster", "status", "-c", paths[1])
            polled = [len(each) for each in polled_by(running)]
            other = write(tmp_path, json.loads(json.dumps(_values(paths[0]) | {"privacy": {}})), "other.yaml")
            another = await seen(other)
            assert await running[0].stop() == "stopped"
            await until(lambda: len(polled_by(running)[1]) == AGENTS)
            one = await seen(paths[0])
        none = await seen(paths[0])

    assert (none_yet.exit_code, one_line(none_yet)) == (1, "cluster: there is no fleet test yet")
    assert (both["name"], both["configured"], both["unowned"], both["late"]) == ("test", AGENTS, [], 0)
    assert [each["name"] for each in both["members"]] == ["a", "b"]
    assert [each["agents"] for each in both["members"]] == polled
    assert all(each["live"] and each["sameConfiguration"] and not each["leaving"] for each in both["members"])
    assert all(each["leaseSeconds"] < HOLD_S + 5 for each in both["members"])
    assert both["servers"] == [{"name": "n0", "leads": True, "inStep": True}]
    assert both["messages"] >= AGENTS
    assert both["bytes"] > 0
    assert table.exit_code == 0
    lines = table.stdout.splitlines()
    assert lines[0].split() == ["member", "term", "agents", "lease", "configuration"]
    assert [line.split()[0] for line in lines[1:3]] == ["a", "b"]
    assert lines[-1] == f"agents: {AGENTS}; each has a live owner"
    assert [each["sameConfiguration"] for each in another["members"]] == [False, False]
    assert [(each["name"], each["agents"]) for each in one["members"]] == [("b", AGENTS)]
    assert (none["members"], len(none["unowned"])) == ([], AGENTS)


def _values(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    return values


async def test_a_member_that_is_gone_has_no_agents_any_more(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 6: a lease counts for its length after it was renewed last; its agents then have no live owner."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        path = configure(tmp_path, simulator, shared_broker, nats, "a")
        running = await start(path)
        await until(lambda: len(polled_by([running])[0]) == AGENTS)
        # What a kill leaves: the lease as it was renewed last, and the pages of its agents.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Membership, "_keep", _nothing)
            young = await seen(path)
            await until_async(lambda: _gone(path))
            old = await seen(path)
            table = await invoke_beside("cluster", "status", "-c", path)
        await running.stop()

    assert (young["unowned"], young["members"][0]["live"]) == ([], True)
    assert (len(old["unowned"]), old["members"][0]["live"]) == (AGENTS, False)
    assert table.stdout.splitlines()[1].endswith("gone")
    assert table.stderr.startswith(f"cluster: {AGENTS} without a live owner: 101, 102, ")


async def _nothing(_membership: Membership) -> None:
    """Renew nothing."""


async def until_async(condition: Any) -> None:  # noqa: ANN401 - a function that gives an awaitable
    """Wait until a condition that has to be asked for holds."""
    async with asyncio.timeout(60):
        while not await condition():  # noqa: ASYNC110 - nobody tells when it does
            await asyncio.sleep(0.2)


async def _gone(path: Path) -> bool:
    return not (await seen(path))["members"][0]["live"]


async def test_drain_and_undrain(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 6: a drained member is empty until it is told otherwise, or started again; no poll is doubled."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        paths = [configure(tmp_path, simulator, shared_broker, nats, name) for name in ("a", "b")]
        async with members(paths) as running:
            await until(lambda: is_settled(running))
            drained = await invoke_beside("cluster", "drain", "a", "-c", paths[1])
            after = polled_by(running)[0]
            await until(lambda: len(polled_by(running)[1]) == AGENTS)
            status = await seen(paths[0])
            again = await invoke_beside("cluster", "drain", "a", "-c", paths[1])
            last = await invoke_beside("cluster", "drain", "b", "-c", paths[1])
            nobody = await invoke_beside("cluster", "drain", "c", "-c", paths[1])
            back = await invoke_beside("cluster", "undrain", "a", "-c", paths[1])
            await until(lambda: polled_by(running)[0])
            await invoke_beside("cluster", "drain", "a", "-c", paths[1])
            assert await running[0].stop() == "stopped"
            running[0] = await start(paths[0])
            await until(lambda: polled_by(running)[0])
        violations = simulator.violations

    assert (drained.exit_code, one_line(drained)) == (0, "member a: has no agents any more")
    assert after == set()
    assert [each["leaving"] for each in status["members"]] == [True, False]
    assert [each["agents"] for each in status["members"]] == [0, AGENTS]
    assert again.exit_code == 0
    assert (last.exit_code, one_line(last)) == (1, "cluster: no other member would take over what b has")
    assert (nobody.exit_code, one_line(nobody)) == (1, "cluster: no member c; there are a, b")
    assert (back.exit_code, one_line(back)) == (0, "member a: takes its share again")
    assert violations == []


async def test_a_member_that_is_deaf(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 6: a member that does not do as it is told is exit 1, when the time is over."""
    async with servers(tmp_path) as nats, simulated() as simulator:
        paths = [configure(tmp_path, simulator, shared_broker, nats, name) for name in ("a", "deaf")]
        config = load(paths[1])
        async with members(paths[:1]), engine_of(config) as engine:
            await engine.enlist("deaf", msgspec.json.encode(entry(config)))
            done = await invoke_beside("cluster", "drain", "deaf", "-c", paths[0], "--timeout", "1")

    assert (done.exit_code, one_line(done)) == (1, "cluster: member deaf does not answer after 1 s")


@contextlib.asynccontextmanager
async def engine_of(config: Config) -> AsyncIterator[Engine]:
    """Connect beside the members."""
    assert config.cluster is not None
    async with connect(config.cluster, "test") as engine:
        await engine.prepare()
        yield engine


@pytest.mark.parametrize("command", [["status"], ["drain", "a"], ["undrain", "a"]])
def test_without_a_cluster_there_is_nothing_to_look_at(tmp_path: Path, command: list[str]) -> None:
    """Point 6: a configuration without the section is exit 2, servers that are not there exit 1, each in one line."""
    alone = invoke("cluster", *command, "-c", write(tmp_path, NOBODY, "alone.yaml"))
    away = invoke("cluster", *command, "-c", write(tmp_path, MEMBER))

    assert alone.exit_code == 2
    assert one_line(alone).startswith(f"{tmp_path}/alone.yaml: there is no section cluster in it, and no `run ")
    assert away.exit_code == 1
    assert one_line(away).startswith("cluster: ")


def test_cluster_alone_shows_its_help() -> None:
    """The group without a command is wrong usage, as the main command is."""
    done = invoke("cluster")

    assert "drain" in done.stderr
    assert done.exit_code == 2


async def test_the_permissions_that_are_shown_are_enough(
    tmp_path: Path, shared_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """Point 6: a user with what docs/cluster.md lists joins, polls, publishes, drains and leaves; nothing is denied."""
    page = (Path(__file__).parent.parent / "docs/cluster.md").read_text(encoding="utf-8")
    block = page.partition("permissions: {")[2].partition("\n}")[0]
    allowed = {what: re.findall(r'"([^"]+)"', block.partition(f"{what}: [")[2].partition("]")[0]) for what in KINDS}
    users = {"users": [{"user": "adapter", "password": "p", "permissions": allowed}]}
    async with server(tmp_path, authorization=users) as port, simulated() as simulator:
        cluster = {"url": f"nats://{HOST}:{port}", "name": "prod", "key": KEY, "replicas": 1} | log_in("p")
        paths = [
            write(
                tmp_path,
                settings(simulator, shared_broker, instance=name, cluster=cluster, storage={"path": f"{name}.db"}),
                f"{name}.yaml",
            )
            for name in ("a", "b")
        ]
        with Peer(shared_broker, ["agents/#"]) as peer:
            async with members(paths) as running:
                await until(lambda: is_settled(running))
                simulator.emit("101", {"eventType": "AgentState_Ready", "workNo": "101", "content": None})
                await peer.publish("agents/102/calldata/set", b'{"calldata": "x", "id": "permissions"}')
                await peer.publish("agents/bridge/request/agents", b"")
                await peer.wait_for(lambda: events(peer)["101"] and peer.on("agents/102/calldata/result"))
                await peer.wait_for(lambda: peer.on("agents/bridge/response/agents"))
                done = await invoke_beside("cluster", "drain", "a", "-c", paths[0])
                await until(lambda: len(polled_by(running)[1]) == AGENTS)
                status = await seen(paths[0])

    assert done.exit_code == 0
    assert status["unowned"] == []
    assert json.loads(peer.on("agents/bridge/response/agents")[0].payload)["status"] == "ok"
    assert [line for line in caplog.messages if "denied" in line] == []


async def test_keys_change_one_member_after_the_other(tmp_path: Path, shared_broker: Broker) -> None:
    """Point 2: in the three rounds of docs/cluster.md each agent keeps its session and its `seq`, whoever has it."""
    other = base64.b64encode(bytes(32)).decode()
    rounds: list[dict[str, str]] = [
        {"key": KEY},
        {"key": KEY, "former_key": other},
        {"key": other, "former_key": KEY},
        {"key": other},
    ]
    async with servers(tmp_path) as nats, simulated() as simulator:
        running: dict[str, Running] = {}
        work_nos = [agent.work_no for agent in simulator.agents]
        with Peer(shared_broker, ["agents/#"]) as peer:
            try:
                for number, keys in enumerate(rounds, start=1):
                    for name in ("a", "b"):
                        path = configure(tmp_path, simulator, shared_broker, nats, name)
                        write(tmp_path, _values(path) | {"cluster": nats.settings(**keys)}, path.name)
                        if name in running:
                            assert await running[name].stop() == "stopped"
                        running[name] = await start(path)
                        await until(lambda: shared_out([*running.values()], work_nos))
                    status = await seen(path)
                    assert all(each["sameConfiguration"] for each in status["members"]), number
                    for work_no in work_nos:
                        simulator.emit(work_no, {"eventType": "AgentState_Ready", "workNo": work_no, "content": None})
                    await peer.wait_for(lambda: events(peer) >= Counter(work_nos * number))  # noqa: B023 - waited for here
            finally:
                for each in running.values():
                    each.app.stop()
                await asyncio.gather(*(each.task for each in running.values()), return_exceptions=True)
            seen_of = {work_no: decoded(peer.on(f"agents/{work_no}/events")) for work_no in work_nos}

    assert all([event["seq"] for event in each] == [1, 2, 3, 4] for each in seen_of.values())
    assert simulator.violations == []


def shared_out(running: list[Running], work_nos: list[str]) -> bool:
    """Say whether each member has agents, and each agent one member."""
    polled = polled_by(running)
    return all(polled) and sorted(itertools.chain.from_iterable(polled)) == sorted(work_nos)
