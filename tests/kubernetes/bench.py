"""What a run in a pod takes beside one in a local slot: `./runtape rig pods`.

A server over local sandboxes and a cluster over Kubernetes stand side by side on this machine, and are asked in turn,
one run after another, each once nothing is left of the one before: in a local slot, in a warm pod, and in a pod that is
made for it.  Then many ask at once: pods that are made for each, and more runs than warm pods wait for (``drained``:
those of them that found none).  Times are milliseconds from the submission until the client has the first byte, and
until it has the result.

The calls are those that the worker makes to the API of Kubernetes for each warm run, as its audit log has them, without
the watches.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes_asyncio import client

from runtape.adapters.kubernetes.manifests import STATE, WARM
from runtape.bench.figures import percentile
from runtape.domain.limits import Limits
from tests.cluster.plugin import seeded
from tests.e2e.server import Client, Server
from tests.kubernetes.plugin import PodCluster
from tests.kubernetes.pods import connected
from tests.rig.kubernetes.cluster import Kubernetes

SHARES = (0.5, 0.95, 0.99)
WAITING = 2
"""Warm pods of Python; with those that are made and deleted meanwhile they leave a node of two processors room."""
AT_ONCE = 4
NOT_WARM = {"memory_mb": Limits().memory_mb + 1}
"""Limits that no warm pod has."""
CPU = "250m"
"""What each pod may use: six are there at once on two processors, and perhaps one that is on its way out."""
REFILLED_S = 60.0
LOOK_S = 0.1
SCRIPT = "print('hello', flush=True)"


@dataclass(frozen=True, slots=True)
class Asked:
    """A run as its client saw it, in milliseconds since it was submitted; `start` is how it came to its pod."""

    first_byte_ms: float
    result_ms: float
    start: str


async def ask(of: Client, **fields: Any) -> Asked:
    """Submit a run and follow its stream to the end."""
    began_s = time.monotonic()
    first_byte_s = result_s = 0.0
    start = ""
    execution_id = await of.execute(SCRIPT, **fields)
    async with of.stream(execution_id) as stream:
        while (frame := await stream.next(wait_s=60.0)) is not None:
            if frame.event == "output":
                first_byte_s = first_byte_s or time.monotonic()
            elif frame.kind == "execution_pod":
                start = frame.data["start"]
            elif frame.kind == "result_stored":
                result_s = time.monotonic()
                assert frame.data["result"]["status"] == "completed", frame.data
    return Asked(1000 * (first_byte_s - began_s), 1000 * (result_s - began_s), start)


async def refilled(cluster: PodCluster) -> None:
    """Return once as many warm pods wait as there are to be, and no other pod is left: the node has nothing to do."""
    until_s = time.monotonic() + REFILLED_S
    async with connected(cluster.kubeconfig) as connection:
        api = client.CoreV1Api(connection)
        while True:
            found = (await api.list_namespaced_pod(cluster.namespace)).items
            ready = sum(
                each.metadata.labels.get(STATE) == WARM
                and any(one.type == "Ready" and one.status == "True" for one in each.status.conditions or ())
                for each in found
            )
            if ready == len(found) == WAITING:
                return
            assert time.monotonic() < until_s, f"{ready} of {len(found)} pods wait for programs"
            await asyncio.sleep(LOOK_S)


async def in_turn(cluster: PodCluster, here: Client, there: Client, rounds: int) -> dict[str, list[Asked]]:
    """Return what each way to run took, asked in turn."""
    found: dict[str, list[Asked]] = {"local slot": [], "warm pod": [], "cold pod": []}
    for number in range(rounds + 1):
        _say(f"one after another, {number} of {rounds}")
        await refilled(cluster)
        asked = {"local slot": await ask(here), "warm pod": await ask(there)}
        await refilled(cluster)
        asked["cold pod"] = await ask(there, limits=NOT_WARM)
        assert asked["warm pod"].start == "warm", asked
        assert asked["cold pod"].start == "cold", asked
        if number:  # the first is for whatever is made once
            for name, each in asked.items():
                found[name].append(each)
    return found


async def at_once(cluster: PodCluster, there: Client, rounds: int) -> dict[str, Any]:
    """Return what runs take that are submitted at once, and how many end in a second."""
    found: dict[str, list[Asked]] = {"cold": [], "warm": [], "drained": []}
    took_s = 0.0
    for number in range(rounds):
        _say(f"{AT_ONCE} at once, {number + 1} of {rounds}")
        began_s = time.monotonic()
        found["cold"] += await asyncio.gather(*(ask(there, limits=NOT_WARM) for _ in range(AT_ONCE)))
        took_s += time.monotonic() - began_s
        await refilled(cluster)
        for each in await asyncio.gather(*(ask(there) for _ in range(AT_ONCE))):
            found["warm" if each.start == "warm" else "drained"].append(each)
    report: dict[str, Any] = {name: shares([each.result_ms for each in asked]) for name, asked in found.items()}
    report["cold_per_s"] = round(rounds * AT_ONCE / took_s, 2)
    return report


async def calls(cluster: PodCluster, kubernetes: Kubernetes, there: Client, runs: int) -> dict[str, float]:
    """Return the calls of the worker for each warm run, by verb and resource."""
    await refilled(cluster)
    before = said(kubernetes)
    for _ in range(runs):
        await refilled(cluster)
        assert (await ask(there)).start == "warm"
    await refilled(cluster)
    found = said(kubernetes) - before
    return {name: round(count / runs, 2) for name, count in found.most_common()}


def said(kubernetes: Kubernetes) -> Counter[str]:
    """Return what was asked of the API about pods by whoever runs programs, by verb and resource."""
    found: Counter[str] = Counter()
    for line in kubernetes.api_server.audit.read_text().splitlines():
        event = json.loads(line)
        of = event["objectRef"]
        agent = event.get("userAgent", "")
        if agent.startswith("runtape") and event["verb"] not in ("watch", "list"):
            found[f"{event['verb']} {'/'.join(filter(None, (of['resource'], of.get('subresource'))))}"] += 1
    return found


def shares(values: Sequence[float]) -> dict[str, float]:
    """Return the percentiles, and of how many."""
    if not values:
        return {"count": 0}
    return {f"p{share * 100:g}": round(percentile(values, share), 1) for share in SHARES} | {"count": len(values)}


async def measured(cluster: PodCluster, kubernetes: Kubernetes, server: Server, rounds: int) -> dict[str, Any]:
    """Return the whole report."""
    async with server.client() as here, cluster.client() as there:
        turns = await in_turn(cluster, here, there, rounds)
        report: dict[str, Any] = {
            name: {
                "first_byte": shares([each.first_byte_ms for each in asked]),
                "result": shares([each.result_ms for each in asked]),
            }
            for name, asked in turns.items()
        }
        warm, cold = report["warm pod"]["result"]["p50"], report["cold pod"]["result"]["p50"]
        report["warm to cold"] = round(warm / cold, 4)
        report["calls per warm run"] = await calls(cluster, kubernetes, there, max(5, rounds // 4))
        report["at once"] = await at_once(cluster, there, max(1, rounds // 8))
        if report["at once"]["drained"]["count"]:
            report["drained to cold, p99"] = round(
                report["at once"]["drained"]["p99"] / report["at once"]["cold"]["p99"], 3
            )
    return report


def measure(rounds: int) -> dict[str, Any]:
    """Start everything, and return the report."""
    limits: dict[str, Any] = {"rate_limits__executions_per_minute": 100_000, "rate_limits__calls_per_minute": 100_000}
    with tempfile.TemporaryDirectory(prefix="runtape-bench-") as name:
        folder = Path(name)
        kubernetes = Kubernetes(folder / "kubernetes")
        kubernetes.api_server.audited = True
        cluster = PodCluster(
            folder / "cluster",
            kubernetes,
            apis=1,
            each=1,
            running=AT_ONCE,
            kubernetes__cpu=CPU,
            kubernetes__warm__sizes=json.dumps({"python:3.11": {"least": WAITING, "most": WAITING}}),
        )
        server = Server(folder / "local", **limits)
        try:
            _say("starting everything")
            kubernetes.start()
            cluster.begin()
            cluster.keys.update(asyncio.run(seeded(cluster)))
            cluster.until_ready()
            server.start()
            return asyncio.run(measured(cluster, kubernetes, server, rounds))
        finally:
            server.close()
            cluster.close()
            kubernetes.stop()


def table(report: Mapping[str, Any]) -> str:
    """Return the report as text."""
    lines = ["milliseconds          first byte p50   p95   p99      result p50   p95   p99"]
    for name in ("local slot", "warm pod", "cold pod"):
        parts = [
            "".join(f"{report[name][what][f'p{share * 100:g}']:>9}" for share in SHARES)
            for what in ("first_byte", "result")
        ]
        lines.append(f"  {name:<12}{parts[0]}   {parts[1]}")
    lines.append(f"warm to cold, result p50: {report['warm to cold']}")
    lines.append(f"calls per warm run: {report['calls per warm run']}")
    lines.append(f"{AT_ONCE} at once, result: {report['at once']}")
    lines.append(f"drained to cold, p99: {report.get('drained to cold, p99')}")
    return "\n".join(lines)


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="./runtape rig pods", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40, help="runs of each kind, one after another")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    options = parser.parse_args(arguments)
    report = measure(options.rounds)
    print(json.dumps(report) if options.json else table(report))
    return 0
