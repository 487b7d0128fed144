"""The tier in which every program has a kernel of its own: as isolated, as bounded, as well told."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from runtape.adapters.sandbox import LocalSandbox, gvisor
from runtape.domain.limits import Limits
from runtape.domain.outcome import OutcomeKind, Phase
from runtape.ports.errors import SandboxUnavailable
from tests.prove.weakened import Weakness, weaken
from tests.sandbox.runs import children, descendants, name_of, run, start, until_printed

pytestmark = [
    pytest.mark.needs("sandbox"),
    pytest.mark.needs("gvisor"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sandbox(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalSandbox]:
    async with LocalSandbox(tmp_path_factory.mktemp("gvisor"), own_kernel=True) as opened:
        yield opened


async def test_program_has_a_kernel_of_its_own(sandbox: LocalSandbox) -> None:
    result = await run(sandbox, "import platform; print(platform.release())")
    assert result.text == "4.4.0"
    assert os.uname().release != result.text


async def test_what_a_program_is_given_is_there(sandbox: LocalSandbox) -> None:
    script = """
import os, sys
from helper import kept
print(sys.argv[1:], os.environ["A"], sys.stdin.read(), kept, os.getcwd(), sorted(os.listdir()))
open("/tmp/a", "w").write("a")
print("also", file=sys.stderr)
sys.exit(7)
"""
    result = await run(
        sandbox, script, args=("x y", "", "☃"), env={"A": "b"}, stdin=b"in" * 4000, files={"helper.py": b"kept = 'k'"}
    )
    assert result.outcome.exit_code == 7
    expected = f"['x y', '', '☃'] b {'in' * 4000} k /box ['.tmp', '__pycache__', 'helper.py', 'main.py', 'out']\n"
    assert result.stdout.decode() == expected
    assert result.stderr == b"also\n"


@pytest.mark.parametrize(
    ("lang", "script"),
    [
        pytest.param("bash", "echo $((6 * 7))", marks=pytest.mark.needs("bash")),
        pytest.param("node", "console.log(6 * 7)", marks=pytest.mark.needs("node")),
        pytest.param(
            "c", '#include <stdio.h>\nint main(void) { printf("%d\\n", 6 * 7); }', marks=pytest.mark.needs("c")
        ),
    ],
)
async def test_other_languages_run_too(sandbox: LocalSandbox, lang: str, script: str) -> None:
    assert (await run(sandbox, script, lang=lang)).text == "42"


@pytest.mark.needs("c")
async def test_compiler_runs_there_too_and_its_words_are_told(sandbox: LocalSandbox) -> None:
    result = await run(sandbox, "int main(void) { return x; }", lang="c")
    assert (result.outcome.kind, result.outcome.phase) == (OutcomeKind.EXITED, Phase.COMPILE)
    assert b"undeclared" in result.stderr


async def test_output_arrives_while_the_program_runs(sandbox: LocalSandbox) -> None:
    key = await start(sandbox, "import time; print('up', flush=True); time.sleep(60)")
    await until_printed(sandbox, key, b"up")
    await sandbox.kill(key)
    await sandbox.remove(key)


@pytest.mark.parametrize(
    ("script", "limits", "kind"),
    [
        ("import time; time.sleep(60)", Limits(wall_s=1), OutcomeKind.WALL_LIMIT),
        ("while True: pass", Limits(cpu_s=1), OutcomeKind.TIME_LIMIT),
        ("x = bytearray(600 << 20)", Limits(), OutcomeKind.MEMORY_LIMIT),
        ("while True: print('x' * 1000)", Limits(output_bytes=10_000), OutcomeKind.OUTPUT_LIMIT),
    ],
)
async def test_limits_hold(sandbox: LocalSandbox, script: str, limits: Limits, kind: OutcomeKind) -> None:
    result = await run(sandbox, script, limits=limits)
    assert result.outcome.kind is kind
    assert len(result.stdout) <= limits.output_bytes


async def test_locks_of_different_programs_are_apart(sandbox: LocalSandbox) -> None:
    script = """
import fcntl
fcntl.flock(open('/usr/bin/env'), fcntl.LOCK_EX | fcntl.LOCK_NB)
print('locked', flush=True)
"""
    key = await start(sandbox, f"{script}\nimport time; time.sleep(60)")
    await until_printed(sandbox, key, b"locked")
    assert (await run(sandbox, script)).text == "locked"
    await sandbox.remove(key)


@pytest.mark.parametrize("folder", ["/box", "/tmp"])
async def test_disk_is_bounded(sandbox: LocalSandbox, folder: str) -> None:
    script = f"f = open('{folder}/x', 'wb')\nwhile True: f.write(bytes(1 << 20)); f.flush()"
    result = await run(sandbox, script, limits=Limits(disk_mb=20))
    assert result.stderr.splitlines()[-1].startswith(b"OSError: [Errno 2")  # 27: too large, or 28: no space left


async def test_flood_of_processes_is_bounded_and_hurts_nobody(sandbox: LocalSandbox) -> None:
    bomb = "import os, time\nwhile True:\n    if os.fork() == 0: time.sleep(60)"
    key = await start(sandbox, bomb, limits=Limits(processes=10))
    assert (await run(sandbox, "print(1)")).text == "1"
    await sandbox.remove(key)


@pytest.mark.parametrize(
    "script",
    [
        "open('/usr/x', 'w')",
        "open('/runtape/x', 'w')",
        "open('/etc/x', 'w')",
        "import socket; socket.create_connection(('1.1.1.1', 80), 2)",
        "import os; assert not os.listdir('/run'); open('/run/bundle')",
        "import os; os.mknod('/box/kmsg', 0o20600, os.makedev(1, 11)); open('/box/kmsg')",
        "import ctypes; assert ctypes.CDLL(None).mount(b'x', b'/mnt', b'tmpfs', 0, 0) == 0",
    ],
)
async def test_nothing_beyond_the_box_can_be_reached(sandbox: LocalSandbox, script: str) -> None:
    result = await run(sandbox, script)
    assert result.outcome.exit_code == 1, result


async def test_cancelled_program_leaves_nothing(sandbox: LocalSandbox) -> None:
    before = monitors()
    key = await start(sandbox, "import subprocess; print('up', flush=True); subprocess.run(['/bin/sleep', '60'])")
    await until_printed(sandbox, key, b"up")
    assert monitors() - before
    await sandbox.kill(key)
    await sandbox.remove(key)
    assert not monitors() - before


def monitors() -> set[int]:
    return {pid for pid in descendants(os.getpid()) if name_of(pid).startswith(("runsc", "exe"))}


async def test_gvisor_that_is_not_there_is_named_with_its_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gvisor, "find", lambda: None)
    with pytest.raises(SandboxUnavailable, match=r"no runsc on PATH.*apt install runsc"):
        await LocalSandbox(tmp_path, own_kernel=True).open()


async def test_gvisor_that_cannot_run_is_found_out_before_any_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gvisor, "find", lambda: "/bin/cat")
    before = children(os.getpid())
    with pytest.raises(SandboxUnavailable, match=r"gVisor cannot run programs here: .*unrecognized option"):
        await LocalSandbox(tmp_path, own_kernel=True).open()
    assert children(os.getpid()) <= before
    async with LocalSandbox(tmp_path) as plain:  # the lock is free
        assert (await run(plain, "print(1)")).text == "1"


async def test_without_the_c_programs_there_is_no_such_tier(tmp_path: Path) -> None:
    with pytest.raises(SandboxUnavailable, match=r"boxes that C programs make.*apt install gcc"):
        await LocalSandbox(tmp_path, own_kernel=True, native=False).open()


async def test_without_a_cgroup_its_memory_would_have_no_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drop = "def unusable(*_):\n    raise cgroups.Unusable('dropped')\ncgroups.open_hierarchy = unusable"
    weaken(Weakness(drop), monkeypatch, tmp_path)
    with pytest.raises(SandboxUnavailable, match=r"by a cgroup alone: dropped.*Delegate=yes"):
        await LocalSandbox(tmp_path / "data", own_kernel=True).open()
