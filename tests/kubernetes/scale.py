"""What the pod_monitor takes with thousands of pods: `./runtape rig scale`.

The pods are on nodes that kwok plays, so nothing runs in them; the API server, its watches and the monitor are real.
Pods are made as fast as the API takes them, and each is timed from its answer until the monitor has seen it run: a
monitor that cannot keep up has them wait ever longer, so the last third is told beside the first.  Then all of them
live for a while, and at last every run is over at once, and the monitor deletes its pod.

The exit code is 1 when pods wait ever longer: the last third's median is more than `MOST_GROWTH` times the first's.
"""

import argparse
import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from kubernetes_asyncio import client, config

from runtape.adapters.embedded.clock import SystemClock
from runtape.adapters.kubernetes import manifests
from runtape.adapters.kubernetes.api import PodApi
from runtape.adapters.kubernetes.manifests import PodSettings
from runtape.adapters.kubernetes.placed import ClusterPods
from runtape.adapters.kubernetes.warm import labels_of
from runtape.application.reaping import ROUND_S, Reaper
from runtape.application.running import LEASE_TTL
from runtape.bench.figures import percentile
from runtape.domain.events import Lease
from runtape.domain.execution import Execution
from runtape.domain.ids import ExecutionId
from runtape.domain.limits import Limits
from runtape.ports.placed_pods import PodState
from runtape.ports.pod_runtime import PodKey
from runtape.runtime.logging import configure_logging
from tests.builders import started
from tests.kubernetes.pods import a_namespace, connected
from tests.rig.kubernetes.cluster import Kubernetes

NODES = 20
MAKERS = 16
STEADY_S = 30.0
LOOK_S = 0.02
LONG_S = 300.0
MOST_GROWTH = 1.5
FAKE = {"key": "kwok", "value": "fake", "effect": "NoSchedule"}
ROOM = {"cpu": "1000", "memory": "1Ti", "pods": "1000", "ephemeral-storage": "1Ti"}


class Executions:
    """Executions that all run, or are all over; what of the store the monitor asks."""

    def __init__(self, ids: Sequence[ExecutionId]) -> None:
        self._ids = ids
        self._template = started()
        self.over = False

    async def get(self, execution_id: ExecutionId) -> Execution | None:
        """Return it, with a lease that somebody extends."""
        return None if self.over else self._running(execution_id)

    async def list(self, _: Any, count: int, after: ExecutionId | None) -> list[Execution]:
        """Return the next page of those that run."""
        begin = 0 if after is None else self._ids.index(after) + 1
        return [] if self.over else [self._running(each) for each in self._ids[begin : begin + count]]

    def _running(self, execution_id: ExecutionId) -> Execution:
        lease = Lease(owner="worker", fence=1, expires_at=datetime.now(UTC) + LEASE_TTL)
        return replace(self._template, id=execution_id, lease=lease)


class TimedPods(ClusterPods):
    """The monitor's pods, with the moment at which each was first seen to run."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.ran_s: dict[str, float] = {}

    def _on_change(self, name: str, pod: Any) -> None:
        super()._on_change(name, pod)
        found = self._placed.get(name)
        if found is not None and found.state is PodState.RUNNING:
            self.ran_s.setdefault(name, time.monotonic())


async def made(api: PodApi, ids: Sequence[ExecutionId]) -> dict[str, float]:
    """Make a pod for each and return when the API had taken it."""
    settings = PodSettings(namespace=api.namespace, cpu="10m")
    at_s: dict[str, float] = {}
    waiting = iter(ids)

    async def make() -> None:
        for execution_id in waiting:
            name = f"exec-{execution_id}-1"
            labels = {**labels_of(PodKey(execution_id, 1)), manifests.OWNER: "worker"}
            pod = manifests.pod(name, settings, "fake", Limits(), labels, "00")
            del pod["spec"]["activeDeadlineSeconds"]
            pod["spec"] |= {"nodeSelector": {"type": "kwok"}, "tolerations": [{"key": "kwok", "operator": "Exists"}]}
            await api.create(pod)
            at_s[name] = time.monotonic()

    await asyncio.gather(*(make() for _ in range(MAKERS)))
    return at_s


async def slow_rounds(reaper: Reaper, took_s: list[float]) -> None:
    """Be the reaper's `run`, and write down what each round takes."""
    while True:
        began_s = time.monotonic()
        await reaper.round()
        took_s.append(time.monotonic() - began_s)
        await asyncio.sleep(ROUND_S)


async def lags(found_s: list[float]) -> None:
    """Write down by how much the event loop is late."""
    while True:
        began_s = time.monotonic()
        await asyncio.sleep(LOOK_S)
        found_s.append(time.monotonic() - began_s - LOOK_S)


async def measured(kubernetes: Kubernetes, count: int) -> dict[str, Any]:
    """Return the report."""
    async with connected(kubernetes.kubeconfig) as connection:
        core = client.CoreV1Api(connection)
        namespace = await a_namespace(core, "scale")
        for number in range(NODES):
            node: Any = {
                "metadata": {"name": f"fake-{number}", "labels": {"type": "kwok"}},
                "spec": {"taints": [FAKE]},
                "status": {"allocatable": ROOM, "capacity": ROOM},
            }
            await core.create_node(node)
    configuration = client.Configuration()
    await config.load_kube_config(str(kubernetes.kubeconfig), client_configuration=configuration)
    ids = [ExecutionId(f"run-{number:06}") for number in range(count)]
    executions = Executions(ids)
    pods = TimedPods(configuration, namespace, lambda _: True)
    unused: Any = None
    monitor: Any = SimpleNamespace(lease_ttl=LEASE_TTL)
    reaper = Reaper(
        pods=pods,
        executions=cast(Any, executions),
        tape=unused,
        monitor=monitor,
        clock=SystemClock(),
        concerns=lambda _: True,
    )
    rounds_s: list[float] = []
    late_s: list[float] = []
    async with keeping(pods.run()), keeping(slow_rounds(reaper, rounds_s)), keeping(lags(late_s)):
        api = PodApi(configuration, namespace)
        _say(f"making {count} pods")
        began_s, cpu_s = time.monotonic(), _cpu_s()
        at_s = await made(api, ids)
        made_s = time.monotonic() - began_s
        await until(lambda: len(pods.ran_s) == count, f"of {count} pods {len(pods.ran_s)} run")
        seen_s = time.monotonic() - began_s
        _say(f"letting them be for {STEADY_S:g} s")
        steady = len(rounds_s)
        steady_cpu_s = _cpu_s()
        await asyncio.sleep(STEADY_S)
        steady_cpu_s, steady_rounds_s = _cpu_s() - steady_cpu_s, rounds_s[steady:]
        _say("all runs are over")
        executions.over = True
        began_s = time.monotonic()
        await until(lambda: not pods.seen(), "pods are left")
        gone_s = time.monotonic() - began_s
        await api.close()
    await pods.close()
    waited_ms = [1000 * (pods.ran_s[name] - at_s[name]) for name in at_s]
    third = count // 3
    return {
        "pods": count,
        "made_per_s": round(count / made_s, 1),
        "seen_per_s": round(count / seen_s, 1),
        "made_to_seen_running_ms": {
            "first third": shares(waited_ms[:third]),
            "last third": shares(waited_ms[-third:]),
        },
        "loop_late_ms": shares([1000 * each for each in late_s]),
        "round_ms": shares([1000 * each for each in steady_rounds_s]),
        "cpu_share_at_rest": round(steady_cpu_s / STEADY_S, 3),
        "all_deleted_s": round(gone_s, 1),
        "cpu_s": round(_cpu_s() - cpu_s, 1),
    }


@asynccontextmanager
async def keeping(work: Any) -> AsyncIterator[None]:
    """Let `work` go on meanwhile."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(holds: Any, what: str) -> None:
    """Return once `holds`.  Raises: AssertionError, with `what`."""
    until_s = time.monotonic() + LONG_S
    while not holds():
        assert time.monotonic() < until_s, what
        await asyncio.sleep(LOOK_S)


def shares(values: Sequence[float]) -> dict[str, float]:
    """Return the percentiles."""
    return {f"p{share * 100:g}": round(percentile(values, share), 1) for share in (0.5, 0.95, 0.99)}


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)


def grown(report: Mapping[str, Any]) -> str | None:
    """Return, in words, that pods wait ever longer until they are seen; None where they do not."""
    first, last = (report["made_to_seen_running_ms"][f"{which} third"]["p50"] for which in ("first", "last"))
    if last <= MOST_GROWTH * first:
        return None
    return f"a queue that grows: {first:g} ms until a pod of the first third was seen to run, {last:g} of the last"


def main(arguments: Sequence[str]) -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="./runtape rig scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pods", type=int, default=2000, help="how many pods there are at once")
    options = parser.parse_args(arguments)
    configure_logging("error")
    with tempfile.TemporaryDirectory(prefix="runtape-bench-") as name:
        kubernetes = Kubernetes(Path(name) / "kubernetes")
        try:
            _say("starting Kubernetes and kwok")
            kubernetes.start()
            kubernetes.kwok.begin()
            kubernetes.kwok.until_ready()
            report = asyncio.run(measured(kubernetes, options.pods))
        finally:
            kubernetes.stop()
    print(json.dumps(report, indent=2))
    if (growth := grown(report)) is not None:
        print(f"FOUND: {growth}", file=sys.stderr)
        return 1
    return 0
