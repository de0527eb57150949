"""What is said of a configuration while the program runs: what may be shown of it, and what a reload would change.

Above `config`. Rule of this file: `public` lists what may be shown, so that a new key stays private until it is added.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import NamedTuple

from adapter.config.settings import Config

_LIVE = ("agents", "log", "path")
"""What a reload can change, and the file's own name."""
_KEYS = {
    "gateway.error_backoff": "gateway.error_interval",
    "mqtt.scheme": "mqtt.url",
    "mqtt.addresses": "mqtt.url",
    "privacy.members": "privacy.mask",
    "privacy.method": "privacy.with",
    "http.host": "http.listen",
    "http.port": "http.listen",
    "cluster.urls": "cluster.url",
    "cluster.keys": "cluster.key",
}
"""The keys of members whose names differ from them by more than a unit."""


class Difference(NamedTuple):
    """What another configuration changes.

    Attributes:
        keys: Keys outside of `agents` and `log`, such as ``gateway.hold``: they need a restart.
        added: Work numbers that are new.
        removed: Work numbers that are gone.
        changed: Work numbers whose agents are configured otherwise.
    """

    keys: list[str]
    added: list[str]
    removed: list[str]
    changed: list[str]


def difference(old: Config, new: Config) -> Difference:
    """Tell what a reload from `old` to `new` means. No value is in it, only names."""
    before = {agent.work_no: agent for agent in old.agents}
    after = {agent.work_no: agent for agent in new.agents}
    return Difference(
        keys=list(dict.fromkeys(_changed(old, new, ""))),
        added=[work_no for work_no in after if work_no not in before],
        removed=[work_no for work_no in before if work_no not in after],
        changed=[work_no for work_no in after if work_no in before and after[work_no] != before[work_no]],
    )


def _changed(old: object, new: object, section: str) -> Iterator[str]:
    for member in fields(old) if is_dataclass(old) else ():
        before, after = getattr(old, member.name), getattr(new, member.name)
        name = f"{section}{member.name}"
        if before == after or name in _LIVE:
            continue
        if not section and is_dataclass(before) and is_dataclass(after):
            yield from _changed(before, after, f"{name}.")
        else:
            yield _KEYS.get(name, name.removesuffix("_s"))


def public(config: Config) -> dict[str, object]:
    """List what anyone who reads ``bridge/info`` may know, under the keys of the file; well below 8 KB as JSON.

    No secret, no file's name, no proxy, and of the agents only how many.
    """
    gateway, mqtt, privacy = config.gateway, config.mqtt, config.privacy
    return {
        "instance": config.instance,
        "gateway": {
            "url": gateway.url,
            "auth_mode": gateway.auth_mode,
            "verify": gateway.verify,
            "hold": gateway.hold_s,
            "timeout": gateway.timeout_s,
            "interval": list(gateway.interval_s),
            "error_interval": [gateway.error_backoff.initial_s, gateway.error_backoff.maximum_s],
            "allow_http": gateway.allow_http,
        },
        "mqtt": {
            "url": mqtt.url,
            "client_id": mqtt.client_id,
            "protocol": mqtt.protocol,
            "verify": mqtt.verify,
            "keepalive": mqtt.keepalive_s,
            "topic_prefix": mqtt.topic_prefix,
            "stream": mqtt.stream,
            "response_prefix": mqtt.response_prefix,
        },
        "agents": len(config.agents),
        "storage": {"max_mb": config.storage.max_mb},
        "commands": {
            "calldata": config.commands.calldata,
            "session": config.commands.session,
            "bridge": config.commands.bridge,
        },
        "home_assistant": {
            "discovery": config.home_assistant.discovery,
            "prefix": config.home_assistant.prefix,
            "max_agents": config.home_assistant.max_agents,
            "birth_topic": config.home_assistant.birth_topic,
            "birth_payload": config.home_assistant.birth_payload,
        },
        "privacy": None
        if privacy is None
        else {
            "mask": "numbers" if privacy.members is None else sorted(privacy.members),
            "with": privacy.method,
        },
        "http": config.http is not None,
        "cluster": None if config.cluster is None else config.cluster.name,
        "log": {"level": config.log.level, "format": config.log.format},
    }
