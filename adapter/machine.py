"""What the machine allows: open files, ports for connections that go out, the disk below a directory.

Source:
    Linux: getrlimit(2), ip(7) `ip_local_port_range`, proc(5) `mountinfo`. What another system does not tell is `None`.
"""

import os
import re
import resource
from dataclasses import dataclass
from pathlib import Path

FILES_BESIDES_AGENTS = 64
"""Open files that are no agent's connection: database, broker, listener, standard streams, and some room."""

_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_MOUNTS = Path("/proc/self/mountinfo")
_OPEN = Path("/proc/self/fd")
_ESCAPED = re.compile(r"\\([0-7]{3})")
"""How proc(5) writes blanks and the like."""


@dataclass(frozen=True, slots=True)
class Disk:
    """What a directory lies on.

    Attributes:
        filesystem: Its type: ``ext4``, ``tmpfs``, ``nfs4``...
        free_bytes: What this user may still write.
    """

    filesystem: str | None
    free_bytes: int


def open_files_limits() -> tuple[int | None, int | None]:
    """Give how many files may be open now, and as far as the process may raise that itself; `None` for no limit."""
    soft, hard = (
        None if limit == resource.RLIM_INFINITY else limit for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    return soft, hard


def open_files() -> int:
    """Count the files that this process has open; 0 where the system does not tell."""
    try:
        return len(os.listdir(_OPEN))  # noqa: PTH208 - names are enough
    except OSError:
        return 0


def ephemeral_ports() -> int | None:
    """Count the ports for connections that go out: so many can go to one address and port at a time."""
    try:
        low, high = map(int, _PORT_RANGE.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return None
    return high - low + 1


def disk_below(directory: Path) -> Disk:
    """Look at the disk that a directory lies on.

    Raises:
        OSError: It is not there.
    """
    status = os.statvfs(directory)
    return Disk(_filesystem(directory.resolve()), status.f_bavail * status.f_frsize)


def _filesystem(directory: Path) -> str | None:
    """Find the mount that a path lies on: the longest that begins it, of several at one place the last."""
    found: tuple[int, str] | None = None
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    for line in lines:
        place, _, kind = line.partition(" - ")
        point = Path(_ESCAPED.sub(lambda match: chr(int(match[1], 8)), place.split(" ")[4]))
        if directory.is_relative_to(point) and (found is None or len(point.parts) >= found[0]):
            found = len(point.parts), kind.split(" ")[0]
    return None if found is None else found[1]
