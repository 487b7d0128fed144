"""What the benchmark says: the targets, a table for people, and one JSON object for programs."""

from collections.abc import Mapping
from typing import Any

from runtape.bench.measure import DEFAULT_CAPACITY, PLAIN, SLOW_FSYNC
from runtape.bench.plan import CLIENTS, MOST

_TITLES = {
    PLAIN: "the service",
    DEFAULT_CAPACITY: "the same, with the default capacity",
    SLOW_FSYNC: "the same, each fsync slower",
}


def targets(figures: Mapping[str, Any], *, null: bool) -> list[dict[str, object]]:
    """Return what this kind of run has to reach, and whether it did; without what was measured too briefly."""
    plain = figures[PLAIN]
    found: list[dict[str, object]] = []

    def add(name: str, value: float, bound: float, *, at_least: bool = False) -> None:
        reached = value >= bound if at_least else value <= bound
        sign = ">=" if at_least else "<="
        found.append({"name": name, "value": value, "bound": f"{sign} {bound:g}", "reached": reached})

    if null:
        add("p50, times bare", plain["p50_ratio_to_bare"], 0.25)
        add(f"throughput at {MOST} clients, times bare", plain["throughput_ratio_to_bare"], 5, at_least=True)
        add("loop and writer CPU, ms a run", plain["cpu_ms_per_run"], 2.5)
    else:
        add("p50, times bare", plain["p50_ratio_to_bare"], 1.5)
    if figures["memory"]["runs"] >= 10_000:
        add("memory growth over 10,000 runs, %", figures["memory"]["growth_percent"], 10)
    if "100000" in figures["stored"]:
        add("p50 at 100,000 stored, times at 100", figures["stored"]["100000"]["p50_ratio"], 1.15)
    return found


def table(report: Mapping[str, Any]) -> str:
    """Return the report as text."""
    machine, bare = report["machine"], report["bare"]
    lines = [
        f"{machine['cores']} cores, {machine['processor']}, {machine['memory_gib']} GiB, kernel {machine['kernel']},"
        f" {machine['filesystem']}, Python {machine['python']}, SQLite {machine['sqlite']}",
        f"load {machine['load_before']} before, {machine['load_after']} after; sandbox: {report['sandbox']}",
        "",
        f"bare python{report['interpreter']['version']} -I -S -c 'print(1)': p50 {bare['p50_ms']} ms,"
        f" p95 {bare['p95_ms']}, p99 {bare['p99_ms']};"
        f" {', '.join(f'{rate} /s at {clients}' for clients, rate in bare['per_s'].items())}",
    ]
    for name, title in _TITLES.items():
        if name in report:
            lines += ["", *_variant(title, report[name])]
    lines += ["", *_memory(report["memory"]), *_stored(report["stored"]), "", "targets"]
    for target in report["targets"]:
        said = "reached" if target["reached"] else "NOT reached"
        lines.append(f"  {target['name']:<42} {target['value']:>8}   {target['bound']:<8} {said}")
    return "\n".join(lines)


def _variant(title: str, figures: Mapping[str, Any]) -> list[str]:
    low, high = figures["p50_ratio_range"]
    lines = [
        f"{title}: submit -> result_stored for print(1), {figures['runs']} runs, one after another",
        f"  p50 {figures['p50_ratio_to_bare']}x bare ({low}-{high} over the rounds);"
        f" p50 {figures['p50_ms']} ms, p95 {figures['p95_ms']}, p99 {figures['p99_ms']}",
        f"  {'clients':>8} {'times bare':>12} {'runs/s':>9} {'p50 ms':>8} {'p99 ms':>8}"
        f" {'loop ms':>9} {'store ms':>10}   (CPU of a run)",
    ]
    for clients in CLIENTS:
        row = figures["by_clients"][str(clients)]
        lines.append(
            f"  {clients:>8} {row['ratio_to_bare']:>12} {row['per_s']:>9} {row['p50_ms']:>8} {row['p99_ms']:>8}"
            f" {row['loop_cpu_ms']:>9} {row['store_cpu_ms']:>10}"
        )
    return lines


def _memory(figures: Mapping[str, Any]) -> list[str]:
    return [
        f"memory of the server: {figures['idle_mib']} MiB idle, {figures['after_mib']} after {figures['runs']} runs:"
        f" {figures['growth_percent']:+} %, of it {figures['growth_percent_after_the_first_tenth']:+} %"
        " after the first tenth"
    ]


def _stored(figures: Mapping[str, Any]) -> list[str]:
    return [
        f"with {int(count):,} executions stored: p50 {row['p50_ms']} ms ({row['p50_ratio']}x),"
        f" CPU {row['cpu_ms_per_run']} ms ({row['cpu_ratio']}x)"
        for count, row in figures.items()
    ]
