"""One run of a compiled language: a box for the compiler, then another for the program that it made.

Theory of operation.  Two pods follow each other under one key.  The first runs the compiler on the script and the
files, in our environment and without the program's input or arguments.  It leaves one file, which its box then prints
to stdout: so the program comes out as a stream of bytes that is counted and capped like any output, and no path inside
a box is opened from outside.  What the compiler says goes to stderr, and by that to the tape.  The second pod gets the
program as one more file of its order.

Which phase a run ended in is known by the box that it ended in, and by nothing that was printed.  A source that
subverts its compiler can make it exit with any status and print any program: it then is that program, confined as any
other, and has lied about nobody but itself.

Limits are those of the run as a whole: what the compiler has used of time and output is no longer there for the
program.  Only memory and processes are granted to a compiler as far as it needs them, since they are its own and no
property of the program.  Compiling is skipped when the same has been compiled before (`builds.py`).

In between no box exists.  The pod of the program waits for one: it can be killed, its lease can end, and none of its
time is used.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import structlog

from runtape.domain.artifact import LeftOut
from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome, OutcomeKind, Phase, TimelinePoint, Usage
from runtape.domain.tape import RECORD_BYTES, Stream
from runtape.ports.pod_runtime import PodArtifact, PodEnded, PodKey, PodSpec

from .builds import Build, Builds, build_name
from .keeper import wire
from .order import compiler_limits, make_compile_order, make_order
from .output import Output
from .pod import OUTPUT_CUT, Pod
from .pool import BoxPool
from .runtimes import InstalledRuntime
from .timeline import joined

log = structlog.get_logger(__name__)

PROGRAM_BYTES: Final = 32 << 20
"""Greatest program that is taken out of a compiler's box; it is held in memory on its way."""
_LEAST_S: Final = 0.001
"""Time for a program whose compiler has used up all: the limit then stops it as any other."""

_TOO_LARGE: Final = Outcome(
    kind=OutcomeKind.OUTPUT_LIMIT,
    phase=Phase.COMPILE,
    reason="program_too_large",
    message=f"the compiled program is larger than {PROGRAM_BYTES >> 20} MiB",
)

BeginInBox = Callable[[Pod, BoxPool, Limits, wire.Order], Awaitable[None]]
"""Takes a box that fits the limits from the pool and begins the pod in it.  Raises: Transient, SandboxUnavailable."""


class CompilerOutput(Output):
    """The output of a compiler's box: its stdout is the program, its stderr belongs to the run."""

    def __init__(self, run: Output) -> None:
        super().__init__(PROGRAM_BYTES)
        self._run = run
        self._text: list[bytes] = []

    @property
    def too_large(self) -> bool:
        """Whether there is more of the program than is taken."""
        return self._truncated is not None

    @property
    def above_high_water(self) -> bool:
        return self._run.above_high_water  # the program has no reader who could be slow

    @property
    def truncated(self) -> bool:
        return self.too_large or self._run.truncated

    def append(self, stream: Stream, t_ns: int, piece: bytes) -> bool:
        if stream is Stream.STDOUT:
            return super().append(stream, t_ns, piece)
        self._text.append(piece)
        return self._run.append(stream, t_ns, piece)

    def take_build(self) -> Build:
        """Return what was made, and keep nothing of it: the program may run for long."""
        build = Build(program=b"".join(record.data for record in self.take(0)), text=b"".join(self._text))
        self._records.clear()
        self._text.clear()
        return build


class CompiledPod:
    """A run from its acceptance to its removal; to whoever owns it, it is as a `Pod`."""

    def __init__(
        self,
        key: PodKey,
        spec: PodSpec,
        runtime: InstalledRuntime,
        lease_due_s: float,
        on_ended: Callable[[PodEnded], None],
        *,
        pool: BoxPool,
        begin: BeginInBox,
        builds: Builds,
    ) -> None:
        self._key = key
        self._spec = spec
        self._runtime = runtime
        self._lease_due_s = lease_due_s
        self._on_ended = on_ended
        self._pool = pool
        self._begin = begin
        self._builds = builds
        self._build_name = ""
        self._spent = Usage()
        self._passage: asyncio.Task[None] | None = None
        self._compiler_limits = compiler_limits(runtime, spec.limits)
        self.output = Output(spec.limits.output_bytes)
        self._compiler_output = CompilerOutput(self.output)
        self._timeline: tuple[TimelinePoint, ...] = ()
        self._stage = Pod(
            key,
            self._compiler_limits,
            lease_due_s,
            self._on_compiled,
            output=self._compiler_output,
            timeline=spec.timeline,
            collects=False,
        )
        self.ended: PodEnded | None = None
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once nothing of the run is left but its records and its end."""

    @property
    def artifacts(self) -> list[PodArtifact]:
        """The files that the program has left; known once it has ended."""
        return self._stage.artifacts

    # Starting

    async def start(self) -> None:
        """Begin with the compiler, or with the program where the same has been compiled before.

        Raises: as the pod's `begin`, when nothing was started.
        """
        build = await asyncio.to_thread(self._load)
        if self.ended is not None:  # killed meanwhile
            return
        if build is None:
            order = make_compile_order(self._runtime, self._spec.source, self._compiler_limits, self._pool.armed)
            await self._begin(self._stage, self._pool, self._compiler_limits, order)
        elif not self._show(build.text):
            self._stage.fail(OUTPUT_CUT)
        else:
            await self._begin_program(self._next_stage(None), build.program)

    def _show(self, text: bytes) -> bool:
        pieces = (text[start : start + RECORD_BYTES] for start in range(0, len(text), RECORD_BYTES))
        return all(self.output.append(Stream.STDERR, 0, piece) for piece in pieces)

    def _load(self) -> Build | None:
        self._build_name = build_name(self._runtime, self._spec.source)
        return self._builds.load(self._build_name)

    # From the compiler to the program

    def _on_compiled(self, ended: PodEnded) -> None:
        self._spent = replace(ended.usage, output_bytes=self.output.total_bytes)
        self._timeline = ended.timeline or ()
        if self._compiler_output.too_large:
            self._end(_TOO_LARGE, self._spent)
        elif ended.outcome.kind is OutcomeKind.EXITED and ended.outcome.exit_code == 0:
            program = self._next_stage(time.monotonic_ns() - ended.usage.wall_ns)
            self._passage = asyncio.get_running_loop().create_task(
                self._pass(program, self._compiler_output.take_build())
            )
        else:
            self._end(replace(ended.outcome, phase=Phase.COMPILE), self._spent)

    def _next_stage(self, began_ns: int | None) -> Pod:
        """Make the pod of the program, with the limits that are left, and let it be the one to stop."""
        limits, spent = self._spec.limits, self._spent
        cpu_ns = spent.cpu_user_ns + spent.cpu_system_ns
        left = replace(
            limits,
            wall_s=max(limits.wall_s - spent.wall_ns / 1e9, _LEAST_S),
            cpu_s=max(limits.cpu_s - cpu_ns / 1e9, _LEAST_S),
        )
        self._stage = Pod(
            self._key,
            left,
            self._lease_due_s,
            self._on_ran,
            output=self.output,
            began_ns=began_ns,
            timeline=self._spec.timeline,
        )
        return self._stage

    async def _pass(self, program: Pod, build: Build) -> None:
        """Keep what was compiled, and go on to run it.  The run has begun: what fails from here on is its end."""
        try:
            await asyncio.to_thread(self._builds.store, self._build_name, build)
        except OSError as error:
            log.warning("sandbox.build_not_kept", reason=str(error))
        try:
            await self._begin_program(program, build.program)
        except Exception as error:
            log.warning("sandbox.program_not_begun", reason=str(error))
            program.fail(Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason="no_box", message=str(error)))

    async def _begin_program(self, pod: Pod, program: bytes) -> None:
        order = make_order(self._runtime, self._spec.source, pod.limits, self._pool.armed, program=program)
        await self._begin(pod, self._pool, pod.limits, order)

    # While it runs

    def resume_reading(self) -> None:
        """Go on after a reader has taken what waited."""
        self._stage.resume_reading()

    def extend(self, lease_due_s: float) -> None:
        """Move the end of the lease."""
        self._lease_due_s = lease_due_s
        self._stage.extend(lease_due_s)

    def stop(self, reason: Outcome) -> None:
        """Kill what runs for `reason`, unless it is being killed already or has ended."""
        self._stage.stop(reason)

    # The end

    def _on_ran(self, ended: PodEnded) -> None:
        usage, spent = ended.usage, self._spent
        self._timeline = joined(self._timeline, ended.timeline or (), spent.cpu_user_ns + spent.cpu_system_ns)
        self._end(
            ended.outcome,
            replace(
                usage,
                wall_ns=max(usage.wall_ns, spent.wall_ns),
                cpu_user_ns=usage.cpu_user_ns + spent.cpu_user_ns,
                cpu_system_ns=usage.cpu_system_ns + spent.cpu_system_ns,
                peak_memory_bytes=max(usage.peak_memory_bytes, spent.peak_memory_bytes),
                output_bytes=self.output.total_bytes,
            ),
            ended.left_out,
        )

    def _end(self, outcome: Outcome, usage: Usage, left_out: tuple[LeftOut, ...] = ()) -> None:
        if self._passage is not None:
            self._passage.cancel()  # it may wait for a box that nobody needs any more
        self.output.close()
        self.ended = PodEnded(
            key=self._key,
            outcome=outcome,
            usage=usage,
            last_seq=self.output.last_seq,
            timeline=self._timeline if self._spec.timeline else None,
            artifacts=len(self.artifacts),
            left_out=left_out,
        )
        self.gone.set_result(None)
        self._on_ended(self.ended)
