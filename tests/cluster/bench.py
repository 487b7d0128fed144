"""What a cluster costs beside one process: `./runtape rig bench`.

Both profiles run side by side on this machine, over programs that take no time, and are asked in turn: what is told
is what the control plane takes.  All times are the service's own, from the steps of its sagas and from its events, and
the client's; everything is on one clock.

``hops`` are milliseconds between the moments of a run, and what each process spends on it; ``throughput`` is how many
runs end in a second when 200 are submitted at once, to so many of each worker.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from runtape.bench.figures import percentile
from tests.cluster.flood import flood
from tests.cluster.plugin import seeded
from tests.cluster.processes import Cluster
from tests.e2e.server import Client, Server
from tests.e2e.test_sagas import ended

PER_S = 10
SLICE_S = 3.0
BURST = 200
SHARES = (0.5, 0.95, 0.99)
HOPS = ("accepted", "queued", "allocated", "commanded", "started", "completed", "stored", "told")
"""What each hop ends with; `started` and `told` are also given from the submission."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A run as its client saw it; times in seconds since the epoch."""

    execution_id: str
    sent_s: float
    accepted_s: float
    told_s: float


async def ask(client: Client, number: int) -> Asked:
    """Submit a run and follow its stream to the end."""
    sent_s = time.time()
    execution_id = await client.execute(f"print {number}")
    accepted_s = time.time()
    async with client.stream(execution_id) as stream:
        await stream.rest()
    return Asked(execution_id, sent_s, accepted_s, time.time())


async def moments(client: Client, asked: Asked) -> dict[str, float]:
    """Return when what happened to the run, in milliseconds since it was sent."""
    events = (await client.get(f"/executions/{asked.execution_id}/events")).json()["events"]
    at = {each["event_type"]: _time(each["timestamp"]) for each in events}
    saga = await ended(client, asked.execution_id)
    done = {each["step"]: _time(each["done_at"]) for each in saga["steps"]}
    found = {
        "accepted": asked.accepted_s,
        "queued": _time(saga["steps"][0]["began_at"]),
        "allocated": done["queue"],
        "commanded": done["allocate"],
        "started": at["execution_started"],
        "completed": at["execution_completed"],
        "stored": at["result_stored"],
        "told": asked.told_s,
    }
    return {name: 1000 * (moment - asked.sent_s) for name, moment in found.items()}


async def at_a_steady_rate(client: Client, seconds: float) -> list[Asked]:
    """Submit `PER_S` runs a second, whether those before have ended or not."""

    async def later(number: int) -> Asked:
        await asyncio.sleep(number / PER_S)
        return await ask(client, number)

    return await asyncio.gather(*(later(number) for number in range(int(seconds * PER_S))))


def figures(runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the percentiles of each hop, and of the two that a user waits for."""
    found: dict[str, Any] = {}
    before = dict.fromkeys(range(len(runs)), 0.0)
    for name in HOPS:
        hop = [max(0.0, run[name] - before[number]) for number, run in enumerate(runs)]
        found[name] = _shares(hop)
        if name != "accepted":  # the answer is on its way to the client beside all that follows
            before = {number: run[name] for number, run in enumerate(runs)}
    found["submit to started"] = _shares([run["started"] for run in runs])
    found["submit to told"] = _shares([run["told"] for run in runs])
    return found


def _shares(values: Sequence[float]) -> dict[str, float]:
    return {f"p{share * 100:g}": round(percentile(sorted(values), share), 1) for share in SHARES}


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def hops(cluster: Cluster, server: Server, slices: int) -> dict[str, Any]:
    """Ask both in turn, `slices` times each; what happened to the runs is looked up once a slice is over."""
    runs: dict[str, list[dict[str, float]]] = {"embedded": [], "cluster": []}
    spent_s: Counter[str] = Counter()
    pids = {part.name: part.pid for part in cluster.parts} | {each.name: each.pid for each in cluster.processes()}
    async with cluster.client() as there, server.client() as here:
        for client in (here, there):
            await at_a_steady_rate(client, 1.0)
        for number in range(slices):
            for name, client in (("embedded", here), ("cluster", there)):
                _say(f"hops, {name} {number + 1} of {slices}")
                before_s = {each: cpu_s(pid) for each, pid in pids.items()}
                asked = await at_a_steady_rate(client, SLICE_S)
                if client is there:
                    spent_s.update({each: cpu_s(pid) - before_s[each] for each, pid in pids.items()})
                runs[name] += [await moments(client, each) for each in asked]
    cpu_ms = {each: round(1000 * seconds / len(runs["cluster"]), 1) for each, seconds in spent_s.most_common()}
    return {**{name: figures(each) for name, each in runs.items()}, "cpu_ms_per_run": cpu_ms}


def cpu_s(pid: int) -> float:
    """Return the CPU time that the process and its threads have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def burst(service: Cluster | Server, name: str) -> float:
    """Return how many of `BURST` runs that are submitted at once end in a second, the second time."""
    took_s = 0.0
    async with service.client() as client:
        for number in range(2):
            began_s = time.monotonic()
            await flood([client], f"{name}-{number}", BURST, over_s=0)
            took_s = time.monotonic() - began_s
    return round(BURST / took_s, 1)


def measure(slices: int, workers: Sequence[int]) -> dict[str, Any]:
    """Return the whole report."""
    report: dict[str, Any] = {"runs_per_s": PER_S, "throughput": {}}
    with tempfile.TemporaryDirectory(prefix="runtape-bench-") as name:
        folder = Path(name)
        limits: dict[str, Any] = {
            "rate_limits__executions_per_minute": 100_000,
            "rate_limits__calls_per_minute": 100_000,
        }
        server = Server(folder / "embedded", simulated=True, admission__running=32, **limits).start()
        try:
            for each in workers:
                _say(f"a cluster with {each} of each worker")
                cluster = Cluster(folder / f"cluster-{each}", apis=1, each=each)
                try:
                    cluster.begin()
                    cluster.keys.update(asyncio.run(seeded(cluster)))
                    cluster.until_ready()
                    if each == workers[0]:
                        report["hops"] = asyncio.run(hops(cluster, server, slices))
                        report["throughput"]["embedded"] = asyncio.run(burst(server, "embedded"))
                    report["throughput"][f"{each} of each worker"] = asyncio.run(burst(cluster, f"with-{each}"))
                finally:
                    cluster.close()
        finally:
            server.close()
    return report


def table(report: Mapping[str, Any]) -> str:
    """Return the report as text."""
    lines = [f"milliseconds at {report['runs_per_s']} runs a second:  embedded p50 p95 p99    cluster p50 p95 p99"]
    here, there = (cast(Mapping[str, Mapping[str, float]], report["hops"][name]) for name in ("embedded", "cluster"))
    for name in here:
        both = ["".join(f"{each[name][f'p{share * 100:g}']:>9}" for share in SHARES) for each in (here, there)]
        lines.append(f"  {name:<18}{both[0]}   {both[1]}")
    lines.append("milliseconds of CPU for each run of the cluster:")
    lines += [f"  {name:<18}{value:>9}" for name, value in report["hops"]["cpu_ms_per_run"].items()]
    lines.append(f"runs a second, {BURST} at once:")
    lines += [f"  {name:<18}{value:>9}" for name, value in report["throughput"].items()]
    return "\n".join(lines)


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="./runtape rig bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--slices", type=int, default=5, help=f"times that each profile is asked for {SLICE_S:g} s")
    parser.add_argument("--workers", default="1,2,4", help="numbers of each worker, one cluster after another")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    options = parser.parse_args(arguments)
    report = measure(options.slices, [int(each) for each in options.workers.split(",")])
    print(json.dumps(report) if options.json else table(report))
    return 0
