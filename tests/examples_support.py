"""What the tests of examples/ need: the shipped files put to work on free ports, and clients that look on.

Rules of this file: an example is used as it is shipped. Only what names a place is replaced: ports, paths,
host names and passwords. A replacement that finds nothing to replace is an error, so that the examples and their
tests cannot drift apart.
"""

import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
DEADLINE_S = 20.0
"""How long anything that is waited for may take on a busy machine."""

INSTALL = {
    "mosquitto": "apt-get install mosquitto",
    "mosquitto_passwd": "apt-get install mosquitto",
    "openssl": "apt-get install openssl",
    "node": "apt-get install nodejs",
    "systemd-analyze": "apt-get install systemd",
}


def find(program: str) -> str:
    """Find a program that a test needs; its absence fails the test with what to install."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        pytest.fail(f"{program} is missing: {INSTALL[program]}", pytrace=False)
    return path


def shell_blocks(markdown: Path) -> list[str]:
    """Take the blocks marked `sh` out of a page: the commands that its reader is told to run."""
    return re.findall(r"^```sh\n(.*?)^```$", markdown.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def replace(text: str, replacements: dict[str, str]) -> str:
    """Replace each key with its value; each must be there."""
    for old, new in replacements.items():
        assert old in text, f"the example has no {old!r} any more"
        text = text.replace(old, new)
    return text


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until `condition` holds; fail with `what` was waited for after `DEADLINE_S`."""
    end = time.monotonic() + DEADLINE_S
    pause = threading.Event()
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited {DEADLINE_S:.0f} s in vain: {what}")
        pause.wait(0.01)


def free_port() -> int:
    """Find a TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What the commands in examples/mosquitto/README.md made.

    Attributes:
        path: The directory with `passwords`, `ca.pem`, `server.pem` and `server.key`.
        passwords: The password of each user.
    """

    path: Path
    passwords: dict[str, str] = field(repr=False)


def make_credentials(path: Path) -> Credentials:
    """Run the commands of the broker's README in `path`."""
    find("mosquitto_passwd")
    find("openssl")
    (block,) = shell_blocks(EXAMPLES / "mosquitto/README.md")
    subprocess.run(["sh", "-c", block], cwd=path, check=True, capture_output=True)
    lines = (path / "passwords.txt").read_text(encoding="utf-8").splitlines()
    return Credentials(path=path, passwords=dict(line.split(":", 1) for line in lines))


class Broker:
    """A Mosquitto that runs with the shipped files.

    Attributes:
        port: The plain listener's port.
        tls_port: The TLS listener's port.
        wss_port: The websockets listener's port.
    """

    def __init__(self, path: Path, credentials: Credentials) -> None:
        self.credentials = credentials
        self.path = path
        self.port, self.tls_port, self.wss_port = free_port(), free_port(), free_port()
        self._conf_d = path / "conf.d"
        self._conf_d.mkdir(parents=True)
        (path / "data").mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        acl = path / "acl"
        shutil.copy(EXAMPLES / "mosquitto/acl", acl)
        acl.chmod(0o600)

    def configure(self, edit: Callable[[str], str] = lambda text: text) -> None:
        """Write mosquitto.conf with this broker's ports and paths; `edit` changes it further."""
        files = self.credentials.path
        text = (EXAMPLES / "mosquitto/mosquitto.conf").read_text(encoding="utf-8")
        text = replace(
            text,
            {
                "listener 1883 127.0.0.1": f"listener {self.port} 127.0.0.1",
                "listener 8883": f"listener {self.tls_port} 127.0.0.1",
                # The address of a websockets listener counts only together with socket_domain.
                "listener 8084": f"listener {self.wss_port} 127.0.0.1\nsocket_domain ipv4",
                "/etc/mosquitto/passwords": str(files / "passwords"),
                "/etc/mosquitto/acl": str(self.path / "acl"),
                "/etc/mosquitto/certs/server.pem": str(files / "server.pem"),
                "/etc/mosquitto/certs/server.key": str(files / "server.key"),
                "/var/lib/mosquitto/": f"{self.path / 'data'}/",
                "#include_dir /etc/mosquitto/conf.d": f"include_dir {self._conf_d}",
            },
        )
        # Run by root it would become the user mosquitto, who may not look into the tests' directory.
        (self.path / "mosquitto.conf").write_text(f"user root\n{edit(text)}", encoding="utf-8")

    def bridge_to(self, other: "Broker") -> None:
        """Install the shipped bridge.conf, pointed at `other`."""
        text = (EXAMPLES / "mosquitto/bridge.conf").read_text(encoding="utf-8")
        text = replace(
            text,
            {
                "central.example:8883": f"localhost:{other.tls_port}",
                "/etc/mosquitto/certs/central-ca.pem": str(other.credentials.path / "ca.pem"),
                "CHANGE-ME": other.credentials.passwords["bridge"],
            },
        )
        (self._conf_d / "bridge.conf").write_text(text, encoding="utf-8")

    def start(self) -> None:
        """Start the broker and wait until it listens."""
        command = [find("mosquitto"), "-c", str(self.path / "mosquitto.conf")]
        with (self.path / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stderr=log, stdout=log)
        wait_for(self._listens, f"a broker on port {self.wss_port}; {self.log()}")

    def stop(self) -> None:
        """End the broker cleanly, if it runs."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(DEADLINE_S)
            self._process = None

    def log(self) -> str:
        """Read what the broker said so far."""
        return (self.path / "log").read_text(encoding="utf-8")

    def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        try:
            for port in (self.port, self.tls_port, self.wss_port):
                socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True


@dataclass(slots=True, kw_only=True)
class Client:
    """One user of a broker, with what it has received.

    Attributes:
        received: Topic and payload of each message, in the order of arrival.
        receive_maximum: What the broker's CONNACK said.
    """

    client: mqtt.Client
    user: str
    received: list[tuple[str, bytes]] = field(default_factory=list)
    receive_maximum: int | None = None
    _connack: list[str] = field(default_factory=list)
    _acks: dict[int, str] = field(default_factory=dict)
    _subacks: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.client.on_connect = self._on_connect
        self.client.on_publish = self._on_publish
        self.client.on_subscribe = self._on_subscribe
        self.client.on_message = self._on_message

    def connect(self, port: int, *, lasting: bool = False) -> str:
        """Connect, and return the name of the CONNACK's reason code; a `lasting` session outlives the connection."""
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho has not typed it
        properties.SessionExpiryInterval = 3600 if lasting else 0
        self.client.connect("localhost", port, clean_start=not lasting, properties=properties)
        self.client.loop_start()
        wait_for(lambda: bool(self._connack), f"CONNACK for {self.user}")
        return self._connack[0]

    def subscribe(self, *filters: str) -> None:
        """Subscribe at QoS 1 and wait for the SUBACK."""
        _, mid = self.client.subscribe([(topic, 1) for topic in filters])
        wait_for(lambda: mid in self._subacks, f"SUBACK for {self.user}")

    def publish(self, topic: str, payload: str = "x", *, retain: bool = False) -> str:
        """Publish at QoS 1 and return the name of the PUBACK's reason code."""
        mid = self.client.publish(topic, payload, qos=1, retain=retain).mid
        wait_for(lambda: mid in self._acks, f"PUBACK for {topic} of {self.user}")
        return self._acks[mid]

    def may_publish(self, topic: str) -> bool:
        """Say whether the broker let a message to `topic` pass."""
        reason = self.publish(topic)
        assert reason in {"Success", "No matching subscribers", "Not authorized"}
        return reason != "Not authorized"

    def topics(self) -> set[str]:
        """List the topics that something was received on."""
        return {topic for topic, _ in self.received}

    def payloads(self, topic: str) -> list[bytes]:
        """List what was received on `topic`, in order."""
        return [payload for received_topic, payload in self.received if received_topic == topic]

    def _on_connect(
        self,
        _client: mqtt.Client,
        _userdata: object,
        _flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self.receive_maximum = getattr(properties, "ReceiveMaximum", None)
        self._connack.append(reason.getName())

    def _on_publish(
        self,
        _client: mqtt.Client,
        _userdata: object,
        mid: int,
        reason: ReasonCode,
        _properties: Properties,
    ) -> None:
        self._acks[mid] = reason.getName()

    def _on_subscribe(
        self,
        _client: mqtt.Client,
        _userdata: object,
        mid: int,
        _reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        self._subacks.add(mid)

    def _on_message(self, _client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        self.received.append((message.topic, bytes(message.payload)))


@contextmanager
def client_of(
    broker: Broker,
    user: str | None,
    transport: Literal["tcp", "websockets"] = "tcp",
    client_id: str = "",
) -> Iterator[Client]:
    """Make a client that checks the broker's certificate; it is not connected yet.

    Args:
        broker: Whose password is used, and whose certificate is expected.
        user: A user of the shipped ACL, or `None` to come without a name.
        transport: ``websockets`` for the listener of the wall.
        client_id: Wanted only for a lasting session.
    """
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        protocol=mqtt.MQTTv5,
        transport=transport,
        reconnect_on_failure=False,
    )
    client.tls_set_context(ssl.create_default_context(cafile=broker.credentials.path / "ca.pem"))
    if user is not None:
        client.username_pw_set(user, broker.credentials.passwords[user])
    client.max_inflight_messages_set(200)
    try:
        yield Client(client=client, user=str(user))
    finally:
        client.disconnect()
        client.loop_stop()


@contextmanager
def connected(broker: Broker, user: str) -> Iterator[Client]:
    """Connect one of the shipped ACL's users over TLS."""
    with client_of(broker, user) as client:
        assert client.connect(broker.tls_port) == "Success"
        yield client
