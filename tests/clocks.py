"""Time and ids that a test decides."""

from datetime import UTC, datetime, timedelta

START = datetime(2026, 1, 5, 9, 30, tzinfo=UTC)


class ManualClock:
    """`Clock` that stands still until it is moved; both of its times move together, but for a jump."""

    def __init__(self) -> None:
        self._elapsed = timedelta()
        self._jumped = timedelta()

    def now(self) -> datetime:
        return START + self._elapsed + self._jumped

    def monotonic_s(self) -> float:
        return 1000.0 + self._elapsed.total_seconds()

    def advance(self, seconds: float) -> None:
        self._elapsed += timedelta(seconds=seconds)

    def jump(self, seconds: float) -> None:
        """Set the wall clock and nothing else."""
        self._jumped += timedelta(seconds=seconds)


class CountingIds:
    """`Ids` that count, each in a form that a reader recognises."""

    def __init__(self) -> None:
        self._count = 0

    def new_id(self) -> str:
        self._count += 1
        return f"id-{self._count:06d}"

    def new_traceparent(self) -> str:
        return f"00-{self._count:032x}-{self._count:016x}-01"

    def new_secret(self) -> str:
        self._count += 1
        return f"secret-{self._count:06d}".ljust(43, "x")
