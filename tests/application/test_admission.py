"""Admission with the real handlers: what an operator does to the queue, and what a trace shows of it."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from runtape.adapters.otel.spans import OpenTelemetrySpans
from runtape.application.submission import Requested
from runtape.domain.errors import Draining, NotWaiting, QueueFull
from runtape.domain.events import ExecutionRequested, Priority
from runtape.domain.execution import Execution
from runtape.domain.ids import ExecutionId
from runtape.domain.saga import GONE, SagaStep
from runtape.ports.admission import Gate
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import Change, Durability, UnitOfWork
from tests.application.world import ALICE, CAPACITY, World, a_submission, a_world
from tests.builders import EXITED, an_execution
from tests.clocks import START
from tests.contract.embedded.basic import quick_place
from tests.contract.suites.stores import change, saga_of

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
ONE = replace(CAPACITY, running=1, queued=3, queued_per_project=3)


@pytest.fixture
def folder() -> Iterator[Path]:
    with quick_place() as place:
        yield place


@pytest.fixture(params=[True, False], ids=["fused", "stepwise"])
def fused(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
async def world(folder: Path, fused: bool) -> AsyncIterator[World]:
    """A process with one place."""
    async with a_world(folder, fused=fused, capacity=ONE) as world:
        await world.start()
        yield world


async def busy(world: World, *scripts: str) -> tuple[ExecutionId, list[ExecutionId]]:
    """Take the place, and let `scripts` wait for it."""
    first = await world.submit("wait go")
    await world.until_status(first, "running")
    line = [await world.submit(script) for script in scripts]
    await world.until_quiet()
    return first, line


async def test_a_changed_priority_is_the_truth_and_survives_the_process(folder: Path, fused: bool) -> None:
    async with a_world(folder, fused=fused, capacity=ONE) as world:
        await world.start()
        _, (one, two) = await busy(world, "print 1", "print 2")
        saga, place = await world.control.rank(two, Priority.HIGH)
        assert (saga.priority, place and place.position) == (Priority.HIGH, 1)
        assert list(await world.queue.front(9)) == [two, one]
        assert (await world.get(two)).spec.priority is Priority.NORMAL, "what was asked for stays"
    async with a_world(folder, fused=fused, capacity=ONE, owner="worker-2") as again:
        await again.admission.restore()
        assert list(await again.queue.front(9)) == [two, one]


async def test_a_changed_priority_is_durable_before_it_is_told(folder: Path) -> None:
    commits: list[Change] = []

    class Watched:
        def __init__(self, inner: UnitOfWork) -> None:
            self._inner = inner

        async def commit(self, changes: Sequence[Change], handled_by: frozenset[str]) -> None:
            commits.extend(changes)
            await self._inner.commit(changes, handled_by)

    def wrap(stores: Any) -> Any:
        return replace(stores, unit_of_work=Watched(stores.unit_of_work))

    async with a_world(folder, capacity=ONE, wrap=wrap) as world:
        await world.start()
        _, (one,) = await busy(world, "print 1")
        commits.clear()
        await world.control.rank(one, Priority.LOW)
        await world.control.rank(one, Priority.LOW)
        assert [each.durability for each in commits] == [Durability.POWER], "the second time nothing changes"


async def test_who_waits_no_more_is_not_ranked(world: World) -> None:
    first, (one,) = await busy(world, "print 1")
    with pytest.raises(NotWaiting):
        await world.control.rank(first, Priority.HIGH)
    await world.submissions.cancel(ALICE, one, None)
    with pytest.raises(NotWaiting):
        await world.control.rank(one, Priority.HIGH)
    await world.until_quiet()
    assert (await world.queue.survey()).waiting == 0


async def test_a_grant_and_a_change_of_priority_at_once_leave_one_admitted(world: World) -> None:
    """Both change the saga; whoever comes second sees what the first did."""
    _, line = await busy(world, "wait on", "wait on")
    world.pods.let("go")
    changes = [world.control.rank(each, Priority.CRITICAL) for each in line[::-1]]
    await asyncio.gather(*changes, return_exceptions=True)
    await world.until_quiet()
    survey = await world.queue.survey()
    assert (survey.running, survey.waiting) == (1, 1)
    world.pods.let("on")
    for each in line:
        assert (await world.until_stored(each)).attempt == 1


async def test_while_it_is_paused_nobody_is_admitted_by_any_way(folder: Path, fused: bool) -> None:
    async with a_world(folder, fused=fused, capacity=ONE) as world:
        await world.control.pause()
        await world.start()
        ids = [await world.submit("print 1") for _ in range(3)]
        for _ in range(3):
            world.clock.advance(61)
            await world.sweeper.sweep()
            await world.until_quiet()
    async with a_world(folder, fused=fused, capacity=ONE, owner="worker-2") as again:
        await again.control.restore()
        assert (await again.queue.survey()).gate is Gate.PAUSED
        await again.start()
        again.clock.advance(61)
        await again.sweeper.sweep()
        await again.until_quiet()
        assert again.pods.started == []
        assert [(await again.get(each)).status for each in ids] == ["queued"] * 3
        await again.control.resume()
        for each in ids:
            assert (await again.until_stored(each)).status == "completed"


async def test_drain_refuses_the_new_and_keeps_the_old(world: World) -> None:
    _, (one,) = await busy(world, "print 1")
    assert (await world.control.drain(0)).running == 1
    with pytest.raises(Draining):
        await world.submit()
    drained = asyncio.ensure_future(world.control.drain(30))
    world.pods.let("go")
    survey = await drained
    assert (survey.gate, survey.running, survey.waiting) == (Gate.DRAINING, 0, 1)
    await world.control.resume()
    assert (await world.until_stored(one)).status == "completed"


async def test_a_full_line_tells_when_it_may_have_room(world: World) -> None:
    for _ in range(40):
        execution_id = await world.submit("wait slow")
        await world.until_started(PodKey(execution_id, 1))
        world.clock.advance(20)
        world.pods.end(PodKey(execution_id, 1), EXITED)
        await world.until_stored(execution_id)
        await world.until_quiet()
    await busy(world, *["print 1"] * 3)
    with pytest.raises(QueueFull) as refusal:
        await world.submit()
    assert 18 <= refusal.value.retry_after_s <= 20


async def test_a_saga_that_waits_for_nobody_ends_when_its_turn_comes(world: World) -> None:
    """Its execution is gone: a place is not spent on it, nor is it taken up by the next process."""
    first, _ = await busy(world)
    saga = replace(saga_of(an_execution("gone")), execution_id=ExecutionId("gone"))
    await world.stores.unit_of_work.commit([change(saga, 0)])
    await world.admission.requeue(saga)
    world.pods.let("go")
    await world.until_stored(first)
    await world.until_quiet()
    world.clock.advance(61)
    await world.sweeper.sweep()
    await world.until_quiet()
    ended = await world.stores.sagas.get(saga.execution_id)
    assert ended is not None
    assert (ended.step, ended.state, ended.reason) == (SagaStep.DONE, "failed", GONE)
    survey = await world.queue.survey()
    assert (survey.running, survey.waiting) == (0, 0)


async def test_the_end_of_an_execution_frees_its_place_also_when_its_saga_is_lost(world: World) -> None:
    first, (one,) = await busy(world, "print 1")
    sagas: Any = world.stores.sagas
    sagas.deleted(first)
    await sagas._database.write(lambda c: c.execute("delete from saga where execution_id = ?", (first,)).rowcount)
    world.pods.let("go")
    assert (await world.until_stored(one)).status == "completed"
    await world.until_quiet()
    survey = await world.queue.survey()
    assert (survey.running, survey.waiting) == (0, 0)


async def test_who_waits_stands_in_line_when_its_request_is_told_again(world: World) -> None:
    """Whoever stored the saga died before it brought it there."""
    first, (one, two) = await busy(world, "print 1", "print 2")
    await world.queue.release(one)
    assert list(await world.queue.front(9)) == [two]
    for execution_id in (one, two, first):
        await world.flow.handle(world.admission.on_requested, requested(await world.get(execution_id)))
    await world.until_quiet()
    assert sorted(await world.queue.front(9)) == [one, two]
    world.pods.let("go")
    for each in (one, two):
        assert (await world.until_stored(each)).attempt == 1
    await world.until_quiet()
    survey = await world.queue.survey()
    assert (survey.running, survey.waiting) == (0, 0)


async def test_who_waits_is_admitted_when_whoever_gave_a_place_back_has_died(world: World) -> None:
    """A place was given back, and nobody else is going to give one back."""
    first, (one,) = await busy(world, "print 1")
    await world.queue.release(first)
    await world.sweeper.sweep()
    assert (await world.until_stored(one)).attempt == 1
    world.pods.let("go")
    await world.until_stored(first)


def requested(execution: Execution) -> ExecutionRequested:
    """Return what was told when the execution was accepted."""
    return ExecutionRequested(
        execution_id=execution.id,
        project_id=execution.project_id,
        at=execution.created_at,
        version=1,
        lang=execution.spec.lang,
        lang_version=execution.spec.lang_version,
        priority=execution.spec.priority,
    )


# Traces


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def traced(folder: Path, fused: bool, exporter: InMemorySpanExporter) -> AsyncIterator[World]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with a_world(folder, fused=fused, capacity=ONE, spans=OpenTelemetrySpans(provider)) as world:
        await world.start()
        yield world


async def run(world: World, script: str, **changes: object) -> ExecutionId:
    requested = Requested("request-1", f"00-{TRACE_ID}-{PARENT_ID}-01")
    return await world.submissions.execute(ALICE, a_submission(script, **changes), requested)


def ns(seconds: float) -> int:
    return int((START.timestamp() + seconds) * 1e9)


async def spans_of(world: World, exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    await world.until_quiet()
    found = exporter.get_finished_spans()
    assert len({span.name for span in found}) == len(found)
    return {span.name: span for span in found}


async def test_each_step_is_a_span_in_the_trace_of_the_request(traced: World, exporter: InMemorySpanExporter) -> None:
    execution_id = await run(traced, "wait go", priority=Priority.HIGH)
    await traced.until_status(execution_id, "running")
    traced.clock.advance(3)
    assert exporter.get_finished_spans() == ()
    traced.pods.let("go")
    await traced.until_stored(execution_id)
    spans = await spans_of(traced, exporter)
    assert list(spans) == ["saga.queue", "saga.allocate", "saga.create", "saga.monitor", "saga.store"]
    for span in spans.values():
        assert span.parent is not None
        assert span.context is not None
        assert trace.format_trace_id(span.context.trace_id) == TRACE_ID
        assert trace.format_span_id(span.parent.span_id) == PARENT_ID
        attributes = dict(span.attributes or {})
        attempt = {"runtape.attempt": 1} if span.name in ("saga.create", "saga.monitor") else {}
        assert attributes == {
            "runtape.execution.id": execution_id,
            "runtape.execution.lang": "python",
            "runtape.execution.priority": "high",
            "runtape.saga.state": "completed",
            **attempt,
        }, "whose it is stays here"
        assert not span.events
    assert (spans["saga.monitor"].start_time, spans["saga.monitor"].end_time) == (ns(0), ns(3))


async def test_what_was_given_back_is_an_event_of_its_span(traced: World, exporter: InMemorySpanExporter) -> None:
    execution_id = await run(traced, "wait go")
    await traced.until_status(execution_id, "running")
    traced.clock.advance(2)
    await traced.submissions.cancel(ALICE, execution_id, "changed my mind")
    await traced.until_stored(execution_id)
    spans = await spans_of(traced, exporter)
    given_back = {name: [(event.name, event.timestamp) for event in span.events] for name, span in spans.items()}
    assert {name for name, events in given_back.items() if events == [("compensated", ns(2))]} == {
        "saga.allocate",
        "saga.create",
        "saga.monitor",
    }
    assert not given_back["saga.queue"] and not given_back["saga.store"]
    assert all(span.status.status_code is trace.StatusCode.UNSET for span in spans.values()), "cancelled is no failure"
    assert "changed my mind" not in exporter.get_finished_spans()[0].to_json()


async def test_a_step_that_we_failed_is_marked(traced: World, exporter: InMemorySpanExporter) -> None:
    execution_id = await run(traced, "fail gone")
    await traced.until_stored(execution_id)
    await traced.until_quiet()
    found = exporter.get_finished_spans()
    attempts = [(span.name, (span.attributes or {}).get("runtape.attempt")) for span in found]
    assert attempts[2:-1] == [(name, number) for number in (1, 2, 3) for name in ("saga.create", "saga.monitor")]
    failed = [span for span in found if span.status.status_code is trace.StatusCode.ERROR]
    assert [(span.name, span.status.description) for span in failed] == [("saga.monitor", "gone")] * 3


def test_without_an_sdk_nothing_is_told() -> None:
    assert not OpenTelemetrySpans(trace.NoOpTracerProvider()).recording
    assert not OpenTelemetrySpans(trace.ProxyTracerProvider()).recording
    assert OpenTelemetrySpans(TracerProvider()).recording
