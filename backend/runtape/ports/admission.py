"""Who may run now: an index of the sagas, never their truth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from runtape.domain.events import Priority
from runtape.domain.ids import ExecutionId, ProjectId


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """How many executions may run at once, and wait: in whole, of one project, of one language."""

    running: int
    running_per_project: int
    running_per_lang: int
    queued: int
    queued_per_project: int


@dataclass(frozen=True, slots=True)
class Entry:
    """An execution that wants to run."""

    execution_id: ExecutionId
    project_id: ProjectId
    lang: str
    priority: Priority


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the queue; `position` counts from 1."""

    position: int
    estimated_wait_s: float


class AdmissionQueue(Protocol):
    """Orders by priority, then fair share between projects, then first come; within `Capacity`."""

    def has_room(self, project_id: ProjectId) -> bool:
        """Whether another execution of the project may be accepted: it would run or wait."""
        ...

    async def offer(self, entry: Entry) -> bool:
        """Admit `entry` now and return True; False, and nothing changes, when it has to wait.

        Idempotent: what is admitted stays admitted.
        """
        ...

    async def enqueue(self, entry: Entry) -> None:
        """Let `entry` wait for its turn.  Idempotent: what is admitted stays so, what waits keeps its place."""
        ...

    async def restore(self, entries: Sequence[Entry], *, admitted: bool) -> None:
        """Take over what the sagas say, in order, without granting anything."""
        ...

    async def release(self, execution_id: ExecutionId) -> None:
        """Give back the place among the running or in the queue; idempotent."""
        ...

    async def grant(self) -> Sequence[Entry]:
        """Admit whoever may run now and return them, in order."""
        ...

    async def place(self, execution_id: ExecutionId) -> Place | None:
        """Return where `execution_id` stands in the queue; None when it does not wait."""
        ...

    def front(self, count: int) -> Sequence[ExecutionId]:
        """Return up to `count` of those who wait, about in the order in which they will be admitted."""
        ...
