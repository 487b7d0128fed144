"""Many runs through a server, at its shortest: it finds nothing on a sound one, and sees growth that is planted."""

import json
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from runtape.bench.endurance.growth import Holding, Pace, Tenth, grown
from tests.cli.commands import COMMAND, environment

HOLDING = Holding(
    memory_bytes=100 << 20,
    children_bytes=0,
    open_files=40,
    unfinished=16,
    lag_messages=500,
    database_bytes=1 << 20,
    log_bytes=32 << 20,
)


@pytest.mark.needs("patience")
@pytest.mark.timeout(120)
def test_sound_server_does_not_grow(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "bench", "endurance", "--runs", "100", "--clients", "4", "--json"],
        capture_output=True,
        text=True,
        timeout=110,
        env=environment(TMPDIR=str(tmp_path)),
        check=False,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, found["findings"]) == (0, []), done.stderr
    assert [tenth["runs"] for tenth in found["tenths"]] == [10] * 10
    assert found["runs"] == 100
    for tenth in found["tenths"]:
        assert 0 < tenth["p50_ms"] <= tenth["p99_ms"]
        assert tenth["memory_mib"] > 10
        assert tenth["open_files"] > 5
        assert tenth["log_mib"] >= 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs("patience")
@pytest.mark.timeout(120)
def test_interrupted_it_tells_what_was_measured_so_far(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "bench", "endurance", "--runs", "1000000", "--clients", "4", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(TMPDIR=str(tmp_path)),
    )
    assert process.stderr is not None
    assert " of 1000000 runs" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    found = json.loads(told.splitlines()[-1])
    assert found["interrupted"]
    assert 0 < found["runs"] < 1_000_000
    assert list(tmp_path.iterdir()) == []


def tenths() -> list[Tenth]:
    found: list[Tenth] = []
    for _ in range(10):
        found.append(Tenth(ours=pace(0.005), young=pace(0.005), seen=[HOLDING], ratios=[1.0]))
    return found


def pace(seconds: float) -> Pace:
    found = Pace(runs=1000, elapsed_s=1000 * seconds, cpu_ns=int(1000 * seconds * 1e9))
    for number in range(1000):
        found.latencies.add("run", seconds + number * 1e-7)
    return found


def test_what_stays_is_no_finding() -> None:
    assert grown(tenths()) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("memory_bytes", "memory of the server"),
        ("open_files", "open files"),
        ("unfinished", "not ended"),
        ("lag_messages", "not noted as read"),
        ("log_bytes", "store's log"),
    ],
)
def test_what_grows_is_found(name: str, words: str) -> None:
    growing = tenths()
    for number, tenth in enumerate(growing):
        tenth.seen = [replace(HOLDING, **{name: int(getattr(HOLDING, name) * (1 + number))})]
    (found,) = grown(growing)
    assert words in found


def test_what_fills_up_in_the_first_tenth_is_no_finding() -> None:
    filling = tenths()
    filling[0].seen = [replace(HOLDING, memory_bytes=50 << 20, open_files=10)]
    assert grown(filling) == []


def test_slower_end_is_found() -> None:
    slower = tenths()
    slower[-1].ours, slower[-1].ratios = pace(0.010), [2.0]
    assert [found.split(" of ")[0] for found in grown(slower)] == ["p50", "CPU a run"]


def test_machine_that_became_slower_is_no_finding() -> None:
    slower = tenths()
    slower[-1].ours, slower[-1].young = pace(0.010), pace(0.010)
    assert grown(slower) == []
