"""The measurements, one after another."""

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from runtape.bench import slow_fsync
from runtape.bench.bare import Bare
from runtape.bench.errors import BenchError
from runtape.bench.figures import BareRound, Figures, Series, bare_figures, percentile, rounded
from runtape.bench.load import LoadGenerator, Sample
from runtape.bench.plan import CLIENTS, MOST, Plan
from runtape.bench.procfs import resident_bytes
from runtape.bench.server import BenchServer

Progress = Callable[[str], None]

PLAIN = "end_to_end"
DEFAULT_CAPACITY = "default_capacity"
SLOW_FSYNC = "slow_fsync"

_MANY_PODS = {"RUNTAPE_ADMISSION__RUNNING": "64"}
"""Simulated pods need no core, so nobody has to wait for one; the default capacity is measured beside it."""

_WARM_UP_RUNS = 40
_SETTLE_S = 1.0


def variants(plan: Plan, folder: Path) -> dict[str, Mapping[str, str]]:
    """Return the environments of the servers to compare, by the name of their figures."""
    plain = _MANY_PODS if plan.null else {}
    found: dict[str, Mapping[str, str]] = {PLAIN: plain}
    if plan.null:
        found[DEFAULT_CAPACITY] = {}
    if plan.slow_fsync_ms is not None:
        found[SLOW_FSYNC] = {**plain, **slow_fsync.environment(folder, plan.slow_fsync_ms)}
    return found


def end_to_end(plan: Plan, folder: Path, bare: Bare, generator: LoadGenerator, progress: Progress) -> Figures:
    """Measure every variant beside the bare interpreter, round by round."""
    yardsticks: list[BareRound] = []
    environments = variants(plan, folder)
    series = {name: Series() for name in environments}
    with contextlib.ExitStack() as stack:
        servers: dict[str, BenchServer] = {}
        for name, env in environments.items():
            servers[name] = stack.enter_context(BenchServer(folder / name / "data", null=plan.null, env=env))
            generator.run(servers[name], 1, _WARM_UP_RUNS // 4)
            generator.run(servers[name], MOST, _WARM_UP_RUNS)
        for number in range(plan.rounds):
            # The order changes from round to round: what comes after a burst of processes is not always the same.
            names = list(servers) if number % 2 else list(reversed(servers))
            yardstick = BareRound(bare.sequence(plan.bare_runs[1]))
            yardstick.per_s[1] = len(yardstick.latencies_s) / sum(yardstick.latencies_s)
            samples: dict[str, dict[int, Sample]] = {name: {} for name in names}
            for clients in CLIENTS:
                if clients > 1:
                    yardstick.per_s[clients] = bare.throughput(clients, plan.bare_runs[clients])
                for name in names:
                    samples[name][clients] = generator.run(servers[name], clients, plan.runs[clients])
            yardsticks.append(yardstick)
            for name in names:
                series[name].rounds.append(samples[name])
            ours = statistics.median(samples[PLAIN][1].latencies_s)
            progress(
                f"round {number + 1} of {plan.rounds}: bare {yardstick.p50_s * 1e3:.1f} ms,"
                f" ours {ours * 1e3:.1f} ms ({ours / yardstick.p50_s:.2f}x);"
                f" {MOST} clients {samples[PLAIN][MOST].per_s / yardstick.per_s[MOST]:.1f}x"
            )
    return {"bare": bare_figures(yardsticks), **{name: found.figures(yardsticks) for name, found in series.items()}}


def memory(plan: Plan, folder: Path, generator: LoadGenerator, progress: Progress) -> Figures:
    """Measure the server's resident memory before any run, and while and after many."""
    env = _MANY_PODS if plan.null else {}
    with BenchServer(folder / "memory" / "data", null=plan.null, env=env) as server:
        time.sleep(_SETTLE_S)
        idle = resident_bytes(server.pid)
        steps: list[int] = []
        step = max(plan.memory_runs // 10, 1)
        for number in range(10):
            generator.run(server, MOST, step)
            steps.append(resident_bytes(server.pid))
            progress(f"memory after {(number + 1) * step} runs: {steps[-1] / 2**20:.1f} MiB (idle {idle / 2**20:.1f})")
        time.sleep(_SETTLE_S)
        after = resident_bytes(server.pid)
    return {
        "runs": 10 * step,
        "idle_mib": rounded(idle / 2**20),
        "after_mib": rounded(after / 2**20),
        "growth_percent": rounded((after / idle - 1) * 100),
        "growth_percent_after_the_first_tenth": rounded((after / steps[0] - 1) * 100),
        "steps_mib": [rounded(size / 2**20) for size in steps],
    }


def stored(plan: Plan, folder: Path, generator: LoadGenerator, progress: Progress) -> Figures:
    """Measure the cost of a run over stores of several sizes, side by side; always over simulated pods.

    The sandbox costs the same whatever is stored, and would drown the difference that is looked for.
    """
    if not plan.stored:
        return {}
    with contextlib.ExitStack() as stack:
        servers: list[BenchServer] = []
        for count in plan.stored:
            data = folder / f"stored-{count}" / "data"
            progress(f"storing {count} executions")
            _preload(data, count)
            servers.append(stack.enter_context(BenchServer(data, null=True, env=_MANY_PODS)))
            generator.run(servers[-1], 1, _WARM_UP_RUNS)
        rounds: list[list[Sample]] = []
        for number in range(plan.stored_rounds):
            order = range(len(servers)) if number % 2 else reversed(range(len(servers)))
            found = {place: generator.run(servers[place], 1, plan.stored_runs) for place in order}
            rounds.append([found[place] for place in range(len(servers))])
        progress(f"compared {len(servers)} sizes in {plan.stored_rounds} rounds")
    return {str(count): _compared(rounds, place) for place, count in enumerate(plan.stored)}


def _compared(rounds: Sequence[Sequence[Sample]], place: int) -> Figures:
    """Return the figures of one size, as ratios to the first size in the same round."""
    return {
        "p50_ms": rounded(percentile([v for samples in rounds for v in samples[place].latencies_s], 0.5) * 1e3),
        "cpu_ms_per_run": rounded(statistics.median(samples[place].cpu_ms_per_run for samples in rounds)),
        "p50_ratio": rounded(
            statistics.median(
                statistics.median(samples[place].latencies_s) / statistics.median(samples[0].latencies_s)
                for samples in rounds
            )
        ),
        "cpu_ratio": rounded(
            statistics.median(samples[place].cpu_ms_per_run / samples[0].cpu_ms_per_run for samples in rounds)
        ),
    }


def _preload(data: Path, count: int) -> None:
    data.mkdir(parents=True)
    command = [sys.executable, "-P", "-m", "runtape.bench.preload", str(data), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    if done.returncode != 0:
        raise BenchError(f"the store could not be filled: {done.stderr.strip()[-400:]}")
