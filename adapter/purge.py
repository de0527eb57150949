"""`ccgateway2mqtt purge`: clear what an adapter has retained at the broker, when it is removed for good.

Rules of this file:
1. Nothing is cleared while an adapter is live under the prefix; it would publish all of it again.
2. What another instance or another program has retained stays.
3. The broker is asked again afterwards: with MQTT 3.1.1 it acknowledges what it denies too.
"""

import asyncio
import contextlib
import glob
import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from adapter.config import FLEET, Config, MqttConfig
from adapter.errors import BrokerConnectionError, BrokerError, StartError
from adapter.home_assistant.announcing import PER_SECOND
from adapter.home_assistant.devices import instance_of
from adapter.link import live_health_age_s
from adapter.mqtt import Dialer, Message, Received, Refusal, read_retained
from adapter.payloads import InfoPayload, StatePayload
from adapter.store.database import Lock
from adapter.topics import Topics, discovery

_T = TypeVar("_T")

_READ_S = 60.0
"""How long the broker may take to send all that it retains."""
_QUIET_S = 0.5
"""How long no message takes to mean that all were read."""
_CLEAR_S = 60.0
"""How long the broker may take to acknowledge all that is cleared."""
_NAMED = 5
"""How many topics an error names."""
_PARTS = ("", "-wal", "-shm", ".lock")
"""The database's files, by what follows its name."""
_SQLITE = b"SQLite format 3\0"
"""How a database begins. Source: SQLite, "Database File Format", "Magic Header String"."""


async def purge(config: Config, mqtt: MqttConfig, *, yes: bool, show: Callable[[str], None]) -> str:
    """Show what an adapter has left at the broker, and with `yes` clear it; at each one where there are several.

    Args:
        config: The configuration.
        mqtt: Its broker, with the user to log in as.
        yes: Whether to clear it.
        show: Called with each topic.

    Returns:
        What was done, in words, a line for each broker.

    Raises:
        StartError: As `find` and `clear`.
        BrokerError: The same; of several brokers the others were looked at all the same.
    """
    done: list[str] = []
    failed: list[BrokerError] = []
    for address in mqtt.addresses:
        try:
            done.append(await _purge_at(config, replace(mqtt, addresses=(address,)), yes=yes, show=show))
        except BrokerError as error:
            failed.append(error)
    if failed:
        raise failed[0] if not done else BrokerError("; ".join([*done, *map(str, failed)]))
    return "\n".join(done)


async def _purge_at(config: Config, mqtt: MqttConfig, *, yes: bool, show: Callable[[str], None]) -> str:
    topics = await find(config, mqtt)
    for topic in topics:
        show(topic)
    place = f"broker {mqtt.addresses[0]}"
    if not topics:
        return f"{place}: nothing is retained that {_user(mqtt)} may read"
    if not yes:
        return f"{place}: {len(topics)} retained topics would be cleared; --yes clears them"
    await clear(config, mqtt, topics)
    return f"{place}: {len(topics)} retained topics cleared"


async def find(config: Config, mqtt: MqttConfig) -> list[str]:
    """List what this adapter, or its fleet, has retained; devices of Home Assistant first, the bridge last.

    The agents are those of the configuration, and others whose `state` is one of ours: they were left out of it when
    nobody cleared them any more.

    Args:
        config: The configuration.
        mqtt: Its broker, with the user to log in as: it must be allowed to read these topics.

    Raises:
        StartError: The adapter runs, or the topics are another instance's.
        BrokerError: The broker is not there, or refuses.
    """
    if Lock.read(config.storage.path) is not None:
        raise StartError(f"{config.storage.path}: an adapter runs with it: stop it first", exit_code=3)
    topics = Topics(mqtt.topic_prefix)
    names = ("availability", "info", "health", "mark")
    own = {topics.bridge(name): name for name in names}
    members = [topics.member("+", name) for name in names]
    roster = topics.bridge("agents/+")
    devices = discovery(config.home_assistant.prefix, "+")
    client_id = f"{mqtt.client_id}-purge-{uuid.uuid4().hex[:8]}"
    filters = [*topics.retained("+"), *own, *members, roster, devices]
    found = await read_retained(Dialer(mqtt), filters, client_id, _READ_S, quiet_s=_QUIET_S)
    instance = config.instance if config.cluster is None else config.cluster.name
    _look_for_company(
        config.mqtt.topic_prefix,
        instance,
        {name: found[topic].payload for topic, name in own.items() if topic in found},
    )
    agents = {agent.work_no for agent in config.agents} | _agents_seen(topics, found)
    announced = [topic for topic in found if _is_below(devices, topic)]
    pages = [topic for topic in found if _is_below(roster, topic)]
    return [
        *sorted(topic for topic in announced if instance_of(found[topic].payload) == instance),
        *(topic for work_no in sorted(agents) for topic in topics.retained(work_no) if topic in found),
        *sorted(pages),
        *sorted(topic for topic in found if _is_below(members[0], topic)),
        *(topic for topic in own if topic in found),
    ]


async def clear(config: Config, mqtt: MqttConfig, topics: list[str]) -> None:
    """Clear what `find` has listed, and see that it is gone.

    Raises:
        StartError: Something is still there, or came back.
        BrokerError: The broker is not there, or refuses.
    """
    with contextlib.suppress(BrokerConnectionError):  # some hang up over what they deny: what is left tells
        await _publish_empty(mqtt, topics, discovery(config.home_assistant.prefix, "+"))
    left = await find(config, mqtt)
    if left:
        more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
        raise StartError(
            f"still retained: {', '.join(left[:_NAMED])}{more}: does the broker allow {_user(mqtt)} to write there?",
            exit_code=1,
        )


async def _publish_empty(mqtt: MqttConfig, topics: list[str], devices: str) -> None:
    """Have the broker clear topics; those that fit `devices` no faster than Home Assistant can bear."""
    client_id = f"{mqtt.client_id}-purge-{uuid.uuid4().hex[:8]}"
    answers: list[asyncio.Future[Refusal | None]] = []
    async with Dialer(mqtt).connect(client_id=client_id, on_message=lambda _: None) as connection:
        for topic in topics:
            answer: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
            connection.publish(Message(topic=topic, payload=b"", retain=True), answer.set_result)
            answers.append(answer)
            if _is_below(devices, topic):
                await asyncio.sleep(1 / PER_SECOND)
        lost = asyncio.ensure_future(connection.lost())
        either: list[asyncio.Future[Any]] = [asyncio.gather(*answers), lost]
        done, _ = await asyncio.wait(either, timeout=_CLEAR_S, return_when=asyncio.FIRST_COMPLETED)
        if lost in done:
            lost.result()
        lost.cancel()


def delete_storage(database: Path, *, yes: bool, tell: Callable[[str], None]) -> None:
    """Delete the database with the files that belong to it, or without `yes` say so.

    What was set aside as damaged stays: perhaps nobody has looked at it yet.

    Args:
        database: `storage.path`.
        yes: Whether to delete it.
        tell: Called with a line for each file.

    Raises:
        StorageInUseError: A process has it (D5).
        StartError: The file is no database.
        OSError: It cannot be deleted.
    """
    database = database.resolve()  # as its lock
    fleet = database.with_name(database.name + FLEET)
    if database.exists():
        with database.open("rb") as stream:
            if stream.read(len(_SQLITE)) not in (b"", _SQLITE):
                raise StartError(f"{database}: expected a database of this program; it is not deleted", exit_code=1)
        if not yes:
            tell(f"{database}: would be deleted, with what waits in it for the broker")
            return
        lock = Lock(database)
        try:
            for part in _PARTS:
                file = database.with_name(database.name + part)
                if file.exists():
                    file.unlink()
                    tell(f"{file}: deleted")
            if fleet.is_dir():
                shutil.rmtree(fleet)
                tell(f"{fleet}: deleted")
        finally:
            lock.release()
    for aside in sorted(database.parent.glob(f"{glob.escape(database.name)}.damaged-*")):
        tell(f"{aside}: left for you to look at, and then to delete")


def _look_for_company(prefix: str, instance: str, bridge: dict[str, bytes]) -> None:
    """Refuse to clear what is of a live adapter, or of another instance than the configuration's."""
    age_s = live_health_age_s(bridge)
    if age_s is not None:
        raise StartError(
            f"broker: an adapter is live under the prefix {prefix!r} (its health is {age_s:.0f} s old): stop it first;"
            " one that was killed together with the broker counts as live for 150 s",
            exit_code=2,
        )
    info = _decoded(bridge.get("info"), InfoPayload)
    if info is not None and info.instance != instance:
        raise StartError(
            f"broker: what is retained under the prefix {prefix!r} is of the instance {info.instance!r},"
            f" and the configuration's is {instance!r}",
            exit_code=2,
        )


def _agents_seen(topics: Topics, found: dict[str, Received]) -> set[str]:
    """List the agents whose retained state is one of ours."""
    states = {topic: _decoded(received.payload, StatePayload) for topic, received in found.items()}
    return {state.work_no for topic, state in states.items() if state and topic == topics.state(state.work_no)}


def _user(mqtt: MqttConfig) -> str:
    return mqtt.username or "an anonymous client"


def _is_below(pattern: str, topic: str) -> bool:
    """Say whether a topic begins with what stands before the wildcard."""
    return topic.startswith(pattern.partition("+")[0])


def _decoded(payload: bytes | None, kind: type[_T]) -> _T | None:
    """Read a payload; `None` where it is none of ours."""
    try:
        return msgspec.json.decode(payload or b"", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
