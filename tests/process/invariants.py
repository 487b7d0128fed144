"""Which of the invariants hold, from what clients wrote down and what the store holds once a server was stopped.

I1 an acknowledged run is there and has ended; a refused one is not there.  I2 one end, which stays.  I3 histories are
paths of the declared machine.  I4 a program starts once per attempt, and never beside an earlier one.  I5 one key, one
run.  I6 what streams carried is what is stored.  I7 who resumes sees everything once, then the end.  I8 nothing is
left.  I12 every saga has ended.  I13 every message was consumed.  I15 a cancelled run ends within 5 s.

A program shows its starts by itself: it prints ``begin NONCE NS`` first of all, and ``at NS`` now and then, with the
time of the clock that all boxes share.

The check reads the database file and JSON; it shares nothing with what it checks.
"""

import hashlib
import json
import re
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from tests.process.histories import Entry, of

CANCELLED_WITHIN_S = 5.0
ATTEMPTS = 3

TERMINAL = frozenset(f"execution.{status}" for status in ("completed", "failed", "timeout", "cancelled"))
NEXT = {
    "": {"execution.requested"},
    "execution.requested": {"execution.started", "execution.cancelled"},
    "execution.started": {"execution.restarted", "execution.cancel_requested", *TERMINAL},
    "execution.restarted": {"execution.started", "execution.cancelled"},
    "execution.cancel_requested": TERMINAL,
    **{ended: {"result.stored"} for ended in TERMINAL},
    "result.stored": set[str](),
}
GROUPS = {
    "saga-orchestrator": ("execution.events.v1",),
    "result-processor": ("execution.events.v1",),
    "k8s-worker": ("execution.events.v1", "pod.commands.v1"),
}
CANCEL_REQUESTED = "execution_cancel_requested"
STREAMS = ("stdout", "stderr")


class Violation(NamedTuple):
    """What does not hold."""

    invariant: str
    what: str


class TapeRow(NamedTuple):
    """One record as it is stored."""

    seq: int
    stream: str
    data: bytes


class LogRow(NamedTuple):
    """One message as it is stored."""

    offset: int
    topic: str
    key: str
    type: str
    body: dict[str, Any]


@dataclass
class Stored:
    """What the store holds; documents as JSON has them."""

    executions: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    sagas: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    tapes: dict[tuple[str, int], list[TapeRow]] = field(default_factory=dict[tuple[str, int], list[TapeRow]])
    log: list[LogRow] = field(default_factory=list[LogRow])
    offsets: dict[str, int] = field(default_factory=dict[str, int])

    def events(self, execution_id: str) -> list[LogRow]:
        """Return the events of an execution as they were published."""
        return [row for row in self.log if row.key == execution_id and row.topic == "execution.events.v1"]

    def output(self, execution_id: str, attempt: int, stream: str) -> bytes:
        """Return what one attempt has printed."""
        return b"".join(row.data for row in self.tapes.get((execution_id, attempt), ()) if row.stream == stream)


def read(database: Path) -> Stored:
    """Read the store of a server that was stopped."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:

        def rows(query: str) -> list[tuple[Any, ...]]:
            return connection.execute(query).fetchall()

        stored = Stored(
            executions={key: json.loads(doc) for key, doc in rows("select id, doc from execution")},
            sagas={key: json.loads(doc) for key, doc in rows("select execution_id, doc from saga")},
            log=[
                LogRow(offset, topic, key, name, json.loads(body))
                for offset, topic, key, name, body in rows(
                    "select offset, topic, key, type, body from log order by offset"
                )
            ],
            offsets=dict(rows("select consumer_group, offset from consumer_offset")),
        )
        tape = "select execution_id, attempt, seq, stream, data from tape order by execution_id, attempt, seq"
        for execution_id, attempt, seq, stream, data in rows(tape):
            stored.tapes.setdefault((execution_id, attempt), []).append(TapeRow(seq, STREAMS[stream], data))
        return stored


def check(entries: Sequence[Entry], stored: Stored, left: Sequence[str] = ()) -> list[Violation]:
    """Return what does not hold; `left` names what was found of processes, groups, mounts and files."""
    found: list[Violation] = []
    for name, broken in (
        ("I1", _lost(entries, stored)),
        ("I2", _ends(entries, stored)),
        ("I3", _paths(stored)),
        ("I4", _starts(stored)),
        ("I5", _keys(entries)),
        ("I6", _bytes(entries, stored)),
        ("I7", _resumed(entries)),
        ("I8", iter(left)),
        ("I12", _sagas(stored)),
        ("I13", _messages(stored)),
        ("I15", _cancelled(entries, stored)),
    ):
        found += [Violation(name, what) for what in broken]
    return found


def _types(document: dict[str, Any]) -> list[str]:
    return [step["type"] for step in document["history"]]


def _lost(entries: Sequence[Entry], stored: Stored) -> Iterator[str]:
    accepted = {entry["execution_id"]: entry["key"] for entry in of(entries, "submit", "ok")}
    for execution_id in accepted:
        document = stored.executions.get(execution_id)
        if document is None:
            yield f"{execution_id} was acknowledged and is not there"
        elif not TERMINAL.intersection(_types(document)) or "result.stored" not in _types(document):
            yield f"{execution_id} has not ended: {document['status']}, {_types(document)}"
    maybe = {entry["key"] for entry in of(entries, "submit", "info")} | set(accepted.values())
    by_key = Counter(
        document["idempotency"]["key"] for document in stored.executions.values() if document.get("idempotency")
    )
    for key in {entry["key"] for entry in of(entries, "submit", "fail")} - maybe:
        if by_key[key]:
            yield f"{key} was refused and is there"


def _ends(entries: Sequence[Entry], stored: Stored) -> Iterator[str]:
    for execution_id, document in stored.executions.items():
        ends = [name for name in _types(document) if name in TERMINAL]
        published = [row.type for row in stored.events(execution_id) if row.type in TERMINAL]
        if len(ends) > 1 or len(set(published)) > 1 or (ends and set(published) - set(ends)):
            yield f"{execution_id} ended {ends}, published {published}"
        lost = (document.get("outcome") or {}).get("reason") == "output_lost"
        if ends and ends[0] != f"execution.{document['status']}" and not lost:
            yield f"{execution_id} ended with {ends[0]} and is {document['status']}"
    for (client, execution_id), frames in _streams(entries).items():
        ends = {frame["type"] for frame in frames if frame["type"].replace("_", ".", 1) in TERMINAL}
        if len(ends) > 1:
            yield f"{client} saw {execution_id} end {sorted(ends)}"


def _paths(stored: Stored) -> Iterator[str]:
    for execution_id, document in stored.executions.items():
        before = ""
        for number, step in enumerate(document["history"], 1):
            if step["version"] != number or step["type"] not in NEXT[before]:
                yield f"{execution_id}: {step['type']} as version {step['version']}, number {number} after {before!r}"
                break
            before = step["type"]
        published = [(row.type, row.body["version"]) for row in stored.events(execution_id)]
        wanted = [(step["type"], step["version"]) for step in document["history"]]
        if published != wanted:
            yield f"{execution_id} published {published}, and its history is {wanted}"


def _starts(stored: Stored) -> Iterator[str]:
    for execution_id, document in stored.executions.items():
        starts = _types(document).count("execution.started")
        recorded = sorted(attempt for key, attempt in stored.tapes if key == execution_id)
        if starts > ATTEMPTS or (recorded and recorded[-1] > starts):
            yield f"{execution_id}: {starts} attempts, with tapes of {recorded}"
        over_ns, nonces = 0, set[bytes]()
        for attempt in recorded:
            output = stored.output(execution_id, attempt, "stdout")
            begun = re.findall(rb"^begin (\S+) (\d+)$", output, re.MULTILINE)
            if not begun:
                continue
            times = [int(begun[0][1]), *map(int, re.findall(rb"^at (\d+)$", output, re.MULTILINE))]
            if len(begun) > 1 or begun[0][0] in nonces:
                yield f"{execution_id}: a program of attempt {attempt} began more than once"
            if times[0] < over_ns:
                early_ms = (over_ns - times[0]) / 1e6
                yield f"{execution_id}: attempt {attempt} began {early_ms:.1f} ms before the one before it had ended"
            nonces.add(begun[0][0])
            over_ns = max(times)


def _keys(entries: Sequence[Entry]) -> Iterator[str]:
    given: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    for entry in of(entries, "submit", "ok"):
        given[entry["key"]].add((entry["execution_id"], entry["body"]))
    for key, pairs in given.items():
        if len(pairs) > 1:
            yield f"{key} gave {sorted(pairs)}"


def _bytes(entries: Sequence[Entry], stored: Stored) -> Iterator[str]:
    for (execution_id, attempt), rows in stored.tapes.items():
        if [row.seq for row in rows] != list(range(1, len(rows) + 1)):
            yield f"the tape of {execution_id}, attempt {attempt}, has records {[row.seq for row in rows]}"
    for execution_id, document in stored.executions.items():
        if (result := document.get("result")) is None:
            continue
        for stream in STREAMS:
            digest = hashlib.sha256(stored.output(execution_id, document["attempt"], stream)).hexdigest()
            if result[f"{stream}_sha256"] != digest:
                yield f"{execution_id}: the digest of {stream} is not that of its tape"
    for (client, execution_id), frames in _streams(entries).items():
        carried = [frame for frame in frames if frame["type"] == "output"]
        wanted = [
            (attempt, row.seq, row.stream, hashlib.sha256(row.data).hexdigest())
            for (key, attempt), rows in sorted(stored.tapes.items())
            if key == execution_id
            for row in rows
        ]
        got = [(frame["attempt"], frame["seq"], frame["stream"], frame["sha256"]) for frame in carried]
        if got != wanted[: len(got)] or (frames and frames[-1]["type"] == "end" and got != wanted):
            yield f"{client} got {len(got)} records of {execution_id}, which are not the {len(wanted)} of its tape"


def _streams(entries: Sequence[Entry]) -> dict[tuple[str, str], list[Entry]]:
    streams: dict[tuple[str, str], list[Entry]] = {}
    for entry in of(entries, "frame"):
        streams.setdefault((entry["client"], entry["execution_id"]), []).append(entry)
    for entry in of(entries, "whole"):
        # Under a name of its own: it must not stand for what the same client was told before.
        streams[f"{entry['client']}, late,", entry["execution_id"]] = entry["frames"]
    return streams


def _comparable(frames: Sequence[Entry]) -> list[object]:
    """Return what must be the same for every reader: all bytes, but for the place of a request to cancel.

    Output that is under way when somebody asks for a cancellation may be told before it or behind it; the output
    itself is the same, and so are the frames beside it.
    """
    if all(frame["type"] != CANCEL_REQUESTED for frame in frames):
        return [frame["raw"] for frame in frames]
    told = ("type", "attempt", "seq", "stream", "sha256")
    return [tuple(frame.get(name) for name in told) for frame in frames if frame["type"] != CANCEL_REQUESTED]


def _resumed(entries: Sequence[Entry]) -> Iterator[str]:
    whole = {entry["execution_id"]: entry["frames"] for entry in of(entries, "whole")}
    ended = {(entry["client"], entry["execution_id"]) for entry in of(entries, "stream", "ok")}
    for (client, execution_id), frames in _streams(entries).items():
        ids = [tuple(map(int, frame["id"].split("."))) for frame in frames]
        if any(later <= earlier for earlier, later in pairwise(ids[:-1])):  # `end` repeats the id before it
            yield f"{client} saw the frames of {execution_id} out of order, or twice"
        if (client, execution_id) in ended and frames[-1]["type"] != "end":
            yield f"{client} was never told the end of {execution_id}"
        expected, got = _comparable(whole.get(execution_id, frames)), _comparable(frames)
        if got != expected[: len(got)] or ((client, execution_id) in ended and len(got) != len(expected)):
            yield f"{client} saw {len(got)} frames of {execution_id}, which are not the {len(expected)} that there are"


def _sagas(stored: Stored) -> Iterator[str]:
    for execution_id in stored.executions:
        saga = stored.sagas.get(execution_id)
        if saga is not None and saga["step"] != "done":
            yield f"the saga of {execution_id} stands at {saga['step']}"


def _messages(stored: Stored) -> Iterator[str]:
    for group, topics in GROUPS.items():
        newest = max((row.offset for row in stored.log if row.topic in topics), default=0)
        if stored.offsets.get(group, 0) < newest:
            yield f"{group} has consumed up to {stored.offsets.get(group, 0)} of {newest}"


def _cancelled(entries: Sequence[Entry], stored: Stored) -> Iterator[str]:
    ends: dict[str, float] = {}
    for entry in of(entries, "frame"):
        if entry["type"].replace("_", ".", 1) in TERMINAL:
            ends.setdefault(entry["execution_id"], entry["at_s"])
    faults = list(zip(of(entries, "fault", "invoke"), of(entries, "fault", "ok"), strict=True))
    for entry in of(entries, "cancel", "ok"):
        execution_id, since_s = entry["execution_id"], entry["at_s"]
        if (end_s := ends.get(execution_id)) is None:
            yield f"nobody was told the end of {execution_id}, which was cancelled"
            continue
        excused_s = sum(max(0.0, min(end_s, over["at_s"]) - max(since_s, began["at_s"])) for began, over in faults)
        if end_s - since_s - excused_s > CANCELLED_WITHIN_S:
            yield f"{execution_id} ended {end_s - since_s:.1f} s after it was cancelled, {excused_s:.1f} s of a fault"
