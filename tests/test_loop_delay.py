"""The loop delay: the running program tells how long whatever came would have waited."""

import asyncio
import time
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from adapter.loop_delay import PERIOD_S, LoopDelay
from tests.broker_support import HOST, Broker, free_ports
from tests.stage_support import staged

BLOCKED_S = 0.5
LATE_S = 0.1


async def _late(port: int) -> float:
    """Fetch how many delays exceeded `LATE_S`."""
    with await asyncio.to_thread(urllib.request.urlopen, f"http://{HOST}:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    (delay,) = [family for family in families if family.name == "ccgateway2mqtt_event_loop_delay_seconds"]
    counts = {each.labels["le"]: each.value for each in delay.samples if each.name.endswith("_bucket")}
    return counts["+Inf"] - counts[str(LATE_S)]


async def test_a_blocked_loop_shows_in_the_metrics(tmp_path: Path, shared_broker: Broker) -> None:
    """Each moment that would have waited counts, and not one for the whole time."""
    (port,) = free_ports(1)
    async with staged(tmp_path, shared_broker) as stage, stage.running(http={"listen": f"{HOST}:{port}"}):
        await stage.polling("101")
        before = await _late(port)
        time.sleep(BLOCKED_S)  # noqa: ASYNC251 - this is what is to be seen

        assert await _late(port) - before >= (BLOCKED_S - LATE_S) / PERIOD_S - 1


async def test_a_loop_that_is_left_alone_is_measured_no_more() -> None:
    """The timer goes with the context: a program that stops is not kept from it."""
    with LoopDelay() as delay:
        await asyncio.sleep(PERIOD_S)
    before = list(delay.buckets())
    await asyncio.sleep(2 * PERIOD_S)

    assert list(delay.buckets()) == before
