"""The shapes of the queue, and of executions as administrators and those who wait see them."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from runtape.api.models import EXECUTION_EXAMPLE, Answer, ExecutionAnswer
from runtape.domain.events import Priority
from runtape.domain.execution import Execution
from runtape.domain.saga import Saga
from runtape.ports.admission import Gate, Place, Survey, Waiting

_EXECUTION: dict[str, Any] = dict(ExecutionAnswer.model_json_schema()["example"])
_PLACE = {"position": 3, "estimated_wait_s": 1.25}
_WAITING = {
    "execution_id": EXECUTION_EXAMPLE,
    "project_id": "019a7c1d-0001-7f10-b1c4-77c0a3d1e5f2",
    "lang": "python",
    "priority": "low",
    "current_priority": "normal",
    "waiting_since": "2026-01-05T09:30:00.000000Z",
    **_PLACE,
}
_STATE = {
    "gate": "open",
    "drained": False,
    "queue_depth": 1,
    "active_count": 4,
    "capacity": {
        "running": 4,
        "running_per_project": 4,
        "running_per_lang": 4,
        "queued": 10000,
        "queued_per_project": 5000,
    },
    "by_priority": {"critical": 0, "high": 0, "normal": 1, "low": 0, "background": 0},
    "by_project": {"019a7c1d-0001-7f10-b1c4-77c0a3d1e5f2": {"waiting": 1, "running": 4}},
}


def _shown(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"example": example})


class PlaceAnswer(Answer):
    """A place in the queue, as far as it can be told: `position` counts from 1."""

    model_config = _shown(_PLACE)

    position: int
    estimated_wait_s: float


class ExecutionInQueueAnswer(ExecutionAnswer):
    """An execution without its source and output; `queue` is its place while it waits for one, else null."""

    model_config = _shown(_EXECUTION)

    queue: PlaceAnswer | None = None

    @classmethod
    def at(cls, execution: Execution, place: Place | None) -> Self:
        """Show `execution` at its place."""
        return cls.of(execution, queue=PlaceAnswer.model_validate(place) if place is not None else None)


class OwnedExecutionAnswer(ExecutionAnswer):
    """An execution without its source and output, and whose it is."""

    model_config = _shown({**_EXECUTION, "user_id": "user-1", "project_id": _WAITING["project_id"]})

    user_id: str
    project_id: str

    @classmethod
    def whole(cls, execution: Execution) -> Self:
        """Show `execution`."""
        return cls.of(execution, user_id=execution.user_id, project_id=execution.project_id)


class OwnedExecutionList(Answer):
    """A page of everybody's executions, newest first; `next_cursor` is null on the last one."""

    model_config = _shown(
        {
            "executions": [{**_EXECUTION, "user_id": "user-1", "project_id": _WAITING["project_id"]}],
            "next_cursor": EXECUTION_EXAMPLE,
        }
    )

    executions: list[OwnedExecutionAnswer]
    next_cursor: str | None


class CapacityAnswer(Answer):
    """How many executions may run at once, and wait."""

    running: int
    running_per_project: int
    running_per_lang: int
    queued: int
    queued_per_project: int


class ProjectLoadAnswer(Answer):
    """How many executions of a project wait and run."""

    waiting: int
    running: int


class QueueState(Answer):
    """How the queue stands.  `drained`: nothing new comes in and nothing runs any more; the service may be stopped."""

    model_config = _shown(_STATE)

    gate: Gate
    drained: bool
    queue_depth: int
    active_count: int
    capacity: CapacityAnswer
    by_priority: dict[Priority, int]
    by_project: dict[str, ProjectLoadAnswer]

    @classmethod
    def of(cls, survey: Survey, **more: Any) -> Self:
        """Show `survey`."""
        projects = sorted(survey.waiting_by_project.keys() | survey.running_by_project.keys())
        return cls(
            gate=survey.gate,
            drained=survey.gate is Gate.DRAINING and not survey.running,
            queue_depth=survey.waiting,
            active_count=survey.running,
            capacity=CapacityAnswer.model_validate(survey.capacity),
            by_priority=dict(survey.waiting_by_priority),
            by_project={
                project: ProjectLoadAnswer(
                    waiting=survey.waiting_by_project.get(project, 0), running=survey.running_by_project.get(project, 0)
                )
                for project in projects
            },
            **more,
        )


class WaitingAnswer(PlaceAnswer):
    """An execution that waits: `current_priority` is what its wait has made of the one that it was given."""

    execution_id: str
    project_id: str
    lang: str
    priority: Priority
    current_priority: Priority
    waiting_since: datetime

    @classmethod
    def of(cls, waiting: Waiting) -> "WaitingAnswer":
        """Show `waiting`."""
        entry, place = waiting.entry, waiting.place
        return cls(
            execution_id=entry.execution_id,
            project_id=entry.project_id,
            lang=entry.lang,
            priority=entry.priority,
            current_priority=waiting.priority,
            waiting_since=entry.since,
            position=place.position,
            estimated_wait_s=place.estimated_wait_s,
        )


class QueueAnswer(QueueState):
    """How the queue stands, and a page of those who wait, the oldest first; `next_cursor` is null on the last one."""

    model_config = _shown({**_STATE, "entries": [_WAITING], "next_cursor": EXECUTION_EXAMPLE})

    entries: list[WaitingAnswer]
    next_cursor: str | None


class PriorityRequest(BaseModel):
    """The priority that an execution shall wait with."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"priority": "high"}})

    priority: Priority


class PriorityAnswer(Answer):
    """The priority that an execution now waits with, and its place, if it has not left the line since."""

    model_config = _shown({"execution_id": EXECUTION_EXAMPLE, "priority": "high", "queue": _PLACE})

    execution_id: str = Field(examples=[EXECUTION_EXAMPLE])
    priority: Priority
    queue: PlaceAnswer | None

    @classmethod
    def of(cls, saga: Saga, place: Place | None) -> "PriorityAnswer":
        """Show what `saga` says now."""
        queue = PlaceAnswer.model_validate(place) if place is not None else None
        return cls(execution_id=saga.execution_id, priority=saga.priority, queue=queue)
