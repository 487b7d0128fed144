"""The rules of retention: which are enforced when, and what one that fails does to the others."""

from datetime import datetime, timedelta

import pytest

from runtape.application import retention
from runtape.application.retention import Retention, RetentionRule
from runtape.ports.errors import Transient
from tests.clocks import START, ManualClock


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PAUSE_S", 0.0)


class Kind:
    """Records of the given ages."""

    def __init__(self, *days: int, fails: bool = False) -> None:
        self.days = list(days)
        self.fails = fails

    async def prune(self, before: datetime, limit: int) -> int:
        if self.fails:
            raise Transient("simulated")
        old = [day for day in self.days if START - timedelta(days=day) < before][:limit]
        self.days = [day for day in self.days if day not in old]
        return len(old)


async def test_each_kind_is_kept_for_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PAGE", 2)
    short, long, for_ever = Kind(0, 1, 2, 3, 4, 5, 6), Kind(1, 4, 9), Kind(1000)
    rules = [
        RetentionRule("short", short, timedelta(days=1)),
        RetentionRule("long", long, timedelta(days=5)),
        RetentionRule("for_ever", for_ever, None),
    ]
    assert await Retention(rules=rules, clock=ManualClock()).sweep() == {"short": 5, "long": 1}
    assert (short.days, long.days, for_ever.days) == ([0, 1], [1, 4], [1000])


async def test_a_kind_that_fails_keeps_no_other_from_being_swept() -> None:
    broken, whole = Kind(9, fails=True), Kind(9)
    rules = [RetentionRule("broken", broken, timedelta(days=1)), RetentionRule("whole", whole, timedelta(days=1))]
    sweeping = Retention(rules=rules, clock=ManualClock())
    assert await sweeping.sweep() == {"whole": 1}
    broken.fails = False
    assert await sweeping.sweep() == {"broken": 1}
