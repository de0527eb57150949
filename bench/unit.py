"""The systemd unit, run by a real systemd: what it keeps from the adapter, and how it starts, reloads and stops it.

```
the image's root + systemd  ->  systemd-nspawn  ->  examples/systemd/ccgateway2mqtt.service  ->  adapter
                                     simulator, mosquitto: outside, on the loopback  <--------------+
```

The image is that of `bench.container`, whose Debian gets a systemd; the adapter, its user and its files are put where
the unit's comment says. Needs root.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from bench.container import (
    CAPABILITIES,
    IMAGE,
    ROOT,
    base,
    build,
    buildah,
    configuration,
    require,
    status,
    writable_mounts,
)
from bench.support import BenchError, Program, listen, mosquitto, python, wait_until

_UNIT = "ccgateway2mqtt.service"
_START_S = 60.0
_MACHINE = ("systemd-nspawn", "--quiet", "--register=no", "--keep-unit")
_INSTALL = "DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends"
_ADAPTER = "/opt/ccgateway2mqtt/bin/ccgateway2mqtt"
_FOR_ALL = {"/run", "/run/lock", "/run/host/incoming", "/run/host/os-release", "/sys/fs/fuse/connections"}
"""What is mounted to be written, but for root alone (the unit's user is another)."""
_OWN = {"/tmp", "/var/tmp", "/var/lib/ccgateway2mqtt"}  # noqa: S108 - the names inside


def _inside(root: Path, script: str) -> None:
    """Run a shell script inside the tree."""
    certificates = [f"--bind-ro={trust}" for trust in ("/etc/ssl/certs",) if Path(trust).is_dir()]
    command = [*_MACHINE, *certificates, "--directory", str(root), "--pipe", "--", "sh", "-euc", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"inside the tree a step ended with {done.returncode}: {script}\n{done.stderr.strip()}")


def _tree(store: Path) -> Path:
    """Make a tree with systemd, and the adapter's environment of now."""
    root = store / "unit"
    container = buildah("from", "--pull-never", IMAGE, directory=store)
    try:
        mounted = Path(buildah("mount", container, directory=store))
        if not (root / "etc/ready").exists():
            shutil.rmtree(root, ignore_errors=True)
            subprocess.run(["cp", "--archive", str(mounted), str(root)], check=True)
            _inside(
                root,
                f"apt-get update -qq && {_INSTALL} systemd systemd-sysv",
            )
            # The image has a user of this name already, of which the unit knows nothing more.
            (root / "etc/ready").touch()
        shutil.rmtree(root / "opt/ccgateway2mqtt")
        subprocess.run(["cp", "--archive", str(mounted / "opt/ccgateway2mqtt"), str(root / "opt")], check=True)
    finally:
        buildah("rm", container, directory=store)
    shutil.rmtree(root / "var/lib/ccgateway2mqtt", ignore_errors=True)
    shutil.copy(ROOT / "examples/systemd" / _UNIT, root / "etc/systemd/system")
    _inside(root, f"systemctl enable {_UNIT} 2>/dev/null; systemctl set-default multi-user.target 2>/dev/null")
    return root


class _Machine:
    """The machine that systemd-nspawn runs, as seen from outside."""

    def __init__(self, nspawn: int) -> None:
        self._nspawn = nspawn

    def systemctl(self, *words: str) -> str:
        """Tell its systemd something; give what it answers."""
        (leader,) = psutil.Process(self._nspawn).children()
        command = ["nsenter", "--target", str(leader.pid), "--all", "systemctl", "--no-pager", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"systemctl {words[0]}: {done.stderr.strip()}")
        return done.stdout.strip()

    def adapter(self) -> psutil.Process:
        """Find the unit's main process."""
        for process in psutil.Process(self._nspawn).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.cmdline()[1:2] == [_ADAPTER]:
                    return process
        raise BenchError("the adapter does not run")


def _look_at(machine: _Machine, port: int, root: Path) -> None:
    event = listen(port, "agents/+/event")
    require("systemd has started it, and an event came through", holds="eventType" in event)
    adapter = machine.adapter()
    seen = status(adapter)
    require(f"its user is {seen['Uid'].split()[0]}, not root", holds="0" not in seen["Uid"].split())
    require("it has no capability in any set", holds=all(int(seen[each], 16) == 0 for each in CAPABILITIES))
    require("it can get none (no_new_privs)", holds=seen["NoNewPrivs"] == "1")
    require(f"its system calls are filtered ({seen['Seccomp_filters']} filters)", holds=seen["Seccomp"] == "2")
    mounts = writable_mounts(adapter) - _FOR_ALL
    require(f"what it may write: {', '.join(sorted(mounts))}", holds=mounts == _OWN)
    machine.systemctl("reload", _UNIT)
    told = ("status", _UNIT, "--lines=20", "--full")
    wait_until(lambda: "reload: 0 added" in machine.systemctl(*told), _START_S, "the reload")
    require("it reloads", holds=machine.adapter().pid == adapter.pid)
    machine.systemctl("stop", _UNIT)
    shown = machine.systemctl("show", _UNIT, "--property=Result,ExecMainStatus")
    require("it stops in good order", holds=set(shown.splitlines()) == {"Result=success", "ExecMainStatus=0"})
    require("the bridge is offline", holds=listen(port, "agents/bridge/availability") == "offline")
    left = [path.stat() for path in (root / "var/lib/ccgateway2mqtt").iterdir()]
    require("its files are its user's alone", holds={each.st_mode & 0o777 for each in left} == {0o600})


def main() -> int:
    """Build and look; the exit code is 1 where something is not as it should be."""
    missing = [name for name in ("buildah", "debootstrap", "systemd-nspawn", "nsenter") if shutil.which(name) is None]
    if os.geteuid() or missing:
        print(f"needs root and {', '.join(missing) or 'nothing else'}", file=sys.stderr)
        return 1
    store = ROOT / "build/container"
    store.mkdir(parents=True, exist_ok=True)
    try:
        print(f"base image: {base(store)}", flush=True)
        build(store)
        root = _tree(store)
        with contextlib.ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=store)))
            port = stack.enter_context(mosquitto(directory))
            arguments = ["simulate", "--hold", "1", "--scenario", str(ROOT / "examples/scenarios/busy.yaml")]
            gateway = stack.enter_context(python("simulator", "adapter", arguments, directory)).hear()
            files = root / "etc/ccgateway2mqtt"
            configuration(files, gateway, port, "/var/lib/ccgateway2mqtt/ccgateway2mqtt.db")
            _inside(root, "chgrp -R ccgateway2mqtt /etc/ccgateway2mqtt && chmod -R u=rwX,g=rX,o= /etc/ccgateway2mqtt")
            boot = [*_MACHINE, "--directory", str(root), "--boot"]
            nspawn = stack.enter_context(Program("systemd-nspawn", boot, directory / "machine.log"))
            machine = _Machine(nspawn.pid)
            _look_at(machine, port, root)
            machine.systemctl("--no-block", "poweroff")
            wait_until(lambda: not nspawn.runs, _START_S, "the machine's end")
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
