"""The end of a run: let everything come to rest, look at what is left, and gather the evidence."""

import asyncio
import json
import signal
import sqlite3
import time

from bench.chaos.evidence import Evidence, numbered_published
from bench.chaos.judge import Verdict
from bench.chaos.peers import Got, Subscriber
from bench.chaos.stage import Stage
from bench.support import BenchError

_QUIET_S = 2.0
_LOST = 10
"""Answers that are cut half way on purpose, to see them counted."""
_CUT_AFTER_BYTES = -20
_KEPT_S = 15.0
_STATES = ("event", "state", "session", "availability")


async def settle(stage: Stage, within_s: float) -> None:
    """Let no further trouble come, and wait until every event is fetched and every message acknowledged.

    Raises:
        BenchError: It does not come to rest.
    """
    stage.sender.resting = True
    await stage.gateway.order("rest")
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + within_s
    quiet_since = loop.time()
    seen = -1
    while loop.time() - quiet_since < _QUIET_S or len(stage.published) != seen:
        if loop.time() > ends_at:
            open_commands = stage.sender.unanswered
            raise BenchError(f"no rest within {within_s:.0f} s; commands without a result: {open_commands[:5]}")
        waiting = set((await stage.gateway.order("status"))["waiting"]) & set(stage.present)
        busy = waiting or stage.sender.unanswered or len(stage.published) != seen
        if busy:
            quiet_since = loop.time()
            seen = len(stage.published)
        await asyncio.sleep(_QUIET_S / 10)


async def judge_lost_answers(stage: Stage, verdict: Verdict) -> None:
    """Answers that are cut on the wire are counted by the adapter itself, in health and in the metrics."""
    agents = stage.stayed[:_LOST]
    before = await stage.metric("lost_answers_total")
    await stage.gateway.order("script", agents=agents, bytes=_CUT_AFTER_BYTES)
    counted = before
    for _ in range(100):
        counted = await stage.metric("lost_answers_total")
        if counted - before >= len(agents):
            break
        await asyncio.sleep(_QUIET_S / 10)
    if counted - before < len(agents):
        verdict.faults.append(f"{len(agents)} answers were cut, the metrics count {counted - before}")
    reports = len(stage.healths())
    stage.relay.cut()  # health is told at each connection
    await stage.wait_until(lambda: len(stage.healths()) > reports, "health")
    told = stage.healths()[-1]["lostAnswers"]
    if told < counted:
        verdict.faults.append(f"health tells of {told} lost answers, the metrics of {counted}")
    verdict.figures["answers cut on purpose at the end, counted by metrics and health"] = (
        f"{counted - before} of {len(agents)}"
    )


async def stop(stage: Stage, verdict: Verdict) -> None:
    """Stop the adapter as a service manager does; it must have said everything, and nothing that it cannot explain."""
    stage.adapter.send(signal.SIGTERM)
    code = await stage.adapter.ended()
    if code:
        verdict.faults.append(f"D7: the adapter ended with {code}: {stage.adapter.last_words()}")
    log = stage.adapter.log.read_text(errors="replace")
    if "Traceback" in log:
        verdict.faults.append(f"a traceback: {log[log.index('Traceback') :][:1000]}")


def judge_kept(stage: Stage, verdict: Verdict) -> None:
    """The broker keeps the newest value of each topic, whatever it had forgotten (D4a); the adapter's line is empty."""
    newest: dict[str, int] = {}
    for event in numbered_published(stage.published):
        newest[event.work_no] = max(newest.get(event.work_no, 0), event.seq)
    kept = {message.topic: message for message in retained(stage) if message.retained}
    wrong = []
    for work_no in stage.stayed:
        payload = {name: kept.get(f"agents/{work_no}/{name}") for name in _STATES}
        absent = [name for name, message in payload.items() if message is None]
        if absent:
            wrong.append(f"agent {work_no} without {', '.join(absent)}")
            continue
        seqs = [json.loads(message.payload)["seq"] for name in ("event", "state") if (message := payload[name])]
        availability = payload["availability"]
        if seqs != [newest.get(work_no, 0)] * 2:
            wrong.append(f"agent {work_no}: event and state have seq {seqs}, the last was {newest.get(work_no, 0)}")
        elif availability is not None and availability.payload != b"online":
            wrong.append(f"agent {work_no} is {availability.payload!r}")
    verdict.blame("D4a, retained values that are missing or old", wrong)
    with sqlite3.connect(stage.directory / "outbox.db") as database:
        (left,) = database.execute("SELECT count(*) FROM entry").fetchone()
    database.close()
    verdict.figures["left in the outbox"] = f"{left}"
    if left:
        verdict.faults.append(f"D7: {left} messages are left in the outbox")


def retained(stage: Stage) -> list[Got]:
    """Read what the broker keeps of the agents."""
    filters = [f"agents/+/{name}" for name in _STATES]
    with Subscriber(stage.broker.port, filters, client_id="looker", persistent=False) as looker:
        ends_at = time.monotonic() + _KEPT_S
        while len(looker.messages) < len(stage.present) * len(_STATES) and time.monotonic() < ends_at:
            time.sleep(_QUIET_S / 10)
        return list(looker.messages)


async def evidence(stage: Stage) -> Evidence:
    """Gather it, when the adapter has ended."""
    end = await stage.gateway.order("end")
    return Evidence(
        ledger=stage.ledger(),
        published=stage.published,
        received=stage.recorder.messages,
        commands=list(stage.sender.commands.values()),
        harms=stage.harms,
        broker_lives=stage.broker.lives,
        violations=end["violations"],
        stayed=frozenset(stage.stayed),
    )
