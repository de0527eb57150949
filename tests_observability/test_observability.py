"""Alert rules and dashboard: sound, true of what the adapter tells, and there when something is wrong."""

import asyncio
import contextlib
import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapter.simulator import faults
from tests.broker_support import HOST, Broker, free_ports, mosquitto
from tests.cluster_support import servers
from tests.stage_support import Stage, staged
from tests_observability.prometheus import EXAMPLES, ROOT, RULES, SCRAPE_S, Prometheus, program, running

DASHBOARD: dict[str, Any] = json.loads((EXAMPLES / "grafana/dashboard.json").read_text(encoding="utf-8"))
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
}
UNIT_TESTS = ROOT / "tests_observability/alerts.test.yml"
INSTALLED = ROOT / "build/observability"
JOB = "ccgateway2mqtt"
FLEET_LACKS = ALERTS["CcgatewayFleetAgentsUnpolled"]["expr"]
FLEET_SPEAKS = "sum(ccgateway2mqtt_cluster_speaks) == 1"
PLAIN_TYPES = """
import type { Dashboard } from "@grafana/schema/dist/esm/raw/dashboard/x/dashboard_types.gen.d.ts";
type Number<T extends number> = `${T}` extends `${infer N extends number}` ? N : T;
type Plain<T> = T extends string ? `${T}` : T extends number ? Number<T>
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
export const dashboard: Plain<Dashboard> =
"""
"""Grafana's type of a dashboard, with an enumeration's values for its names: those are what JSON holds."""


def promtool(*arguments: str | Path, stdin: str | None = None) -> str:
    """Run promtool, and give what it said."""
    done = subprocess.run(
        [program("promtool"), *arguments], input=stdin, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def panels() -> list[dict[str, Any]]:
    """List the dashboard's panels."""
    found: list[dict[str, Any]] = DASHBOARD["panels"]
    return found


def expressions() -> dict[str, str]:
    """List the dashboard's queries as Grafana would send them, by panel and reference."""
    chosen = {"$job": JOB, "$instance": ".*", "$__rate_interval": f"{10 * SCRAPE_S}s"}
    made = {}
    for panel in panels():
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in chosen.items():
                expression = expression.replace(name, value)
            assert "$" not in expression, expression
            made[f"{panel['title']} {target['refId']}"] = expression
    return made


# What needs no run.


def test_the_rules_and_the_configuration_are_sound() -> None:
    """The rules, their templates and prometheus.yml are as promtool would have them."""
    said = promtool("check", "config", EXAMPLES / "prometheus/prometheus.yml")

    assert f"SUCCESS: {len(ALERTS)} rules found" in said


def test_each_alert_comes_when_it_should_and_not_before() -> None:
    """The unit tests of the rules pass, and let each of them fire."""
    promtool("test", "rules", UNIT_TESTS)
    fires = re.findall(r'alertname="(\w+)", alertstate="firing"', UNIT_TESTS.read_text(encoding="utf-8"))

    assert set(fires) == set(ALERTS)


def test_each_alert_says_what_it_means() -> None:
    """A summary, a description and one of two severities; and docs/monitoring.md has a row for it."""
    documented = re.findall(
        r"^\| `(Ccgateway\w+)`", (ROOT / "docs/monitoring.md").read_text(encoding="utf-8"), re.MULTILINE
    )

    assert documented == list(ALERTS)
    for rule in ALERTS.values():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description"}


def test_the_dashboard_is_one_to_grafana() -> None:
    """It fits the types that Grafana publishes of its dashboards."""
    source = INSTALLED / "dashboard.ts"
    source.write_text(f"{PLAIN_TYPES}{json.dumps(DASHBOARD)};\n")
    options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "esnext", "--moduleResolution", "bundler"]
    done = subprocess.run(
        [INSTALLED / "node_modules/.bin/tsc", *options, source],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert (done.returncode, done.stdout) == (0, "")


def test_panels_lie_side_by_side() -> None:
    """No two overlap, none is wider than the page, and each has a number of its own and says what it shows."""
    covered = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels())
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]

    assert len(set(covered)) == len(covered)
    assert max(x for x, _ in covered) < 24
    assert len({panel["id"] for panel in panels()}) == len(panels())
    assert all(panel["title"] and panel["description"] for panel in panels())


# A real run.


async def _busy(stage: Stage) -> None:
    """Have something of everything happen: what is counted was not there before, which is what a rate shows."""
    for kind in ("AgentState_Ready", "AgentEvent_Ringing", "AgentEvent_Talking"):
        stage.simulator.emit_sample("101", kind)
    await stage.send("101/calldata/set", {"calldata": "x", "id": "c"})
    await stage.wait("101/calldata/result", id="c")


async def _queries_answer(prometheus: Prometheus, *, fleet: bool = False) -> None:
    """Wait until each query of the dashboard has an answer that is a number, with the labels of its legend.

    Args:
        prometheus: What answers.
        fleet: Whether to ask for what a fleet's members have, or for what each program has.
    """
    legends = {
        f"{each['title']} {target['refId']}": target["legendFormat"] for each in panels() for target in each["targets"]
    }
    for name, expression in expressions().items():
        if name.startswith("Fleet: ") != fleet:
            continue

        async def answered(expression: str = expression) -> list[Any]:
            found = await prometheus.query(expression)
            return [] if any(series["value"][1] == "NaN" for series in found) else found

        for series in await prometheus.wait_for(f"{name}: {expression}", answered):
            assert set(re.findall(r"\{\{(\w+)\}\}", legends[name])) <= series["metric"].keys(), name


async def _metrics_are_known(prometheus: Prometheus, *, fleet: bool = False) -> None:
    """Every metric is in docs/monitoring.md, and rules and dashboard name none that is not there.

    Args:
        prometheus: What has them.
        fleet: Whether to look at those of a fleet's members, or at those that each program has.
    """

    def asked(name: str) -> bool:
        return name.startswith(JOB) and name.startswith(f"{JOB}_cluster_") == fleet

    names = {name for name in await prometheus.ask("label/__name__/values") if asked(name)}
    tables = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8").partition("## Metrics")[2]
    documented = {f"{JOB}_{name}" for name in re.findall(rf"`(?:{JOB}|\.\.\.)_(\w+)", tables)}
    used = re.findall(rf"{JOB}_\w+", " ".join([*expressions().values(), *(rule["expr"] for rule in ALERTS.values())]))

    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in names} == set(filter(asked, documented))
    assert set(filter(asked, used)) <= names


async def _events_show(prometheus: Prometheus) -> None:
    """Wait until what happened is more than nothing."""

    async def seen() -> bool:
        return any(float(series["value"][1]) > 0 for series in await prometheus.query(expressions()["Events A"]))

    await prometheus.wait_for("events", seen)


async def _variables_answer(prometheus: Prometheus) -> None:
    """Wait until each variable of the dashboard has its value."""
    found = {}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            wanted = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert wanted is not None
            series, label = wanted[1].replace("$job", JOB), wanted[2]
            found[variable["name"]] = await prometheus.ask(f"label/{label}/values", **{"match[]": series})

    assert found["job"] == [JOB]
    assert len(found["instance"]) == 1


async def _alert(prometheus: Prometheus, name: str) -> dict[str, Any]:
    """Wait until an alert is pending or firing; how long it is pending is what the unit tests are for."""

    async def raised() -> dict[str, Any] | None:
        return (await prometheus.alerts()).get(name)

    found: dict[str, Any] = await prometheus.wait_for(name, raised)
    assert "<" not in found["annotations"]["description"].replace("<workNo>", ""), "a template that failed says <error>"
    return found


async def _calm(prometheus: Prometheus) -> None:
    """Wait until nothing is pending or firing."""

    async def calm() -> bool:
        return not await prometheus.alerts()

    await prometheus.wait_for("no alert", calm)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    """Run a Mosquitto."""
    with mosquitto(tmp_path / "mosquitto") as made:
        yield made


async def test_a_real_run_is_seen(tmp_path: Path, broker: Broker) -> None:
    """Every query of the dashboard answers, no alert is raised while all is well, and the right one when it is not.

    The broker goes away, then the gateway, then the adapter itself.
    """
    (port,) = free_ports(1)
    address = f"{HOST}:{port}"
    async with (
        staged(tmp_path, broker, agents=("101", "102"), quiet=False) as stage,
        running(tmp_path, [address]) as prometheus,
    ):
        await _alert(prometheus, "CcgatewayAdapterDown")
        async with stage.running(http={"listen": address}, gateway={"error_interval": [1.1, 2]}):
            await stage.polling("101")
            await stage.polling("102")
            with await asyncio.to_thread(urllib.request.urlopen, f"http://{address}/metrics", timeout=10) as answer:
                promtool("check", "metrics", stdin=answer.read().decode())
            await _calm(prometheus)
            await _busy(stage)
            await _events_show(prometheus)
            await _queries_answer(prometheus)
            await _variables_answer(prometheus)
            await _metrics_are_known(prometheus)
            assert (await prometheus.query(expressions()["Agents polled A"]))[0]["value"][1] == "2"
            assert await prometheus.alerts() == {}

            broker.stop()
            away = await _alert(prometheus, "CcgatewayBrokerAway")
            assert address in away["annotations"]["description"]
            assert set(await prometheus.alerts()) == {"CcgatewayBrokerAway"}
            broker.start()
            await stage.peer.wait_subscribed()
            await _calm(prometheus)

            for work_no in ("101", "102"):
                stage.simulator.script(work_no, *[faults.status(503)] * 1000)
            await _alert(prometheus, "CcgatewayGatewayAway")
            assert set(await prometheus.alerts()) >= {"CcgatewayGatewayAway", "CcgatewayAgentsRetrying"}
        down = await _alert(prometheus, "CcgatewayAdapterDown")
        assert address in down["annotations"]["description"]

        rules = [rule for group in (await prometheus.ask("rules"))["groups"] for rule in group["rules"]]
        assert {rule["name"]: (rule["health"], rule.get("lastError")) for rule in rules} == dict.fromkeys(
            ALERTS, ("ok", None)
        )
        assert "level=error" not in prometheus.log.read_text()
        assert "level=warn" not in prometheus.log.read_text()


async def test_a_fleet_is_seen(tmp_path: Path, broker: Broker) -> None:
    """A fleet that is well raises no alert; one whose servers are away does, and each rule finds its figures."""
    addresses = [f"{HOST}:{port}" for port in free_ports(2)]
    async with (
        servers(tmp_path) as nats,
        staged(tmp_path, broker, agents=("101", "102"), quiet=False) as stage,
        contextlib.AsyncExitStack() as stack,
    ):
        for name, address in zip("ab", addresses, strict=True):
            values: dict[str, Any] = {"instance": name, "storage": {"path": f"{name}.db"}, "cluster": nats.settings()}
            await stack.enter_async_context(stage.running(http={"listen": address}, **values))
        async with running(tmp_path, addresses) as prometheus:

            async def well() -> bool:
                return not await prometheus.query(FLEET_LACKS) and bool(await prometheus.query(FLEET_SPEAKS))

            await prometheus.wait_for("all agents, and one who speaks", well)
            await _calm(prometheus)
            await _metrics_are_known(prometheus, fleet=True)
            await _queries_answer(prometheus, fleet=True)
            with await asyncio.to_thread(
                urllib.request.urlopen, f"http://{addresses[0]}/metrics", timeout=10
            ) as answer:
                promtool("check", "metrics", stdin=answer.read().decode())

            await nats.nodes[0].kill()
            away = await _alert(prometheus, "CcgatewayFleetCutOff")
            assert away["labels"]["fleet"] == "test"
            await nats.nodes[0].start()
            await _calm(prometheus)
