"""How sessions begin and end (P6, P8, P10, C6), with the whole adapter between the simulator and a broker."""

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from adapter.agent.presence import Timing
from adapter.config import Backoff
from adapter.simulator import SimAgent, faults
from tests.adapter_support import start
from tests.broker_support import Broker
from tests.polling_support import Place, place

AGAIN = Timing(again=Backoff(initial_s=0.4, maximum_s=3.0))
"""A new sign-in by itself comes sooner than SPEC's 5 s."""

OUT = {"signed_in": False}


def credentials(work_no: str, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - YAML's values
    """Make an agent's entry with the simulator's credentials for it."""
    return {
        "work_no": work_no,
        "sign_in": {"password": f"pw-{work_no}", "phone": f"8{work_no}", **changes},
    }


def actions(here: Place, work_no: str) -> list[str]:
    """List an agent's sign-ins and sign-outs at the gateway."""
    return [call.action for call in here.simulator.requests if call.work_no == work_no and call.action != "agentstatus"]


def secrets_shown(here: Place, *secrets: str) -> list[str]:
    """List secrets that any message of the adapter's shows."""
    seen = b"\n".join(got.payload for got in list(here.peer.messages) if not got.topic.endswith("/set"))
    return [secret for secret in secrets if secret.encode() in seen]


async def test_p10_sign_in_with_credentials(
    tmp_path: Path, shared_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """P10, C6: a sign-in sends password, phone and status alone; its GUID is on disk before the first poll."""
    caplog.set_level("DEBUG", "adapter")
    async with place(
        tmp_path, shared_broker, ["101", "102"], simulate=OUT,
        entries=[credentials("101", status="busy"), credentials("102", status="work")],
    ) as here:  # fmt: skip
        await here.polled("101", "102")
        assert here.stored("101")["guid"] == here.simulator.polls("101")[0].guid
        assert here.stored("101")["own"] == 1
        await here.see("101", "state", state="busy")
        await here.see("102", "state", state="work")
        await here.availability("101", "online")

        sign_in, *_ = here.simulator.requests
        assert json.loads(sign_in.body) == {"password": "pw-101", "phonenum": "8101", "status": "3"}
        assert [payload["phase"] for payload in here.on("101", "session")] == ["signing_in", "polling"]
        assert here.on("101", "availability") == ["offline", "online"]
        assert secrets_shown(here, "pw-101", here.simulator.guid("101")) == []
        assert "pw-101" not in caplog.text
        assert here.simulator.guid("101") not in caplog.text


async def test_guid_file_is_waited_for_and_followed(
    tmp_path: Path, shared_broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    """A missing GUID file is waited for, junk in it is told without showing it, a new GUID in it is used."""
    path = tmp_path / "guid"
    async with place(tmp_path, shared_broker, entries=[{"work_no": "101", "guid_file": str(path)}]) as here:
        waiting = await here.see("101", "session", phase="signed_out")
        assert waiting["message"] == "waiting for a GUID in the GUID file"
        path.write_text("two words\n")
        await here.until(lambda: "expected a GUID" in caplog.text)
        path.write_bytes(b"\xff\xfe")
        await here.until(lambda: "not UTF-8 text" in caplog.text)
        path.write_text(here.simulator.guid("101") + "\n")
        await here.polled("101", times=2)
        path.write_text(here.simulator.sign_in("101"))
        await here.until(lambda: here.simulator.polls("101")[-1].guid == here.simulator.guid("101"))
        here.simulator.script("101", faults.rotate())
        await here.polls("101", 2)
        newest = here.simulator.guid("101")
        await here.restart()
        await here.polls("101", 1)

        assert here.simulator.polls("101")[-1].guid == newest
        assert "No such file or directory; waiting for it" in caplog.text
        assert "two words" not in caplog.text


async def test_p8_changed_configuration_wins_over_the_stored_guid(tmp_path: Path, shared_broker: Broker) -> None:
    """P8: at the start the stored GUID is used, unless the configured one has changed since."""
    async with place(tmp_path, shared_broker) as here:
        here.simulator.script("101", faults.rotate())
        await here.polled("101", times=3)
        old = here.simulator.polls("101")[0].guid or ""

        def change() -> None:
            here.path.write_text(here.path.read_text().replace(old, here.simulator.sign_in("101")))

        await here.restart(change)
        await here.polls("101", 1)

        assert here.simulator.polls("101")[-1].guid == here.simulator.guid("101")


async def test_c6_sign_in_that_is_refused(tmp_path: Path, shared_broker: Broker) -> None:
    """C6: forced only after 100-002 and with `force`; what locks accounts is never again; each says what to do."""
    agents = [SimAgent(work_no=work_no, signed_in=work_no in ("101", "102")) for work_no in map(str, range(101, 107))]
    codes = {"103": "100-004", "104": "100-020", "105": "110-016"}
    async with place(
        tmp_path, shared_broker, agents, simulate=OUT, timing=AGAIN,
        entries=[
            credentials("101"), credentials("102", force=True),
            *(credentials(work_no, again=True) for work_no in codes), credentials("106", again=True),
        ],
    ) as here:  # fmt: skip
        for work_no, code in codes.items():
            here.simulator.script(work_no, *[faults.retcode(code)] * 5, on="login")
        here.simulator.script("106", *[faults.retcode("100-003")] * 3, on="login")
        elsewhere = await here.see("101", "session", phase="signed_out", retcode="100-002")
        await here.polled("102", "106", times=2)

        assert "set sign_in.force: true" in elsewhere["message"]
        assert actions(here, "101") == ["login"]
        assert actions(here, "102") == ["login", "forcelogin"]
        assert actions(here, "106") == ["login"] * 4
        for work_no, code in codes.items():
            refused = await here.see(work_no, "session", phase="signed_out", retcode=code)
            assert "not tried again by itself" in refused["message"]
            assert actions(here, work_no) == ["login"]
        tries = [call.at for call in here.simulator.requests if call.work_no == "106" and call.action == "login"]
        first, second, third = (after - before for before, after in itertools.pairwise(tries))
        assert 0.4 <= first < second < third
        assert third > 1.5


async def test_c6_refused_command_ends_the_tries(tmp_path: Path, shared_broker: Broker) -> None:
    """C6: a command's sign-in that is refused with a retcode that locks accounts ends the tries by itself too."""
    async with place(
        tmp_path, shared_broker, ["101", "102"], entries=[credentials("101", again=True), credentials("102")],
        simulate=OUT, timing=Timing(again=Backoff(initial_s=1.5, maximum_s=3.0)),
    ) as here:  # fmt: skip
        here.simulator.script("101", faults.retcode("100-003"), faults.retcode("100-004"), on="login")
        await here.see("101", "session", phase="signed_out", retcode="100-003")
        result = await here.command("101", "session", {"action": "sign_in"})
        await here.polled("102", times=8)

        assert (result["status"], result["retcode"]) == ("rejected", "100-004")
        assert actions(here, "101") == ["login", "login"]


async def test_c6_stored_guid_that_is_refused_at_start_is_replaced_once(tmp_path: Path, shared_broker: Broker) -> None:
    """C6: a stored GUID that is refused at the start is replaced by one new sign-in; a later end is not."""
    async with place(tmp_path, shared_broker, entries=[credentials("101")], simulate=OUT) as here:
        await here.polled("101", times=2)
        await here.restart(lambda: here.simulator.sign_out("101"))
        await here.until(lambda: here.simulator.signed_in("101") and here.simulator.polling("101"))
        assert actions(here, "101") == ["login", "logout", "login"]

        await here.polls("101", 2)
        here.simulator.sign_out("101")
        await here.see("101", "session", phase="signed_out", retcode="100-006")
        await here.until(lambda: actions(here, "101")[-1] == "logout")
        result = await here.command("101", "session", {"action": "sign_in"})

        assert result["status"] == "applied"
        assert actions(here, "101") == ["login", "logout", "login", "logout", "login"]


async def test_p6_signs_in_again_where_configured(tmp_path: Path, shared_broker: Broker) -> None:
    """P6: with `again: true` an ended session is followed by a sign-in after a pause that doubles."""
    async with place(
        tmp_path, shared_broker, entries=[credentials("101", again=True)], simulate=OUT, timing=AGAIN
    ) as here:
        for _ in range(3):
            await here.until(lambda: here.simulator.signed_in("101") and here.simulator.polling("101"))
            here.simulator.sign_out("101")
            await here.until(lambda: not here.simulator.polling("101"))
        await here.until(lambda: here.simulator.signed_in("101") and here.simulator.polling("101"))

        requests = [call for call in here.simulator.requests if call.action in ("login", "logout")]
        assert [call.action for call in requests] == ["login"] + ["logout", "login"] * 3
        waits = [after.at - before.at for before, after in itertools.pairwise(requests) if before.action == "logout"]
        assert 0.1 < waits[0] < waits[1] < waits[2]


async def test_c6_sign_out_by_command_holds_over_a_restart(tmp_path: Path, shared_broker: Broker) -> None:
    """C6: a granted sign-out waits for the poll, switches `again` off until the next sign-in, over a restart too."""
    async with place(
        tmp_path, shared_broker, ["101", "102"], simulate=OUT, timing=AGAIN,
        entries=[credentials("101", again=True), credentials("102")],
    ) as here:  # fmt: skip
        await here.until(lambda: here.simulator.polling("101"))
        out = await here.command("101", "session", {"action": "sign_out"})
        twice = await here.command("101", "session", {"action": "sign_out"})
        late = await here.command("101", "calldata", {"calldata": "x"})
        await here.restart()
        await here.see("101", "session", message="waiting for a sign_in command")
        await here.polls("102", 4)

        assert (out["status"], out["retcode"]) == ("applied", "0")
        assert (twice["status"], twice["reason"]) == ("applied", "already signed out")
        assert (late["status"], late["reason"]) == ("rejected", "the agent is signed out")
        assert actions(here, "101") == ["login", "logout"]
        assert here.simulator.lost("101") == []

        back = await here.command("101", "session", {"action": "sign_in"})
        await here.polls("101", 1)
        again = await here.command("101", "session", {"action": "sign_in"})

        assert back["status"] == "applied"
        assert again["reason"] == "already signed in"
        assert here.stored("101")["stay_out"] == 0


async def test_c6_sign_out_that_is_refused(tmp_path: Path, shared_broker: Broker) -> None:
    """C6: refused during a call, the sign-out is answered with its retcode, and polling goes on."""
    async with place(tmp_path, shared_broker, entries=[credentials("101")], simulate=OUT) as here:
        await here.until(lambda: here.simulator.polling("101"))
        here.simulator.emit_sample("101", "AgentState_Busy")
        await here.see("101", "state", state="in_call")
        out = await here.command("101", "session", {"action": "sign_out"})
        no_guid = await here.command("101", "session", {"action": "sign_in"})
        await here.polls("101", 1)
        here.simulator.script("101", faults.status(503), on="logout")
        away = await here.command("101", "session", {"action": "sign_out"})
        await here.polls("101", 2)

        assert (out["status"], out["retcode"]) == ("rejected", "100-010")
        assert "wrong" in out["reason"]
        assert no_guid["reason"] == "already signed in"
        assert (away["status"], away["retcode"]) == ("rejected", None)
        assert away["reason"] == "HTTP status 503; send it again"
        calls = [call for call in here.simulator.requests if call.action == "logout"]
        following = [poll.started_at for poll in here.simulator.polls("101") if poll.started_at > calls[1].at]
        status = [call.at for call in here.simulator.requests if call.at > calls[1].at]
        assert min(following + status) - calls[1].at > 1.0


async def test_p8_new_guid_of_a_refused_sign_out_is_used(tmp_path: Path, shared_broker: Broker) -> None:
    """P8: any answer may bring a new GUID: that of a refused sign-out, or of `agentstatus`, is used and stored too."""
    async with place(tmp_path, shared_broker, ["101", "102"], good=False) as here:
        new = faults.headers({"Set-GUID": "JSESSIONID=new.AgentGateway0"})
        here.simulator.script("102", faults.status(500) | new, on="agentstatus")
        here.simulator.script("101", faults.retcode("100-010") | new, on="logout")
        await here.polled("102")
        stored = here.stored("102")["guid"]
        await here.until(lambda: here.simulator.polling("101"))
        await here.command("101", "session", {"action": "sign_out"})
        await here.until(lambda: here.simulator.polls("101")[-1].guid == "new.AgentGateway0")

        assert here.simulator.polls("102")[0].guid == stored == "new.AgentGateway0"
        # The simulator never gave such a GUID out, and says so.
        assert {violation.kind for violation in here.simulator.violations} <= {"guid"}


async def test_c6_sign_in_by_guid(tmp_path: Path, shared_broker: Broker) -> None:
    """C6: `sign_in` takes a GUID of a session begun elsewhere; without credentials it needs one."""
    async with place(tmp_path, shared_broker, ["101"], entries=[{"work_no": "101", "guid": "old"}],
                     simulate=OUT, good=False) as here:  # fmt: skip
        await here.see("101", "session", phase="signed_out", retcode="100-006")
        bare = await here.command("101", "session", {"action": "sign_in"})
        guid = here.simulator.sign_in("101")
        taken = await here.command("101", "session", {"action": "sign_in", "guid": guid})
        await here.polls("101", 1)
        here.simulator.sign_in("101")
        other = await here.command("101", "session", {"action": "sign_in", "guid": here.simulator.guid("101")})
        await here.polls("101", 1)

        assert bare["status"] == "rejected"
        assert 'send the "guid"' in bare["reason"]
        assert taken["status"] == other["status"] == "applied"
        assert here.simulator.polls("101")[-1].guid == here.simulator.guid("101")
        assert here.stored("101")["own"] == 0
        assert secrets_shown(here, guid) == []
        assert {violation.kind for violation in here.simulator.violations} <= {"guid"}


async def test_sign_in_without_a_guid_is_no_sign_in(tmp_path: Path, shared_broker: Broker) -> None:
    """A sign-in that succeeds without `Set-GUID` is told as such; what stays of it at the gateway is waited out."""
    async with place(tmp_path, shared_broker, entries=[credentials("101")], simulate=OUT, timing=AGAIN) as here:
        here.simulator.script("101", faults.headers({"Set-GUID": "none"}), on="login")
        refused = await here.see("101", "session", phase="signed_out", retcode="0")
        ours = await here.see("101", "session", phase="signed_out", retcode="100-002")
        here.simulator.sign_out("101")
        await here.polled("101", times=2)

        assert "no GUID" in refused["message"]
        assert "whose answer was lost" in ours["message"]
        assert set(actions(here, "101")) == {"login"}


async def test_lost_answer_to_a_sign_in_is_waited_out(tmp_path: Path, shared_broker: Broker) -> None:
    """A sign-in whose answer was lost may have succeeded: 100-002 is then tried again until the gateway forgets it."""
    async with place(
        tmp_path, shared_broker, ["101", "102"], entries=[credentials("101"), credentials("102")],
        simulate=OUT | {"poll_max_time_s": 6.0}, timing=AGAIN,
    ) as here:  # fmt: skip
        here.simulator.script("101", faults.drop(50), on="login")
        here.simulator.script("102", faults.hang(), faults.status(503), on="login")
        retrying = await here.see("101", "session", phase="retrying", attempt=1)
        await here.see("101", "session", phase="signed_out", retcode="100-002")
        await here.polled("101", "102", times=2)

        assert "connection lost" in retrying["message"]
        assert here.counters.lost_answers == 0
        assert here.counters.poll_errors == 0
        for work_no in ("101", "102"):
            tries = [call.at for call in here.simulator.requests if call.work_no == work_no and call.action == "login"]
            assert len(tries) >= 3
            assert tries[1] - tries[0] > 1.0
            assert "polling" in [payload["phase"] for payload in here.on(work_no, "session")]


async def test_c6_lost_answer_to_a_commanded_sign_in(tmp_path: Path, shared_broker: Broker) -> None:
    """C6: a command whose sign-in was not answered is rejected, says so, and leaves the agent signed out."""
    async with place(tmp_path, shared_broker, entries=[credentials("101")], simulate=OUT) as here:
        await here.polled("101")
        await here.command("101", "session", {"action": "sign_out"})
        here.simulator.script("101", faults.status(502), on="login")
        away = await here.command("101", "session", {"action": "sign_in"})
        await here.see("101", "session", phase="signed_out", message="HTTP status 502; send it again")
        back = await here.command("101", "session", {"action": "sign_in"})

        assert (away["status"], away["reason"]) == ("rejected", "HTTP status 502; send it again")
        assert back["status"] == "applied"


async def test_orders_cannot_keep_an_agent_from_polling(tmp_path: Path, shared_broker: Broker) -> None:
    """However fast sign-ins and sign-outs are ordered, a session is polled in between, and few of them wait."""
    async with place(tmp_path, shared_broker) as here:
        await here.polled("101")
        results = await asyncio.gather(
            *(here.command("101", "session", {"action": "sign_in", "id": f"o{number}"}) for number in range(12))
        )
        count = len(here.simulator.polls("101"))

        applied = [result for result in results if result["status"] == "applied"]
        assert {result["reason"] for result in results} == {"already signed in", "queue full"}
        assert 4 <= len(applied) < 12
        assert count >= len(applied)


async def test_signs_out_at_exit_where_configured(tmp_path: Path, shared_broker: Broker) -> None:
    """D7: at the stop an agent that the adapter signed in is signed out where configured."""
    entries = [credentials("101", sign_out_at_exit=True), credentials("102"), credentials("103", sign_out_at_exit=True)]
    async with place(tmp_path, shared_broker, ["101", "102", "103"], entries=entries, simulate=OUT) as here:
        here.simulator.script("103", faults.retcode("100-010"), on="logout")
        await here.polled("101", "102", "103", times=2)
        await here.restart(lambda: None)
        await here.until(lambda: all(here.simulator.polling(work_no) for work_no in ("101", "102", "103")))

        assert actions(here, "101") == ["login", "logout", "login"]
        assert actions(here, "102") == ["login"]
        assert actions(here, "103") == ["login", "logout"]
        assert "signed_out" in [payload["phase"] for payload in here.on("101", "session")]


async def test_orders_that_wait_at_the_stop_are_done_after_it(tmp_path: Path, shared_broker: Broker) -> None:
    """C3: a sign-out that came too late for this run is done by the next one."""
    async with place(tmp_path, shared_broker, simulate={"hold_s": 1.0}) as here:
        await here.until(lambda: here.simulator.polling("101"))
        order = asyncio.create_task(here.command("101", "session", {"action": "sign_out", "id": "late"}))
        await here.peer.wait_for(lambda: here.on("101", "session/set"))
        await here.until(lambda: here.rows("SELECT * FROM command"))
        await here.adapter.stop()
        assert here.simulator.signed_in("101")
        here.adapter = await start(here.path)
        result = await order

        assert result["status"] == "applied"
        assert not here.simulator.signed_in("101")
