"""Leases: how a member knows that it may poll, and others know that it does not any more. Pure, the clock comes in.

```
holder    asked .......... granted      [polls start]        |poll_s: none starts|  over: nobody polls
observer            seen first (later than asked)  ............ length_s and drift ............  struck out, replaced
```

The gateway cannot tell an old owner from a new one, so only time keeps their polls apart. Rules of this file:
1. A holder counts from the moment at which it *asked*, an observer from the one at which it has *seen* the answer:
   whatever the network does, the observer is the later. Each has its own clock, of which only the rate has to be right.
2. A poll starts only while the lease outlives it.
3. A member is struck out by deleting its lease at the very revision that was seen last. From then on it cannot be
   renewed: its holder finds that it was struck out and owns nothing, or renewed before and was not.
4. Who saw nothing for a while judges nobody: it may be that nobody could renew.
5. Who is not seen is gone only where that is sure to be new: see `membership`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

_POLL_S = 2.0
"""What a poll may take over `hold`."""
_SLACK_S = 3.0
"""How late a renewal may be without a poll having to wait for it, with the time between two renewals."""
_RENEW_S = 0.5
_DRIFT = 0.005
"""By how much two clocks may disagree on how long something takes: ten times what NTP allows itself to correct."""
_BLIND = 4
"""So many times the time between two looks without one, and nothing is known of anybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The times of a fleet, in seconds; the same for all its members.

    Attributes:
        poll_s: How long a poll may last.
        length_s: How long a lease lasts.
        renew_s: How often it is renewed, and the others' are looked at.
    """

    poll_s: float
    length_s: float
    renew_s: float = _RENEW_S

    @classmethod
    def of(cls, hold_s: float) -> Self:
        """Make them for what the gateway holds a poll."""
        return cls(poll_s=hold_s + _POLL_S, length_s=hold_s + _POLL_S + _SLACK_S)


class Lease:
    """One member's own lease, by its own clock."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._until = float("-inf")

    def granted(self, asked_at: float) -> None:
        """Take note that what was asked for at a moment has been granted."""
        self._until = max(self._until, asked_at + self._terms.length_s)

    def end(self) -> None:
        """Take note that it is over."""
        self._until = float("-inf")

    def left_s(self, now: float) -> float:
        """Say for how many seconds it is good."""
        return max(0.0, self._until - now)

    def holds(self, now: float) -> bool:
        """Say whether nobody else can own what is ours."""
        return now < self._until

    def outlives_a_poll(self, now: float) -> bool:
        """Say whether a poll may start."""
        return now + self._terms.poll_s < self._until


class Census:
    """What one member has seen of the leases of all, by its own clock."""

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._looked_at = self._began_at = float("-inf")
        self._seen: dict[str, tuple[int, float]] = {}

    def look(self, revisions: Mapping[str, int], now: float) -> None:
        """Take in what is there.

        Args:
            revisions: The revision of each lease.
            now: When that was known to be so, or later.
        """
        blind = now - self._looked_at > _BLIND * self._terms.renew_s
        self._looked_at = now
        if blind:
            self._began_at = now
        before = {} if blind else self._seen
        self._seen = {
            name: before[name] if name in before and before[name][0] == revision else (revision, now)
            for name, revision in revisions.items()
        }

    def renewed(self) -> set[str]:
        """List the members whose lease was renewed, or begun, while we looked: they live."""
        return {name for name, (_, since) in self._seen.items() if since > self._began_at}

    def expired(self, now: float) -> dict[str, int]:
        """List the members whose lease is over for certain, with the revision at which they can be struck out."""
        for_certain_s = self._terms.length_s * (1 + _DRIFT)
        return {name: revision for name, (revision, since) in self._seen.items() if now - since > for_certain_s}
