"""What a fleet has on the servers: its names, and how it is made."""

import nats.js.errors
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, KeyValueConfig, StreamConfig
from nats.js.kv import KeyValue

from adapter.cluster.answers import NONE_HERE, asked
from adapter.config import ClusterConfig
from adapter.errors import StartError

_FORGOTTEN_S = 600.0
"""After how long a lease that nobody struck out goes by itself: the fleet was away as a whole."""
_COMMANDS_S = 3600.0
"""How long commands and their results are kept (C4)."""
_REPEATS_S = 120.0
"""How long the servers remember ids, by which they know a repeated message."""


class Layout:
    """What one fleet has there.

    Attributes:
        root: What all its subjects begin with.
        members: The bucket with the leases.
        agents: The stream with the journals.
        commands: The bucket with the commands.
    """

    def __init__(self, config: ClusterConfig) -> None:
        self.root = f"ccgateway2mqtt.{config.name}"
        self.members = f"ccgateway2mqtt_{config.name}_members"
        self.agents = f"ccgateway2mqtt_{config.name}_agents"
        self.commands = f"ccgateway2mqtt_{config.name}_commands"
        self._config = config

    async def make(self, jetstream: JetStreamContext) -> tuple[KeyValue, KeyValue]:
        """Make what is not there yet; give the buckets of members and of commands.

        Raises:
            StartError: The servers cannot hold it.
            ClusterUnavailableError: It is not known whether all of it is there.
        """
        replicas = self._config.replicas
        journals = StreamConfig(
            name=self.agents,
            description="Agents of ccgateway2mqtt: sessions, and events that are not published yet",
            subjects=[f"{self.root}.agent.*", f"{self.root}.late.*"],
            num_replicas=replicas,
            allow_rollup_hdrs=True,
            discard=DiscardPolicy.NEW,
            duplicate_window=_REPEATS_S,
        )
        members = KeyValueConfig(
            bucket=self.members,
            description="Members of a fleet of ccgateway2mqtt",
            ttl=_FORGOTTEN_S,
            replicas=replicas,
            direct=True,
        )
        commands = KeyValueConfig(
            bucket=self.commands,
            description="Commands of a fleet of ccgateway2mqtt, and their results",
            ttl=_COMMANDS_S,
            replicas=replicas,
        )
        try:
            await asked(jetstream.add_stream(journals))
            return (
                await asked(jetstream.create_key_value(members)),
                await asked(jetstream.create_key_value(commands)),
            )
        except nats.js.errors.APIError as err:
            what = f"cluster.replicas is {replicas}"
            hint = what if err.err_code == NONE_HERE else f"{what}; nats stream edit changes what is there"
            reason = f"cluster: {self._config.name} cannot be kept there: {err.description}; {hint}"
            raise StartError(reason, exit_code=1) from err
