"""The grammar of the configuration: every key with its rule, its default and what it is for.

voluptuous reads a configuration by it (`config.load`), and `schema` makes JSON Schema of it for editors.

Rule of this file: a key or a default that is not here does not exist.
"""

from collections.abc import Sequence
from typing import cast

import voluptuous as vol

from adapter.config.rules import Check, ConflictError, Each, ExpectedError, OrOff, Rule, Section, Word
from adapter.config.words import (
    Url,
    certificates,
    credentials,
    flag,
    line,
    listen,
    load_pair,
    pair,
    path,
    readable,
    sealing_key,
    seconds,
    text,
    topic,
    url,
    url_or_urls,
    urls,
    whole,
    word,
)
from adapter.topics import BRIDGE, WORK_NO

SECRET_KEYS = frozenset({"password", "guid", "key", "former_key"})
"""Members whose value no error shows, wherever it came from."""
ADDRESS_KEYS = frozenset({"url", "proxy", "wall_broker"})
"""Members which no error shows where they may hold a password or a token."""
PATH_KEYS = frozenset({"ca_file", "cert_file", "key_file", "guid_file", "path", "credentials"})
"""Members that name a file, relative to the file they stand in."""

MAX_MASKED = 50
_MASK_ALL = "numbers"


def _longer_timeout(gateway: dict[str, object]) -> None:
    hold, timeout = cast("float", gateway["hold"]), cast("float", gateway["timeout"])
    if timeout <= hold:
        raise ExpectedError(what="more seconds than hold", path=["timeout"])


def _secured(gateway: dict[str, object]) -> None:
    if cast("Url", gateway["url"]).scheme == "http" and not gateway["allow_http"]:
        what = "expected https://, or allow_http: true beside it: passwords would cross the network in the clear"
        raise ConflictError(what=what, path=["url"])


def _needed_path(mqtt: dict[str, object]) -> None:
    brokers = cast("tuple[Url, ...]", mqtt["url"])
    if any(broker.scheme in ("mqtt", "mqtts") and broker.path not in ("", "/") for broker in brokers):
        raise ExpectedError(what="no path (only ws:// and wss:// have one)", path=["url"])
    if len({broker.scheme for broker in brokers}) > 1:
        raise ConflictError(what="expected the same scheme in all addresses", path=["url"])


def _secured_files(mqtt: dict[str, object]) -> None:
    for name in ("ca_file", "cert_file"):
        if name in mqtt and cast("tuple[Url, ...]", mqtt["url"])[0].scheme in ("mqtt", "ws"):
            what = "expected mqtts:// or wss:// in mqtt.url: without TLS no certificate is looked at"
            raise ConflictError(what=what, path=[name])


def _named(section: dict[str, object]) -> None:
    if "password" in section and "username" not in section:
        raise ConflictError(what="expected a username beside the password", path=["password"])


def _certificate_with_key(section: dict[str, object]) -> None:
    match section.get("cert_file"), section.get("key_file"):
        case str(cert_file), str(key_file):
            load_pair(cert_file, key_file)
        case str(), None:
            raise ConflictError(what="expected a key_file beside the cert_file", path=["cert_file"])
        case None, str():
            raise ConflictError(what="expected a cert_file beside the key_file", path=["key_file"])


def _responses_apart(mqtt: dict[str, object]) -> None:
    prefix, responses = f"{mqtt['topic_prefix']}/", f"{mqtt.get('response_prefix', '')}/"
    if "response_prefix" in mqtt and (prefix.startswith(responses) or responses.startswith(f"{prefix}{BRIDGE}/")):
        raise ExpectedError(
            what="a prefix that does not hold the topics of mqtt.topic_prefix", path=["response_prefix"]
        )


def _wall_is_on(http: dict[str, object]) -> None:
    if "wall_broker" in http and not http["wall"]:
        raise ConflictError(what="expected wall: true beside it", path=["wall_broker"])


def _servers(cluster: dict[str, object]) -> None:
    servers = cast("tuple[Url, ...]", cluster["url"])
    if any(server.path not in ("", "/") for server in servers):
        raise ExpectedError(what="addresses without a path", path=["url"])
    if len({server.scheme for server in servers}) > 1:
        what = "expected tls:// for all addresses or for none: what is sent to one is sent to any"
        raise ConflictError(what=what, path=["url"])


def _secured_cluster(cluster: dict[str, object]) -> None:
    for name in ("ca_file", "cert_file"):
        if name in cluster and cast("tuple[Url, ...]", cluster["url"])[0].scheme != "tls":
            what = "expected tls:// in cluster.url: without TLS no certificate is looked at"
            raise ConflictError(what=what, path=[name])


def _one_log_in(cluster: dict[str, object]) -> None:
    if "credentials" in cluster and "username" in cluster:
        raise ConflictError(what="expected only one of credentials, username", path=["credentials"])


_names = Each(line(64))


def _mask(value: object) -> frozenset[str] | None:
    if value == _MASK_ALL:
        return None
    if not isinstance(value, list) or not 0 < len(value) <= MAX_MASKED:
        raise ValueError
    return frozenset(cast("list[str]", _names(value)))


_work_no = text(
    f'a work number: 1 to 64 of A-Z a-z 0-9 _ -, and not "{BRIDGE}"', rf"(?!{BRIDGE}$){WORK_NO.pattern}", named=True
)
_word = text("one word: 1 to 64 of A-Z a-z 0-9 _ -", r"[A-Za-z0-9_-]{1,64}", named=True)
# CR, LF and NUL end a header or a string of C.
_password = text("1 to 1000 characters, no control characters", r"[^\x00-\x1f\x7f]{1,1000}")
_guid = text(
    'a GUID: visible ASCII characters but ";", without "JSESSIONID="', r"(?!JSESSIONID=)[\x21-\x3a\x3c-\x7e]{1,1024}"
)
_mask_rule = Rule(
    f"the word {_MASK_ALL}, or a list of 1 to {MAX_MASKED} names of members",
    _mask,
    {
        "anyOf": [
            {"const": _MASK_ALL},
            {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_MASKED},
        ]
    },
)
_interval = pair(0.2, 0.5, inclusive=True)
_error_interval = pair(1, 120, inclusive=False)


def _required(key: str, description: str) -> vol.Marker:
    return vol.Required(key, description=description)


def _optional(key: str, description: str, default: object = vol.UNDEFINED) -> vol.Marker:
    # A list of voluptuous' own would be shared between configurations.
    return vol.Optional(
        key, default=(lambda: default) if isinstance(default, list) else default, description=description
    )


def _section(key: str, description: str) -> vol.Marker:
    """Make a section that may be left out: its members' defaults stand."""
    return vol.Optional(key, default=dict, description=description)


GATEWAY = Section(
    {
        _required("url", "Address of the CC-Gateway, for example https://gateway.example:8043/agentgateway."): url(
            "https", "http", hint="the gateway takes none"
        ),
        _optional("auth_mode", "The gateway's AUTHMODE: dynamic (2, its default) or static (1).", "dynamic"): word(
            "dynamic", "static"
        ),
        _optional("ca_file", "Certificates (PEM) to trust instead of the system's."): certificates,
        _optional(
            "verify", "false trusts any certificate: anyone on the way can read the passwords.", default=True
        ): flag,
        _optional(
            "hold", "Seconds the gateway holds a poll: AGENT_POLL_WAIT_TIMES x AGENT_POLL_WAIT_INTERVAL.", 10
        ): seconds(over=0, under=120),
        _optional("timeout", "Seconds to wait for an answer; more than hold.", 20): seconds(over=0, under=300),
        _optional("interval", "Seconds from an answer to the next poll: least and most.", [0.2, 0.5]): _interval,
        _optional(
            "error_interval", "Seconds from a failure to the next poll: the first time and at most.", [1.5, 30]
        ): _error_interval,
        _optional(
            "allow_http", "Allows http:// in url; passwords then cross the network in the clear.", default=False
        ): flag,
        _optional("proxy", "An HTTP proxy on the way to the gateway, asked to CONNECT."): url(
            "http", hint="", credentials=True
        ),
    },
    Check(("hold", "timeout"), _longer_timeout),
    Check(("url", "allow_http"), _secured),
)

MQTT = Section(
    {
        _optional(
            "url",
            "Address of the broker; ports are 1883, mqtts 8883, ws 80, wss 443; the path of ws and wss is /mqtt."
            " Several with commas between them are tried in turn.",
            "mqtt://localhost:1883",
        ): url_or_urls("mqtt", "mqtts", "ws", "wss", hint="use mqtt.username and mqtt.password"),
        _optional("username", "The adapter's name at the broker."): line(256),
        _optional("password", "Its password, best as !secret NAME or !env_var NAME."): _password,
        _optional("client_id", "The MQTT client id; left out: ccgateway2mqtt-<instance>."): line(128),
        _optional("protocol", "Version of MQTT; auto tries 5 and falls back to 3.1.1.", "auto"): word(
            "auto", "5", "3.1.1"
        ),
        _optional("ca_file", "Certificates (PEM) to trust instead of the system's."): certificates,
        _optional("cert_file", "The adapter's own certificate (PEM), with key_file."): readable,
        _optional("key_file", "The key of cert_file (PEM, without a passphrase)."): readable,
        _optional("verify", "false trusts any certificate of the broker.", default=True): flag,
        _optional("keepalive", "Seconds between signs of life to the broker.", 60): whole(1, 65535),
        _optional("topic_prefix", "What all topics begin with.", "agents"): topic(200),
        _optional(
            "stream", "Whether each event also goes out unretained, on <prefix>/<workNo>/events.", default=True
        ): flag,
        _optional("response_prefix", "Below it, MQTT 5 response topics of senders are used; left out: never."): topic(
            200
        ),
    },
    Check(("url",), _needed_path),
    Check(("url", "ca_file", "cert_file"), _secured_files),
    Check(("username", "password"), _named),
    Check(("cert_file", "key_file"), _certificate_with_key),
    Check(("topic_prefix", "response_prefix"), _responses_apart),
)

SIGN_IN = Section(
    {
        _required("password", "The agent's password, best as !secret NAME or !env_var NAME."): _password,
        _required("phone", "The phone number that the agent signs in with."): line(24),
        _optional("status", "The agent's status after sign-in.", "idle"): word("idle", "busy", "work"),
        _optional("force", "Whether to sign in over a sign-in elsewhere, which it ends.", default=False): flag,
        _optional(
            "again", "Whether to sign in again by itself after the gateway ended the session.", default=False
        ): flag,
        _optional("sign_out_at_exit", "Whether to sign out when the adapter ends.", default=False): flag,
    }
)

AGENT = Section(
    {
        _required("work_no", "The agent's number, in quotes; a level of its topics."): _work_no,
        _optional("name", "Shown by every interface."): line(100),
        _optional("group", "Shown by every interface."): line(100),
        _optional("guid", "The GUID of a sign-in made elsewhere, best as !secret NAME."): _guid,
        _optional("guid_file", "A file with such a GUID, read again when it changes."): path,
        _optional("sign_in", "The adapter signs the agent in itself."): SIGN_IN,
    },
    one_of=("guid", "guid_file", "sign_in"),
)

CLUSTER = Section(
    {
        _required(
            "url", "Addresses of the NATS servers, with commas between them; nats:// or tls://, port 4222."
        ): urls("nats", "tls", hint="use cluster.username and cluster.password"),
        _required(
            "name", "The fleet's name: all its members have the same, and no other fleet on these servers."
        ): _word,
        _required(
            "key",
            "Seals GUIDs and cookies there: 32 bytes in base64 (openssl rand -base64 32), best as !secret NAME.",
        ): sealing_key,
        _optional("former_key", "The key before, until nothing is sealed with it any more."): sealing_key,
        _optional("username", "The adapter's name at the servers."): line(256),
        _optional("password", "Its password, best as !secret NAME or !env_var NAME."): _password,
        _optional("credentials", "A file of NATS credentials (.creds), instead of username and password."): credentials,
        _optional("ca_file", "Certificates (PEM) to trust instead of the system's, with tls://."): certificates,
        _optional("cert_file", "The adapter's own certificate (PEM), with key_file."): readable,
        _optional("key_file", "The key of cert_file (PEM, without a passphrase)."): readable,
        _optional("replicas", "On how many servers everything is stored: 1, 3 or 5.", 3): word("1", "3", "5"),
        _optional("moves", "How many agents a member hands over at a time, to one that is new.", 100): whole(1, 10_000),
    },
    Check(("url",), _servers),
    Check(("url", "ca_file", "cert_file"), _secured_cluster),
    Check(("username", "password"), _named),
    Check(("username", "credentials"), _one_log_in),
    Check(("cert_file", "key_file"), _certificate_with_key),
)

SCHEMA = Section(
    {
        _optional("instance", "One word; part of the client id and of Home Assistant's ids.", "main"): _word,
        _required("gateway", "The CC-Gateway to poll."): GATEWAY,
        _section("mqtt", "The broker to publish to."): MQTT,
        _required("agents", "The agents to poll; also !include FILE."): Each(AGENT),
        _section("storage", "The database that keeps what is not published yet."): Section(
            {
                _optional("path", "Its file.", "ccgateway2mqtt.db"): path,
                _optional("max_mb", "Its largest size in MiB; polling stops when it is full.", 1024): whole(
                    8, 1_000_000
                ),
            }
        ),
        _section("commands", "Which command topics are subscribed."): Section(
            {
                _optional("calldata", "<prefix>/<workNo>/calldata/set", default=True): flag,
                _optional("session", "<prefix>/<workNo>/session/set", default=True): flag,
                _optional("bridge", "<prefix>/bridge/request/<name>", default=True): flag,
            }
        ),
        _section("home_assistant", "Home Assistant's MQTT discovery."): Section(
            {
                _optional("discovery", "Whether to announce the agents.", default=False): flag,
                _optional("prefix", "Home Assistant's discovery prefix.", "homeassistant"): topic(200),
                _optional("max_agents", "Announce no more than this.", 500): whole(1, 100_000),
                _optional("birth_topic", "Where Home Assistant says that it is there.", "homeassistant/status"): topic(
                    200
                ),
                _optional("birth_payload", "What it says then.", "online"): line(100),
            }
        ),
        _optional("privacy", "Masks phone numbers before anything is stored or published; left out: off."): OrOff(
            Section(
                {
                    _optional(
                        "mask", "numbers: all members known to carry one; or a list of members.", "numbers"
                    ): _mask_rule,
                    _optional(
                        "with", "last4: * for all but four digits; hash: a keyed hash; drop: left out.", "last4"
                    ): word("last4", "hash", "drop"),
                }
            )
        ),
        _optional("http", "/metrics, /healthz and /readyz; left out: off."): OrOff(
            Section(
                {
                    _required("listen", 'HOST:PORT, for example "127.0.0.1:9464".'): listen,
                    _optional("wall", "Whether the wall page is served too, at /wall/.", default=False): flag,
                    _optional(
                        "wall_broker",
                        "The broker's websocket address as browsers reach it; left out: who opens the page enters it.",
                    ): url("ws", "wss", hint="viewers enter it"),
                },
                Check(("wall", "wall_broker"), _wall_is_on),
            )
        ),
        _optional("cluster", "Several processes or machines that share the agents; left out: off."): OrOff(CLUSTER),
        _section("log", "What the program says while it runs."): Section(
            {
                _optional("level", "The least that is said.", "info"): word("debug", "info", "warning", "error"),
                _optional("format", "Lines for people or for programs.", "text"): word("text", "json"),
            }
        ),
    }
)


def section_at(keys: Sequence[str | int]) -> Section | None:
    """Find the section of the grammar that `keys` lead to; `None` where they lead elsewhere."""
    found: Word | None = SCHEMA
    for key in keys:
        match found:
            case Section():
                found = next((rule for marker, rule in found.members.items() if marker.schema == key), None)
            case Each():
                found = found.item
            case _:
                return None
        if isinstance(found, OrOff):
            found = found.section
    return found if isinstance(found, Section) else None
