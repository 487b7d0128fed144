"""The shapes of answers, for OpenAPI and for FastAPI's own routes."""

from datetime import datetime
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field

from runtape.domain.artifact import LeftOutFor
from runtape.domain.events import Priority
from runtape.domain.execution import Execution, OnInterrupt
from runtape.domain.outcome import OutcomeKind, Phase, Status

EXECUTION_EXAMPLE = "019a7c1e-5b1e-7cc0-8d0a-3f2b8f2f6c11"

_DEFAULT = {
    "wall_s": 10.0,
    "cpu_s": 10.0,
    "memory_mb": 256,
    "output_bytes": 1048576,
    "processes": 64,
    "disk_mb": 64,
    "inodes": 4096,
    "open_files": 256,
    "artifact_bytes": 16777216,
    "artifacts": 100,
}
_OUTCOME = {"kind": "exited", "exit_code": 0, "signal": None, "phase": "run", "reason": None, "message": None}
_USAGE = {
    "wall_ns": 11300000,
    "cpu_user_ns": 7100000,
    "cpu_system_ns": 2400000,
    "peak_memory_bytes": 6029312,
    "output_bytes": 6,
}
_ARTIFACT = {
    "path": "figure-1.png",
    "size_bytes": 18231,
    "sha256": "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
}
_TIMES = {
    "created_at": "2026-01-05T09:30:00.000000Z",
    "started_at": "2026-01-05T09:30:00.000300Z",
    "finished_at": "2026-01-05T09:30:00.011900Z",
}
_EXECUTION = {
    "execution_id": EXECUTION_EXAMPLE,
    "status": "completed",
    "lang": "python",
    "lang_version": "3.13",
    "priority": "normal",
    "on_interrupt": "restart",
    "limits": _DEFAULT,
    "attempt": 1,
    "cancel_requested": False,
    "result_stored": True,
    "outcome": _OUTCOME,
    "usage": _USAGE,
    "retry_of": "019a7c1d-8e02-7f10-b1c4-77c0a3d1e5f2",
    **_TIMES,
}


def _shown(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"example": example})


class Answer(BaseModel):
    """An answer's body."""

    model_config = ConfigDict(from_attributes=True)


class LimitsAnswer(Answer):
    """The limits that a run has."""

    wall_s: float
    cpu_s: float
    memory_mb: int
    output_bytes: int
    processes: int
    disk_mb: int
    inodes: int
    open_files: int
    artifact_bytes: int
    artifacts: int


class OutcomeAnswer(Answer):
    """What ended the run."""

    kind: OutcomeKind
    exit_code: int | None = None
    signal: int | None = None
    phase: Phase
    reason: str | None = None
    message: str | None = None


class UsageAnswer(Answer):
    """What the run used."""

    wall_ns: int
    cpu_user_ns: int
    cpu_system_ns: int
    peak_memory_bytes: int
    output_bytes: int


class TimelinePointAnswer(Answer):
    """What the run held at one moment, counted from its start, and the CPU time that it had used until then."""

    t_ns: int
    memory_bytes: int
    cpu_ns: int


class ExecutionAnswer(Answer):
    """An execution without its source and output."""

    model_config = _shown(_EXECUTION)

    execution_id: str = Field(examples=[EXECUTION_EXAMPLE])
    status: Status
    lang: str
    lang_version: str
    priority: Priority
    on_interrupt: OnInterrupt
    limits: LimitsAnswer
    attempt: int
    cancel_requested: bool
    result_stored: bool
    outcome: OutcomeAnswer | None
    usage: UsageAnswer | None
    retry_of: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, execution: Execution, **more: Any) -> Self:
        """Show `execution`, with the fields that a wider answer has beside its own."""
        return cls(
            execution_id=execution.id,
            status=execution.status,
            lang=execution.spec.lang,
            lang_version=execution.spec.lang_version,
            priority=execution.spec.priority,
            on_interrupt=execution.spec.on_interrupt,
            limits=LimitsAnswer.model_validate(execution.spec.limits),
            attempt=execution.attempt,
            cancel_requested=execution.cancel_requested,
            result_stored=execution.result is not None,
            outcome=OutcomeAnswer.model_validate(execution.outcome) if execution.outcome else None,
            usage=UsageAnswer.model_validate(execution.usage) if execution.usage else None,
            retry_of=execution.retry_of,
            created_at=execution.created_at,
            started_at=execution.started_at,
            finished_at=execution.finished_at,
            **more,
        )


class ExecutionList(Answer):
    """A page of executions, newest first; `next_cursor` is null on the last one."""

    model_config = _shown({"executions": [_EXECUTION], "next_cursor": EXECUTION_EXAMPLE})

    executions: list[ExecutionAnswer]
    next_cursor: str | None


class ArtifactAnswer(Answer):
    """A file that was kept; it can be downloaded under its path."""

    path: str
    size_bytes: int
    sha256: str


class ArtifactList(Answer):
    """The files that were kept, in the order of their paths, and how many were not, by the reason."""

    model_config = _shown({"artifacts": [_ARTIFACT], "artifacts_left_out": {"too_large": 1}})

    artifacts: list[ArtifactAnswer]
    artifacts_left_out: dict[LeftOutFor, int]


class ResultAnswer(Answer):
    """Outcome and output: up to 64 KiB of each stream inline, the URLs give the exact bytes."""

    model_config = _shown(
        {
            "execution_id": EXECUTION_EXAMPLE,
            "status": "completed",
            "outcome": _OUTCOME,
            "exit_code": 0,
            "attempt": 1,
            "lang": "python",
            "lang_version": "3.13",
            "stdout": "hello\n",
            "stderr": "",
            "truncated_inline": False,
            "stdout_url": f"/api/v1/executions/{EXECUTION_EXAMPLE}/output/stdout",
            "stderr_url": f"/api/v1/executions/{EXECUTION_EXAMPLE}/output/stderr",
            "stdout_bytes": 6,
            "stderr_bytes": 0,
            "stdout_sha256": "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
            "stderr_sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "usage": _USAGE,
            "timeline": [{"t_ns": 11300000, "memory_bytes": 6029312, "cpu_ns": 9500000}],
            "artifacts": [_ARTIFACT],
            "artifacts_left_out": {"too_large": 1},
            **_TIMES,
        }
    )

    execution_id: str = Field(examples=[EXECUTION_EXAMPLE])
    status: Status
    outcome: OutcomeAnswer | None
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
    usage: UsageAnswer | None
    timeline: list[TimelinePointAnswer] | None = Field(
        description="At most 200 points, the last at the end of the run; null unless the request asked for it."
    )
    artifacts: list[ArtifactAnswer]
    artifacts_left_out: dict[LeftOutFor, int] = Field(description="how many files were not kept, by the reason")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class EventAnswer(Answer):
    """One event in the life of an execution."""

    event_type: str = Field(examples=["execution_started"])
    event_id: str
    execution_id: str
    attempt: int
    timestamp: datetime
    status: Status
    reason: str | None = None
    correlation_id: str | None = None
    causation_id: str | None = None


class EventList(Answer):
    """A page of the events of an execution, oldest first; `next_cursor` is null on the last one."""

    model_config = _shown(
        {
            "events": [
                {
                    "event_type": "execution_started",
                    "event_id": f"{EXECUTION_EXAMPLE}.2",
                    "execution_id": EXECUTION_EXAMPLE,
                    "attempt": 1,
                    "timestamp": "2026-01-05T09:30:00.000300Z",
                    "status": "running",
                    "reason": None,
                    "correlation_id": "5f1c22d09b7a-1c",
                    "causation_id": f"{EXECUTION_EXAMPLE}.create.1",
                }
            ],
            "next_cursor": None,
        }
    )

    events: list[EventAnswer]
    next_cursor: str | None = None


class Accepted(Answer):
    """The execution was accepted and is durable."""

    model_config = _shown({"execution_id": EXECUTION_EXAMPLE, "status": "queued"})

    execution_id: str = Field(examples=[EXECUTION_EXAMPLE])
    status: Status


class CancelRequest(BaseModel):
    """Why the execution is cancelled."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"reason": "no longer needed"}})

    reason: Annotated[str, Field(max_length=500)] | None = None


class CancelAnswer(Answer):
    """What became of the request to cancel."""

    model_config = _shown(
        {
            "execution_id": EXECUTION_EXAMPLE,
            "status": "cancellation_requested",
            "message": "the program is being ended",
        }
    )

    execution_id: str = Field(examples=[EXECUTION_EXAMPLE])
    status: Annotated[str, Field(examples=["cancellation_requested", "cancelled"])]
    message: str


class ExampleScripts(Answer):
    """A short script for each language."""

    model_config = _shown({"scripts": {"python": "print('hello')\n"}})

    scripts: dict[str, str]


class RuntimeAnswer(Answer):
    """A language in its versions, newest first."""

    versions: list[str] = Field(examples=[["3.12", "3.11"]])
    file_name: str = Field(examples=["main.py"])
    packages: bool = Field(examples=[True], description="whether a run may have `requirements`")


class RoomAnswer(Answer):
    """What a cluster lets a program have at most, and how many fit; null where nothing is known to bound it."""

    cpu: float | None = None
    memory_mb: int | None = None
    disk_mb: int | None = None
    programs: int | None = None


class LimitsOverview(Answer):
    """The limits of this installation and what it can run."""

    model_config = _shown(
        {
            "default": _DEFAULT,
            "maximum": {
                "wall_s": 300.0,
                "cpu_s": 300.0,
                "memory_mb": 4096,
                "output_bytes": 67108864,
                "processes": 512,
                "disk_mb": 1024,
                "inodes": 65536,
                "open_files": 4096,
                "artifact_bytes": 67108864,
                "artifacts": 1000,
            },
            "script_bytes": 1048576,
            "body_bytes": 10485760,
            "files": 100,
            "supported_runtimes": {"python": {"versions": ["3.13", "3.11"], "file_name": "main.py", "packages": True}},
            "cluster": {"cpu": 2.0, "memory_mb": 4096, "disk_mb": 1024, "programs": 50},
        }
    )

    default: LimitsAnswer
    maximum: LimitsAnswer
    script_bytes: int
    body_bytes: int
    files: int
    supported_runtimes: dict[str, RuntimeAnswer]
    cluster: RoomAnswer | None = None


class Health(Answer):
    """That the service lives.  ``instance_proof`` answers a challenge."""

    model_config = _shown({"status": "ok", "uptime_s": 86400.25, "instance_proof": "1f40fc92" * 8})

    status: str
    uptime_s: float
    instance_proof: str | None


class Readiness(Answer):
    """Whether each part that a run needs answers."""

    model_config = _shown({"status": "ready", "parts": {"store": "ok", "log": "ok", "sandbox": "ok", "service": "ok"}})

    status: str = Field(description="ready, degraded or not_ready")
    parts: dict[str, str] = Field(description="ok, or what is wrong, by part")
