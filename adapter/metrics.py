"""The counters of this process, plain integers: counting must cost nothing on the way from answer to topic.

`health` publishes them, and the HTTP listener exports them for Prometheus; neither is known here.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """What happened since the start.

    Attributes:
        polls: Polls begun.
        poll_errors: Polls that brought no readable 200 answer.
        lost_answers: Polls whose answer may have held an event and did not arrive whole.
        unreadable: 200 answers that could not be read (P14).
        events: Events stored.
        publishes: Messages that the broker acknowledged.
        commands: Commands taken off the broker.
        dropped_commands: Commands beyond the limit of C5.
        broker_connections: Connections to the broker that were made.
    """

    polls: int = 0
    poll_errors: int = 0
    lost_answers: int = 0
    unreadable: int = 0
    events: int = 0
    publishes: int = 0
    commands: int = 0
    dropped_commands: int = 0
    broker_connections: int = 0
