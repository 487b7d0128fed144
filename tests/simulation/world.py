"""One seed's world: its loop and time, its random choices, its trace, its processes, and what went wrong in it."""

from collections.abc import Callable
from datetime import datetime, timedelta
from enum import Enum
from random import Random
from typing import Any

from runtape.ports.errors import Transient
from tests.clocks import START, CountingIds
from tests.simulation.faults import Mix, draw_mix
from tests.simulation.loop import Process, SimulatedLoop

TAIL_S = 8.0
"""The longest that a way to a server takes."""


class Violation(Exception):
    """An invariant does not hold."""

    def __init__(self, invariant: str, what: str) -> None:
        super().__init__(f"{invariant}: {what}")
        self.invariant = invariant


class Failing(Enum):
    """How a call fails."""

    NOT = 0
    BEFORE = 1
    """It had no effect."""
    AFTER = 2
    """It took effect, and its caller is not told."""


class SimulatedClock:
    """`Clock` of one machine: its wall clock is off and jumps, its monotonic time is everybody's."""

    def __init__(self, loop: SimulatedLoop, off_s: float) -> None:
        self._loop = loop
        self.off = timedelta(seconds=off_s)

    def now(self) -> datetime:
        return START + timedelta(seconds=self._loop.time()) + self.off

    def monotonic_s(self) -> float:
        return 1000.0 + self._loop.time()

    def shift(self, seconds: float) -> None:
        """Let the wall clock jump."""
        self.off += timedelta(seconds=seconds)

    def put_right(self, off_s: float) -> None:
        """Let the wall clock jump to where it is off by `off_s`."""
        self.off = timedelta(seconds=off_s)


def mix_of(seed: int) -> Mix:
    """Return what may go wrong in the world of a seed."""
    return draw_mix(Random(f"mix {seed}"))


class World:
    """What everything in a simulation shares."""

    def __init__(self, seed: int, echo: Callable[[str], None] | None = None, *, traced: bool = True) -> None:
        self.seed = seed
        self.traced = traced
        """Whether anybody wants the trace, which takes a tenth of a seed's time."""
        self.mix = mix_of(seed)
        self.random = Random(f"world {seed}")
        self.loop = SimulatedLoop(self.random)
        self.ids = CountingIds()
        self.trace: list[str] = []
        self.violation: Violation | None = None
        self.calm = False
        """Whether the faults have ended."""
        self.closed = False
        self._echo = echo
        self._down_until_s: dict[str, float] = {}
        self.calls = 0
        """How many calls the processes made to their servers."""
        self.loop.on_error = self._broken

    def note(self, who: object, what: str) -> None:
        """Add a line to the trace, until the world is closed."""
        if self.closed or not self.traced:
            return
        line = f"{self.loop.time():11.6f} {who} {what}"
        self.trace.append(line)
        if self._echo is not None:
            self._echo(line)

    def violated(self, invariant: str, what: str) -> None:
        """Say that an invariant does not hold; the run ends at the next turn."""
        if self.violation is None:
            self.violation = Violation(invariant, what)
            self.note("!", str(self.violation))
            self.loop.halted = True

    def require(self, holds: object, invariant: str, what: str) -> None:
        """Say that an invariant does not hold, unless it does."""
        if not holds:
            self.violated(invariant, what)

    def close(self) -> None:
        """End everything."""
        self.closed = True
        self.loop.close()

    def _broken(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Transient):  # told to nobody: whoever asked has died or gives up
            return
        self.violated("no failure is left over", f"{context['message']}: {error!r}")

    # Choices.

    def happens(self, rate: float) -> bool:
        """Whether a fault of that rate happens now."""
        return rate > 0.0 and not self.calm and self.random.random() < rate

    def way_s(self) -> float:
        """Return how long something is on its way."""
        mix, random = self.mix, self.random
        if mix.tail and not self.calm and random.random() < mix.tail:
            return random.uniform(0.5, TAIL_S)
        return mix.latency_s * 2.0 * random.random()

    def fail(self, server: str, seconds: float) -> None:
        """Let every call of `server` fail for a while."""
        self.note("world", f"{server} fails for {seconds:.1f} s")
        self._down_until_s[server] = self.loop.time() + seconds

    def failing(self, label: str) -> Failing:
        """Return whether the call that is made now, as ``server.method``, fails."""
        if not self.calm and self._down_until_s.get(label.partition(".")[0], 0.0) > self.loop.time():
            return Failing.BEFORE
        if label == "log.publish" and self.happens(self.mix.refusals):
            return Failing.BEFORE
        if not self.happens(self.mix.failure):
            return Failing.NOT
        return Failing.AFTER if self.random.random() < 0.4 else Failing.BEFORE


class Machine:
    """Where one process after another runs: it has a name, a wall clock and a place for what outlives them."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        skew_s = world.mix.skew_s
        self.skew_s = world.random.uniform(-skew_s, skew_s)
        self.clock = SimulatedClock(world.loop, self.skew_s)


class Life(Process):
    """One process of the service, from its start to its death."""

    def __init__(self, machine: Machine, number: int) -> None:
        super().__init__(f"{machine.name}.{number}")
        self.machine = machine
        self.clock = machine.clock
        self.dies_at_call: int | None = None
        self.pauses_at: str | None = None
        """The call, as ``server.method``, before which the process stands still."""
        self.on_death: Callable[[], None] = lambda: None
        self.on_pause: Callable[[], None] = lambda: None
