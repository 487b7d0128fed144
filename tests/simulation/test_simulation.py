"""Some hundred worlds, each from one seed, and that a seed is a world: the same one, whatever runs around it."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENT
from tests.simulation.faults import Mode
from tests.simulation.hunting import hunt
from tests.simulation.mutants import MUTANTS, planted
from tests.simulation.simulation import run_seed
from tests.simulation.world import World

ROOT = Path(__file__).parents[2]
BATCH = 15
BATCHES = 20 if PATIENT else 6


@pytest.mark.parametrize("batch", range(BATCHES))
def test_whatever_happens_every_accepted_run_ends_once_and_is_told_whole(batch: int) -> None:
    failed = {}
    for seed in range(batch * BATCH, (batch + 1) * BATCH):
        ran = run_seed(seed, traced=False)
        if ran.violation is not None:
            failed[seed] = str(ran.violation)
    assert not failed, f"replay with ./runtape test --seed {next(iter(failed))}"


DIGESTS = """
import hashlib, sys
from tests.simulation.hunting import hunt
from tests.simulation.mutants import MUTANTS, planted
from tests.simulation.simulation import run_seed
for seed in map(int, sys.argv[1:]):
    print(hashlib.sha256("\\n".join(run_seed(seed).trace).encode()).hexdigest())
"""


@pytest.mark.timeout(180)
def test_a_seed_has_the_same_trace_byte_for_byte_in_any_process() -> None:
    mixes = {seed: World(seed).mix for seed in range(100)}
    seeds = [next(seed for seed, mix in mixes.items() if mix.mode is mode and mix.stops) for mode in Mode]
    traces = [run_seed(seed).trace for seed in seeds]
    assert traces == [run_seed(seed).trace for seed in seeds]
    digests = [hashlib.sha256("\n".join(trace).encode()).hexdigest() for trace in traces]
    for hash_seed in ("0", "4711"):
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'backend'}", "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-P", "-W", "ignore", "-c", DIGESTS, *map(str, seeds)]
        told = subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout
        assert told.split() == digests


def test_two_seeds_are_two_worlds() -> None:
    assert run_seed(0).trace != run_seed(1).trace


def test_a_planted_defect_is_found_and_the_product_is_whole_again() -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "start whatever stands")
    found = hunt(mutant, seeds=20)
    assert found.seed is not None
    assert run_seed(found.seed).violation is None


def test_every_planted_defect_is_one_of_the_product_as_it_is() -> None:
    for mutant in MUTANTS:
        with planted(mutant):
            pass
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
