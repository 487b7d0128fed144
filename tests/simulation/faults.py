"""What may go wrong in one seed's world: each seed switches some kinds of faults off (swarm testing)."""

from dataclasses import dataclass
from enum import StrEnum
from random import Random

from runtape.ports.admission import Capacity

KINDS = 17
"""How many kinds of faults can be off."""


class Mode(StrEnum):
    """The shapes of a deployment."""

    FUSED = "fused"
    """One process over SQLite; chains are committed at once."""
    STEPWISE = "stepwise"
    """One process over SQLite; each step is committed by itself."""
    CLUSTER = "cluster"
    """Two or three processes over shared servers, without a transaction over documents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """The deployment and the faults of a world; rates are probabilities per occasion, times in seconds."""

    mode: Mode
    processes: int
    """How many run at once."""
    split: bool
    """Whether each role runs in a process of its choice, rather than all of them in each."""
    clients: int
    capacity: Capacity
    latency_s: float
    """Mean time on the way to a server, and back."""
    tail: float
    """How often a way takes seconds."""
    failure: float
    """How often a call fails, before or after it took effect."""
    refusals: float
    """How often the log refuses a message."""
    outages: int
    """How often one of the servers, as all processes see it, fails every call for some seconds."""
    crashes: int
    pauses: int
    stops: int
    """Orderly stops, with a start right after."""
    jumps: int
    """How often the wall clock of a process jumps, by up to an hour either way."""
    skew_s: float
    """How far the wall clocks of two processes are apart at the most."""
    duplicates: float
    """How often the log delivers a message again."""
    losses: float
    """How often the log loses a message for one group."""
    deaf: float
    """How often a nudge of the live feed is lost."""
    rebalances: int
    poison: int
    """Messages that no handler can take."""
    pods_outlive: bool
    """Whether pods outlive their worker until their lease ends, or die with it."""
    busy_pods: float
    """How often a pod cannot be started just now."""
    drops: float
    """How often a client's connection breaks, per batch of frames."""
    impatience: float
    """How often a client gives up on a request and sends it again."""
    allowance: int
    """Requests that one user may send at once."""
    chaos_s: float
    """When the faults end."""

    @property
    def stepwise(self) -> bool:
        """Whether messages come back through the embedded log."""
        return self.mode is Mode.STEPWISE

    @property
    def harmless(self) -> bool:
        """Whether nothing here can cost a run an attempt."""
        stopped = self.crashes or self.pauses or self.stops or self.jumps
        return not (
            stopped or self.outages or self.refusals or self.failure or self.losses or self.tail or self.busy_pods
        )

    @property
    def gentle(self) -> bool:
        """Whether nothing here can part a process that goes on from its pods."""
        return not (self.pauses or self.outages or self.refusals or self.failure or self.tail)


def draw_mix(random: Random) -> Mix:
    """Draw the mix of a seed: in one of four only a single kind of fault is left, which then shows what it does."""
    lone = random.randrange(KINDS) if random.random() < 0.25 else None
    kinds = iter(range(KINDS))

    def off_now(off: float) -> bool:
        drawn, kind = random.random(), next(kinds)
        return drawn < off if lone is None else kind != lone

    def sometimes(*values: float, off: float = 0.5) -> float:
        value = random.choice(values)
        return 0.0 if off_now(off) else value

    def some(most: int, off: float = 0.5) -> int:
        count = random.randint(1, most)
        return 0 if off_now(off) else count

    mode = random.choice((Mode.FUSED, Mode.STEPWISE, Mode.CLUSTER, Mode.CLUSTER))
    cluster = mode is Mode.CLUSTER
    running = random.randint(1, 4)
    return Mix(
        mode=mode,
        processes=random.randint(2, 3) if cluster else 1,
        split=cluster and random.random() < 0.5,
        clients=random.randint(2, 6),
        capacity=Capacity(
            running=running,
            running_per_project=random.randint(1, running),
            running_per_lang=running,
            queued=random.choice((2, 20, 20)),
            queued_per_project=20,
        ),
        latency_s=random.choice((0.0, 0.001, 0.02)),
        tail=sometimes(0.002, 0.01, off=0.6),
        failure=sometimes(0.01, 0.05, 0.2),
        refusals=sometimes(0.1, 0.5, off=0.6),
        outages=some(3, off=0.6),
        crashes=some(4, off=0.35),
        pauses=some(2, off=0.35),
        stops=some(2, off=0.7),
        jumps=some(3),
        skew_s=sometimes(0.5, 2.0),
        duplicates=sometimes(0.1, 0.3),
        losses=sometimes(0.05, 0.2, off=0.6),
        deaf=sometimes(0.1, 0.5),
        rebalances=some(3, off=0.6),
        poison=some(2, off=0.8),
        pods_outlive=cluster and random.random() < 0.5,
        busy_pods=sometimes(0.1, 0.3, off=0.6),
        drops=sometimes(0.05, 0.2),
        impatience=sometimes(0.1, 0.3),
        allowance=random.choice((3, 10, 50)),
        chaos_s=random.uniform(20, 90),
    )
