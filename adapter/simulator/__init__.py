r"""A simulated CC-Gateway over real HTTPS: for tests, for the demo, and for anybody without a gateway.

```
 serve (command line), day, scenario       what happens to the agents
                 |
         server.Simulator                  the gateway on HTTPS
       /         |        \
 polling     sessions    gateway           one request each; control and records, in the same process
    |           |          |
  rules      answers     agent             what is forbidden; bodies; one agent's session and queue
                 |
  listener, wire, faults, records          connections, HTTP and its troubles; values
```

It imports nothing of the adapter's, so that a mistake in there cannot hide itself here.
"""

from adapter.simulator import faults
from adapter.simulator.agent import Event, Settings, SimAgent
from adapter.simulator.certificates import SimulatorError
from adapter.simulator.day import Day, demo_agents
from adapter.simulator.faults import Fault
from adapter.simulator.player import Player
from adapter.simulator.records import Call, PauseStatistics, Poll, Violation
from adapter.simulator.samples import SAMPLES, sample
from adapter.simulator.scenario import Scenario, load_scenario
from adapter.simulator.serve import parse_listen, serve
from adapter.simulator.server import Simulator
from adapter.simulator.yaml_nodes import ScenarioError

__all__ = [
    "SAMPLES",
    "Call",
    "Day",
    "Event",
    "Fault",
    "PauseStatistics",
    "Player",
    "Poll",
    "Scenario",
    "ScenarioError",
    "Settings",
    "SimAgent",
    "Simulator",
    "SimulatorError",
    "Violation",
    "demo_agents",
    "faults",
    "load_scenario",
    "parse_listen",
    "sample",
    "serve",
]
