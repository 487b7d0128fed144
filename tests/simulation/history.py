"""What must hold of an execution's document at every moment (invariants I2, I3, I4 of the documents)."""

from runtape.domain.execution import MAX_ATTEMPTS, Execution
from runtape.domain.ids import ExecutionId
from tests.domain.test_execution_machine import NEXT, TERMINAL
from tests.simulation.world import World


class Histories:
    """The newest state of each document that anybody has seen stored."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._seen: dict[ExecutionId, Execution] = {}

    def observe(self, execution: Execution) -> None:
        """Compare a stored document with what it was before."""
        world, before = self._world, self._seen.get(execution.id)
        self._seen[execution.id] = execution
        if before is execution:
            return
        name = f"{execution.id}@{execution.version}"
        if before is not None:
            world.require(execution.version >= before.version, "I3", f"{name} was at version {before.version}")
            world.require(
                execution.history[: before.version] == before.history, "I3", f"{name} has another past than before"
            )
            if before.outcome is not None:
                world.require(execution.outcome == before.outcome, "I2", f"{name} had ended as {before.outcome}")
            if before.result is not None:
                world.require(execution.version == before.version, "I2", f"{name} changed after its result")
        previous = ""
        for number, step in enumerate(execution.history, 1):
            world.require(step.version == number, "I3", f"{name}: step {number} has version {step.version}")
            world.require(step.type in NEXT[previous], "I3", f"{name}: {step.type} after {previous}")
            previous = step.type
        ends = sum(step.type in TERMINAL for step in execution.history)
        world.require(ends <= 1, "I2", f"{name} ended {ends} times")
        world.require(execution.attempt <= MAX_ATTEMPTS, "I4", f"{name} is at attempt {execution.attempt}")
        world.require(
            (execution.due_at is None) == (execution.result is not None), "I1", f"{name} has nobody who looks after it"
        )
