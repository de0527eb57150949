"""`check --online`, look by look; the command itself is tried in test_cli, its secrets in test_canary."""

import asyncio
import base64
import contextlib
import datetime as dt
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import trustme

from adapter import doctor
from adapter.config import Config, load
from adapter.doctor import Finding, gateway, summary
from adapter.doctor.host import judge_disk, judge_files, judge_ports, look_at_host
from adapter.machine import Disk
from adapter.nats import find_program
from adapter.simulator import Simulator
from bench.chaos.parts import Part
from tests.adapter_support import running, settings, write
from tests.broker_support import HOST, Broker, Peer, answers, free_ports, mosquitto, nats
from tests.cli_support import COMMAND
from tests.cluster_support import KEY, servers, until
from tests.contract_support import valid
from tests.hostile_support import Proxy
from tests.stage_support import staged

LOOKS = ("servers", "JetStream", "replicas", "members")
OTHER_KEY = base64.b64encode(bytes(32)).decode()
NOBODY = {"gateway": {"url": f"https://{HOST}:9"}, "mqtt": {"url": f"mqtt://{HOST}:9"}}


async def seen(directory: Path, values: dict[str, Any]) -> dict[str, Finding]:
    """Examine a configuration; give what was found by place, without address or file."""
    told: list[str] = []
    config = load(write(directory, {"agents": [{"work_no": "101", "guid": "g"}]} | values))
    findings = await doctor.examine(config, config.mqtt, told.append)
    assert told == [str(finding) for finding in findings]
    return {finding.place.split(f" {HOST}:")[0].split(" /")[0]: finding for finding in findings}


async def seen_of_gateway(directory: Path, url: str, **section: object) -> list[Finding]:
    """Look at the gateway alone."""
    values = NOBODY | {"gateway": {"url": url, **section}, "agents": [{"work_no": "101", "guid": "g"}]}
    return await gateway.look_at_gateway(load(write(directory, values)).gateway)


@contextlib.asynccontextmanager
async def answering(
    *lines: str, status: str = "404 Not Found", tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """Answer every request with a head of these lines; give the address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write("\r\n".join([f"HTTP/1.1 {status}", "Content-Length: 0", *lines, "", ""]).encode())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    yield f"{'http' if tls is None else 'https'}://{HOST}:{port}/agentgateway"
    server.close()
    await server.wait_closed()


async def test_all_is_well(tmp_path: Path, simulator: Simulator, broker: Broker) -> None:
    """Everything is looked at, one line each; no agent is polled, and nothing is left at the broker."""
    with Peer(broker) as peer:
        found = await seen(tmp_path, settings(simulator, broker))
        await peer.publish("done", b"")
        await peer.wait_for(lambda: peer.on("done"))
    with Peer(broker) as late:
        await late.publish("done", b"")
        await late.wait_for(lambda: late.on("done"))

    assert list(found) == [
        *("gateway", "gateway certificate", "clock"),
        *("broker", "broker limits", "broker ACL, read", "broker ACL, write"),
        *("open files", "ephemeral ports", "storage", "storage disk"),
    ]
    assert [finding for finding in found.values() if finding.verdict == "failed"] == []
    assert {found[place].verdict for place in ("gateway", "clock", "broker ACL, write")} == {"ok"}
    assert found["broker limits"].text.endswith("2 agents need 13 retained messages")
    assert [message for message in late.messages if message.topic != "done"] == []
    published = [message for message in peer.messages if message.topic != "done"]
    assert len(published) == 9
    assert not any(message.retain for message in published)
    assert valid(peer) == 9
    # Whoever shows agents as they come has shown this one for a moment only.
    ours = [message.topic.split("/", 2)[2] for message in published if "/check-" in message.topic]
    assert ours.index("events") < min(map(ours.index, ("event", "state", "session", "availability")))
    assert not (tmp_path / "ccgateway2mqtt.db").exists()


async def test_a_plain_gateway(tmp_path: Path) -> None:
    """A gateway that is allowed without TLS is warned of, and its clock is looked at."""
    async with answering(f"Date: {formatdate(usegmt=True)}") as url:
        reached, clock = await seen_of_gateway(tmp_path, url, allow_http=True)

    assert (reached.verdict, reached.text) == ("warning", "reached, without TLS")
    assert clock.verdict == "ok"


async def test_a_gateway_that_is_down_behind_its_front(tmp_path: Path) -> None:
    """A server's own error comes from what stands before the gateway."""
    async with answering(status="503 Nobody") as url:
        reached, _ = await seen_of_gateway(tmp_path, url, allow_http=True)

    assert (reached.verdict, reached.text) == ("warning", "reached, but it answers HTTP 503")


@pytest.mark.parametrize(
    ("offset_s", "verdict", "text"),
    [
        (0, "ok", "within 5 s of the gateway's"),
        (20, "warning", "20 s behind the gateway's"),
        (-20, "warning", "s ahead of the gateway's"),
        (1000, "failed", "1000 s behind the gateway's"),
    ],
)
async def test_clocks_that_differ(tmp_path: Path, offset_s: float, verdict: str, text: str) -> None:
    """The gateway's Date is compared with the clock here, as far as a header in seconds can be."""
    async with answering(f"Date: {formatdate(time.time() + offset_s + 0.5, usegmt=True)}") as url:
        _, clock = await seen_of_gateway(tmp_path, url, allow_http=True)

    assert clock.verdict == verdict
    assert text.lstrip("0123456789") in clock.text
    assert (clock.remedy == "") == (verdict == "ok")


@pytest.mark.parametrize("lines", [(), ("Date: soon",), ("Date: Mon, 31 Feb 99999 99:99:99 GMT",)])
async def test_a_gateway_without_a_clock(tmp_path: Path, lines: tuple[str, ...]) -> None:
    """A header that is no date, or none, is no failure."""
    async with answering(*lines) as url:
        _, clock = await seen_of_gateway(tmp_path, url, allow_http=True)

    assert (clock.verdict, clock.text) == ("ok", "not compared: the gateway does not tell its time")


async def test_a_gateway_behind_a_proxy(tmp_path: Path, simulator: Simulator) -> None:
    """The gateway is looked at through the proxy, with the proxy's log-in, as it will be polled."""
    async with Proxy() as proxy:
        section = {"ca_file": str(simulator.ca_file), "proxy": proxy.address("me:hidden")}
        findings = await seen_of_gateway(tmp_path, simulator.url, **section)
        heads = list(proxy.heads)
    async with Proxy(b"HTTP/1.1 407 Log in\r\n\r\n") as proxy:
        section["proxy"] = proxy.address("me:hidden")
        (refused,) = await seen_of_gateway(tmp_path, simulator.url, **section)

    assert [finding.verdict for finding in findings] == ["ok"] * 3
    assert findings[0].text.startswith("reached, through the proxy, TLSv1.")
    assert [head.startswith(b"CONNECT ") for head in heads] == [True]
    assert refused.verdict == "failed"
    assert "gateway.proxy" in refused.remedy
    assert "hidden" not in f"{refused}{findings}"


async def test_a_gateway_that_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that takes the connection and then says nothing is not waited for long."""
    monkeypatch.setattr(gateway, "TIMEOUT_S", 0.3)
    with socket.create_server((HOST, 0)) as silent:
        url = f"{HOST}:{silent.getsockname()[1]}/agentgateway"
        (handshake,) = await seen_of_gateway(tmp_path, f"https://{url}")
        (answer,) = await seen_of_gateway(tmp_path, f"http://{url}", allow_http=True)

    assert (handshake.verdict, handshake.text) == ("failed", "no TLS connection within 0.3 s")
    assert (answer.verdict, answer.text) == ("failed", "reached, but: no answer within 0.3 s")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 64 + ".example"])
async def test_a_gateway_whose_name_leads_nowhere(tmp_path: Path, host: str) -> None:
    """A name that cannot be looked up, or not even asked for, is a line with what to look at."""
    (finding,) = await seen_of_gateway(tmp_path, f"https://{host}:8043/agentgateway")

    assert (finding.verdict, finding.place) == ("failed", f"gateway {host}:8043")
    assert finding.remedy.startswith("see gateway.url")


@pytest.mark.parametrize(
    ("certificate", "remedy"), [("wrong_host", "use a name in gateway.url"), ("expired", "renew it there")]
)
async def test_a_gateway_whose_certificate_does_not_fit(tmp_path: Path, certificate: Any, remedy: str) -> None:  # noqa: ANN401 - a Literal
    """A certificate for another host, or one that is over, is said; `verify: false` looks away, with a warning."""
    async with Simulator(agents=["101"], certificate=certificate) as simulator:
        (refused,) = await seen_of_gateway(tmp_path, simulator.url, ca_file=str(simulator.ca_file))
        (stranger,) = await seen_of_gateway(tmp_path, simulator.url)
        reached, unverified, _ = await seen_of_gateway(tmp_path, simulator.url, verify=False)

    assert refused.verdict == stranger.verdict == "failed"
    assert "certificate verify failed" in refused.text
    assert refused.remedy.startswith(remedy)
    assert "gateway.ca_file" in stranger.remedy or certificate == "expired"
    assert reached.verdict == "ok"
    assert (unverified.verdict, unverified.text) == ("warning", "not verified, gateway.verify is false")


@pytest.mark.parametrize(("days", "verdict"), [(10, "warning"), (60, "ok")])
async def test_a_certificate_that_ends_soon(tmp_path: Path, days: int, verdict: str) -> None:
    """What ends within weeks is warned of, with the day and who issued it."""
    authority = trustme.CA(organization_unit_name="House \x1bCA")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST, not_after=dt.datetime.now(dt.UTC) + dt.timedelta(days=days, hours=1)).configure_cert(tls)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with answering(tls=tls) as url:
        _, finding, _ = await seen_of_gateway(tmp_path, url, ca_file=str(tmp_path / "ca.pem"))

    assert finding.verdict == verdict
    assert finding.text.startswith(f"good for {days} days, until ")
    assert finding.text.endswith("issued by House  CA")


async def test_a_fleet(tmp_path: Path, simulator: Simulator, shared_broker: Broker) -> None:
    """Issue 6, point 1: a look at the servers, at JetStream, at the copies and at who is there; nothing is made."""

    async def looked(**section: object) -> list[Finding]:
        cluster = {"url": url, "name": "test", "key": KEY, "replicas": 1} | section
        found = await seen(tmp_path, settings(simulator, shared_broker, cluster=cluster))
        return [finding for place, finding in found.items() if place.startswith("cluster")]

    (nobody,) = free_ports(1)
    async with servers(tmp_path) as nats_servers:
        url = nats_servers.url
        first, few = await looked(), await looked(replicas=3)
        again = await looked(url=f"{url},nats://{HOST}:{nobody}")
        path = write(tmp_path, settings(simulator, shared_broker, cluster=nats_servers.settings(), instance="a"))
        async with running(path):
            member, copies, other = await looked(), await looked(replicas=3), await looked(key=OTHER_KEY)
    away = await looked()

    assert [finding.place for finding in first] == [f"cluster {name}" for name in LOOKS]
    assert [finding.verdict for finding in first] == ["warning", "warning", "ok", "ok"]
    assert first[0].text == "logged in at it, without TLS"
    assert first[1].text == "there, 0 MB stored; takes messages of 1 MB, and an event may be larger"
    assert first[3].text == "none yet"
    assert (few[2].verdict, few[2].text) == ("failed", "3, of 1 servers that tell of one another")
    assert again[0].text.startswith("logged in at 1 of 2; ")
    assert again[3].text == "none yet"
    assert [finding.verdict for finding in member[2:]] == ["ok", "ok"]
    assert member[2].text == "stored on 1 servers, cluster.replicas is 1"
    assert member[3].text.startswith("a (")
    assert copies[2].verdict == "failed"
    assert (other[3].verdict, other[3].text.partition("; ")[2]) == ("failed", "with another configuration: a")
    assert [(finding.verdict, finding.place) for finding in away] == [("failed", "cluster servers")]


async def test_a_fleet_without_a_quorum(tmp_path: Path, simulator: Simulator, shared_broker: Broker) -> None:
    """Issue 6, point 5: it is said that servers are missing, and not that something is forbidden."""
    remedy = "start the other servers: most of them have to run"
    async with servers(tmp_path, 3) as nats_servers:
        for node in nats_servers.nodes[1:]:
            await node.kill()

        async def says_so() -> dict[str, Finding]:
            return await seen(tmp_path, settings(simulator, shared_broker, cluster=nats_servers.settings()))

        while "temporarily unavailable" not in (found := await says_so())["cluster JetStream"].text:
            assert found["cluster JetStream"].verdict != "failed" or found["cluster JetStream"].remedy == remedy

    assert found["cluster servers"].text.startswith("logged in at 1 of 3; ")
    assert (found["cluster JetStream"].verdict, found["cluster JetStream"].remedy) == ("failed", remedy)
    assert found["broker ACL, read"].text == "subscribed to 11 topics"


async def test_servers_without_jetstream_or_log_in(tmp_path: Path, simulator: Simulator, shared_broker: Broker) -> None:
    """Issue 6, point 1: each is told with what to do; no password is shown."""
    (port,) = free_ports(1)
    config = {"host": HOST, "port": port, "authorization": {"user": "adapter", "password": "right"}}
    (tmp_path / "n.conf").write_text(json.dumps(config))
    node = Part("n", [str(find_program()), "-c", str(tmp_path / "n.conf")], tmp_path)
    await node.start()
    try:
        await until(lambda: answers(port))
        cluster = {"url": f"nats://{HOST}:{port}", "name": "test", "key": KEY, "username": "adapter"}
        told = [
            await seen(tmp_path, settings(simulator, shared_broker, cluster=cluster | {"password": word}))
            for word in ("right", "guessed")
        ]
    finally:
        await node.close()

    assert told[0]["cluster JetStream"].verdict == "failed"
    assert "jetstream {" in told[0]["cluster JetStream"].remedy
    assert told[1]["cluster servers"].verdict == "failed"
    assert told[1]["cluster servers"].text.endswith(": log-in refused")
    assert "guessed" not in str(told[1])


async def test_brokers_over_every_transport(tmp_path: Path, simulator: Simulator) -> None:
    """The log-in is tried with TLS and over websocket too, in the version that the broker speaks."""
    with mosquitto(tmp_path / "mosquitto", schemes=("mqtts",)) as broker:
        assert broker.certificates is not None
        section = {"url": broker.url("mqtts"), "ca_file": str(broker.certificates.ca_file)}
        found = await seen(tmp_path, settings(simulator, broker, mqtt=section))
        refused = await seen(tmp_path, settings(simulator, broker, mqtt={"url": broker.url("mqtts")}))
    with nats(tmp_path / "nats") as broker:
        plain = await seen(tmp_path, settings(simulator, broker, mqtt={"url": broker.url("ws")}))

    assert found["broker"].text == "logged in, MQTT 5"
    assert found["broker certificate"].verdict == "ok"
    assert refused["broker"].verdict == "failed"
    assert "mqtt.ca_file" in refused["broker"].remedy
    assert plain["broker"].text == "logged in, MQTT 3.1.1"
    assert plain["broker limits"].text.startswith("not told with MQTT 3.1.1; ")
    assert plain["broker ACL, write"].verdict == "ok"


async def test_a_broker_that_is_not_there(tmp_path: Path, simulator: Simulator, broker: Broker) -> None:
    """Nobody at the broker's address is a line that names it, and all else is looked at."""
    (port,) = free_ports(1)
    found = await seen(tmp_path, settings(simulator, broker, mqtt={"url": f"mqtt://{HOST}:{port}"}))

    assert found["broker"].verdict == "failed"
    assert f"{HOST}:{port}: " in found["broker"].text
    assert found["broker"].remedy.startswith("see mqtt.url")
    assert list(found)[-1] == "storage disk"


async def test_a_log_in_that_is_refused(tmp_path: Path, simulator: Simulator) -> None:
    """A wrong password is told apart from a broker that is not there."""
    with mosquitto(tmp_path / "mosquitto", users={"adapter": "right"}) as broker:
        found = await seen(tmp_path, settings(simulator, broker, mqtt={"password": "guessed"}))

    assert found["broker"].verdict == "failed"
    assert "mqtt.password" in found["broker"].remedy
    assert "guessed" not in str(found)


ACL = "topic read #\ntopic write agents/+/event\ntopic write agents/+/state\ntopic write agents/bridge/#\n"
DENIED = ["availability", "calldata/result", "events", "session", "session/result"]


async def test_it_runs_beside_the_adapter(tmp_path: Path, shared_broker: Broker) -> None:
    """Nothing of the running adapter is disturbed: its connection, its polls, what is retained; `running` looks at all.

    What it publishes is within the contract, so that nobody who listens stumbles over it.
    """
    async with staged(tmp_path, shared_broker) as stage, stage.running() as adapter:
        await stage.polling("101")
        await stage.wait("101/state")
        await adapter.app._outbox.flushed()
        found = await seen(tmp_path, stage.values())
        stage.simulator.emit_sample("101", "AgentState_Ready")
        await stage.wait("101/event", seq=1)

        assert [place for place, finding in found.items() if finding.verdict == "failed"] == []
        assert stage.json("bridge/log") == []
        assert [message.payload for message in stage.on("bridge/availability")] == [b"online"]
        assert len(stage.on("bridge/mark")) <= 1


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_an_acl_that_denies(tmp_path: Path, simulator: Simulator, protocol: str) -> None:
    """What the adapter may not write is named: with MQTT 5 by the PUBACK, with 3.1.1 since it does not come back."""
    with mosquitto(tmp_path / "mosquitto", acl=ACL) as broker:
        found = await seen(tmp_path, settings(simulator, broker, mqtt={"protocol": protocol}))

    finding = found["broker ACL, write"]
    told = "denied: " if protocol == "5" else "acknowledged, but not seen again: "
    assert finding.text == told + ", ".join(f"agents/<workNo>/{name}" for name in DENIED)
    assert finding.verdict == ("failed" if protocol == "5" else "warning")
    assert finding.remedy == "allow anonymous clients to write there"


async def test_the_acl_of_the_examples(tmp_path: Path, simulator: Simulator) -> None:
    """examples/mosquitto/acl lets the adapter do all that is tried."""
    acl = (Path(__file__).parent.parent / "examples/mosquitto/acl").read_text(encoding="utf-8")
    with mosquitto(tmp_path / "mosquitto", acl=acl, users={"adapter": "p"}) as broker:
        found = await seen(tmp_path, settings(simulator, broker))

    assert (found["broker ACL, write"].verdict, found["broker ACL, read"].verdict) == ("ok", "ok")


async def test_what_is_switched_off_is_not_asked_for(tmp_path: Path, simulator: Simulator) -> None:
    """`mqtt.stream: false` and `commands` need no rule in the ACL; discovery needs one."""
    acl = ACL + "".join(f"topic write agents/+/{name}\n" for name in DENIED if name != "events")
    with mosquitto(tmp_path / "mosquitto", acl=acl) as broker:
        values = settings(simulator, broker, mqtt={"stream": False}, commands={"calldata": False, "session": False})
        found = await seen(tmp_path, values)
        announced = await seen(tmp_path, values | {"home_assistant": {"discovery": True, "prefix": "ha"}})

    assert found["broker ACL, write"].verdict == "ok"
    assert found["broker ACL, read"].text == "subscribed to 5 topics"
    assert announced["broker ACL, write"].text == "denied: ha/device/<workNo>/config"


async def test_a_subscription_that_is_denied(tmp_path: Path, simulator: Simulator) -> None:
    """A broker that refuses a subscription is told which; the others are tried all the same."""
    with nats(tmp_path / "nats", users={"adapter": "p"}, deny="agents.*.session.set") as broker:
        found = await seen(tmp_path, settings(simulator, broker))

    finding = found["broker ACL, read"]
    assert (finding.verdict, finding.text) == ("failed", "not allowed: agents/+/session/set")


@pytest.mark.parametrize(
    ("line", "verdict", "text"),
    [
        ("retain_available false", "failed", "no retained messages"),
        ("max_packet_size 600", "failed", "packets up to 600 bytes; the roster has "),
        ("max_packet_size 20000", "warning", "packets up to 20000 bytes; the roster has "),
        ("max_inflight_messages 5", "warning", "5 messages in flight, 2 agents want 10"),
        ("max_inflight_messages 30", "ok", "30 messages in flight, of any size; "),
        ("max_packet_size 100000", "ok", "20 messages in flight, up to 100000 bytes; "),
    ],
)
async def test_limits_of_a_broker(tmp_path: Path, simulator: Simulator, line: str, verdict: str, text: str) -> None:
    """What CONNACK says is compared with what the agents need."""
    with mosquitto(tmp_path / "mosquitto", extra=[line]) as broker:
        found = await seen(tmp_path, settings(simulator, broker))

    assert found["broker limits"].verdict == verdict
    assert found["broker limits"].text.startswith(text)


async def test_a_broker_without_acknowledgments(tmp_path: Path, simulator: Simulator) -> None:
    """QoS 0 alone is not enough; what cannot be acknowledged is not tried out."""
    (port,) = free_ports(1)
    with mosquitto(tmp_path / "mosquitto", extra=[f"listener {port} {HOST}", "max_qos 0"]) as broker:
        found = await seen(tmp_path, settings(simulator, broker, mqtt={"url": f"mqtt://{HOST}:{port}"}))

    assert (found["broker limits"].verdict, found["broker limits"].text) == ("failed", "no QoS 1")
    assert "broker ACL, write" not in found


async def test_limits_for_many_agents(tmp_path: Path, simulator: Simulator, broker: Broker) -> None:
    """More agents want more in flight, and have a larger roster."""
    agents = [{"work_no": f"{number}", "guid": "g", "name": "N" * 60} for number in range(600)]
    found = await seen(tmp_path, settings(simulator, broker, agents=agents))

    assert found["broker limits"].text == "20 messages in flight, 600 agents want 50"


def test_storage(tmp_path: Path) -> None:
    """A directory that is missing or not to be written to fails; memory is no disk, and the file must be writable."""

    def verdicts(path: Path) -> list[tuple[str, str]]:
        storage = replace(config.storage, path=path)
        return [(each.verdict, each.remedy) for each in look_at_host(1, storage) if each.place.startswith("storage")]

    config: Config = load(write(tmp_path, NOBODY | {"agents": [{"work_no": "1", "guid": "g"}]}))

    assert verdicts(tmp_path / "o.db")[0][0] in ("ok", "warning")
    assert [verdict for verdict, _ in verdicts(tmp_path / "none" / "o.db")] == ["failed"]
    assert [verdict for verdict, _ in verdicts(Path("/proc/o.db"))] == ["failed"]
    assert verdicts(Path("/dev/shm/o.db"))[1][1].startswith("put storage.path on a disk")  # noqa: S108 - memory is what is wanted
    assert list(tmp_path.glob("o.db*")) == []


def test_limits_of_the_machine() -> None:
    """Each bound, on both sides of it."""
    assert [judge_files(limit, 1000).verdict for limit in (None, 1064, 1063)] == ["ok", "ok", "failed"]
    assert [judge_ports(1000, agents).verdict for agents in (700, 701, 1000)] == ["ok", "warning", "failed"]
    mib = 1024 * 1024
    disks = [Disk("ext4", 100 * mib), Disk("ext4", 99 * mib), Disk("tmpfs", 200 * mib), Disk("overlay", 200 * mib)]
    disks += [Disk("nfs4", 200 * mib), Disk(None, 200 * mib)]
    assert [judge_disk(disk, 100).verdict for disk in disks] == ["ok", *["warning"] * 4, "ok"]
    assert all(judge_disk(disk, 100).remedy for disk in disks[1:5])


def test_the_last_line() -> None:
    """How many were looked at, and how many are not well."""
    well, warned, failed = Finding("ok", "a", "b"), Finding("warning", "a", "b", "c"), Finding("failed", "a", "b", "c")

    assert summary([well]) == "1 checks, all well"
    assert summary([well, warned]) == "2 checks, 1 warning"
    assert summary([warned, warned]) == "2 checks, 2 warnings"
    assert summary([well, warned, failed]) == "1 of 3 checks failed"
    assert (str(well), str(failed)) == ("ok      a: b", "failed  a: b - c")


async def test_a_limit_of_open_files_that_is_too_low(tmp_path: Path, simulator: Simulator, broker: Broker) -> None:
    """A process that may open fewer files than there are agents says so, and ends with exit code 1."""
    agents = [{"work_no": f"{number}", "guid": "g"} for number in range(100)]
    path = write(tmp_path, settings(simulator, broker, agents=agents))
    process = await asyncio.create_subprocess_exec(
        *("prlimit", "--nofile=100:100", *COMMAND, "check", "-c", str(path), "--online"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, told = await process.communicate()
    lines = told.decode().splitlines()

    (failed,) = [line for line in lines if line.startswith("failed")]
    assert failed.startswith("failed  open files: at most 100 here, 100 agents need 164 - raise LimitNOFILE")
    assert lines[-1] == f"{path}: 1 of 11 checks failed"
    assert process.returncode == 1
