"""`check --online`: looks at gateway, broker and machine from outside, one line for each, with what to do about it.

```
finding      one line
certificate  how long it is good; what to do about one that is refused
gateway, broker, cluster, host   the looks
```

Nothing of it is on the way from answer to topic, and nothing is changed by it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable

from adapter.config import Config, MqttConfig
from adapter.doctor.broker import look_at_broker
from adapter.doctor.finding import Finding
from adapter.doctor.gateway import look_at_gateway
from adapter.doctor.host import look_at_host
from adapter.errors import StartError

__all__ = ["Finding", "examine", "summary"]


async def examine(config: Config, mqtt: MqttConfig, tell: Callable[[str], None]) -> list[Finding]:
    """Look at everything that the adapter needs; what was seen is told as soon as it is known.

    Args:
        config: The configuration.
        mqtt: The broker, with the user to log in as.
        tell: Takes a line for each.
    """
    loop = asyncio.get_running_loop()
    looks = (
        lambda: look_at_gateway(config.gateway),
        lambda: look_at_broker(config, mqtt),
        lambda: _look_at_cluster(config),
        lambda: loop.run_in_executor(None, look_at_host, len(config.agents), config.storage),
    )
    findings: list[Finding] = []
    for look in looks:
        for finding in await look():
            findings.append(finding)
            tell(str(finding))
    return findings


async def _look_at_cluster(config: Config) -> list[Finding]:
    if config.cluster is None:
        return []
    try:
        from adapter.doctor.cluster import look_at_cluster  # noqa: PLC0415 - it needs the extra
    except StartError as error:
        return [Finding("failed", "cluster", str(error).removeprefix("cluster: "))]
    return await look_at_cluster(config, config.cluster)


def summary(findings: list[Finding]) -> str:
    """Say on one line what came out."""
    counts = Counter(finding.verdict for finding in findings)
    if counts["failed"]:
        return f"{counts['failed']} of {len(findings)} checks failed"
    warnings = {0: "all well", 1: "1 warning"}.get(counts["warning"], f"{counts['warning']} warnings")
    return f"{len(findings)} checks, {warnings}"
