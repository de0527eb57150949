"""`run --processes N`: several members of one fleet on one machine, kept alive by the process that started them.

```
parent -+-> server: nats-server, where no section cluster names others
        +-> members 1 to N: run --member, told by a pipe what they have of their own
lock on storage.path
```

What they have lies in a directory beside `storage.path`: the members' databases, and where it is embedded the server's
store with the fleet's name and key. Rules of this package:
1. The parent has the lock on `storage.path` (D5). What a program alone left there moves into the journals first, and
   back when one is run there again (`ending`).
2. A member ends when the pipe from its parent does: whoever takes over may poll.
3. No secret stands on a command line or in an environment.
"""

from adapter.cluster.processes.ending import bring_back
from adapter.cluster.processes.members import take_orders
from adapter.cluster.processes.parent import run
from adapter.cluster.processes.server import reach

__all__ = ["bring_back", "reach", "run", "take_orders"]
