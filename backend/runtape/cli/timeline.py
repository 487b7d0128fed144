"""A run's timeline for people: two rows of bars, and what they reach."""

from collections.abc import Mapping, Sequence
from typing import Any

from runtape.cli.summary import duration, size

_BARS = " ▁▂▃▄▅▆▇█"
_COLUMNS = 60


def chart(points: Sequence[Mapping[str, Any]]) -> str:
    """Return memory and use of processors over the time of a run, one line each; each column is the same time.

    A column of memory shows the most that was held in it, one of CPU the mean number of processors that were busy.
    """
    if not points or not points[-1]["t_ns"]:
        return "timeline: the program was not started"
    end_ns = points[-1]["t_ns"]
    columns = min(_COLUMNS, len(points))
    memory = [0] * columns
    busy = [0.0] * columns
    width_ns = end_ns / columns
    before_ns = before_cpu_ns = 0
    for point in points:
        last = min(int(point["t_ns"] / width_ns), columns - 1)
        first = min(int(before_ns / width_ns), last)
        rate = (point["cpu_ns"] - before_cpu_ns) / max(point["t_ns"] - before_ns, 1)
        for column in range(first, last + 1):
            memory[column] = max(memory[column], point["memory_bytes"])
            begin_ns, finish_ns = max(before_ns, column * width_ns), min(point["t_ns"], (column + 1) * width_ns)
            busy[column] += rate * max(0.0, finish_ns - begin_ns) / width_ns
        before_ns, before_cpu_ns = point["t_ns"], point["cpu_ns"]
    return (
        f"memory |{_bars(memory)}| up to {size(max(memory))}\n"
        f"CPU    |{_bars(busy)}| up to {max(busy):.1f} processors, over {duration(end_ns)}"
    )


def _bars(values: Sequence[float]) -> str:
    most = max(values) or 1
    return "".join(_BARS[min(round(value / most * (len(_BARS) - 1)), len(_BARS) - 1)] for value in values)
