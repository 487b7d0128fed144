"""The shapes of answers, for OpenAPI and for FastAPI's own routes."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from runtape.domain.events import Priority
from runtape.domain.execution import Execution, OnInterrupt
from runtape.domain.outcome import OutcomeKind, Phase, Status

EXECUTION_EXAMPLE = "019a7c1e-5b1e-7cc0-8d0a-3f2b8f2f6c11"


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


class ExecutionAnswer(Answer):
    """An execution without its source and output."""

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
    def of(cls, execution: Execution) -> "ExecutionAnswer":
        """Show `execution`."""
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
        )


class ExecutionList(Answer):
    """A page of executions, newest first; `next_cursor` is null on the last one."""

    executions: list[ExecutionAnswer]
    next_cursor: str | None


class ResultAnswer(Answer):
    """Outcome and output: up to 64 KiB of each stream inline, the URLs give the exact bytes."""

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
    artifacts: list[str]
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


class EventList(Answer):
    """The events of an execution, oldest first."""

    events: list[EventAnswer]


class Accepted(Answer):
    """The execution was accepted and is durable."""

    execution_id: str = Field(examples=[EXECUTION_EXAMPLE])
    status: Status


class CancelRequest(BaseModel):
    """Why the execution is cancelled."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(max_length=500)] | None = Field(default=None, examples=["no longer needed"])


class CancelAnswer(Answer):
    """What became of the request to cancel."""

    execution_id: str = Field(examples=[EXECUTION_EXAMPLE])
    status: Annotated[str, Field(examples=["cancellation_requested", "cancelled"])]
    message: str


class ExampleScripts(Answer):
    """A short script for each language."""

    scripts: dict[str, str] = Field(examples=[{"python": "print('hello')\n"}])


class RuntimeAnswer(Answer):
    """A language in its versions, newest first."""

    versions: list[str] = Field(examples=[["3.12", "3.11"]])
    file_name: str = Field(examples=["main.py"])


class LimitsOverview(Answer):
    """The limits of this installation and what it can run."""

    default: LimitsAnswer
    maximum: LimitsAnswer
    script_bytes: int
    body_bytes: int
    files: int
    supported_runtimes: dict[str, RuntimeAnswer]


class Health(Answer):
    """Whether the service lives, or is ready."""

    status: str = Field(examples=["ok"])
    uptime_s: float


class Readiness(Answer):
    """Whether each part that a run needs answers."""

    status: str = Field(examples=["ready", "not_ready"])
    parts: dict[str, str] = Field(examples=[{"store": "ok", "log": "ok", "sandbox": "ok"}])
