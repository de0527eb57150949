"""The image, built as the Dockerfile says and run as compose.yaml has it run: nothing may be written, nobody is root.

```
buildah build  ->  image  ->  bwrap: read-only root, /data, /tmp; setpriv: the image's user, no capability  ->  adapter
                                         simulator, mosquitto: outside, beyond the container's network  <---------+
```

There is no container engine in this: buildah takes the Dockerfile's steps in a chroot, and bubblewrap and setpriv make
the sandbox out of what the image says of itself (user, environment, entry point, health check, stop signal), with a
network of its own (`bench.network`). What an engine does on top (seccomp, cgroups) is not tried. Needs root. Where the
registry of the base image cannot be reached, a Debian with the same Python stands in for it: that is said, and is
built once.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from bench.network import INSIDE, OUTSIDE, network
from bench.support import HOST, BenchError, Program, listen, mosquitto, python, wait_until

ROOT = Path(__file__).parent.parent
IMAGE = "localhost/ccgateway2mqtt:check"
_STAND_IN = ("trixie", "python3,python3-venv,python3-pip,ca-certificates")
"""The Debian release whose Python is that of the base image, and what the image's steps use of it."""
_TRUST = Path("/etc/ssl/certs")
_PULL_S, _WAIT_S = 120, 30.0
GRACE_S = 30.0
"""What compose.yaml and the unit give a stop (D7)."""
CAPABILITIES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
_WRITABLE = {"/data", "/tmp"}  # noqa: S108 - names inside the container
_PROGRAMS = ("buildah", "bwrap", "setpriv", "debootstrap", "ip", "nsenter")
_TRIES = ("/x", "/etc/passwd", "/config/config.yaml", "/opt/ccgateway2mqtt/x", "/usr/bin/x", "/var/x", "/proc/sys/x")


def buildah(*words: str, directory: Path, timeout_s: float | None = None) -> str:
    """Run buildah on a storage of ours in `directory`; give what it prints.

    Raises:
        BenchError: It failed.
    """
    stores = ["--root", f"{directory}/storage", "--runroot", f"{directory}/run", "--storage-driver", "vfs"]
    done = subprocess.run(
        ["buildah", *stores, *words],
        env=os.environ | {"BUILDAH_ISOLATION": "chroot"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode:
        raise BenchError(f"buildah {words[0]} ended with {done.returncode}")
    return done.stdout.strip()


def base(directory: Path) -> str:
    """See that the base image is in our storage; say what it is."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    base = next(line.split()[1] for line in lines if line.startswith("FROM "))
    if f"docker.io/library/{base}" not in buildah("images", "--format", "{{.Name}}:{{.Tag}}", directory=directory):
        with contextlib.suppress(BenchError, subprocess.TimeoutExpired):
            buildah("pull", "--quiet", f"docker.io/library/{base}", directory=directory, timeout_s=_PULL_S)
            return base
        _stand_in(base, directory)
    container = buildah("from", "--pull-never", f"docker.io/library/{base}", directory=directory)
    release = (Path(buildah("mount", container, directory=directory)) / "etc/debian_version").read_text().strip()
    buildah("rm", container, directory=directory)
    return f"{base} (Debian {release})"


def _stand_in(base: str, directory: Path) -> None:
    release, packages = _STAND_IN
    print(f"{base} cannot be pulled: a Debian {release} stands in for it; that takes some minutes, once", flush=True)
    with tempfile.TemporaryDirectory(dir=directory) as root:
        command = ["debootstrap", "--variant=minbase", f"--include={packages}", release, root]
        if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
            raise BenchError("debootstrap failed")
        container = buildah("from", "scratch", directory=directory)
        buildah("copy", "--quiet", container, root, "/", directory=directory)
        buildah("commit", "--quiet", "--rm", container, f"docker.io/library/{base}", directory=directory)


def build(directory: Path) -> None:
    """Take the Dockerfile's steps, with this machine's trust and package index, if it has others than usual."""
    options = ["--format", "docker", "--layers=false", "--pull-never", "--quiet", "--tag", IMAGE]
    if _TRUST.is_dir():
        options += ["--volume", f"{_TRUST}:{_TRUST}:ro"]
    if "PIP_INDEX_URL" in os.environ:
        options += ["--build-arg", "PIP_INDEX_URL"]
    buildah("build", *options, str(ROOT), directory=directory)


class Image:
    """The image, mounted, and the sandbox around it."""

    def __init__(self, root: Path, config: dict[str, Any], data: Path, configuration: Path, net: str) -> None:
        self.config = config
        user, _, group = config["User"].partition(":")
        self.user = int(user)
        os.chown(data, self.user, int(group))
        binds = [
            part
            for entry in sorted(root.iterdir())
            if entry.name not in {"dev", "proc", "sys", "tmp", "data", "config"}
            for part in (
                ("--symlink", str(entry.readlink()), f"/{entry.name}")
                if entry.is_symlink()
                else ("--ro-bind", str(entry), f"/{entry.name}")
            )
        ]
        environment = [part for pair in config["Env"] for part in ("--setenv", *pair.split("=", 1))]
        self._sandbox = [
            *("nsenter", f"--net={net}", "--"),
            *(
                "bwrap",
                "--unshare-pid",
                "--unshare-ipc",
                "--unshare-uts",
                "--as-pid-1",
                "--die-with-parent",
                "--clearenv",
            ),
            *(*binds, "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"),  # noqa: S108 - as above
            *("--bind", str(data), next(iter(config["Volumes"])), "--ro-bind", str(configuration), "/config"),
            *("--remount-ro", "/", *environment, "--chdir", config["WorkingDir"], "--"),
            *("setpriv", "--reuid", user, "--regid", group, "--clear-groups", "--no-new-privs"),
            *("--inh-caps", "-all", "--ambient-caps", "-all", "--bounding-set", "-all", "--"),
        ]

    def command(self, *words: str) -> list[str]:
        """Write out a command inside the sandbox."""
        return [*self._sandbox, *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside the sandbox."""
        return subprocess.run(self.command(*words), capture_output=True, text=True, check=False, timeout=_WAIT_S)


@contextlib.contextmanager
def _mounted(directory: Path, data: Path, configuration: Path, net: str) -> Iterator[Image]:
    inspected = json.loads(buildah("inspect", "--type", "image", IMAGE, directory=directory))
    container = buildah("from", "--pull-never", IMAGE, directory=directory)
    try:
        root = Path(buildah("mount", container, directory=directory))
        yield Image(root, inspected["Docker"]["config"], data, configuration, net)
    finally:
        buildah("rm", container, directory=directory)


def _adapter(sandbox: int) -> psutil.Process | None:
    """Find the adapter among the processes below the sandbox: what setpriv has become."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(sandbox).children(recursive=True):
            if process.cmdline()[1:2] == ["/opt/ccgateway2mqtt/bin/ccgateway2mqtt"]:
                return process
    return None


def status(process: psutil.Process) -> dict[str, str]:
    """Read what the kernel says of a process: users, capabilities, filters.

    Source: proc(5), /proc/pid/status.
    """
    lines = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def writable_mounts(process: psutil.Process) -> set[str]:
    """List where something is mounted that may be written, devices and /proc aside.

    Source: proc(5), /proc/pid/mountinfo: the fifth field is the place, the sixth its options.
    """
    lines = [line.split() for line in Path(f"/proc/{process.pid}/mountinfo").read_text(encoding="utf-8").splitlines()]
    places = {line[4] for line in lines if "rw" in line[5].split(",")}
    return {place for place in places if place.split("/")[1] not in {"dev", "proc"}}


def require(what: str, *, holds: bool) -> None:
    """Say that something is so.

    Raises:
        BenchError: It is not.
    """
    if not holds:
        raise BenchError(f"not so: {what}")
    print(f"- {what}", flush=True)


def configuration(directory: Path, gateway: dict[str, Any], port: int, storage: str, host: str = HOST) -> None:
    """Write the files that the adapter is given.

    Args:
        directory: Where; made if it is not there.
        gateway: What the simulator said of itself.
        port: The broker's.
        storage: `storage.path`.
        host: The broker's address.
    """
    directory.mkdir(exist_ok=True)
    shutil.copy(gateway["ca_file"], directory / "gateway-ca.pem")
    agents = [{"work_no": agent["workNo"], "guid": agent["guid"]} for agent in gateway["agents"]]
    config = {
        "gateway": {"url": gateway["url"], "ca_file": "gateway-ca.pem", "hold": 1, "timeout": 4},
        "mqtt": {"url": f"mqtt://{host}:{port}"},
        "agents": agents,
        "storage": {"path": storage},
    }
    (directory / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def _look_at(image: Image, port: int, log: Path) -> None:
    """Run the adapter in the sandbox, look at it from outside, and stop it as an engine does."""
    words = [*image.config["Entrypoint"], *image.config["Cmd"]]
    with Program("adapter", image.command(*words), log) as sandbox:
        event = json.loads(listen(port, "agents/+/event", OUTSIDE) or "{}")
        sandbox.check()
        require(f"an event came through: {event.get('eventType')}", holds="eventType" in event)
        adapter = _adapter(sandbox.pid)
        if adapter is None:
            raise BenchError("the adapter is not to be found")
        connected = f"New client connected from {INSIDE}:"
        require(f"the broker has it from {INSIDE}", holds=connected in (log.parent / "mosquitto.log").read_text())
        ours, its = (Path(f"/proc/{each}/ns/net").readlink() for each in ("self", adapter.pid))
        require("its network is its own", holds=ours != its)
        seen = status(adapter)
        require(f"it is process {seen['NSpid'].split()[-1]} in there", holds=seen["NSpid"].split()[-1] == "1")
        require(f"its user is {seen['Uid'].split()[0]}", holds=set(seen["Uid"].split()) == {str(image.user)})
        require("it has no other groups", holds=not seen["Groups"])
        require("it has no capability in any set", holds=all(int(seen[each], 16) == 0 for each in CAPABILITIES))
        require("it can get none (no_new_privs)", holds=seen["NoNewPrivs"] == "1")
        mounts = writable_mounts(adapter)
        require(f"what is mounted to be written: {', '.join(sorted(mounts))}", holds=mounts <= _WRITABLE)
        tried = "import sys\nfor name in sys.argv[1:]:\n try: open(name, 'a'); print(name)\n except OSError: pass"
        written = image.run("python3", "-c", tried, *_TRIES)
        require(f"these cannot be written: {' '.join(_TRIES)}", holds=(written.returncode, written.stdout) == (0, ""))
        health = image.run(*image.config["Healthcheck"]["Test"][1:])
        require(
            f"its health check says: {health.stderr.strip()}", holds=(health.returncode, health.stderr) == (0, "well\n")
        )
        adapter.send_signal(signal.Signals[image.config["StopSignal"]])
        wait_until(lambda: not sandbox.runs, GRACE_S, "the stop")
    require("its stop signal ends it in good order", holds="stopped: 0 messages wait" in log.read_text())
    require("the bridge is offline", holds=listen(port, "agents/bridge/availability", OUTSIDE) == "offline")
    health = image.run(*image.config["Healthcheck"]["Test"][1:])
    require(f"its health check then says: {health.stderr.strip()}", holds=health.returncode == 1)


def main() -> int:
    """Build and look; the exit code is 1 where something is not as it should be."""
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if os.geteuid() or missing:
        print(f"needs root and {', '.join(missing) or 'nothing else'}", file=sys.stderr)
        return 1
    store = ROOT / "build/container"
    store.mkdir(parents=True, exist_ok=True)
    try:
        print(f"base image: {base(store)}", flush=True)
        build(store)
        with contextlib.ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=store)))
            data = directory / "data"
            data.mkdir(mode=0o700)
            net = stack.enter_context(network())
            port = stack.enter_context(mosquitto(directory, OUTSIDE))
            scenario = ROOT / "examples/scenarios/busy.yaml"
            arguments = ["simulate", "--listen", f"{OUTSIDE}:0", "--hold", "1", "--scenario", str(scenario)]
            gateway = stack.enter_context(python("simulator", "adapter", arguments, directory)).hear()
            configuration(directory / "config", gateway, port, "/data/ccgateway2mqtt.db", OUTSIDE)
            image = stack.enter_context(_mounted(store, data, directory / "config", net))
            members = image.run("/opt/ccgateway2mqtt/bin/python3", "-c", "import adapter.cluster")
            require("what a member of a fleet needs is in it", holds=members.returncode == 0)
            _look_at(image, port, directory / "adapter.log")
            left = {path.name: path.stat() for path in data.iterdir()}
            require(
                f"on the volume: {', '.join(sorted(left))}, for its user alone",
                holds={(each.st_mode & 0o777, each.st_uid) for each in left.values()} == {(0o600, image.user)},
            )
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
