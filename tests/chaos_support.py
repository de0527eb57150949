"""Polls of one agent, as the gateway of a harm writes them down."""

from typing import Any

from bench.chaos.gateway import Row


def row_of(place: int, *, lasts_s: float, **changes: Any) -> Row:  # noqa: ANN401 - any of its fields
    """Make the poll of agent 101 that is handed out event `place`, half a second after the one before."""
    began_at = 100.0 + place / 2
    row = Row(
        work_no="101",
        began_at=began_at,
        ended_at=began_at + lasts_s,
        number=place,
        whole=True,
        good=True,
        guid="guid",
        new_guid=None,
        calldata=None,
        connection=1,
    )
    return row._replace(**changes)
