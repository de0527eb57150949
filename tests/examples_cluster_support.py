"""What the tests of the fleets in examples/ need: the files that examples/nats/README.md makes, and servers with them.

Rule of this file, as of `examples_support`: only what names a place is replaced.
"""

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nats
import nats.errors
import yaml
from cryptography import x509

from adapter.config import ClusterConfig, Config
from adapter.nats import find_program
from bench.chaos.parts import Part, free_port
from tests.cluster_support import READY_S
from tests.examples_support import EXAMPLES, find, shell_blocks

_LOOK_S = 0.05
SERVERS = 3


def make_files(path: Path, servers: Sequence[str]) -> dict[str, str]:
    """Run the commands of the servers' README in `path`; give the secrets that they made for the adapters."""
    find("openssl")
    (block,) = shell_blocks(EXAMPLES / "nats/README.md")
    environment = os.environ | {"SERVERS": " ".join(servers)}
    subprocess.run(["sh", "-c", block], cwd=path, env=environment, check=True, capture_output=True)
    secrets: dict[str, str] = yaml.safe_load((path / "cluster-secrets.yaml").read_text(encoding="utf-8"))
    return secrets


def names_in(certificate: Path) -> set[str]:
    """List the names that a certificate is for."""
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    return set(
        found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    )


def secret_names(*texts: str) -> set[str]:
    """List what configurations refer to by `!secret`."""
    return {word.strip("\"',}]") for text in texts for word in text.split("!secret ")[1:] for word in [word.split()[0]]}


def write_secrets(path: Path, secrets: Mapping[str, str]) -> None:
    """Write secrets.yaml into a directory."""
    file = path / "secrets.yaml"
    file.write_text(yaml.safe_dump(dict(secrets)), encoding="utf-8")
    file.chmod(0o600)


class Places:
    """Free ports of three servers, for members and for each other, and their directories.

    Attributes:
        clients: For members.
        routes: For each other.
        monitors: For health checks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clients = [free_port() for _ in range(SERVERS)]
        self.routes = [free_port() for _ in range(SERVERS)]
        self.monitors = [free_port() for _ in range(SERVERS)]

    @property
    def url(self) -> str:
        """What `cluster.url` says."""
        return ",".join(f"tls://localhost:{port}" for port in self.clients)


@contextlib.asynccontextmanager
async def run_servers(
    places: Places, configurations: Iterable[str], environments: Iterable[Mapping[str, str]]
) -> AsyncIterator[list[Part]]:
    """Run a server with each configuration, in an environment of its own."""
    parts: list[Part] = []
    try:
        for number, (text, environment) in enumerate(zip(configurations, environments, strict=True)):
            directory = places.path / f"server-{number}"
            directory.mkdir(exist_ok=True)
            (directory / "nats.conf").write_text(text, encoding="utf-8")
            set_ = [f"{name}={value}" for name, value in environment.items()]
            command = [shutil.which("env") or "env", *set_, str(find_program()), "-c", str(directory / "nats.conf")]
            parts.append(Part(f"server-{number}", command, places.path))
            await parts[-1].start()
        yield parts
    finally:
        for part in parts:
            await part.close()


async def ready(config: ClusterConfig, parts: Sequence[Part]) -> None:
    """Wait until JetStream has chosen who leads, asking as the adapter does: with its log-in, over TLS."""
    # Imported here: the tests of the manifests alone do without.
    from adapter.cluster.engine import connect  # noqa: PLC0415 - see above

    async with asyncio.timeout(READY_S):
        async with connect(config, "test") as engine:
            while True:
                assert all(part.runs for part in parts), [part.last_words() for part in parts if not part.runs]
                with contextlib.suppress(nats.errors.Error, OSError):
                    await engine._client.jetstream().account_info()
                    return
                await asyncio.sleep(_LOOK_S)


async def unwell(config: Config) -> list[str]:
    """List what `check --online` finds wrong with the servers."""
    from adapter.doctor.cluster import look_at_cluster  # noqa: PLC0415 - as above

    assert config.cluster is not None
    return [str(each) for each in await look_at_cluster(config, config.cluster) if each.verdict != "ok"]


async def refused(url: str, **options: Any) -> bool:  # noqa: ANN401 - nats-py's own
    """Say whether a client is turned away."""
    try:
        client = await nats.connect(url, allow_reconnect=False, connect_timeout=2, **options)
    except (nats.errors.Error, OSError):
        return True
    await client.close()
    return False
