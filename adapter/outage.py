"""One log line when something is away, and one when it is back, however many suffer from it."""

import logging
import time

_log = logging.getLogger(__name__)


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
        self._told_at = 0.0

    def begins(self, sufferer: str, reason: str, *, remind_s: float | None = None) -> None:
        """Note that `sufferer` fails, or still does.

        The first one's reason is logged for all; the others' at debug level.

        Args:
            sufferer: Who fails.
            reason: Why.
            remind_s: Seconds after which it is logged again while it lasts; `None` for never.
        """
        now = time.monotonic()
        first = not self._suffering
        again = sufferer in self._suffering
        self._suffering.add(sufferer)
        self._affected.add(sufferer)
        if first:
            self._since = now
        if first or (remind_s is not None and now - self._told_at >= remind_s):
            self._told_at = now
            _log.warning("%s: %s: %s; trying again", self._subject, sufferer, reason)
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
            seconds = time.monotonic() - self._since
            _log.info("%s: back after %.1f s; %d affected", self._subject, seconds, len(self._affected))
            self._affected.clear()
