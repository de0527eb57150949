"""The broker port: MQTT 5 and 3.1.1, over TCP, TLS and websockets, with paho on our own event loop.

```
broker       opens connections in the protocol that the broker speaks; what others import
connection   one connection, used once
message      what goes over it
paho_loop    paho driven by the event loop
gathered     between paho and its socket
packets      PUBLISH and PUBACK, which go by paho
```
"""

from adapter.mqtt.broker import (
    Connection,
    Dialer,
    Message,
    ProtocolName,
    ProtocolRefusedError,
    Received,
    Refusal,
    SubscriptionRefusedError,
    read_retained,
    tls_context,
)

__all__ = [
    "Connection",
    "Dialer",
    "Message",
    "ProtocolName",
    "ProtocolRefusedError",
    "Received",
    "Refusal",
    "SubscriptionRefusedError",
    "read_retained",
    "tls_context",
]
