"""From samples to figures: percentiles, and ratios as medians over rounds."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from runtape.bench.load import Sample
from runtape.bench.plan import CLIENTS, MOST

Figures = dict[str, object]


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that `share` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def rounded(value: float) -> float:
    """Return `value` with the three or four figures that mean something."""
    return float(f"{value:.4g}")


@dataclass(slots=True)
class BareRound:
    """The yardstick of one round."""

    latencies_s: list[float]
    per_s: dict[int, float] = field(default_factory=dict[int, float])

    @property
    def p50_s(self) -> float:
        """The median of the round."""
        return statistics.median(self.latencies_s)


@dataclass(slots=True)
class Series:
    """The samples of one variant of the service: per round, by number of clients."""

    rounds: list[dict[int, Sample]] = field(default_factory=list[dict[int, Sample]])

    def figures(self, bare: Sequence[BareRound]) -> Figures:
        """Return the figures beside those of the bare interpreter in the same rounds."""
        latencies_s = [seconds for samples in self.rounds for seconds in samples[1].latencies_s]
        p50_ratios = [
            statistics.median(samples[1].latencies_s) / yardstick.p50_s
            for samples, yardstick in zip(self.rounds, bare, strict=True)
        ]
        p95_ratios = [
            percentile(samples[1].latencies_s, 0.95) / yardstick.p50_s
            for samples, yardstick in zip(self.rounds, bare, strict=True)
        ]
        by_clients: Figures = {}
        for clients in CLIENTS:
            samples = [samples[clients] for samples in self.rounds]
            ratios = [s.per_s / yardstick.per_s[clients] for s, yardstick in zip(samples, bare, strict=True)]
            by_clients[str(clients)] = {
                "per_s": rounded(statistics.median(s.per_s for s in samples)),
                "ratio_to_bare": rounded(statistics.median(ratios)),
                "ratio_range": [rounded(min(ratios)), rounded(max(ratios))],
                "p50_ms": rounded(statistics.median(percentile(s.latencies_s, 0.5) for s in samples) * 1e3),
                "p99_ms": rounded(percentile([v for s in samples for v in s.latencies_s], 0.99) * 1e3),
                **_cpu(samples),
            }
        most = by_clients[str(MOST)]
        assert isinstance(most, dict)
        return {
            "runs": len(latencies_s),
            "p50_ms": rounded(percentile(latencies_s, 0.50) * 1e3),
            "p95_ms": rounded(percentile(latencies_s, 0.95) * 1e3),
            "p99_ms": rounded(percentile(latencies_s, 0.99) * 1e3),
            "p50_ratio_to_bare": rounded(statistics.median(p50_ratios)),
            "p50_ratio_range": [rounded(min(p50_ratios)), rounded(max(p50_ratios))],
            "p95_ratio_to_bare_p50": rounded(statistics.median(p95_ratios)),
            "throughput_ratio_to_bare": most["ratio_to_bare"],
            "cpu_ms_per_run": rounded(statistics.median(samples[1].cpu_ms_per_run for samples in self.rounds)),
            "by_clients": by_clients,
        }


def _cpu(samples: Sequence[Sample]) -> Figures:
    """Return the CPU time of the server's own threads per run: the loop's, and those of the store."""
    return {
        "loop_cpu_ms": rounded(statistics.median(s.cpu.loop_ns / len(s.latencies_s) / 1e6 for s in samples)),
        "store_cpu_ms": rounded(statistics.median(s.cpu.others_ns / len(s.latencies_s) / 1e6 for s in samples)),
    }


def bare_figures(rounds: Sequence[BareRound]) -> Figures:
    """Return the figures of the bare interpreter."""
    latencies_s = [seconds for yardstick in rounds for seconds in yardstick.latencies_s]
    return {
        "runs": len(latencies_s),
        "p50_ms": rounded(percentile(latencies_s, 0.50) * 1e3),
        "p95_ms": rounded(percentile(latencies_s, 0.95) * 1e3),
        "p99_ms": rounded(percentile(latencies_s, 0.99) * 1e3),
        "per_s": {str(c): rounded(statistics.median(r.per_s[c] for r in rounds)) for c in CLIENTS},
    }
