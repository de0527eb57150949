"""What a member's lease says, and what all members have to have alike."""

import hashlib
from dataclasses import replace
from pathlib import Path

import msgspec

from adapter import __version__
from adapter.config import Config


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What a member's lease says.

    Attributes:
        term: Makes one life of a member of each name; agents belong to ``name/term``.
        count: Goes up at each renewal, so that no two look alike.
        content: A hash of what all members have to have alike.
        proof: Something that is sealed with the member's key.
        storage: Where its outbox lies: whoever has the same knows that the process before is gone.
        since: Unix time in seconds at which the term began; the oldest of those who stay speaks for the fleet.
        leaving: Whether it hands its agents over, or has: it was told to drain, or ends.
        agents: How many it has.
    """

    term: str
    count: int
    content: str
    proof: bytes
    storage: str
    since: float = 0.0
    leaving: bool = False
    agents: int = 0
    version: str = __version__


def content_of(config: Config) -> str:
    """Hash what all members have to have alike.

    Without secrets, which change one member after the other, and without the places of files, which differ.
    """
    sign_ins = (agent.sign_in and replace(agent.sign_in, password="") for agent in config.agents)
    agents = [
        replace(
            agent, guid=agent.guid and "", guid_file=agent.guid_file and Path(agent.guid_file.name), sign_in=sign_in
        )
        for agent, sign_in in zip(config.agents, sign_ins, strict=True)
    ]
    alike = (
        replace(config.gateway, ca_file=None, proxy=None),
        config.mqtt.topic_prefix,
        config.mqtt.stream,
        config.privacy,
        sorted(agents, key=lambda agent: agent.work_no),
    )
    return hashlib.sha256(msgspec.json.encode(alike, enc_hook=str, order="deterministic")).hexdigest()


def replace_entry(entry: Entry, **changes: object) -> Entry:
    """Give a lease with some of its members changed."""
    return msgspec.structs.replace(entry, **changes)


def entry_of(value: bytes) -> Entry | None:
    """Read a lease; `None` where it is none of ours."""
    try:
        return msgspec.json.decode(value, type=Entry)
    except msgspec.DecodeError:
        return None


def outline(members: dict[str, Entry]) -> dict[str, tuple[str, bool, str]]:
    """Give what others act on: a renewal alone leaves it as it is."""
    return {name: (entry.term, entry.leaving, entry.content) for name, entry in members.items()}
