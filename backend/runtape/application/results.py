"""What a client gets of an execution: the document and the tape of its last attempt put together."""

from datetime import datetime

import msgspec

from runtape.domain.artifact import Artifact, LeftOutFor
from runtape.domain.execution import Execution
from runtape.domain.ids import ExecutionId
from runtape.domain.outcome import Outcome, Status, TimelinePoint, Usage
from runtape.domain.tape import Stream
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import HEAD_BYTES, TapeStore, TapeSummary


class Result(msgspec.Struct, kw_only=True):
    """What a client gets of an execution: inline output up to 64 KiB per stream, URLs for all of it.

    Before the end, ``outcome``, ``usage`` and the digests are null, the output is what is on the tape so far, and there
    are no artifacts.
    """

    execution_id: ExecutionId
    status: Status
    outcome: Outcome | None
    exit_code: int | None
    attempt: int
    lang: str
    lang_version: str
    stdout: str
    stderr: str
    truncated_inline: bool
    stdout_url: str
    stderr_url: str
    stdout_bytes: int
    stderr_bytes: int
    stdout_sha256: str | None
    stderr_sha256: str | None
    usage: Usage | None
    timeline: tuple[TimelinePoint, ...] | None
    artifacts: tuple[Artifact, ...]
    artifacts_left_out: dict[LeftOutFor, int]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


async def summary_of(execution: Execution, tape: TapeStore) -> TapeSummary:
    """Return what the last attempt's tape holds; once the result is stored, no more of it is read than the heads."""
    key = PodKey(execution.id, execution.attempt)
    stored = execution.result
    if stored is None:
        return await tape.summary(key)

    async def head(stream: Stream, size_bytes: int) -> bytes:
        return b"".join([piece async for piece in tape.read_stream(key, stream, 0, min(size_bytes, HEAD_BYTES))])

    return TapeSummary(
        last_seq=execution.last_seq,
        stdout_bytes=stored.stdout_bytes,
        stderr_bytes=stored.stderr_bytes,
        stdout_sha256=stored.stdout_sha256,
        stderr_sha256=stored.stderr_sha256,
        stdout_head=await head(Stream.STDOUT, stored.stdout_bytes),
        stderr_head=await head(Stream.STDERR, stored.stderr_bytes),
        truncated=stored.truncated,
    )


def result_of(execution: Execution, summary: TapeSummary) -> Result:
    """Build the result of `execution`, whose last attempt's tape holds what `summary` says."""
    stored = execution.result
    outcome = execution.outcome
    url = f"/api/v1/executions/{execution.id}/output"
    inline = len(summary.stdout_head) + len(summary.stderr_head)
    return Result(
        execution_id=execution.id,
        status=execution.status,
        outcome=outcome,
        exit_code=outcome.exit_code if outcome else None,
        attempt=execution.attempt,
        lang=execution.spec.lang,
        lang_version=execution.spec.lang_version,
        stdout=_inline(summary.stdout_head, summary.stdout_bytes),
        stderr=_inline(summary.stderr_head, summary.stderr_bytes),
        truncated_inline=inline < summary.stdout_bytes + summary.stderr_bytes,
        stdout_url=f"{url}/stdout",
        stderr_url=f"{url}/stderr",
        stdout_bytes=summary.stdout_bytes,
        stderr_bytes=summary.stderr_bytes,
        stdout_sha256=stored.stdout_sha256 if stored else None,
        stderr_sha256=stored.stderr_sha256 if stored else None,
        usage=execution.usage,
        timeline=execution.timeline,
        artifacts=execution.artifacts.kept,
        artifacts_left_out={each.reason: each.count for each in execution.artifacts.left_out},
        created_at=execution.created_at,
        started_at=execution.started_at,
        finished_at=execution.finished_at,
    )


def _inline(head: bytes, size_bytes: int) -> str:
    """Decode the first bytes of a stream; a character that the cut went through is left out."""
    if len(head) < size_bytes:
        for length in range(1, min(3, len(head)) + 1):
            byte = head[-length]
            if byte >= 0xC0:  # the first byte of a character, which tells how many it has
                whole = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
                head = head[:-length] if length < whole else head
                break
            if byte < 0x80:
                break
    return head.decode(errors="replace")
