"""The lock file beside the database: one process for each `storage.path` (D5), and that process' sign of life.

Rules of this file: a `flock` goes with its process, however that ends, so no stale lock can keep an adapter from
starting; what is written into the file is of now alone, and worth nothing after a power cut.
"""

import contextlib
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

from adapter.errors import StorageInUseError

_TRIES = 25
_AGAIN_S = 0.02
"""`Lock.read` holds the lock for an instant, for longer on a busy machine, to see whether it is free: that is nobody to
give way to."""

_BEAT_BYTES = 256
"""Each heartbeat is as long as the one before, so that a reader never meets the end of an older one."""


class Lock:
    """The lock on a database, held from construction to `release`.

    Attributes:
        after_kill: Whether the process that had it before did not release it: it was killed, an instant ago perhaps.
    """

    def __init__(self, database_path: Path) -> None:
        """Take the lock.

        Raises:
            StorageInUseError: Another process has it.
            OSError: The file cannot be opened or made.
        """
        self._descriptor = os.open(_beside(database_path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for attempt in range(1, _TRIES + 1):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if attempt == _TRIES:
                    os.close(self._descriptor)
                    raise StorageInUseError(str(database_path)) from None
                time.sleep(_AGAIN_S)
            else:
                break
        # The heartbeat of a process that was killed is not ours.
        self.after_kill = os.fstat(self._descriptor).st_size > 0
        os.ftruncate(self._descriptor, 0)
        self.beat({})  # so that the next start knows of a kill from here on

    def beat(self, health: dict[str, Any]) -> None:
        """Replace the heartbeat. Where the disk is full it stays out: nothing else is to suffer from that."""
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, json.dumps(health).encode().ljust(_BEAT_BYTES), 0)

    def release(self) -> None:
        """Let another process have the database."""
        with contextlib.suppress(OSError):  # the disk may be read-only by now
            os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    @staticmethod
    def read(database_path: Path) -> dict[str, Any] | None:
        """Read the heartbeat of the process that holds the lock; `None` where none does.

        The heartbeat is an empty object while that process is still starting.
        """
        try:
            descriptor = os.open(_beside(database_path), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            try:
                health = json.loads(os.pread(descriptor, 4096, 0))
            except ValueError:
                return {}
            return health if isinstance(health, dict) else {}
        else:
            return None
        finally:
            os.close(descriptor)


def _beside(database_path: Path) -> Path:
    path = database_path.resolve()  # a symbolic link leads to the same lock
    return path.with_name(path.name + ".lock")
