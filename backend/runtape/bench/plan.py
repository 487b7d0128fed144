"""How much is measured."""

import math
from dataclasses import dataclass, replace

CLIENTS = (1, 4, 16)
MOST = CLIENTS[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The shape of one benchmark.

    Each of the `rounds` measures the bare interpreter and every variant of the service, one after another, so that
    what else goes on at the machine meets all of them.  `runs` and `bare_runs` are per round, by number of clients.
    """

    null: bool
    rounds: int
    runs: dict[int, int]
    bare_runs: dict[int, int]
    memory_runs: int
    stored: tuple[int, ...]
    stored_rounds: int
    stored_runs: int
    slow_fsync_ms: float | None = None


_BARE = {1: 25, 4: 60, 16: 96}
_FULL = Plan(
    null=False,
    rounds=7,
    runs={1: 30, 4: 80, 16: 128},
    bare_runs=_BARE,
    memory_runs=10_000,
    stored=(100, 10_000, 100_000),
    stored_rounds=15,
    stored_runs=60,
)
_QUICK = Plan(
    null=False,
    rounds=3,
    runs={1: 10, 4: 24, 16: 32},
    bare_runs={1: 8, 4: 16, 16: 32},
    memory_runs=200,
    stored=(),
    stored_rounds=0,
    stored_runs=0,
)
_NULL_RUNS = {1: 150, 4: 300, 16: 600}
_NULL_QUICK_RUNS = {1: 50, 4: 80, 16: 160}


def make(*, null: bool, quick: bool, runs: int | None, slow_fsync_ms: float | None) -> Plan:
    """Return the plan for the given options; `runs` are the sequential ones of all rounds together."""
    plan = replace(_QUICK if quick else _FULL, null=null, slow_fsync_ms=slow_fsync_ms)
    if null:
        plan = replace(plan, runs=_NULL_QUICK_RUNS if quick else _NULL_RUNS)
    if runs is not None:
        share = math.ceil(runs / plan.rounds)
        plan = replace(plan, runs={clients: max(share, clients) for clients in CLIENTS})
    return plan
