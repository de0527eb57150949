"""The simulator's sign-in, sign-out and state, seen with curl, and its certificates."""

import asyncio
import json
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from adapter.simulator import SimAgent, Simulator, SimulatorError, faults
from tests.simulator_support import curl, kinds, poll, session_url, sign_in


async def test_a_sign_in_gives_a_guid_and_the_events_of_the_vendor() -> None:
    """InService and Ready follow; the reply is the vendor's sample."""
    async with Simulator(agents=["101"], hold_s=60, signed_in=False) as simulator:
        assert simulator.guid("101") == ""
        reply = await sign_in(simulator)

        assert reply.retcode == "0"
        assert reply.guid == simulator.guid("101") != ""
        assert reply.json["result"]["workno"] == "101"
        assert set(reply.json["result"]) == {
            "vdnid", "workno", "mediatype", "loginTime", "isForceChange", "serverName", "timeRemaining",
        }  # fmt: skip
        types = [(await poll(simulator)).json["event"]["eventType"] for _ in range(2)]
        assert types == ["AgentOther_InService", "AgentState_Ready"]
        assert [(call.action, call.retcode, call.status) for call in simulator.requests] == [("login", "0", 200)]
        assert json.loads(simulator.requests[0].body)["phonenum"] == "8101"


@pytest.mark.parametrize(
    ("status", "event_type", "code"),
    [("3", "AgentState_SetNotReady_Success", 3), (5, "AgentState_Work", 5)],
)
async def test_a_sign_in_in_another_state_says_so(status: object, event_type: str, code: int) -> None:
    """`status` may be text or a number; the third event and `agentstatus` follow it."""
    async with Simulator(agents=["101"], hold_s=60, signed_in=False) as simulator:
        await sign_in(simulator, body={"status": status})
        types = [(await poll(simulator)).json["event"]["eventType"] for _ in range(3)]
        state = await curl(
            simulator, "-H", f"Guid: {simulator.guid('101')}", session_url(simulator, "101", "/agentstatus")
        )

        assert types[2] == event_type
        assert state.json["result"] == {"agentState": code, "isWorking": False}


@pytest.mark.parametrize(
    ("body", "retcode"),
    [
        ({"password": "wrong"}, "100-004"),
        ({"password": None}, "100-001"),
        ({"password": ""}, "100-001"),
        ({"password": "x" * 33}, "100-001"),
        ({"phonenum": 8101}, "100-001"),
        ({"phonenum": "desk"}, "100-013"),
    ],
)
async def test_bad_credentials_are_refused(body: dict[str, object], retcode: str) -> None:
    """Each with its retcode, and nobody is signed in."""
    async with Simulator(agents=["101"], signed_in=False) as simulator:
        reply = await sign_in(simulator, body=body)

        assert (reply.retcode, reply.guid) == (retcode, None)
        assert not simulator.signed_in("101")


@pytest.mark.parametrize("body", ["{", "[]"])
async def test_a_sign_in_without_a_json_object_is_refused(body: str) -> None:
    """000-006."""
    async with Simulator(agents=["101"], signed_in=False) as simulator:
        reply = await curl(simulator, "-X", "PUT", "-d", body, session_url(simulator, "101"))

        assert reply.retcode == "000-006"


async def test_own_credentials_of_an_agent_are_asked() -> None:
    """Password and telephone can be given for each agent."""
    agent = SimAgent(work_no="101", password="sesame", phone="77", signed_in=False)  # noqa: S106  an example
    async with Simulator(agents=[agent]) as simulator:
        wrong = await sign_in(simulator)
        right = await sign_in(simulator, body={"password": "sesame"})

        assert (wrong.retcode, right.retcode) == ("100-004", "0")
        assert simulator.agents[0].phone == "77"
        assert simulator.agents[0].guid == right.guid


async def test_a_signed_in_agent_needs_force() -> None:
    """C6: 100-002 first; a forced sign-in ends the older session."""
    async with Simulator(agents=["101"], hold_s=60) as simulator:
        old = simulator.guid("101")
        plain = await sign_in(simulator)
        forced = await sign_in(simulator, force=True)
        refused = await poll(simulator, guid=old)

        assert (plain.retcode, forced.retcode, refused.retcode) == ("100-002", "0", "000-003")
        assert forced.guid not in {None, old}


async def test_a_sign_in_while_one_is_unanswered_is_refused() -> None:
    """100-021, and a violation; so is a sign-out then."""
    async with Simulator(agents=["101"], signed_in=False) as simulator:
        simulator.script("101", faults.delay(1), on="login")
        async with asyncio.TaskGroup() as group:
            first = group.create_task(sign_in(simulator))
            await simulator.wait_for(lambda: simulator.requests)
            second = await sign_in(simulator)
            sign_out = await curl(simulator, "-X", "DELETE", session_url(simulator, "101", "/logout"))

        assert (first.result().retcode, second.retcode, sign_out.retcode) == ("0", "100-021", "100-021")
        assert kinds(simulator) == ["overlap", "overlap"]


@pytest.mark.parametrize("member", ["serviceToken", "callBackUri"])
async def test_push_members_at_sign_in_are_noted(member: str) -> None:
    """P10: with them events would not be polled."""
    async with Simulator(agents=["101"], signed_in=False) as simulator:
        await sign_in(simulator, body={member: "x"})

        assert kinds(simulator) == ["service_token"]


async def test_a_sign_out_ends_the_session() -> None:
    """It needs the GUID; a poll that is held then gets 100-006."""
    async with Simulator(agents=["101"], hold_s=60) as simulator:
        url = session_url(simulator, "101", "/logout")
        guid = simulator.guid("101")
        wrong = await curl(simulator, "-X", "DELETE", "-H", "Guid: made-up", url)
        async with asyncio.TaskGroup() as group:
            held = group.create_task(poll(simulator))
            await simulator.wait_for(lambda: simulator.polling("101"))
            right = await curl(simulator, "-X", "DELETE", "-H", f"Guid: {guid}", url)
        again = await curl(simulator, "-X", "DELETE", "-H", f"Guid: {guid}", url)

        assert (wrong.retcode, again.retcode, held.result().retcode) == ("000-003", "100-006", "100-006")
        assert right.json == {"message": "success", "retcode": "0"}
        assert kinds(simulator) == ["guid"]
        assert [call.action for call in simulator.requests] == ["logout"] * 3


async def test_a_sign_out_in_a_call_is_refused_unless_forced() -> None:
    """100-010 while talking; forcelogout releases the call."""
    async with Simulator(agents=["101"], hold_s=60) as simulator:
        simulator.emit_sample("101", "AgentState_Busy")
        guid = f"Guid: {simulator.guid('101')}"
        plain = await curl(simulator, "-X", "DELETE", "-H", guid, session_url(simulator, "101", "/logout"))
        forced = await curl(simulator, "-X", "DELETE", "-H", guid, session_url(simulator, "101", "/forcelogout"))

        assert (plain.retcode, forced.retcode) == ("100-010", "0")
        assert not simulator.signed_in("101")


async def test_agentstatus_follows_the_events() -> None:
    """It says 7 in a call; it can also be set; signed out it is refused."""
    async with Simulator(agents=["101"], hold_s=60) as simulator:

        async def state() -> object:
            url = session_url(simulator, "101", "/agentstatus")
            reply = await curl(simulator, "-H", f"Guid: {simulator.guid('101')}", url)
            return reply.json.get("result", reply.retcode)

        states = [await state()]
        simulator.emit_sample("101", "AgentState_Busy")
        states.append(await state())
        simulator.emit_sample("101", "AgentEvent_Hold")
        simulator.set_status("101", 9)
        states.append(await state())
        simulator.sign_out("101")
        states.append(await state())

        assert states == [
            {"agentState": 4, "isWorking": False},
            {"agentState": 7, "isWorking": True},
            {"agentState": 9, "isWorking": False},
            "100-006",
        ]


async def test_syncagentinfo_clears_the_queue_and_is_noted() -> None:
    """A poller must never call it."""
    async with Simulator(agents=["101"], hold_s=60) as simulator:
        event = simulator.emit_sample("101", "AgentState_Ready")
        url = session_url(simulator, "101", "/syncagentinfo")
        reply = await curl(simulator, "-X", "POST", "-H", f"Guid: {simulator.guid('101')}", url)

        assert reply.retcode == "0"
        assert (simulator.queued("101"), simulator.lost("101")) == (0, [event])
        assert kinds(simulator) == ["syncagentinfo"]


async def test_an_agent_is_there_once() -> None:
    """A second one of the same number is a mistake."""
    with pytest.raises(SimulatorError, match="101 is there twice"):
        Simulator(agents=["101", "101"])


@pytest.mark.parametrize("certificate", ["wrong_host", "expired"])
async def test_certificates_can_be_wrong(certificate: str, tmp_path: Path) -> None:
    """A client that verifies refuses them; the CA file goes where it was asked to."""
    wrong = "wrong_host" if certificate == "wrong_host" else "expired"
    async with Simulator(agents=["101"], certificate=wrong, directory=tmp_path) as simulator:  # type: ignore[arg-type]  # a str of the two
        reply = await poll(simulator)

        assert reply.exit_code == 60
        assert simulator.ca_file == tmp_path / "ca.pem"
        assert ssl.create_default_context(cafile=str(simulator.ca_file)).cert_store_stats()["x509_ca"] == 1


async def test_the_temporary_directory_goes_with_the_simulator() -> None:
    """Nothing is left lying about."""
    async with Simulator(agents=["101"]) as simulator:
        assert simulator.ca_file.exists()

    assert not simulator.ca_file.parent.exists()


async def test_addresses_of_ipv6_and_of_every_interface_are_served() -> None:
    """The address stands in brackets in the URL; 0.0.0.0 is reached as 127.0.0.1 with a fitting certificate."""
    async with Simulator(agents=["101"], host="0.0.0.0", hold_s=0.01) as simulator:  # noqa: S104  what is tested
        simulator.url = simulator.url.replace("0.0.0.0", "127.0.0.1")  # noqa: S104  what is tested
        assert (await poll(simulator)).retcode == "0"
    try:
        async with Simulator(agents=["101"], host="::1", hold_s=0.01) as simulator:
            assert simulator.url.startswith("https://[::1]:")
            assert (await poll(simulator, "101", "-g")).retcode == "0"
    except OSError:
        pytest.skip("this machine has no IPv6")


async def test_a_simulator_without_trustme_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so, and leaves nothing behind."""
    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(SimulatorError, match="needs the package trustme"):
        async with Simulator(agents=["101"]):
            pass


def test_a_missing_package_is_named() -> None:
    """Without trustme one line says what to install."""
    program = (
        "import sys; sys.modules['trustme'] = None\n"
        "import asyncio\n"
        "from adapter.simulator import Simulator, SimulatorError\n"
        "async def main():\n"
        "    async with Simulator(agents=['101']): pass\n"
        "try: asyncio.run(main())\n"
        "except SimulatorError as err: print(err)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "pip install 'ccgateway2mqtt[demo]'" in done.stdout
    assert done.stdout.count("\n") == 1
