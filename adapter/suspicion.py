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
"""Hang-ups in a row with a message in common that was on its way, after which messages are sent one by one."""
_PROOFS = 3
"""Hang-ups while a message was alone on its way, after which it is found guilty."""


class Suspicion:
    """Which messages the broker may have hung up over."""

    def __init__(self) -> None:
        self._suspects: set[Key] = set()
        self._losses = 0
        self._proofs = 0

    @property
    def probing(self) -> bool:
        """Whether messages are to be sent one by one, over a connection that has stood for a while."""
        return self._losses >= _LOSSES

    def hung_up(self, awaited: Iterable[Key], *, alone: bool) -> Key | None:
        """Note that the broker hung up.

        Args:
            awaited: The messages on their way.
            alone: Whether there was one at most, over a connection that had stood and acknowledged others.

        Returns:
            The message that is found guilty, if any.
        """
        on_their_way = set(awaited)
        common = self._suspects & on_their_way
        if not common:
            self.clear()
        self._suspects = common or on_their_way
        if not on_their_way:
            return None
        self._proofs += alone and self.probing
        self._losses += 1
        if self._proofs < _PROOFS:
            return None
        guilty = self._suspects.pop()
        self.clear()
        return guilty

    def taken(self, key: Key) -> None:
        """Note that the broker has taken a message over, and before it all that is ahead of it in line."""
        if not self._suspects:
            return
        if isinstance(key, int):  # newest values go ahead of the line
            self._suspects = {each for each in self._suspects if isinstance(each, int) and each > key}
        else:
            self._suspects.discard(key)
        if not self._suspects:
            self.clear()

    def clear(self) -> None:
        """Suspect nothing any more."""
        self._suspects, self._losses, self._proofs = set(), 0, 0
