"""The real Prometheus, as a process that runs with examples/prometheus/, and its HTTP API to ask it with.

Source:
    https://prometheus.io/docs/prometheus/latest/querying/api/
"""

import asyncio
import contextlib
import shutil
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.broker_support import HOST, START_TRIES, free_ports

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
RULES = EXAMPLES / "prometheus/alerts.yml"
SCRAPE_S = 1
"""A quarter of a minute, which the example says, is long for a test."""
DEADLINE_S = 60.0
_ASK_AGAIN_S = 0.2


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A Prometheus that runs.

    Attributes:
        log: What it has said so far.
    """

    client: httpx.AsyncClient
    log: Path

    async def ask(self, path: str, **parameters: str) -> Any:  # noqa: ANN401 - any JSON
        """Ask its API, and give the `data` of the answer."""
        answer = await self.client.get(f"/api/v1/{path}", params=parameters)
        assert answer.is_success, f"{path} {parameters}: {answer.text}"
        return answer.json()["data"]

    async def query(self, expression: str) -> list[Any]:
        """Evaluate an expression as of now: a list of series, each with `metric` and `value`."""
        result: list[Any] = (await self.ask("query", query=expression))["result"]
        return result

    async def alerts(self) -> dict[str, dict[str, Any]]:
        """Give what is pending or firing, by name."""
        return {alert["labels"]["alertname"]: alert for alert in (await self.ask("alerts"))["alerts"]}

    async def wait_for(self, what: str, asked: Callable[[], Any]) -> Any:  # noqa: ANN401 - what was asked for
        """Ask until there is an answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DEADLINE_S):
                while not (found := await asked()):  # noqa: ASYNC110 - it tells nobody when it has scraped
                    await asyncio.sleep(_ASK_AGAIN_S)
                return found
        raise TimeoutError(f"{what}: not seen within {DEADLINE_S} s; {self.log.read_text()[-2000:]}")


def program(name: str) -> str:
    """Find a program of Debian's package prometheus."""
    found = shutil.which(name)
    assert found, "make test-observability installs Prometheus"
    return found


def write(directory: Path, targets: list[str]) -> Path:
    """Write the example's configuration, with other targets and a shorter interval."""
    values = yaml.safe_load((EXAMPLES / "prometheus/prometheus.yml").read_text(encoding="utf-8"))
    values["global"] = dict.fromkeys(values["global"], f"{SCRAPE_S}s")
    values["rule_files"] = [str(RULES.parent / name) for name in values["rule_files"]]
    (job,) = values["scrape_configs"]
    job["static_configs"] = [{"targets": targets}]
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(values))
    return path


@contextlib.asynccontextmanager
async def running(directory: Path, targets: list[str]) -> AsyncIterator[Prometheus]:
    """Run Prometheus while the context lasts, on another port where somebody took the first."""
    configuration, log = write(directory, targets), directory / "log"
    for _ in range(START_TRIES):
        address = f"{HOST}:{free_ports(1)[0]}"
        async with (
            _process(configuration, address, log) as process,
            httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as client,
        ):
            if await _ready(client, process):
                yield Prometheus(client, log)
                return
    raise ChildProcessError(log.read_text())


@contextlib.asynccontextmanager
async def _process(configuration: Path, address: str, log: Path) -> AsyncIterator[Process]:
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            program("prometheus"),
            f"--config.file={configuration}",
            f"--storage.tsdb.path={configuration.parent / 'data'}",
            f"--web.listen-address={address}",
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _ready(client: httpx.AsyncClient, process: Process) -> bool:
    async with asyncio.timeout(DEADLINE_S):
        while process.returncode is None:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get("/-/ready")).is_success:
                    return True
            await asyncio.sleep(_ASK_AGAIN_S)
    return False
