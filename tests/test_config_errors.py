"""What a person is told of a configuration that cannot be used: every mistake in one run, each with its place."""

import logging
import os
from pathlib import Path

import pytest
import trustme
import yaml
from cryptography.hazmat.primitives import serialization
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapter.config import load
from adapter.config import source as yaml_source
from adapter.errors import ConfigError
from tests.config_support import AGENTS, GATEWAY, KEY, SOUND, loaded, told, write_secrets


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=["libyaml", "python"])
def _parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read with each of PyYAML's parsers: where no wheel exists there is no libyaml."""
    loader = {"libyaml": yaml.CSafeLoader, "python": yaml.SafeLoader}[request.param]
    monkeypatch.setattr(yaml_source, "_PARSER", loader)


PREFIX = "levels of a topic, without + or #, no / at either end or twice, not beginning with $, up to 200 bytes"
PORTLESS = "an address that begins with mqtt:// or mqtts:// or ws:// or wss://"
BROKERS = "an address, or addresses that begin with mqtt:// or mqtts:// or ws:// or wss://, with commas between them"
ONE_OF = "guid, guid_file, sign_in"
SECTIONS = "instance, gateway, mqtt, agents, storage, commands, home_assistant, privacy, http, cluster, log"
NO_CREDENTIALS = "expected no user name or password in the address"
APART = "expected a prefix that does not hold the topics of mqtt.topic_prefix"
CLEAR = "expected https://, or allow_http: true beside it: passwords would cross the network in the clear"
GUID = 'expected a GUID: visible ASCII characters but ";", without "JSESSIONID="'
WORK_NO = 'expected a work number: 1 to 64 of A-Z a-z 0-9 _ -, and not "bridge"'
INTERVAL = "two numbers of seconds, the smaller first, within 0.2 to 0.5"
ERROR_INTERVAL = "two numbers of seconds, the smaller first, more than 1 and less than 120"

SERVERS = "addresses that begin with nats:// or tls://, with commas between them"
SEALING_KEY = "a key: 32 bytes in base64, as `openssl rand -base64 32` makes one"
OF_A_CLUSTER = (
    "url, name, key, former_key, username, password, credentials, ca_file, cert_file, key_file, replicas, moves"
)


def cluster(**members: str) -> str:
    """Make a section of lines: url, name and key, and then the others."""
    lines = {"url": "nats://a", "name": "prod", "key": KEY} | members
    return "\n".join(["cluster:", *(f"  {name}: {value}" for name, value in lines.items())])


# One kind of mistake each: what is appended to a sound configuration of two lines, and what is told of it.
APPENDED = [
    ("instance: a b", '3: instance: expected one word: 1 to 64 of A-Z a-z 0-9 _ -, got "a b"'),
    (f"instance: {'long ' * 99}", f'3: instance: expected one word: 1 to 64 of A-Z a-z 0-9 _ -, got "{"long " * 12}…"'),
    ("instance: [a]", "3: instance: expected text, got a list"),
    ("instance:", "3: instance: expected text, got nothing"),
    ("instance: 0101", '3: instance: expected text, quote it ("0101"), got 0101'),
    ("instance: No", '3: instance: expected text, quote it ("No"), got No'),
    ("mqtt: []", "3: mqtt: expected a mapping, got a list"),
    ("mqtt: hunter2", "3: mqtt: expected a mapping, got text"),
    ("mqtt:", "3: mqtt: expected a mapping, got nothing"),
    ("mqtt:\n  url: tcp://h", f'4: mqtt.url: expected {PORTLESS}, got "tcp://h"'),
    ("mqtt:\n  url: mqtt:h", f'4: mqtt.url: expected {PORTLESS}, got "mqtt:h"'),
    ("mqtt:\n  url: mqtt://", f'4: mqtt.url: expected {PORTLESS}, got "mqtt://"'),
    ("mqtt:\n  url: mqtt://h:0", f'4: mqtt.url: expected {PORTLESS}, got "mqtt://h:0"'),
    ("mqtt:\n  url: mqtt://h:65536", f'4: mqtt.url: expected {PORTLESS}, got "mqtt://h:65536"'),
    ("mqtt:\n  url: mqtt://h:port", f'4: mqtt.url: expected {PORTLESS}, got "mqtt://h:port"'),
    ("mqtt:\n  url: 'mqtt://[::g]'", f'4: mqtt.url: expected {PORTLESS}, got "mqtt://[::g]"'),
    ("mqtt:\n  url: 'mqtt://a b'", f'4: mqtt.url: expected {PORTLESS}, got "mqtt://a b"'),
    (
        "mqtt:\n  url: 'mqtt://u:hunter2@h'",
        f"4: mqtt.url: {NO_CREDENTIALS}, use mqtt.username and mqtt.password, got text (not shown)",
    ),
    ("mqtt:\n  url: 'ws://h/x?hunter2'", "4: mqtt.url: expected an address without ? and #, got text (not shown)"),
    ("mqtt:\n  url: mqtt://h/x", '4: mqtt.url: expected no path (only ws:// and wss:// have one), got "mqtt://h/x"'),
    ("mqtt:\n  url: mqtt://a,b", f'4: mqtt.url: expected {BROKERS}, got "mqtt://a,b"'),
    ("mqtt:\n  url: mqtt://a,mqtt://b:0", f'4: mqtt.url: expected {BROKERS}, got "mqtt://a,mqtt://b:0"'),
    ("mqtt:\n  url: mqtt://a,", f'4: mqtt.url: expected {BROKERS}, got "mqtt://a,"'),
    ("mqtt:\n  url: mqtt://a,mqtts://b", "4: mqtt.url: expected the same scheme in all addresses"),
    (
        "mqtt:\n  url: mqtt://a,mqtt://b/x",
        '4: mqtt.url: expected no path (only ws:// and wss:// have one), got "mqtt://a,mqtt://b/x"',
    ),
    (
        "mqtt:\n  url: 'mqtt://a,mqtt://u:hunter2@b'",
        f"4: mqtt.url: {NO_CREDENTIALS}, use mqtt.username and mqtt.password, got text (not shown)",
    ),
    ("mqtt:\n  protocol: 4", "4: mqtt.protocol: expected auto, 5 or 3.1.1, got 4"),
    ("mqtt:\n  verify: 1", "4: mqtt.verify: expected true or false, got 1"),
    ("mqtt:\n  keepalive: 1.5", "4: mqtt.keepalive: expected a whole number from 1 to 65535, got 1.5"),
    ("mqtt:\n  keepalive: 0", "4: mqtt.keepalive: expected a whole number from 1 to 65535, got 0"),
    ("mqtt:\n  keepalive: true", "4: mqtt.keepalive: expected a whole number from 1 to 65535, got true"),
    ("mqtt:\n  keepalive: 0x10", "4: mqtt.keepalive: expected a whole number from 1 to 65535, got 0x10"),
    ("mqtt:\n  topic_prefix: /a", f'4: mqtt.topic_prefix: expected {PREFIX}, got "/a"'),
    ("mqtt:\n  topic_prefix: a/", f'4: mqtt.topic_prefix: expected {PREFIX}, got "a/"'),
    ("mqtt:\n  topic_prefix: a//b", f'4: mqtt.topic_prefix: expected {PREFIX}, got "a//b"'),
    ("mqtt:\n  topic_prefix: a/+", f'4: mqtt.topic_prefix: expected {PREFIX}, got "a/+"'),
    ("mqtt:\n  topic_prefix: 'a/#'", f'4: mqtt.topic_prefix: expected {PREFIX}, got "a/#"'),
    ("mqtt:\n  topic_prefix: $SYS", f'4: mqtt.topic_prefix: expected {PREFIX}, got "$SYS"'),
    ("mqtt:\n  topic_prefix: ''", f'4: mqtt.topic_prefix: expected {PREFIX}, got ""'),
    ('mqtt:\n  topic_prefix: "a\\0"', f'4: mqtt.topic_prefix: expected {PREFIX}, got "a\\u0000"'),
    ("mqtt:\n  response_prefix: a/", f'4: mqtt.response_prefix: expected {PREFIX}, got "a/"'),
    (
        "mqtt:\n  response_prefix: agents",
        '4: mqtt.response_prefix: expected a prefix that does not hold the topics of mqtt.topic_prefix, got "agents"',
    ),
    (
        "mqtt:\n  response_prefix: agents/bridge",
        f'4: mqtt.response_prefix: {APART}, got "agents/bridge"',
    ),
    (
        "mqtt:\n  topic_prefix: a/b\n  response_prefix: a",
        '5: mqtt.response_prefix: expected a prefix that does not hold the topics of mqtt.topic_prefix, got "a"',
    ),
    ("mqtt:\n  password: hunter2", "4: mqtt.password: expected a username beside the password"),
    (
        'mqtt:\n  username: u\n  password: "hunter2\\n"',
        "5: mqtt.password: expected 1 to 1000 characters, no control characters, got text (not shown)",
    ),
    ("mqtt:\n  username: u\n  password: 123", "5: mqtt.password: expected text, quote it, got a number (not shown)"),
    ("mqtt:\n  username: ''", '4: mqtt.username: expected 1 to 256 characters on one line, got ""'),
    (
        "mqtt:\n  url: mqtts://h\n  cert_file: config.yaml",
        "5: mqtt.cert_file: expected a key_file beside the cert_file",
    ),
    ("mqtt:\n  key_file: config.yaml", "4: mqtt.key_file: expected a cert_file beside the key_file"),
    (
        "mqtt:\n  url: mqtts://h\n  ca_file: no.pem",
        '5: mqtt.ca_file: expected a file that can be read (No such file or directory), got "no.pem"',
    ),
    (
        "mqtt:\n  url: wss://h\n  ca_file: .",
        '5: mqtt.ca_file: expected a file that can be read (Is a directory), got "."',
    ),
    (
        "mqtt:\n  url: wss://h\n  ca_file: config.yaml",
        '5: mqtt.ca_file: expected a file of certificates in PEM, got "config.yaml"',
    ),
    ("mqtt:\n  ca_file:", "4: mqtt.ca_file: expected text, got nothing"),
    ("mqtt:\n  ca_file: ''", '4: mqtt.ca_file: expected the name of a file, on one line, got ""'),
    ("storage:\n  path: ''", '4: storage.path: expected the name of a file, on one line, got ""'),
    ('storage:\n  path: "a\\0"', '4: storage.path: expected the name of a file, on one line, got "a\\u0000"'),
    ("storage:\n  max_mb: 7", "4: storage.max_mb: expected a whole number from 8 to 1000000, got 7"),
    ("commands: {sesion: true}", '3: commands: unknown key "sesion", did you mean "session"?'),
    ("home_assistant: {prefix: 'a/'}", f'3: home_assistant.prefix: expected {PREFIX}, got "a/"'),
    (
        "privacy: {mask: some}",
        '3: privacy.mask: expected the word numbers, or a list of 1 to 50 names of members, got "some"',
    ),
    (
        "privacy: {mask: []}",
        "3: privacy.mask: expected the word numbers, or a list of 1 to 50 names of members, got a list",
    ),
    ("privacy: {mask: [a, 5]}", '3: privacy.mask[1]: expected text, quote it ("5"), got 5'),
    ("privacy: {wiht: drop}", '3: privacy: unknown key "wiht", did you mean "with"?'),
    ("privacy: true", "3: privacy: expected a mapping, got true or false"),
    ("http: {}", "3: http.listen: required, and missing"),
    ("http: {listen: 9464}", '3: http.listen: expected text, quote it ("9464"), got 9464'),
    ("http: {listen: ':1'}", '3: http.listen: expected HOST:PORT, as in "127.0.0.1:9464" or "[::1]:9464", got ":1"'),
    (
        "http: {listen: '::1:1'}",
        '3: http.listen: expected HOST:PORT, as in "127.0.0.1:9464" or "[::1]:9464", got "::1:1"',
    ),
    (
        "http: {listen: '[h]:1'}",
        '3: http.listen: expected HOST:PORT, as in "127.0.0.1:9464" or "[::1]:9464", got "[h]:1"',
    ),
    (
        "http: {listen: 'h:65536'}",
        '3: http.listen: expected HOST:PORT, as in "127.0.0.1:9464" or "[::1]:9464", got "h:65536"',
    ),
    (
        "http: {listen: '[::g]:1'}",
        '3: http.listen: expected HOST:PORT, as in "127.0.0.1:9464" or "[::1]:9464", got "[::g]:1"',
    ),
    ("http: {listen: h}", '3: http.listen: expected HOST:PORT, as in "127.0.0.1:9464" or "[::1]:9464", got "h"'),
    (
        "http: {listen: 'h:1', wall_broker: 'ws://b'}",
        "3: http.wall_broker: expected wall: true beside it",
    ),
    (
        "http: {listen: 'h:1', wall: true, wall_broker: 'mqtt://b'}",
        '3: http.wall_broker: expected an address that begins with ws:// or wss://, got "mqtt://b"',
    ),
    (
        "http: {listen: 'h:1', wall: true, wall_broker: 'wss://u:hunter2@b'}",
        "3: http.wall_broker: expected no user name or password in the address, viewers enter it, got text (not shown)",
    ),
    ("cluster: {url: 'nats://a', name: p}", "3: cluster.key: required, and missing"),
    ("cluster: true", "3: cluster: expected a mapping, got true or false"),
    (cluster(url="mqtt://a"), f'4: cluster.url: expected {SERVERS}, got "mqtt://a"'),
    (cluster(url="nats://a,"), f'4: cluster.url: expected {SERVERS}, got "nats://a,"'),
    (cluster(url="nats://a:0"), f'4: cluster.url: expected {SERVERS}, got "nats://a:0"'),
    (cluster(url="nats://a/x"), '4: cluster.url: expected addresses without a path, got "nats://a/x"'),
    (
        cluster(url="tls://a,nats://b"),
        "4: cluster.url: expected tls:// for all addresses or for none: what is sent to one is sent to any",
    ),
    (
        cluster(url="nats://a,nats://u:hunter2@b"),
        f"4: cluster.url: {NO_CREDENTIALS}, use cluster.username and cluster.password, got text (not shown)",
    ),
    (cluster(name="a b"), '5: cluster.name: expected one word: 1 to 64 of A-Z a-z 0-9 _ -, got "a b"'),
    *(
        (cluster(key=key), f"6: cluster.key: expected {SEALING_KEY}, got text (not shown)")
        for key in ("hunter2", KEY[:-1], KEY + KEY, f"{KEY[:-4]}hü2=", f"'{KEY[:8]} {KEY[8:]}'")
    ),
    (cluster(key="12345"), "6: cluster.key: expected text, quote it, got a number (not shown)"),
    (cluster(former_key="hunter2"), f"7: cluster.former_key: expected {SEALING_KEY}, got text (not shown)"),
    (f"{cluster()}\n  password: hunter2", "7: cluster.password: expected a username beside the password"),
    (
        f"{cluster()}\n  password: [hunter2]\n  username: u",
        "7: cluster.password: expected text, got a list (not shown)",
    ),
    (cluster(replicas="2"), "7: cluster.replicas: expected 1, 3 or 5, got 2"),
    (cluster(moves="0"), "7: cluster.moves: expected a whole number from 1 to 10000, got 0"),
    (cluster(hold="1"), f'7: cluster: unknown key "hold", expected one of {OF_A_CLUSTER}'),
    (
        cluster(credentials="config.yaml"),
        '7: cluster.credentials: expected a file of NATS credentials, as nsc makes one, got "config.yaml"',
    ),
    (
        cluster(credentials="none"),
        '7: cluster.credentials: expected a file that can be read (No such file or directory), got "none"',
    ),
    (
        cluster(ca_file="config.yaml"),
        '7: cluster.ca_file: expected a file of certificates in PEM, got "config.yaml"',
    ),
    (
        cluster(cert_file="config.yaml", url="tls://a"),
        "7: cluster.cert_file: expected a key_file beside the cert_file",
    ),
    (cluster(key_file="config.yaml"), "7: cluster.key_file: expected a cert_file beside the key_file"),
    ("log: {level: loud}", '3: log.level: expected debug, info, warning or error, got "loud"'),
    ("log: {format: xml}", '3: log.format: expected text or json, got "xml"'),
    ("verify: false", f'3: unknown key "verify", expected one of {SECTIONS}'),
    ("1: x", f'3: unknown key "1", expected one of {SECTIONS}'),
    ('"a\\nb": x', f'3: unknown key "a\\nb", expected one of {SECTIONS}'),
    ('"a\\u202eb": x', f'3: unknown key "a\\u202eb", expected one of {SECTIONS}'),
    ("? [a]\n: b", "3: expected a word as key"),
    ("!!int 5: b", "3: expected a word as key"),
    ("gateway: {}", "3: gateway: duplicate key, first on line 1"),
    ("log:\n  level: info\n  level: info", "5: log.level: duplicate key, first on line 4"),
    ("log: &log {level: info}\n<<: text", '4: "<<": expected a mapping to merge'),
    ("<<: !env_var CONFIG_TEST_UNSET", '3: "<<": the environment variable CONFIG_TEST_UNSET is not set'),
    ("instance: !secret", "3: instance: expected a name after !secret"),
    ("instance: !secret x", "3: instance: secrets.yaml: cannot be read: No such file or directory"),
    ("instance: !env_var CONFIG_TEST_UNSET", "3: instance: the environment variable CONFIG_TEST_UNSET is not set"),
    ("instance: !env_var a-b", "3: instance: expected the name of an environment variable after !env_var"),
    ("instance: !include no.yaml", "3: instance: no.yaml: cannot be read: No such file or directory"),
    ("instance: !include .", "3: instance: .: cannot be read: Is a directory"),
    ("instance: !include config.yaml", "3: instance: config.yaml: includes itself"),
    ('instance: !include "a\\0b"', "3: instance: expected the name of a file"),
    (
        "instance: !other x",
        "3: instance: unknown tag, expected !secret, !env_var or !include; quote text that begins with !",
    ),
    (
        "instance: !!python/object/apply:os.system [x]",
        "3: instance: unknown tag (!); a list or a mapping takes none",
    ),
    ("log: !secret {level: info, format: [x]}", "3: log: unknown tag (!); a list or a mapping takes none"),
]


@pytest.mark.parametrize(("appended", "expected"), APPENDED, ids=[text for text, _ in APPENDED])
def test_one_mistake(appended: str, expected: str) -> None:
    """Each kind of mistake is told in one line, at its own line of the file, and nothing else is."""
    assert told(SOUND + appended) == [f"config.yaml:{expected}"]


@pytest.mark.parametrize(
    ("gateway", "expected"),
    [
        ("{}", "1: gateway.url: required, and missing"),
        ("{\n  adress: https://g}", "1: gateway.url: required, and missing"),
        ("{\n  ulr: https://g}", '2: gateway: unknown key "ulr", did you mean "url"?'),
        ("\n  url: ftp://g", '2: gateway.url: expected an address that begins with https:// or http://, got "ftp://g"'),
        (
            "\n  url: http://g",
            f"2: gateway.url: {CLEAR}",
        ),
        (
            "\n  url: https://u:hunter2@g",
            f"2: gateway.url: {NO_CREDENTIALS}, the gateway takes none, got text (not shown)",
        ),
        ("\n  url: https://g\n  hold: 20", "1: gateway.timeout: expected more seconds than hold, got the default"),
        ("\n  url: https://g\n  hold: 9\n  timeout: 9", "4: gateway.timeout: expected more seconds than hold, got 9"),
        ("\n  url: https://g\n  hold: 0", "3: gateway.hold: expected seconds, more than 0 and less than 120, got 0"),
        (
            "\n  url: https://g\n  hold: ten",
            '3: gateway.hold: expected seconds, more than 0 and less than 120, got "ten"',
        ),
        (
            "\n  url: https://g\n  hold: .inf",
            "3: gateway.hold: expected seconds, more than 0 and less than 120, got .inf",
        ),
        ("\n  url: https://g\n  interval: [0.1, 0.5]", f"3: gateway.interval: expected {INTERVAL}, got [0.1, 0.5]"),
        ("\n  url: https://g\n  interval: [0.2, 0.6]", f"3: gateway.interval: expected {INTERVAL}, got [0.2, 0.6]"),
        ("\n  url: https://g\n  interval: [0.4, 0.3]", f"3: gateway.interval: expected {INTERVAL}, got [0.4, 0.3]"),
        ("\n  url: https://g\n  interval: 0.3", f"3: gateway.interval: expected {INTERVAL}, got 0.3"),
        ("\n  url: https://g\n  interval: [a, b]", f"3: gateway.interval: expected {INTERVAL}, got a list"),
        (
            "\n  url: https://g\n  error_interval: [1, 9]",
            f"3: gateway.error_interval: expected {ERROR_INTERVAL}, got [1, 9]",
        ),
        (
            "\n  url: https://g\n  error_interval: [2, 120]",
            f"3: gateway.error_interval: expected {ERROR_INTERVAL}, got [2, 120]",
        ),
        (
            "\n  url: https://g\n  error_interval: [9, 8]",
            f"3: gateway.error_interval: expected {ERROR_INTERVAL}, got [9, 8]",
        ),
        ("\n  url: https://g\n  auth_mode: 2", "3: gateway.auth_mode: expected dynamic or static, got 2"),
        (
            "\n  url: https://g\n  proxy: u:hunter2@p",
            "3: gateway.proxy: expected an address that begins with http://, got text (not shown)",
        ),
        (
            "\n  url: https://g\n  proxy: socks5://u:hunter2@p",
            "3: gateway.proxy: expected an address that begins with http://, got text (not shown)",
        ),
        (
            "\n  url: https://g\n  proxy: https://u:hunter2@p",
            "3: gateway.proxy: expected an address that begins with http://, got text (not shown)",
        ),
    ],
)
def test_gateway(gateway: str, expected: str) -> None:
    """Mistakes about the gateway."""
    lines = told(f"gateway: {gateway}\n" + AGENTS)

    assert f"config.yaml:{expected}" in lines
    assert len(lines) == 1 + ("adress" in gateway)


@pytest.mark.parametrize(
    ("agents", "expected"),
    [
        ("", "2: agents: expected a list, got nothing"),
        ("{}", "2: agents: expected a list, got a mapping"),
        ("\n- 7", "3: agents[0]: expected a mapping, got a number"),
        ("\n- guid: a", "3: agents[0].work_no: required, and missing"),
        ('\n- {work_no: "1"}', f"3: agents[0]: expected one of {ONE_OF}, got none"),
        (
            '\n- {work_no: "1", guid: a, guid_file: b}',
            f"3: agents[0]: expected only one of {ONE_OF}, got guid and guid_file",
        ),
        ('\n- {work_no: "1", giud: a}', '3: agents[0]: unknown key "giud", did you mean "guid"?'),
        (
            '\n- {work_no: "1", guid: !env_var CONFIG_TEST_UNSET}',
            "3: agents[0].guid: the environment variable CONFIG_TEST_UNSET is not set",
        ),
        ("\n- work_no: 0101\n  guid: a", '3: agents[0].work_no: expected text, quote it ("0101"), got 0101'),
        ("\n- work_no: 291\n  guid: a", '3: agents[0].work_no: expected text, quote it ("291"), got 291'),
        ("\n- work_no: 1:30\n  guid: a", '3: agents[0].work_no: expected text, quote it ("1:30"), got 1:30'),
        (
            "\n- work_no: bridge\n  guid: a",
            '3: agents[0].work_no: expected a work number: 1 to 64 of A-Z a-z 0-9 _ -, and not "bridge", got "bridge"',
        ),
        (
            '\n- work_no: "1\\r\\n"\n  guid: a',
            '3: agents[0].work_no: expected a work number: 1 to 64 of A-Z a-z 0-9 _ -, and not "bridge", got "1\\r\\n"',
        ),
        (
            '\n- {work_no: "1", guid: a}\n- {work_no: "2", guid: b}\n- {work_no: "1", guid: c}',
            '5: agents[2].work_no: duplicate work number "1", first at config.yaml:3: agents[0]',
        ),
        *(
            (
                f'\n- work_no: "1"\n  guid: "{guid}"',
                f"4: agents[0].guid: {GUID}, got text (not shown)",
            )
            for guid in ("hunter2\\r", "hunter2\\n", "hunter2\\0", "hunter 2", "JSESSIONID=hunter2", "hünter2", "")
        ),
        (
            '\n- work_no: "1"\n  sign_in: hunter2',
            "4: agents[0].sign_in: expected a mapping, got text",
        ),
        (
            '\n- work_no: "1"\n  sign_in:\n    pasword: hunter2\n    phone: "8"',
            '5: agents[0].sign_in: unknown key "pasword", did you mean "password"?',
        ),
        ('\n- work_no: "1"\n  sign_in: {phone: "8"}', "4: agents[0].sign_in.password: required, and missing"),
        (
            '\n- work_no: "1"\n  sign_in:\n    phone: 8102\n    password: p',
            '5: agents[0].sign_in.phone: expected text, quote it ("8102"), got 8102',
        ),
        (
            '\n- work_no: "1"\n  sign_in: {phone: "8", password: p, status: rest}',
            '4: agents[0].sign_in.status: expected idle, busy or work, got "rest"',
        ),
        (
            '\n- work_no: "1"\n  sign_in: {phone: "8", password: [hunter2]}',
            "4: agents[0].sign_in.password: expected text, got a list (not shown)",
        ),
    ],
)
def test_agents(agents: str, expected: str) -> None:
    """Mistakes about agents."""
    assert told(f"{GATEWAY}agents: {agents}\n") == [f"config.yaml:{expected}"]


@pytest.mark.usefixtures("_parser")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["config.yaml: the file is empty"]),
        ("# nothing\n", ["config.yaml: the file is empty"]),
        ("---", ["config.yaml:1: expected a mapping, got nothing"]),
        ("- a\n- b", ["config.yaml:1: expected a mapping, got a list"]),
        ("hunter2", ["config.yaml:1: expected a mapping, got text"]),
        ("a: b\n---\nc: d", ["config.yaml:2: expected one document, got a second"]),
        (b"a: b\nc: \xff\n", ["config.yaml:2: not UTF-8 text"]),
        ("a: ü".encode("utf-16"), ["config.yaml:1: not UTF-8 text"]),
        (b"a: b\nc: \0\n", ["config.yaml:2: the character U+0000 is not allowed"]),
        ("a: \x1b[31m", ["config.yaml:1: the character U+001B is not allowed"]),
        (
            "x:\n  a: *hunter2",
            ["config.yaml:2: x.a: an alias (*) of no anchor (&) before it; quote text that begins with *"],
        ),
        (
            "x: &x\n  a: *x",
            ["config.yaml:2: x.a: an alias (*) of no anchor (&) before it; quote text that begins with *"],
        ),
        ("a: !hunter2!x y", ["config.yaml:1: not YAML: found undefined tag handle"]),
    ],
)
def test_unusable_files(text: str | bytes, expected: list[str]) -> None:
    """A file that is no configuration at all is told so in one line."""
    assert told(text) == expected


@pytest.mark.usefixtures("_parser")
@pytest.mark.parametrize(
    "text", ["a: [", "a: 'x", "a: {b", "\ta: b", "a: b: c", "a:\n  b: c\n d: e", "a: @x", "%x", "a: [b}"]
)
def test_broken_yaml(text: str) -> None:
    """Broken YAML is told in one line with its place, whichever parser reads it."""
    [line] = told(text)

    assert line.startswith("config.yaml:")
    assert ": not YAML: " in line


@pytest.mark.usefixtures("_parser")
@pytest.mark.parametrize("escape", ["\\UFFFFFFFF", "\\ud800"])
def test_escapes_that_are_no_characters(escape: str) -> None:
    """An escape beyond Unicode, or half a character, never gets as far as a topic or a header."""
    [line] = told(f'{SOUND}instance: "{escape}"')

    assert line.startswith("config.yaml")


@pytest.mark.usefixtures("_parser")
def test_work_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Depth, aliases that unfold to billions of values, and size are refused at once."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    limit = "more than 1000000 values, counting what aliases stand for"
    path = "".join("[0]" * 33)

    assert told("[" * 5000) == [f"config.yaml:1: {path}: nested deeper than 32 levels"]
    assert told(bomb) == [f"config.yaml:6: f: {limit}"]
    monkeypatch.setattr(yaml_source, "MAX_BYTES", 1024 * 1024)
    assert told(b"#" * (1024 * 1024 + 1)) == ["config.yaml: larger than 1 MiB"]


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    """A file that is not there, and a directory."""
    (tmp_path / "dir").mkdir()

    with pytest.raises(ConfigError, match=r"^none\.yaml: cannot be read: No such file or directory$"):
        load(Path("none.yaml"))
    with pytest.raises(ConfigError, match=r"^dir: cannot be read: Is a directory$"):
        load(Path("dir"))


def test_all_mistakes_in_one_run() -> None:
    """Mistakes of every kind are told together, in the order of the file, one behind another in the same list too."""
    text = """instance: a b
gateway:
  url: http://g
  hold: 30
  timeout: 20
  verify: maybe
agents:
  - work_no: 0101
    guid: !secret gone
  - work_no: "2"
    sign_in: {pasword: hunter2, phone: 8}
  - work_no: "2"
    guid: !env_var CONFIG_TEST_UNSET
log: {level: info, level: loud}
"""
    write_secrets("gone_by: x")

    assert told(text) == [
        'config.yaml:1: instance: expected one word: 1 to 64 of A-Z a-z 0-9 _ -, got "a b"',
        f"config.yaml:3: gateway.url: {CLEAR}",
        "config.yaml:5: gateway.timeout: expected more seconds than hold, got 20",
        'config.yaml:6: gateway.verify: expected true or false, got "maybe"',
        'config.yaml:8: agents[0].work_no: expected text, quote it ("0101"), got 0101',
        'config.yaml:9: agents[0].guid: no secret "gone" in secrets.yaml, did you mean "gone_by"?',
        'config.yaml:11: agents[1].sign_in: unknown key "pasword", did you mean "password"?',
        'config.yaml:11: agents[1].sign_in.phone: expected text, quote it ("8"), got 8',
        'config.yaml:12: agents[2].work_no: duplicate work number "2", first at config.yaml:10: agents[1]',
        "config.yaml:13: agents[2].guid: the environment variable CONFIG_TEST_UNSET is not set",
        "config.yaml:14: log.level: duplicate key, first on line 14",
    ]


def test_a_misspelt_key_excuses_only_the_one_it_stands_for() -> None:
    """An agent whose name is misspelt still lacks one of its other keys."""
    assert told(GATEWAY + 'agents: [{work_no: "1", nmae: x}]') == [
        'config.yaml:2: agents[0]: unknown key "nmae", did you mean "name"?',
        f"config.yaml:2: agents[0]: expected one of {ONE_OF}, got none",
    ]


def test_included_files_name_themselves(tmp_path: Path) -> None:
    """A mistake in an included file is told with that file and its line, below the keys that lead there."""
    (tmp_path / "agents.yaml").write_text('- {work_no: "1", guid: a}\n- work_no: 2\n  guid: !secret g\n')
    write_secrets("other: x")

    assert told(GATEWAY + "agents: !include agents.yaml\nlog: {level: loud}") == [
        'config.yaml:3: log.level: expected debug, info, warning or error, got "loud"',
        'agents.yaml:2: agents[1].work_no: expected text, quote it ("2"), got 2',
        'agents.yaml:3: agents[1].guid: no secret "g" in secrets.yaml',
    ]


@pytest.mark.parametrize(
    ("included", "expected"),
    [
        ("a: b", "agents.yaml:1: agents: expected a list, got a mapping"),
        ("[}", "agents.yaml:1: agents: not YAML"),
        ("", "agents.yaml: agents: the file is empty"),
        (b"\xff", "agents.yaml:1: agents: not UTF-8 text"),
        ("- !include config.yaml", "agents.yaml:1: agents[0]: config.yaml: includes itself"),
        ("- !include agents.yaml", "agents.yaml:1: agents[0]: agents.yaml: includes itself"),
    ],
)
def test_unusable_included_files(tmp_path: Path, included: str | bytes, expected: str) -> None:
    """What is wrong with an included file as a whole is told once, and nothing follows from it."""
    (tmp_path / "agents.yaml").write_bytes(included if isinstance(included, bytes) else included.encode())

    [line] = told(GATEWAY + "agents: !include agents.yaml\n")

    assert line.startswith(expected)


def test_a_chain_of_includes_ends(tmp_path: Path) -> None:
    """Levels of included files count like those of one file."""
    for number in range(40):
        (tmp_path / f"{number}.yaml").write_text(f"!include {number + 1}.yaml")

    assert told(SOUND + "log: !include 0.yaml") == ["31.yaml:1: log: nested deeper than 32 levels"]


@pytest.mark.parametrize(
    ("secrets", "expected"),
    [
        ("a: hunter2", 'config.yaml:3: instance: no secret "pw" in secrets.yaml'),
        ("pw: 0123", "config.yaml:3: instance: expected text, quote it, got a number (not shown)"),
        ("pw: true", "config.yaml:3: instance: expected text, quote it, got true or false (not shown)"),
        ("pw:", "config.yaml:3: instance: expected text, got nothing (not shown)"),
        (
            "pw: hunter2!",
            "config.yaml:3: instance: expected one word: 1 to 64 of A-Z a-z 0-9 _ -, got text (not shown)",
        ),
        ("pw: [hunter2]", 'config.yaml:3: instance: expected the secret "pw" to be one value, got a list'),
        ("pw: !hunter2 x", "secrets.yaml:1: pw: a tag (!) is not read here; quote text that begins with !"),
        ("pw: !secret pw", "secrets.yaml:1: pw: a tag (!) is not read here; quote text that begins with !"),
        ("pw: *hunter2", "secrets.yaml:1: pw: an alias (*) of no anchor (&) before it; quote text that begins with *"),
        ("hunter2", "config.yaml:3: instance: secrets.yaml: expected names with their values, got text"),
        ("pw: x\npw: x", "secrets.yaml:2: pw: duplicate key, first on line 1"),
        ("pw: 'hunter2", "secrets.yaml:1: not YAML"),
    ],
)
def test_secrets(secrets: str, expected: str) -> None:
    """What is wrong with a secret is told without its value, which never appears."""
    write_secrets(secrets)

    [line] = told(SOUND + "instance: !secret pw")

    assert line.startswith(expected)
    assert "hunter2" not in line


def test_addresses_have_an_end() -> None:
    """An address is short enough for `bridge/info` to keep its size."""
    [line] = told(SOUND + f"mqtt: {{url: 'wss://h/{'x' * 493}'}}")

    assert line.startswith(f"config.yaml:3: mqtt.url: expected {PORTLESS}, got ")


def test_duplicate_work_numbers_from_secrets_are_not_shown() -> None:
    """Whatever came from a secret stays hidden, a work number too."""
    write_secrets("no: hunter2")

    assert told(GATEWAY + "agents:\n- {work_no: !secret no, guid: a}\n- {work_no: !secret no, guid: b}") == [
        "config.yaml:4: agents[1].work_no: duplicate work number, first at config.yaml:3: agents[0]"
    ]


def test_nothing_follows_from_a_broken_item() -> None:
    """A pair with a missing variable in it is told once."""
    assert told("gateway: {url: https://g, interval: [!env_var CONFIG_TEST_UNSET, 0.5]}\n" + AGENTS) == [
        "config.yaml:1: gateway.interval[0]: the environment variable CONFIG_TEST_UNSET is not set"
    ]


def test_environment_that_is_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable with bytes that are no text is refused, not passed on."""
    monkeypatch.setenv("CONFIG_TEST", "hunter2\udcff")

    assert told(SOUND + "instance: !env_var CONFIG_TEST") == [
        "config.yaml:3: instance: the environment variable CONFIG_TEST is not UTF-8 text"
    ]


def test_secrets_that_others_may_read(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """A file of secrets that is open to others is warned of, once; one that is not, is not."""
    write_secrets("a: x\nb: y")
    text = SOUND + "instance: !secret a\nmqtt: {username: !secret b}"

    with caplog.at_level(logging.WARNING):
        assert told(text) == []
        assert caplog.messages == []
        (tmp_path / "secrets.yaml").chmod(0o640)
        assert told(text) == []

    assert caplog.messages == ["secrets.yaml: others than its owner may read it; chmod 600 keeps it to the owner"]


def test_secrets_that_are_read_by_the_group(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of root's with the group of who runs the program, as the unit and Kubernetes have it, is not open."""
    write_secrets("a: x")
    (tmp_path / "secrets.yaml").chmod(0o640)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)

    with caplog.at_level(logging.WARNING):
        assert told(SOUND + "instance: !secret a") == []
        assert caplog.messages == []
        (tmp_path / "secrets.yaml").chmod(0o644)
        assert told(SOUND + "instance: !secret a") == []

    assert len(caplog.messages) == 1


def test_certificates(tmp_path: Path) -> None:
    """Certificate files are opened: a certificate needs its own key."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for name in ("one", "two"):
        issued = authority.issue_cert(name)
        issued.cert_chain_pems[0].write_to_path(str(tmp_path / f"{name}.pem"))
        issued.private_key_pem.write_to_path(str(tmp_path / f"{name}-key.pem"))
    mqtt = "mqtt: {url: mqtts://h, ca_file: ca.pem, cert_file: one.pem, key_file: %s-key.pem}\n"

    assert told(SOUND + mqtt % "one") == []
    assert told(SOUND + mqtt % "two") == [
        "config.yaml:3: mqtt.cert_file: expected a certificate and its own key without a passphrase, both in PEM"
    ]
    key = serialization.load_pem_private_key((tmp_path / "one-key.pem").read_bytes(), None)
    locked = serialization.BestAvailableEncryption(b"hunter2")
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    (tmp_path / "locked-key.pem").write_bytes(key.private_bytes(*form))
    assert told(SOUND + mqtt % "locked") == told(SOUND + mqtt % "two")
    assert told(SOUND + "mqtt:\n  ca_file: ca.pem") == [
        "config.yaml:4: mqtt.ca_file: expected mqtts:// or wss:// in mqtt.url: without TLS no certificate is looked at"
    ]
    of_one = {"ca_file": "ca.pem", "cert_file": "one.pem", "key_file": "one-key.pem"}
    assert told(SOUND + cluster(url="tls://a", **of_one)) == []
    assert told(SOUND + cluster(url="tls://a", **of_one | {"key_file": "two-key.pem"})) == [
        "config.yaml:8: cluster.cert_file: expected a certificate and its own key without a passphrase, both in PEM"
    ]
    clear = "expected tls:// in cluster.url: without TLS no certificate is looked at"
    assert told(SOUND + cluster(ca_file="ca.pem")) == [f"config.yaml:7: cluster.ca_file: {clear}"]
    assert told(SOUND + cluster(**{name: of_one[name] for name in ("cert_file", "key_file")})) == [
        f"config.yaml:7: cluster.cert_file: {clear}"
    ]


def test_credentials(tmp_path: Path) -> None:
    """A file of NATS credentials is looked into, and none of it is ever told; a user name beside it is one too many."""
    marks = ("NATS USER JWT", "USER NKEY SEED")
    parts = [f"-----BEGIN {mark}-----\nhunter2\n------END {mark}------\n" for mark in marks]
    (tmp_path / "whole.creds").write_text("".join(parts))
    (tmp_path / "half.creds").write_text(parts[0])

    made = loaded(SOUND + cluster(credentials="whole.creds")).cluster
    assert made is not None
    assert made.credentials == tmp_path / "whole.creds"
    assert told(SOUND + cluster(credentials="half.creds")) == [
        'config.yaml:7: cluster.credentials: expected a file of NATS credentials, as nsc makes one, got "half.creds"'
    ]
    assert told(SOUND + cluster(credentials="whole.creds", username="u")) == [
        "config.yaml:7: cluster.credentials: expected only one of credentials, username"
    ]


SECRET = "hunter2-5f1b7c"  # noqa: S105 - made up
WHOLE = """instance: main
gateway:
  url: https://gateway.example/x
  interval: [0.2, 0.5]
  proxy: !env_var CONFIG_TEST_PROXY
mqtt: {username: u, password: !secret mqtt, url: !env_var CONFIG_TEST_URL}
agents:
  - work_no: "101"
    name: &name Amina
    guid: !secret guid
  - work_no: "102"
    group: *name
    sign_in: {password: !secret pw, phone: !secret phone, again: true}
privacy: {mask: [a, b], with: hash}
http: {listen: "[::1]:9464"}
cluster: {url: "nats://a", name: prod, key: !secret key, former_key: !secret key, username: u, password: !secret mqtt}
"""
SECRETS = f"key: {KEY}\nmqtt: {SECRET}\npw: '{SECRET}'\nphone: {SECRET}\nguid: \"{SECRET}\"\n"


@st.composite
def _mutated(draw: st.DrawFn, text: str) -> bytes:
    """Cut, repeat, or put something into a text, up to four times."""
    data = text.encode()
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 12)))
        pieces = [
            b"",
            b":",
            b"\n",
            b" ",
            b"!secret ",
            b"!include ",
            b"&a ",
            b"*a",
            b"<<: ",
            b"0101",
            b"- ",
            b"'",
            b"[",
            b"}",
        ]
        piece = draw(st.sampled_from(pieces) | st.just(data[start:end] * 2) | st.binary(max_size=4))
        data = data[:start] + piece + data[end:]
    return data


FAST = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.usefixtures("_parser")
@FAST
@given(data=st.binary(max_size=200) | st.text(alphabet="a:-[]{}&*!|>'\"%@#?,<\n 01.~\\", max_size=60).map(str.encode))
def test_any_bytes(data: bytes) -> None:
    """Whatever a file holds: a sound configuration it is not, and nothing but `ConfigError` comes of it."""
    assert told(data)


@pytest.mark.usefixtures("_parser")
@FAST
@given(config=_mutated(WHOLE), secrets=_mutated(SECRETS) | st.just(SECRETS.encode()))
def test_no_secret_is_shown(config: bytes, secrets: bytes) -> None:
    """However a configuration and its secrets are damaged: only `ConfigError`, one line each, and no secret's value."""
    Path("secrets.yaml").write_bytes(secrets)
    Path("secrets.yaml").chmod(0o600)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONFIG_TEST_PROXY", f"http://u:{SECRET}@proxy")
        patch.setenv("CONFIG_TEST_URL", "wss://broker")
        lines = told(config)

    assert [secret for secret in (SECRET, KEY) if secret in "\n".join(lines)] == []
    assert all(line.startswith(("config.yaml", "secrets.yaml")) for line in lines)


def test_the_configuration_that_is_damaged_is_sound(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text that the property test begins with has no mistake of its own."""
    write_secrets(SECRETS)
    monkeypatch.setenv("CONFIG_TEST_PROXY", f"http://u:{SECRET}@proxy")
    monkeypatch.setenv("CONFIG_TEST_URL", "wss://broker")

    assert told(WHOLE) == []
