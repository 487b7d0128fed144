"""The stream of an execution, driven by hand: what is stored is the truth, nudges may be anything."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from runtape.adapters.embedded.live_feed import InProcessLiveFeed
from runtape.application import streaming
from runtape.application.announcing import lifecycle_frame, output_frame
from runtape.application.streaming import HEARTBEAT, Confirm, Cursor, ExecutionStream, Frame, always
from runtape.domain import execution as executions
from runtape.domain.errors import Unauthenticated, ValidationFailed
from runtape.domain.events import ExecutionEvent, StoredResult
from runtape.domain.execution import Execution, evolve, evolve_all
from runtape.domain.outcome import Outcome, OutcomeKind, Usage
from runtape.domain.tape import Record, Stream
from runtape.ports.admission import Place
from runtape.ports.live import FeedClosed, LifecycleNudge, Nudge, OutputNudge, PodNudge, QueueNudge, SubscriptionClosed
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import HEAD_BYTES, TapeSummary
from tests.application.world import CAPACITY, World, a_world, body, event_types
from tests.builders import EXECUTION, EXITED, LEASE_TTL, LOST, records, requested
from tests.clocks import START, ManualClock
from tests.contract.embedded.basic import quick_place
from tests.patience import examples


@dataclass
class Truth:
    """The document and the tapes as they stand: the stores of these tests."""

    execution: Execution | None = field(default_factory=requested)
    tapes: dict[int, list[Record]] = field(default_factory=dict[int, list[Record]])
    place_of: Place | None = None

    async def get(self, execution_id: str) -> Execution | None:
        await asyncio.sleep(0)
        return self.execution

    async def read(self, key: PodKey, after_seq: int, limit_bytes: int) -> Sequence[Record]:
        await asyncio.sleep(0)
        found = [record for record in self.tapes.get(key.attempt, []) if record.seq > after_seq]
        return found[:2]  # small pages, so that there are several

    async def summary(self, key: PodKey) -> TapeSummary:
        tape = self.tapes.get(key.attempt, [])
        joined = {stream: b"".join(each.data for each in tape if each.stream is stream) for stream in Stream}
        out, err = joined[Stream.STDOUT], joined[Stream.STDERR]
        return TapeSummary(
            last_seq=max((record.seq for record in tape), default=0),
            stdout_bytes=len(out),
            stderr_bytes=len(err),
            stdout_sha256=hashlib.sha256(out).hexdigest(),
            stderr_sha256=hashlib.sha256(err).hexdigest(),
            stdout_head=out[:65536],
            stderr_head=err[:65536],
            truncated=False,
        )

    async def read_stream(self, key: PodKey, stream: Stream, start: int, end: int) -> AsyncIterator[bytes]:
        whole = b"".join(record.data for record in self.tapes.get(key.attempt, []) if record.stream is stream)
        yield whole[start:end]

    async def place(self, execution_id: str) -> Place | None:
        return self.place_of


@dataclass
class Fact:
    """One thing that happens: it becomes true, and then there is a nudge that tells of it."""

    apply: Callable[[Truth], None]
    nudge: Callable[[Truth], Nudge]


def happens(*events_of: Callable[[Execution], Sequence[object]]) -> Fact:
    """Return the fact that events are committed together."""
    made: list[LifecycleNudge] = []

    def apply(truth: Truth) -> None:
        assert truth.execution is not None
        before = truth.execution.version
        for decide in events_of:
            for event in decide(truth.execution):
                if isinstance(event, ExecutionEvent):
                    truth.execution = evolve(truth.execution, event)
        steps = truth.execution.history[before:]
        bodies = tuple(lifecycle_frame(truth.execution, step, None) for step in steps)
        made.append(LifecycleNudge(truth.execution, bodies))

    return Fact(apply, lambda truth: made[0])


def prints(attempt: int, first_seq: int, *texts: str | bytes) -> Fact:
    made = records(*texts, first_seq=first_seq)

    def apply(truth: Truth) -> None:
        truth.tapes.setdefault(attempt, []).extend(made)

    bodies = tuple(output_frame(attempt, record) for record in made)
    return Fact(apply, lambda truth: OutputNudge(attempt, made[0].seq, made[-1].seq, bodies))


def starts(execution: Execution) -> Sequence[object]:
    return executions.start(execution, execution.attempt + 1, "w", START, LEASE_TTL)


def finishes(outcome: Outcome, last_seq: int) -> Callable[[Execution], Sequence[object]]:
    return lambda execution: executions.finish(execution, execution.attempt, outcome, Usage(), last_seq, START)


def cancels(execution: Execution) -> Sequence[object]:
    return executions.cancel(execution, "alice", None, START)


def stores(execution: Execution) -> Sequence[object]:
    return executions.store_result(execution, StoredResult(stdout_sha256="", stderr_sha256=""), START)


STORIES: dict[str, list[Fact]] = {
    "one attempt, fused": [
        happens(starts),
        prints(1, 1, "a", "b"),
        prints(1, 3, "c"),
        happens(finishes(EXITED, 3), stores),
    ],
    "the end is told before the last output": [
        happens(starts),
        prints(1, 1, "a", b"\xff"),
        happens(finishes(EXITED, 5)),
        prints(1, 3, "c", "d"),
        prints(1, 5, "e"),
        happens(stores),
    ],
    "three attempts": [
        happens(starts),
        prints(1, 1, "a", "b"),
        happens(finishes(LOST, 2), starts),
        prints(2, 1, "c"),
        happens(finishes(LOST, 1)),
        happens(starts),
        prints(3, 1, "d", "e", "f"),
        happens(cancels),
        happens(finishes(Outcome(kind=OutcomeKind.CANCELLED), 3)),
        happens(stores),
    ],
    "cancelled between two attempts": [
        happens(starts),
        prints(1, 1, "a", "b"),
        happens(finishes(LOST, 2)),
        happens(cancels),
        happens(stores),
    ],
    "cancelled in the queue": [happens(cancels, stores)],
    "silent": [happens(starts), happens(finishes(EXITED, 0)), happens(stores)],
}


class Script:
    """A `Subscription` that acts out what happens, one thing with each question of its reader."""

    def __init__(self, *answers: Callable[[], Nudge | None]) -> None:
        self._answers = list(answers)
        self.exhausted = FeedClosed

    async def next(self, timeout_s: float) -> Nudge | None:
        await asyncio.sleep(0)
        if not self._answers:
            raise self.exhausted
        return self._answers.pop(0)()

    def pending(self) -> Nudge | None:
        return None

    def close(self) -> None: ...


BEGINNING = Cursor()


def a_stream(
    truth: Truth,
    subscription: Any,
    cursor: Cursor = BEGINNING,
    *,
    clock: ManualClock | None = None,
    confirm: Confirm = always,
) -> ExecutionStream:
    return ExecutionStream(
        executions=cast(Any, truth),
        tape=cast(Any, truth),
        feed=InProcessLiveFeed(),
        queue=cast(Any, truth),
        clock=clock or ManualClock(),
        execution_id=EXECUTION,
        cursor=cursor,
        subscription=subscription,
        heartbeat_s=15.0,
        confirm=confirm,
    )


async def read(truth: Truth, subscription: Any, cursor: Cursor = BEGINNING) -> list[Frame]:
    async with asyncio.timeout(10):
        stream = a_stream(truth, subscription, cursor)
        return [frame for frame in [f async for batch in stream.batches() for f in batch] if frame is not HEARTBEAT]


def finished(story: Sequence[Fact]) -> Truth:
    truth = Truth()
    for fact in story:
        fact.apply(truth)
    return truth


def look() -> None:
    """Answer with None: something was lost, or it is time for a heartbeat."""


def without_bodies(frames: Sequence[Frame]) -> list[tuple[str | None, Cursor | None]]:
    return [(frame.event, frame.cursor) for frame in frames]


def assert_whole(frames: Sequence[Frame], truth: Truth) -> None:
    """Check I6 and I7 on a stream that was read from its beginning."""
    execution = truth.execution
    assert execution is not None
    told = [body(frame) for frame in frames if frame.event is None]
    assert [each["event_id"] for each in told] == [execution.event_id(step.version) for step in execution.history]
    for attempt, tape in truth.tapes.items():
        seqs = [body(frame)["seq"] for frame in frames if frame.event == "output" and body(frame)["attempt"] == attempt]
        assert seqs == [record.seq for record in tape], f"attempt {attempt}"
    assert [frame.event for frame in frames[-2:]] == [None, "end"]
    assert told[-1]["event_type"] == "result_stored"
    cursors = [frame.cursor for frame in frames if frame.cursor is not None]
    assert cursors == sorted(cursors, key=lambda at: (at.attempt, at.seq, at.version))
    ends = [number for number, frame in enumerate(frames) if frame.event is None and "completed" in str(frame.body)]
    outputs = [number for number, frame in enumerate(frames) if frame.event == "output"]
    if ends and outputs:
        assert outputs[-1] < ends[0], "a record after the event that ends its attempt"


@pytest.mark.parametrize("name", STORIES)
async def test_a_late_reader_gets_everything(name: str) -> None:
    truth = finished(STORIES[name])
    assert_whole(await read(truth, Script()), truth)


@pytest.mark.parametrize("name", STORIES)
async def test_a_reader_from_the_beginning_gets_everything_as_it_happens(name: str) -> None:
    truth, story = Truth(), STORIES[name]

    def telling(fact: Fact) -> Callable[[], Nudge]:
        def tell() -> Nudge:
            fact.apply(truth)
            return fact.nudge(truth)

        return tell

    assert_whole(await read(truth, Script(*map(telling, story), look)), truth)


@pytest.mark.parametrize("name", STORIES)
async def test_a_reader_that_comes_back_at_any_frame_gets_exactly_the_rest(name: str) -> None:
    truth = finished(STORIES[name])
    whole = await read(truth, Script())
    for number, frame in enumerate(whole):
        assert frame.cursor is not None
        rest = await read(truth, Script(), Cursor.parse(str(frame.cursor)))
        expected = whole[number + 1 :] or [whole[-1]]  # whoever has seen `end` is told so again
        assert without_bodies(rest) == without_bodies(expected), frame


@st.composite
def tellings(draw: st.DrawFn) -> tuple[list[Fact], list[int]]:
    """Draw a story and in which order its nudges arrive: -1 is a look, others may miss, come twice or come late."""
    story = draw(st.sampled_from(list(STORIES.values())))
    return story, draw(st.lists(st.integers(-1, len(story) - 1), max_size=3 * len(story)))


@settings(max_examples=examples(400), deadline=None)
@given(telling=tellings(), lag=st.integers(0, 2))
async def test_lost_repeated_and_disordered_nudges_cost_nothing_but_time(
    telling: tuple[list[Fact], list[int]], lag: int
) -> None:
    story, order = telling
    truth = Truth()
    done = 0

    def upto(number: int) -> None:
        nonlocal done
        while done <= min(number, len(story) - 1):
            story[done].apply(truth)
            done += 1

    def answer(number: int) -> Callable[[], Nudge | None]:
        def act() -> Nudge | None:
            if number < 0:
                return None
            upto(number + lag)  # a nudge comes when it is true, and perhaps more than it tells
            return story[number].nudge(truth)

        return act

    def end() -> None:
        upto(len(story))

    frames = await read(truth, Script(*map(answer, order), end, look))
    assert_whole([frame for frame in frames if not (frame.event is None and b"execution_queued" in frame.body)], truth)


@settings(max_examples=examples(100), deadline=None)
@given(telling=tellings(), cut=st.integers(0, 30))
async def test_a_dropped_connection_resumes_in_mid_stream(telling: tuple[list[Fact], list[int]], cut: int) -> None:
    """The first reader leaves after any frame, at any state of the run; the second goes on from its last id."""
    story, order = telling
    truth = Truth()
    for fact in story[: len(order)]:
        fact.apply(truth)
    live = Script()
    first = [frame for frame in await read(truth, live) if frame.cursor is not None][:cut]
    for fact in story[len(order) :]:
        fact.apply(truth)
    at = first[-1].cursor if first else Cursor()
    assert at is not None
    rest = await read(truth, Script(), at)
    if not (first and first[-1].event == "end"):
        assert_whole([*first, *rest], truth)


class Digested(Truth):
    """A finished run whose tape may be read in part, and never as a whole."""

    def __init__(self, stdout: bytes) -> None:
        super().__init__(tapes={1: records(*(stdout[at : at + 10_000] for at in range(0, len(stdout), 10_000)))})
        self.heads_read: list[tuple[Stream, int]] = []
        self.pages_read = 0
        last_seq = len(self.tapes[1])
        digest = StoredResult(
            stdout_bytes=len(stdout), stdout_sha256=hashlib.sha256(stdout).hexdigest(), stderr_sha256="of nothing"
        )
        happens(starts, finishes(EXITED, last_seq), lambda e: executions.store_result(e, digest, START)).apply(self)
        assert self.execution is not None
        self.before_result = Cursor(self.execution.version - 1, 1, last_seq)

    async def summary(self, key: PodKey) -> TapeSummary:
        raise AssertionError("the whole tape would be read and hashed")

    async def read(self, key: PodKey, after_seq: int, limit_bytes: int) -> Sequence[Record]:
        found = await super().read(key, after_seq, limit_bytes)
        self.pages_read += bool(found)
        return found

    async def read_stream(self, key: PodKey, stream: Stream, start: int, end: int) -> AsyncIterator[bytes]:
        self.heads_read.append((stream, end))
        async for piece in super().read_stream(key, stream, start, end):
            yield piece


async def test_a_late_result_is_told_from_the_stored_digests_and_the_heads_alone() -> None:
    stdout = b"0123456789" * 30_000
    truth = Digested(stdout)
    frames = await read(truth, Script(), truth.before_result)
    assert event_types(frames) == ["result_stored", "end"]
    result = body(frames[0])["result"]
    assert result["stdout"].encode() == stdout[:HEAD_BYTES]
    assert result["truncated_inline"]
    assert (result["stdout_bytes"], result["stdout_sha256"]) == (len(stdout), hashlib.sha256(stdout).hexdigest())
    assert (result["stderr"], result["stderr_bytes"], result["stderr_sha256"]) == ("", 0, "of nothing")
    assert truth.heads_read == [(Stream.STDOUT, HEAD_BYTES), (Stream.STDERR, 0)]
    assert truth.pages_read == 0


async def test_a_cursor_beyond_a_stored_result_is_told_so_without_reading_the_tape() -> None:
    truth = Digested(b"0123456789" * 30_000)
    last = truth.before_result
    frames = await read(truth, Script(), Cursor(last.version, 1, 10**12))
    assert event_types(frames) == ["gap", "result_stored", "end"]
    assert frames[0].cursor == last
    assert truth.pages_read == 0


class TestCursor:
    @given(st.builds(Cursor, *[st.integers(0, 10**18 - 1)] * 3))
    def test_its_text_form_reads_back(self, cursor: Cursor) -> None:
        assert Cursor.parse(str(cursor)) == cursor

    @pytest.mark.parametrize(
        "text", ["", "1", "1.2", "1.2.3.4", "1.2.x", "-1.2.3", "1.2.٣", "1..3", "1.2.3 ", "9" * 39]
    )
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(ValidationFailed) as refusal:
            Cursor.parse(text)
        assert refusal.value.field == "Last-Event-ID"

    @pytest.mark.parametrize(
        ("cursor", "back_to"),
        [
            ("99.0.0", "4.0.0"),
            ("4.1.99", "4.1.3"),
            ("4.9.1", "4.1.3"),
            ("99.99.99", "4.1.3"),
            ("2.0.7", "2.0.0"),
        ],
    )
    async def test_a_cursor_ahead_of_what_there_is_gets_a_gap_and_then_the_rest(
        self, cursor: str, back_to: str
    ) -> None:
        truth = finished(STORIES["one attempt, fused"])
        frames = await read(truth, Script(), Cursor.parse(cursor))
        assert frames[0].event == "gap"
        assert body(frames[0]) == {"from_id": cursor, "to_id": back_to, "reason": "ahead"}
        assert str(frames[0].cursor) == back_to
        assert frames[-1].event == "end"
        whole = await read(truth, Script(), Cursor.parse(back_to))
        assert without_bodies(frames[1:]) == without_bodies(whole)

    async def test_records_older_than_retention_are_told_as_a_gap(self) -> None:
        truth = finished(STORIES["one attempt, fused"])
        del truth.tapes[1][:2]
        frames = await read(truth, Script())
        (gap,) = [frame for frame in frames if frame.event == "gap"]
        assert body(gap) == {"from_id": "2.1.0", "to_id": "2.1.2", "reason": "retention"}
        assert event_types(frames) == [
            "execution_requested",
            "execution_started",
            "gap",
            "output",
            "execution_completed",
            "result_stored",
            "end",
        ]


async def test_a_nudge_of_which_a_part_was_read_already_is_forwarded_from_there_on() -> None:
    truth = finished([happens(starts), prints(1, 1, "a")])
    more = prints(1, 2, "b", "c")

    def both_at_once() -> Nudge:
        more.apply(truth)
        bodies = tuple(output_frame(1, record) for record in truth.tapes[1])
        return OutputNudge(1, 1, 3, bodies)

    frames = await read(truth, Script(both_at_once), Cursor(2, 1, 0))
    assert [body(frame)["text"] for frame in frames if frame.event == "output"] == ["a", "b", "c"]


async def test_lost_output_does_not_hold_up_the_end() -> None:
    truth = finished([happens(starts), prints(1, 1, "a"), happens(finishes(EXITED, 5))])
    lost = Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason="output_lost")
    assert truth.execution is not None
    result = StoredResult(stdout_sha256="", stderr_sha256="")

    def story_goes_on() -> None:
        assert truth.execution is not None
        stored = executions.store_result(truth.execution, result, START, lost=lost)
        truth.execution = evolve_all(truth.execution, stored)

    frames = await read(truth, Script(look, story_goes_on, look))
    assert event_types(frames) == [
        "execution_requested", "execution_started", "output", "execution_completed", "result_stored", "end"
    ]  # fmt: skip


async def test_an_execution_that_is_deleted_ends_its_stream() -> None:
    truth = finished([happens(starts)])

    def delete() -> None:
        truth.execution = None

    frames = await read(truth, Script(delete))
    assert [frame.event for frame in frames] == [None, None, "end"]


async def test_a_place_in_the_queue_is_told_without_an_id_and_again_when_it_changes() -> None:
    truth = Truth(place_of=Place(3, 1.5))

    def moves() -> Nudge:
        truth.place_of = Place(2, 1.0)
        return QueueNudge()

    frames = await read(truth, Script(moves))
    places = [frame for frame in frames if frame.event is None and frame.cursor is None]
    assert [body(frame)["position"] for frame in places] == [3, 2]
    assert body(places[0]) == {
        "event_type": "execution_queued", "execution_id": EXECUTION, "position": 3, "estimated_wait_s": 1.5
    }  # fmt: skip


async def test_how_a_program_came_to_its_pod_is_told_without_an_id_and_moves_no_cursor() -> None:
    truth = finished([happens(starts)])
    before, after = await read(truth, Script()), await read(truth, Script(lambda: PodNudge(b'{"start":"cold"}')))
    told = [frame for frame in after if frame not in before]
    assert told == [Frame(None, None, b'{"start":"cold"}')]
    assert [frame for frame in after if frame not in told] == before


async def test_shutdown_is_told_with_a_time_to_come_back() -> None:
    frames = await read(finished([happens(starts)]), Script())
    assert (frames[-1].event, frames[-1].retry_ms, frames[-1].cursor) == ("shutdown", streaming.RETRY_MS, None)


async def test_a_reader_that_left_ends_the_stream() -> None:
    script = Script()
    script.exhausted = SubscriptionClosed  # type: ignore[assignment]
    with pytest.raises(SubscriptionClosed):
        await read(finished([happens(starts)]), script)


async def test_heartbeats_come_when_nothing_happens_and_never_late() -> None:
    truth, clock = finished([happens(starts)]), ManualClock()
    asked: list[float] = []

    class Quiet(Script):
        async def next(self, timeout_s: float) -> Nudge | None:
            asked.append(timeout_s)
            if len(asked) == 5:
                raise FeedClosed
            clock.advance(6 if len(asked) == 1 else timeout_s)
            return QueueNudge() if len(asked) == 1 else None

    stream = a_stream(truth, Quiet(), clock=clock)
    frames = [frame async for batch in stream.batches() for frame in batch]
    assert frames.count(HEARTBEAT) == 3
    assert asked == [15.0] * 5


class Rights:
    """A `Confirm` that a test can end; it counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.ended = False

    async def __call__(self) -> None:
        self.asked += 1
        if self.ended:
            raise Unauthenticated("the API key is unknown or was revoked")


async def test_a_reader_without_rights_is_told_so_at_the_next_heartbeat() -> None:
    truth, clock, rights = finished([happens(starts), prints(1, 1, "a")]), ManualClock(), Rights()

    def silence() -> None:
        clock.advance(15.0)

    def end_of_rights() -> None:
        rights.ended = True
        clock.advance(15.0)

    stream = a_stream(truth, Script(silence, silence, end_of_rights, silence), clock=clock, confirm=rights)
    frames = [frame async for batch in stream.batches() for frame in batch]
    assert rights.asked == 3
    assert frames.count(HEARTBEAT) == 2
    assert (frames[-1].event, frames[-1].cursor, frames[-1].retry_ms) == ("shutdown", None, 1000)
    assert body(frames[-1]) == {"code": "unauthenticated", "detail": "the API key is unknown or was revoked"}


async def test_a_reader_is_asked_for_rights_as_often_while_there_is_no_silence() -> None:
    story = [prints(1, seq, "x") for seq in range(1, 100)]
    truth, clock, rights = finished([happens(starts)]), ManualClock(), Rights()

    def telling(fact: Fact) -> Callable[[], Nudge]:
        def tell() -> Nudge:
            fact.apply(truth)
            clock.advance(1.0)
            rights.ended = clock.monotonic_s() >= 1050.0
            return fact.nudge(truth)

        return tell

    stream = a_stream(truth, Script(*map(telling, story)), clock=clock, confirm=rights)
    frames = [frame async for batch in stream.batches() for frame in batch]
    assert HEARTBEAT not in frames
    assert rights.asked == 4
    assert [frame.cursor.seq for frame in frames if frame.event == "output" and frame.cursor] == list(range(1, 60))
    assert frames[-1].event == "shutdown"


class TestAgainstTheRealThing:
    """Streams over the real handlers: what arrives live is what is stored."""

    @pytest.fixture(params=[True, False], ids=["fused", "stepwise"])
    async def world(self, request: pytest.FixtureRequest) -> AsyncIterator[World]:
        with quick_place() as place:
            async with a_world(place, fused=request.param) as world:
                await world.start()
                yield world

    async def test_a_live_stream_has_everything_in_order(self, world: World) -> None:
        execution_id = await world.submit("print a\neprint b\nwait go\nprint c\nbytes ff00\nexit 2")
        reading = asyncio.ensure_future(world.frames(execution_id))
        await world.until_status(execution_id, "running")
        world.pods.let("go")
        frames = await reading
        assert [name for name in event_types(frames) if name != "execution_queued"] == [
            "execution_requested",
            "execution_started",
            "output",
            "execution_completed",
            "result_stored",
            "end",
        ]
        output = [body(frame) for frame in frames if frame.event == "output"]
        assert [(each["seq"], each["stream"], each.get("text"), each.get("b64")) for each in output] == [
            (1, "stdout", "a\n", None),
            (2, "stderr", "b\n", None),
            (3, "stdout", "c\n", None),
            (4, "stdout", None, "/wA="),
        ]
        result = body(frames[-2])["result"]
        assert (result["exit_code"], result["stderr"], result["stdout_bytes"]) == (2, "b\n", 6)
        assert without_bodies(await world.frames(execution_id)) == [
            (frame.event, frame.cursor) for frame in frames if frame.cursor is not None
        ]

    async def test_many_readers_of_many_runs_get_each_byte_once(self, world: World) -> None:
        script = "\n".join(f"print line {number}" for number in range(50)) + "\nwait go\nprint last"
        ids = [await world.submit(script) for _ in range(8)]
        readers = [asyncio.ensure_future(world.frames(each)) for each in ids for _ in range(3)]
        world.pods.let("go")
        expected = b"".join(b"line %d\n" % number for number in range(50)) + b"last\n"
        for frames in await asyncio.gather(*readers):
            text = "".join(body(frame)["text"] for frame in frames if frame.event == "output")
            assert text.encode() == expected

    async def test_a_reader_too_slow_for_the_feed_goes_to_the_tape(self, world: World) -> None:
        """Nothing is read until far more than the feed keeps was published."""
        zeros = "00" * 3000  # each takes six bytes of JSON
        script = "wait go\n" + f"bytes {zeros}\n" * 160
        execution_id = await world.submit(script)
        await world.until_status(execution_id, "running")
        stream, subscription = world.streams.open(execution_id, Cursor())
        batches = stream.batches()
        first = await anext(batches)
        world.pods.let("go")
        await world.until_stored(execution_id)
        frames = first + [frame async for batch in batches for frame in batch]
        subscription.close()
        seqs = [body(frame)["seq"] for frame in frames if frame.event == "output"]
        assert seqs == list(range(1, 161))
        assert event_types(frames)[-2:] == ["result_stored", "end"]

    async def test_a_stream_that_is_open_over_a_restart_of_the_attempt_shows_both(self, world: World) -> None:
        execution_id = await world.submit("print first\nwait go")
        await world.until_status(execution_id, "running")
        reading = asyncio.ensure_future(world.frames(execution_id))
        await world.until_started(PodKey(execution_id, 1))
        world.pods.end(PodKey(execution_id, 1), Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason="died"))

        async def second() -> bool:
            return (await world.get(execution_id)).attempt == 2

        await world.until(second)
        world.pods.let("go")
        frames = await reading
        told = [name for name in event_types(frames) if name != "execution_queued"]
        assert told == [
            "execution_requested",
            "execution_started",
            "output",
            "execution_restarted",
            "execution_started",
            "output",
            "execution_completed",
            "result_stored",
            "end",
        ]
        assert [(body(f)["attempt"], body(f)["text"]) for f in frames if f.event == "output"] == [
            (1, "first\n"),
            (2, "first\n"),
        ]


@pytest.fixture
def place() -> Iterator[Path]:
    with quick_place() as folder:
        yield folder


async def test_waiting_streams_are_told_their_place(place: Path) -> None:
    async with a_world(place, capacity=replace(CAPACITY, running=1)) as world:
        await world.start()
        first = await world.submit("wait go")
        second = await world.submit("print 2")
        reading = asyncio.ensure_future(world.frames(second))
        await asyncio.sleep(0)
        await world.until_status(first, "running")
        world.pods.let("go")
        frames = await reading
        queued = [body(frame) for frame in frames if b"execution_queued" in frame.body]
        assert {each["position"] for each in queued} == {1}
        assert event_types(frames)[-1] == "end"
