"""A network of a container's own, with one cable to this machine, as an engine's bridge would give it.

```
the container's network, at INSIDE  <-- a pair of virtual interfaces -->  this machine, at OUTSIDE
```

It has a loopback of its own, and no route to anywhere else: what listens on this machine's loopback is out of reach.

Source:
    RFC 2544, appendix C.2.2: 198.18.0.0/15 is set aside for tests of networks, so that it is nobody's address.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator

from bench.support import BenchError

OUTSIDE, INSIDE = "198.18.0.1", "198.18.0.2"


def _ip(*words: str) -> None:
    if subprocess.run(["ip", *words], check=False).returncode:
        raise BenchError(f"failed: ip {' '.join(words)}")


@contextlib.contextmanager
def network() -> Iterator[str]:
    """Make such a network while the context lasts; gives the file that nsenter takes to enter it. Needs root.

    Raises:
        BenchError: It could not be made.
    """
    name = f"ccg{os.getpid()}"  # an interface's name has 15 characters at most
    cable = f"{name}-out"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("address", "add", f"{OUTSIDE}/30", "dev", cable)
        _ip("link", "set", cable, "up")
        _ip("-netns", name, "address", "add", f"{INSIDE}/30", "dev", "eth0")
        for interface in ("lo", "eth0"):
            _ip("-netns", name, "link", "set", interface, "up")
        yield f"/run/netns/{name}"
    finally:
        _ip("netns", "delete", name)  # and the cable with it
