"""`check --online`, look by look; the command itself is tried in test_cli."""

import asyncio
import socket
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from adapter import check
from adapter.config import Config, broker_at, load
from adapter.simulator import Simulator
from tests.adapter_support import write
from tests.broker_support import HOST, Broker, certificates, free_ports, mosquitto, nats


def config(directory: Path, url: str, **gateway: object) -> Config:
    """Make a configuration whose gateway is at `url`."""
    values = {
        "gateway": {"url": url, **gateway},
        "mqtt": {"url": f"mqtt://{HOST}"},
        "agents": [{"work_no": "101", "guid": "g"}],
    }
    return load(write(directory, values))


async def look(made: Config, broker: Broker, scheme: str = "mqtt", **mqtt: object) -> tuple[int, list[str]]:
    """Look at both; give the number of failures and what was told of each."""
    told: list[str] = []
    section = replace(broker_at(broker.url(scheme), "agents"), **mqtt)  # type: ignore[arg-type] # members by name
    return await check.online(made, section, told.append), told


async def test_a_plain_gateway(tmp_path: Path, shared_broker: Broker) -> None:
    """A gateway that is allowed without TLS is said to be so."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), HOST, 0)
    port = server.sockets[0].getsockname()[1]
    made = config(tmp_path, f"http://{HOST}:{port}/agentgateway", allow_http=True)

    failed, told = await look(made, shared_broker)

    assert (failed, told[0]) == (0, f"gateway {HOST}:{port}: reached, without TLS")
    server.close()
    await server.wait_closed()


async def test_a_gateway_behind_a_proxy(tmp_path: Path, shared_broker: Broker) -> None:
    """A gateway behind a proxy cannot be looked at, which is said and no failure."""
    made = config(tmp_path, "https://gateway.example/agentgateway", proxy="http://proxy.example:3128")

    failed, told = await look(made, shared_broker)

    assert (failed, told[0]) == (0, "gateway gateway.example:443: not tried, since it is reached through a proxy")


async def test_a_gateway_that_is_silent(tmp_path: Path, shared_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that takes the connection and then says nothing is not waited for long."""
    monkeypatch.setattr(check, "_TIMEOUT_S", 0.3)
    with socket.create_server((HOST, 0)) as silent:
        port = silent.getsockname()[1]
        failed, told = await look(config(tmp_path, f"https://{HOST}:{port}/agentgateway"), shared_broker)

    assert (failed, told[0]) == (1, f"gateway {HOST}:{port}: no answer within 0.3 s")


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 64 + ".example"])
async def test_a_gateway_whose_name_leads_nowhere(tmp_path: Path, shared_broker: Broker, host: str) -> None:
    """A name that cannot be looked up, or not even asked for, is a line."""
    failed, told = await look(config(tmp_path, f"https://{host}:8043/agentgateway"), shared_broker)

    assert failed == 1
    assert told[0].startswith(f"gateway {host}:8043: ")


@pytest.mark.parametrize("certificate", ["wrong_host", "expired"])
async def test_a_gateway_whose_certificate_does_not_fit(
    tmp_path: Path, shared_broker: Broker, certificate: str
) -> None:
    """A certificate for another host, or one that is over, is said; `verify: false` looks away."""
    async with Simulator(agents=["101"], certificate=certificate) as gateway:  # type: ignore[arg-type] # a Literal
        failed, told = await look(config(tmp_path, gateway.url, ca_file=str(gateway.ca_file)), shared_broker)
        unverified, _ = await look(config(tmp_path, gateway.url, verify=False), shared_broker)

    assert failed == 1
    assert "its certificate is refused: " in told[0]
    assert unverified == 0


async def test_a_gateway_that_never_says_goodbye(
    tmp_path: Path, shared_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that lets the connection hang at its end was reached all the same."""
    monkeypatch.setattr(check, "_CLOSE_S", 0.1)
    made = certificates(tmp_path / "certificates")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(made.cert_file, made.key_file)
    over = asyncio.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            wrapped = ssl.MemoryBIO(), ssl.MemoryBIO()
            line = tls.wrap_bio(*wrapped, server_side=True)
            while True:
                try:
                    line.do_handshake()
                except ssl.SSLWantReadError:
                    connection.sendall(wrapped[1].read())
                    wrapped[0].write(connection.recv(65536))
                else:
                    break
            connection.sendall(wrapped[1].read())
            asyncio.run_coroutine_threadsafe(over.wait(), loop).result()

    loop = asyncio.get_running_loop()
    with socket.create_server((HOST, 0)) as listener:
        serving = asyncio.create_task(asyncio.to_thread(serve, listener))
        url = f"https://{HOST}:{listener.getsockname()[1]}/agentgateway"
        failed, told = await look(config(tmp_path, url, ca_file=str(made.ca_file)), shared_broker)
        over.set()
        await serving

    assert failed == 0
    assert "reached, TLSv1" in told[0]


async def test_brokers_over_every_transport(tmp_path: Path, simulator: Simulator) -> None:
    """The log-in is tried with TLS and over websocket too, and in the version that the broker speaks."""
    made = config(tmp_path, simulator.url, ca_file=str(simulator.ca_file))
    with mosquitto(tmp_path / "mosquitto", schemes=("mqtts",)) as broker:
        assert broker.certificates is not None
        failed, told = await look(made, broker, "mqtts", ca_file=broker.certificates.ca_file)
        assert (failed, told[1]) == (0, f"broker {HOST}:{broker.ports['mqtts']}: logged in, MQTT 5")
        failed, told = await look(made, broker, "mqtts")
        assert failed == 1
        assert "certificate is refused" in told[1]
    with nats(tmp_path / "nats") as broker:
        failed, told = await look(made, broker, "ws")
        assert (failed, told[1]) == (0, f"broker {HOST}:{broker.ports['ws']}: logged in, MQTT 3.1.1")


async def test_a_broker_that_is_not_there(tmp_path: Path, simulator: Simulator) -> None:
    """Nobody at the broker's address is a line that names it."""
    (port,) = free_ports(1)
    told: list[str] = []
    made = config(tmp_path, simulator.url, ca_file=str(simulator.ca_file))

    failed = await check.online(made, broker_at(f"mqtt://{HOST}:{port}", "agents"), told.append)

    assert failed == 1
    assert told[1].startswith(f"broker {HOST}:{port}: ")
