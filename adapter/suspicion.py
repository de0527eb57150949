"""Finding the one message over which a broker hangs up, each time again, without saying so.

Brokers do that with a packet beyond a limit that they do not name: Mosquitto with `message_size_limit`, and any broker
of MQTT 3.1.1 with one. Everything behind that message would wait for ever.

Rules of this file: no time and no connection, only what is told of them. Nothing is found guilty by coincidence: a
message must have been alone on its way, over a connection that had stood and acknowledged others, `_PROOFS` times.
"""

from collections.abc import Iterable

Key = int | str
"""What names a message: an entry's place in line, or the topic of a newest value."""

_LOSSES = 2
"""Connections that ended with the same message as the oldest one without PUBACK, after which it is sent alone."""
_PROOFS = 3
"""Connections that ended while it was alone on its way, after which it is found guilty."""


class Suspicion:
    """Which message the broker may have hung up over."""

    def __init__(self) -> None:
        self._key: Key | None = None
        self._losses = 0
        self._proofs = 0

    @property
    def probing(self) -> bool:
        """Whether messages are to be sent one by one, over a connection that has stood for a while."""
        return self._losses >= _LOSSES

    def hung_up(self, awaited: Iterable[Key], *, alone: bool) -> Key | None:
        """Note that the broker hung up.

        Args:
            awaited: The messages on their way, oldest first.
            alone: Whether there was one at most, over a connection that had stood and acknowledged others.

        Returns:
            The message that is found guilty, if any.
        """
        oldest = next(iter(awaited), None)
        if oldest is None or oldest != self._key:
            self._key, self._losses, self._proofs = oldest, 0, 0
        if oldest is None:
            return None
        self._losses += 1
        self._proofs += alone and self._losses > _LOSSES
        if self._proofs < _PROOFS:
            return None
        self.clear()
        return oldest

    def taken(self, key: Key) -> None:
        """Note that the broker has taken a message over: the suspected one, or one behind it in line."""
        if key == self._key or isinstance(key, int):
            self.clear()

    def clear(self) -> None:
        """Suspect nothing any more."""
        self._key, self._losses, self._proofs = None, 0, 0
