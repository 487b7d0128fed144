"""What clients get of an execution: results, frames and announcements."""

import base64
import json
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given

from runtape.adapters.embedded.live_feed import InProcessLiveFeed
from runtape.application.announcing import Announcer, lifecycle_frame, output_frame
from runtape.application.results import result_of
from runtape.domain import execution as executions
from runtape.domain.events import ExecutionCancelRequested
from runtape.domain.execution import Execution
from runtape.domain.ids import ExecutionId
from runtape.domain.tape import Record, Stream
from runtape.ports.live import LifecycleNudge, OutputNudge, QueueNudge
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import HEAD_BYTES, Change, Durability, TapeSummary
from tests.builders import EXECUTION, an_execution, ended, records, requested, started
from tests.clocks import START
from tests.contract.suites.stores import over


def a_summary(stdout: bytes = b"", stderr: bytes = b"", beyond: int = 0) -> TapeSummary:
    """Return the summary of a tape whose stdout has `beyond` bytes more than its head."""
    return TapeSummary(
        last_seq=1,
        stdout_bytes=len(stdout) + beyond,
        stderr_bytes=len(stderr),
        stdout_sha256="out",
        stderr_sha256="err",
        stdout_head=stdout,
        stderr_head=stderr,
        truncated=False,
    )


class TestResults:
    def test_before_the_end_there_is_only_what_was_printed_so_far(self) -> None:
        result = result_of(started(), a_summary(b"so far"))
        assert (result.status, result.outcome, result.exit_code, result.usage) == ("running", None, None, None)
        assert (result.stdout, result.stdout_sha256) == ("so far", None)

    def test_afterwards_there_is_everything(self) -> None:
        result = result_of(over(started()), a_summary(b"out", b"err"))
        assert (result.status, result.exit_code, result.stdout, result.stderr) == ("completed", 0, "out", "err")
        assert result.stdout_url == f"/api/v1/executions/{EXECUTION}/output/stdout"
        assert not result.truncated_inline

    @pytest.mark.parametrize("character", ["é", "€", "😀"])
    def test_a_character_that_the_cut_goes_through_is_left_out(self, character: str) -> None:
        encoded = character.encode()
        for kept in range(1, len(encoded)):
            result = result_of(ended(), a_summary(b"abc" + encoded[:kept], beyond=len(encoded) - kept))
            assert (result.stdout, result.truncated_inline) == ("abc", True)
        result = result_of(ended(), a_summary(b"abc" + encoded, beyond=1))
        assert result.stdout == "abc" + character

    def test_invalid_bytes_are_replaced_and_those_at_an_end_are_not_taken_for_a_cut(self) -> None:
        assert result_of(ended(), a_summary(b"a\xffb")).stdout == "a\ufffdb"
        assert result_of(ended(), a_summary(b"a\xe2\x82")).stdout == "a\ufffd"

    @given(st.text(max_size=20), st.integers(0, 60))
    @example("a€", 3)
    def test_a_cut_text_is_a_prefix_of_the_text(self, text: str, cut: int) -> None:
        encoded = text.encode()
        head = encoded[:cut]
        shown = result_of(ended(), a_summary(head, beyond=len(encoded) - len(head))).stdout
        assert text.startswith(shown)
        assert len(head) - len(shown.encode()) <= 3

    @given(st.binary(max_size=20))
    def test_any_bytes_make_a_result(self, head: bytes) -> None:
        shown = result_of(ended(), a_summary(head, beyond=5)).stdout
        json.dumps(shown).encode()
        assert len(head) == 0 or len(shown) >= (len(head) - 3) / 4

    def test_the_inline_size_is_the_documented_one(self) -> None:
        assert HEAD_BYTES == 64 << 10


class TestFrames:
    @given(st.binary(min_size=0, max_size=50))
    @example(b"\n\ndata: {}\n\nevent: end\r\n")
    @example("\u2028\u2029\x85".encode())
    def test_output_is_one_line_of_json_with_the_exact_bytes(self, data: bytes) -> None:
        frame = output_frame(2, Record(7, Stream.STDERR, 99, data))
        assert b"\n" not in frame
        assert b"\r" not in frame
        told: dict[str, Any] = json.loads(frame)
        assert ("text" in told) != ("b64" in told)
        assert (told["text"].encode() if "text" in told else base64.b64decode(told["b64"])) == data
        assert (told["attempt"], told["seq"], told["stream"], told["t_ns"]) == (2, 7, "stderr", 99)

    def test_truncation_is_told(self) -> None:
        told = json.loads(output_frame(1, Record(1, Stream.STDOUT, 0, b"", truncated=True)))
        assert told["truncated"] is True

    def test_a_lifecycle_frame_tells_type_id_and_status(self) -> None:
        execution = started()
        told = json.loads(lifecycle_frame(execution, execution.history[-1], None))
        assert told == {
            "event_type": "execution_started",
            "event_id": "execution-1.2",
            "execution_id": "execution-1",
            "attempt": 1,
            "timestamp": "2026-01-05T09:30:01Z",
            "status": "running",
        }

    def test_the_last_frame_carries_the_result(self) -> None:
        execution = over(started())
        told = json.loads(lifecycle_frame(execution, execution.history[-1], a_summary(b"out")))
        assert told["event_type"] == "result_stored"
        assert told["result"]["stdout"] == "out"


def a_change(before: Execution, after: Execution) -> Change:
    return Change(document=after, expected_version=before.version, messages=(), durability=Durability.PROCESS)


class TestAnnouncer:
    def make(self) -> None:
        self.feed = InProcessLiveFeed()
        self.announcer = Announcer(self.feed)

    def test_what_nobody_watches_is_not_encoded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.make()
        monkeypatch.setattr("runtape.application.announcing.output_frame", None)
        monkeypatch.setattr("runtape.application.announcing.lifecycle_frame", None)
        self.announcer.output(PodKey(EXECUTION, 1), records("a"))
        self.announcer.remember(EXECUTION, a_summary())
        self.announcer.announce([a_change(requested(), started())])

    async def test_the_steps_of_a_commit_are_one_nudge_with_one_frame_each(self) -> None:
        self.make()
        reader = self.feed.subscribe(EXECUTION)
        self.announcer.announce([a_change(an_execution(), requested()), a_change(requested(), started())])
        nudge = reader.pending()
        assert isinstance(nudge, LifecycleNudge)
        assert nudge.execution == started()
        assert [json.loads(each)["event_type"] for each in nudge.bodies] == ["execution_requested", "execution_started"]
        assert reader.pending() is None

    async def test_a_result_carries_the_summary_that_it_was_made_of(self) -> None:
        """Chains run side by side: a cancellation that came too late has remembered a tape without output."""
        self.make()
        reader = self.feed.subscribe(EXECUTION)
        stored = over(started())
        assert stored.result is not None
        summary = replace(
            a_summary(b"kept"),
            stdout_bytes=stored.result.stdout_bytes,
            stdout_sha256=stored.result.stdout_sha256,
            stderr_sha256=stored.result.stderr_sha256,
        )
        self.announcer.remember(EXECUTION, summary)
        self.announcer.remember(EXECUTION, a_summary())
        self.announcer.announce([a_change(ended(), stored)])
        nudge = reader.pending()
        assert isinstance(nudge, LifecycleNudge)
        assert json.loads(nudge.bodies[-1])["result"]["stdout"] == "kept"

    async def test_a_result_without_its_summary_sends_its_readers_to_the_tape(self) -> None:
        self.make()
        reader = self.feed.subscribe(EXECUTION)
        self.announcer.remember(EXECUTION, a_summary(b"of a chain that was not committed"))
        self.announcer.announce([a_change(ended(), over(started()))])
        nudge = reader.pending()
        assert isinstance(nudge, LifecycleNudge)
        assert nudge.bodies == ()

    async def test_a_reader_that_came_after_the_summary_was_made_is_sent_to_the_tape(self) -> None:
        self.make()
        self.announcer.remember(EXECUTION, a_summary())
        reader = self.feed.subscribe(EXECUTION)
        self.announcer.announce([a_change(ended(), over(started()))])
        nudge = reader.pending()
        assert isinstance(nudge, LifecycleNudge)
        assert nudge.bodies == ()
        assert nudge.execution.result is not None

    async def test_output_is_one_nudge_for_a_batch(self) -> None:
        self.make()
        reader = self.feed.subscribe(EXECUTION)
        self.announcer.output(PodKey(EXECUTION, 3), records("a", "b", first_seq=5))
        nudge = reader.pending()
        assert isinstance(nudge, OutputNudge)
        assert (nudge.attempt, nudge.first_seq, nudge.last_seq, len(nudge.bodies)) == (3, 5, 6, 2)

    async def test_several_executions_in_one_commit_have_a_nudge_each(self) -> None:
        self.make()
        other = requested(an_execution("other"))
        readers = [self.feed.subscribe(EXECUTION), self.feed.subscribe(ExecutionId("other"))]
        self.announcer.announce([a_change(an_execution(), requested()), a_change(an_execution("other"), other)])
        found = [reader.pending() for reader in readers]
        assert [nudge.execution.id for nudge in found if isinstance(nudge, LifecycleNudge)] == [EXECUTION, "other"]

    async def test_those_who_wait_are_told_that_they_moved(self) -> None:
        self.make()
        reader = self.feed.subscribe(EXECUTION)
        self.announcer.queue_moved([EXECUTION, ExecutionId("nobody")])
        assert reader.pending() == QueueNudge()


def test_a_cancellation_request_tells_its_reason() -> None:
    (event, _) = executions.cancel(started(), "alice", "too slow", START)
    assert isinstance(event, ExecutionCancelRequested)
    execution = executions.evolve(started(), event)
    assert json.loads(lifecycle_frame(execution, execution.history[-1], None))["reason"] == "too slow"
    assert replace(execution, history=()) != execution
