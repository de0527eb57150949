"""What docs/ tells people to type, from the first run to the removal, on a real broker and a simulated gateway."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from adapter.simulator import SimAgent, Simulator
from tests.broker_support import HOST, Broker, Peer
from tests.cli_support import DEADLINE_S, Program, reading
from tests.examples_support import ROOT, replace, shell_blocks

WORD = "change-me"
"""The password that docs/start.md shows."""
START, OPERATING, REMOVING = (ROOT / "docs" / f"{name}.md" for name in ("start", "operating", "removing"))


class Shell:
    """A reader of the documentation, in a directory of their own.

    Mosquitto's clients take the broker's address from files, so that their commands are typed as they are shown.
    """

    def __init__(self, directory: Path, broker: Broker) -> None:
        self._directory = directory
        self._environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_CONFIG_HOME": str(directory),
        }
        for name in ("mosquitto_sub", "mosquitto_pub", "mosquitto_rr"):
            (directory / name).write_text(f"-h {HOST}\n-p {broker.ports['mqtt']}\n")

    async def types(self, block: str) -> str:
        """Run a block to its end, each command of which must succeed; give what it said."""

        def run() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["sh", "-euc", block],
                cwd=self._directory,
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
                check=False,
            )

        done = await asyncio.to_thread(run)
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    async def starts(self, command: str) -> asyncio.subprocess.Process:
        """Run a command beside what is typed next."""
        return await asyncio.create_subprocess_exec(
            "sh",
            "-c",
            f"exec {command}",
            cwd=self._directory,
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )


def files_of_the_first_run(directory: Path, simulator: Simulator, broker: Broker) -> None:
    """Write the files that docs/start.md shows, with the addresses and the GUID of this test."""
    blocks = re.findall(r"^```yaml\n(.*?)^```$", START.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    config, secrets = blocks
    places = {"https://gateway.example:8043/agentgateway": simulator.url, "mqtt://localhost:1883": broker.url()}
    quick = {"  ca_file: gateway-ca.pem\n": "  ca_file: gateway-ca.pem\n  hold: 0.5\n"}
    (directory / "config.yaml").write_text(replace(config, places | quick))
    guid = {"279fe21d-2caa-4437-84c3-ab9e9dae20f5.AgentGateway0": simulator.guid("101")}
    (directory / "secrets.yaml").write_text(replace(secrets, guid))
    shutil.copy(simulator.ca_file, directory / "gateway-ca.pem")


async def test_from_the_first_run_to_the_removal(tmp_path: Path, broker: Broker) -> None:
    """Each block succeeds; the agents are polled, call data is applied, and in the end nothing is left."""
    agents = [SimAgent(work_no="101"), SimAgent(work_no="102", password=WORD, signed_in=False)]
    async with Simulator(agents=agents, hold_s=0.5) as simulator:
        files_of_the_first_run(tmp_path, simulator, broker)
        shell = Shell(tmp_path, broker)
        checking, running, looking, sending = shell_blocks(START)
        asking, checking_again = shell_blocks(OPERATING)

        assert "logged in, MQTT 5" in await shell.types(checking)
        async with reading(await shell.starts(running)) as adapter:
            await simulator.wait_for(lambda: simulator.polled("101") and simulator.polled("102"))
            await adapter.line(lambda line: "102" in line and "signed in" in line)
            seen = await shell.types(looking)
            sent = await shell.types(sending)
            asked = await shell.types(asking)
            await shell.types(checking_again)
            await stopped(adapter)
        would, done = [await shell.types(re.sub("^ +", "", block)) for block in indented_blocks(REMOVING)]
        assert simulator.violations == []

    assert seen.count('"phase":"polling"') == 2
    assert "agents/bridge/availability online" in seen
    assert sent.count('"status":"applied"') == 2
    assert [value for _, value in simulator.calldata("101") + simulator.calldata("102")] == [
        "customer=4711",
        "customer=4712",
    ]
    assert asked.count('"status":"ok"') == 3
    assert "agents/102/state" in would
    assert "cleared" in done
    assert not (tmp_path / "ccgateway2mqtt.db").exists()
    with Peer(broker) as late:
        await late.publish("done", b"")
        await late.wait_for(lambda: late.on("done"))
    assert [message.topic for message in late.messages] == ["done"]


def indented_blocks(page: Path) -> list[str]:
    """Take the `sh` blocks out of a list of steps."""
    return re.findall(r"^ +```sh\n(.*?)^ +```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


async def stopped(adapter: Program) -> None:
    """Press Ctrl-C, and see that it ends well."""
    adapter.send(signal.SIGINT)
    assert await adapter.ended() == 0
