"""Between a database that is all that a program has, and the journals of a fleet: nothing is lost on the way.

```
database of a program alone --- moving_in: whoever starts with it as a member ---> journals, nobody's
                            <-- moving_out: `cluster leave`, or `run` alone ------
```

Here is what both ways have in common. Rules of both:
1. What moves is deleted where it was when it is stored where it goes; done again after an end in between, it goes on.
2. `MEMBER` stands in a database whose agents are in journals: from the end of the one way to the end of the other.
3. An agent's journal that is there already is right about GUID and `seq`. What waited for the broker goes there as what
   came late does, with the same id, and a copy of the database is left for a person.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from adapter.errors import ClusterUnavailableError
from adapter.outage import Outage

_T = TypeVar("_T")

FLEET = "fleet"
"""Under which a member's database remembers whose member's it is."""
LEFT = "left"
"""Under which a database remembers the fleet whose journals it has, until these are deleted."""
_AGAIN_S = 0.2


async def insist(ask: Callable[[], Awaitable[_T]]) -> _T:
    """Ask until there is an answer."""
    outage = Outage("cluster")
    while True:
        try:
            answer = await ask()
        except ClusterUnavailableError as error:
            outage.begins("moving", str(error))
            await asyncio.sleep(_AGAIN_S)
        else:
            outage.is_over()
            return answer
