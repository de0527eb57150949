"""A fleet as who runs it meets it: what has to be installed, `cluster status` and `cluster drain` (issue 6)."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.adapter_support import write
from tests.cli_support import COMMAND
from tests.config_support import KEY

NOBODY = {
    "gateway": {"url": "https://127.0.0.1:9/agentgateway"},
    "mqtt": {"url": "mqtt://127.0.0.1:9"},
    "agents": [{"work_no": "101", "guid": "g"}],
    "storage": {"path": "no-such-directory/storage.db"},
}
MEMBER = NOBODY | {"cluster": {"url": "nats://127.0.0.1:9", "name": "prod", "key": KEY}}


# The extra.


@pytest.mark.parametrize("package", ["nats", "cryptography"])
def test_a_missing_extra_says_what_to_install(tmp_path: Path, package: str) -> None:
    """Point 1: without nats-py or cryptography a member ends at once with exit code 2, and says how to get them."""
    write(tmp_path, MEMBER)
    hide = f"import sys; sys.modules['{package}'] = None"
    done = subprocess.run(
        [sys.executable, "-c", f"{hide}; from adapter.cli import main; main(['run', '-c', 'config.yaml'])"],
        capture_output=True,
        check=False,
        text=True,
        cwd=tmp_path,
    )

    assert done.stderr == f"cluster: {package} is not installed: pip install 'ccgateway2mqtt[cluster]'\n"
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [(["--help"], 0), (["check", "-c", "member.yaml"], 0), (["run", "-c", "alone.yaml"], 1)],
)
def test_what_a_cluster_needs_is_imported_by_members_alone(
    tmp_path: Path, arguments: list[str], exit_code: int
) -> None:
    """Point 1: without the section nothing of nats-py or cryptography is loaded, nor by help, nor by `check`."""
    write(tmp_path, NOBODY, "alone.yaml")
    write(tmp_path, MEMBER, "member.yaml")
    command = [sys.executable, "-X", "importtime", *COMMAND[1:], *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}

    assert done.returncode == exit_code, lines[-1]
    assert "adapter.cli" in imported
    assert ("adapter.app" in imported) == (arguments[0] == "run")
    assert {name.partition(".")[0] for name in imported} & {"nats", "nkeys", "cryptography"} == set()
    assert "adapter.cluster" not in imported
