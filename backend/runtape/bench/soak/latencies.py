"""How long programs took, in memory that does not grow: a soak must not be the leak that it looks for."""

import math
from collections import Counter
from typing import Final

_GRAIN: Final = math.log(1.01)
"""Width of a bin: what lies in it differs by 1 %."""


class Latencies:
    """Seconds of many runs, by the name of the program, in bins of 1 %."""

    def __init__(self) -> None:
        self._bins: dict[str, Counter[int]] = {}

    def add(self, name: str, seconds: float) -> None:
        """Count one run."""
        self._bins.setdefault(name, Counter())[math.floor(math.log(seconds) / _GRAIN)] += 1

    @property
    def names(self) -> list[str]:
        """The programs that were counted."""
        return [*self._bins]

    def count(self, name: str | None = None) -> int:
        """Return how many runs there were, of one program or of all."""
        return self._of(name).total()

    def percentile_s(self, share: float, name: str | None = None) -> float:
        """Return the seconds that `share` of the runs do not exceed, of one program or of all; nan without runs."""
        bins = self._of(name)
        left = share * bins.total()
        for number in sorted(bins):
            left -= bins[number]
            if left <= 0:
                return math.exp((number + 0.5) * _GRAIN)
        return math.nan

    def relative_to(self, others: "Latencies") -> "Latencies":
        """Return each run as a multiple of the median of the same program in `others`; without what is not there."""
        found = Latencies()
        for name, bins in self._bins.items():
            if others.count(name):
                median = math.floor(math.log(others.percentile_s(0.5, name)) / _GRAIN)
                found._bins[name] = Counter({number - median: count for number, count in bins.items()})
        return found

    def _of(self, name: str | None) -> Counter[int]:
        if name is not None:
            return self._bins.get(name, Counter())
        return sum(self._bins.values(), Counter[int]())
