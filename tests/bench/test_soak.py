"""The soak, at its shortest: it finds nothing on a sound sandbox, and sees each leak that is planted."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtape.adapters.sandbox import LocalSandbox
from runtape.bench.soak import census, programs
from runtape.bench.soak.census import Kind
from runtape.bench.soak.growth import Growth
from runtape.bench.soak.latencies import Latencies
from runtape.bench.soak.main import Plan, soak
from tests.cli.commands import COMMAND, environment

SHORT = Plan(runs=60, seconds=0.0, concurrency=4)


@pytest.mark.timeout(120)
@pytest.mark.needs("patience")
def test_sound_sandbox_leaves_nothing(tmp_path: Path) -> None:
    options = ["--runs", "300", "--seconds", "4", "--json"]
    done = subprocess.run(
        [*COMMAND, "bench", "soak", *options],
        capture_output=True,
        text=True,
        timeout=110,
        env=environment(TMPDIR=str(tmp_path)),
        check=False,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, found["findings"]) == (0, []), done.stderr
    assert found["plain"]["runs"] == 300
    assert found["mixed"]["good_runs"] > 10
    assert found["mixed"]["hostile_runs"] > 0
    assert found["neighbours"]["slowdown"]["p99_ratio"] > 0
    assert list(tmp_path.iterdir()) == []


async def findings_with(plant: Callable[[], None], plan: Plan = SHORT) -> str:
    """Return what a short soak finds when `plant` is called once it is warm."""

    def told(said: str) -> None:
        if said == "warm":
            plant()

    found: dict[str, Any] = await soak(plan, told)
    return "\n".join(found["findings"])


@pytest.mark.needs("patience")
@pytest.mark.timeout(120)
async def test_what_is_left_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with contextlib.ExitStack() as stack:

        def plant() -> None:
            sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
            stack.callback(sleeper.communicate, b"\n")
            stack.enter_context(open(os.devnull))
            (data,) = tmp_path.glob("runtape-soak-*")
            (data / "left").touch()

        found = await findings_with(plant)
    assert "1 more processes" in found
    assert "1 more descriptors of a service: /dev/null" in found
    assert "the file " in found and "/left" in found
    assert "after closing: process" in found


@pytest.mark.needs("patience")
@pytest.mark.timeout(120)
async def test_growing_memory_is_seen() -> None:
    kept: list[bytes] = []
    growing: list[asyncio.Task[None]] = []

    async def grow() -> None:
        while True:
            kept.append(os.urandom(1 << 20))
            await asyncio.sleep(0.02)

    found = await findings_with(
        lambda: growing.append(asyncio.create_task(grow())), Plan(runs=0, seconds=12.0, concurrency=4)
    )
    growing[0].cancel()
    assert "in the mixed part a service holds +" in found


@pytest.mark.needs("patience")
@pytest.mark.timeout(120)
async def test_program_that_does_otherwise_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    lying = tuple(replace(each, stdout=b"43\n") if each.name == "bash" else each for each in programs._GOOD)
    monkeypatch.setattr(programs, "_GOOD", lying)
    assert "times: bash: it printed b'42\\n'" in await findings_with(lambda: None, Plan(runs=0, seconds=0.0))


IN_A_NAMESPACE = """
import ctypes, json, sys
from pathlib import Path
from runtape.adapters.sandbox import LocalSandbox
from runtape.bench.soak import census, programs

data = Path(sys.argv[1])
before = census.take(data, 0)
assert ctypes.CDLL(None, use_errno=True).mount(b"none", sys.argv[2].encode(), b"tmpfs", 0, None) == 0
print(json.dumps(census.take(data, 3).grown(before)))
"""


def test_left_mount_and_group_are_seen(tmp_path: Path) -> None:
    data, mounted = tmp_path / "data", tmp_path / "mounted"
    data.mkdir()
    mounted.mkdir()
    command = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", IN_A_NAMESPACE, data, mounted]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [
        f"the mount / on {mounted} of a service",
        "3 more control groups, and 0 more slots",
    ]


async def test_process_that_left_the_tree_is_known_by_its_namespace(tmp_path: Path) -> None:
    async with LocalSandbox(tmp_path) as sandbox:
        await sandbox.ready()
        kinds = census.kinds_of_processes()
        assert list(census._strays(kinds)) == []
        # As if the nursery had been adopted by somebody else: the tree below us lacks it, and its namespace is ours.
        slot = next(pid for pid, kind in kinds.items() if kind is Kind.SLOT)
        nursery = next(pid for pid, kind in kinds.items() if kind is Kind.NURSERY)
        lacking = {slot: Kind.SLOT}
        assert f"{nursery} (nursery)" in list(census._strays(lacking))


def test_slots_may_bring_what_is_theirs_and_nothing_else() -> None:
    at_rest = census.Census({Kind.SLOT: 2}, {(Kind.KEEPER, "socket"): 4}, {}, {}, 2, *[frozenset[str]()] * 3)
    grown = replace(at_rest, processes={Kind.SLOT: 3}, descriptors={(Kind.KEEPER, "socket"): 5}, groups=3)
    assert grown.grown(at_rest) == []
    assert replace(grown, processes={Kind.SLOT: 2}).grown(at_rest) == [
        "1 more descriptors of a keeper: socket",
        "1 more control groups, and 0 more slots",
    ]


def test_latencies_are_told_within_a_percent() -> None:
    latencies = Latencies()
    for number in range(1, 1001):
        latencies.add("a", number / 1000)
    assert latencies.percentile_s(0.5) == pytest.approx(0.5, rel=0.01)
    assert latencies.percentile_s(0.99) == pytest.approx(0.99, rel=0.01)
    assert latencies.relative_to(latencies).percentile_s(1.0) == pytest.approx(2.0, rel=0.02)


def test_memory_that_stays_is_flat() -> None:
    growth = Growth()
    for _ in range(12):
        growth.sample()
    assert growth.grown() == []
    assert growth.figures()["service"]["growth_percent"] < 10
