"""One seed from beginning to end: a deployment, its clients, its faults, its quiet end, and what must hold then."""

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import structlog

from runtape.ports.errors import Transient
from runtape.runtime.roles import Role
from tests.simulation.clients import Client, draw_plan
from tests.simulation.faults import Mode
from tests.simulation.invariants import Checks
from tests.simulation.loop import Stuck
from tests.simulation.site import Service, Site
from tests.simulation.world import Life, Machine, Violation, World

STEPS = 400_000
"""How many callbacks a seed may take: about a hundred times the mean."""

SERVERS = ("blobs", "documents", "executions", "log", "outbox", "pods", "queue", "sagas", "tape", "unit")
"""What can fail by itself, as the traces name it."""

LOOK_S = 0.5
PAUSES = (
    "tape.append",
    "tape.append",
    "tape.append",
    "tape.reached",
    "tape.reached",
    "pods.start",
    "documents.write",
    "unit.commit",
    "executions.extend_lease",
)
"""Calls before which it matters most that a process stands still."""

AT_A_CALL_S = (100.0, 150.0)
"""How long it stands still there: for so long that its attempts are taken for lost."""

AT_ANY_MOMENT_S = (1.0, 4.0, 40.0, 100.0, 150.0)

GRACE_S = 1500.0
"""The time in which everything must come to its end once the faults have ended: an attempt that was lost is taken up
after its lease, up to three times, and what waits in line is looked at every five minutes."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a seed."""

    seed: int
    violation: Violation | None
    trace: tuple[str, ...]
    mode: Mode
    steps: int
    calls: int
    virtual_s: float


def run_seed(seed: int, echo: Callable[[str], None] | None = None, *, traced: bool = True) -> Ran:
    """Run one seed; the same seed gives the same trace, if it is `traced`."""
    world = World(seed, echo, traced=traced)
    with _silent(world):
        try:
            world.note("world", str(world.mix))
            world.loop.run(Simulation(world).main(), limit=STEPS)
        except Violation as violation:
            world.violated(violation.invariant, str(violation).partition(": ")[2])
        except Stuck as stuck:
            world.violated("I19", str(stuck))
        finally:
            world.close()
    return Ran(
        seed=seed,
        violation=world.violation,
        trace=tuple(world.trace),
        mode=world.mix.mode,
        steps=world.loop.steps,
        calls=world.calls,
        virtual_s=world.loop.time(),
    )


class Simulation:
    """The world's own course: it starts, stops, kills and restarts."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.site = Site(world)
        self.machines = [Machine(world, f"p{number}") for number in range(1, world.mix.processes + 1)]
        self._roles = self._share_out()
        self._lives: dict[Machine, int] = dict.fromkeys(self.machines, 0)
        self._running: dict[Machine, Service] = {}
        random = Random(f"plans {world.seed}")
        self.clients = [
            Client(self.site, draw_plan(random, number, world.mix.chaos_s)) for number in range(world.mix.clients)
        ]

    def _share_out(self) -> dict[Machine, list[Role]]:
        """Say which machine runs which roles."""
        if not self.world.mix.split:
            return {machine: list(Role) for machine in self.machines}
        random = self.world.random
        shared: dict[Machine, list[Role]] = {machine: [] for machine in self.machines}
        for role in Role:
            holders = random.sample(self.machines, random.randint(1, len(self.machines)))
            if role is Role.POD_MONITOR and random.random() < 0.5:
                # Apart from the sweeper: who has heard of a pod's end does not take its attempt for lost.
                apart = [machine for machine in self.machines if Role.SAGA_ORCHESTRATOR not in shared[machine]]
                holders = apart or holders
            for machine in holders:
                shared[machine].append(role)
        return shared

    async def main(self) -> None:
        """Run the world to its end."""
        world, mix, random = self.world, self.world.mix, self.world.random
        for machine in self.machines:
            self._start(machine)
        for count, act in (
            (mix.outages, self._outage),
            (mix.crashes, self._crash),
            (mix.pauses, self._pause),
            (mix.stops, self._stop),
            (mix.jumps, self._jump),
            (mix.rebalances, self._rebalance),
            (mix.poison, self.site.poison),
        ):
            for _ in range(count):
                world.loop.in_world(random.uniform(0.0, mix.chaos_s), act)
        self._look()
        clients = [world.loop.create_task(client.live(), name="client") for client in self.clients]
        await asyncio.sleep(mix.chaos_s)
        self._calm_down()
        done, late = await asyncio.wait(clients, timeout=GRACE_S)
        for task in done:
            task.result()
        if late:
            waiting = [f"client-{client.plan.number} ({client.id})" for client in self.clients if not client.ended]
            raise Violation("I1", f"no end for {', '.join(waiting)}")
        await Checks(self.site, self.clients, lambda: list(self._running.values())).everything()

    # Lives.

    def _start(self, machine: Machine) -> None:
        if machine in self._running:
            return
        self._lives[machine] += 1
        life = Life(machine, self._lives[machine])
        random = self.world.random
        if not self.world.calm and self.world.mix.crashes and random.random() < 0.3:
            life.dies_at_call = random.randrange(1, 400)
        service = Service(self.site, life, self._roles[machine])
        if not self.world.calm and self.world.mix.pauses and random.random() < 0.7:
            life.pauses_at = random.choice(PAUSES)
        life.on_death = lambda: self._kill(machine, service)
        life.on_pause = lambda: self._stand_still(life, AT_A_CALL_S)
        self._running[machine] = service
        self.site.services.append(service)
        self.world.note(life, f"starts as {service.owner} with {', '.join(service.roles)}")
        self.world.loop.create_task(self._starting(machine, service), name="start", context=life.context)

    async def _starting(self, machine: Machine, service: Service) -> None:
        try:
            await service.start()
        except Transient as error:  # a process that cannot recover ends, and the next one tries
            self.world.note(service.life, f"cannot start: {error}")
            self._kill(machine, service)

    def _kill(self, machine: Machine, service: Service) -> None:
        """Let the process die at once, and another one start later."""
        if not service.life.alive:
            return
        self.world.note(service.life, "dies")
        self.world.loop.kill(service.life)
        self._gone(machine, service)

    def _gone(self, machine: Machine, service: Service) -> None:
        if self._running.get(machine) is service:
            del self._running[machine]
            self.site.bury(service)
            self.site.observe()
            delay_s = 0.0 if self.world.calm else self.world.random.choice((0.0, 1.0, 15.0))
            self.world.loop.in_world(delay_s, self._start, machine)

    # Faults.

    def _any(self) -> tuple[Machine, Service] | None:
        running = list(self._running.items())
        return running[int(self.world.random.random() * len(running))] if running and not self.world.calm else None

    def _outage(self) -> None:
        random = self.world.random
        self.world.fail(random.choice(SERVERS), random.uniform(0.5, 20.0))

    def _crash(self) -> None:
        if (chosen := self._any()) is not None:
            self._kill(*chosen)

    def _pause(self) -> None:
        """Stop a process as SIGSTOP does, for long enough that its leases run out, or not."""
        if (chosen := self._any()) is not None:
            self._stand_still(chosen[1].life, AT_ANY_MOMENT_S)

    def _stand_still(self, life: Life, lengths_s: Sequence[float]) -> None:
        self.world.note(life, "is paused")
        self.world.loop.pause(life)
        self.world.loop.in_world(self.world.random.choice(lengths_s), self._resume, life)

    def _resume(self, life: Life) -> None:
        if life.paused:
            self.world.note(life, "goes on")
            self.world.loop.resume(life)

    def _stop(self) -> None:
        chosen = self._any()
        if chosen is None or not chosen[1].started or chosen[1].life.paused:
            return
        machine, service = chosen

        async def stop() -> None:
            self.world.note(service.life, "stops")
            service.started = False
            await service.stop()
            # What was written on the way out is carried out before the next one opens the store.
            await asyncio.sleep(1.0)
            self._kill(machine, service)

        self.world.loop.create_task(stop(), name="stop", context=service.life.context)

    def _jump(self) -> None:
        """Let a wall clock jump, until the faults end; whoever wrote times under it may die soon after."""
        random = self.world.random
        machine = self.machines[int(random.random() * len(self.machines))]
        seconds = random.choice((-3600.0, -60.0, 3600.0, 3600.0))
        self.world.note(machine.name, f"its clock jumps by {seconds} s")
        machine.clock.shift(seconds)
        if self.world.mix.crashes and seconds > 0.0:
            self.world.loop.in_world(random.uniform(5.0, 25.0), self._crash_on, machine)

    def _crash_on(self, machine: Machine) -> None:
        service = self._running.get(machine)
        if service is not None and not self.world.calm:
            self._kill(machine, service)

    def _rebalance(self) -> None:
        for group in list(self.site.broker.groups):
            self.site.broker.rebalance(group)

    def _look(self) -> None:
        self.site.look_at_offsets()
        if not self.world.calm and not self.site.cluster:
            self.world.loop.in_world(LOOK_S, self._look)

    def _calm_down(self) -> None:
        """End the faults; who stands still does so for its time."""
        self.world.note("world", "the faults end")
        self.world.calm = True
        for machine in self.machines:
            machine.clock.put_right(machine.skew_s)


@contextlib.contextmanager
def _silent(world: World) -> Iterator[None]:
    """Keep the product's log from being written, and forgotten coroutines from being mourned."""
    configuration = structlog.get_config()
    hook = sys.unraisablehook

    def read(logger: Any, method: str, event: Any) -> Any:
        raise structlog.DropEvent

    structlog.configure(processors=[read])
    sys.unraisablehook = lambda _: None
    try:
        yield
    finally:
        structlog.configure(**configuration)
        sys.unraisablehook = hook
