"""The real server is killed, with runs in it: each ends exactly once, its stream goes on, and nothing is left."""

import asyncio
import hashlib
import os
import random
import select
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.e2e.server import Server
from tests.e2e.sse import Frame
from tests.process.followers import Follower, Place

pytestmark = pytest.mark.needs("server")

RUNS = 50
ROUNDS = 4
DEATH_S = 10.0

SCRIPTS = {
    "quick": ("print('quick', {n})", b"quick {n}\n"),
    "slow": (
        "import time\nfor step in range(30): print({n}, step, flush=True); time.sleep(0.02)",
        "".join(f"{{n}} {step}\n" for step in range(30)).encode(),
    ),
    "large": ("import os\nfor _ in range(40): os.write(1, b'%07d\\n' % {n} * 1000)", b"{n:07d}\n" * 40_000),
    "forking": (
        "import os, sys, time\nif os.fork() == 0: os.setsid(); time.sleep(300)\ntime.sleep(0.2)\nprint('parent', {n})",
        b"parent {n}\n",
    ),
}


def descendants(pid: int) -> set[int]:
    """Return the processes below `pid`, without it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


def keeper_of(server: Server) -> int:
    """Return the process that holds the server's boxes: its only child."""
    (keeper,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    assert b"keeper/boot.py" in Path(f"/proc/{keeper}/cmdline").read_bytes()
    return int(keeper)


class Doomed:
    """Processes that have to die; they are held by descriptors, so that no other one is taken for them."""

    def __init__(self, pids: set[int]) -> None:
        self._fds: list[int] = []
        for pid in pids:
            try:
                self._fds.append(os.pidfd_open(pid))
            except ProcessLookupError:
                continue

    def __len__(self) -> int:
        return len(self._fds)

    def died(self) -> None:
        """Wait until all are dead."""
        deadline_s = time.monotonic() + DEATH_S
        for fd in self._fds:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            ready = poll.poll(max(0.0, deadline_s - time.monotonic()) * 1000)
            os.close(fd)
            assert ready, f"a process of the sandbox lives {DEATH_S:g} s after its server"
        self._fds = []


def cgroups(data: Path) -> list[Path]:
    """Return the control groups of the boxes over this data folder."""
    instance = hashlib.sha256(os.fsencode(os.path.realpath(data))).hexdigest()[:12]
    # Of others', which come and go meanwhile, the walk does not mind.
    return [Path(folder) / name for folder, names, _ in os.walk("/sys/fs/cgroup") for name in names if instance in name]


@contextmanager
def nothing_left(data: Path, temporary: Path) -> Iterator[None]:
    """Check that what comes between leaves no mount, group or file behind, but for the data itself."""
    mounts = Path("/proc/self/mountinfo").read_text()
    yield
    assert cgroups(data) == []
    assert _ours(Path("/proc/self/mountinfo").read_text()) == _ours(mounts)
    assert list(temporary.iterdir()) == []
    left = {path.name for path in data.iterdir()}
    kept = {"runtape.db", "runtape.db-wal", "runtape.db-shm", "local.key", "lock", "packages", "sandbox.lock"}
    assert left <= kept, left


def _ours(mounts: str) -> list[str]:
    return sorted(line for line in mounts.splitlines() if "runtape" in line)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of every process that the test starts."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(
        tmp_path / "data",
        admission__running=8,
        rate_limits__executions_per_minute=100_000,
        rate_limits__calls_per_minute=100_000,
    )
    yield server
    server.close()


def check_store(data: Path, wanted: set[str | None]) -> None:
    """Check that the store holds exactly these runs, and each of them at its end."""
    with closing(sqlite3.connect(data / "runtape.db")) as connection:

        def rows(query: str) -> list[tuple[str, ...]]:
            return connection.execute(query).fetchall()

        assert {row[0] for row in rows("select id from execution")} == wanted
        assert rows("select id from execution where due_at is not null") == []
        assert rows("select execution_id from saga where unfinished") == []
        assert rows("select status from execution where status in ('queued', 'running')") == []


@pytest.mark.timeout(90)
async def test_killed_server_loses_no_run_and_no_byte(
    server: Server, tmp_path: Path, temporary: Path, record_property: Callable[[str, object], None]
) -> None:
    seed = int(os.environ.get("RUNTAPE_SEED", random.SystemRandom().randrange(1 << 32)))
    print(f"RUNTAPE_SEED={seed}")
    record_property("seed", seed)
    draw = random.Random(seed)

    moment = asyncio.Event()
    frames_left = 0

    def on_frame(_: Frame) -> None:
        nonlocal frames_left
        frames_left -= 1
        if frames_left <= 0:
            moment.set()

    with nothing_left(server.data, temporary):
        place = Place(server.start())
        followers: list[Follower] = []
        following: list[asyncio.Task[None]] = []
        for _ in range(ROUNDS):
            moment.clear()
            frames_left = draw.randrange(1, 400)
            unfinished = sum(not task.done() for task in following)
            for _ in range(RUNS - unfinished):
                kind = draw.choice(list(SCRIPTS))
                number = len(followers)
                script = SCRIPTS[kind][0].replace("{n}", str(number))
                followers.append(Follower(place, f"{kind}-{number}", script, on_frame))
                following.append(asyncio.create_task(followers[-1].follow()))
            await asyncio.wait_for(moment.wait(), 20)
            doomed = Doomed(descendants(server.pid))
            place.gone()
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(doomed.died)
            await asyncio.to_thread(server.start)
            place.back()
        await asyncio.wait_for(asyncio.gather(*following), 45)

        completed = 0
        async with server.client() as client:
            for follower in followers:
                result = follower.check()
                async with client.stream(str(follower.execution_id)) as stream:
                    whole = await stream.rest()
                assert [frame.raw for frame in follower.frames] == [frame.raw for frame in whole], follower.name
                kind, _, number = follower.name.partition("-")
                if result["status"] == "completed":
                    completed += 1
                    expected = SCRIPTS[kind][1].decode().replace("{n:07d}", f"{int(number):07d}")
                    expected = expected.replace("{n}", number)
                    assert follower.printed(result["attempt"]) == expected.encode(), follower.name
                    assert result["stdout_sha256"] == hashlib.sha256(expected.encode()).hexdigest()
                else:
                    # Killed with its server three times: the only failure that there is here, and it is ours.
                    assert (result["outcome"]["kind"], result["attempt"]) == ("sandbox_error", 3), result
        assert completed >= 0.7 * len(followers), f"only {completed} of {len(followers)} completed"
        assert sum(follower.resumed > 0 for follower in followers) >= ROUNDS
        check_store(server.data, {follower.execution_id for follower in followers})

        doomed = Doomed(descendants(server.pid))
        assert len(doomed) > 0
        assert await asyncio.to_thread(server.stop) == 0
        await asyncio.to_thread(doomed.died)


UP = "import os, time\nos.write(1, b'up\\n')\ntime.sleep(1.2)\nprint('down')"


async def started(place: Place, count: int, **fields: object) -> tuple[list[Follower], list[asyncio.Task[None]]]:
    """Start runs and return once each of them has printed."""
    followers: list[Follower] = []
    following: list[asyncio.Task[None]] = []
    up: list[asyncio.Event] = []
    for number in range(count):
        event = asyncio.Event()
        up.append(event)
        follower = Follower(place, f"up-{number}-{sorted(fields)}", UP, _sets(event), dict(fields))
        followers.append(follower)
        following.append(asyncio.create_task(follower.follow()))
    await asyncio.wait_for(asyncio.gather(*(event.wait() for event in up)), 20)
    return followers, following


def _sets(event: asyncio.Event) -> Callable[[Frame], None]:
    return lambda frame: event.set() if frame.event == "output" else None


async def test_runs_of_a_killed_keeper_are_run_again(server: Server, temporary: Path) -> None:
    with nothing_left(server.data, temporary):
        place = Place(server.start())
        followers, following = await started(place, 4)
        once, once_following = await started(place, 2, on_interrupt="fail")
        keeper = keeper_of(server)
        doomed = Doomed(descendants(server.pid))
        os.kill(keeper, signal.SIGKILL)
        await asyncio.to_thread(doomed.died)
        await asyncio.wait_for(asyncio.gather(*following, *once_following), 20)
        for follower in followers:
            result = follower.check()
            assert (result["status"], result["attempt"], result["stdout"]) == ("completed", 2, "up\ndown\n")
            assert follower.printed(1) == b"up\n"
            assert follower.resumed == 0
        for follower in once:
            result = follower.check()
            assert (result["attempt"], result["outcome"]["kind"]) == (1, "sandbox_error")
            assert (result["outcome"]["reason"], result["stdout"]) == ("keeper_lost", "up\n")
        async with server.client() as client:
            assert (await client.run("print(1)"))["stdout"] == "1\n"
        assert await asyncio.to_thread(server.stop) == 0


async def test_runs_of_a_stopped_server_are_taken_up_by_the_next(server: Server, temporary: Path) -> None:
    with nothing_left(server.data, temporary):
        place = Place(server.start())
        followers, following = await started(place, 4)
        once, once_following = await started(place, 2, on_interrupt="fail")
        doomed = Doomed(descendants(server.pid))
        place.gone()
        began = time.monotonic()
        assert await asyncio.to_thread(server.stop) == 0
        assert time.monotonic() - began < 3.0
        doomed.died()
        assert cgroups(server.data) == []
        await asyncio.to_thread(server.start)
        place.back()
        await asyncio.wait_for(asyncio.gather(*following, *once_following), 20)
        for follower in followers:
            result = follower.check()
            assert (result["status"], result["attempt"], result["stdout"]) == ("completed", 2, "up\ndown\n")
            assert follower.printed(1) == b"up\n"
            assert follower.resumed == 1
            (restarted,) = [frame for frame in follower.frames if frame.kind == "execution_restarted"]
            assert restarted.data["reason"] == "worker_lost"
        for follower in once:
            result = follower.check()
            assert (result["status"], result["attempt"], result["stdout"]) == ("failed", 1, "up\n")
            assert result["outcome"]["reason"] == "worker_lost"
        assert await asyncio.to_thread(server.stop) == 0


async def test_run_whose_cancellation_was_asked_for_is_not_run_again(server: Server, temporary: Path) -> None:
    place = Place(server.start())
    followers, following = await started(place, 1)
    async with server.client() as client:
        # Stopped, the keeper cannot tell of the end: the server dies between the request and the kill's answer.
        keeper = keeper_of(server)
        os.kill(keeper, signal.SIGSTOP)
        answer = await client.post(f"/executions/{followers[0].execution_id}/cancel")
        assert answer.json()["status"] == "cancellation_requested"
    doomed = Doomed(descendants(server.pid))
    place.gone()
    await asyncio.to_thread(server.kill)
    os.kill(keeper, signal.SIGCONT)
    await asyncio.to_thread(doomed.died)
    await asyncio.to_thread(server.start)
    place.back()
    await asyncio.wait_for(asyncio.gather(*following), 20)
    result = followers[0].check()
    assert (result["status"], result["attempt"], result["stdout"]) == ("cancelled", 1, "up\n")
