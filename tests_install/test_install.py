"""What people install: each built here, put into an empty environment of its own by that one's pip, and run there."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from adapter import __version__, contracts

ROOT = Path(__file__).parent.parent
NAME = f"ccgateway2mqtt-{__version__}"
WHEEL, SDIST = f"{NAME}-py3-none-any.whl", f"{NAME}.tar.gz"


def environment() -> dict[str, str]:
    """Give a user's environment, with our versions: what points at this checkout is not in it.

    Source:
        pip's documentation, "Configuration": each option is also a variable; a pip that does not know one ignores it.
    """
    pinned = str(ROOT / "constraints.txt")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
    return kept | {"PIP_CONSTRAINT": pinned, "PIP_BUILD_CONSTRAINT": pinned, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def run(*command: str | Path, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, to its good end."""
    done = subprocess.run(command, cwd=directory, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def files(*options: str) -> set[str]:
    """List the files of this checkout that git knows, or would take."""
    return set(run("git", "ls-files", "-z", *options, directory=ROOT).stdout.rstrip("\0").split("\0"))


def in_wheel(names: Iterable[str]) -> set[str]:
    """Say which files of the checkout are in the wheel, and where: the package, and schemas/ inside it."""
    return {name for name in names if name.startswith("adapter/")} | {
        f"adapter/{name}" for name in names if name.startswith("schemas/")
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build both, and give the directory that they are in."""
    directory = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "hatchling", "build", "--directory", directory, directory=ROOT)
    assert {path.name for path in directory.iterdir()} == {WHEEL, SDIST}
    return directory


@pytest.fixture(scope="module", params=[WHEEL, SDIST], ids=["wheel", "sdist"])
def installed(request: pytest.FixtureRequest, built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install one of them, as it is and without extras, into an empty environment; give the environment."""
    place = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", place, directory=built)
    run(place / "bin/pip", "install", "--quiet", built / request.param, directory=built)
    return place


def test_the_sdist_is_the_checkout(built: Path) -> None:
    """All that git knows is in the sdist, tests, licence and schemas included, and nothing that it would not take."""
    with tarfile.open(built / SDIST) as archive:
        held = {member.name.removeprefix(f"{NAME}/") for member in archive if member.isfile()}

    assert files() - held == set()
    assert held - files("--cached", "--others", "--exclude-standard") == {"PKG-INFO"}


def test_the_wheel_is_the_package(built: Path) -> None:
    """In the wheel are the package with the schemas, the licence and pip's own files, and nothing else."""
    with zipfile.ZipFile(built / WHEEL) as archive:
        held = set(archive.namelist())
    about = {name for name in held if name.startswith(f"{NAME}.dist-info/")}

    assert in_wheel(files()) - held == set()
    assert held - about - in_wheel(files("--cached", "--others", "--exclude-standard")) == set()
    assert {name.partition("/")[2] for name in about} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }


def test_what_is_installed_is_what_the_wheel_holds(installed: Path, built: Path) -> None:
    """From the sdist comes the same package as from the wheel, and pip finds nothing missing beside it."""
    (package,) = installed.glob("lib/python*/site-packages/adapter")
    with zipfile.ZipFile(built / WHEEL) as archive:
        held = {name for name in archive.namelist() if name.startswith("adapter/")}

    paths = {path.relative_to(package.parent) for path in package.rglob("*") if path.is_file()}
    assert {str(path) for path in paths if "__pycache__" not in path.parts} == held
    run(installed / "bin/pip", "check", directory=installed)


def test_it_runs(installed: Path, tmp_path: Path) -> None:
    """The command is there, and finds its code, its grammar and its schemas in the environment alone."""
    command = installed / "bin/ccgateway2mqtt"
    for name, copy in (("minimal.yaml", "config.yaml"), ("secrets.yaml.example", "secrets.yaml")):
        shutil.copy(ROOT / "examples" / name, tmp_path / copy)
    (tmp_path / "secrets.yaml").chmod(0o600)

    assert run(command, "--version", directory=tmp_path).stdout == f"ccgateway2mqtt, version {__version__}\n"
    assert run(command, "schema", directory=tmp_path).stdout.splitlines() == contracts.names()
    for name in ("config", "asyncapi"):
        assert run(command, "schema", name, directory=tmp_path).stdout == contracts.read(name)
    assert run(command, "check", "-c", "config.yaml", directory=tmp_path).stderr == "config.yaml: valid, 1 agents\n"
    assert "_ccgateway2mqtt_completion" in run(command, "completion", "bash", directory=tmp_path).stdout
