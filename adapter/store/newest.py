"""The newest values of retained topics on their way to the broker (slots): which wait, which are sent, which it has.

Only the newest value of a topic is worth sending. Rules of this file: memory only, the outbox keeps the same on
disk; an acknowledgment counts only for what was sent last, since values come back (`online`, `offline`, `online`);
a value that is shown again never comes after a newer one.
"""

from collections.abc import Iterable, Mapping

from adapter.store.records import Slot


class Newest:
    """The newest values by topic.

    Args:
        waiting: What no broker has acknowledged yet.

    Attributes:
        acknowledged: What the broker has and the disk does not know of yet, each with the mark of its acknowledgment.
    """

    def __init__(self, waiting: Mapping[str, bytes]) -> None:
        self._waiting = dict(waiting)
        self._sent: dict[str, Slot] = {}
        self.acknowledged: dict[str, tuple[int, Slot]] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._sent)

    def unacknowledged(self) -> dict[str, bytes]:
        """Give all that the broker has not taken over yet."""
        return {topic: slot.payload for topic, slot in self._sent.items()} | self._waiting

    def show(self, values: Mapping[str, bytes]) -> None:
        """Have newer values sent."""
        self._waiting.update(values)

    def show_again(self, values: Iterable[tuple[str, bytes]]) -> None:
        """Have values sent that the broker had once, unless a newer one is on its way."""
        for topic, payload in values:
            if topic not in self._sent:
                self._waiting.setdefault(topic, payload)

    def overtaken(self, topic: str) -> None:
        """Note that a newer value of a topic goes out by the line: what is here must not follow it."""
        self._waiting.pop(topic, None)
        self._sent.pop(topic, None)

    def take(self) -> Slot | None:
        """Take one to send it; `None` where none waits."""
        if not self._waiting:
            return None
        topic = next(iter(self._waiting))
        slot = self._sent[topic] = Slot(topic, self._waiting.pop(topic))
        self.acknowledged.pop(topic, None)
        return slot

    def accepted(self, slot: Slot, mark: int) -> None:
        """Note that the broker has it."""
        if self._sent.get(slot.topic) is slot:
            del self._sent[slot.topic]
            self.acknowledged[slot.topic] = (mark, slot)

    def remembered(self, slots: Iterable[tuple[int, Slot]]) -> None:
        """Note that the disk knows of acknowledgments."""
        for each in slots:
            topic = each[1].topic
            if self.acknowledged.get(topic) is each:
                del self.acknowledged[topic]

    def refused(self, slot: Slot) -> None:
        """Note that the broker does not take it: it is offered again after the next start."""
        if self._sent.get(slot.topic) is slot:
            del self._sent[slot.topic]

    def forget(self, topics: Iterable[str]) -> None:
        """Send nothing more on topics."""
        for topic in topics:
            self._waiting.pop(topic, None)
            self._sent.pop(topic, None)
            self.acknowledged.pop(topic, None)

    def rewind(self) -> None:
        """Send again what was sent over a connection that is lost, unless something newer waits."""
        self._waiting = self.unacknowledged()
        self._sent = {}
