"""Which agents can be claimed: those whose journal says that they are nobody's, or a member's that is gone."""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from adapter.cluster.answers import Stored
from adapter.cluster.codec import Codec
from adapter.cluster.engine import Engine
from adapter.cluster.membership import Membership
from adapter.cluster.pages import Pages
from adapter.errors import ClusterError

_log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 5.0
"""How soon an agent is looked at again that another member has."""
_UNREADABLE_S = 60.0
"""How soon one is looked at again whose journal cannot be read."""


@dataclass(frozen=True, slots=True)
class Claimable:
    """An agent that can be claimed.

    Attributes:
        work_no: Its work number.
        stored: The newest page of its journal; `None` where it has none.
        owner: Who owned it last, as that page says; empty where it was let go.
    """

    work_no: str
    stored: Stored | None
    owner: str


class Claims:
    """Looks at the journals of agents that may be claimed.

    Args:
        trouble: What is said of an agent whose journal cannot be read.
    """

    def __init__(self, membership: Membership, pages: Pages, engine: Engine, codec: Codec, *, trouble: str) -> None:
        self._membership = membership
        self._pages = pages
        self._engine = engine
        self._codec = codec
        self._trouble = trouble
        self._not_before: dict[str, float] = {}
        self._heard: set[str] = set()

    def hear(self, work_no: str) -> None:
        """Take note that an agent was let go."""
        self._heard.add(work_no)
        self._not_before.pop(work_no, None)

    def look_at_all(self) -> None:
        """Look at all of them again: there are other members, or other agents."""
        self._not_before.clear()

    def due(self, work_nos: Iterable[str]) -> list[str]:
        """List those of agents that are to be looked at by now, those first that were let go."""
        now = asyncio.get_running_loop().time()
        found = [work_no for work_no in work_nos if self._not_before.get(work_no, 0.0) <= now]
        return sorted(found, key=lambda work_no: work_no not in self._heard)

    async def look(self, work_nos: Sequence[str]) -> list[Claimable]:
        """Find those of agents that can be claimed; the others are not due for a while.

        Raises:
            ClusterUnavailableError: It is not known.
        """
        ours = self._membership.term.owner
        self._heard.difference_update(work_nos)
        found = list(self._read(work_nos, await asyncio.gather(*map(self._engine.last, work_nos))))
        # Only now: who is not there after its page was read will never write another.
        owners = {each.owner for each in found} - {"", ours}
        alive = {owner for owner in owners if await self._membership.is_alive(owner)}
        not_before = asyncio.get_running_loop().time() + _LOOK_AGAIN_S
        for each in found:
            if each.owner in owners:
                self._pages.doubtful.discard(each.work_no)
            if each.owner in alive and each.work_no not in self._heard:  # since its page was read
                self._not_before[each.work_no] = not_before
        return [each for each in found if each.owner not in alive]

    def _read(self, work_nos: Iterable[str], stored: Iterable[Stored | None]) -> Iterator[Claimable]:
        for work_no, newest in zip(work_nos, stored, strict=True):
            try:
                yield Claimable(work_no, newest, "" if newest is None else self._codec.read(newest.value).owner)
            except ClusterError as error:
                self.leave_alone(work_no, error)

    def leave_alone(self, work_no: str, error: ClusterError) -> None:
        """Leave an agent alone for a while whose journal nobody here can read: a person is needed."""
        _log.error("agent %s: %s: %s", work_no, self._trouble, error, extra={"work_no": work_no})
        self._not_before[work_no] = asyncio.get_running_loop().time() + _UNREADABLE_S
