"""The disk of the data folder refuses: what was accepted ends, what was refused is not there, the server says so."""

import asyncio
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import Client, Server
from tests.process.conftest import EIGHT_PLACES
from tests.process.followers import Follower
from tests.process.programs import ticking
from tests.process.remains import Doomed, descendants
from tests.process.trial import Trial

pytestmark = pytest.mark.needs("server")

STAYS_S = 40.0
PRINTING = "import os\nfor n in range({records}): os.write(1, b'%07d\\n' % {number} * 8000)"


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 MiB, of which the store's log takes a quarter, and what is in it has room beside it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m,mode=0700", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


@contextmanager
def no_file_grows(pid: int) -> Iterator[None]:
    """Let every write of a process to a file fail, by setrlimit(2): what a disk does that is full or read-only."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


async def readiness(client: Client) -> tuple[int, dict[str, Any]]:
    answer = await client.get("/health/ready")
    return answer.status_code, answer.json()["parts"]


async def refused(trial: Trial, name: str) -> Follower:
    """Submit a run that nothing can be written of."""
    follower = trial.submit(name, "print(1)")
    await asyncio.wait_for(trial.following[-1], STAYS_S)
    return follower


async def until_ready(client: Client) -> None:
    """Wait until the server says by itself that it is well."""
    async with asyncio.timeout(STAYS_S):
        while (await readiness(client))[0] != 200:
            pass  # each answer waits for a write


@pytest.mark.timeout(120)
@pytest.mark.needs("patience")
async def test_disk_that_refuses_for_a_while_costs_no_run_and_no_byte(trial: Trial) -> None:
    running = [trial.submit(f"running-{number}", ticking(20, 0.1, number)) for number in range(8)]
    waiting = [trial.submit(f"waiting-{number}", ticking(1, 0.01, number)) for number in range(8)]
    await trial.printed(*running)
    async with trial.server.client() as client:
        assert (await readiness(client))[0] == 200
        with trial.nemesis.fault("no file grows"), no_file_grows(trial.server.pid):
            none = [await refused(trial, f"refused-{number}") for number in range(8)]
            assert all(follower.refused for follower in none)
            status, parts = await readiness(client)
            assert status == 503
            assert "the store could not commit" in parts["log"], parts
            # All programs have ended by then, and nothing of it could be written.
            await asyncio.sleep(4)
        await until_ready(client)
    await trial.ended(within_s=STAYS_S)
    assert await trial.over() == []
    for follower in (*running, *waiting):
        result = follower.check()
        assert (result["status"], result["attempt"]) == ("completed", 1), result


@pytest.mark.needs("mounts", "patience")
@pytest.mark.timeout(120)
async def test_full_disk_is_told_and_left_once_there_is_room(mounted: Path, tmp_path: Path, temporary: Path) -> None:
    server = Server(mounted / "data", **EIGHT_PLACES)
    ballast = mounted / "ballast"
    try:
        trial = Trial(server, tmp_path / "histories", temporary)
        accepted: list[Follower] = []
        ticks = [trial.submit(f"ticking-{number}", ticking(40, 0.1, number)) for number in range(2)]
        await trial.printed(*ticks)
        with trial.nemesis.fault("full"):
            fill(ballast)
            # The log has its space: runs go on until that is used up.  A write that still fits may hide it for a while.
            async with server.client() as client:
                while True:
                    status, parts = await readiness(client)
                    if status != 200 and (await refused(trial, f"refused-{len(accepted)}")).refused:
                        break
                    number = len(accepted)
                    script = PRINTING.format(records=80, number=number)
                    accepted.append(trial.submit(f"printing-{number}", script, limits={"output_bytes": 8 << 20}))
                    await asyncio.wait(trial.following[-1:], timeout=0.5)
                    assert number < 60
                assert len(accepted) > 2
                assert (status, "its disk is full" in parts["log"]) == (503, True), parts
                ballast.unlink()
                await until_ready(client)
        await trial.ended(within_s=STAYS_S)
        assert await trial.over() == []
        for follower in (*accepted, *ticks):
            if not follower.refused:
                assert follower.check()["status"] == "completed"
        assert sum(not follower.refused for follower in accepted) > 2
    finally:
        server.close()


def fill(path: Path, but_bytes: int = 0) -> None:
    """Write a file until nothing more can be written, and give `but_bytes` of it back."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue
        file.truncate(file.tell() - but_bytes)


@pytest.mark.needs("mounts", "patience")
@pytest.mark.timeout(90)
async def test_disk_that_is_read_only_at_the_start_is_told_and_nothing_is_lost(
    mounted: Path, tmp_path: Path, temporary: Path
) -> None:
    server = Server(mounted / "data", **EIGHT_PLACES)
    server.log = tmp_path / "server.log"
    try:
        trial = Trial(server, tmp_path / "histories", temporary)
        running = [trial.submit(f"running-{number}", ticking(20, 0.1, number)) for number in range(4)]
        await trial.printed(*running)
        trial.place.gone()
        with trial.nemesis.fault("kill, and read-only until after the next start"):
            doomed = Doomed(descendants(server.pid))
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(doomed.died)
            remount(mounted, "ro")
            with pytest.raises(AssertionError, match=r"cannot serve .* Read-only file system"):
                await asyncio.to_thread(server.start)
            assert server.wait() == 1
            remount(mounted, "rw")
            await asyncio.to_thread(server.start)
        trial.place.back()
        await trial.ended(within_s=STAYS_S)
        assert await trial.over() == []
        assert {follower.check()["status"] for follower in running} == {"completed"}
    finally:
        server.close()


@pytest.mark.needs("mounts", "patience")
@pytest.mark.timeout(60)
async def test_server_starts_on_a_disk_that_is_full(mounted: Path, tmp_path: Path, temporary: Path) -> None:
    server = Server(mounted / "data", **EIGHT_PLACES)
    server.log = tmp_path / "server.log"
    try:
        trial = Trial(server, tmp_path / "histories", temporary)
        running = trial.submit("running", ticking(10, 0.1))
        await trial.printed(running)
        trial.place.gone()
        with trial.nemesis.fault("kill, and full until after the next start"):
            await asyncio.to_thread(server.kill)
            fill(mounted / "ballast", but_bytes=1 << 20)
            await asyncio.to_thread(server.start)
        trial.place.back()
        await trial.ended(within_s=STAYS_S)
        (mounted / "ballast").unlink()
        assert await trial.over() == []
        assert running.check()["status"] == "completed"
    finally:
        server.close()
