"""What is lost with a zygote or for want of a compiler: time, and no run."""

import asyncio
import os
import re
import signal
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from runtape.adapters.sandbox import LocalSandbox, local, native, runtimes
from runtape.adapters.sandbox.keeper_process import KeeperProcess
from runtape.adapters.sandbox.pool import BoxPool
from runtape.ports.errors import SandboxUnavailable
from tests.prove.weakened import REFUSED, Weakness, weaken
from tests.sandbox.conftest import is_made
from tests.sandbox.runs import descendants, run, start, until_printed, version_of, way_of

pytestmark = pytest.mark.needs("sandbox")


async def test_loss_of_a_zygote_costs_no_run(tmp_path: Path) -> None:
    async with LocalSandbox(tmp_path) as sandbox:
        await is_made(sandbox, "forked")
        await lose_zygotes(sandbox)


async def lose_zygotes(own_sandbox: LocalSandbox) -> None:
    key = await start(own_sandbox, "import time; print('up', flush=True); time.sleep(0.3); print('down')")
    await until_printed(own_sandbox, key, b"up")
    zygotes = [pid for pid in descendants(os.getpid()) if is_zygote(pid)]
    assert zygotes
    for pid in zygotes:
        os.kill(pid, signal.SIGKILL)
    results = await asyncio.gather(*(run(own_sandbox, f"print({n})") for n in range(12)))
    assert [result.text for result in results] == [str(n) for n in range(12)]
    assert b"down" in b"".join([record.data async for batch in own_sandbox.records(key) for record in batch])
    await own_sandbox.remove(key)
    await is_made(own_sandbox, "forked")


async def test_boxes_that_were_under_way_together_are_lost_once(tmp_path: Path) -> None:
    """An interpreter rests after three losses, and not after three boxes."""
    async with LocalSandbox(tmp_path) as sandbox:
        await is_made(sandbox, "forked")
        await until_idle(sandbox)
        with capture_logs() as logged:
            lose_boxes(sandbox, 4)
            assert not pool_of(sandbox)._resting  # pyright: ignore[reportPrivateUsage]
            lose_boxes(sandbox, 1)
            lose_boxes(sandbox, 1)
        assert [entry["failures"] for entry in logged] == [1, 1, 1, 1, 2, 3]
        assert list(pool_of(sandbox)._resting) == [pool_of(sandbox)._standard.interpreter]  # pyright: ignore[reportPrivateUsage]


def lose_boxes(sandbox: LocalSandbox, count: int) -> None:
    """Let the keeper say that boxes could not be armed of which all were under way."""
    pool = pool_of(sandbox)
    shape = pool._standard  # pyright: ignore[reportPrivateUsage]
    pool._asked_for[shape] += count  # pyright: ignore[reportPrivateUsage]
    for _ in range(count):
        pool._on_message(("unarmed", *shape, "its zygote died"), [])  # pyright: ignore[reportPrivateUsage]


async def until_idle(sandbox: LocalSandbox) -> None:
    """Wait until no box is under way, which nothing tells."""
    async with asyncio.timeout(20):
        while any(pool_of(sandbox)._asked_for.values()):  # noqa: ASYNC110  # pyright: ignore[reportPrivateUsage]
            await asyncio.sleep(0.01)


def pool_of(sandbox: LocalSandbox) -> BoxPool:
    pool = sandbox._pool  # pyright: ignore[reportPrivateUsage]
    assert pool is not None
    return pool


async def test_zygote_that_hangs_holds_up_nobody_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weaken(Weakness("nursery._MAKING_TIMEOUT_S = 1.0"), monkeypatch, tmp_path)
    async with LocalSandbox(tmp_path / "data") as sandbox:
        await is_made(sandbox, "forked")
        for pid in [pid for pid in descendants(os.getpid()) if is_zygote(pid)]:
            with suppress(ProcessLookupError):  # a parked copy may have gone to its box meanwhile
                os.kill(pid, signal.SIGSTOP)
        results = await asyncio.gather(*(run(sandbox, f"print({n})") for n in range(12)))
        assert [result.text for result in results] == [str(n) for n in range(12)]


def is_zygote(pid: int) -> bool:
    """Return whether a process is an interpreter that waits outside of every box."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        return b"zygote.py" in words and depth_of(pid) == depth_of(os.getpid()) + 1
    except OSError:
        return False


def depth_of(pid: int) -> int:
    """Return in how many pid namespaces a process is: of a box, too, before a runner has entered the rest of it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return len(next(line for line in lines if line.startswith("NSpid:")).split()) - 1


async def test_zygote_that_cannot_start_leaves_programs_to_be_execd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, missing = runtimes.detect()
    broken = [replace(each, zygote=("/usr/bin/false",)) if each.zygote else each for each in found]
    monkeypatch.setattr(local, "detect", lambda: (broken, missing))
    async with LocalSandbox(tmp_path) as sandbox:
        version = await version_of(sandbox, "python")
        await sandbox.warmed("python", version)
        results = await asyncio.gather(*(run(sandbox, f"print({n})") for n in range(6)))
        assert [result.text for result in results] == [str(n) for n in range(6)]
        assert await way_of(sandbox) == "execd"


async def test_host_without_a_compiler_runs_programs_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "_digest", lambda: "of-other-sources")
    monkeypatch.setattr(native, "compiler", lambda: None)
    async with LocalSandbox(tmp_path) as sandbox:
        assert await way_of(sandbox) == "in_python"
        assert (await run(sandbox, "print(1)")).text == "1"


async def test_sources_that_do_not_compile_are_told_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in ("zygote.c", "runner.c", "confine.c"):
        (sources / name).write_text("int f(void) { return missing; }\n")
    monkeypatch.setattr(native, "_SOURCES", sources)
    monkeypatch.setattr("sys.prefix", str(tmp_path / "prefix"))
    data = tmp_path / "data"
    assert native.built(data) is None
    assert "missing" in capsys.readouterr().out
    assert list(data.iterdir()) == []


async def test_refusal_of_a_keeper_that_has_ended_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its words and its end are found in one turn of the event loop, and it was no keeper to be replaced."""
    weaken(REFUSED, monkeypatch, tmp_path)
    send = KeeperProcess.send

    def send_and_wait_for_its_end(keeper: KeeperProcess, *message: object) -> None:
        send(keeper, *message)
        os.waitid(os.P_PID, keeper.pid, os.WEXITED | os.WNOWAIT)

    monkeypatch.setattr(KeeperProcess, "send", send_and_wait_for_its_end)
    with (
        structlog.testing.capture_logs() as logged,
        pytest.raises(SandboxUnavailable, match="walls are sold out; to fix it: come back"),
    ):
        await LocalSandbox(tmp_path / "data").open()
    assert logged == []


@pytest.mark.needs("root")
@pytest.mark.parametrize(("boxes_per_slot", "life_s"), [(1, 3600.0), (1000, 0.0), (1000, 3600.0)])
async def test_slot_is_replaced_after_so_many_boxes_or_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boxes_per_slot: int, life_s: float
) -> None:
    weaken(Weakness(f"nursery._LIFE_S = {life_s}"), monkeypatch, tmp_path)
    async with LocalSandbox(tmp_path / "data", armed_boxes=1, warm=False, boxes_per_slot=boxes_per_slot) as sandbox:
        seen: set[str] = set()
        for _ in range(5):
            key = await start(sandbox, "print('up', flush=True); import time; time.sleep(60)")
            await until_printed(sandbox, key, b"up")
            seen |= {slot for pid in descendants(os.getpid()) if b"main.py" in words(pid) for slot in slots_of(pid)}
            await sandbox.kill(key)
            await sandbox.remove(key)
        # The next box is made while a program runs, so slots take turns: two, or where much else is done one more.
        assert len(seen) == 5 if boxes_per_slot == 1 or not life_s else len(seen) < 4


def words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def slots_of(pid: int) -> set[str]:
    """Return the names of the slots whose cgroup a process is in."""
    return set(re.findall(r"slot-\d+", Path(f"/proc/{pid}/cgroup").read_text()))
