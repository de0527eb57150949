"""Write configurations and read back what is told of them."""

import base64
from pathlib import Path

from adapter.config import Config, load
from adapter.errors import ConfigError

GATEWAY = "gateway: {url: https://gateway.example/x}\n"
AGENTS = 'agents: [{work_no: "101", guid: abc}]\n'
SOUND = GATEWAY + AGENTS
KEY = base64.b64encode(bytes(range(32))).decode()
"""A `cluster.key`."""
CLUSTER = f"cluster: {{url: 'nats://a,nats://b', name: prod, key: {KEY}}}\n"


def loaded(text: str, *, name: str = "config.yaml") -> Config:
    """Load `text` as a file in the current directory."""
    Path(name).write_text(text, encoding="utf-8")
    return load(Path(name))


def told(text: str | bytes, *, name: str = "config.yaml") -> list[str]:
    """List the lines that a person reads of a configuration; none where it is sound."""
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        load(Path(name))
    except ConfigError as err:
        return str(err).split("\n")
    return []


def write_secrets(text: str, *, directory: str = ".") -> None:
    """Write a file of secrets as it should be: for its owner alone."""
    path = Path(directory, "secrets.yaml")
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
