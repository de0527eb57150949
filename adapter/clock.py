"""Unix time that does not jump, for whatever lasts.

A clock that is set moves what is written down for people, as `receivedAt`, and nothing else. Rules of this file: ages
and windows are counted by this clock on both ends; what is stored of it means something after a restart too, as far
as the machine's clock does.
"""

import time

_SINCE_BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_STARTED_S = time.time() - time.monotonic()


def steady_time() -> float:
    """Tell the Unix time in seconds, by the machine's clock as it went when the program started."""
    return _STARTED_S + time.monotonic()


def lasting_time() -> float:
    """Tell the seconds since the machine was started, those in which it slept among them.

    Source:
        clock_gettime(2), CLOCK_BOOTTIME; where there is none, CLOCK_MONOTONIC, which stands still meanwhile.
    """
    return time.clock_gettime(_SINCE_BOOT)
