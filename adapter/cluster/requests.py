"""Requests to a fleet: the speaker asks every member, and answers for all.

Rule of this file: what each answers alone is `adapter.bridge`'s and `adapter.operations`'; here answers are gathered.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec

from adapter.bridge import Request, on_pages
from adapter.cluster.engine import Engine
from adapter.cluster.fleet import SharedFleet
from adapter.cluster.membership import Membership
from adapter.errors import AdapterError, CommandError
from adapter.payloads import AgentSnapshot

_ANSWER_S = 15.0
"""How long members may take: one that reads thousands of agents again needs seconds."""


class _Answer(msgspec.Struct):
    """What one member says."""

    member: str
    reason: str | None
    data: Any


_read = msgspec.json.Decoder(_Answer).decode


async def _refuse_restart(_: object) -> None:
    raise CommandError("restart one member after the other: end its process, and it hands its agents over")


class FleetRequests:
    """Answers requests for all members.

    Args:
        engine: Carries questions and answers.
        membership: Says who is asked.
        fleet: Knows all agents.
        requests: What answers them here.
    """

    def __init__(
        self, engine: Engine, membership: Membership, fleet: SharedFleet, requests: Mapping[str, Request]
    ) -> None:
        self._fleet = fleet
        self._engine = engine
        self._membership = membership
        self._requests = dict(requests)

    def shared(self) -> dict[str, Request]:
        """Give what answers the same requests for all."""
        return {
            name: replace(request, answer=_refuse_restart if name == "restart" else partial(self._ask_all, name))
            for name, request in self._requests.items()
        }

    async def serve(self) -> None:
        """Begin to answer for this member."""
        for name, request in self._requests.items():
            await self._engine.talk.serve(name, partial(self._answer, request))

    async def _answer(self, request: Request, data: bytes) -> bytes:
        reason: str | None = None
        given: Any = None
        try:
            given = await request.answer(msgspec.json.decode(data, type=request.kind))
        except AdapterError as error:
            reason = str(error)
        return msgspec.json.encode(_Answer(member=self._membership.name, reason=reason, data=given))

    async def _ask_all(self, name: str, question: msgspec.Struct) -> Any:  # noqa: ANN401 - whatever is asked for
        """Ask every member.

        Raises:
            CommandError: One of them refuses, or does not answer.
        """
        members = set(self._membership.others)

        def enough(answers: list[bytes]) -> bool:
            return members <= {answer.member for answer in map(_read, answers)}

        answers = await self._engine.talk.ask(name, msgspec.json.encode(question), enough, _ANSWER_S)
        given = sorted(map(_read, answers), key=lambda answer: answer.member)
        reasons = [f"member {answer.member}: {answer.reason}" for answer in given if answer.reason is not None]
        reasons += [f"member {name}: no answer" for name in sorted(members - {answer.member for answer in given})]
        if reasons:
            raise CommandError("; ".join(reasons))
        if name == "agents":
            return on_pages(self._roster(given))
        if name == "reload":
            return given[0].data if given else None
        return {answer.member: answer.data for answer in given}

    def _roster(self, answers: list[_Answer]) -> list[Any]:
        """Put together what members say of their agents; one on its way between two has no state that is known."""
        told = {agent["workNo"]: agent for answer in answers for page in answer.data for agent in page["agents"]}
        return [
            told.get(work_no)
            or AgentSnapshot(work_no=work_no, name=agent.name, group=agent.group, state="unknown", phase=None)
            for work_no, agent in self._fleet.configured.items()
        ]
