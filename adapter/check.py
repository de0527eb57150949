"""`health`: a look at the running adapter from outside, which changes nothing."""

import time
from pathlib import Path

from adapter.errors import StartError
from adapter.store.database import Lock

_BEAT_MISSED_S = 45.0
"""How old the sign of life may be: four of them are missing then."""


def health(storage: Path) -> str:
    """Look at the sign of life of the adapter that uses `storage`; say how it is.

    Raises:
        StartError: It does not run, its loop hangs, or its database cannot be written.
    """
    beat = Lock.read(storage)
    if beat is None:
        raise StartError(f"{storage}: no adapter runs with it", exit_code=1)
    if "at" not in beat:
        return "starting"
    age_s = time.monotonic() - beat["at"]
    if age_s > _BEAT_MISSED_S:
        raise StartError(f"the adapter has given no sign of life for {age_s:.0f} s", exit_code=1)
    if not beat["writable"]:
        raise StartError("the adapter cannot store events: is the disk full?", exit_code=1)
    return "well" if beat["connected"] else "well, but not connected to the broker"
