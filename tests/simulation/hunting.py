"""Hunting planted defects: each mutant is given to seed after seed until one of them finds it."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import count, islice
from multiprocessing import get_context

from tests.simulation.mutants import MUTANTS, Mutant, planted
from tests.simulation.simulation import run_seed
from tests.simulation.world import mix_of

SEEDS = 200
TO_KILL = 0.95


@dataclass(frozen=True, slots=True)
class Hunt:
    """What came of a mutant: the seed that killed it and the invariant, or None."""

    name: str
    seed: int | None
    why: str
    took_s: float


def hunt(mutant: Mutant, seeds: int = SEEDS) -> Hunt:
    """Run seeds with `mutant` planted until an invariant does not hold."""
    begun_s = time.monotonic()
    with planted(mutant):
        for seed in islice(_showing(mutant), seeds):
            ran = run_seed(seed, traced=False)
            if ran.violation is not None:
                return Hunt(mutant.name, seed, str(ran.violation), time.monotonic() - begun_s)
    return Hunt(mutant.name, None, "", time.monotonic() - begun_s)


def _showing(mutant: Mutant) -> Iterator[int]:
    """Yield the seeds of the worlds in which the mutant can show."""
    return (seed for seed in count() if all(getattr(mix_of(seed), name) for name in mutant.only))


def hunt_all() -> int:
    """Hunt every mutant over all processors; the exit code tells whether enough were killed."""
    begun_s = time.monotonic()
    killed = 0
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("fork")) as pool:
        for mutant, found in zip(MUTANTS, pool.map(hunt, MUTANTS), strict=True):
            if found.seed is not None:
                killed += 1
                print(
                    f"killed    {mutant.name}: seed {found.seed}, {found.why[:120]} ({found.took_s:.0f} s)", flush=True
                )
            else:
                why = mutant.survivor or "NOBODY KNOWS WHY"
                print(f"SURVIVED  {mutant.name}: {SEEDS} seeds ({found.took_s:.0f} s); {why}", flush=True)
    share = killed / len(MUTANTS)
    print(f"{killed} of {len(MUTANTS)} mutants killed ({share:.0%}) in {time.monotonic() - begun_s:.0f} s")
    return 0 if share >= TO_KILL else 1
