"""The proof: holds what was received against what was handed out, and says what is wrong.

Each function judges one promise and appends to a `Verdict`: figures for the table, and faults, of which there may be
none. The numbers are those of docs/rules.md.
"""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from adapter.publisher import WINDOW
from bench.chaos.evidence import Evidence, Numbered, numbered_published, numbered_received

_SHOWN = 5
_COMMIT_S = 10.0
"""How long the deletion of what was acknowledged may take to be on disk, on a machine that is very busy."""
_PAUSES = {"pause", "error_pause", "left_pause"}
"""What a client that was killed cannot keep: it no longer knows of its last request."""


@dataclass(slots=True)
class Verdict:
    """What was found.

    Attributes:
        figures: What stands in the table, in its order.
        faults: What must not be: the first few of each kind, with how many there are.
    """

    figures: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def blame(self, promise: str, found: Iterable[str]) -> None:
        """Note what breaks a promise."""
        every = list(found)
        if every:
            self.faults.append(f"{promise}: {len(every)}: {'; '.join(every[:_SHOWN])}")


def judge(evidence: Evidence) -> Verdict:
    """Judge a run whose line is empty."""
    verdict = Verdict()
    published = numbered_published(evidence.published)
    received = numbered_received(evidence.received)
    judge_losses(evidence, published, verdict)
    judge_numbers(evidence, published, verdict)
    judge_order(published, received, verdict)
    judge_repeats(published, verdict)
    judge_receipt(evidence, published, received, verdict)
    judge_guids(evidence, verdict)
    judge_commands(evidence, verdict)
    judge_violations(evidence, verdict)
    return verdict


def judge_losses(evidence: Evidence, published: list[Numbered], verdict: Verdict) -> None:
    """No event is missing whose agent was polled again in peace (D1, D2, P12); none was made up."""
    acked: defaultdict[tuple[str, int | None], set[str]] = defaultdict(set)
    for event in published:
        if event.acked_at is not None:
            acked[event.work_no, event.number].add(event.topic)
    taken: set[tuple[str, int]] = set()
    on_the_wire = at_the_harm = handed = 0
    missing: list[str] = []
    per_harm: Counter[tuple[str, float]] = Counter()
    for work_no, rows in evidence.by_agent().items():
        for place, row in enumerate(rows):
            if row.number is None:
                continue
            taken.add((work_no, row.number))
            handed += 1
            if acked[work_no, row.number] == {"event", "events"}:
                continue
            harm = evidence.loss_of(rows, place)
            if not row.whole:
                on_the_wire += 1
            elif harm is None or acked[work_no, row.number]:
                missing.append(f"agent {work_no} number {row.number}")
            else:
                at_the_harm += 1
                per_harm[work_no, harm.began_at] += 1
    verdict.figures |= {
        "events handed out": f"{handed:,}",
        "events acknowledged on both topics": f"{handed - on_the_wire - at_the_harm - len(missing):,}",
        "answers that the gateway saw cut, with an event": f"{on_the_wire:,}",
        "answers lost between the wire and the commit, by a kill or a cut": f"{at_the_harm:,}",
    }
    verdict.blame("D2, events lost without a cause", missing)
    verdict.blame(
        "more than one event of an agent lost by one harm", (str(key) for key, n in per_harm.items() if n > 1)
    )
    verdict.blame(
        "events that nobody handed out",
        (
            f"agent {event.work_no} number {event.number}"
            for event in published
            if event.number is not None and (event.work_no, event.number) not in taken
        ),
    )


def judge_numbers(evidence: Evidence, published: list[Numbered], verdict: Verdict) -> None:
    """An event has one `id` and one `seq` on all of its ways, and `seq` has no hole (D2)."""
    contents: dict[str, str] = {}
    ids: dict[tuple[str, int], str] = {}
    differing, twice, holes = [], [], []
    for event in published:
        if contents.setdefault(event.id, event.content) != event.content:
            differing.append(f"{event.content} and {contents[event.id]}")
        if event.number is not None and ids.setdefault((event.work_no, event.number), event.id) != event.id:
            twice.append(f"agent {event.work_no} number {event.number}")
    seqs: dict[str, int] = {}
    for event in _first(published):
        before = seqs.get(event.work_no, 0)
        # An agent that left the configuration and came back is another one.
        begins = event.seq == 1 and event.work_no not in evidence.stayed
        if event.seq != before + 1 and not begins:
            holes.append(f"agent {event.work_no} number {event.number}: {event.seq} after {before}")
        seqs[event.work_no] = event.seq
    verdict.blame("D2, repeats that differ", differing)
    verdict.blame("D2, events with two ids", twice)
    verdict.blame("D2, holes in seq", holes)


def _first(events: Iterable[Numbered]) -> list[Numbered]:
    """Give each event as it was sent for the first time."""
    found: dict[str, Numbered] = {}
    for event in events:
        found.setdefault(event.id, event)
    return list(found.values())


def judge_order(published: list[Numbered], received: list[Numbered], verdict: Verdict) -> None:
    """Order holds per agent: on each connection, and for who sees each event for the first time (D1)."""
    wrong = []
    sent: defaultdict[tuple[str, str, int], list[Numbered]] = defaultdict(list)
    for event in published:
        sent[event.work_no, event.topic, event.connection].append(event)
    for way, events in (("sent", published), ("received", received)):
        for topic in ("event", "events"):
            for event in _first(event for event in events if event.topic == topic):
                sent[event.work_no, f"{way} on {topic}", 0].append(event)
    for key, events in sent.items():
        numbers = [event.number for event in events if event.number is not None]
        # The newest event may be told again to a broker that may have forgotten it, but not behind a newer one (D4a).
        least = 0 if key[1] == "event" else 1
        pairs = itertools.pairwise(numbers)
        wrong += [f"{key}: {after} after {before}" for before, after in pairs if after - before < least]
    verdict.blame("D1, order", wrong)


def judge_repeats(published: list[Numbered], verdict: Verdict) -> None:
    """A new connection repeats at most the window in flight, and nothing whose deletion is long on disk (D3)."""
    ends: dict[int, float] = {}
    for event in published:
        ends[event.connection] = max(ends.get(event.connection, 0.0), event.at, event.acked_at or 0.0)
    before: dict[tuple[str, str], Numbered] = {}
    repeats: defaultdict[int, set[str]] = defaultdict(set)
    late, oldest_s = [], 0.0
    total, again = 0, set()
    for event in published:
        first = before.get((event.id, event.topic))
        before[event.id, event.topic] = event
        if first is None:
            continue
        if event.topic == "event":
            again.add((event.connection, event.id))
            continue
        total += 1
        repeats[event.connection].add(event.id)
        if first.acked_at is not None:
            age_s = ends[first.connection] - first.acked_at
            oldest_s = max(oldest_s, age_s)
            if age_s > _COMMIT_S:
                late.append(f"agent {event.work_no} number {event.number}: acknowledged {age_s:.1f} s before")
    # What the line repeats goes out on both topics; what goes out on the retained one alone is D4a's.
    again -= {(connection, key) for connection, keys in repeats.items() for key in keys}
    most = max((len(each) for each in repeats.values()), default=0)
    verdict.figures |= {
        "connections to the broker with events": f"{len(ends):,}",
        "events repeated": f"{total:,}",
        "most events repeated on one connection": f"{most:,} of {WINDOW} allowed",
        "newest events told again to a broker that may have forgotten them": f"{len(again):,}",
        "longest from PUBACK to the end before which it was not on disk": f"{oldest_s:.2f} s",
    }
    verdict.blame(
        "D3, more repeats than the window",
        (f"connection {key}: {len(each)}" for key, each in repeats.items() if len(each) > WINDOW),
    )
    verdict.blame("D3, repeated although long acknowledged", late)


def judge_receipt(evidence: Evidence, published: list[Numbered], received: list[Numbered], verdict: Verdict) -> None:
    """What the broker acknowledged is with the subscriber, but for what a killed broker forgot."""
    acks: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    sent = {(event.id, event.topic): event.content for event in published}
    for event in published:
        if event.acked_at is not None:
            acks[event.id, event.topic].append(event.acked_at)
    got = {(event.id, event.topic) for event in received}
    absent = acks.keys() - got
    forgotten = {key for key in absent if evidence.forgotten(acks[key])}
    other = [event.id for event in received if sent.get((event.id, event.topic)) != event.content]
    verdict.figures |= {
        "messages with events that the subscriber got": f"{len(received):,}",
        "acknowledged by a broker, then forgotten when it was killed": f"{len(forgotten):,}",
    }
    verdict.blame("acknowledged, and not with the subscriber", (f"{key[1]} {sent[key]}" for key in absent - forgotten))
    verdict.blame("received otherwise than sent", other)


def judge_guids(evidence: Evidence, verdict: Verdict) -> None:
    """The newest GUID goes with the very next request, over a restart too (P8)."""
    wrong, renewed = [], 0
    for work_no, rows in evidence.by_agent().items():
        if work_no not in evidence.stayed:
            continue  # signs in anew whenever it comes back
        known: set[str | None] = set()
        for place, (row, following) in enumerate(itertools.pairwise(rows)):
            expected = {row.new_guid or row.guid}
            known |= {row.guid, row.new_guid}
            renewed += row.new_guid is not None
            if not row.whole or evidence.loss_of(rows, place) is not None:
                expected.add(row.guid)
            # One that no poll brought is from `agentstatus`.
            if following.guid in known - expected:
                wrong.append(f"agent {work_no}: poll {place + 2} of {len(rows)}")
    verdict.figures["new GUIDs given out"] = f"{renewed:,}"
    verdict.blame("P8, not the newest GUID", wrong)


def judge_commands(evidence: Evidence, verdict: Verdict) -> None:
    """Each command has one result, however often it goes out, and no effect after it (C2, C3, C4)."""
    answers: defaultdict[str, list[tuple[float, bytes]]] = defaultdict(list)
    for message in evidence.published:
        if message.topic.endswith("/calldata/result"):
            answers[json.loads(message.payload)["id"]].append((message.at, message.payload))
    polls: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    rows_of = evidence.by_agent()
    for work_no, rows in rows_of.items():
        for place, row in enumerate(rows):
            if row.calldata is not None:
                polls[work_no, row.calldata].append(place)
    differing, unanswered, after, twice, unapplied = [], [], [], [], []
    again = 0
    statuses: Counter[str] = Counter()
    for command in evidence.commands:
        results = answers.get(command.id, [])
        if not results or not command.results:
            unanswered.append(command.id)
            continue
        if len({payload for _, payload in results} | set(command.results)) > 1:
            differing.append(command.id)
        status = json.loads(results[0][1])["status"]
        statuses[status] += 1
        rows = rows_of.get(command.work_no, [])
        places = polls[command.work_no, command.value]
        after += [command.id for place in places if rows[place].began_at > results[0][0]]
        applied = [place for place in places if rows[place].good and rows[place].whole]
        again += max(0, len(applied) - 1)
        if status == "applied" and not any(rows[place].good for place in places):
            unapplied.append(command.id)
        twice += [command.id for place in applied[:-1] if evidence.loss_of(rows, place) is None]
    verdict.figures |= {
        "commands": f"{len(evidence.commands):,} ({', '.join(f'{n:,} {word}' for word, n in statuses.most_common())})",
        "times that commands were sent": f"{sum(len(command.sent_at) for command in evidence.commands):,}",
        "results published": f"{sum(len(each) for each in answers.values()):,}",
        "commands that went again, killed or cut before their result was stored": f"{again:,}",
    }
    verdict.blame("C3, commands without a result", unanswered)
    verdict.blame("C3, results that differ", differing)
    verdict.blame("C4, executed after their result", after)
    verdict.blame("C2, executed twice without a cause", twice)
    verdict.blame("C2, applied but never sent", unapplied)


def judge_violations(evidence: Evidence, verdict: Verdict) -> None:
    """The gateway holds nothing against the adapter but pauses which a killed one cannot keep (P1 to P5)."""
    kills = [harm for harm in evidence.harms if harm.kind == "kill"]
    explained, wrong = 0, []
    for violation in evidence.violations:
        at = violation["at"]
        if violation["kind"] in _PAUSES and any(harm.began_at - 1 <= at <= harm.ended_at + _COMMIT_S for harm in kills):
            explained += 1
        else:
            wrong.append(f"{violation['kind']} of agent {violation['agent']}: {violation['text']}")
    verdict.figures["pauses cut short by a kill and a quick start"] = f"{explained:,}"
    verdict.blame("against the interface document", wrong)
