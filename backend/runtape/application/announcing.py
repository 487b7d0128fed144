"""Telling the live feed what is now stored: lifecycle frames and output, each encoded once."""

from base64 import b64encode
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import msgspec

from runtape.application.results import Result, result_of
from runtape.domain.events import ResultStored
from runtape.domain.execution import Execution, Lifecycle
from runtape.domain.ids import EventId, ExecutionId
from runtape.domain.outcome import Status
from runtape.domain.tape import Record, Stream
from runtape.ports.live import LifecycleNudge, LiveFeed, OutputNudge, PodNudge, QueueNudge
from runtape.ports.pod_runtime import PodKey, PodStart
from runtape.ports.stores import Change, TapeSummary

_encode = msgspec.json.Encoder().encode


class LifecycleFrame(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The data of an unnamed frame; ``event_type`` is the event's type with ``_`` for ``.``."""

    event_type: str
    event_id: EventId
    execution_id: ExecutionId
    attempt: int
    timestamp: datetime
    status: Status
    reason: str | None = None
    result: Result | None = None


class OutputFrame(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The data of an ``output`` frame: ``text`` when the record is UTF-8, else ``b64``."""

    attempt: int
    seq: int
    stream: Stream
    t_ns: int
    text: str | None = None
    b64: str | None = None
    truncated: bool = False


class PodFrame(msgspec.Struct, kw_only=True):
    """The data of an unnamed frame without an id, which comes once at most for each attempt."""

    event_type: Literal["execution_pod"] = "execution_pod"
    execution_id: ExecutionId
    attempt: int
    start: PodStart


def lifecycle_frame(execution: Execution, step: Lifecycle, summary: TapeSummary | None) -> bytes:
    """Encode one step of `execution`; `summary` is needed for ``result.stored`` alone."""
    return _encode(
        LifecycleFrame(
            event_type=step.type.replace(".", "_"),
            event_id=execution.event_id(step.version),
            execution_id=execution.id,
            attempt=step.attempt,
            timestamp=step.at,
            status=step.status,
            reason=step.reason,
            result=result_of(execution, summary) if summary is not None else None,
        )
    )


def output_frame(attempt: int, record: Record) -> bytes:
    """Encode one record."""
    text: str | None
    b64: str | None
    try:
        text, b64 = record.data.decode(), None
    except UnicodeDecodeError:
        text, b64 = None, b64encode(record.data).decode()
    return _encode(
        OutputFrame(
            attempt=attempt,
            seq=record.seq,
            stream=record.stream,
            t_ns=record.t_ns,
            text=text,
            b64=b64,
            truncated=record.truncated,
        )
    )


class Announcer:
    """Publishes what was committed; encodes nothing that nobody watches."""

    def __init__(self, feed: LiveFeed) -> None:
        self._feed = feed
        self._summaries: dict[ExecutionId, list[TapeSummary]] = {}

    def remember(self, execution_id: ExecutionId, summary: TapeSummary) -> None:
        """Keep the summary that the ``result.stored`` frame needs, if what was made of it is committed.

        Chains that run side by side each remember theirs: a cancellation that comes too late has seen no output.
        """
        if self._feed.watched(execution_id):
            self._summaries.setdefault(execution_id, []).append(summary)

    def announce(self, changes: Sequence[Change]) -> None:
        """Publish the steps that `changes` added, one nudge per execution."""
        newest: dict[ExecutionId, Execution] = {}
        steps: dict[ExecutionId, int] = {}
        for change in changes:
            if isinstance(change.document, Execution):
                newest[change.document.id] = change.document
                steps[change.document.id] = steps.get(change.document.id, 0) + (
                    change.document.version - change.expected_version
                )
        for execution_id, execution in newest.items():
            remembered = self._summaries.pop(execution_id, ())
            if not self._feed.watched(execution_id):
                continue
            added = execution.history[-steps[execution_id] :] if steps[execution_id] else ()
            summary = next((each for each in remembered if _is_told_by(execution, each)), None)
            if any(step.type == ResultStored.type for step in added) and summary is None:
                # A reader came after the summary was made: it reads the tape, an empty nudge sends it there.
                added = ()
            bodies = tuple(
                lifecycle_frame(execution, step, summary if step.type == ResultStored.type else None) for step in added
            )
            self._feed.publish(execution_id, LifecycleNudge(execution, bodies))

    def output(self, key: PodKey, records: Sequence[Record]) -> None:
        """Publish records that are now on the tape."""
        if self._feed.watched(key.execution_id):
            bodies = tuple(output_frame(key.attempt, record) for record in records)
            self._feed.publish(key.execution_id, OutputNudge(key.attempt, records[0].seq, records[-1].seq, bodies))

    def started(self, key: PodKey, how: PodStart) -> None:
        """Tell how the attempt's program has come to its pod."""
        if self._feed.watched(key.execution_id):
            frame = PodFrame(execution_id=key.execution_id, attempt=key.attempt, start=how)
            self._feed.publish(key.execution_id, PodNudge(_encode(frame)))

    def queue_moved(self, execution_ids: Sequence[ExecutionId]) -> None:
        """Tell those who wait that they have another place."""
        for execution_id in execution_ids:
            self._feed.publish(execution_id, QueueNudge())


def _is_told_by(execution: Execution, summary: TapeSummary) -> bool:
    """Whether the stored result of `execution` was made of `summary`."""
    result = execution.result
    return result is not None and (
        (result.stdout_bytes, result.stderr_bytes, result.stdout_sha256, result.stderr_sha256)
        == (summary.stdout_bytes, summary.stderr_bytes, summary.stdout_sha256, summary.stderr_sha256)
    )
