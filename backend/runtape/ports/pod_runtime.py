"""Running a program in isolation: one contract for local sandboxes and for pods."""

from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol, runtime_checkable

from runtape.domain.artifact import LeftOut
from runtape.domain.ids import ExecutionId
from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome, TimelinePoint, Usage
from runtape.domain.source import Source
from runtape.domain.tape import Record


@dataclass(frozen=True, slots=True)
class Runtime:
    """A language in a version that can be run here."""

    lang: str
    version: str
    file_name: str
    example: str
    """A short script in this language that prints something."""
    packages: bool = False
    """Whether a source in this language may have requirements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSpec:
    """One program to run: what to execute, with what input, within what limits."""

    execution_id: ExecutionId
    lang: str
    lang_version: str
    source: Source
    limits: Limits
    timeline: bool = False
    """Whether the end is to tell memory and CPU time over time."""


@dataclass(frozen=True, slots=True)
class PodKey:
    """The identity of a pod: an attempt of an execution."""

    execution_id: ExecutionId
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PodEnded:
    """The end of a pod: told once its last record can be read, and only once by each `watch`."""

    key: PodKey
    outcome: Outcome
    usage: Usage
    last_seq: int
    """``seq`` of the attempt's last record; 0 when it printed nothing."""
    timeline: tuple[TimelinePoint, ...] | None = None
    """1 to 200 points, evenly spaced but for the last, which is at the end and has the totals of `usage`.

    None unless the spec asked for it; empty when no program was started.
    """
    artifacts: int = 0
    """How many files `PodRuntime.artifacts` yields."""
    left_out: tuple[LeftOut, ...] = ()
    """What the program left beside them, within no limit or not as a file."""
    ran: bool = True
    """False when it is certain that the program was not started, and so can be as if for the first time."""


@dataclass(frozen=True, slots=True)
class PodArtifact:
    """A file that a program has left: its path as `artifact_path` has it, and all its bytes."""

    path: str
    content: bytes


class PodStart(StrEnum):
    """How a program came to its pod."""

    WARM = "warm"
    """The pod was there, waiting."""
    COLD = "cold"
    """It was made for the program, which took seconds."""


class PodRuntime(Protocol):
    """Runs programs in isolation, at most one per (execution, attempt)."""

    async def runtimes(self) -> Sequence[Runtime]:
        """Return what can be run here, newest version of a language first; stable while the process lives."""
        ...

    async def start(self, spec: PodSpec, attempt: int, lease_expires_at: datetime) -> PodStart | None:
        """Start `spec` as `attempt`, and return once the code is handed over, how.

        None where it makes no difference worth telling, and where nothing was started.

        Idempotent by (execution, attempt): a second call with the same pair does nothing, also after the end.
        The runtime kills the program by itself when `lease_expires_at` passes without `extend`.
        The program's own failure, a limit and a failing sandbox are told by `watch`, never raised.  So are requirements
        of the source that cannot be had: an outcome of phase `RESOLVE`, with the resolver's words on stderr.  The time
        that it takes to get them counts for none of the limits.
        Raises: Transient, when the pod cannot be made just now and nothing was started.
        """
        ...

    def records(self, key: PodKey, after_seq: int = 0) -> AsyncIterator[tuple[Record, ...]]:
        """Yield the output of a started pod in ``seq`` order, in batches, live, and stop after the last record.

        A batch holds what was read since the previous one was taken: a consumer that is slow gets fewer and
        larger batches, and the program is stopped (by its full pipe) before more than a few MiB wait.
        One consumer at a time; a later one resumes with `after_seq`, while the pod is not removed.
        A pod that is not known here yields nothing.
        """
        ...

    def artifacts(self, key: PodKey) -> AsyncIterator[PodArtifact]:
        """Yield the files that an ended pod has left, in the order of their paths' bytes; again at each call.

        They are complete when the end is told, within ``limits.artifacts`` and ``limits.artifact_bytes``, and can be
        read until the pod is removed.  However a program ended, they are those that it left then; none of a pod that
        was lost rather than ended.  A pod that is not known here yields nothing.
        """
        ...

    async def extend(self, key: PodKey, lease_expires_at: datetime) -> None:
        """Move the time at which the runtime kills the program; no effect when the pod has ended."""
        ...

    async def kill(self, key: PodKey) -> None:
        """End the program within a second; its outcome is then `CANCELLED` unless it had ended before.

        Idempotent; no effect when the pod has ended or is not known here.
        """
        ...

    async def remove(self, key: PodKey) -> None:
        """Forget an ended pod and free all it holds; idempotent.  Kills it when it still runs."""
        ...

    async def list(self) -> Sequence[PodKey]:
        """Return the pods that were started and not removed."""
        ...

    def watch(self) -> AsyncIterator[PodEnded]:
        """Yield each pod's end, beginning with those that ended and were not removed.

        At-least-once over several watches.
        """
        ...

    async def ready(self) -> None:
        """Return when a program could be started now.  Raises: SandboxUnavailable, with the reason and the fix."""
        ...

    async def close(self) -> None:
        """Kill every program, wait until each is gone and free all resources.  Idempotent."""
        ...


@runtime_checkable
class PodKeeper(Protocol):
    """A runtime with pods that wait for programs, which somebody has to make."""

    async def keep(self) -> None:
        """Keep as many pods waiting as there are to be; runs until cancelled.

        One process of those that share the pods is enough, and two at once for a moment do no harm.
        """
        ...

    async def inherit(self, owners: Collection[str]) -> Collection[PodKey]:
        """End the programs that run on in the pods of dead processes, and return once none of them runs.

        Those that had ended before are returned: somebody may yet record what they have told.
        Raises: Transient, also when some do not end.
        """
        ...
