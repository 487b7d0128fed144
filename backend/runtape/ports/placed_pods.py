"""The pods that all workers together have placed in a cluster, as that knows them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome
from runtape.ports.pod_runtime import PodEnded, PodKey


class PodState(Enum):
    """How far a pod has come."""

    PENDING = "pending"
    """It does not run, and may yet."""
    RUNNING = "running"
    ENDED = "ended"
    """Nothing of it runs, and nothing will."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a pod has told of its program's end, and how much of that is known to its worker alone."""

    ended: PodEnded
    """Without a timeline, and without the files."""
    left_files: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedPod:
    """A pod as it was last seen.

    ``told`` is given the run's limits; it is None where the program's end was not told.  ``outcome`` is then what
    became of the pod, in the cluster's words: set when it has ended, and when it cannot begin.
    """

    name: str
    version: str
    """Changes whenever the pod does."""
    key: PodKey
    state: PodState
    ran: bool
    """False when it is certain that no program was started."""
    leaving: bool
    """Whether it is being deleted."""
    told: Callable[[Limits], Told] | None = None
    outcome: Outcome | None = None


class PlacedPods(Protocol):
    """The pods of programs, warm ones that wait for a program not among them."""

    def seen(self) -> Sequence[PlacedPod] | None:
        """Return the pods as they were last seen, None while that is not known."""
        ...

    async def find(self, key: PodKey) -> Sequence[PlacedPod]:
        """Ask for the pods of an attempt: none, one, or more if one was made twice.  Raises: Transient."""
        ...

    async def delete(self, pod: PlacedPod, *, force: bool = False) -> None:
        """Have `pod` deleted, when it is still as it was seen.

        By `force` it is forgotten also when its node does not say that it has ended, or somebody else keeps it.
        Raises: Transient.
        """
        ...
