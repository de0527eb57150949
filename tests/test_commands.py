"""Commands: what is refused and why, and that each gets exactly one result (C1 to C5, C8, C9)."""

import asyncio
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.agent.presence import Timing
from adapter.command import parse_call_data, parse_session, sender_id
from adapter.config import load
from adapter.errors import CommandError, StorageFullError
from adapter.gateway import is_guid
from adapter.payloads import ResultPayload
from adapter.simulator import SimAgent
from adapter.store.database import Database
from tests.adapter_support import write
from tests.broker_support import Broker, Peer
from tests.stage_support import Stage, staged

_REFUSED: list[tuple[bytes, str]] = [
    (b"", "empty"),
    (b"\xff\xfe", "not UTF-8 text"),
    (b"x" * 2049, "calldata: 2049 bytes, at most 2048 are allowed"),
    (b"x" * 17_000, "over 16384 bytes"),
    (b"a\nb", "calldata: control characters are not allowed (a line break is one)"),
    (b'{"calldata": "a\\u0000b"}', "calldata: control characters are not allowed (a line break is one)"),
    (b'{"calldata": ""}', "empty"),
    (b'{"calldata": "\\ud83d"}', "calldata: half a character (a lone surrogate)"),
    (b'{"calldata": 5}', "calldata: expected text, got a number"),
    (b'{"calldata": true}', "calldata: expected text, got true or false"),
    (b'{"calldata": []}', "calldata: expected text, got a list"),
    (b'{"calldata": {}}', "calldata: expected text, got an object"),
    (b'{"calldata": null}', "calldata: expected text, got null"),
    (b'{"calldata": "x", "TTL": 5}', "unknown member 'TTL'; expected calldata, id, ttl"),
    (b'{"calldata": "x", "\\ud800": 5}', "unknown member '\\ud800'; expected calldata, id, ttl"),
    (b'{"calldata": "x", "ttl": 0}', "ttl: expected seconds from 1 to 3600"),
    (b'{"calldata": "x", "ttl": 3601}', "ttl: expected seconds from 1 to 3600"),
    (b'{"calldata": "x", "ttl": "5"}', "ttl: expected seconds from 1 to 3600"),
    (b'{"calldata": "x", "ttl": true}', "ttl: expected seconds from 1 to 3600"),
    (b'{"calldata": "x", "ttl": NaN}', "ttl: expected seconds from 1 to 3600"),
    (b'{"calldata": "x", "id": ""}', "id: expected printable text of 1 to 64 characters"),
    (b'{"calldata": "x", "id": 7}', "id: expected printable text of 1 to 64 characters"),
    (b'{"calldata": "x", "id": "' + b"i" * 65 + b'"}', "id: expected printable text of 1 to 64 characters"),
]

_REFUSED_ORDERS: list[tuple[bytes, str]] = [
    (b"sign_in", 'expected {"action": "sign_in"} or {"action": "sign_out"}'),
    (b'{"id": "x"}', 'expected {"action": "sign_in"} or {"action": "sign_out"}'),
    (b'{"action": "dance"}', 'action: expected "sign_in" or "sign_out"'),
    (b'{"action": ["sign_in"]}', 'action: expected "sign_in" or "sign_out"'),
    (b'{"action": "sign_in", "pin": 1}', "unknown member 'pin'; expected action, guid, id"),
    (b'{"action": "sign_out", "guid": "G"}', "guid: goes with sign_in only"),
    (
        b'{"action": "sign_in", "guid": "a b"}',
        "guid: expected printable ASCII without blanks, as the gateway gives it out",
    ),
    (b'{"action": "sign_in", "guid": 1}', "guid: expected printable ASCII without blanks, as the gateway gives it out"),
]

_TEXTS = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=40).map(lambda text: text.encode(errors="surrogatepass")),
    st.dictionaries(
        st.sampled_from(["calldata", "id", "ttl", "action", "guid", "\ud800", "x"]),
        st.one_of(
            st.text(max_size=70),
            st.integers(),
            st.floats(),
            st.none(),
            st.booleans(),
            st.lists(st.integers(), max_size=2),
            st.sampled_from(["sign_in", "sign_out", "\ud800", "G"]),
        ),
    ).map(lambda value: json.dumps(value).encode()),
)


@pytest.mark.parametrize(("payload", "reason"), _REFUSED)
def test_call_data_is_refused_with_a_reason(payload: bytes, reason: str) -> None:
    """C1: each refusal says what to change, and never shows the call data."""
    with pytest.raises(CommandError) as refused:
        parse_call_data(payload)
    assert refused.value.reason == reason


@pytest.mark.parametrize(("payload", "reason"), _REFUSED_ORDERS)
def test_an_order_is_refused_with_a_reason(payload: bytes, reason: str) -> None:
    """C6: the same for `session/set`."""
    with pytest.raises(CommandError) as refused:
        parse_session(payload, is_guid=is_guid)
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("payload", "body", "ttl_s", "identifier"),
    [
        (b"hello", "hello", 60.0, None),
        ("grüße 😀".encode(), "grüße 😀", 60.0, None),
        (b'{"any": "object"}', '{"any": "object"}', 60.0, None),
        (b'{"calldata": "x"', '{"calldata": "x"', 60.0, None),
        (b'["calldata"]', '["calldata"]', 60.0, None),
        (b'{"n":' + b"[" * 2000, '{"n":' + "[" * 2000, 60.0, None),
        (b' {"calldata": "x", "ttl": 1, "id": "i 1"}', "x", 1.0, "i 1"),
        (b'{"calldata": "' + b"\\u00e4" * 1024 + b'", "ttl": 3600}', "ä" * 1024, 3600.0, None),
        (b"x" * 2048, "x" * 2048, 60.0, None),
    ],
)
def test_call_data_is_understood(payload: bytes, body: str, ttl_s: float, identifier: str | None) -> None:
    """C1: an object with the member `calldata` is a command object, any other text is itself the call data."""
    parsed = parse_call_data(payload)

    assert (parsed.body.decode(), parsed.ttl_s, parsed.id) == (body, ttl_s, identifier)


@given(payload=_TEXTS)
def test_any_payload_is_understood_or_refused(payload: bytes) -> None:
    """C1: nothing else comes out of parsing, whatever comes in; a reason can always be published."""
    for parse in (parse_call_data, lambda raw: parse_session(raw, is_guid=is_guid)):
        reason: str | None = None
        try:
            assert len(parse(payload).body) <= 2048
        except CommandError as error:
            reason = error.reason
        identifier = sender_id(payload) or "made"
        at = "2026-01-01T00:00:00.000Z"
        ResultPayload(
            id=identifier,
            work_no="1",
            status="rejected",
            retcode=None,
            reason=reason,
            received_at=at,
            finished_at=at,
        ).render()


async def test_call_data_goes_with_the_next_poll(tmp_path: Path, shared_broker: Broker) -> None:
    """C2, C3: text and objects reach the gateway in order, one a poll, each with one result."""
    async with staged(tmp_path, shared_broker) as stage, stage.running():
        await stage.polling("101")
        await stage.send("101/calldata/set", "first value")
        await stage.send("101/calldata/set", {"calldata": "zweiter 😀", "id": "two"})
        result = await stage.wait("101/calldata/result", id="two")

        assert [value for _, value in stage.simulator.calldata("101")] == ["first value", "zweiter 😀"]
        assert (result["status"], result["retcode"], result["reason"]) == ("applied", "0", None)
        assert [each["status"] for each in stage.json("101/calldata/result")] == ["applied"] * 2


async def test_every_refusal_is_answered_once(tmp_path: Path, shared_broker: Broker) -> None:
    """C1, C3: exactly one result for each command, with the sender's id where it can be read, and nothing sent."""
    async with staged(tmp_path, shared_broker, agents=["101", *(f"2{n:02}" for n in range(8))]) as stage:
        agents = [agent.work_no for agent in stage.simulator.agents]
        async with stage.running():
            for number, (payload, _) in enumerate(_REFUSED):
                await stage.send(f"{agents[number % 9]}/calldata/set", payload)
            for payload, _ in _REFUSED_ORDERS:
                await stage.send("101/session/set", payload)
            await stage.send("101/calldata/set", {"calldata": 5, "id": "mine"})
            await stage.wait("101/calldata/result", id="mine")
            await stage.wait_count("101/session/result", len(_REFUSED_ORDERS))

            results = [each for agent in agents for each in stage.json(f"{agent}/calldata/result")]
            orders = stage.json("101/session/result")
            assert sorted(each["reason"] for each in results if each["id"] != "mine") == sorted(r for _, r in _REFUSED)
            assert sorted(each["reason"] for each in orders) == sorted(reason for _, reason in _REFUSED_ORDERS)
            assert {each["status"] for each in results + orders} == {"rejected"}
            assert len({each["id"] for each in results}) == len(_REFUSED) + 1
            assert [stage.simulator.calldata(agent) for agent in agents] == [[]] * 9


async def test_unknown_and_signed_out_agents_are_said(tmp_path: Path, shared_broker: Broker) -> None:
    """C5: the reason tells which of both it is; odd topics are answered as well."""
    agents = [SimAgent(work_no="101"), SimAgent(work_no="102")]
    async with staged(tmp_path, shared_broker, agents=agents, quiet=False) as stage:
        stage.simulator.sign_out("102")
        values = [{"work_no": "101", "guid": stage.simulator.guid("101")}, {"work_no": "102", "guid": "gone"}]
        async with stage.running(agents=values):
            await stage.wait("102/session", phase="signed_out")
            await stage.send("102/calldata/set", "x")
            for odd in ("999", "bridge", "ünïcode", "a b", "$x", "x" * 300):
                await stage.send(f"{odd}/calldata/set", {"calldata": "x", "id": "c"})
                assert (await stage.wait(f"{odd}/calldata/result"))["reason"] == "unknown agent"
            await stage.send("999/session/set", {"action": "sign_in"})

            assert (await stage.wait("102/calldata/result"))["reason"] == "the agent is signed out"
            assert (await stage.wait("999/session/result"))["reason"] == "unknown agent"


async def test_a_retained_command_is_not_executed(tmp_path: Path, shared_broker: Broker) -> None:
    """C4: more of them than a broker sends without acknowledgment, and each is answered; later commands go on."""
    agents = [f"1{number:02}" for number in range(30)]
    async with staged(tmp_path, shared_broker, agents=agents) as stage:
        for agent in agents:
            await stage.send(f"{agent}/calldata/set", "left behind", retain=True)
        try:
            async with stage.running():
                for agent in agents:
                    assert (await stage.wait(f"{agent}/calldata/result"))["reason"] == "retained"
                await stage.send("101/calldata/set", {"calldata": "live", "id": "live"})
                assert (await stage.wait("101/calldata/result", id="live"))["status"] == "applied"
        finally:
            for agent in agents:
                await stage.send(f"{agent}/calldata/set", b"", retain=True)

        assert [value for _, value in stage.simulator.calldata("101")] == ["live"]
        assert stage.simulator.calldata("102") == []


async def test_a_repeated_id_gets_the_first_result(tmp_path: Path, shared_broker: Broker) -> None:
    """C3, C4: identical to the byte, also after a restart, and not executed again; another id is."""
    async with staged(tmp_path, shared_broker) as stage:
        async with stage.running():
            await stage.polling("101")
            await stage.send("101/calldata/set", {"calldata": "x", "id": "once"})
            await stage.wait("101/calldata/result", id="once")
            await stage.send("101/calldata/set", {"calldata": "y", "id": "once"})
            await stage.wait_count("101/calldata/result", 2)
        async with stage.running():
            await stage.send("101/calldata/set", {"calldata": "z", "id": "once"})
            await stage.wait_count("101/calldata/result", 3)
            await stage.send("101/calldata/set", {"calldata": "new", "id": "other"})
            await stage.wait("101/calldata/result", id="other")

        assert len({message.payload for message in stage.on("101/calldata/result")[:3]}) == 1
        assert [value for _, value in stage.simulator.calldata("101")] == ["x", "new"]


async def test_repeats_of_a_pending_command_get_no_answer_of_their_own(tmp_path: Path, shared_broker: Broker) -> None:
    """C4: and the one result is the first one's."""
    async with staged(tmp_path, shared_broker, hold_s=1.0) as stage, stage.running():
        await stage.polling("101")
        for _ in range(3):
            await stage.send("101/calldata/set", {"calldata": "x", "id": "once"})
        await stage.send("101/calldata/set", {"calldata": "last", "id": "last"})
        await stage.wait("101/calldata/result", id="last")

        assert [each["id"] for each in stage.json("101/calldata/result")] == ["once", "last"]


async def test_a_pending_command_goes_on_after_a_restart(tmp_path: Path, shared_broker: Broker) -> None:
    """C3: what was acknowledged and had no result when the program ended is executed by the next run, and answered."""
    async with staged(tmp_path, shared_broker, hold_s=2.0, quiet=False) as stage:
        async with stage.running() as adapter:  # stopped in a hurry, and started again at once
            await stage.polling("101")
            await stage.send("101/calldata/set", {"calldata": "x", "id": "kept"})
            await asyncio.to_thread(_until_stored, tmp_path / "outbox.db", "kept")
            adapter.app.stop()
            await adapter.stop()
        assert stage.simulator.calldata("101") == []
        assert stage.on("101/calldata/result") == []
        async with stage.running():
            assert (await stage.wait("101/calldata/result", id="kept"))["status"] == "applied"

        assert [value for _, value in stage.simulator.calldata("101")] == ["x"]


async def test_a_command_waits_on_the_broker_while_nothing_can_be_stored(
    tmp_path: Path, shared_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C3, D4: it is acknowledged when it is stored, not before; and then it is executed."""
    acknowledged: list[str] = []
    tries: list[str] = []
    admit = Database.admit
    full = True

    def no_room(self: Database, command: Any) -> Any:  # noqa: ANN401 - passed on
        tries.append(command.id)
        if full:
            raise StorageFullError("db", "full")
        return admit(self, command)

    monkeypatch.setattr(Database, "admit", no_room)
    timing = Timing(store_again_s=0.05)
    async with staged(tmp_path, shared_broker) as stage, stage.running(timing=timing) as adapter:
        await stage.polling("101")
        commands = adapter.app._commands
        receive = commands.receive

        def noting(received: Any, work_no: str, kind: str, acknowledge: Callable[[], None]) -> None:  # noqa: ANN401 - passed on
            def acknowledge_noted() -> None:
                acknowledge()
                acknowledged.append("done")

            receive(received, work_no, kind, acknowledge_noted)

        monkeypatch.setattr(commands, "receive", noting)
        await stage.send("101/calldata/set", {"calldata": "x", "id": "c"})
        await stage.simulator.wait_for(lambda: len(tries) > 2)
        assert acknowledged == []
        full = False

        assert (await stage.wait("101/calldata/result", id="c"))["status"] == "applied"
        assert acknowledged == ["done"]


async def test_a_flood_is_dropped_with_one_summary_a_second(tmp_path: Path, shared_broker: Broker) -> None:
    """C5: over 20 a second and agent are dropped; unknown agents count as one; the first 20 are answered."""
    async with staged(tmp_path, shared_broker, agents=["101", "102"]) as stage, stage.running() as adapter:
        await stage.polling("101")
        sending = [stage.send("101/calldata/set", {"calldata": 1, "id": f"c{n}"}) for n in range(60)]
        sending += [stage.send(f"x{n}/calldata/set", {"calldata": 1}) for n in range(100)]
        await asyncio.gather(*sending)
        await stage.send("102/calldata/set", {"calldata": "x", "id": "other"})
        await stage.wait("102/calldata/result", id="other", status="applied")
        await stage.peer.wait_for(lambda: _summaries(stage))

        counters = adapter.app._shared.counters
        answered = len(stage.on("101/calldata/result"))
        unknown = {each.topic for each in stage.peer.messages if each.topic.startswith(f"{stage.prefix}/x")}
        assert counters.commands == 161
        assert len([topic for topic in unknown if topic.endswith("/result")]) <= 60
        assert counters.dropped_commands >= 60 - 2 * 20
        assert 20 <= answered <= 40
        assert len(_summaries(stage)) <= 3


async def test_correlation_data_and_response_topics(tmp_path: Path, shared_broker: Broker) -> None:
    """C8: correlation data comes back; a response topic is used below `mqtt.response_prefix` alone."""
    async with staged(tmp_path, shared_broker) as stage:
        answers = f"{stage.prefix}-answers"
        allowed, forbidden = f"{answers}/me", f"{answers}x/me"
        with Peer(shared_broker, [f"{answers}/#", f"{answers}x/#"]) as other:
            async with stage.running(mqtt={"response_prefix": answers}):
                await stage.polling("101")
                for number, topic in enumerate((allowed, forbidden, answers)):
                    await stage.send(
                        "101/calldata/set",
                        {"calldata": "x", "id": f"c{number}"},
                        correlation=b"\x00corr",
                        response_topic=topic,
                    )
                    await stage.wait("101/calldata/result", id=f"c{number}")
                await other.wait_for(lambda: other.on(allowed))

            assert [(each.payload, each.correlation) for each in other.messages] == [
                (stage.on("101/calldata/result")[0].payload, b"\x00corr")
            ]
            assert [each.correlation for each in stage.on("101/calldata/result")] == [b"\x00corr"] * 3


async def test_what_is_switched_off_is_not_subscribed(tmp_path: Path, shared_broker: Broker) -> None:
    """C9: with everything off the adapter still publishes."""
    commands = {"calldata": False, "session": False, "bridge": False}
    async with staged(tmp_path, shared_broker) as stage, stage.running(commands=commands) as adapter:
        await stage.polling("101")
        await stage.send("101/calldata/set", "x")
        await stage.send("bridge/request/agents", b"")
        stage.simulator.emit_sample("101", "AgentState_Ready")
        await stage.wait("101/event", seq=1)
        await stage.simulator.wait_for(lambda: len(stage.simulator.polls("101")) > 3)

        assert adapter.app._shared.counters.commands == 0
        assert stage.simulator.calldata("101") == []
        assert stage.on("101/calldata/result") == []


async def test_each_kind_is_switched_off_alone(tmp_path: Path, shared_broker: Broker) -> None:
    """C9: the others are still subscribed."""
    async with staged(tmp_path, shared_broker) as stage, stage.running(commands={"calldata": False}):
        await stage.polling("101")
        await stage.send("101/calldata/set", "x")
        await stage.send("101/session/set", {"action": "sign_in", "id": "c"})
        await stage.wait("101/session/result", id="c")

        assert stage.simulator.calldata("101") == []


async def test_a_secret_is_never_published(tmp_path: Path, shared_broker: Broker) -> None:
    """C6: a GUID that comes in a command is in no result and in no log line."""
    async with staged(tmp_path, shared_broker) as stage, stage.running():
        await stage.polling("101")
        guid = stage.simulator.guid("101")
        await stage.send("101/session/set", {"action": "sign_in", "guid": guid, "id": "a"})
        await stage.send("101/session/set", {"action": "sign_out", "guid": guid, "id": "b"})
        await stage.wait("101/session/result", id="a")
        await stage.wait("101/session/result", id="b")

        sent = [each for each in stage.peer.messages if not each.topic.endswith("/set")]
        assert not [each for each in sent if guid.encode() in each.payload]
        assert guid not in repr(load(write(tmp_path, stage.values())))


def _summaries(stage: Stage) -> list[str]:
    return [each["message"] for each in stage.json("bridge/log") if "dropped" in each["message"]]


def _until_stored(path: Path, identifier: str) -> None:
    with sqlite3.connect(path) as other:
        while not other.execute("SELECT 1 FROM command WHERE id = ?", (identifier,)).fetchall():
            pass
    other.close()
