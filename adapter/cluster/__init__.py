"""A fleet: the same program several times, sharing one list of agents through NATS JetStream.

```
membership (lease) -> shares -> fleet (claim, release) -> pollers -> journal (replicated outbox) -> publisher -> broker
```

Beside the way from answer to topic: loaded only where the configuration has a section `cluster`, and nothing on the
way knows of it. The hard parts, agreement and replication, are JetStream's.

Rules of this package: time alone keeps polls of two owners apart (`lease`); compare-and-set alone keeps their writing
apart (`journal`); which agent is whose share is computed, never agreed on (`shares`).
"""

from adapter.cluster.joining import Joined, join

__all__ = ["Joined", "join"]
