"""The proof: holds what came to the subscriber against what the gateway handed out, and the polls against each other.

Each function judges one promise of a fleet and appends to a `Verdict`: figures for the table, and faults, of which
there may be none.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.chaos.evidence import Evidence, Numbered, numbered_received
from bench.chaos.gateway import Row
from bench.chaos.judge import Verdict
from bench.chaos.peers import Got
from bench.chaos.stage import Harm
from bench.fleet.stage import Step

_PAUSES = {"pause", "error_pause", "left_pause"}
"""What a member cannot keep that takes over from one which could not say when its last poll was over."""
_DISTURBED_S = 1.0
_AFTER_S = 1.0
"""How long after it was let go on a process may be busy with what it had begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was written down.

    Attributes:
        rows: The gateway's ledger.
        received: What the subscriber got.
        retained: What the broker keeps at the end.
        violations: What the gateway holds against the members.
        steps: What was done.
        hold_s: How long the gateway holds a poll.
    """

    rows: Sequence[Row]
    received: Sequence[Got]
    retained: Sequence[Got]
    violations: Sequence[dict[str, object]]
    steps: Sequence[Step]
    hold_s: float

    def by_agent(self) -> dict[str, list[Row]]:
        """Give each agent's polls, in the order in which they began."""
        found: defaultdict[str, list[Row]] = defaultdict(list)
        for row in sorted(self.rows, key=lambda row: row.began_at):
            found[row.work_no].append(row)
        return dict(found)

    def explained(self, kinds: Iterable[str], at: float) -> bool:
        """Say whether something of a kind was going on, or had been a moment before."""
        wanted = set(kinds)
        return any(
            step.kind in wanted and step.began_at <= at <= step.ended_at + self.hold_s + _AFTER_S for step in self.steps
        )


@dataclass(slots=True)
class Seen:
    """What was seen of a step.

    Attributes:
        step: The step.
        gaps: For how long each agent that moved went unpolled at most.
        overlaps: For how long two polls of an agent overlapped.
        repeats: How many events came again.
    """

    step: Step
    gaps: list[float]
    overlaps: list[float]
    repeats: int = 0

    def row(self) -> list[str]:
        """Give its line of the table."""
        step = self.step
        gaps = sorted(self.gaps)
        times = [f"{gaps[int(share * (len(gaps) - 1))]:.2f}" if gaps else "" for share in (0.5, 0.99, 1.0)]
        bound = "" if step.within_s is None else f"{step.within_s:g}"
        overlaps = f"{len(self.overlaps)} ({max(self.overlaps):.2f})" if self.overlaps else "0"
        return [step.name, f"{len(gaps)}", *times, bound, overlaps, f"{self.repeats}", " ".join(step.struck_out)]


HEAD = ["what was done", "agents moved", "unpolled p50", "p99", "longest", "bound", "overlaps", "repeats", "struck out"]


def judge(proof: Proof) -> tuple[Verdict, list[Seen]]:
    """Judge a run that has come to rest."""
    verdict = Verdict()
    received = numbered_received(proof.received)
    steps = [Seen(step, [], []) for step in proof.steps]
    judge_leases(steps, verdict)
    judge_overlaps(proof, steps, verdict)
    judge_gaps(proof, steps, verdict)
    judge_losses(proof, received, verdict)
    judge_numbers(received, verdict)
    judge_order(proof, received, verdict)
    judge_repeats(received, steps, verdict)
    judge_retained(proof, received, verdict)
    judge_violations(proof, verdict)
    return verdict, steps


def _step_at(steps: list[Seen], at: float) -> Seen:
    return next((seen for seen in reversed(steps) if seen.step.began_at <= at), steps[0])


def judge_leases(steps: list[Seen], verdict: Verdict) -> None:
    """Nobody loses its lease but who was killed, stopped or cut off for longer than it lasts (point 2)."""
    for seen in steps:
        lost = sorted(set(seen.step.struck_out) - seen.step.victims)
        verdict.blame(f"{seen.step.name}: struck out without a cause", lost)


def judge_overlaps(proof: Proof, steps: list[Seen], verdict: Verdict) -> None:
    """No two polls of an agent overlap, but where a process was stopped or cut off at one wrong moment (point 3)."""
    wrong = []
    for work_no, rows in proof.by_agent().items():
        last = rows[0]
        for row in rows[1:]:
            if row.began_at < last.ended_at:
                overlap_s = min(last.ended_at, row.ended_at) - row.began_at
                _step_at(steps, row.began_at).overlaps.append(overlap_s)
                # A gateway may go on holding a poll whose client was killed.
                held_on = not last.whole and proof.explained({"kill"}, row.began_at)
                if not held_on and not proof.explained({"stop"}, row.began_at):
                    wrong.append(f"agent {work_no}: {overlap_s:.3f} s at {row.began_at:.1f}")
            last = max(last, row, key=lambda each: each.ended_at)
    verdict.figures["polls"] = f"{len(proof.rows):,}"
    verdict.figures["polls that overlapped another of their agent"] = f"{sum(len(seen.overlaps) for seen in steps)}"
    verdict.blame("point 3, polls overlap", wrong)


def judge_gaps(proof: Proof, steps: list[Seen], verdict: Verdict) -> None:
    """An agent that moves is polled again in time (points 3 and 4)."""
    begins = [seen.step.began_at for seen in steps]
    ends = [*begins[1:], float("inf")]
    for rows in proof.by_agent().values():
        longest: defaultdict[int, float] = defaultdict(float)
        moved: set[int] = set()
        before, until = rows[0], rows[0].ended_at
        for row in rows[1:]:
            # A gap is of the step that has most of it: an agent may have been in a pause when something was done.
            shares = [min(row.began_at, end) - max(until, begin) for begin, end in zip(begins, ends, strict=True)]
            step = max(range(len(steps)), key=shares.__getitem__)
            longest[step] = max(longest[step], row.began_at - until)
            if row.connection != before.connection:
                moved.add(step)
            before, until = row, max(until, row.ended_at)
        for step, longest_s in longest.items():
            if step in moved or longest_s > _DISTURBED_S:
                steps[step].gaps.append(longest_s)
    for seen in steps:
        gaps = sorted(seen.gaps)
        p99, within_s = gaps[int(0.99 * (len(gaps) - 1))] if gaps else 0.0, seen.step.within_s
        if within_s is not None and p99 > within_s:
            verdict.faults.append(f"{seen.step.name}: unpolled for {p99:.2f} s, p99, {within_s:g} are promised")


def judge_losses(proof: Proof, received: list[Numbered], verdict: Verdict) -> None:
    """What was handed out whole is with the subscriber, but what a kill took with it before it was stored (point 5)."""
    kinds = {"kill", "isolate"}
    harms = [
        Harm(kind="kill", began_at=step.began_at, ended_at=step.ended_at) for step in proof.steps if step.kind in kinds
    ]
    evidence = Evidence(
        ledger=proof.rows,
        published=(),
        received=proof.received,
        commands=(),
        harms=harms,
        broker_lives=(),
        violations=(),
        stayed=frozenset(),
    )
    got: defaultdict[tuple[str, int | None], set[str]] = defaultdict(set)
    for event in received:
        got[event.work_no, event.number].add(event.topic)
    taken: set[tuple[str, int]] = set()
    missing, partly = [], []
    cut = 0
    explained: Counter[tuple[str, float]] = Counter()
    for work_no, rows in proof.by_agent().items():
        for place, row in enumerate(rows):
            if row.number is None:
                continue
            taken.add((work_no, row.number))
            topics = got[work_no, row.number]
            if topics == {"event", "events"}:
                continue
            harm = evidence.loss_of(rows, place)
            if topics:
                partly.append(f"agent {work_no} number {row.number}: only on {topics}")
            elif not row.whole:
                cut += 1
            elif harm is None:
                missing.append(f"agent {work_no} number {row.number} at {row.ended_at:.2f}")
            else:
                explained[work_no, harm.began_at] += 1
    verdict.figures |= {
        "events handed out": f"{len(taken):,}",
        "...that the gateway saw cut": f"{cut:,}",
        "...that a killed or isolated member had not stored yet": f"{explained.total():,}",
        "...that came to the subscriber": f"{len(taken) - cut - explained.total() - len(missing):,}",
    }
    verdict.blame("point 5, events lost without a cause", missing)
    verdict.blame("point 5, events on one topic alone", partly)
    verdict.blame("more than one event of an agent lost by one harm", (str(k) for k, n in explained.items() if n > 1))
    made_up = [f"{e.work_no}/{e.number}" for e in received if e.number and (e.work_no, e.number) not in taken]
    verdict.blame("events that nobody handed out", made_up)


def judge_numbers(received: list[Numbered], verdict: Verdict) -> None:
    """One event has one `id`, one `seq` and one content (point 5)."""
    ids: dict[tuple[str, int], str] = {}
    seqs: dict[tuple[str, int], Numbered] = {}
    two_ids, differing, twice = [], [], []
    for event in received:
        first = seqs.setdefault((event.work_no, event.seq), event)
        if first.id != event.id:
            twice.append(f"agent {event.work_no} seq {event.seq}: {first.content} and {event.content}")
        elif first.content != event.content:
            differing.append(f"{first.content} and {event.content}")
        if event.number is not None and ids.setdefault((event.work_no, event.number), event.id) != event.id:
            two_ids.append(f"agent {event.work_no} number {event.number}")
    verdict.blame("point 5, one seq for two events", twice)
    verdict.blame("point 5, one event with two ids", two_ids)
    verdict.blame("point 5, repeats that differ", differing)


def judge_order(proof: Proof, received: list[Numbered], verdict: Verdict) -> None:
    """`seq` has no hole, and is in order on each topic for who sees each event for the first time (point 5)."""
    order: defaultdict[tuple[str, str], dict[int, int | None]] = defaultdict(dict)
    for event in received:
        order[event.work_no, event.topic].setdefault(event.seq, event.number)
    ended = {(row.work_no, row.number): row.ended_at for row in proof.rows if row.number is not None}
    holes, disordered, late = [], [], 0
    for (work_no, topic), found in order.items():
        came = list(found)
        absent = sorted(set(range(1, max(came) + 1)) - set(came))
        if absent:
            holes.append(f"agent {work_no} on {topic}: {absent[:5]}")
        wrong = [f"seq {after} after {before}" for before, after in itertools.pairwise(came) if after < before]
        for before, after in itertools.pairwise(found[seq] for seq in sorted(found) if found[seq] is not None):
            if before is None or after is None or after > before:
                continue
            # It came to a former owner, and was taken in by the next one.
            if proof.explained({"stop", "isolate"}, ended.get((work_no, after), 0.0)):
                late += topic == "events"
            else:
                wrong.append(f"number {after} after {before}")
        disordered += [f"agent {work_no} on {topic}: {each}" for each in wrong]
    verdict.figures["...that came late to a former owner"] = f"{late:,}"
    verdict.blame("point 5, holes in seq", holes)
    verdict.blame("point 5, order", disordered)


def judge_repeats(received: list[Numbered], steps: list[Seen], verdict: Verdict) -> None:
    """Count what came again, where it did."""
    before: set[tuple[str, str]] = set()
    for event in received:
        if event.topic == "events" and (event.id, event.topic) in before:
            _step_at(steps, event.at).repeats += 1
        before.add((event.id, event.topic))
    verdict.figures["events that came again, with the same id and seq"] = f"{sum(seen.repeats for seen in steps):,}"


def judge_retained(proof: Proof, received: list[Numbered], verdict: Verdict) -> None:
    """The broker keeps the newest event of each agent; what a former owner had on its way may come before it again."""
    stale: dict[str, float] = {}
    lasted_s: list[float] = []
    newest: dict[str, int] = {}
    for event in received:
        if event.topic == "event" and event.seq < newest.get(event.work_no, 0):
            stale.setdefault(event.work_no, event.at)
        elif event.topic == "event" and event.work_no in stale:
            lasted_s.append(event.at - stale.pop(event.work_no))
        if event.topic == "event":
            newest[event.work_no] = max(newest.get(event.work_no, 0), event.seq)
    text = f"{len(lasted_s) + len(stale):,}" + (f", for {max(lasted_s):.1f} s at most" if lasted_s else "")
    verdict.figures["times that the broker kept an older event for a while"] = text
    newest = {}
    for event in received:
        newest[event.work_no] = max(newest.get(event.work_no, 0), event.seq)
    kept = {
        event.work_no: event.seq
        for event in numbered_received(
            Got(message.at, message.topic, message.payload, retained=False) for message in proof.retained
        )
    }
    wrong = [f"agent {work_no}: {kept.get(work_no)}, not {seq}" for work_no, seq in newest.items()]
    verdict.blame(
        "the retained event is not the newest",
        (text for text, (work_no, seq) in zip(wrong, newest.items(), strict=True) if kept.get(work_no) != seq),
    )


def judge_violations(proof: Proof, verdict: Verdict) -> None:
    """The gateway holds nothing against the members but what a kill, a stop or a cut explains."""
    explained: Counter[str] = Counter()
    wrong = []
    for violation in proof.violations:
        at, kind = violation["at"], str(violation["kind"])
        kinds = {"kill", "isolate", "stop", "other"} if kind in _PAUSES else {"stop"}
        if isinstance(at, float) and proof.explained(kinds, at):
            explained[kind] += 1
        else:
            wrong.append(f"{kind} of agent {violation['agent']}: {violation['text']} at {at}")
    verdict.figures["violations that a harm explains"] = ", ".join(f"{n} {k}" for k, n in explained.items()) or "none"
    verdict.blame("against the interface document", wrong)
