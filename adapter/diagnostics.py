"""What a person who helps wants to know of a running adapter, in one answer.

Rule of this file: numbers, versions and names of things alone. No topic, message, log line or file name is in it, and
of the configuration only what `bridge/info` shows; so no GUID, password, cookie, call data or phone number can be.
"""

import asyncio
import os
import platform
import sqlite3
import ssl
from collections import Counter
from collections.abc import Mapping
from importlib import metadata
from typing import cast

from adapter.agent.poller import Poller
from adapter.agent.presence import Shared
from adapter.bridge import Bridge
from adapter.link import Link
from adapter.logs import current_level
from adapter.machine import disk_below, ephemeral_ports, open_files, open_files_limits
from adapter.payloads import (
    BrokerDiagnosis,
    CommandCounts,
    DiagnosticsPayload,
    LogLevel,
    StorageDiagnosis,
    SystemDiagnosis,
)

_LIBRARIES = ("paho-mqtt", "httpx", "httptools", "msgspec", "voluptuous", "PyYAML", "click", "aiohttp")


async def diagnose(shared: Shared, pollers: Mapping[str, Poller], bridge: Bridge, link: Link) -> DiagnosticsPayload:
    """Gather it, what needs the disk in a thread.

    Raises:
        StorageError: The database cannot be read.
    """
    loop = asyncio.get_running_loop()
    counters, outbox = shared.counters, shared.outbox
    unreadable, aside = await outbox.kept_for_a_person()
    disk = await loop.run_in_executor(None, disk_below, shared.config.storage.path.parent)
    connection = link.connection
    return DiagnosticsPayload(
        info=bridge.describe(),
        health=await bridge.measure(),
        log_level=cast("LogLevel", current_level()),
        states=dict(Counter(poller.presence.state.state for poller in pollers.values())),
        commands=CommandCounts(taken=counters.commands, dropped=counters.dropped_commands),
        broker=BrokerDiagnosis(
            protocol=None if connection is None else connection.protocol,
            connections=counters.broker_connections,
            in_flight=0 if connection is None else connection.in_flight,
            receive_maximum=None if connection is None else connection.receive_maximum,
            maximum_packet_size=None if connection is None else connection.maximum_packet_size,
        ),
        storage=StorageDiagnosis(
            writable=outbox.writable,
            newest_waiting=outbox.slots_waiting,
            unreadable_kept=unreadable,
            aside_kept=aside,
            free_bytes=disk.free_bytes,
            filesystem=disk.filesystem,
        ),
        system=await loop.run_in_executor(None, _system),
    )


def _system() -> SystemDiagnosis:
    return SystemDiagnosis(
        python=platform.python_version(),
        platform=platform.platform(),
        libraries=dict(_versions()),
        cores=os.cpu_count(),
        open_files=open_files(),
        open_files_limit=open_files_limits()[0],
        ephemeral_ports=ephemeral_ports(),
    )


def _versions() -> list[tuple[str, str]]:
    found = [("openssl", ssl.OPENSSL_VERSION), ("sqlite", sqlite3.sqlite_version)]
    for name in _LIBRARIES:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return found
