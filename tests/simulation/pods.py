r"""Pods whose programs are scripts, acted out in virtual time by a runtime that outlives the service's processes.

``print TEXT``, ``eprint TEXT``, ``bytes HEX``, ``sleep SECONDS``, ``exit N``, ``end KIND``, ``fail REASON`` and
``leave PATH TEXT``, one per line; the end of the script is ``exit 0``.  The runtime ends a program when its lease or
its wall time has run out, by its own time.  It checks invariant I4 at each start.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from runtape.domain.outcome import Outcome, OutcomeKind, Usage
from runtape.domain.tape import Record, Stream
from runtape.ports.errors import Transient, Unavailable
from runtape.ports.pod_runtime import PodArtifact, PodEnded, PodKey, PodSpec, Runtime
from tests.simulation.network import Remote
from tests.simulation.world import Life, World

RUNTIMES = (Runtime("python", "3.11", "main.py", "print(1)\n", packages=True),)
RELIST_S = 20.0
LEASE_EXPIRED = Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason="lease_expired")
LOST = Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason="worker_lost")


@dataclass(slots=True)
class _Pod:
    key: PodKey
    life: Life
    lines: list[str]
    lease_due_s: float
    wall_due_s: float
    records: list[Record] = field(default_factory=list[Record])
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    ended: PodEnded | None = None
    told: bool = True
    """Whether anybody may hear of the end: not when the pod died with the process that it belonged to."""
    readers: "list[asyncio.Future[None]]" = field(default_factory=list[Any])


class PodServer:
    """The runtime of all processes."""

    def __init__(self, world: World, may_start: Callable[[PodKey], str | None]) -> None:
        self._world = world
        self._may_start = may_start
        self.pods: dict[PodKey, _Pod] = {}
        self.started: list[PodKey] = []
        self.printed: dict[PodKey, list[Record]] = {}
        """What each attempt has printed, also once its pod is gone."""
        self._watchers: list[Callable[[PodEnded], None]] = []

    def start(self, spec: PodSpec, attempt: int, lease_s: float, life: Life) -> None:
        """Start a pod in the name of `life`, to be killed after `lease_s`."""
        world, key = self._world, PodKey(spec.execution_id, attempt)
        if key in self.started:
            return
        if world.happens(world.mix.busy_pods):
            for_all = world.random.random() < 0.5
            raise Unavailable("simulated: pods are away") if for_all else Transient("simulated: no room for a pod")
        now_s = world.loop.time()
        pod = _Pod(key, life, spec.source.script.splitlines(), now_s + lease_s, now_s + (spec.limits.wall_s or 0.0))
        self.pods[key] = pod
        if lease_s <= 0 or not (life.alive or world.mix.pods_outlive):
            world.note("pods", f"not begun {key.execution_id}/{attempt}")
            self._end(pod, LEASE_EXPIRED)
            return
        for other in self.pods.values():
            if other.ended is None and other.key.execution_id == key.execution_id and other.key != key:
                world.violated("I4", f"{key} starts beside attempt {other.key.attempt}")
        alive = sum(other.ended is None for other in self.pods.values())
        if alive > world.mix.capacity.running:
            world.violated("I10", f"{alive} pods run at once, {world.mix.capacity.running} may")
        if (why := self._may_start(key)) is not None:
            world.violated("I4", f"{key} starts {why}")
        world.note("pods", f"begin {key.execution_id}/{attempt}")
        self.started.append(key)
        self.printed[key] = pod.records
        self._advance(pod)

    def let_die(self, life: Life) -> None:
        """Let the pods of a process that is gone die with it, unless they outlive their worker here."""
        for pod in list(self.pods.values()):
            if pod.life is life and not self._world.mix.pods_outlive:
                pod.told = False
                self._end(pod, LOST)
                del self.pods[pod.key]

    def _advance(self, pod: _Pod) -> None:
        """Carry out the script up to the next pause, or to the end that comes first."""
        loop = self._world.loop
        while pod.ended is None:
            due_s = min(pod.lease_due_s, pod.wall_due_s)
            if loop.time() >= due_s:
                expired = pod.lease_due_s <= pod.wall_due_s
                self._end(pod, LEASE_EXPIRED if expired else Outcome(kind=OutcomeKind.WALL_LIMIT))
                return
            word, _, rest = (pod.lines.pop(0) if pod.lines else "exit 0").partition(" ")
            if word == "sleep":
                left_s = float(rest)
                wait_s = min(left_s, due_s - loop.time())
                if wait_s < left_s:
                    pod.lines.insert(0, f"sleep {left_s - wait_s}")
                loop.in_world(wait_s, self._advance, pod)
                return
            self._act(pod, word, rest)

    def _act(self, pod: _Pod, word: str, rest: str) -> None:
        match word:
            case "print":
                self._print(pod, Stream.STDOUT, rest.encode() + b"\n")
            case "eprint":
                self._print(pod, Stream.STDERR, rest.encode() + b"\n")
            case "bytes":
                self._print(pod, Stream.STDOUT, bytes.fromhex(rest))
            case "leave":
                path, _, text = rest.partition(" ")
                pod.files[path] = text.encode()
            case "exit":
                self._end(pod, Outcome(kind=OutcomeKind.EXITED, exit_code=int(rest)))
            case "end":
                self._end(pod, Outcome(kind=OutcomeKind(rest)))
            case "fail":
                self._end(pod, Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason=rest))
            case _:  # a comment
                return

    def _print(self, pod: _Pod, stream: Stream, data: bytes) -> None:
        pod.records.append(Record(len(pod.records) + 1, stream, len(pod.records) * 1000, data))
        self._wake(pod)

    def _end(self, pod: _Pod, outcome: Outcome) -> None:
        if pod.ended is not None:
            return
        self._world.note("pods", f"end {pod.key.execution_id}/{pod.key.attempt} {outcome.kind} {outcome.reason}")
        usage = Usage(wall_ns=1_000_000, output_bytes=sum(len(record.data) for record in pod.records))
        pod.ended = PodEnded(
            key=pod.key, outcome=outcome, usage=usage, last_seq=len(pod.records), artifacts=len(pod.files)
        )
        self._wake(pod)
        if pod.told:
            for watcher in list(self._watchers):
                watcher(pod.ended)

    def _wake(self, pod: _Pod) -> None:
        for reader in pod.readers:
            if not reader.done():
                reader.set_result(None)
        pod.readers.clear()

    def batch(self, key: PodKey, after_seq: int) -> "tuple[Record, ...] | asyncio.Future[None] | None":
        """Return the records beyond `after_seq`, None when there will be none, or a future to ask again after."""
        pod = self.pods.get(key)
        if pod is None:
            return None
        if len(pod.records) > after_seq:
            return tuple(pod.records[after_seq:])
        if pod.ended is not None:
            return None
        future: asyncio.Future[None] = self._world.loop.create_future()
        pod.readers.append(future)
        return future

    def files(self, key: PodKey) -> dict[str, bytes]:
        """Return what an ended pod has left."""
        pod = self.pods.get(key)
        return dict(sorted(pod.files.items())) if pod is not None and pod.ended is not None else {}

    def extend(self, key: PodKey, lease_s: float) -> None:
        """Move the end of the lease."""
        pod = self.pods.get(key)
        if pod is not None and pod.ended is None:
            pod.lease_due_s = self._world.loop.time() + lease_s
            self._world.loop.in_world(max(0.0, lease_s), self._expire, pod)

    def _expire(self, pod: _Pod) -> None:
        if pod.ended is None and self._world.loop.time() >= pod.lease_due_s:
            self._end(pod, LEASE_EXPIRED)

    def kill(self, key: PodKey) -> None:
        pod = self.pods.get(key)
        if pod is not None:
            self._end(pod, Outcome(kind=OutcomeKind.CANCELLED, reason="cancelled"))

    def remove(self, key: PodKey) -> None:
        pod = self.pods.get(key)
        if pod is not None and pod.ended is None and pod.life.alive and self._world.mix.gentle:
            self._world.violated("I4", f"{key} lives, and so does its worker, and is given up")
        self.kill(key)
        if key in self.pods:
            self._wake(self.pods.pop(key))

    def list(self) -> Sequence[PodKey]:
        return list(self.pods)

    def watch(self, tell: Callable[[PodEnded], None]) -> None:
        """Tell every end from now on."""
        self._watchers.append(tell)

    def ends(self) -> Sequence[PodEnded]:
        """Return the ends of the pods that were not removed."""
        return [pod.ended for pod in self.pods.values() if pod.ended is not None and pod.told]


class RemotePods(Remote):
    """`PodRuntime` over a `PodServer`."""

    async def runtimes(self) -> Sequence[Runtime]:
        """Return the one that there is."""
        return RUNTIMES

    async def start(self, spec: PodSpec, attempt: int, lease_expires_at: datetime) -> None:
        """Start a pod; how long its lease is, this machine's clock says."""
        lease_s = (lease_expires_at - self._life.clock.now()).total_seconds()
        key = PodKey(spec.execution_id, attempt)
        await self._call(
            f"pods.start {key.execution_id}/{attempt}",
            self._server.start,
            (spec, attempt, lease_s, self._life),
            {},
            True,
        )

    async def extend(self, key: PodKey, lease_expires_at: datetime) -> None:
        """Move the end of the lease."""
        lease_s = (lease_expires_at - self._life.clock.now()).total_seconds()
        await self._call("pods.extend", self._server.extend, (key, lease_s), {})

    async def records(self, key: PodKey, after_seq: int = 0) -> AsyncIterator[tuple[Record, ...]]:
        """Yield what the pod prints."""
        while True:
            batch = await self._call("pods.records", self._server.batch, (key, after_seq), {}, True)
            if batch:
                after_seq = batch[-1].seq
                yield batch
            elif batch is None and not await self._call("pods.open", self._open, (key, after_seq), {}, True):
                return

    def _open(self, key: PodKey, after_seq: int) -> bool:
        pod = self._server.pods.get(key)
        return pod is not None and (pod.ended is None or len(pod.records) > after_seq)

    async def artifacts(self, key: PodKey) -> AsyncIterator[PodArtifact]:
        """Yield what an ended pod has left."""
        for path, content in (await self._call("pods.files", self._server.files, (key,), {})).items():
            yield PodArtifact(path, content)

    async def watch(self) -> AsyncIterator[PodEnded]:
        """Yield each end once, some of them late: by the list that is asked for from time to time."""
        world = self._world
        ends: asyncio.Queue[PodEnded] = asyncio.Queue()
        told: set[PodKey] = set()

        def tell(ended: PodEnded) -> None:
            if not world.happens(world.mix.deaf):
                world.loop.call_at(
                    world.loop.time() + world.way_s(), ends.put_nowait, ended, context=self._life.context
                )

        def relist() -> None:
            for ended in self._server.ends():
                ends.put_nowait(ended)
            world.loop.call_at(world.loop.time() + RELIST_S, relist, context=self._life.context)

        self._server.watch(tell)
        relist()
        while True:
            ended = await ends.get()
            if ended.key not in told:
                told.add(ended.key)
                yield ended

    async def close(self) -> None:
        """Kill what this process started."""
        await self._call("pods.close", self._server.let_die, (self._life,), {}, True)
