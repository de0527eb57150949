"""The HTTP listener: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever watches processes, and the wall.

Beside the way from answer to topic: off unless `http.listen` is set, and only then are aiohttp and
prometheus-client imported.
"""

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import get_args

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from adapter import __version__, wall
from adapter.bridge import Bridge, resident_bytes
from adapter.config import HttpConfig
from adapter.errors import StartError, StorageError
from adapter.loop_delay import LoopDelay
from adapter.metrics import Counters
from adapter.payloads import SessionPhase
from adapter.role import Figures
from adapter.store.outbox import Outbox

_WALL = "/wall/"

_log = logging.getLogger(__name__)

_COUNTERS = {
    "polls": "Polls begun.",
    "poll_errors": "Polls that brought no readable 200 answer.",
    "lost_answers": "Polls whose answer may have held an event and did not arrive whole.",
    "unreadable": "200 answers that could not be read.",
    "events": "Events stored.",
    "publishes": "Messages that the broker acknowledged.",
    "commands": "Commands taken off the broker.",
    "dropped_commands": "Commands beyond the limit per second and agent.",
    "broker_connections": "Connections to the broker that were made.",
}


class Exporter:
    """Gives the program's figures in Prometheus' form; none has a label per agent, or a large centre would drown it.

    Args:
        limit_bytes: How large the database may become.
        connected: Says whether there is a connection to the broker.
        others: Measures what there is to tell of others like us.
    """

    def __init__(  # noqa: PLR0913 - what it tells of
        self,
        counters: Counters,
        outbox: Outbox,
        bridge: Bridge,
        loop_delay: LoopDelay,
        *,
        limit_bytes: int,
        connected: Callable[[], bool],
        others: Callable[[], Figures],
    ) -> None:
        self._counters = counters
        self._outbox = outbox
        self._bridge = bridge
        self._loop_delay = loop_delay
        self._limit_bytes = limit_bytes
        self._connected = connected
        self._others = others
        self._started_at = time.time()
        self._oldest_s = 0.0
        self._size_bytes = 0

    async def measure(self) -> None:
        """Measure what `collect` cannot, since it is not asynchronous; what cannot be read stays as it was."""
        with suppress(StorageError):
            self._oldest_s, self._size_bytes = await self._outbox.measure()

    @property
    def ready(self) -> bool:
        """Whether the broker is connected and the outbox can be written."""
        return self._connected() and self._outbox.writable

    def collect(self) -> Iterator[Metric]:
        """Give all figures; called by prometheus-client."""
        for name, text in _COUNTERS.items():
            yield CounterMetricFamily(f"ccgateway2mqtt_{name}", text, value=getattr(self._counters, name))
        yield CounterMetricFamily("ccgateway2mqtt_cpu_seconds", "CPU time of the process.", value=time.process_time())
        gauges = {
            "outbox_entries": ("Events and results that wait for the broker.", float(self._outbox.depth)),
            "outbox_oldest_seconds": ("Age of the oldest of them.", self._oldest_s),
            "outbox_bytes": ("Size of the database and its write-ahead log.", float(self._size_bytes)),
            "outbox_limit_bytes": ("How large they may become.", float(self._limit_bytes)),
            "outbox_writable": ("1 while events can be stored.", float(self._outbox.writable)),
            "events_at_risk": ("Events in memory alone, since storage is full.", float(self._outbox.at_risk)),
            "broker_connected": ("1 while connected to the broker.", float(self._connected())),
            "start_time_seconds": ("When this run began, in Unix time.", self._started_at),
            "resident_memory_bytes": ("Memory of the process.", float(resident_bytes())),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"ccgateway2mqtt_{name}", text, value=value)
        others = self._others()
        for name, (text, value) in others.values.items():
            kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            family = kind(f"ccgateway2mqtt_{name}", text, labels=["fleet"])
            family.add_metric([others.fleet], value)
            yield family
        agents = GaugeMetricFamily("ccgateway2mqtt_agents", "Agents by phase of their session.", labels=["phase"])
        phases = self._bridge.phases()
        for phase in get_args(SessionPhase):  # those with no agent too: what is not there, no alert can compare
            agents.add_metric([phase], phases.get(phase, 0))
        yield agents
        yield InfoMetricFamily("ccgateway2mqtt", "What runs here.", value={"version": __version__})
        yield HistogramMetricFamily(
            "ccgateway2mqtt_event_loop_delay_seconds",
            "How long what came at a random moment waited for the event loop.",
            buckets=[(bound, float(count)) for bound, count in self._loop_delay.buckets()],
            sum_value=self._loop_delay.sum_s,
        )


def _is_our_trouble(record: logging.LogRecord) -> bool:
    """Leave out what somebody sends who does not speak HTTP: a scanner must not fill the log."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


@asynccontextmanager
async def listen(config: HttpConfig, exporter: Exporter, topic_prefix: str) -> AsyncIterator[int]:
    """Serve while the context lasts; give the port.

    Args:
        config: Where, and what.
        exporter: Gives the figures.
        topic_prefix: `mqtt.topic_prefix`, which the wall page is told. It is told no log-in.

    Raises:
        StartError: The address cannot be listened on.
    """
    registry = CollectorRegistry()
    registry.register(exporter)

    async def metrics(_: web.Request) -> web.Response:
        await exporter.measure()
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def healthz(_: web.Request) -> web.Response:
        # Whoever gets this answer has seen the loop turn.
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        ready = exporter.ready
        return web.Response(text="ready\n" if ready else "not ready\n", status=200 if ready else 503)

    logging.getLogger("aiohttp.server").addFilter(_is_our_trouble)
    application = web.Application()
    application.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)])
    if config.wall:
        settings = wall.Settings(broker=config.wall_broker, prefix=topic_prefix, ask=True)
        application.add_routes(wall.routes(settings, at=_WALL))
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, config.host, config.port)
        try:
            await site.start()
        except OSError as error:
            reason = f"http.listen: {config.host}:{config.port}: {error.strerror or error}"
            raise StartError(reason, exit_code=1) from error
        port = runner.addresses[0][1]
        if config.wall:
            host = f"[{config.host}]" if ":" in config.host else config.host
            _log.info("wall: http://%s:%d%s", host, port, _WALL)
        yield port
    finally:
        await runner.cleanup()
