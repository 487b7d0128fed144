"""Who may die, and what is left: nothing, however it happens."""

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from runtape.adapters.sandbox import LocalSandbox
from runtape.domain.outcome import OutcomeKind
from runtape.ports.errors import Transient
from tests.sandbox.conftest import WAYS
from tests.sandbox.runs import children, descendants, end_of, finish, run, start, until_printed

pytestmark = pytest.mark.needs("sandbox")


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return request.param


DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(300)
    os._exit(0)
os.wait()
print("up", flush=True)
time.sleep(300)
"""
SERVICE = f"""
import asyncio, sys
from pathlib import Path
from runtape.adapters.sandbox import LocalSandbox
from tests.sandbox.runs import start, until_printed

async def main():
    async with LocalSandbox(Path(sys.argv[1])) as sandbox:
        for _ in range(2):
            await until_printed(sandbox, await start(sandbox, {DAEMON!r}), b'up\\n')
        print("running", flush=True)
        await asyncio.sleep(300)

asyncio.run(main())
"""


@contextmanager
def service(data: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A service of its own process, with two programs that run in it."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen([sys.executable, "-c", SERVICE, str(data)], stdout=subprocess.PIPE, env=env)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"running\n"
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


class Watched:
    """Processes that must end, held by their pidfds so that no number is taken for another."""

    def __init__(self, pids: set[int]) -> None:
        self.fds = []
        for pid in pids:
            with suppress(ProcessLookupError):
                self.fds.append(os.pidfd_open(pid))

    def alive_after(self, timeout_s: float) -> int:
        """Return how many still live after at most `timeout_s`."""
        poll, deadline_s = select.poll(), time.monotonic() + timeout_s
        for fd in self.fds:
            poll.register(fd, select.POLLIN)
        waiting = set(self.fds)
        while waiting and (left_s := deadline_s - time.monotonic()) > 0:
            for fd, _ in poll.poll(left_s * 1000):
                poll.unregister(fd)
                waiting.discard(fd)
        for fd in self.fds:
            os.close(fd)
        return len(waiting)


def cgroups_of(data: Path) -> list[Path]:
    """Return the parent groups that the keeper of `data` has noted; none without the right to make them."""
    text = (data / "sandbox.lock").read_text()
    return [Path(path) for path in json.loads(text)] if text else []


def keeper_of(sandbox: LocalSandbox) -> int:
    """Return the pid of the keeper: our one child that runs boot.py."""
    for pid in children(os.getpid()):
        if b"boot.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise AssertionError(f"no keeper of {sandbox}")


def box_of(keeper: int) -> int:
    """Return the pid 1 of the one box in which `DAEMON` runs."""
    (box,) = [pid for pid in descendants(keeper) if is_init(pid) and len(descendants(pid)) == 2]
    return box


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def is_init(pid: int) -> bool:
    """Return whether a process lives and is the first of its pid namespace."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    return next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1] == "1"


async def test_kill_of_the_service_leaves_no_process_and_no_cgroup(tmp_path: Path) -> None:
    with service(tmp_path) as process:
        groups = cgroups_of(tmp_path)
        assert all(any(group.iterdir()) for group in groups)
        below = descendants(process.pid)
        assert len(below) >= 1 + 2 * 3  # the keeper; of each run pid 1, the program and its daemon
        watched = Watched(below)
        process.kill()
        assert watched.alive_after(5.0) == 0
    assert not any(group.exists() for group in groups)


async def test_kill_of_service_and_keeper_leaves_no_process_and_the_next_service_sweeps(tmp_path: Path) -> None:
    with service(tmp_path) as process:
        groups = cgroups_of(tmp_path)
        below = descendants(process.pid)
        watched = Watched(below)
        (keeper,) = children(process.pid)
        process.kill()
        os.kill(keeper, signal.SIGKILL)
        assert watched.alive_after(5.0) == 0
    left = [group / "box-999999" for group in groups]
    for group in left:
        group.mkdir()
    async with LocalSandbox(tmp_path) as sandbox:
        assert not any(group.exists() for group in left)
        assert (await run(sandbox, "print(1)")).text == "1"
    assert not any(group.exists() for group in groups)


async def test_next_service_waits_until_the_programs_of_the_last_are_dead(tmp_path: Path) -> None:
    with service(tmp_path) as process:
        with pytest.raises(Transient, match="locked"):
            await LocalSandbox(tmp_path, lock_timeout_s=0.1).open()
        watched = Watched(descendants(process.pid))
        process.kill()
        async with LocalSandbox(tmp_path):
            assert watched.alive_after(0.001) == 0


async def test_orderly_end_leaves_nothing(tmp_path: Path) -> None:
    before = descendants(os.getpid())
    fds = len(os.listdir("/proc/self/fd"))
    async with LocalSandbox(tmp_path) as sandbox:
        await until_printed(sandbox, await start(sandbox, DAEMON), b"up\n")
        watched = Watched(descendants(os.getpid()) - before)
        groups = cgroups_of(tmp_path)
    assert watched.alive_after(0.001) == 0
    assert not any(group.exists() for group in groups)
    assert len(os.listdir("/proc/self/fd")) == fds
    # Programs that were built here, for want of a better place, serve the next start.
    assert [name for name in os.listdir(tmp_path) if not name.startswith("runtape-native-")] == ["sandbox.lock"]


async def test_loss_of_the_keeper_is_told_and_made_good(own_sandbox: LocalSandbox) -> None:
    key = await start(own_sandbox, DAEMON)
    await until_printed(own_sandbox, key, b"up\n")
    keeper = keeper_of(own_sandbox)
    watched = Watched(descendants(keeper))
    os.kill(keeper, signal.SIGKILL)
    lost = await end_of(own_sandbox, key)
    assert (lost.outcome.kind, lost.outcome.reason) == (OutcomeKind.SANDBOX_ERROR, "keeper_lost")
    assert (await finish(own_sandbox, key)).stdout == b"up\n"
    assert (await run(own_sandbox, "print(1)")).text == "1"
    assert watched.alive_after(2.0) == 0
    assert keeper_of(own_sandbox) != keeper


async def test_runs_that_come_while_the_keeper_is_replaced_wait(own_sandbox: LocalSandbox) -> None:
    os.kill(keeper_of(own_sandbox), signal.SIGKILL)
    results = await asyncio.gather(*(run(own_sandbox, "print(1)") for _ in range(5)))
    assert {result.outcome.kind for result in results} <= {OutcomeKind.EXITED, OutcomeKind.SANDBOX_ERROR}
    assert (await run(own_sandbox, "print(1)")).text == "1"


async def test_kill_of_the_first_process_of_a_box_is_our_error(own_sandbox: LocalSandbox) -> None:
    key = await start(own_sandbox, DAEMON)
    await until_printed(own_sandbox, key, b"up\n")
    keeper = keeper_of(own_sandbox)
    box = box_of(keeper)
    watched = Watched(descendants(box))
    os.kill(box, signal.SIGKILL)
    result = await finish(own_sandbox, key)
    assert (result.outcome.kind, result.outcome.reason) == (OutcomeKind.SANDBOX_ERROR, "init_killed")
    assert result.stdout == b"up\n"
    assert watched.alive_after(0.001) == 0


async def test_box_that_dies_in_stock_is_replaced(own_sandbox: LocalSandbox) -> None:
    boxes = descendants(keeper_of(own_sandbox))
    watched = Watched(boxes)
    for pid in boxes:
        with suppress(ProcessLookupError):  # it has gone with the one before
            os.kill(pid, signal.SIGKILL)
    assert watched.alive_after(2.0) == 0
    results = await asyncio.gather(*(run(own_sandbox, "print(1)") for _ in range(8)))
    assert [result.text for result in results] == ["1"] * 8


async def test_first_process_of_a_box_holds_nothing_of_the_host(own_sandbox: LocalSandbox) -> None:
    await until_printed(own_sandbox, await start(own_sandbox, DAEMON), b"up\n")
    folder = f"/proc/{box_of(keeper_of(own_sandbox))}/fd"
    try:
        held = [os.readlink(f"{folder}/{fd}") for fd in sorted(os.listdir(folder), key=int)]
    except PermissionError:
        pytest.skip("only root can look at a process that cannot be dumped")
    kinds = {"/dev/null", "pipe", "socket", "anon_inode"}
    ours = [name for name in held if name.partition(":")[0] not in kinds and not name.endswith("sandbox.lock")]
    assert all("/box-" in name or "/slot-" in name for name in ours), ours


async def test_burst_of_a_hundred_starts_all_succeed(own_sandbox: LocalSandbox) -> None:
    results = await asyncio.gather(*(run(own_sandbox, f"print({n})") for n in range(100)))
    assert [result.text for result in results] == [str(n) for n in range(100)]


async def test_many_runs_leave_no_descriptor_and_no_process(own_sandbox: LocalSandbox) -> None:
    await run(own_sandbox, "print(1)")
    fds = len(os.listdir("/proc/self/fd"))
    for _ in range(60):
        await run(own_sandbox, "exit 3", lang="bash")
    await own_sandbox.ready()
    in_stock = 2 * 2 * (os.cpu_count() or 1)  # for programs that are forked, and that are exec'd
    assert len(os.listdir("/proc/self/fd")) <= fds + 4 * in_stock
    assert await own_sandbox.list() == []


async def test_keeper_holds_nothing_of_boxes_that_have_ended(own_sandbox: LocalSandbox) -> None:
    keeper = f"/proc/{keeper_of(own_sandbox)}/fd"
    if os.geteuid() != 0:
        return  # nobody else can look into the keeper
    await asyncio.gather(*(run(own_sandbox, "print(1)") for _ in range(12)))
    before = len(os.listdir(keeper))
    for _ in range(30):
        await run(own_sandbox, "print(1)")
    # Each run has three; a slot more or less has up to four of its own.
    assert len(os.listdir(keeper)) - before < 30


async def test_kill_of_a_slot_is_told_when_nothing_of_its_box_is_left(own_sandbox: LocalSandbox) -> None:
    key = await start(own_sandbox, DAEMON)
    await until_printed(own_sandbox, key, b"up\n")
    box = box_of(keeper_of(own_sandbox))
    if not own_sandbox.native:
        return  # the keeper is its slot
    slot = parent_of(box)
    watched = Watched({box, *descendants(box)})
    os.kill(slot, signal.SIGKILL)
    result = await finish(own_sandbox, key)
    assert result.outcome.kind is OutcomeKind.SANDBOX_ERROR
    assert watched.alive_after(0.001) == 0
    assert (await run(own_sandbox, "print(1)")).text == "1"
