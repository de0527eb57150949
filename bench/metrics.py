"""What the adapter tells of its own event loop: `/metrics`, read before and after."""

import urllib.request
from dataclasses import dataclass
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from bench.chaos.parts import free_port
from bench.support import HOST

_TIMEOUT_S = 30.0


def listen(config: Path) -> int:
    """Have a configuration's adapter listen; give the port."""
    port = free_port()
    values = yaml.load(config.read_text(), Loader=yaml.CSafeLoader)
    values["http"] = {"listen": f"{HOST}:{port}"}
    config.write_text(yaml.dump(values, Dumper=yaml.CSafeDumper))
    return port


@dataclass(frozen=True, slots=True)
class Delays:
    """A histogram of the event loop's delay.

    Attributes:
        within: For each bound in seconds, infinity last, how many delays did not exceed it.
    """

    within: dict[float, int]

    @property
    def count(self) -> int:
        """Count all delays."""
        return self.within[float("inf")]

    def since(self, before: "Delays") -> "Delays":
        """Leave out what was there before."""
        return Delays({bound_s: count - before.within[bound_s] for bound_s, count in self.within.items()})

    def __add__(self, other: "Delays") -> "Delays":
        return Delays({bound_s: count + other.within[bound_s] for bound_s, count in self.within.items()})

    def over(self, bound_s: float) -> int:
        """Count the delays over a bound."""
        return self.count - self.within[bound_s]

    def quantile(self, share: float) -> float:
        """Give the least bound, in seconds, that a share of all delays does not exceed."""
        return min(bound_s for bound_s, count in self.within.items() if count >= share * self.count)


def delays(port: int) -> Delays:
    """Read the histogram as it is now."""
    samples = _read(port, "ccgateway2mqtt_event_loop_delay_seconds")
    return Delays({float(each.labels["le"]): int(each.value) for each in samples if "le" in each.labels})


def waiting(port: int) -> int:
    """Read how many messages wait for the broker."""
    (sample,) = _read(port, "ccgateway2mqtt_outbox_entries")
    return int(sample.value)


def _read(port: int, name: str) -> list[Sample]:
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=_TIMEOUT_S) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    return next(family.samples for family in families if family.name == name)
