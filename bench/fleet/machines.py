"""Machines with addresses of their own on one switch, as network namespaces; the ways between them can be cut.

```
m0, m1, ... n0, n1, ...  (namespaces)  --veth--  switch  (the benchmark's own namespace, at HUB)
```

Rule of this file: nothing outside of the benchmark's own namespaces is touched, and all of it goes with their last
process.

Source:
    RFC 2544, appendix C.2.2: 198.18.0.0/15 is set aside for tests of networks, so that it is nobody's address.
"""

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from bench.support import BenchError

HUB = "198.18.0.1"
"""Where the gateway and the broker are."""
_FIRST = 10
_INSIDE = "CCGATEWAY2MQTT_BENCH_INSIDE"


def enter() -> None:
    """Run this program again in namespaces of its own, unless it is there already; as root, or by a user namespace.

    Raises:
        BenchError: Neither is allowed.
    """
    if os.environ.get(_INSIDE):
        _prepare()
        return
    unshare = ["unshare", "--net", "--mount", "--propagation", "private"]
    ways = [unshare] if os.geteuid() == 0 else []
    ways.append([*unshare, "--map-root-user"])
    for way in ways:
        if subprocess.run([*way, "ip", "link"], check=False, capture_output=True).returncode == 0:
            os.environ[_INSIDE] = "1"
            sys.stdout.flush()
            os.execvp(way[0], [*way, sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell is wanted
    raise BenchError("cannot make a network: run as root, or allow user namespaces")


def _prepare() -> None:
    _do("mount", "-t", "tmpfs", "tmpfs", "/run")  # where the names of namespaces and the lock of iptables lie
    _do("ip", "link", "set", "lo", "up")
    _do("ip", "link", "add", "switch", "type", "bridge")
    _do("ip", "address", "add", f"{HUB}/24", "dev", "switch")
    _do("ip", "link", "set", "switch", "up")


def _do(*words: str) -> None:
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"failed: {' '.join(words)}: {done.stderr.strip()}")


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine.

    Attributes:
        name: Its name.
        address: Its address.
    """

    name: str
    address: str

    @property
    def prefix(self) -> list[str]:
        """What a command begins with to run there."""
        return ["nsenter", f"--net=/run/netns/{self.name}", "--"]

    def cut(self, addresses: Iterable[str], *, outwards: bool = True) -> None:
        """Drop what comes from some addresses, and what goes there, unless only answers are to be lost."""
        for address in addresses:
            _do(*self.prefix, "iptables", "-A", "INPUT", "-s", address, "-j", "DROP")
            if outwards:
                _do(*self.prefix, "iptables", "-A", "OUTPUT", "-d", address, "-j", "DROP")

    def heal(self) -> None:
        """Let everything pass again."""
        _do(*self.prefix, "iptables", "-F")


def machines(names: Iterable[str]) -> list[Machine]:
    """Make machines.

    Raises:
        BenchError: They could not be made.
    """
    made = [Machine(name, f"198.18.0.{place}") for place, name in enumerate(names, _FIRST)]
    for machine in made:
        cable = f"to-{machine.name}"
        _do("ip", "netns", "add", machine.name)
        _do("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", machine.name)
        _do("ip", "link", "set", cable, "master", "switch", "up")
        _do("ip", "-netns", machine.name, "address", "add", f"{machine.address}/24", "dev", "eth0")
        for interface in ("lo", "eth0"):
            _do("ip", "-netns", machine.name, "link", "set", interface, "up")
    return made
