"""A simulated CC-Gateway over real HTTPS: for tests, for the demo, and for anybody without a gateway.

```
 serve (command line), day, scenario       what happens to the agents
                 |
         server.Simulator                  control and records, in the same process
                 |
 polling     sessions     listener         one request each; connections
    |           |
  rules  agent  answers                    what is forbidden; one agent's session and queue; bodies
                 |
  wire   faults   records                  HTTP and its troubles; values
```

It imports nothing of the adapter's, so that a mistake in there cannot hide itself here.
"""

from adapter.simulator import faults
from adapter.simulator.agent import Event, Settings, SimAgent
from adapter.simulator.certificates import SimulatorError
from adapter.simulator.faults import Fault
from adapter.simulator.records import Call, PauseStatistics, Poll, Violation
from adapter.simulator.samples import SAMPLES, sample
from adapter.simulator.server import Simulator

__all__ = [
    "SAMPLES",
    "Call",
    "Event",
    "Fault",
    "PauseStatistics",
    "Poll",
    "Settings",
    "SimAgent",
    "Simulator",
    "SimulatorError",
    "Violation",
    "faults",
    "sample",
]
