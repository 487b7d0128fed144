"""The shapes of sagas."""

from datetime import datetime

from pydantic import ConfigDict, Field

from runtape.api.models import EXECUTION_EXAMPLE, Answer
from runtape.domain.events import Priority
from runtape.domain.saga import Saga, SagaState, SagaStep

_AT = "2026-01-05T09:30:00.000300Z"
_STEP = {"began_at": _AT, "done_at": _AT}
_SAGA = {
    "saga_id": EXECUTION_EXAMPLE,
    "execution_id": EXECUTION_EXAMPLE,
    "state": "cancelled",
    "attempt": 1,
    "priority": "normal",
    "reason": "cancelled",
    "steps": [
        {**_STEP, "step": "queue"},
        {**_STEP, "step": "allocate", "compensated_at": "2026-01-05T09:30:01.204200Z"},
        {**_STEP, "step": "create", "attempt": 1, "compensated_at": "2026-01-05T09:30:01.204200Z"},
        {"step": "monitor", "began_at": _AT, "attempt": 1, "compensated_at": "2026-01-05T09:30:01.204200Z"},
        {**_STEP, "step": "store", "began_at": "2026-01-05T09:30:01.204200Z", "done_at": "2026-01-05T09:30:01.204800Z"},
    ],
    "completed_steps": ["queue", "allocate", "create", "store"],
    "compensated_steps": ["allocate", "create", "monitor"],
    "created_at": "2026-01-05T09:30:00.000000Z",
}


class StepAnswer(Answer):
    """One step: when it began, and reached its own end or had to be given back, or both, one after the other."""

    step: SagaStep
    attempt: int | None = None
    began_at: datetime
    done_at: datetime | None = None
    compensated_at: datetime | None = None


class SagaAnswer(Answer):
    """The saga of an execution; `reason` is why it compensates, `due_at` when its step is looked after."""

    model_config = ConfigDict(json_schema_extra={"example": _SAGA})

    saga_id: str = Field(examples=[EXECUTION_EXAMPLE])
    execution_id: str = Field(examples=[EXECUTION_EXAMPLE])
    state: SagaState
    current_step: SagaStep | None = None
    attempt: int
    priority: Priority
    reason: str | None = None
    steps: list[StepAnswer]
    completed_steps: list[SagaStep]
    compensated_steps: list[SagaStep]
    created_at: datetime
    due_at: datetime | None = None

    @classmethod
    def of(cls, saga: Saga) -> "SagaAnswer":
        """Show `saga`; of a step that was repeated, the last time counts as done or compensated."""
        last = {record.step: record for record in saga.records}
        return cls(
            saga_id=saga.execution_id,
            execution_id=saga.execution_id,
            state=saga.state,
            current_step=None if saga.step is SagaStep.DONE else saga.step,
            attempt=saga.attempt,
            priority=saga.priority,
            reason=saga.reason,
            steps=[
                StepAnswer(
                    step=record.step,
                    attempt=record.attempt or None,
                    began_at=record.began_at,
                    done_at=record.done_at,
                    compensated_at=record.compensated_at,
                )
                for record in saga.records
            ],
            completed_steps=[step for step, record in last.items() if record.done_at is not None],
            compensated_steps=[step for step, record in last.items() if record.compensated_at is not None],
            created_at=saga.created_at,
            due_at=saga.due_at,
        )


class SagaList(Answer):
    """A page of sagas, newest first; `next_cursor` is null on the last one."""

    model_config = ConfigDict(json_schema_extra={"example": {"sagas": [_SAGA], "next_cursor": EXECUTION_EXAMPLE}})

    sagas: list[SagaAnswer]
    next_cursor: str | None
