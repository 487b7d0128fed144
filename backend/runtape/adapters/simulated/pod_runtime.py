r"""Pods whose programs are scripts of a few directives, acted out in memory.

A script's lines are carried out in order:

========================  ==================================================================
``print TEXT``            one record ``TEXT\n`` on stdout; ``eprint TEXT`` the same on stderr
``bytes HEX``             one record of those bytes on stdout
``wait NAME``             stop until `SimulatedPodRuntime.let` is called with NAME
``exit N``                end with outcome `EXITED`; the end of the script is ``exit 0``
``end KIND``              end with that `OutcomeKind`
``fail REASON``           end with `SANDBOX_ERROR` for that reason
``leave PATH TEXT``       leave ``TEXT\n`` as an artifact; ``omit REASON N`` leaves that many out for it
========================  ==================================================================

Any other line prints what stands between its parentheses, so ``print(1)`` does what it says.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from runtape.domain.artifact import LeftOut, LeftOutFor
from runtape.domain.outcome import Outcome, OutcomeKind, TimelinePoint, Usage
from runtape.domain.tape import Record, Stream
from runtape.ports.pod_runtime import PodArtifact, PodEnded, PodKey, PodSpec, Runtime

_RUNTIMES = (
    Runtime("python", "3.11", "main.py", "print(1)\n", packages=True),
    Runtime("bash", "5.2", "main.sh", "echo 1\n"),
)


@dataclass(slots=True)
class _Pod:
    lines: list[str]
    timeline: bool
    records: list[Record] = field(default_factory=list[Record])
    ended: PodEnded | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    awaited: str | None = None
    output_bytes: int = 0
    files: dict[str, bytes] = field(default_factory=dict[str, bytes])
    left_out: list[LeftOut] = field(default_factory=list[LeftOut])


class SimulatedPodRuntime:
    """`PodRuntime` in memory; nothing is executed and nothing takes time."""

    def __init__(self) -> None:
        self._pods: dict[PodKey, _Pod] = {}
        self._finished: set[PodKey] = set()
        self._allowed: set[str] = set()
        self._ends: asyncio.Queue[PodEnded] = asyncio.Queue()
        self.started: list[PodKey] = []
        """Every pod in the order of its start, for tests that count them."""

    async def runtimes(self) -> Sequence[Runtime]:
        return _RUNTIMES

    async def start(self, spec: PodSpec, attempt: int, lease_expires_at: datetime) -> None:
        key = PodKey(spec.execution_id, attempt)
        if key in self._pods or key in self._finished:
            return
        pod = self._pods[key] = _Pod(spec.source.script.splitlines(), spec.timeline)
        self.started.append(key)
        self._advance(key, pod)

    def let(self, name: str) -> None:
        """Let every program that waits for `name`, now or later, go on."""
        self._allowed.add(name)
        for key, pod in list(self._pods.items()):
            if pod.awaited == name:
                self._advance(key, pod)

    def end(self, key: PodKey, outcome: Outcome) -> None:
        """End a running program from outside."""
        pod = self._pods.get(key)
        if pod is not None and pod.ended is None:
            self._end(key, pod, outcome)

    async def records(self, key: PodKey, after_seq: int = 0) -> AsyncIterator[tuple[Record, ...]]:
        pod = self._pods.get(key)
        while pod is not None:
            batch = tuple(pod.records[after_seq:])
            if batch:
                after_seq = batch[-1].seq
                yield batch
            elif pod.ended is not None:
                return
            else:
                pod.changed.clear()
                await pod.changed.wait()

    async def artifacts(self, key: PodKey) -> AsyncIterator[PodArtifact]:
        pod = self._pods.get(key)
        if pod is not None and pod.ended is not None:
            for path, content in sorted(pod.files.items()):
                yield PodArtifact(path, content)

    async def extend(self, key: PodKey, lease_expires_at: datetime) -> None:
        return

    async def kill(self, key: PodKey) -> None:
        self.end(key, Outcome(kind=OutcomeKind.CANCELLED, reason="cancelled"))

    async def remove(self, key: PodKey) -> None:
        await self.kill(key)
        if self._pods.pop(key, None) is not None:
            self._finished.add(key)

    async def list(self) -> Sequence[PodKey]:
        return list(self._pods)

    async def watch(self) -> AsyncIterator[PodEnded]:
        while True:
            yield await self._ends.get()

    async def ready(self) -> None:
        return

    async def close(self) -> None:
        for key in list(self._pods):
            await self.remove(key)

    def _advance(self, key: PodKey, pod: _Pod) -> None:
        pod.awaited = None
        while pod.lines and pod.ended is None:
            word, _, rest = pod.lines[0].partition(" ")
            if word == "wait" and rest not in self._allowed:
                pod.awaited = rest
                pod.changed.set()
                return
            pod.lines.pop(0)
            self._act(key, pod, word, rest)
        if pod.ended is None:
            self._end(key, pod, Outcome(kind=OutcomeKind.EXITED, exit_code=0))

    def _act(self, key: PodKey, pod: _Pod, word: str, rest: str) -> None:
        match word:
            case "wait":
                return
            case "print":
                self._print(pod, Stream.STDOUT, rest.encode() + b"\n")
            case "eprint":
                self._print(pod, Stream.STDERR, rest.encode() + b"\n")
            case "bytes":
                self._print(pod, Stream.STDOUT, bytes.fromhex(rest))
            case "leave":
                path, _, text = rest.partition(" ")
                pod.files[path] = text.encode() + b"\n"
            case "omit":
                reason, _, count = rest.partition(" ")
                pod.left_out.append(LeftOut(LeftOutFor(reason), int(count)))
            case "exit":
                self._end(key, pod, Outcome(kind=OutcomeKind.EXITED, exit_code=int(rest)))
            case "end":
                self._end(key, pod, Outcome(kind=OutcomeKind(rest)))
            case "fail":
                self._end(key, pod, Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason=rest))
            case _:
                text = f"{word} {rest}".partition("(")[2].rpartition(")")[0]
                self._print(pod, Stream.STDOUT, text.encode() + b"\n")

    def _print(self, pod: _Pod, stream: Stream, data: bytes) -> None:
        pod.records.append(Record(len(pod.records) + 1, stream, len(pod.records) * 1000, data))
        pod.output_bytes += len(data)
        pod.changed.set()

    def _end(self, key: PodKey, pod: _Pod, outcome: Outcome) -> None:
        usage = Usage(wall_ns=1_000_000, cpu_user_ns=500_000, output_bytes=pod.output_bytes)
        points = (TimelinePoint(usage.wall_ns, usage.peak_memory_bytes, usage.cpu_user_ns),) if pod.timeline else None
        pod.ended = PodEnded(
            key=key,
            outcome=outcome,
            usage=usage,
            last_seq=len(pod.records),
            timeline=points,
            artifacts=len(pod.files),
            left_out=tuple(pod.left_out),
        )
        pod.changed.set()
        self._ends.put_nowait(pod.ended)
