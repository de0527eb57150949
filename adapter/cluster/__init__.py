"""A fleet: the same program several times, sharing one list of agents through NATS JetStream.

```
membership (lease) -> shares -> fleet (claim, release) -> pollers -> journal (replicated outbox) -> publisher -> broker
```

Beside the way from answer to topic: loaded only where the configuration has a section `cluster`, and nothing on the
way knows of it. The hard parts, agreement and replication, are JetStream's.

Rules of this package: time alone keeps polls of two owners apart (`lease`); compare-and-set alone keeps their writing
apart (`journal`); which agent is whose share is computed, never agreed on (`shares`).
"""

from adapter.errors import StartError

try:
    from adapter.cluster.joining import Member, join
except ModuleNotFoundError as err:
    package = (err.name or "").partition(".")[0]
    if package not in ("nats", "cryptography"):
        raise
    reason = f"cluster: {package} is not installed: pip install 'ccgateway2mqtt[cluster]'"
    raise StartError(reason, exit_code=2) from err

__all__ = ["Member", "join"]
