"""The simulation from the command line: many seeds, one seed with its trace, or the planted defects."""

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

from tests.simulation.simulation import run_seed

PROGRESS_S = 5.0
CHUNK = 10


@dataclass(frozen=True, slots=True)
class Seed:
    """What is told of a seed: `why` is the invariant that does not hold."""

    seed: int
    mode: str
    why: str | None


def one(seed: int) -> Seed:
    """Run one seed."""
    ran = run_seed(seed, traced=False)
    return Seed(seed, ran.mode, str(ran.violation) if ran.violation else None)


def over_processors(seeds: Iterable[int]) -> Iterator[Seed]:
    """Run `seeds` over all processors."""
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("fork")) as pool:
        yield from pool.map(one, seeds, chunksize=CHUNK)


def simulate(count: int, first: int) -> int:
    """Run `count` seeds from `first` on; the exit code tells whether all held."""
    begun_s = told_s = time.monotonic()
    failed: list[Seed] = []
    modes: dict[str, int] = {}
    for number, seed in enumerate(over_processors(range(first, first + count)), 1):
        modes[seed.mode] = modes.get(seed.mode, 0) + 1
        if seed.why is not None:
            failed.append(seed)
            print(f"seed {seed.seed} ({seed.mode}): {seed.why}", flush=True)
        now_s = time.monotonic()
        if now_s - told_s >= PROGRESS_S:
            told_s = now_s
            print(f"{number} of {count} seeds, {number / (now_s - begun_s):.0f}/s, {len(failed)} failed", flush=True)
    took_s = time.monotonic() - begun_s
    shares = ", ".join(f"{mode} {number}" for mode, number in sorted(modes.items()))
    print(f"{count} seeds ({shares}) in {took_s:.0f} s, {count / took_s:.0f}/s, {len(failed)} failed")
    if failed:
        print(f"again with its trace: ./runtape test --seed {failed[0].seed}")
    return 1 if failed else 0


def replay(seed: int) -> int:
    """Run one seed and print its trace; the exit code tells whether everything held."""
    ran = run_seed(seed, echo=print)
    digest = hashlib.sha256("\n".join(ran.trace).encode()).hexdigest()
    print(f"seed {seed}: {len(ran.trace)} lines, sha256 {digest}, {ran.virtual_s:.0f} s of its time")
    print(ran.violation or "everything holds")
    return 1 if ran.violation else 0


def main(arguments: Sequence[str]) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(prog="./runtape test", description=__doc__, allow_abbrev=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--simulate", type=int, metavar="N", help="run N seeds over all processors")
    what.add_argument("--seed", type=int, metavar="K", help="run seed K and print its trace")
    what.add_argument("--mutants", action="store_true", help="plant each known defect and see that a seed finds it")
    parser.add_argument("--first", type=int, default=0, metavar="K", help="the first of N seeds (default 0)")
    given = parser.parse_args(arguments)
    if given.mutants:
        from tests.simulation.hunting import hunt_all

        return hunt_all()
    return replay(given.seed) if given.seed is not None else simulate(given.simulate, given.first)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
