"""One log line when something is away, and one when it is back, however many suffer from it."""

import logging
import time

_log = logging.getLogger(__name__)

_NAMED = 3
"""So many that suffered are named at the end; more are counted."""


class Outage:
    """The outages of one thing that many depend on.

    Args:
        subject: What is away, as log lines begin: ``gateway`` or ``broker``.
    """

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._suffering: set[str] = set()
        self._affected: set[str] = set()
        self._since = 0.0
        self._told_at = float("-inf")
        self._told = False

    def begins(self, sufferer: str, reason: str, *, remind_s: float | None = None, grave: bool = False) -> None:
        """Note that `sufferer` fails, or still does.

        The first one's reason is logged for all; the others' at debug level, but for what a person has to mend.

        Args:
            sufferer: Who fails.
            reason: Why.
            remind_s: Seconds after which it is logged again while it lasts, and before which it is not where it comes
                and goes; `None` for never, and at each coming.
            grave: Whether a person has to mend it: that is an error, also where others failed before.
        """
        now = time.monotonic()
        first = not self._suffering
        again = sufferer in self._suffering
        self._suffering.add(sufferer)
        self._affected.add(sufferer)
        if first:
            self._since, self._told = now, False
        due = first if remind_s is None else now - self._told_at >= remind_s
        if due or (grave and not again):
            self._told_at, self._told = now, True
            level = logging.ERROR if grave else logging.WARNING
            _log.log(level, "%s: %s: %s; trying again", self._subject, sufferer, reason)
        elif not again:
            _log.debug("%s: %s: %s", self._subject, sufferer, reason)

    def leave(self, sufferer: str) -> None:
        """Forget a sufferer that is gone: nothing is known of a recovery."""
        self._suffering.discard(sufferer)
        if not self._suffering:
            self._affected.clear()

    def ends(self, sufferer: str) -> None:
        """Note that `sufferer` is well; the last one's recovery is logged for all."""
        if sufferer not in self._suffering:
            return
        self._suffering.discard(sufferer)
        if not self._suffering:
            self._tell_recovery(0.0)

    def is_over(self, ago_s: float = 0.0) -> None:
        """Note that all are well, and have been for `ago_s` seconds."""
        if self._suffering:
            self._suffering.clear()
            self._tell_recovery(ago_s)

    def _tell_recovery(self, ago_s: float) -> None:
        seconds = max(0.0, time.monotonic() - self._since - ago_s)
        few = len(self._affected) <= _NAMED
        who = f" ({', '.join(sorted(self._affected))})" if few else f"; {len(self._affected)} affected"
        _log.log(logging.INFO if self._told else logging.DEBUG, "%s: back after %.1f s%s", self._subject, seconds, who)
        self._affected.clear()
