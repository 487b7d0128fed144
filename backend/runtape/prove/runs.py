"""Running programs: in boxes, through the port, and directly on this machine, which is for controls alone."""

import asyncio
import contextlib
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from runtape.domain.ids import ExecutionId
from runtape.domain.limits import Limits
from runtape.domain.outcome import Usage
from runtape.domain.source import Source, SourceFile
from runtape.domain.tape import Stream
from runtape.ports.errors import Transient
from runtape.ports.pod_runtime import PodEnded, PodKey, PodRuntime, PodSpec
from runtape.prove.errors import ProveError
from runtape.prove.ran import MARK, Ran, namespace_of
from runtape.prove.target import Traces
from runtape.prove.traces import boot_clock_s

_INSIDE: Final = Path(__file__).with_name("inside.py").read_bytes()
_END: Final = "\nimport inside\ninside.done()\n"
_LEASE_S: Final = 300.0
_OUTSIDE_TIMEOUT_S: Final = 20.0
_PAUSES_S: Final = (0.5, 2.0)
"""Between the tries to start one program."""
_NO_PYTHON: Final = "the sandbox finds none; apt install python3"
_OLDEST_PYTHON: Final = (3, 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A program with all that it is given: one that reports by `inside.py`, unless it has a `runtime` of its own."""

    script: str
    limits: Limits
    runtime: tuple[str, str] | None = None
    """Language and version of a program that is run as it stands."""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    stdin: bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    requirements: tuple[str, ...] = ()
    due_s: float = 8.0


class End(NamedTuple):
    """The end of a program, with the times at which it was told."""

    pod: PodEnded
    monotonic_s: float
    boot_s: float


class Running:
    """A program in a box, until `end` or `kill` has returned."""

    def __init__(self, runs: "Runs", key: PodKey, program: Program) -> None:
        self._runs = runs
        self.key = key
        self._program = program
        self._started_s = time.monotonic()
        self._output = {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
        self._more = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for batch in self._runs.pods.records(self.key):
            for record in batch:
                self._output[record.stream] += record.data
            self._more.set()

    async def printed(self, text: bytes) -> bool:
        """Return whether the program prints `text`, when it has or when it has ended."""
        seen = self._output[Stream.STDOUT]
        while text not in seen and not self._reading.done():
            self._more.clear()
            more = asyncio.create_task(self._more.wait())
            await asyncio.wait({more, self._reading}, return_when=asyncio.FIRST_COMPLETED)
            more.cancel()
        return text in seen

    @property
    def namespace(self) -> int:
        """The pid namespace, as the program told it; 0 when it has not."""
        return namespace_of(bytes(self._output[Stream.STDOUT]).split(b"\n", 1)[0])

    async def end(self) -> Ran:
        """Wait for the end, kill the program when it is overdue, and remove it."""
        overdue = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._started_s + self._program.due_s - time.monotonic()):
                await self._runs.ended(self.key)
                overdue = False
        return await self._remove(overdue=overdue)

    async def kill(self) -> Ran:
        """End the program now and remove it."""
        await self._runs.pods.kill(self.key)
        return await self._remove(overdue=False)

    async def _remove(self, *, overdue: bool) -> Ran:
        if not overdue:
            await self._reading
        manifest = await self._runs.traces.manifest_of(self.key)
        artifacts = {file.path: file.content async for file in self._runs.pods.artifacts(self.key)}
        await self._runs.pods.remove(self.key)
        end = await self._runs.ended(self.key)
        self._runs.forget(self.key)
        await self._reading
        return Ran(
            stdout=bytes(self._output[Stream.STDOUT]),
            stderr=bytes(self._output[Stream.STDERR]),
            outcome=None if overdue else end.pod.outcome,
            overdue=overdue,
            usage=end.pod.usage,
            limits=self._program.limits,
            wall_s=end.monotonic_s - self._started_s,
            ended_s=end.boot_s,
            artifacts=artifacts,
            left_out={each.reason: each.count for each in end.pod.left_out},
            namespace=self.namespace,
            key=self.key,
            manifest=manifest,
        )


class Runs:
    """Starts programs by a `PodRuntime`."""

    def __init__(self, pods: PodRuntime, traces: Traces, no_python: str = _NO_PYTHON) -> None:
        self.pods = pods
        self.traces = traces
        self._no_python = no_python
        self._numbers = itertools.count(1)
        self._ends: dict[PodKey, asyncio.Future[End]] = {}
        self._version = ""
        self._watching: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Choose the interpreter.  Raises: ProveError, when there is no Python that can run there."""
        versions = [each.version for each in await self.pods.runtimes() if each.lang == "python"]
        fitting = [each for each in versions if tuple(map(int, each.split("."))) >= _OLDEST_PYTHON]
        if not fitting:
            raise ProveError(f"the programs are written in Python, and {self._no_python}")
        self._version = fitting[0]
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop listening for ends."""
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching

    async def _watch(self) -> None:
        async for ended in self.pods.watch():
            future = self._ends.get(ended.key)
            if future is not None and not future.done():
                future.set_result(End(ended, time.monotonic(), boot_clock_s()))

    async def ended(self, key: PodKey) -> End:
        """Return the end of a program that was started here and is not removed."""
        return await asyncio.shield(self._ends[key])

    def forget(self, key: PodKey) -> None:
        """Keep nothing of a program that is removed."""
        self._ends.pop(key, None)

    async def start(self, program: Program, *, twice: bool = False) -> Running:
        """Start a program in a box; `twice` asks a second time for the same attempt."""
        key = PodKey(ExecutionId(f"prove-{next(self._numbers)}"), 1)
        self._ends[key] = asyncio.get_running_loop().create_future()
        script, files, env = program.script, program.files, program.env
        if program.runtime is None:
            script, files, env = script + _END, {**files, "inside.py": _INSIDE}, {**env, "PROVE_MARK": self.traces.mark}
        lang, version = program.runtime or ("python", self._version)
        spec = PodSpec(
            execution_id=key.execution_id,
            lang=lang,
            lang_version=version,
            source=Source(
                script=script,
                stdin=program.stdin,
                args=program.args,
                env=tuple(env.items()),
                files=tuple(SourceFile(path, content) for path, content in files.items()),
                requirements=program.requirements,
            ),
            limits=program.limits,
        )
        lease_expires_at = datetime.now(UTC) + timedelta(seconds=_LEASE_S)
        for _ in range(2 if twice else 1):
            await self._start(spec, lease_expires_at)
        return Running(self, key, program)

    async def _start(self, spec: PodSpec, lease_expires_at: datetime) -> None:
        """Start a program, and again while there is no room for it.  Raises: Transient."""
        for pause_s in (*_PAUSES_S, None):
            try:
                await self.pods.start(spec, 1, lease_expires_at)
                return
            except Transient as error:
                if pause_s is None:
                    raise
                await asyncio.sleep(error.retry_after_s or pause_s)


async def run_outside(program: Program, *, inherits: bool = False) -> Ran:
    """Run a control directly on this machine, in a folder of its own; `inherits` leaves it one descriptor too many."""
    kept_fd = os.open(os.devnull, os.O_WRONLY)
    try:
        with tempfile.TemporaryDirectory(prefix="runtape-prove-") as folder:
            _lay_out(program, Path(folder))
            return await _run_in(folder, program, (kept_fd,) if inherits else ())
    finally:
        os.close(kept_fd)


def _lay_out(program: Program, folder: Path) -> None:
    """Write the files of a program, but for those whose names lead elsewhere."""
    files = {**program.files, "inside.py": _INSIDE, "main.py": (program.script + _END).encode()}
    for name, content in files.items():
        if "/" not in name:
            (folder / name).write_bytes(content)


async def _run_in(folder: str, program: Program, pass_fds: tuple[int, ...]) -> Ran:
    started_s = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-E", "-s", "-S", "main.py"),
        *program.args,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", **program.env},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        pass_fds=pass_fds,
    )
    try:
        async with asyncio.timeout(_OUTSIDE_TIMEOUT_S):
            stdout, stderr = await process.communicate()
    except TimeoutError:
        process.kill()
        stdout, stderr = await process.communicate()
    return Ran(
        stdout=stdout,
        stderr=stderr,
        outcome=None,
        usage=Usage(),
        limits=program.limits,
        wall_s=time.monotonic() - started_s,
    )


def last_words(ran: Ran) -> str:
    """Return what a program complained of last, for the report."""
    lines = [line for line in ran.stderr.splitlines() if line.strip() and MARK not in line]
    return lines[-1].decode(errors="replace")[:200] if lines else "it said nothing"
