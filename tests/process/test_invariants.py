"""The check of histories finds what is planted, each under its own name, and nothing in what is sound."""

import copy
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.process import histories
from tests.process.histories import Entry, Journal
from tests.process.invariants import LogRow, Stored, TapeRow, check

RUN = "run-1"
CANCELLED = "run-2"
LIFE = (
    ("execution.requested", 0),
    ("execution.started", 1),
    ("execution.restarted", 2),
    ("execution.started", 2),
    ("execution.completed", 2),
    ("result.stored", 2),
)
CANCELLED_LIFE = (
    ("execution.requested", 0),
    ("execution.started", 1),
    ("execution.cancel_requested", 1),
    ("execution.cancelled", 1),
    ("result.stored", 1),
)
TAPES = {
    (RUN, 1): [TapeRow(1, "stdout", b"begin aa 100\n"), TapeRow(2, "stdout", b"at 200\n")],
    (RUN, 2): [
        TapeRow(1, "stdout", b"begin bb 300\n"),
        TapeRow(2, "stderr", b"oh\n"),
        TapeRow(3, "stdout", b"at 400\n"),
    ],
    (CANCELLED, 1): [TapeRow(1, "stdout", b"begin cc 100\n")],
}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class World:
    """What a run that was lost once and one that was cancelled leave behind."""

    def __init__(self) -> None:
        self.stored = Stored(tapes=copy.deepcopy(TAPES), offsets={})
        self.entries: list[Entry] = []
        self.left: list[str] = []
        self.now_s = 0.0
        self.live(RUN, LIFE, "completed")
        self.live(CANCELLED, CANCELLED_LIFE, "cancelled")
        newest = self.stored.log[-1].offset
        self.stored.offsets = dict.fromkeys(("saga-orchestrator", "result-processor", "k8s-worker"), newest)

    def note(self, client: str, kind: str, op: str, **facts: Any) -> Entry:
        self.now_s += 0.1
        entry = {"client": client, "at_s": self.now_s, "kind": kind, "op": op, **facts}
        self.entries.append(entry)
        return entry

    def live(self, run: str, life: Sequence[tuple[str, int]], status: str) -> None:
        history = [
            {"version": number, "type": name, "attempt": attempt} for number, (name, attempt) in enumerate(life, 1)
        ]
        attempt = life[-1][1]
        result = {
            f"{stream}_sha256": digest(self.stored.output(run, attempt, stream)) for stream in ("stdout", "stderr")
        }
        document: dict[str, Any] = {
            "status": status,
            "attempt": attempt,
            "history": history,
            "outcome": {"reason": None},
        }
        self.stored.executions[run] = {**document, "result": result, "idempotency": {"key": f"key-{run}"}}
        self.stored.sagas[run] = {"step": "done"}
        for step in history:
            row = LogRow(
                len(self.stored.log) + 1, "execution.events.v1", run, step["type"], {"version": step["version"]}
            )
            self.stored.log.append(row)
        frames = self.frames(run, history)
        self.note(run, "invoke", "submit", key=f"key-{run}", body="b")
        self.note(run, "ok", "submit", key=f"key-{run}", body="b", execution_id=run)
        for frame in frames:
            if frame["type"] == "execution_cancel_requested":
                self.note(run, "ok", "cancel", execution_id=run)
            self.note(run, "info", "frame", execution_id=run, **frame)
        self.note(run, "ok", "stream", execution_id=run)
        self.note(run, "info", "whole", execution_id=run, frames=copy.deepcopy(frames))

    def frames(self, run: str, history: Sequence[dict[str, Any]]) -> list[Entry]:
        frames: list[Entry] = []
        at = (0, 0, 0)

        def add(name: str, **facts: Any) -> None:
            cursor = ".".join(map(str, at))
            frames.append({"id": cursor, "type": name, "raw": digest(f"{name} {cursor}".encode()), **facts})

        for step in history:
            at = (step["version"], at[1], at[2])
            add(step["type"].replace(".", "_"), attempt=step["attempt"])
            if step["type"] == "execution.started":
                for row in self.stored.tapes[run, step["attempt"]]:
                    at = (at[0], step["attempt"], row.seq)
                    add("output", attempt=at[1], seq=row.seq, stream=row.stream, sha256=digest(row.data))
        add("end")
        return frames

    def frame(self, run: str, name: str) -> Entry:
        return next(each for each in self.entries if each.get("execution_id") == run and each.get("type") == name)

    def broken(self) -> set[str]:
        return {violation.invariant for violation in check(self.entries, self.stored, self.left)}


def test_sound_history_is_found_sound() -> None:
    assert check(World().entries, World().stored) == []


def lost(world: World) -> None:
    world.note("late", "ok", "submit", key="key-3", body="b", execution_id="run-3")


def unended(world: World) -> None:
    for _ in range(2):
        world.stored.executions[RUN]["history"].pop()
        world.stored.log.remove(next(row for row in reversed(world.stored.log) if row.key == RUN))
    world.stored.executions[RUN]["status"] = "running"


def kept_though_refused(world: World) -> None:
    for entry in histories.of(world.entries, "submit"):
        if entry["client"] == RUN and entry["kind"] == "ok":
            entry["kind"] = "fail"


def two_ends(world: World) -> None:
    world.stored.log.append(LogRow(0, "execution.events.v1", RUN, "execution.failed", {"version": 7}))


def changed_end(world: World) -> None:
    world.stored.executions[RUN]["status"] = "failed"


def two_ends_seen(world: World) -> None:
    world.frame(RUN, "execution_restarted")["type"] = "execution_failed"


def forbidden_step(world: World) -> None:
    world.stored.executions[RUN]["history"][2]["type"] = "execution.requested"


def missing_version(world: World) -> None:
    world.stored.executions[RUN]["history"][3]["version"] = 5


def unpublished(world: World) -> None:
    world.stored.log.remove(next(row for row in world.stored.log if row.type == "execution.restarted"))


def started_twice(world: World) -> None:
    tape = world.stored.tapes[CANCELLED, 1]
    tape[0] = TapeRow(1, "stdout", b"begin cc 100\nbegin dd 101\n")


def same_program(world: World) -> None:
    tape = world.stored.tapes[RUN, 1]
    tape[0] = TapeRow(1, "stdout", b"begin bb 100\n")


def side_by_side(world: World) -> None:
    tape = world.stored.tapes[RUN, 1]
    tape[1] = TapeRow(2, "stdout", b"at 350\n")


def unknown_attempt(world: World) -> None:
    world.stored.tapes[CANCELLED, 2] = [TapeRow(1, "stdout", b"x")]


def two_runs_of_a_key(world: World) -> None:
    world.note("other", "ok", "submit", key=f"key-{RUN}", body="b", execution_id=CANCELLED)


def another_body(world: World) -> None:
    world.note("other", "ok", "submit", key=f"key-{RUN}", body="c", execution_id=RUN)


def hole(world: World) -> None:
    del world.stored.tapes[RUN, 2][1]


def changed_byte(world: World) -> None:
    world.stored.tapes[RUN, 2][1] = TapeRow(2, "stderr", b"ah\n")


def dropped_record(world: World) -> None:
    world.entries.remove(world.frame(RUN, "output"))


def repeated_record(world: World) -> None:
    frame = world.frame(RUN, "output")
    world.entries.insert(world.entries.index(frame), frame)


def dropped_event(world: World) -> None:
    world.entries.remove(world.frame(RUN, "execution_restarted"))


def no_end(world: World) -> None:
    world.entries.remove(world.frame(CANCELLED, "end"))


def other_bytes(world: World) -> None:
    world.frame(RUN, "execution_completed")["raw"] = "another"


def orphan(world: World) -> None:
    world.left.append("the mount /box")


def open_saga(world: World) -> None:
    world.stored.sagas[RUN]["step"] = "monitor"


def unread(world: World) -> None:
    world.stored.offsets["result-processor"] -= 1


def never_read(world: World) -> None:
    del world.stored.offsets["k8s-worker"]


def cancelled_late(world: World) -> None:
    end = world.frame(CANCELLED, "execution_cancelled")
    for entry in world.entries[world.entries.index(end) :]:
        entry["at_s"] += 5


def cancelled_in_vain(world: World) -> None:
    world.note("other", "ok", "cancel", execution_id="run-4")


PLANTED: dict[Callable[[World], None], set[str]] = {
    lost: {"I1"},
    unended: {"I1"},
    kept_though_refused: {"I1"},
    two_ends: {"I2", "I3"},
    changed_end: {"I2"},
    two_ends_seen: {"I2"},
    forbidden_step: {"I3"},
    missing_version: {"I3"},
    unpublished: {"I3"},
    started_twice: {"I4", "I6"},
    same_program: {"I4", "I6"},
    side_by_side: {"I4", "I6"},
    unknown_attempt: {"I4", "I6"},
    two_runs_of_a_key: {"I5"},
    another_body: {"I5"},
    hole: {"I6"},
    changed_byte: {"I6"},
    dropped_record: {"I6", "I7"},
    repeated_record: {"I6", "I7"},
    dropped_event: {"I7"},
    no_end: {"I7"},
    other_bytes: {"I7"},
    orphan: {"I8"},
    open_saga: {"I12"},
    unread: {"I13"},
    never_read: {"I13"},
    cancelled_late: {"I15"},
    cancelled_in_vain: {"I15"},
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_what_is_planted_is_found_by_its_name(plant: Callable[[World], None]) -> None:
    world = World()
    plant(world)
    assert world.broken() == PLANTED[plant]


def test_late_end_of_a_cancelled_run_is_excused_by_a_fault() -> None:
    world = World()
    cancelled_late(world)
    asked = next(entry for entry in world.entries if entry["op"] == "cancel")["at_s"]
    world.note("nemesis", "invoke", "fault", what="SIGSTOP")["at_s"] = asked + 1
    world.note("nemesis", "ok", "fault", what="SIGSTOP")["at_s"] = asked + 2
    assert world.broken() == set()


def test_run_that_may_have_been_accepted_may_be_there_or_not() -> None:
    world = World()
    kept_though_refused(world)
    world.note("other", "info", "submit", key=f"key-{RUN}", body="b", error="reset")
    world.note("other", "info", "submit", key="key-nobody-knows", body="b", error="reset")
    assert world.broken() == set()


def test_journals_are_read_back_in_the_order_of_their_entries(tmp_path: Path) -> None:
    first, second = Journal(tmp_path, "b"), Journal(tmp_path, "a")
    first.note("invoke", "submit", key="1")
    second.note("invoke", "submit", key="2")
    first.note("ok", "submit", key="1")
    entries = histories.load(tmp_path)
    assert [(entry["client"], entry["kind"], entry["key"]) for entry in entries] == [
        ("b", "invoke", "1"),
        ("a", "invoke", "2"),
        ("b", "ok", "1"),
    ]
    assert histories.of(entries, "submit", "ok") == entries[2:]
