"""Who may run now: an index of the sagas, never their truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from runtape.domain.events import Priority
from runtape.domain.ids import ExecutionId, ProjectId


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """How many executions may run at once, and wait: in whole, of one project, of one language.

    Whoever has waited for `ageing_s` stands in line with the next higher priority from then on.
    """

    running: int
    running_per_project: int
    running_per_lang: int
    queued: int
    queued_per_project: int
    ageing_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Entry:
    """An execution that wants to run; `since` is when it began to wait with its priority."""

    execution_id: ExecutionId
    project_id: ProjectId
    lang: str
    priority: Priority
    since: datetime


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the queue; `position` counts from 1."""

    position: int
    estimated_wait_s: float


class Gate(StrEnum):
    """What the operator lets through: everything; nobody to a place; nobody into the line either."""

    OPEN = "open"
    PAUSED = "paused"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Waiting:
    """One who waits: `priority` is the one that it stands in line with by now, which its entry's may have aged to."""

    entry: Entry
    priority: Priority
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """How the queue stands: how many wait and run, by project and in whole.  No project is there with nobody."""

    gate: Gate
    capacity: Capacity
    waiting: int
    running: int
    waiting_by_priority: Mapping[Priority, int]
    waiting_by_project: Mapping[ProjectId, int]
    running_by_project: Mapping[ProjectId, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Whether another execution of a project may be accepted: it would run or wait, whatever the `gate` says.

    ``in_s`` is in how many seconds that may be so, as far as it can be told; 0 where it is.
    """

    gate: Gate
    accepts: bool
    in_s: float


class AdmissionQueue(Protocol):
    """Orders by priority, then fair share between projects, then first come; within `Capacity`.

    Fair share: the project that runs the least is next; of those that run equally many, the one whose last turn is the
    longest ago.  One that comes anew takes its turn after all who wait already.  Every method raises Transient.
    """

    async def set_gate(self, gate: Gate) -> None:
        """Let no more through than `gate` says, from now on.  Those who run are not touched."""
        ...

    async def room(self, project_id: ProjectId) -> Room:
        """Return whether there is room for another execution of the project; that there is, where nobody can tell."""
        ...

    async def offer(self, entry: Entry) -> bool:
        """Admit `entry` now and return True; False, and nothing changes, when it has to wait.

        Idempotent: what is admitted stays admitted.
        """
        ...

    async def enqueue(self, entry: Entry) -> None:
        """Let `entry` wait for its turn.  Idempotent: what is admitted stays so, what waits keeps its place."""
        ...

    async def rank(self, entry: Entry) -> None:
        """Let the one who waits under the id of `entry` wait as `entry` from now on; else no effect."""
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

    async def held(self, longer_than_s: float) -> Sequence[ExecutionId]:
        """Return who has had a place among the running for longer than that."""
        ...

    async def place(self, execution_id: ExecutionId) -> Place | None:
        """Return where `execution_id` stands in the queue, about; None when it does not wait, or nobody can tell."""
        ...

    async def drained(self) -> None:
        """Return when nobody runs."""
        ...

    async def survey(self) -> Survey:
        """Return how the queue stands."""
        ...

    async def waiting(self, limit: int, after: ExecutionId | None) -> Sequence[Waiting]:
        """Return up to `limit` of those who wait in the order of their ids, which is that of time, beyond `after`."""
        ...

    async def front(self, count: int) -> Sequence[ExecutionId]:
        """Return up to `count` of those who wait, about in the order in which they will be admitted."""
        ...


class GateStore(Protocol):
    """The operator's gate at rest."""

    async def gate(self) -> Gate:
        """Return the gate that was set last; `OPEN` before."""
        ...

    async def put_gate(self, gate: Gate) -> None:
        """Remember `gate`; survives the loss of power.  Raises: Transient."""
        ...
