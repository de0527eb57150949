"""A look at this machine: open files, ports, and the disk for the database, for the number of agents."""

import os
import tempfile
import time
from pathlib import Path

from adapter.config import StorageConfig
from adapter.doctor.finding import Finding
from adapter.machine import FILES_BESIDES_AGENTS, Disk, disk_below, ephemeral_ports, open_files_limits

_PORTS_USED = 0.7
"""A port stays taken for a minute after its connection (TIME_WAIT), so that not all of them serve agents."""
_SLOW_SYNC_S = 0.05
"""An event waits for one sync before its agent is polled again, and thousands of agents share each."""
_MIB = 1024 * 1024

_IN_MEMORY = ("tmpfs", "ramfs")
_OF_A_CONTAINER = ("overlay", "aufs")
_FAR_AWAY = ("nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "glusterfs")


def look_at_host(agents: int, storage: StorageConfig) -> list[Finding]:
    """Look at all of it; takes as long as the disk takes for one sync."""
    findings = [judge_files(open_files_limits()[1], agents)]
    ports = ephemeral_ports()
    if ports is not None:
        findings.append(judge_ports(ports, agents))
    return [*findings, *_storage(storage)]


def judge_files(limit: int | None, agents: int) -> Finding:
    """Compare the limit of open files, as far as a process may raise it, with a connection for each agent."""
    place, needed = "open files", agents + FILES_BESIDES_AGENTS
    if limit is not None and limit < needed:
        remedy = "raise LimitNOFILE (systemd), --ulimit nofile (containers), or ulimit -n"
        return Finding("failed", place, f"at most {limit} here, {agents} agents need {needed}", remedy)
    return Finding("ok", place, f"{'no limit' if limit is None else limit} here, {agents} agents need {needed}")


def judge_ports(ports: int, agents: int) -> Finding:
    """Compare the ports for connections that go out with a connection for each agent, to one address."""
    place, text = "ephemeral ports", f"{ports} here, {agents} agents take one each"
    remedy = "widen net.ipv4.ip_local_port_range"
    if agents >= ports:
        return Finding("failed", place, text, remedy)
    return Finding("warning", place, text, remedy) if agents > _PORTS_USED * ports else Finding("ok", place, text)


def judge_disk(disk: Disk, max_mb: int) -> Finding:
    """See whether a disk keeps what it is given, and has room for `storage.max_mb`."""
    place, free_mb = "storage disk", disk.free_bytes // _MIB
    text = f"{disk.filesystem or 'unknown'}, {free_mb} MB free"
    if disk.filesystem in _IN_MEMORY:
        return Finding("warning", place, text, "put storage.path on a disk: a restart of the machine loses this memory")
    if disk.filesystem in _OF_A_CONTAINER:
        return Finding("warning", place, text, "put storage.path on a volume: it goes with the container")
    if disk.filesystem in _FAR_AWAY:
        return Finding("warning", place, text, "put storage.path on a local disk: SQLite's log needs one")
    if free_mb < max_mb:
        return Finding("warning", place, f"{text}, storage.max_mb is {max_mb}", "make room, or lower storage.max_mb")
    return Finding("ok", place, text)


def _storage(config: StorageConfig) -> list[Finding]:
    place, directory = f"storage {config.path}", config.path.parent
    try:
        took_s = _sync_once(directory)
        disk = disk_below(directory)
    except OSError as error:
        remedy = "make the directory, writable for the user that runs the adapter"
        return [Finding("failed", place, f"{directory}: {error.strerror}", remedy)]
    if config.path.exists() and not os.access(config.path, os.R_OK | os.W_OK):
        return [Finding("failed", place, "not readable and writable", "give it to the user that runs the adapter")]
    text = f"writable, a sync takes {1000 * took_s:.1f} ms"
    slow = took_s > _SLOW_SYNC_S
    written = Finding("warning", place, text, "use a faster disk") if slow else Finding("ok", place, text)
    return [written, judge_disk(disk, config.max_mb)]


def _sync_once(directory: Path) -> float:
    """Write to a file that nobody sees; give how many seconds it takes until the disk has it."""
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(b"x" * 4096)
        file.flush()
        began_at = time.perf_counter()
        os.fsync(file.fileno())
        return time.perf_counter() - began_at
