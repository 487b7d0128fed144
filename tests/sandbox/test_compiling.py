"""A compiler has a box and a phase of its own, and what it makes is kept by content."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from runtape.adapters.sandbox import LocalSandbox
from runtape.adapters.sandbox.builds import Build, Builds
from runtape.adapters.sandbox.compiled_pod import PROGRAM_BYTES
from runtape.adapters.sandbox.keeper import wire
from runtape.adapters.sandbox.pod import Pod
from runtape.adapters.sandbox.pool import BoxPool
from runtape.adapters.sandbox.runtimes import InstalledRuntime
from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome, OutcomeKind, Phase
from runtape.domain.tape import RECORD_BYTES
from runtape.ports.errors import Transient
from tests.sandbox.runs import Result, finish, run, start, until_printed

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.needs("sandbox", "c", "c++")]

HELLO = '#include <stdio.h>\nint main(void) { puts("hello"); }\n'
WARNING = "#warning mind this\n" + HELLO
ENDLESS = "template <int N, int M> struct T { static const int v = T<N - 1, M>::v + T<N - 1, M + (1 << N)>::v; };\n" + (
    "template <int M> struct T<0, M> { static const int v = M; };\nint main() { return T<24, 0>::v; }\n"
)
"""Has 2^24 templates to make, each of which takes memory."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(tmp_path_factory.mktemp("compiling"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(folder: Path) -> AsyncIterator[LocalSandbox]:
    async with LocalSandbox(folder) as opened:
        yield opened


def builds_in(folder: Path) -> set[str]:
    return set(os.listdir(folder / "builds"))


async def run_c(sandbox: LocalSandbox, script: str, **how: object) -> Result:
    return await run(sandbox, script, lang="c", **how)


# The phase


async def test_phase_is_that_of_the_box_and_not_of_what_was_printed(sandbox: LocalSandbox) -> None:
    script = '#include <stdio.h>\nint main(void) { fputs("main.c:1: error: forged\\n", stderr); return 1; }'
    assert (await run_c(sandbox, script)).outcome == Outcome(kind=OutcomeKind.EXITED, exit_code=1, phase=Phase.RUN)


async def test_text_of_the_compiler_comes_first_and_times_go_on(sandbox: LocalSandbox) -> None:
    result = await run_c(sandbox, WARNING.replace("this", "the order"))
    assert result.text == "hello"
    assert b"warning: #warning mind the order" in result.stderr
    assert [record.stream for record in result.records] == ["stderr", "stdout"]
    assert result.records[0].t_ns < result.records[1].t_ns < result.usage.wall_ns
    assert result.usage.output_bytes == len(result.stdout) + len(result.stderr)


async def test_usage_is_of_both(sandbox: LocalSandbox) -> None:
    compiled = await run_c(sandbox, HELLO.replace("hello", "usage"))
    again = await run_c(sandbox, HELLO.replace("hello", "usage"))
    assert compiled.text == again.text == "usage"
    assert compiled.usage.peak_memory_bytes > again.usage.peak_memory_bytes
    assert compiled.usage.cpu_user_ns + compiled.usage.cpu_system_ns > again.usage.cpu_user_ns
    assert compiled.usage.wall_ns > again.usage.wall_ns


async def test_compiler_is_stopped_by_the_limits_of_the_run(sandbox: LocalSandbox) -> None:
    result = await run(sandbox, ENDLESS, lang="c++", limits=Limits(cpu_s=0.3))
    assert result.outcome == Outcome(kind=OutcomeKind.TIME_LIMIT, phase=Phase.COMPILE)
    result = await run(sandbox, ENDLESS, lang="c++", limits=Limits(wall_s=0.3))
    assert result.outcome == Outcome(kind=OutcomeKind.WALL_LIMIT, phase=Phase.COMPILE)


async def test_compiler_is_stopped_by_its_memory(sandbox: LocalSandbox) -> None:
    script = 'asm(".rept 1000000000\\n.quad 0\\n.endr");\nint main(void) {}'
    result = await run_c(sandbox, script, limits=Limits(memory_mb=64, wall_s=30, cpu_s=30))
    assert result.outcome == Outcome(kind=OutcomeKind.MEMORY_LIMIT, phase=Phase.COMPILE, reason="oom")


async def test_text_of_the_compiler_counts_as_output(sandbox: LocalSandbox) -> None:
    result = await run_c(sandbox, WARNING.replace("this", "the limit"), limits=Limits(output_bytes=20))
    assert result.outcome == Outcome(kind=OutcomeKind.OUTPUT_LIMIT, phase=Phase.COMPILE)
    assert len(result.stderr) == 20
    # The same of a build that is there already.
    await run_c(sandbox, WARNING.replace("this", "the limit"))
    result = await run_c(sandbox, WARNING.replace("this", "the limit"), limits=Limits(output_bytes=20))
    assert result.outcome == Outcome(kind=OutcomeKind.OUTPUT_LIMIT, phase=Phase.COMPILE)


async def test_time_of_the_compiler_is_gone_for_the_program(sandbox: LocalSandbox) -> None:
    spin = "#include <iostream>\nint main() { for (volatile int n = 0;;) (void)n; }"  # half a second for the compiler
    result = await run(sandbox, spin, lang="c++", limits=Limits(cpu_s=2.5))
    assert result.outcome == Outcome(kind=OutcomeKind.TIME_LIMIT)
    assert 2.5e9 <= result.usage.cpu_user_ns + result.usage.cpu_system_ns < 2.8e9


async def test_program_that_is_too_large_is_told_so(sandbox: LocalSandbox) -> None:
    script = f"char a[{PROGRAM_BYTES}] = {{1}};\nint main(void) {{ return a[1]; }}"
    result = await run_c(sandbox, script, limits=Limits(disk_mb=256))
    assert (result.outcome.kind, result.outcome.phase) == (OutcomeKind.OUTPUT_LIMIT, Phase.COMPILE)
    assert result.outcome.reason == "program_too_large"
    assert result.stdout == b""


async def test_small_limits_of_a_program_are_not_its_compilers(sandbox: LocalSandbox) -> None:
    script = '#include <iostream>\nint main() { std::cout << "small"; }'  # 80 MB for the compiler
    assert (await run(sandbox, script, lang="c++", limits=Limits(memory_mb=16, processes=1))).text == "small"


async def test_kill_of_the_compiler_cancels_the_run(sandbox: LocalSandbox) -> None:
    told = "#warning begun\n" + ENDLESS
    key = await start(sandbox, told, lang="c++", limits=Limits(wall_s=30, cpu_s=30))
    await until_printed(sandbox, key, b"begun")
    await sandbox.kill(key)
    result = await finish(sandbox, key)
    assert result.outcome == Outcome(kind=OutcomeKind.CANCELLED, phase=Phase.COMPILE)


# What the compiler sees


async def test_compiler_sees_the_files_and_nothing_of_the_programs_environment(sandbox: LocalSandbox) -> None:
    script = '#include <stdio.h>\n#include <stdlib.h>\n#include "part.h"\n'
    script += 'int main(void) { printf("%d %s", PART, getenv("GCC_EXEC_PREFIX")); }'
    env = {"GCC_EXEC_PREFIX": "/nonexistent/", "COMPILER_PATH": "/box", "PATH": "/nonexistent"}
    assert (await run_c(sandbox, script, files={"part.h": b"#define PART 4"}, env=env)).text == "4 /nonexistent/"
    assert (await run_c(sandbox, script, files={"part.h": b"#define PART 5"}, env=env)).text == "5 /nonexistent/"


async def test_program_lies_outside_the_work_directory(sandbox: LocalSandbox) -> None:
    script = '#include <stdlib.h>\nint main(void) { return system("ls"); }'
    assert (await run_c(sandbox, script, files={"data": b""})).text == "data\nmain.c\nout"


# Builds


async def test_build_is_used_again_with_the_text_of_its_compiler(folder: Path, sandbox: LocalSandbox) -> None:
    before = builds_in(folder)
    script = WARNING.replace("this", "the cache")
    first = await run_c(sandbox, script)
    again = await run_c(sandbox, script)
    assert (first.stdout, first.stderr) == (again.stdout, again.stderr)
    (name,) = builds_in(folder) - before
    builds = Builds(folder / "builds", 1 << 30)
    build = builds.load(name)
    assert build is not None
    assert build.text == first.stderr
    builds.store(name, Build(build.program.replace(b"hello", b"HELLO"), b"kept\n"))
    planted = await run_c(sandbox, script)
    assert (planted.stdout, planted.stderr) == (b"HELLO\n", b"kept\n")


async def test_long_text_of_a_compiler_is_shown_again_in_records_of_the_usual_size(sandbox: LocalSandbox) -> None:
    script = "#warning something long to read\n" * 1000 + HELLO
    first = await run_c(sandbox, script)
    again = await run_c(sandbox, script)
    assert len(first.stderr) > RECORD_BYTES
    assert again.stderr == first.stderr
    assert max(len(record.data) for record in again.records) <= RECORD_BYTES


async def test_damaged_build_is_made_again(folder: Path, sandbox: LocalSandbox) -> None:
    before = builds_in(folder)
    script = HELLO.replace("hello", "damaged")
    await run_c(sandbox, script)
    (name,) = builds_in(folder) - before
    path = folder / "builds" / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"?")
    assert (await run_c(sandbox, script)).text == "damaged"
    assert path.stat().st_size == len(whole)
    assert path.read_bytes()[-1:] != b"?"


async def test_failed_compilation_is_not_kept(folder: Path, sandbox: LocalSandbox) -> None:
    before = builds_in(folder)
    assert (await run_c(sandbox, "int main(void) { nonsense; }")).outcome.phase is Phase.COMPILE
    assert builds_in(folder) == before


async def test_run_goes_on_when_its_build_cannot_be_kept(tmp_path: Path) -> None:
    async with LocalSandbox(tmp_path) as sandbox:
        (tmp_path / "builds").write_bytes(b"")
        assert (await run_c(sandbox, HELLO)).text == "hello"


# Between the two boxes


class HeldSandbox(LocalSandbox):
    """Holds every program between its compiler and its own box, and can refuse it that."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self.held = asyncio.Event()
        self.go_on = asyncio.Event()
        self.refusal: Exception | None = None

    async def _begin(
        self,
        pod: Pod,
        pool: BoxPool,
        limits: Limits,
        order: wire.Order,
        runtime: InstalledRuntime | None = None,
        layer: str = "",
    ) -> None:
        if not order.argv[0].endswith(b"/sh"):
            self.held.set()
            await self.go_on.wait()
            if self.refusal is not None:
                raise self.refusal
        await super()._begin(pod, pool, limits, order, runtime, layer)


@pytest_asyncio.fixture(loop_scope="module")
async def held(tmp_path: Path) -> AsyncIterator[HeldSandbox]:
    async with HeldSandbox(tmp_path) as opened:
        yield opened


async def test_kill_between_compiler_and_program_cancels_the_run(held: HeldSandbox) -> None:
    key = await start(held, HELLO, lang="c")
    await held.held.wait()
    await held.kill(key)
    result = await finish(held, key)
    assert result.outcome == Outcome(kind=OutcomeKind.CANCELLED)
    assert result.usage.cpu_user_ns + result.usage.cpu_system_ns > 0
    assert result.stdout == b""


async def test_program_that_gets_no_box_ends_as_our_failure(held: HeldSandbox) -> None:
    key = await start(held, HELLO, lang="c")
    await held.held.wait()
    held.refusal = Transient("no box can be had")
    held.go_on.set()
    result = await finish(held, key)
    assert result.outcome == Outcome(
        kind=OutcomeKind.SANDBOX_ERROR, reason="no_box", message="no box can be had", phase=Phase.RUN
    )


async def test_lease_that_ends_between_compiler_and_program_ends_the_run(held: HeldSandbox) -> None:
    key = await start(held, HELLO, lang="c", lease_s=1.0)
    await held.held.wait()
    result = await finish(held, key)
    assert (result.outcome.kind, result.outcome.reason) == (OutcomeKind.SANDBOX_ERROR, "lease_expired")
