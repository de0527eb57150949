"""Home Assistant: what its MQTT discovery is told of the agents and of the adapter. Beside the way, loaded on demand.

`devices` makes the messages, `announcing` keeps them right at the broker.
"""

from adapter.home_assistant.announcing import Announcing

__all__ = ["Announcing"]
