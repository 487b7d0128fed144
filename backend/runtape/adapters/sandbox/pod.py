"""One run: an armed box with its order, its output, its deadlines and its end.

Theory of operation.  Everything happens in callbacks of the event loop; a run costs no task, no thread, no poll.
Three descriptors are listened to: stdout, stderr, and the order channel, on which the box's pid 1 tells the end once
every process of the program is dead.  So at that moment all output lies in the two pipes: they are emptied, and the
run is over, while the kernel still takes the box apart.  To stop a program we ask pid 1 to kill it, and the same
follows.  Pid 1 holds the write ends of the pipes until its own death: no end of file wakes us in between.

The keeper watches the CPU time, and says when it is used up; the program is then stopped like for any other limit.

A program may have left files.  The box tells so with its end, and hands them over when it is asked to
(`collection.py`).  How the run ended stands by then: whatever happens meanwhile costs files, and nothing else.

A box of which pid 1 itself is killed tells nothing: by the keeper or the kernel, for a limit, or by us when it does not
answer.  The keeper then tells its end, with what it used, after it has reaped it.  Nobody has to tell that pid 1 is
dead: that is seen by its pidfd, so a run that was stopped ends, whatever became of the telling.

One timer serves all deadlines of the run, the nearest of: the end of its lease, its wall time, and the first moment
at which all processors together could have spent its CPU time, when the keeper is asked to watch that.

Who wins.  The program's own end wins over a reason to stop it that came too late; the output limit wins over that,
since what was printed after is lost.  Otherwise the first reason for which we stopped it.
"""

import asyncio
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import structlog

from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome, OutcomeKind, Phase, Usage
from runtape.domain.tape import RECORD_BYTES, Stream
from runtape.ports.pod_runtime import PodArtifact, PodEnded, PodKey

from .armed_box import ArmedBox
from .collection import TIMEOUT_S as COLLECTION_TIMEOUT_S
from .collection import Collection
from .keeper import wire
from .order import group_limits
from .output import Output
from .pool import BoxPool
from .timeline import Timeline

log = structlog.get_logger(__name__)

_CPUS: Final = os.cpu_count() or 1
_TIMER_GRAIN_S: Final = 0.001
_NEVER_S: Final = math.inf
_STOP_TIMEOUT_S: Final = 0.3
"""Time that pid 1 has to kill the program and tell its end, before it is killed itself."""
_TOLD_TIMEOUT_S: Final = 5.0
"""How long after the kill of a box somebody may take to tell its end."""

LEASE_EXPIRED: Final = Outcome(
    kind=OutcomeKind.SANDBOX_ERROR, reason="lease_expired", message="the lease was not extended in time"
)
OUTPUT_CUT: Final = Outcome(kind=OutcomeKind.OUTPUT_LIMIT)
CANCELLED: Final = Outcome(kind=OutcomeKind.CANCELLED)
_KILLED_BY_KEEPER: Final = {
    "oom": Outcome(kind=OutcomeKind.MEMORY_LIMIT, reason="oom"),
    "memory": Outcome(kind=OutcomeKind.MEMORY_LIMIT, reason="oom"),
    "cpu": Outcome(kind=OutcomeKind.TIME_LIMIT),
    "keeper_lost": Outcome(
        kind=OutcomeKind.SANDBOX_ERROR, reason="keeper_lost", message="the process that keeps the sandboxes died"
    ),
}
_INIT_KILLED: Final = Outcome(
    kind=OutcomeKind.SANDBOX_ERROR, reason="init_killed", message="the sandbox's first process was killed from outside"
)


class Pod:
    """A run from its acceptance to its removal."""

    def __init__(
        self,
        key: PodKey,
        limits: Limits,
        lease_due_s: float,
        on_ended: Callable[[PodEnded], None],
        *,
        output: Output | None = None,
        began_ns: int | None = None,
        timeline: bool = False,
        collects: bool = True,
    ) -> None:
        """Prepare.  `output` and `began_ns` are those of a run that began with another pod, if any did.

        `timeline` asks for memory and CPU time over time.  Without `collects`, or a limit that allows any, the files
        that the program leaves are of no interest.
        """
        self._loop = asyncio.get_running_loop()
        self._key = key
        self._limits = limits
        self._on_ended = on_ended
        self._pool: BoxPool | None = None
        self._box: ArmedBox | None = None
        self._stopped_for: Outcome | None = None
        self._phase = Phase.RUN
        self._reading = False
        self._began_ns = began_ns
        self._started_ns = 0
        self._with_timeline = timeline
        self._timeline: Timeline | None = None
        self._lease_due_s = lease_due_s
        self._wall_due_s = _NEVER_S
        self._cpu_due_s = _NEVER_S
        self._timer: asyncio.TimerHandle | None = None
        self._seen_cpu_ns = (0, 0)
        """User and system time at which the keeper found the CPU time used up."""
        self._collection = Collection(limits) if collects and limits.artifacts else None
        self._concluded: tuple[Outcome, Usage] | None = None
        """How the run ended, while its files are on their way."""
        self.output = Output(limits.output_bytes) if output is None else output
        self.ended: PodEnded | None = None
        self.gone: asyncio.Future[None] = self._loop.create_future()
        """Done once nothing of the run is left but its records and its end."""
        if began_ns is not None:
            self._set_timer()  # nobody waits any more who could be refused: the lease holds without a box too

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def artifacts(self) -> list[PodArtifact]:
        """The files that the program has left; known once it has ended."""
        return self._collection.files if self._collection is not None else []

    # Starting

    def wait(self, phase: Phase) -> None:
        """Hold the lease before there is a box; what ends the run until `begin` belongs to `phase`."""
        self._phase = phase
        self._set_timer()

    def begin(self, box: ArmedBox, pool: BoxPool, order: wire.Order) -> None:
        """Hand `order` over and listen.  Raises: OSError, when the box is dead and nothing was started."""
        self._started_ns = time.monotonic_ns() if self._began_ns is None else self._began_ns
        box.hand_over(order)
        self._box, self._pool = box, pool
        self._phase = Phase.RUN
        self._loop.add_reader(box.channel.fileno(), self._on_told)
        self._read_on()
        if not pool.armed.grouped:
            pool.bound_memory(box, group_limits(self._limits, pool.armed.ours)[0])
        if self._with_timeline:
            self._timeline = Timeline(self._started_ns)
            pool.follow(box, self._timeline.add)
        if self._timer is not None:
            self._timer.cancel()
        now_s = self._loop.time()
        self._wall_due_s = now_s + self._limits.wall_s
        self._cpu_due_s = now_s + self._limits.cpu_s / _CPUS
        self._set_timer()

    def fail(self, outcome: Outcome) -> None:
        """End a run that has no box."""
        if self.ended is None and self._box is None:
            self._end(outcome, Usage(output_bytes=self.output.total_bytes))

    # Output

    def _read_on(self) -> None:
        if self._box is not None and not self._reading and self._concluded is None:
            self._reading = True
            self._loop.add_reader(self._box.stdout_fd, self._on_readable, self._box.stdout_fd, Stream.STDOUT)
            self._loop.add_reader(self._box.stderr_fd, self._on_readable, self._box.stderr_fd, Stream.STDERR)

    def _pause(self) -> None:
        if self._box is not None and self._reading:
            self._reading = False
            self._loop.remove_reader(self._box.stdout_fd)
            self._loop.remove_reader(self._box.stderr_fd)

    def _on_readable(self, fd: int, stream: Stream) -> None:
        try:
            piece = os.read(fd, RECORD_BYTES)
        except BlockingIOError:
            return
        if not piece:  # pid 1 was killed; the keeper will tell
            self._loop.remove_reader(fd)
        elif not self.output.append(stream, time.monotonic_ns() - self._started_ns, piece):
            self._pause()
            self.stop(OUTPUT_CUT)
        elif self.output.above_high_water:
            self._pause()

    def resume_reading(self) -> None:
        """Go on after a reader has taken what waited."""
        if not self.output.truncated:
            self._read_on()

    def _drain(self, box: ArmedBox) -> None:
        """Take what lies in the pipes; all writers are dead, so this ends."""
        t_ns = time.monotonic_ns() - self._started_ns
        for fd, stream in ((box.stdout_fd, Stream.STDOUT), (box.stderr_fd, Stream.STDERR)):
            try:
                while (piece := os.read(fd, RECORD_BYTES)) and self.output.append(stream, t_ns, piece):
                    pass
            except BlockingIOError:
                pass

    # Deadlines

    def extend(self, lease_due_s: float) -> None:
        """Move the end of the lease.  A timer that is set for the old one finds nothing due and is set anew."""
        sooner = lease_due_s < self._lease_due_s
        self._lease_due_s = lease_due_s
        waits = self._stopped_for is None and self._concluded is None and self.ended is None
        if sooner and self._timer is not None and waits:
            self._timer.cancel()
            self._set_timer()

    def _set_timer(self) -> None:
        due_s = min(self._lease_due_s, self._wall_due_s, self._cpu_due_s)
        self._timer = self._loop.call_at(due_s, self._on_due)

    def _on_due(self) -> None:
        now_s = self._loop.time() + _TIMER_GRAIN_S
        if now_s >= self._lease_due_s:
            self.stop(LEASE_EXPIRED)
        elif now_s >= self._wall_due_s:
            self.stop(Outcome(kind=OutcomeKind.WALL_LIMIT))
        else:
            if now_s >= self._cpu_due_s and self._box is not None and self._pool is not None:
                self._cpu_due_s = _NEVER_S
                self._pool.bound_cpu(self._box, int(self._limits.cpu_s * 1e9), self._on_over_cpu)
            self._set_timer()

    def _on_over_cpu(self, user_ns: int, system_ns: int) -> None:
        self._seen_cpu_ns = (user_ns, system_ns)
        self.stop(_KILLED_BY_KEEPER["cpu"])

    # The end

    def stop(self, reason: Outcome) -> None:
        """Kill the program for `reason`, unless it is being killed already or has ended."""
        if self.ended is not None or self._stopped_for is not None:
            return
        if self._concluded is not None:
            self._finish_collecting()
        elif self._box is None:
            self.fail(reason)
        else:
            self._stopped_for = reason
            self._box.stop()
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(_STOP_TIMEOUT_S, self._kill, self._box)

    def _kill(self, box: ArmedBox) -> None:
        box.kill()
        self._timer = self._loop.call_later(_TOLD_TIMEOUT_S, self._bury, box)

    def _bury(self, box: ArmedBox) -> None:
        """End a run whose box is dead and whose end nobody tells: a defect, but no reason to wait for ever."""
        if box.dead:
            log.error("sandbox.end_not_told", execution_id=self._key.execution_id, attempt=self._key.attempt)
            self.on_reaped(wire.Reaped("", 0, 0, 0))
        else:
            self._timer = self._loop.call_later(_TOLD_TIMEOUT_S, self._bury, box)

    def _on_told(self) -> None:
        """Take the end that the box tells."""
        box = self._box
        if box is None:
            return
        if self._collection is not None and self._concluded is not None:
            datagram = box.receive()
            if datagram is not None and not self._collection.take(datagram):
                self._finish_collecting()
            return
        told = box.hear()
        if told is None:
            self._loop.remove_reader(box.channel.fileno())  # killed: the keeper tells the end
        else:
            self._conclude(box, told)

    def on_reaped(self, reaped: wire.Reaped) -> None:
        """Take the end of a box that was killed; what it may have told before still counts."""
        box = self._box
        if box is None or self.ended is not None:
            return
        if self._concluded is not None:
            self._finish_collecting()
            return
        told = box.hear()
        if told is not None:
            self._conclude(box, told)
            return
        self._drain(box)
        outcome = self._stopped_for or _KILLED_BY_KEEPER.get(reaped.reason, _INIT_KILLED)
        self._close(box, outcome, reaped.cpu_user_ns, reaped.cpu_system_ns, reaped.peak_memory_bytes)

    def _conclude(self, box: ArmedBox, told: wire.Ended | str) -> None:
        self._drain(box)
        if isinstance(told, str):
            message = f"the program could not be started: {told}"
            failed = Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason="start_failed", message=message)
            self._close(box, self._stopped_for or failed, 0, 0, 0)
            return
        outcome = self._outcome_of(told)
        spent = told.cpu_user_ns, told.cpu_system_ns, told.peak_memory_bytes
        if told.left_files and self._collection is not None:
            self._begin_collecting(box, self._collection, outcome, self._usage(*spent))
        else:
            self._close(box, outcome, *spent)

    def _begin_collecting(self, box: ArmedBox, collection: Collection, outcome: Outcome, usage: Usage) -> None:
        self._concluded = (outcome, usage)
        self._pause()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(COLLECTION_TIMEOUT_S, self._finish_collecting)
        try:
            box.collect(collection.request())
        except OSError:  # it was killed just now
            self._finish_collecting()

    def _finish_collecting(self) -> None:
        """End the run with the files that have come; a box that has more ends when its channel is closed."""
        box, concluded = self._box, self._concluded
        if box is not None and concluded is not None:
            self._free(box)
            self._end(*concluded)

    def _outcome_of(self, ended: wire.Ended) -> Outcome:
        if self.output.truncated:
            return OUTPUT_CUT
        if ended.oom_kills:
            return _KILLED_BY_KEEPER["oom"]
        status = ended.wait_status
        if not os.WIFSIGNALED(status):
            return Outcome(kind=OutcomeKind.EXITED, exit_code=os.WEXITSTATUS(status))
        number = os.WTERMSIG(status)
        out_of_cpu = ended.cpu_user_ns + ended.cpu_system_ns >= self._limits.cpu_s * 1e9
        if number == signal.SIGKILL and self._stopped_for is not None:
            late = out_of_cpu and self._stopped_for.kind is OutcomeKind.WALL_LIMIT
            return _KILLED_BY_KEEPER["cpu"] if late else self._stopped_for
        if number == signal.SIGXCPU or (number == signal.SIGKILL and out_of_cpu):
            return _KILLED_BY_KEEPER["cpu"]
        return Outcome(kind=OutcomeKind.SIGNALLED, signal=number)

    def _close(self, box: ArmedBox, outcome: Outcome, user_ns: int, system_ns: int, peak_bytes: int) -> None:
        self._free(box)
        usage = self._usage(user_ns, system_ns, peak_bytes)
        self._end(OUTPUT_CUT if self.output.truncated else outcome, usage)

    def _free(self, box: ArmedBox) -> None:
        self._pause()
        self._loop.remove_reader(box.channel.fileno())
        self._box = None
        if self._pool is not None:
            self._pool.release(box)

    def _usage(self, user_ns: int, system_ns: int, peak_bytes: int) -> Usage:
        # Two accounts that differ by ms: one who was stopped for the greater is told the greater.
        user_ns, system_ns = max((user_ns, system_ns), self._seen_cpu_ns, key=sum)
        return Usage(
            wall_ns=time.monotonic_ns() - self._started_ns,
            cpu_user_ns=user_ns,
            cpu_system_ns=system_ns,
            peak_memory_bytes=peak_bytes,
            output_bytes=self.output.total_bytes,
        )

    def _end(self, outcome: Outcome, usage: Usage) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.output.close()
        if self._phase is not Phase.RUN:
            outcome = replace(outcome, phase=self._phase)
        points = None
        if self._with_timeline:
            points = self._timeline.ended(usage) if self._timeline is not None else ()
        collected = self._collection if self._concluded is not None else None
        self.ended = PodEnded(
            key=self._key,
            outcome=outcome,
            usage=usage,
            last_seq=self.output.last_seq,
            timeline=points,
            artifacts=len(self.artifacts),
            left_out=collected.left_out if collected is not None else (),
        )
        self.gone.set_result(None)
        self._on_ended(self.ended)
