"""The line of one priority: first come within a project, and the projects in turn.

Theory of operation
===================
``_order`` has one key per project that waits: how many it runs, and the number of its last turn.  The smallest is next,
so who runs the least goes first, and among equals whoever's turn is the longest ago.  A project that joins or has had
its turn gets a new number: it goes behind all others, so between two turns of one come at most one of each other.

Within a project each language has a list of its own, in order, so that one at its limit is stepped over at once.

Where somebody stands is told without walking the line: ``_at_least[k]`` counts the projects with ``k`` waiting or more,
so ``_at_least[1] + ... + _at_least[n]`` stand before the turn in which the ``n``th after a project's first is taken.
That is what will happen while loads are equal and no limit holds anybody up; else it is near.

Everything is logarithmic but for moving the ends of arrays: 10,000 places are 80 kB.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from heapq import merge
from itertools import count
from operator import itemgetter

from runtape.domain.ids import ProjectId
from runtape.ports.admission import Entry

_Standing = tuple[int, Entry]
"""An entry with its number in the order of arrival."""

_Key = tuple[int, int, ProjectId]
_number = itemgetter(0)


class _ProjectLine:
    """What one project has waiting, by language."""

    __slots__ = ("by_lang", "key", "size")

    def __init__(self, key: _Key) -> None:
        self.by_lang: dict[str, list[_Standing]] = {}
        self.key = key
        self.size = 0

    def first(self, full: Container[str]) -> Entry | None:
        """Return the first in line whose language is not `full`."""
        heads = [line[0] for lang, line in self.by_lang.items() if lang not in full]
        return min(heads, key=_number)[1] if heads else None

    def before(self, number: int) -> int:
        """Return how many stand before that number."""
        return sum(bisect_left(line, number, key=_number) for line in self.by_lang.values())

    def in_order(self) -> Iterator[Entry]:
        return (entry for _, entry in merge(*self.by_lang.values(), key=_number))


class FairLine:
    """Those who wait with one priority.  `turns` numbers the turns, in all lines that share it."""

    def __init__(self, turns: "count[int]") -> None:
        self._turns = turns
        self._projects: dict[ProjectId, _ProjectLine] = {}
        self._order: list[_Key] = []
        self._at_least: list[int] = [0]
        self._langs: Counter[str] = Counter()
        self.size = 0

    def add(self, number: int, entry: Entry, load: int) -> None:
        """Let `entry`, the `number`th to arrive, stand at the end; its project runs `load`."""
        line = self._projects.get(entry.project_id)
        if line is None:
            key = (load, next(self._turns), entry.project_id)
            line = self._projects[entry.project_id] = _ProjectLine(key)
            insort(self._order, key)
        line.by_lang.setdefault(entry.lang, []).append((number, entry))
        line.size += 1
        if line.size == len(self._at_least):
            self._at_least.append(0)
        self._at_least[line.size] += 1
        self._langs[entry.lang] += 1
        self.size += 1

    def remove(self, number: int, entry: Entry) -> None:
        """Let `entry`, who has that number, leave."""
        line = self._projects[entry.project_id]
        standing = line.by_lang[entry.lang]
        del standing[bisect_left(standing, number, key=_number)]
        self._at_least[line.size] -= 1
        if not self._at_least[-1]:
            self._at_least.pop()
        line.size -= 1
        self._langs[entry.lang] -= 1
        self.size -= 1
        if not standing:
            del line.by_lang[entry.lang]
        if not self._langs[entry.lang]:
            del self._langs[entry.lang]
        if not line.size:
            del self._order[bisect_left(self._order, line.key)]
            del self._projects[entry.project_id]

    def set_load(self, project_id: ProjectId, load: int, *, turn: bool = False) -> None:
        """Take note of how many the project runs, and, with `turn`, that it has had its turn."""
        line = self._projects.get(project_id)
        if line is None:
            return
        del self._order[bisect_left(self._order, line.key)]
        line.key = (load, next(self._turns) if turn else line.key[1], project_id)
        insort(self._order, line.key)

    def next(self, full: Container[str], most: int) -> Entry | None:
        """Return who is next, when projects may run `most` and the languages in `full` no more."""
        if all(lang in full for lang in self._langs):
            return None
        for load, _, project_id in self._order:
            if load >= most:
                return None
            entry = self._projects[project_id].first(full)
            if entry is not None:
                return entry
        return None

    def before(self, number: int, entry: Entry) -> tuple[int, int]:
        """Return how many stand before `entry`, who has that number: in all, and of its own project."""
        line = self._projects[entry.project_id]
        own = line.before(number)
        of_this_turn = bisect_left(self._order, line.key) * self._at_least[own + 1] // self._at_least[1]
        return sum(self._at_least[1 : own + 1]) + of_this_turn, own

    def in_turn(self) -> Iterator[Entry]:
        """Yield who waits, turn by turn."""
        lines: Iterable[Iterator[Entry]] = (self._projects[project_id].in_order() for _, _, project_id in self._order)
        more = True
        while more:
            left: list[Iterator[Entry]] = []
            for line in lines:
                entry = next(line, None)
                if entry is not None:
                    yield entry
                    left.append(line)
            lines, more = left, bool(left)
