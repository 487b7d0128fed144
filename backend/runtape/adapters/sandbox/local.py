"""`PodRuntime` over this machine's own kernel: `LocalSandbox`.

Theory of operation.  Four kinds of process take part.

    service (event loop)          keeper (Python)                 nursery (C, native/)
    ─────────────────────         ───────────────────────         ──────────────────────────
    LocalSandbox, BoxPool ──arm── tells a slot to arm a box ────── slot ─ box: pid 1
    Pod: reads stdout, stderr,    cgroups, CPU and memory          zygote ··fork·▸ └ runner, the program
         hears the end            watch

* The **service** never forks a program.  It takes an armed box from the pool, sends it the order over the box's own
  socket, reads the program's pipes, and hears the end over that socket: two hops for a run, none through the keeper.
* The **keeper** (`keeper/service.py`) knows no program and no secret.  It has boxes made and enforces what must be
  looked at from outside.
* The **nursery** (`native/nursery.c`) is where everything that runs programs descends from.  A slot makes one box after
  another.  A box is confined before any order exists, and is used once.  Its runner, which becomes the program, is
  forked from a zygote (an interpreter that is warm already), is an interpreter that has started in the box and
  waits (parked: what cannot be forked), or execs its program; on the gVisor tier it execs runsc, which runs it.

Where there is no C compiler the keeper makes boxes by forking itself (`keeper/forking.py`), and programs are exec'd.

Who may see what.  The program holds descriptors 0, 1, 2 and sees its work directory and read-only system folders.
Neither the service's environment nor its memory was ever in a process that a box descends from, since the keeper was
exec'd.  Nothing here opens a path that a program made: the files that it leaves come as bytes, from pid 1
(`collection.py`).

Who dies.  Program: pid 1 kills what it left, and tells.  Pid 1: the kernel kills the tree, the keeper tells.  Zygote:
its boxes go on, others exec their programs meanwhile.  Keeper or nursery: boxes die with it; `BoxPool` waits for that,
tells the runs (`SANDBOX_ERROR`, "keeper_lost") and starts another.  Service: keeper and boxes read end of file or get
their death signal; the next service waits for the lock that they hold.  Nothing is left but empty cgroups if the keeper
itself was killed; the next one sweeps them.
"""

import asyncio
import hashlib
import math
import os
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

import structlog

from runtape.domain.ids import ExecutionId
from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome, OutcomeKind, Phase
from runtape.domain.tape import RECORD_BYTES, Record, Stream
from runtape.ports.errors import SandboxUnavailable, Transient
from runtape.ports.pod_runtime import PodArtifact, PodEnded, PodKey, PodSpec, Runtime

from . import gvisor, native
from .builds import Builds
from .bytecode import BytecodeOutput
from .compiled_pod import CompiledPod
from .keeper import wire
from .layers import Layer
from .order import (
    BOXES_PER_SLOT,
    BYTECODE_LIMITS,
    make_bytecode_order,
    make_opening,
    make_order,
    make_trial_order,
    null_byte_in,
    started,
    warmable,
)
from .packages import Packages
from .pod import CANCELLED, Pod
from .pool import BoxPool, InterpreterLost
from .resolver import PackageOptions, Unresolved
from .runtimes import InstalledRuntime, detect

_BOXES_TO_TRY: Final = 4
_OURS: Final = PodKey(ExecutionId("ours"), 0)
"""Key of a pod that runs a program of our own, and is in no list."""

log = structlog.get_logger(__name__)


class LocalSandbox:
    """Runs programs in boxes on this machine; see `PodRuntime` for the contract.

    Use as an async context manager, or call `open` before anything else and `close` after everything.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        armed_boxes: int | None = None,
        boxes_per_slot: int = BOXES_PER_SLOT,
        own_kernel: bool = False,
        native: bool = True,
        warm: bool = True,
        default_limits: Limits | None = None,
        lock_timeout_s: float = 10.0,
        builds_bytes: int = 512 << 20,
        packages: PackageOptions | None = None,
    ) -> None:
        """Prepare, without touching anything yet.

        `data_dir` holds the lock file and names this installation.  `armed_boxes` is the number kept in stock, by
        default two per processor.  What runs share one after another (user and network namespace, host uid, cgroup) is
        made anew after `boxes_per_slot`; with 1 no two share it.  With `own_kernel` programs run on gVisor's kernel
        (`gvisor.py`), which takes ten times as long.  Boxes are armed for `default_limits`: a run with other `disk_mb`
        or `inodes` waits some milliseconds for one made to order.  Without `native`, or a C compiler, the keeper makes
        boxes itself: slower, no less tight.  Without `warm` every program starts an interpreter of its own, which then
        has its own address layout and hash seed.  `lock_timeout_s` is how long to wait for the programs of an earlier
        service on this data folder to be dead.  `builds_bytes` bounds the compiled programs that are kept in `data_dir`
        for the next run of the same source.  `packages` says how requirements are had; without it a source must have
        none.
        """
        self._boxes_per_slot = boxes_per_slot
        self._own_kernel = own_kernel
        self._runsc = ""
        self._native = native
        self._warm = warm and not own_kernel
        self._lock_timeout_s = lock_timeout_s
        self._data_dir = data_dir.resolve()
        self._armed_boxes = armed_boxes if armed_boxes is not None else 2 * (os.cpu_count() or 1)
        self._default_limits = default_limits or Limits()
        self._builds = Builds(self._data_dir / "builds", builds_bytes)
        self._packages = (
            Packages(self._data_dir / "packages", packages, self._compile_in_box) if packages is not None else None
        )
        self._preparing: set[asyncio.Task[None]] = set()
        self._installed: dict[tuple[str, str], InstalledRuntime] = {}
        self._pool: BoxPool | None = None
        self._pods: dict[PodKey, Pod | CompiledPod] = {}
        self._watchers: set[asyncio.Queue[PodEnded | None]] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Find the runtimes, start the keeper, and return when the first box is armed.

        Must be called in the thread of the event loop that serves for good.
        Raises: SandboxUnavailable, with what is missing and the fix; Transient, when the earlier programs still live.
        """
        found, _ = await asyncio.to_thread(detect)
        self._installed = {(each.runtime.lang, each.runtime.version): each for each in found}
        await asyncio.to_thread(self._builds.open)
        programs = await asyncio.to_thread(native.built, self._data_dir) if self._native else None
        if self._own_kernel:
            self._runsc = gvisor.find() or ""
            if not self._runsc:
                fix = "apt install runsc, or see https://gvisor.dev/docs/user_guide/install/"
                raise SandboxUnavailable(f"gVisor is asked for, and there is no runsc on PATH; to fix it: {fix}")
        instance = hashlib.sha256(os.fsencode(self._data_dir)).hexdigest()[:12]
        if self._packages is not None:
            await asyncio.to_thread(self._packages.prepare)
        opening = make_opening(
            instance,
            found,
            self._default_limits,
            programs=programs,
            warm=self._warm,
            own_kernel=self._own_kernel,
            boxes_per_slot=self._boxes_per_slot,
            layers=self._packages.shown if self._packages is not None else None,
        )
        newest = opening.zygotes[0][0] if opening.zygotes else ""
        pool = BoxPool(
            self._data_dir,
            opening,
            wire.Shape(newest, *_work_directory(self._default_limits)),
            size=self._armed_boxes,
            lock_timeout_s=self._lock_timeout_s,
        )
        try:
            await pool.open()
            if self._own_kernel:
                await self._try(pool)
            if self._packages is not None:
                await asyncio.to_thread(self._packages.open)
        except BaseException:
            await pool.close()
            raise
        self._pool = pool

    async def _try(self, pool: BoxPool) -> None:
        """Run a program of ours.  Raises: SandboxUnavailable, with what it printed when it did not end well."""
        order = make_trial_order(self._default_limits, pool.armed)
        lease_due_s = asyncio.get_running_loop().time() + self._default_limits.wall_s
        pod = Pod(_OURS, self._default_limits, lease_due_s, lambda _: None)
        await self._begin(pod, pool, self._default_limits, order)
        await asyncio.shield(pod.gone)
        if pod.ended is None or pod.ended.outcome.exit_code != 0:
            words = b"".join(record.data for record in pod.output.take(0)).decode(errors="replace").strip()
            raise SandboxUnavailable(f"gVisor cannot run programs here: {words or pod.ended}")

    async def runtimes(self) -> Sequence[Runtime]:
        return [each.runtime for each in self._installed.values()]

    async def start(self, spec: PodSpec, attempt: int, lease_expires_at: datetime) -> None:
        key = PodKey(spec.execution_id, attempt)
        if key in self._pods:
            return
        pool = self._opened_pool()
        lease_due_s = _loop_time(lease_expires_at)
        runtime = self._installed.get((spec.lang, spec.lang_version))
        if runtime is not None and runtime.compile:
            pod = CompiledPod(
                key, spec, runtime, lease_due_s, self._tell, pool=pool, begin=self._begin, builds=self._builds
            )
        else:
            pod = Pod(key, spec.limits, lease_due_s, self._tell, timeline=spec.timeline)
        self._pods[key] = pod
        if runtime is None:
            message = f"no {spec.lang} {spec.lang_version} is installed here"
            pod.stop(Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason="runtime_missing", message=message))
            return
        if place := null_byte_in(spec.source):
            message = f"the program could not be started: there is a null byte in {place}"
            pod.stop(Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason="start_failed", message=message))
            return
        try:
            if isinstance(pod, CompiledPod):
                await pod.start()
            elif spec.source.requirements:
                await self._start_with_packages(pod, runtime, spec)
            else:
                order = make_order(runtime, spec.source, spec.limits, pool.armed)
                warm = self._warm and warmable(runtime, spec.source, spec.limits, self._default_limits)
                await self._begin(pod, pool, spec.limits, order, runtime if warm else None)
        except BaseException as error:
            if pod.ended is None:
                del self._pods[key]
            elif isinstance(error, Transient):
                return  # killed while it waited: that is its end
            raise

    async def _begin(
        self,
        pod: Pod,
        pool: BoxPool,
        limits: Limits,
        order: wire.Order,
        runtime: InstalledRuntime | None = None,
        layer: str = "",
    ) -> None:
        """Begin a pod in a box that fits `limits`; one in which `runtime` has started where that is in stock."""
        interpreter = runtime.name if runtime is not None else ""
        if self._own_kernel:
            order = gvisor.on_own_kernel(order, self._runsc)
        for _ in range(_BOXES_TO_TRY):
            shape = pool.shape(interpreter, *_work_directory(limits))
            try:
                box = await pool.take(shape, pod.on_reaped)
            except InterpreterLost:
                continue
            if pod.ended is not None:  # killed while it waited
                pool.give_back(box)
                return
            try:
                warm_order = started(order, runtime, layer) if runtime is not None and shape.interpreter else order
                pod.begin(box, pool, warm_order)
                return
            except OSError:  # it died in stock
                pool.release(box)
                pool.weed()
        raise Transient("boxes die before they can be used")

    # Packages

    async def _start_with_packages(self, pod: Pod, runtime: InstalledRuntime, spec: PodSpec) -> None:
        """Begin a pod with its packages: at once where they are there, else by a task that gets them first."""
        if self._packages is None:
            message = "packages are switched off here (packages.enabled = false)"
            pod.fail(Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason="packages_disabled", message=message))
            return
        layer = self._packages.warm(runtime, spec.source.requirements)
        if layer is not None:
            await self._begin_with(layer, pod, runtime, spec)
            return
        pod.wait(Phase.RESOLVE)
        task = asyncio.get_running_loop().create_task(self._prepare(self._packages, pod, runtime, spec))
        self._preparing.add(task)
        task.add_done_callback(self._preparing.discard)
        pod.gone.add_done_callback(lambda _: task.cancel())  # killed, or its lease has ended: nobody needs them

    async def _prepare(self, packages: Packages, pod: Pod, runtime: InstalledRuntime, spec: PodSpec) -> None:
        """Get the packages of a run and begin it.  It was accepted: what fails from here on is its end."""
        try:
            layer = await packages.obtain(runtime, spec.source.requirements)
            await self._begin_with(layer, pod, runtime, spec)
        except Unresolved as failure:
            for start in range(0, len(failure.words), RECORD_BYTES):
                pod.output.append(Stream.STDERR, 0, failure.words[start : start + RECORD_BYTES])
            pod.fail(failure.outcome)
        except Exception as error:
            log.warning("sandbox.program_not_begun", reason=str(error))
            pod.fail(Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason="no_box", message=str(error)))

    async def _begin_with(self, layer: Layer, pod: Pod, runtime: InstalledRuntime, spec: PodSpec) -> None:
        """Begin a pod with the packages in `layer`, which is held for it."""
        assert self._packages is not None
        pool, release = self._opened_pool(), self._packages.release
        order = make_order(runtime, spec.source, spec.limits, pool.armed, layer=layer.folder)
        warm = self._warm and warmable(runtime, spec.source, spec.limits, self._default_limits)
        try:
            await self._begin(pod, pool, spec.limits, order, runtime if warm else None, layer.folder)
        except BaseException:
            release(layer)
            raise
        pod.gone.add_done_callback(lambda _: release(layer))

    async def _compile_in_box(
        self,
        runtime: InstalledRuntime,
        layer: str,
        modules: bytes,
        output: BytecodeOutput,
        write: Callable[[bytes], None],
    ) -> None:
        """Compile modules of a layer in a box of our own, and have what it prints written."""
        pool = self._opened_pool()
        pod = Pod(_OURS, BYTECODE_LIMITS, math.inf, lambda _: None, output=output)
        try:
            await self._begin(pod, pool, BYTECODE_LIMITS, make_bytecode_order(runtime, layer, modules, pool.armed))
            while not output.exhausted(0):
                if printed := output.take_bytes():
                    pod.resume_reading()
                    await asyncio.to_thread(write, printed)
                else:
                    await output.wait()
        finally:
            pod.stop(CANCELLED)
            await asyncio.shield(pod.gone)

    # While it runs

    async def records(self, key: PodKey, after_seq: int = 0) -> AsyncIterator[tuple[Record, ...]]:
        pod = self._pods.get(key)
        if pod is None:
            return
        output = pod.output
        while not output.exhausted(after_seq):
            batch = output.take(after_seq)
            if batch:
                after_seq = batch[-1].seq
                pod.resume_reading()
                yield batch
            else:
                await output.wait()

    async def artifacts(self, key: PodKey) -> AsyncIterator[PodArtifact]:
        pod = self._pods.get(key)
        if pod is not None and pod.ended is not None:
            for artifact in pod.artifacts:
                yield artifact

    async def extend(self, key: PodKey, lease_expires_at: datetime) -> None:
        if key in self._pods:
            self._pods[key].extend(_loop_time(lease_expires_at))

    async def kill(self, key: PodKey) -> None:
        if key in self._pods:
            self._pods[key].stop(CANCELLED)

    async def remove(self, key: PodKey) -> None:
        pod = self._pods.get(key)
        if pod is None:
            return
        pod.stop(CANCELLED)
        await asyncio.shield(pod.gone)
        self._pods.pop(key, None)

    async def list(self) -> Sequence[PodKey]:
        return [*self._pods]

    async def watch(self) -> AsyncIterator[PodEnded]:
        queue: asyncio.Queue[PodEnded | None] = asyncio.Queue()
        for pod in self._pods.values():
            if pod.ended is not None:
                queue.put_nowait(pod.ended)
        self._watchers.add(queue)
        try:
            while (ended := await queue.get()) is not None:
                yield ended
        finally:
            self._watchers.discard(queue)

    async def ready(self) -> None:
        await self._opened_pool().ready()

    @property
    def native(self) -> bool:
        """Whether C programs make the boxes; to be asked once the sandbox is open."""
        return self._opened_pool().mode.native

    async def warmed(self, lang: str, version: str) -> None:
        """Return when the next program of this runtime will find its interpreter started.

        At once where programs of this runtime are exec'd.
        """
        runtime = self._installed.get((lang, version))
        if runtime is not None and runtime.warm and self._warm:
            await self._opened_pool().warmed(runtime.name)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for pod in self._pods.values():
            pod.stop(CANCELLED)
        await asyncio.gather(*(asyncio.shield(pod.gone) for pod in self._pods.values()))
        await asyncio.gather(*self._preparing, return_exceptions=True)
        if self._packages is not None:
            await self._packages.close()
        if self._pool is not None:
            await self._pool.close()
        for queue in self._watchers:
            queue.put_nowait(None)

    def _opened_pool(self) -> BoxPool:
        if self._pool is None:
            raise SandboxUnavailable("the sandbox is not open; call LocalSandbox.open() first")
        return self._pool

    def _tell(self, ended: PodEnded) -> None:
        for queue in self._watchers:
            queue.put_nowait(ended)


def _work_directory(limits: Limits) -> tuple[int, int]:
    """Return its size in bytes and in inodes."""
    return limits.disk_mb << 20, limits.inodes


def _loop_time(moment: datetime) -> float:
    """Return `moment` on the event loop's clock, as seen now: later changes of the wall clock do not move it."""
    return asyncio.get_running_loop().time() + (moment - datetime.now(UTC)).total_seconds()
