"""What every `PodRuntime` does, told by programs of a few kinds, and the local sandbox under that suite."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import pytest

from runtape.adapters.sandbox import LocalSandbox
from runtape.domain.artifact import LeftOut, LeftOutFor
from runtape.domain.ids import ExecutionId
from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome, OutcomeKind
from runtape.domain.source import Source
from runtape.domain.tape import RECORD_BYTES, Record, Stream
from runtape.ports.pod_runtime import PodArtifact, PodEnded, PodKey, PodRuntime, PodSpec

ENDED_WITHIN_S = 20.0


class Program(Enum):
    """A kind of program; each adapter knows how to write it."""

    HELLO = auto()
    """Print ``hello`` and a line feed."""
    BOTH = auto()
    """Print ``out`` to stdout and ``err`` to stderr, each with a line feed."""
    FAIL = auto()
    """Exit with status 3 and print nothing."""
    KILL_ITSELF = auto()
    """End by signal 9."""
    CAT = auto()
    """Copy stdin to stdout."""
    WAIT = auto()
    """Print ``ready`` and a line feed, then wait for ever."""
    SPIN = auto()
    """Use a processor for ever."""
    LEAVE = auto()
    """Leave ``a``, with the text ``left`` and a line feed, and ``b/c``, which is empty, and exit with status 3."""
    LEAVE_AND_WAIT = auto()
    """Leave ``a``, with the text ``left`` and a line feed, then print ``ready`` and a line feed, and wait for ever."""
    FLOOD = auto()
    """Print ``x`` and a line feed for ever."""


class PodRuntimeContract(ABC):
    """The suite; `make` opens a runtime and closes it, `program` gives (lang, version, script)."""

    @abstractmethod
    def make(self, tmp_path: Path) -> AbstractAsyncContextManager[PodRuntime]: ...

    @abstractmethod
    def program(self, kind: Program) -> tuple[str, str, str]: ...

    soon_s = 0.4
    """Longer than a program takes to start."""

    def lease(self, seconds: float = 60.0) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=seconds)

    @pytest.fixture
    async def pods(self, tmp_path: Path) -> AsyncIterator[PodRuntime]:
        async with self.make(tmp_path) as pods:
            yield pods

    def spec(
        self,
        kind: Program,
        execution: str = "e1",
        limits: Limits | None = None,
        stdin: bytes = b"",
        timeline: bool = False,
    ) -> PodSpec:
        lang, version, script = self.program(kind)
        source = Source(script=script, stdin=stdin)
        return PodSpec(
            execution_id=ExecutionId(execution),
            lang=lang,
            lang_version=version,
            source=source,
            limits=limits or Limits(),
            timeline=timeline,
        )

    async def run(self, pods: PodRuntime, kind: Program, **spec: object) -> tuple[list[Record], PodEnded]:
        """Start a program and return what it printed and how it ended."""
        started = self.spec(kind, **spec)  # pyright: ignore[reportArgumentType]
        await pods.start(started, 1, self.lease())
        key = PodKey(started.execution_id, 1)
        return await self.records(pods, key), await self.end(pods, key)

    async def records(self, pods: PodRuntime, key: PodKey, after_seq: int = 0) -> list[Record]:
        async with asyncio.timeout(ENDED_WITHIN_S):
            return [record async for batch in pods.records(key, after_seq) for record in batch]

    async def end(self, pods: PodRuntime, key: PodKey) -> PodEnded:
        async with asyncio.timeout(ENDED_WITHIN_S):
            async for ended in pods.watch():
                if ended.key == key:
                    return ended
        raise AssertionError("the watch stopped before the pod ended")

    async def until_ready(self, pods: PodRuntime, key: PodKey) -> None:
        async with asyncio.timeout(ENDED_WITHIN_S):
            async for batch in pods.records(key):
                if b"".join(record.data for record in batch) == b"ready\n":
                    return

    async def test_runtimes_are_stable_and_newest_first(self, pods: PodRuntime) -> None:
        runtimes = await pods.runtimes()
        assert runtimes == await pods.runtimes()
        by_lang: dict[str, list[list[int]]] = {}
        for runtime in runtimes:
            by_lang.setdefault(runtime.lang, []).append([int(part) for part in runtime.version.split(".")])
            assert runtime.example.strip()
        assert all(versions == sorted(versions, reverse=True) for versions in by_lang.values())

    async def test_ready_returns_when_a_program_can_be_started(self, pods: PodRuntime) -> None:
        async with asyncio.timeout(ENDED_WITHIN_S):
            await pods.ready()

    async def test_output_and_exit_of_a_program_are_told(self, pods: PodRuntime) -> None:
        records, ended = await self.run(pods, Program.HELLO)
        assert b"".join(record.data for record in records) == b"hello\n"
        assert {record.stream for record in records} == {Stream.STDOUT}
        assert ended.outcome == Outcome(kind=OutcomeKind.EXITED, exit_code=0)
        assert ended.last_seq == len(records)
        assert ended.usage.output_bytes == 6
        assert ended.usage.wall_ns > 0

    async def test_exit_status_is_told_and_an_empty_output_has_no_record(self, pods: PodRuntime) -> None:
        records, ended = await self.run(pods, Program.FAIL)
        assert records == []
        assert ended.last_seq == 0
        assert ended.outcome == Outcome(kind=OutcomeKind.EXITED, exit_code=3)

    @pytest.mark.parametrize("kind", [Program.HELLO, Program.FAIL, Program.KILL_ITSELF])
    async def test_timeline_ends_with_the_totals_and_is_there_when_asked_for(
        self, pods: PodRuntime, kind: Program
    ) -> None:
        _, ended = await self.run(pods, kind, timeline=True)
        assert ended.timeline
        assert ended.timeline[-1].t_ns == ended.usage.wall_ns
        assert ended.timeline[-1].cpu_ns == ended.usage.cpu_user_ns + ended.usage.cpu_system_ns
        _, ended = await self.run(pods, kind, execution="e2")
        assert ended.timeline is None

    async def test_timeline_of_a_long_run_has_points_from_its_start_on(self, pods: PodRuntime) -> None:
        limits = Limits(wall_s=1.0, cpu_s=20.0)
        _, ended = await self.run(pods, Program.SPIN, limits=limits, timeline=True)
        assert ended.timeline is not None and 3 <= len(ended.timeline) <= 12
        assert ended.timeline[0].t_ns < 400_000_000
        for before, after in pairwise(ended.timeline):
            assert before.t_ns < after.t_ns
            assert before.cpu_ns <= after.cpu_ns
        assert ended.timeline[-2].cpu_ns > 100_000_000
        assert all(1 << 10 < point.memory_bytes < 64 << 20 for point in ended.timeline)

    async def test_death_by_signal_is_told(self, pods: PodRuntime) -> None:
        _, ended = await self.run(pods, Program.KILL_ITSELF)
        assert ended.outcome == Outcome(kind=OutcomeKind.SIGNALLED, signal=9)

    async def test_streams_are_told_apart_and_seq_counts_over_both(self, pods: PodRuntime) -> None:
        records, _ = await self.run(pods, Program.BOTH)
        assert [record.seq for record in records] == list(range(1, len(records) + 1))
        for stream, data in ((Stream.STDOUT, b"out\n"), (Stream.STDERR, b"err\n")):
            assert b"".join(record.data for record in records if record.stream is stream) == data
        times = [record.t_ns for record in records]
        assert all(t_ns >= 0 for t_ns in times)

    @pytest.mark.parametrize("size", [0, 1, 70_000, 500_000])
    async def test_stdin_reaches_the_program_byte_by_byte_and_ends(self, pods: PodRuntime, size: int) -> None:
        stdin = bytes(i * 7 % 256 for i in range(size))
        records, ended = await self.run(pods, Program.CAT, stdin=stdin)
        assert b"".join(record.data for record in records) == stdin
        assert all(1 <= len(record.data) <= RECORD_BYTES for record in records)
        assert ended.outcome.kind is OutcomeKind.EXITED

    async def test_start_of_the_same_attempt_does_nothing(self, pods: PodRuntime) -> None:
        first, ended = await self.run(pods, Program.HELLO)
        again, ended_again = await self.run(pods, Program.HELLO)
        assert (first, ended) == (again, ended_again)
        assert await pods.list() == [PodKey(ExecutionId("e1"), 1)]

    async def test_attempts_of_one_execution_are_apart(self, pods: PodRuntime) -> None:
        await self.run(pods, Program.HELLO)
        await pods.start(self.spec(Program.FAIL), 2, self.lease())
        assert (await self.end(pods, PodKey(ExecutionId("e1"), 2))).outcome.exit_code == 3
        assert (await self.end(pods, PodKey(ExecutionId("e1"), 1))).outcome.exit_code == 0

    async def test_records_resume_after_a_seq(self, pods: PodRuntime) -> None:
        records, ended = await self.run(pods, Program.BOTH)
        for seen in range(ended.last_seq + 1):
            assert await self.records(pods, ended.key, seen) == records[seen:]

    async def test_records_of_an_unknown_pod_are_none(self, pods: PodRuntime) -> None:
        assert await self.records(pods, PodKey(ExecutionId("nobody"), 1)) == []

    async def test_output_is_told_while_the_program_runs(self, pods: PodRuntime) -> None:
        await pods.start(self.spec(Program.WAIT), 1, self.lease())
        key = PodKey(ExecutionId("e1"), 1)
        await self.until_ready(pods, key)
        assert key in await pods.list()

    async def test_kill_ends_a_program_as_cancelled_within_a_second(self, pods: PodRuntime) -> None:
        await pods.start(self.spec(Program.WAIT), 1, self.lease())
        key = PodKey(ExecutionId("e1"), 1)
        await self.until_ready(pods, key)
        async with asyncio.timeout(1.0):
            await pods.kill(key)
            await pods.kill(key)
            ended = await self.end(pods, key)
        assert ended.outcome.kind is OutcomeKind.CANCELLED
        assert b"".join(record.data for record in await self.records(pods, key)) == b"ready\n"

    async def test_kill_changes_nothing_after_the_end_and_for_unknown_pods(self, pods: PodRuntime) -> None:
        _, ended = await self.run(pods, Program.HELLO)
        await pods.kill(ended.key)
        await pods.kill(PodKey(ExecutionId("nobody"), 1))
        assert await self.end(pods, ended.key) == ended

    async def test_wall_limit_ends_a_program_that_waits(self, pods: PodRuntime) -> None:
        records, ended = await self.run(pods, Program.WAIT, limits=Limits(wall_s=0.5))
        assert ended.outcome.kind is OutcomeKind.WALL_LIMIT
        assert 0.5e9 <= ended.usage.wall_ns < 2e9
        assert b"".join(record.data for record in records) == b"ready\n"

    async def test_cpu_limit_ends_a_program_that_computes(self, pods: PodRuntime) -> None:
        _, ended = await self.run(pods, Program.SPIN, limits=Limits(cpu_s=0.3))
        assert ended.outcome.kind is OutcomeKind.TIME_LIMIT
        assert ended.usage.cpu_user_ns + ended.usage.cpu_system_ns < 2e9

    @pytest.mark.parametrize("limit_bytes", [1, 1000, 200_000])
    async def test_output_is_cut_exactly_at_its_limit_and_marked(self, pods: PodRuntime, limit_bytes: int) -> None:
        records, ended = await self.run(pods, Program.FLOOD, limits=Limits(output_bytes=limit_bytes))
        assert ended.outcome.kind is OutcomeKind.OUTPUT_LIMIT
        assert sum(len(record.data) for record in records) == limit_bytes
        assert records[-1].truncated
        assert records[-1].data == b""
        assert not any(record.truncated for record in records[:-1])
        assert ended.last_seq == records[-1].seq
        assert ended.usage.output_bytes == limit_bytes

    async def test_output_of_exactly_the_limit_is_no_offence(self, pods: PodRuntime) -> None:
        records, ended = await self.run(pods, Program.HELLO, limits=Limits(output_bytes=6))
        assert ended.outcome.kind is OutcomeKind.EXITED
        assert not any(record.truncated for record in records)

    async def test_program_is_killed_when_its_lease_is_not_extended(self, pods: PodRuntime) -> None:
        await pods.start(self.spec(Program.WAIT), 1, self.lease(self.soon_s))
        ended = await self.end(pods, PodKey(ExecutionId("e1"), 1))
        assert ended.outcome.kind is OutcomeKind.SANDBOX_ERROR
        assert ended.outcome.reason == "lease_expired"

    async def test_program_outlives_a_lease_that_is_extended(self, pods: PodRuntime) -> None:
        await pods.start(self.spec(Program.WAIT, limits=Limits(wall_s=self.soon_s + 0.6)), 1, self.lease(self.soon_s))
        key = PodKey(ExecutionId("e1"), 1)
        await pods.extend(key, self.lease(60))
        assert (await self.end(pods, key)).outcome.kind is OutcomeKind.WALL_LIMIT
        await pods.extend(key, self.lease(60))

    async def test_lease_can_be_shortened(self, pods: PodRuntime) -> None:
        await pods.start(self.spec(Program.WAIT), 1, self.lease(60))
        key = PodKey(ExecutionId("e1"), 1)
        await pods.extend(key, self.lease(0.2))
        assert (await self.end(pods, key)).outcome.reason == "lease_expired"

    async def artifacts(self, pods: PodRuntime, key: PodKey) -> list[PodArtifact]:
        async with asyncio.timeout(ENDED_WITHIN_S):
            return [artifact async for artifact in pods.artifacts(key)]

    async def test_files_that_a_program_leaves_can_be_read_until_its_pod_is_removed(self, pods: PodRuntime) -> None:
        _, ended = await self.run(pods, Program.LEAVE)
        assert ended.outcome.exit_code == 3
        assert (ended.artifacts, ended.left_out) == (2, ())
        for _ in range(2):
            assert await self.artifacts(pods, ended.key) == [PodArtifact("a", b"left\n"), PodArtifact("b/c", b"")]
        await pods.remove(ended.key)
        assert await self.artifacts(pods, ended.key) == []

    async def test_nothing_is_left_by_most_programs_and_by_unknown_pods(self, pods: PodRuntime) -> None:
        _, ended = await self.run(pods, Program.HELLO)
        assert (ended.artifacts, ended.left_out) == (0, ())
        assert await self.artifacts(pods, ended.key) == []
        assert await self.artifacts(pods, PodKey(ExecutionId("nobody"), 1)) == []

    async def test_files_of_a_program_that_runs_are_not_told(self, pods: PodRuntime) -> None:
        await pods.start(self.spec(Program.LEAVE_AND_WAIT), 1, self.lease())
        key = PodKey(ExecutionId("e1"), 1)
        await self.until_ready(pods, key)
        assert await self.artifacts(pods, key) == []
        await pods.kill(key)
        assert (await self.end(pods, key)).artifacts == 1
        assert await self.artifacts(pods, key) == [PodArtifact("a", b"left\n")]

    @pytest.mark.parametrize(
        ("limits", "kept", "left_out"),
        [
            (Limits(artifacts=1), ["a"], (LeftOut(LeftOutFor.TOO_MANY, 1),)),
            (Limits(artifact_bytes=4), ["b/c"], (LeftOut(LeftOutFor.TOO_LARGE, 1),)),
            (Limits(artifact_bytes=5, artifacts=2), ["a", "b/c"], ()),
        ],
    )
    async def test_files_are_kept_whole_in_the_order_of_their_paths_or_not_at_all(
        self, pods: PodRuntime, limits: Limits, kept: list[str], left_out: tuple[LeftOut, ...]
    ) -> None:
        _, ended = await self.run(pods, Program.LEAVE, limits=limits)
        assert [artifact.path for artifact in await self.artifacts(pods, ended.key)] == kept
        assert (ended.artifacts, ended.left_out) == (len(kept), left_out)

    async def test_removed_pod_is_forgotten(self, pods: PodRuntime) -> None:
        _, ended = await self.run(pods, Program.HELLO)
        await pods.remove(ended.key)
        await pods.remove(ended.key)
        assert await pods.list() == []
        assert await self.records(pods, ended.key) == []

    async def test_remove_kills_a_program_that_runs(self, pods: PodRuntime) -> None:
        await pods.start(self.spec(Program.WAIT), 1, self.lease())
        async with asyncio.timeout(2.0):
            await pods.remove(PodKey(ExecutionId("e1"), 1))
        assert await pods.list() == []

    async def test_each_watch_tells_every_end_once(self, pods: PodRuntime) -> None:
        told: list[list[PodKey]] = [[], []]

        async def watch(into: list[PodKey]) -> None:
            async for ended in pods.watch():
                into.append(ended.key)
                if len(into) == 3:
                    return

        await self.run(pods, Program.HELLO, execution="before")
        watches = [asyncio.create_task(watch(into)) for into in told]
        await self.run(pods, Program.HELLO, execution="during-1")
        await self.run(pods, Program.FAIL, execution="during-2")
        async with asyncio.timeout(ENDED_WITHIN_S):
            await asyncio.gather(*watches)
        expected = [PodKey(ExecutionId(name), 1) for name in ("before", "during-1", "during-2")]
        assert told == [expected, expected]

    async def test_end_is_told_only_when_the_last_record_can_be_read(self, pods: PodRuntime) -> None:
        await pods.start(self.spec(Program.BOTH), 1, self.lease())
        ended = await self.end(pods, PodKey(ExecutionId("e1"), 1))
        async with asyncio.timeout(0.5):
            records = await self.records(pods, ended.key)
        assert records[-1].seq == ended.last_seq

    async def test_many_pods_at_once_all_end_as_they_should(self, pods: PodRuntime) -> None:
        kinds = [Program.HELLO, Program.FAIL, Program.KILL_ITSELF] * 5
        results = await asyncio.gather(
            *(self.run(pods, kind, execution=f"e{number}") for number, kind in enumerate(kinds))
        )
        expected = {Program.HELLO: OutcomeKind.EXITED, Program.FAIL: OutcomeKind.EXITED}
        for kind, (_, ended) in zip(kinds, results, strict=True):
            assert ended.outcome.kind is expected.get(kind, OutcomeKind.SIGNALLED)

    async def test_close_ends_what_runs_and_is_idempotent(self, tmp_path: Path) -> None:
        async with self.make(tmp_path) as pods:
            await pods.start(self.spec(Program.WAIT), 1, self.lease())
            watch = asyncio.create_task(self.end(pods, PodKey(ExecutionId("e1"), 1)))
            await asyncio.sleep(0)
            async with asyncio.timeout(5.0):
                await pods.close()
                await pods.close()
            assert (await watch).outcome.kind is OutcomeKind.CANCELLED


@pytest.mark.needs("sandbox")
class TestLocalSandbox(PodRuntimeContract):
    """The local sandbox, with shell scripts."""

    SCRIPTS: ClassVar = {
        Program.HELLO: "echo hello",
        Program.BOTH: "echo out; echo err >&2",
        Program.FAIL: "exit 3",
        Program.KILL_ITSELF: "kill -9 $$",
        Program.CAT: "cat",
        Program.WAIT: "echo ready; sleep infinity",
        Program.SPIN: "while :; do :; done",
        Program.LEAVE: "echo left >out/a; mkdir out/b; : >out/b/c; exit 3",
        Program.LEAVE_AND_WAIT: "echo left >out/a; echo ready; sleep infinity",
        Program.FLOOD: "exec yes x",
    }
    version: ClassVar[str] = ""

    @asynccontextmanager
    async def make(self, tmp_path: Path) -> AsyncIterator[PodRuntime]:
        async with LocalSandbox(tmp_path) as sandbox:
            if not TestLocalSandbox.version:
                TestLocalSandbox.version = next(
                    each.version for each in await sandbox.runtimes() if each.lang == "bash"
                )
            yield sandbox

    def program(self, kind: Program) -> tuple[str, str, str]:
        return "bash", self.version, self.SCRIPTS[kind]
