"""What the soak says: neighbours' latency in figures, and a page for people."""

from collections.abc import Mapping
from typing import Any, Final

from runtape.bench.figures import rounded
from runtape.bench.soak.latencies import Latencies

NEIGHBOURS_P99: Final = 2.0
"""The target: by how much company may slow the slowest of good programs."""
NEIGHBOURS_P99_BROKEN: Final = 3.0
"""What is a finding.  Between the two lies what chance does to the slowest hundredth, on a machine with other work."""
FEWEST_RUNS: Final = 200
"""Runs of a kind of slice below which its p99 is no figure."""


def neighbours(calm: Latencies, hostile: Latencies) -> dict[str, Any]:
    """Return how long good programs take in hostile company, beside how long they take in none.

    ``slowdown`` compares every run with the calm median of its own program, so that fast and slow languages count
    alike; ``all`` takes the seconds as they are.
    """
    return {
        "slowdown": _compared(calm.relative_to(calm), hostile.relative_to(calm)),
        "all": _compared(calm, hostile, unit_ms=True),
        "by_program": {name: _compared(calm, hostile, name, unit_ms=True) for name in sorted(calm.names)},
    }


def _compared(
    calm: Latencies, hostile: Latencies, name: str | None = None, *, unit_ms: bool = False
) -> dict[str, float]:
    found: dict[str, float] = {"calm_runs": calm.count(name), "hostile_runs": hostile.count(name)}
    scale, unit = (1e3, "_ms") if unit_ms else (1, "")
    for title, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        quiet, loud = calm.percentile_s(share, name), hostile.percentile_s(share, name)
        found[f"{title}_calm{unit}"] = rounded(quiet * scale)
        found[f"{title}_hostile{unit}"] = rounded(loud * scale)
        found[f"{title}_ratio"] = rounded(loud / quiet)
    return found


def page(found: Mapping[str, Any]) -> str:
    """Return the report as text."""
    machine = found["machine"]
    lines = [
        f"{machine['cores']} cores, {machine['processor']}, kernel {machine['kernel']};"
        f" load {machine['load_before']} before, {machine['load_after']} after; memory limit: {found['memory_limit']}",
        f"{found['plain']['runs']} plain runs ({found['plain']['per_s']} a second),"
        f" {found['mixed']['good_runs']} good and {found['mixed']['hostile_runs']} hostile ones mixed,"
        f" in {found['took_s']} s",
    ]
    if beside := found["neighbours"]:
        lines += ["", f"{'good programs':<44} {'p50':>7} {'p95':>7} {'p99':>7}   hostile / calm; ms calm -> hostile"]
        rows = {"each beside its own calm median": beside["slowdown"], "all": beside["all"], **beside["by_program"]}
        for name, row in rows.items():
            ratios = " ".join(f"{row[f'{title}_ratio']:>6.2f}x" for title in ("p50", "p95", "p99"))
            spans = f"   p99 {row['p99_calm_ms']} -> {row['p99_hostile_ms']}" if "p99_calm_ms" in row else ""
            lines.append(f"{name:<44} {ratios}{spans}")
        reached = beside["slowdown"]["p99_ratio"] <= NEIGHBOURS_P99
        lines.append(f"target: p99 <= {NEIGHBOURS_P99}x, the first row: {'reached' if reached else 'NOT reached'}")
    for part in ("plain", "mixed"):
        if memory := found[part]["memory"]:
            lines += ["", f"{part} part, event loop late by {found[part]['loop_lag_s']} s at most"]
            lines += ["memory of one process, MiB: second quarter -> last"]
            lines += [
                f"  {kind:<8} {row['second_quarter_mib']:>8} -> {row['last_quarter_mib']:<8}{row['growth_percent']:+} %"
                for kind, row in memory.items()
            ]
    lines += ["", *(f"FOUND: {what}" for what in found["findings"])] if found["findings"] else ["", "nothing found"]
    return "\n".join(lines)
