"""Every message says which request it belongs to, and what led to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from runtape.application.submission import Requested
from runtape.domain.events import Correlation, Message
from runtape.domain.ids import ExecutionId
from tests.application.world import ALICE, World, a_submission, a_world
from tests.contract.embedded.basic import quick_place

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_place() as place:
        yield place


async def messages_of(world: World, execution_id: ExecutionId) -> list[Message]:
    await world.until_stored(execution_id)
    return [message for message in await world.messages() if message.execution_id == execution_id]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "stepwise"])
async def test_all_that_a_request_leads_to_has_its_correlation_and_its_cause(folder: Path, fused: bool) -> None:
    async with a_world(folder, fused=fused) as world:
        await world.start()
        asked = Requested("request-7", TRACEPARENT)
        execution = await world.submissions.execute(ALICE, a_submission("print 1\nwait go"), asked)
        await world.until_status(execution, "running")
        world.pods.let("go")
        found = await messages_of(world, execution)
    assert {message.correlation for message in found} == {Correlation("request-7", TRACEPARENT)}
    assert {message.type: message.causation_id for message in found} == {
        "execution.requested": None,
        "pod.create": f"{execution}.1",
        "execution.started": f"{execution}.create.1",
        "execution.completed": None,  # the program's own end
        "result.stored": f"{execution}.3",
    }


async def test_restart_belongs_to_the_first_request(folder: Path) -> None:
    async with a_world(folder, fused=False) as world:
        await world.start()
        execution = await world.submissions.execute(ALICE, a_submission("fail gone"), Requested("request-8", None))
        found = await messages_of(world, execution)
    assert {message.correlation and message.correlation.id for message in found} == {"request-8"}
    second = next(message for message in found if message.type == "pod.create" and message.attempt == 2)
    assert second.causation_id == f"{execution}.3"


async def test_request_without_a_trace_begins_one(folder: Path) -> None:
    async with a_world(folder) as world:
        await world.start()
        executions = [await world.submit("print 1") for _ in range(2)]
        found = [await world.until_stored(execution) for execution in executions]
    first, second = (execution.correlation for execution in found)
    assert first is not None
    assert second is not None
    assert (first.id, second.id) == tuple(executions)
    assert first.traceparent != second.traceparent
