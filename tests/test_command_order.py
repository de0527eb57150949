"""Commands in chance order, with repeats, failures, a restart: what holds of each, whatever the order (C2, C3, C4)."""

import asyncio
import itertools
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from adapter.agent.pace import Pace
from adapter.simulator import faults
from tests.broker_support import Broker
from tests.stage_support import Stage, staged

pytestmark = pytest.mark.harm

_AGENTS = [str(number) for number in range(101, 117)]
_IDS = "abcdefgh"
_ROOM = 4


async def _send_some(stage: Stage, chance: random.Random, sent: dict[str, list[str]]) -> None:
    """Send each agent a few commands with ids that repeat, and let some polls fail meanwhile."""
    for _ in range(3):
        for agent in _AGENTS:
            if chance.random() < 0.3:
                trouble = chance.choice([faults.status(503), faults.drop(), faults.retcode("000-002", "no")])
                stage.simulator.script(agent, trouble)
            for _ in range(chance.randint(0, 3)):
                number = len(sent[agent])
                identifier = chance.choice(_IDS)
                sent[agent].append(identifier)
                payload: dict[str, Any] = {"calldata": f"{identifier}{number}", "id": identifier, "ttl": 300}
                if chance.random() < 0.2:
                    payload["calldata"] = "\n"
                await stage.send(f"{agent}/calldata/set", payload)


async def test_each_id_is_executed_once_in_order_with_one_result(tmp_path: Path, shared_broker: Broker) -> None:
    """C2, C3, C4: over a restart too; results of one id are the same to the byte, and tell what the gateway saw."""
    seed = random.randrange(2**32)  # noqa: S311 - for a test's order
    chance = random.Random(seed)  # noqa: S311 - as above
    sent: dict[str, list[str]] = defaultdict(list)
    timing = {"interval": [0.2, 0.2], "error_interval": [1.01, 1.01]}
    async with staged(tmp_path, shared_broker, agents=_AGENTS, hold_s=0.2, quiet=False) as stage:
        async with stage.running(gateway=timing) as adapter:
            for agent in _AGENTS:
                await stage.polling(agent)
            await _send_some(stage, chance, sent)
            adapter.app.stop()
            await adapter.stop()
        async with stage.running(gateway=timing):
            for agent in _AGENTS:
                await stage.polling(agent)
            await _send_some(stage, chance, sent)

            def answered() -> bool:
                return all(_ids(stage, agent) >= set(sent[agent]) for agent in _AGENTS)

            await stage.peer.wait_for(answered, 40.0)
        for agent in _AGENTS:
            _check(stage, agent, f"seed {seed}, agent {agent}, sent {sent[agent]}")


def _ids(stage: Stage, agent: str) -> set[str]:
    return {each["id"] for each in stage.json(f"{agent}/calldata/result")}


def _check(stage: Stage, agent: str, story: str) -> None:
    payloads: dict[str, set[bytes]] = defaultdict(set)
    for message in stage.on(f"{agent}/calldata/result"):
        payloads[json.loads(message.payload)["id"]].add(message.payload)
    assert {identifier: len(each) for identifier, each in payloads.items() if len(each) > 1} == {}, story
    results = {identifier: json.loads(min(each)) for identifier, each in payloads.items()}
    went = [identifier for identifier, each in results.items() if each["retcode"] is not None]
    assert {each["status"] for each in results.values()} <= {"applied", "rejected"}, story
    # Those that went are the values that the gateway took, in the order in which their ids first came.
    # A poll that the stop has cut never came back: its value goes again, before any other.
    accepted = [identifier for identifier, _ in itertools.groupby(v[0] for _, v in stage.simulator.calldata(agent))]
    assert set(accepted) <= set(went), story
    assert {identifier for identifier in went if results[identifier]["status"] == "applied"} <= set(accepted), story
    applied = [identifier for identifier in accepted if results[identifier]["status"] == "applied"]
    assert len(accepted) == len(set(accepted)), story
    first_came = list(dict.fromkeys(stage_ids(stage, agent)))
    assert applied == [identifier for identifier in first_came if identifier in applied], story
    refused = {each["reason"] for each in results.values() if each["retcode"] is None}
    assert refused <= {
        "queue full",
        "the gateway's answer could not be read",
        "calldata: control characters are not allowed (a line break is one)",
    }, story


def stage_ids(stage: Stage, agent: str) -> list[str]:
    """List the ids of an agent's commands in the order in which the broker passed them on."""
    return [json.loads(message.payload)["id"] for message in stage.on(f"{agent}/calldata/set")]


async def test_at_most_four_wait(tmp_path: Path, shared_broker: Broker) -> None:
    """C2: of any number that come during one poll, four wait, all others are `queue full`; then there is room again."""
    async with staged(tmp_path, shared_broker, agents=_AGENTS[:2], hold_s=0.5) as stage, stage.running():
        for agent in _AGENTS[:2]:
            await stage.polling(agent)
        counts = dict(zip(_AGENTS[:2], (4, 7), strict=True))
        await asyncio.gather(
            *(
                stage.send(f"{agent}/calldata/set", {"calldata": f"v{number}", "id": f"i{number}"})
                for agent, count in counts.items()
                for number in range(count)
            )
        )
        for agent, count in counts.items():
            await stage.wait_count(f"{agent}/calldata/result", count)
            results = stage.json(f"{agent}/calldata/result")
            full = [each for each in results if each["reason"] == "queue full"]
            assert len(full) <= max(0, count - _ROOM)
            assert [value for _, value in stage.simulator.calldata(agent)] == [
                each["id"].replace("i", "v") for each in results if each["reason"] != "queue full"
            ]
        assert full, "seven came during one poll of 0.5 s"


async def test_an_order_that_asks_the_gateway_nothing_delays_no_poll(
    tmp_path: Path, shared_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P4, C5: a pause follows an answer of the gateway and nothing else, however many orders come."""
    pauses = 0
    answered = Pace.answered

    def counting(self: Pace, received_at: float | None = None, *, hurry: bool = False) -> None:
        nonlocal pauses
        pauses += 1
        answered(self, received_at, hurry=hurry)

    monkeypatch.setattr(Pace, "answered", counting)
    async with staged(tmp_path, shared_broker) as stage, stage.running():
        await stage.polling("101")
        guid = stage.simulator.guid("101")
        for number in range(4):
            await stage.send("101/session/set", {"action": "sign_in", "id": f"in{number}"})
        await stage.wait("101/session/result", id="in3", reason="already signed in")
        await stage.send("101/session/set", {"action": "sign_in", "guid": guid, "id": "guid"})
        await stage.wait("101/session/result", id="guid", status="applied")
        await stage.polling("101")
        requests = len(stage.simulator.polls("101")) + len(stage.simulator.requests)

        assert pauses <= requests
        assert len(stage.simulator.polls("101")) >= 5
