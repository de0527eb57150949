"""The configuration: a YAML file, validated as a whole, as frozen values that travel through the program.

Place in the picture: made first, and read by everything above. Dicts never leave this file; each part of the program
gets its own section. Defaults stand in `grammar` alone.

Rule of this file: no secret's value in an error, a `repr`, or in what `public` gives out.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import voluptuous as vol

from adapter.config.check import validate
from adapter.config.grammar import MQTT
from adapter.config.nodes import Finding, key_path
from adapter.config.source import read
from adapter.config.words import Url
from adapter.errors import ConfigError, Problem

PORTS = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
"""The default ports of an address of a broker."""
NATS_PORT = 4222
"""The default port of an address of a NATS server."""
FLEET = ".fleet"
"""How the name of the directory ends that several processes have beside the database."""
WEBSOCKET_PATH = "/mqtt"
"""Where brokers speak MQTT over websocket unless told: Mosquitto anywhere, EMQX, HiveMQ and nats-server here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to wait after one failure and the next.

    Attributes:
        initial_s: Seconds of the first wait, at least.
        maximum_s: Seconds of any wait, at most.
    """

    initial_s: float
    maximum_s: float

    def delays(self) -> Iterator[float]:
        """Make waits in seconds, without end; a success begins with a new iterator.

        Each lies in the upper quarter below a ceiling that doubles, from 4/3 of `initial_s` up to `maximum_s`: with
        the default 1.5 the first is 1.5 to 2 s, then 3 to 4 s. The jitter keeps agents apart that failed together.
        """
        ceiling_s = min(self.initial_s * 4 / 3, self.maximum_s)
        while True:
            yield random.uniform(max(self.initial_s, ceiling_s * 3 / 4), ceiling_s)  # noqa: S311 - keeps no secret
            ceiling_s = min(ceiling_s * 2, self.maximum_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    """The CC-Gateway.

    Attributes:
        url: Its address, without a slash at the end.
        auth_mode: ``dynamic`` where any answer may bring a new GUID (P8).
        ca_file: Certificates to trust; `None` is the system's trust.
        verify: Whether its certificate is checked at all.
        hold_s: Seconds it holds a poll without an event.
        timeout_s: Seconds to wait for an answer, more than `hold_s`.
        interval_s: Least and most seconds from an answer to the next poll (P4).
        error_backoff: Waits after failures (P5).
        allow_http: Whether `url` may be without TLS.
        proxy: Address of an HTTP proxy, which may hold its password.
    """

    url: str
    auth_mode: Literal["dynamic", "static"]
    ca_file: Path | None
    verify: bool
    hold_s: float
    timeout_s: float
    interval_s: tuple[float, float]
    error_backoff: Backoff
    allow_http: bool
    proxy: str | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAddress:
    """Where a broker is.

    Attributes:
        host: A name or an address, IPv6 without brackets.
        path: Of websockets; ``""`` for the others.
    """

    host: str
    port: int
    path: str

    def __str__(self) -> str:
        """Name it, for people."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttConfig:
    """The broker.

    Attributes:
        url: Its addresses as configured; `scheme` and `addresses` are their parts with defaults.
        addresses: At least one; where there are several, each leads to the same broker or to one that may stand in.
        client_id: The client id of the adapter's own connection.
        keepalive_s: Seconds between signs of life.
        stream: Whether events also go out unretained.
        response_prefix: Where response topics of MQTT 5 may lie (C8); `None` is nowhere.
    """

    url: str
    scheme: Literal["mqtt", "mqtts", "ws", "wss"]
    addresses: tuple[BrokerAddress, ...]
    username: str | None
    password: str | None = field(repr=False)
    client_id: str
    protocol: Literal["auto", "5", "3.1.1"]
    ca_file: Path | None
    cert_file: Path | None
    key_file: Path | None
    verify: bool
    keepalive_s: int
    topic_prefix: str
    stream: bool
    response_prefix: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInConfig:
    """How the adapter signs an agent in (C6).

    Attributes:
        force: Whether a sign-in elsewhere may be ended by ours.
        again: Whether to sign in again by itself when the session has ended (P6).
    """

    password: str = field(repr=False)
    phone: str
    status: Literal["idle", "busy", "work"]
    force: bool
    again: bool
    sign_out_at_exit: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """One agent; exactly one of `guid`, `guid_file` and `sign_in` is set."""

    work_no: str
    name: str | None
    group: str | None
    guid: str | None = field(repr=False)
    guid_file: Path | None
    sign_in: SignInConfig | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """The database; `max_mb` is its largest size in MiB."""

    path: Path
    max_mb: int

    @property
    def fleet(self) -> Path:
        """Where several processes on this machine keep what is theirs: a directory beside the database."""
        path = self.path.resolve()  # as the database's lock
        return path.with_name(path.name + FLEET)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandsConfig:
    """Which command topics are subscribed (C9)."""

    calldata: bool
    session: bool
    bridge: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeAssistantConfig:
    """Home Assistant's discovery; `birth_topic` and `birth_payload` are its birth message."""

    discovery: bool
    prefix: str
    max_agents: int
    birth_topic: str
    birth_payload: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyConfig:
    """What is masked before anything is stored or published.

    Attributes:
        members: Names of members; `None` is every member known to carry a phone number.
    """

    members: frozenset[str] | None
    method: Literal["last4", "hash", "drop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """The HTTP listener.

    Attributes:
        host: Where it listens.
        port: 0 is any free one.
        wall: Whether it serves the wall page.
        wall_broker: Where browsers find the broker, ``ws://`` or ``wss://``; `None` leaves it to who opens the page.
    """

    host: str
    port: int
    wall: bool
    wall_broker: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """The fleet that this process is a member of.

    Attributes:
        urls: The NATS servers, each with its port.
        name: The fleet's name.
        keys: What seals GUIDs: the first one is used, the others are known; in base64 with ``-`` and ``_``.
        credentials: A file of NATS credentials.
        replicas: On how many servers everything is stored.
        moves: How many agents are handed over at a time.
    """

    urls: tuple[str, ...]
    name: str
    keys: tuple[str, ...] = field(repr=False)
    username: str | None
    password: str | None = field(repr=False)
    credentials: Path | None
    ca_file: Path | None
    cert_file: Path | None
    key_file: Path | None
    replicas: int
    moves: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """What is logged: `level` is ``debug``, ``info``, ``warning`` or ``error``.

    Attributes:
        member: Stands in each line, where several processes write to one place.
    """

    level: str
    format: Literal["text", "json"]
    member: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration; all paths in it are absolute.

    Attributes:
        privacy: `None` where nothing is masked.
        http: `None` where the listener is off.
        cluster: `None` where this process is alone.
        path: The file it was read from.
    """

    instance: str
    gateway: GatewayConfig
    mqtt: MqttConfig
    agents: tuple[AgentConfig, ...]
    storage: StorageConfig
    commands: CommandsConfig
    home_assistant: HomeAssistantConfig
    privacy: PrivacyConfig | None
    http: HttpConfig | None
    cluster: ClusterConfig | None
    log: LogConfig
    path: Path


def load(path: Path) -> Config:
    """Read and validate a configuration file, with the files that it includes and its secrets.

    It opens the certificate files too, and connects to nothing. It takes about 0.2 s per 1,000 agents (1 s
    where PyYAML has no libyaml), so a running program reads it in a thread.

    Args:
        path: The file; errors name it just as it is given here.

    Raises:
        ConfigError: With every mistake, in the order of the file.
    """
    root, findings = read(path)
    values, mistakes = ({}, []) if root.broken else validate(root)
    findings += mistakes
    if findings:
        findings.sort(key=lambda finding: (finding.place.file != path, *finding.place))
        raise ConfigError([_problem(finding) for finding in findings])
    return _build(values, path.absolute())


def broker_at(url: str, topic_prefix: str) -> MqttConfig:
    """Make the section of a broker of which only the address is known, all else as by default.

    Raises:
        ConfigError: Without the address itself, which may hold a password.
    """
    try:
        values = vol.Schema(MQTT)({"url": url, "topic_prefix": topic_prefix})
    except vol.MultipleInvalid as err:
        options = {"url": "--broker", "topic_prefix": "--prefix"}
        raise ConfigError([Problem(options[str(error.path[0])], error.msg) for error in err.errors]) from err
    return _mqtt(values, "client")


def _problem(finding: Finding) -> Problem:
    keys = key_path(finding.path)
    return Problem(f"{finding.place}: {keys}" if keys else str(finding.place), finding.text)


# What the grammar has made of a section: its members have the types that their rules give.
_Values = Mapping[str, Any]


def _build(values: _Values, path: Path) -> Config:
    privacy, http, cluster = values.get("privacy"), values.get("http"), values.get("cluster")
    return Config(
        instance=values["instance"],
        gateway=_gateway(values["gateway"]),
        mqtt=_mqtt(values["mqtt"], values["instance"]),
        agents=tuple(_agent(agent) for agent in values["agents"]),
        # The default stands in no file; it is taken from beside the configuration.
        storage=StorageConfig(path=path.parent / values["storage"]["path"], max_mb=values["storage"]["max_mb"]),
        commands=CommandsConfig(**values["commands"]),
        home_assistant=HomeAssistantConfig(**values["home_assistant"]),
        privacy=None if privacy is None else PrivacyConfig(members=privacy["mask"], method=privacy["with"]),
        http=None if http is None else _http(http),
        cluster=None if cluster is None else _cluster(cluster),
        log=LogConfig(**values["log"]),
        path=path,
    )


def _path(values: _Values, key: str) -> Path | None:
    return Path(values[key]) if key in values else None


def _gateway(values: _Values) -> GatewayConfig:
    initial_s, maximum_s = values["error_interval"]
    proxy = values.get("proxy")
    return GatewayConfig(
        url=values["url"].url,
        auth_mode=values["auth_mode"],
        ca_file=_path(values, "ca_file"),
        verify=values["verify"],
        hold_s=values["hold"],
        timeout_s=values["timeout"],
        interval_s=values["interval"],
        error_backoff=Backoff(initial_s=initial_s, maximum_s=maximum_s),
        allow_http=values["allow_http"],
        proxy=None if proxy is None else proxy.url,
    )


def _mqtt(values: _Values, instance: str) -> MqttConfig:
    brokers: tuple[Url, ...] = values["url"]
    return MqttConfig(
        url=",".join(broker.url for broker in brokers),
        scheme=cast('Literal["mqtt", "mqtts", "ws", "wss"]', brokers[0].scheme),
        addresses=tuple(map(_broker, brokers)),
        username=values.get("username"),
        password=values.get("password"),
        client_id=values.get("client_id", f"ccgateway2mqtt-{instance}"),
        protocol=values["protocol"],
        ca_file=_path(values, "ca_file"),
        cert_file=_path(values, "cert_file"),
        key_file=_path(values, "key_file"),
        verify=values["verify"],
        keepalive_s=values["keepalive"],
        topic_prefix=values["topic_prefix"],
        stream=values["stream"],
        response_prefix=values.get("response_prefix"),
    )


def _broker(address: Url) -> BrokerAddress:
    return BrokerAddress(
        host=address.host,
        port=address.port or PORTS[address.scheme],
        path=(address.path or WEBSOCKET_PATH) if address.scheme in ("ws", "wss") else "",
    )


def _http(values: _Values) -> HttpConfig:
    broker = values.get("wall_broker")
    return HttpConfig(
        host=values["listen"].host,
        port=values["listen"].port,
        wall=values["wall"],
        wall_broker=None if broker is None else broker.url if broker.path else f"{broker.url}{WEBSOCKET_PATH}",
    )


def _cluster(values: _Values) -> ClusterConfig:
    keys = (values["key"], values.get("former_key"))
    return ClusterConfig(
        urls=tuple(map(_server, values["url"])),
        name=values["name"],
        keys=tuple(key.translate(str.maketrans("+/", "-_")) for key in keys if key is not None),
        username=values.get("username"),
        password=values.get("password"),
        credentials=_path(values, "credentials"),
        ca_file=_path(values, "ca_file"),
        cert_file=_path(values, "cert_file"),
        key_file=_path(values, "key_file"),
        replicas=int(values["replicas"]),
        moves=values["moves"],
    )


def _server(address: Url) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{address.scheme}://{host}:{address.port or NATS_PORT}"


def _agent(values: _Values) -> AgentConfig:
    sign_in = values.get("sign_in")
    return AgentConfig(
        work_no=values["work_no"],
        name=values.get("name"),
        group=values.get("group"),
        guid=values.get("guid"),
        guid_file=_path(values, "guid_file"),
        sign_in=None if sign_in is None else SignInConfig(**sign_in),
    )
