"""The configuration as values: defaults, paths, waits, what is shown and what a reload changes."""

import base64
import itertools
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from adapter.config import Backoff, BrokerAddress, Config, HttpConfig, PrivacyConfig, SignInConfig, broker_at, load
from adapter.config.report import difference, public
from adapter.errors import ConfigError
from tests.config_support import AGENTS, CLUSTER, GATEWAY, KEY, SOUND, loaded, write_secrets


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_defaults(tmp_path: Path) -> None:
    """What is left out has the defaults that the contract shows."""
    config = loaded(SOUND)

    gateway, mqtt = config.gateway, config.mqtt
    assert (config.instance, config.path) == ("main", tmp_path / "config.yaml")
    assert (gateway.auth_mode, gateway.hold_s, gateway.timeout_s) == ("dynamic", 10, 20)
    assert gateway.interval_s == (0.2, 0.5)
    assert gateway.error_backoff == Backoff(initial_s=1.5, maximum_s=30)
    assert (gateway.verify, gateway.allow_http, gateway.ca_file, gateway.proxy) == (True, False, None, None)
    assert (mqtt.url, mqtt.scheme) == ("mqtt://localhost:1883", "mqtt")
    assert mqtt.addresses == (BrokerAddress(host="localhost", port=1883, path=""),)
    assert (mqtt.client_id, mqtt.protocol, mqtt.keepalive_s) == ("ccgateway2mqtt-main", "auto", 60)
    assert (mqtt.topic_prefix, mqtt.stream, mqtt.response_prefix, mqtt.verify) == ("agents", True, None, True)
    assert (config.storage.path, config.storage.max_mb) == (tmp_path / "ccgateway2mqtt.db", 1024)
    assert (config.commands.calldata, config.commands.session, config.commands.bridge) == (True, True, True)
    home = config.home_assistant
    assert (home.discovery, home.prefix, home.max_agents) == (False, "homeassistant", 500)
    assert (home.birth_topic, home.birth_payload) == ("homeassistant/status", "online")
    assert (config.privacy, config.http, config.cluster) == (None, None, None)
    assert (config.log.level, config.log.format) == ("info", "text")


def test_sign_in_defaults() -> None:
    """A sign-in without options is idle, gentle, and made once."""
    config = loaded(GATEWAY + 'agents: [{work_no: "1", sign_in: {password: p, phone: "8"}}]')

    expected = SignInConfig(password="p", phone="8", status="idle", force=False, again=False, sign_out_at_exit=False)  # noqa: S106 - made up
    assert config.agents[0].sign_in == expected


def test_client_id_follows_the_instance() -> None:
    """Two instances at one broker do not push each other off it."""
    assert loaded("instance: night\n" + SOUND).mqtt.client_id == "ccgateway2mqtt-night"
    assert loaded("instance: night\nmqtt: {client_id: mine}\n" + SOUND).mqtt.client_id == "mine"


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("mqtt://h", "h", 1883, ""),
        ("mqtts://h/", "h", 8883, ""),
        ("ws://h", "h", 80, "/mqtt"),
        ("wss://h:8083/a/b", "h", 8083, "/a/b"),
        ("ws://h/", "h", 80, "/"),
        ("mqtt://[::1]:2883", "::1", 2883, ""),
        ("mqtt://my_broker.local.:1", "my_broker.local.", 1, ""),
    ],
)
def test_broker_address(url: str, host: str, port: int, path: str) -> None:
    """An address is taken apart, and what is not in it is filled in."""
    mqtt = loaded(SOUND + f"mqtt: {{url: '{url}'}}").mqtt

    assert (mqtt.url, mqtt.scheme) == (url.rstrip("/"), url.partition(":")[0])
    assert mqtt.addresses == (BrokerAddress(host=host, port=port, path=path),)


@pytest.mark.parametrize(
    ("url", "shown", "addresses"),
    [
        ("mqtt://a,mqtt://b:1/", "mqtt://a,mqtt://b:1", [("a", 1883, ""), ("b", 1, "")]),
        ("mqtts://a:1,mqtts://[::1]", "mqtts://a:1,mqtts://[::1]", [("a", 1, ""), ("::1", 8883, "")]),
        (
            "wss://a:1,   wss://b/x,y,wss://b/z",
            "wss://a:1,wss://b/x,y,wss://b/z",
            [("a", 1, "/mqtt"), ("b", 443, "/x,y"), ("b", 443, "/z")],
        ),
        ("ws://h/a,b", "ws://h/a,b", [("h", 80, "/a,b")]),
    ],
)
def test_several_addresses_of_brokers(url: str, shown: str, addresses: list[tuple[str, int, str]]) -> None:
    """Issue 6, point 7: addresses with commas between them, each with its port and path; a path may hold a comma."""
    mqtt = loaded(SOUND + f"mqtt: {{url: '{url}'}}").mqtt

    assert mqtt.url == shown
    assert [(each.host, each.port, each.path) for each in mqtt.addresses] == addresses


def test_broker_known_by_its_address() -> None:
    """A tool that is given an address alone gets the defaults for the rest, and its mistakes without their values."""
    mqtt = broker_at("wss://h", "a/b")

    assert mqtt.addresses == (BrokerAddress(host="h", port=443, path="/mqtt"),)
    assert (mqtt.topic_prefix, mqtt.verify) == ("a/b", True)
    with pytest.raises(ConfigError) as caught:
        broker_at("mqtt://u:hunter2@h", "a/+")
    assert [problem.place for problem in caught.value.problems] == ["--broker", "--prefix"]
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("protocol", ["auto", "5", '"5"', "3.1.1"])
def test_protocol_with_and_without_quotes(protocol: str) -> None:
    """A version of MQTT may be written as a number."""
    assert loaded(SOUND + f"mqtt: {{protocol: {protocol}}}").mqtt.protocol == protocol.strip('"')


def test_gateway_address_ends_without_slash() -> None:
    """Paths are added to the gateway's address with a slash of their own."""
    config = loaded("gateway: {url: 'http://g:80/agw/', allow_http: true, proxy: 'http://u:p@proxy:1'}\n" + AGENTS)

    assert config.gateway.url == "http://g:80/agw"
    assert config.gateway.proxy == "http://u:p@proxy:1"


@pytest.mark.parametrize(
    ("listen", "host", "port"),
    [("127.0.0.1:9464", "127.0.0.1", 9464), ("[::1]:0", "::1", 0), ("localhost:1", "localhost", 1)],
)
def test_listen(listen: str, host: str, port: int) -> None:
    """The listener's address may be a name, IPv4, or IPv6 in brackets."""
    assert loaded(SOUND + f'http: {{listen: "{listen}"}}').http == HttpConfig(
        host=host, port=port, wall=False, wall_broker=None
    )


@pytest.mark.parametrize(
    ("given", "used"),
    [("wss://b.example/x", "wss://b.example/x"), ("ws://b.example:8084", "ws://b.example:8084/mqtt")],
)
def test_wall(given: str, used: str) -> None:
    """The wall page is off by default, and may be told where browsers find the broker; the path is as in mqtt.url."""
    config = loaded(SOUND + f'http: {{listen: "[::1]:0", wall: true, wall_broker: "{given}"}}')

    assert config.http == HttpConfig(host="::1", port=0, wall=True, wall_broker=used)


@pytest.mark.parametrize("off", ["privacy: off", "privacy:", "http: false", "http: ~", "cluster: off", "cluster: ~"])
def test_off_in_so_many_words(off: str) -> None:
    """A section that is off by default may also be switched off by name."""
    config = loaded(SOUND + off)

    assert (config.privacy, config.http, config.cluster) == (None, None, None)


def test_privacy() -> None:
    """Without more, the members known to carry a number lose all but four digits."""
    assert loaded(SOUND + "privacy: {}").privacy == PrivacyConfig(members=None, method="last4")
    assert loaded(SOUND + "privacy: {mask: [otherPhone], with: hash}").privacy == PrivacyConfig(
        members=frozenset({"otherPhone"}), method="hash"
    )


def test_cluster() -> None:
    """SPEC section 10: addresses with commas between them, port 4222 where none is written; three copies."""
    cluster = loaded(SOUND + f'cluster: {{url: "nats://a,nats://b,nats://c", name: prod, key: {KEY}}}').cluster

    assert cluster is not None
    assert (cluster.urls, cluster.name) == (("nats://a:4222", "nats://b:4222", "nats://c:4222"), "prod")
    assert (cluster.replicas, cluster.moves) == (3, 100)
    assert (cluster.username, cluster.password, cluster.credentials) == (None, None, None)
    assert (cluster.ca_file, cluster.cert_file, cluster.key_file) == (None, None, None)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("nats://a:4223 , nats://[::1]/,nats://[::1]:1", ("nats://a:4223", "nats://[::1]:4222", "nats://[::1]:1")),
        ("tls://n.example", ("tls://n.example:4222",)),
    ],
)
def test_addresses_of_nats_servers(given: str, used: tuple[str, ...]) -> None:
    """Each is taken apart; blanks around commas and a slash at the end do not count."""
    cluster = loaded(SOUND + f"cluster: {{url: '{given}', name: prod, key: {KEY}, replicas: 1}}").cluster

    assert cluster is not None
    assert (cluster.urls, cluster.replicas) == (used, 1)


def test_keys_of_a_cluster() -> None:
    """The new one comes first, and both are in the alphabet that Fernet takes, however they were written."""
    key, former = (base64.b64encode(bytes([byte] * 32)).decode() for byte in (0xFB, 0xFF))
    assert "+" in key
    assert "/" in former
    cluster = loaded(SOUND + f"cluster: {{url: 'nats://a', name: p, key: {key}, former_key: '{former}'}}").cluster

    assert cluster is not None
    assert [base64.urlsafe_b64decode(each) for each in cluster.keys] == [b"\xfb" * 32, b"\xff" * 32]


def test_paths_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    """An included file's paths begin at its own directory, and a secret's at the file that uses it."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/agents.yaml").write_text(
        '- {work_no: "1", guid_file: here.txt}\n- {work_no: "2", guid_file: /abs/there.txt}\n'
        '- {work_no: "3", guid_file: !secret file}\n- {work_no: "4", guid: !secret guid}\n'
    )
    write_secrets("file: third.txt\nguid: fourth", directory="sub")

    config = loaded(GATEWAY + "agents: !include sub/agents.yaml\nstorage: {path: data/x.db}")

    expected = [tmp_path / "sub/here.txt", Path("/abs/there.txt"), tmp_path / "sub/third.txt", None]
    assert [agent.guid_file for agent in config.agents] == expected
    assert config.agents[3].guid == "fourth"
    assert config.storage.path == tmp_path / "data/x.db"


def test_secrets_are_in_no_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever logs a configuration by mistake shows no secret."""
    key = base64.b64encode(b"hunter2 hunter2 hunter2 hunter2 ").decode()
    former = base64.b64encode(b" hunter2 hunter2 hunter2 hunter2").decode()
    write_secrets(
        f"mqtt: hunter2-mqtt\npw: hunter2-pw\nguid: hunter2-guid\nkey: {key}\nformer: {former}\nnats: hunter2-nats"
    )
    monkeypatch.setenv("PROXY", "http://u:hunter2@p")

    config = loaded(
        "gateway: {url: https://g, proxy: !env_var PROXY}\nmqtt: {username: u, password: !secret mqtt}\n"
        'agents: [{work_no: "1", guid: !secret guid}, {work_no: "2", sign_in: {password: !secret pw, phone: "1"}}]\n'
        "cluster: {url: 'nats://a', name: prod, key: !secret key, former_key: !secret former, username: u, "
        "password: !secret nats}"
    )

    sign_in = config.agents[1].sign_in
    assert (config.mqtt.password, sign_in and sign_in.password) == ("hunter2-mqtt", "hunter2-pw")
    assert config.cluster is not None
    assert (config.cluster.keys, config.cluster.password) == ((key, former), "hunter2-nats")
    told = repr(config) + json.dumps(public(config))
    assert [secret for secret in ("hunter2", key, former) if secret in told] == []


def test_text_by_tag() -> None:
    """YAML's own tag for text does what quotes do."""
    assert loaded(GATEWAY + "agents: [{work_no: !!str 0101, guid: ! abc}]").agents[0].work_no == "0101"


def test_merged_mappings() -> None:
    """Members shared by an anchor are taken over, and what is written beside them wins."""
    config = loaded(
        GATEWAY
        + 'agents:\n- {work_no: "1", sign_in: &usual {password: p, phone: "1", again: true}}\n'
        + '- {work_no: "2", sign_in: {<<: *usual, phone: "2"}}\n'
        + '- {work_no: "3", sign_in: {phone: "3", <<: [*usual, {status: busy, again: false}]}}'
    )

    signed_in = [agent.sign_in for agent in config.agents if agent.sign_in]
    assert [(one.phone, one.again, one.status) for one in signed_in] == [
        ("1", True, "idle"),
        ("2", True, "idle"),
        ("3", True, "busy"),
    ]


@pytest.mark.parametrize(("initial_s", "maximum_s"), [(1.5, 30), (1.01, 119), (5, 300), (7, 7)])
def test_backoff(initial_s: float, maximum_s: float) -> None:
    """P5: the first wait is over 1 s, waits grow to the largest and keep to their bounds, and two agents' differ."""
    waits_s = list(itertools.islice(Backoff(initial_s=initial_s, maximum_s=maximum_s).delays(), 2000))

    assert initial_s <= waits_s[0] <= min(initial_s * 4 / 3, maximum_s)
    assert all(1 < initial_s <= wait_s <= maximum_s for wait_s in waits_s)
    assert all(before <= after for before, after in itertools.pairwise(waits_s[:3]))
    assert min(waits_s[20:]) >= maximum_s * 3 / 4
    assert (len(set(waits_s)) > 1000) == (initial_s < maximum_s)


def test_first_backoff_by_default_is_1_to_2_s() -> None:
    """P5: at first 1 to 2 s."""
    first_s = [next(loaded(SOUND).gateway.error_backoff.delays()) for _ in range(20)]

    assert all(1 < wait_s <= 2 for wait_s in first_s)


def _largest() -> Config:
    """Make a configuration with 5,000 agents where every text is as long as it may be."""
    agents = "".join(f'- {{work_no: "{i}", guid: "{"g" * 200}"}}\n' for i in range(5000))
    masked = json.dumps([f"{i:064}" for i in range(50)])
    return loaded(
        f"gateway: {{url: 'https://g/{'x' * 490}'}}\n"
        f"mqtt: {{url: 'wss://g/{'x' * 490},wss://h/{'x' * 490}', topic_prefix: '{'é' * 100}', "
        f"client_id: '{'𝄞' * 128}', response_prefix: '{'ü' * 100}'}}\n"
        f"home_assistant: {{prefix: '{'ß' * 100}'}}\nprivacy: {{mask: {masked}}}\nagents:\n{agents}"
    )


def test_what_is_public_stays_small() -> None:
    """`bridge/info` is under 8 KB however much is configured, so this part of it leaves room."""
    text = json.dumps(public(_largest()), ensure_ascii=False).encode()

    assert len(text) < 7000


def test_what_is_public_is_listed() -> None:
    """No file's name, no user name and no agent is shown."""
    config = loaded(SOUND + CLUSTER + "mqtt: {username: someone}\nhttp: {listen: 'localhost:1'}\nprivacy: {}")

    text = json.dumps(public(config))

    assert public(config)["agents"] == 1
    assert public(config)["cluster"] == "prod"
    assert "nats" not in text
    assert public(config)["privacy"] == {"mask": "numbers", "with": "last4"}
    assert not any(word in text for word in ("someone", "101", "abc", ".db", str(config.path.parent)))


def test_difference_of_agents() -> None:
    """C7: a reload starts, stops and restarts just the agents it must."""
    old = loaded(GATEWAY + 'agents: [{work_no: "1", guid: a}, {work_no: "2", guid: b}, {work_no: "3", guid: c}]')
    new = loaded(
        GATEWAY
        + 'log: {level: debug}\nagents: [{work_no: "4", guid: d}, {work_no: "3", guid: x}, {work_no: "1", guid: a}]',
        name="other.yaml",
    )

    assert difference(old, new) == ([], ["4"], ["2"], ["3"])


@pytest.mark.parametrize(
    ("section", "keys"),
    [
        ("instance: other", ["instance", "mqtt.client_id"]),
        ("mqtt: {url: 'ws://other:1/x'}", ["mqtt.url"]),
        ("mqtt: {url: 'mqtt://localhost:1883,mqtt://other'}", ["mqtt.url"]),
        ("mqtt: {username: u, password: hunter2}", ["mqtt.username", "mqtt.password"]),
        ("mqtt: {keepalive: 5}", ["mqtt.keepalive"]),
        ("storage: {path: other.db}", ["storage.path"]),
        ("privacy: {}", ["privacy"]),
        ("http: {listen: 'localhost:1'}", ["http"]),
        ("commands: {bridge: false}", ["commands.bridge"]),
        ("home_assistant: {max_agents: 7}", ["home_assistant.max_agents"]),
        (CLUSTER, ["cluster"]),
    ],
)
def test_difference_needing_a_restart(section: str, keys: list[str]) -> None:
    """C7: what a reload cannot change is named by the keys of the file, without values."""
    assert difference(loaded(SOUND), loaded(SOUND + section)).keys == keys


def test_difference_inside_of_optional_sections() -> None:
    """C7: keys whose values are held in another form are named as they are written."""
    old = loaded(
        "gateway: {url: https://g}\nprivacy: {}\nhttp: {listen: 'localhost:1'}\n" + AGENTS,
    )
    new = loaded(
        "gateway: {url: https://g, hold: 9, timeout: 19, interval: [0.3, 0.4], error_interval: [2, 3]}\n"
        "privacy: {mask: [x], with: drop}\nhttp: {listen: 'other:2'}\n" + AGENTS
    )
    one = loaded(SOUND + CLUSTER)
    other = loaded(SOUND + f"cluster: {{url: 'tls://a', name: q, key: {KEY}, former_key: {KEY}, replicas: 5}}")

    assert difference(old, new).keys == [
        "gateway.hold",
        "gateway.timeout",
        "gateway.interval",
        "gateway.error_interval",
        "privacy.mask",
        "privacy.with",
        "http.listen",
    ]
    assert difference(one, other).keys == ["cluster.url", "cluster.name", "cluster.key", "cluster.replicas"]


def test_every_member_of_a_configuration_counts_as_a_difference() -> None:
    """No member can be added which a reload would pass over in silence."""
    config = loaded(SOUND + CLUSTER + "privacy: {}\nhttp: {listen: 'localhost:1'}")
    sections: dict[str, Any] = {member.name: getattr(config, member.name) for member in fields(config)}

    for name in ("gateway", "mqtt", "storage", "commands", "home_assistant", "privacy", "http", "cluster"):
        section = sections.pop(name)
        for member in fields(section):
            changed: dict[str, Any] = {name: replace(section, **{member.name: object()})}
            assert difference(config, replace(config, **changed)).keys, f"{name}.{member.name}"
    assert set(sections) == {"instance", "agents", "log", "path"}


def test_load_leaves_files_alone(tmp_path: Path) -> None:
    """Checking a configuration creates nothing."""
    loaded(SOUND)
    load(tmp_path / "config.yaml")

    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
