"""The topics of a member: those of agents are the fleet's, those of the bridge its own."""

from dataclasses import dataclass
from typing import Final

from adapter.topics import Topics

_OWN: Final = frozenset({"availability", "info", "health", "mark"})


@dataclass(frozen=True, slots=True)
class MemberTopics(Topics):
    """The topics below one prefix, as a member uses them.

    Attributes:
        instance: Its name.
    """

    instance: str = ""

    def bridge(self, name: str) -> str:
        """Name a topic of this member, or one of the fleet that all members write."""
        return self.member(self.instance, name) if name in _OWN else Topics.bridge(self, name)
