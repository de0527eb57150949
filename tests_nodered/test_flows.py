"""The shipped flows in a real Node-RED: what they show, send and say."""

import json
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright, expect

from tests.wall_support import find_browser, until
from tests_nodered.rig import AGENTS, FLOWS, INSTALLED, Node, Stage, load_flow, node_red, stage, subscriptions, topics

__all__ = ["stage"]

KNOWN_CALLER = {"caller": "02079460000", "called": "800", "callid": "1456403549-15", "feature": "0"}
CALL_DATA = "Customer 4711, Example Ltd, contract ends in May"


expect.set_options(timeout=20_000)


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """Open a browser on a wall's screen; nothing may go wrong in its console."""
    errors: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        opened = await browser.new_page(viewport={"width": 1280, "height": 720})
        opened.on("pageerror", lambda error: errors.append(str(error)))
        yield opened
        await browser.close()
    assert errors == []


async def test_the_wall_follows_the_agents(stage: Stage, page: Page, tmp_path: Path) -> None:
    """A tile for each agent is right at once, follows a call, and goes when its agent is no longer configured."""
    async with stage.adapter() as adapter:
        stage.simulator.emit_sample("102", "AgentState_SetRest_Success")
        await stage.peer.wait_for(
            lambda: [each for each in stage.peer.payloads("agents/102/state") if json.loads(each)["state"] == "rest"]
        )
        async with node_red(tmp_path / "node-red", load_flow(), stage.broker) as running:
            await page.goto(f"{running.url}dashboard/agents")
            amina, yusuf = (page.locator(f'.cc-agent[data-work-no="{work_no}"]') for work_no in ("101", "102"))
            await expect(yusuf.locator(".cc-name")).to_have_text("Yusuf")
            await expect(yusuf.locator(".cc-state")).to_have_text("rest")
            await expect(page.locator(".cc-trouble")).to_have_count(0)

            stage.simulator.emit_sample("101", "AgentEvent_Ringing", KNOWN_CALLER)
            await expect(amina.locator(".cc-call")).to_have_text("ringing 02079460000")
            await expect(amina).to_have_class(re.compile("cc-ringing"))
            stage.simulator.emit_sample("101", "AgentState_Busy")
            stage.simulator.emit_sample("101", "AgentEvent_Talking", KNOWN_CALLER)
            await expect(amina.locator(".cc-call")).to_have_text("talking 02079460000")
            await expect(amina.locator(".cc-time")).to_have_text(re.compile("^0:0[2-9]$"))
            await page.screenshot(path=INSTALLED / "wall.png")

            stage.configure(AGENTS[1:])
            adapter.send(signal.SIGHUP)
            await expect(amina).to_have_count(0)
            await expect(yusuf).to_have_count(1)
        assert running.complaints() == []


async def test_the_wall_says_when_it_is_cut_off(stage: Stage, page: Page, tmp_path: Path) -> None:
    """A dead adapter and a dead broker are both said above the tiles, which stay; after each return all is well."""
    async with node_red(tmp_path / "node-red", load_flow(), stage.broker) as running:
        trouble = page.locator(".cc-trouble")
        async with stage.adapter() as adapter:
            await page.goto(f"{running.url}dashboard/agents")
            await expect(page.locator(".cc-agent")).to_have_count(2)
            await expect(trouble).to_have_count(0)
            adapter.send(signal.SIGKILL)
            await expect(trouble).to_contain_text("The adapter is away.")

        async with stage.adapter():
            await expect(trouble).to_have_count(0)
            stage.broker.stop()
            await expect(trouble).to_contain_text("Node-RED is cut off from the broker.")
            await expect(page.locator(".cc-agent")).to_have_count(2)

            stage.broker.start()
            await expect(trouble).to_have_count(0)


async def test_call_data_goes_to_the_agent_whose_telephone_rings(stage: Stage, tmp_path: Path) -> None:
    """A known caller becomes call data on the agent's next poll, is shown as applied, and nothing else is sent."""
    async with stage.adapter(), node_red(tmp_path / "node-red", load_flow(), stage.broker) as running:
        stage.simulator.emit_sample("102", "AgentEvent_Ringing", KNOWN_CALLER | {"caller": "000"})
        stage.simulator.emit_sample("101", "AgentState_Busy")
        stage.simulator.emit_sample("101", "AgentEvent_Ringing", KNOWN_CALLER)

        await until(lambda: running.sidebar)
        assert running.sidebar == ["101: applied"]
        await until(lambda: running.status("show the result") == "101: applied")
        assert running.status("look up the caller") == "101: sent, goes with the next poll"
        assert [value for _, value in stage.simulator.calldata("101")] == [CALL_DATA]
        assert stage.simulator.calldata("102") == []
        assert len(stage.peer.on("agents/101/calldata/set")) == 1
        assert running.complaints() == []


async def test_no_event_sets_the_flow_off_again(stage: Stage, tmp_path: Path) -> None:
    """Neither a restart of Node-RED nor one of the broker repeats a command: the stream is never retained."""

    def sent() -> list[str]:
        return [
            message.topic.split("/")[1] for message in stage.peer.messages if message.topic.endswith("/calldata/set")
        ]

    async def ring(work_no: str, commands: int) -> None:
        stage.simulator.emit_sample(work_no, "AgentEvent_Ringing", KNOWN_CALLER)
        await stage.peer.wait_for(lambda: sent()[commands - 1 :] == [work_no])

    async with stage.adapter():
        async with node_red(tmp_path / "node-red", load_flow(), stage.broker):
            await ring("101", 1)

        async with node_red(tmp_path / "node-red", load_flow(), stage.broker) as running:
            # Whatever was repeated would have been sent before this.
            await ring("102", 2)
            stage.broker.restart()
            await until(lambda: subscriptions(stage.broker, ["agents/#"]) == 2)  # our peer's
            await until(lambda: subscriptions(stage.broker, topics(running.flow)) == 3)
            await ring("101", 3)
        assert sent() == ["101", "102", "101"]


async def test_the_alert_comes_once_each_way(stage: Stage, tmp_path: Path) -> None:
    """A killed adapter is told once, its return once, and so is a broker that is out of reach."""
    flow = load_flow()
    (times,) = [node["env"] for node in flow if node["type"] == "tab" and node["env"]]
    assert [(each["name"], each["value"]) for each in times] == [("alert_after", "30"), ("silent_after", "150")]
    times[0]["value"] = "1"
    async with node_red(tmp_path / "node-red", flow, stage.broker) as running:
        async with stage.adapter() as adapter:
            await until(lambda: running.status("once each way") == "well")
            adapter.send(signal.SIGKILL)
            await until(lambda: running.sidebar[-1:] == ["the adapter is offline"])

        async with stage.adapter():
            await until(lambda: running.sidebar[-1:] == ["the bridge is well again"])
            stage.broker.stop()
            await until(lambda: running.sidebar[-1:] == ["Node-RED is cut off from the broker"])
            stage.broker.start()
            await until(lambda: running.sidebar[-1:] == ["the bridge is well again"])

        assert running.sidebar[-4:] == [
            "the adapter is offline",
            "the bridge is well again",
            "Node-RED is cut off from the broker",
            "the bridge is well again",
        ]


async def test_the_editor_imports_the_flows(page: Page, tmp_path: Path) -> None:
    """The file goes in by the editor's import dialog, and is deployed as it is."""
    async with node_red(tmp_path / "node-red", []) as running:
        await page.goto(running.url)
        tabs = page.locator(".red-ui-tab[flowname]")
        await expect(tabs).to_have_count(1)  # an empty one
        await expect(page.locator("#red-ui-loading-progress")).to_be_hidden()
        await page.keyboard.press("Control+i")
        await page.set_input_files("#red-ui-clipboard-dialog-import-file-upload", FLOWS)
        await page.click("#red-ui-clipboard-dialog-ok")
        await expect(tabs).to_have_count(4)
        await page.click("#red-ui-header-button-deploy")
        await until(lambda: deployed(tmp_path))

    assert {node["id"] for node in load_flow()} <= {node["id"] for node in deployed(tmp_path)}


def deployed(directory: Path) -> list[Node]:
    """Read what the editor has deployed."""
    nodes: list[Node] = json.loads((directory / "node-red/flows.json").read_text(encoding="utf-8"))
    return nodes
