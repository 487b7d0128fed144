"""The real server is killed, with runs in it: each ends exactly once, its stream goes on, and nothing is left."""

import asyncio
import hashlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.server import Server
from tests.e2e.sse import Frame
from tests.process import histories, invariants
from tests.process.followers import Follower, Place
from tests.process.histories import NEMESIS, Journal
from tests.process.programs import ticking
from tests.process.remains import Doomed, Remains, cgroups, descendants, keeper_of, nothing_left

pytestmark = pytest.mark.needs("server")

RUNS = 50
ROUNDS = 4

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
    "ticking": (ticking(20, 0.03, "{n}"), None),
}


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

    folder = tmp_path / "histories"
    nemesis = Journal(folder, NEMESIS)
    remains = Remains(server.data, temporary)
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
            name = f"{kind}-{number}"
            script = SCRIPTS[kind][0].replace("{n}", str(number))
            followers.append(Follower(place, name, script, Journal(folder, name), on_frame))
            following.append(asyncio.create_task(followers[-1].follow()))
        await asyncio.wait_for(moment.wait(), 20)
        doomed = Doomed(descendants(server.pid))
        place.gone()
        with nemesis.fault("kill"):
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(doomed.died)
            await asyncio.to_thread(server.start)
        place.back()
    await asyncio.wait_for(asyncio.gather(*following), 45)

    completed = 0
    async with server.client() as client:
        for follower in followers:
            result = follower.check()
            await follower.read_whole(client)
            kind, _, number = follower.name.partition("-")
            if result["status"] == "completed":
                completed += 1
                if (template := SCRIPTS[kind][1]) is not None:
                    expected = template.decode().replace("{n:07d}", f"{int(number):07d}")
                    expected = expected.replace("{n}", number)
                    assert follower.printed(result["attempt"]) == expected.encode(), follower.name
                    assert result["stdout_sha256"] == hashlib.sha256(expected.encode()).hexdigest()
            else:
                # Killed with its server three times: the only failure that there is here, and it is ours.
                assert (result["outcome"]["kind"], result["attempt"]) == ("sandbox_error", 3), result
    assert completed >= 0.7 * len(followers), f"only {completed} of {len(followers)} completed"
    assert sum(follower.resumed > 0 for follower in followers) >= ROUNDS

    doomed = Doomed(descendants(server.pid))
    assert len(doomed) > 0
    assert await asyncio.to_thread(server.stop) == 0
    await asyncio.to_thread(doomed.died)
    stored = invariants.read(server.data / "runtape.db")
    assert set(stored.executions) == {follower.execution_id for follower in followers}
    assert invariants.check(histories.load(folder), stored, remains.left()) == []


UP = "import os, time\nos.write(1, b'up\\n')\ntime.sleep(1.2)\nprint('down')"


async def started(
    place: Place, folder: Path, count: int, **fields: object
) -> tuple[list[Follower], list[asyncio.Task[None]]]:
    """Start runs and return once each of them has printed."""
    followers: list[Follower] = []
    following: list[asyncio.Task[None]] = []
    up: list[asyncio.Event] = []
    for number in range(count):
        event = asyncio.Event()
        up.append(event)
        name = f"up-{number}-{'-'.join(fields)}"
        follower = Follower(place, name, UP, Journal(folder, name), _sets(event), dict(fields))
        followers.append(follower)
        following.append(asyncio.create_task(follower.follow()))
    await asyncio.wait_for(asyncio.gather(*(event.wait() for event in up)), 20)
    return followers, following


def _sets(event: asyncio.Event) -> Callable[[Frame], None]:
    return lambda frame: event.set() if frame.event == "output" else None


async def test_runs_of_a_killed_keeper_are_run_again(server: Server, tmp_path: Path, temporary: Path) -> None:
    with nothing_left(server.data, temporary):
        place = Place(server.start())
        followers, following = await started(place, tmp_path / "histories", 4)
        once, once_following = await started(place, tmp_path / "histories", 2, on_interrupt="fail")
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


@pytest.mark.needs("patience")
async def test_runs_of_a_stopped_server_are_taken_up_by_the_next(
    server: Server, tmp_path: Path, temporary: Path
) -> None:
    with nothing_left(server.data, temporary):
        place = Place(server.start())
        followers, following = await started(place, tmp_path / "histories", 4)
        once, once_following = await started(place, tmp_path / "histories", 2, on_interrupt="fail")
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


@pytest.mark.needs("patience")
async def test_run_whose_cancellation_was_asked_for_is_not_run_again(
    server: Server, tmp_path: Path, temporary: Path
) -> None:
    place = Place(server.start())
    followers, following = await started(place, tmp_path / "histories", 1)
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
