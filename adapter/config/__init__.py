"""The configuration: a YAML file, validated as a whole, as frozen values that travel through the program.

```
nodes, source   YAML with the place of every value, secrets, includes
rules, words    what a member can be, for voluptuous
grammar         every key, its rule, its default          -> schema: the same as JSON Schema
check           a file held against the grammar, in words
settings        the values that travel                    -> report: what may be shown, what a reload changes
```
"""

from adapter.config.settings import (
    FLEET,
    AgentConfig,
    Backoff,
    BrokerAddress,
    ClusterConfig,
    CommandsConfig,
    Config,
    GatewayConfig,
    HomeAssistantConfig,
    HttpConfig,
    LogConfig,
    MqttConfig,
    PrivacyConfig,
    SignInConfig,
    StorageConfig,
    broker_at,
    load,
)

__all__ = [
    "FLEET",
    "AgentConfig",
    "Backoff",
    "BrokerAddress",
    "ClusterConfig",
    "CommandsConfig",
    "Config",
    "GatewayConfig",
    "HomeAssistantConfig",
    "HttpConfig",
    "LogConfig",
    "MqttConfig",
    "PrivacyConfig",
    "SignInConfig",
    "StorageConfig",
    "broker_at",
    "load",
]
