"""What every set of `Expirable` stores does: executions, tapes and events."""

import asyncio
from abc import abstractmethod
from dataclasses import replace
from datetime import timedelta

from runtape.domain.events import EXECUTION_EVENTS
from runtape.domain.execution import Execution
from runtape.domain.ids import EventId, ExecutionId
from runtape.ports.events import EventFilter
from runtape.ports.log import Delivery
from runtape.ports.pod_runtime import PodKey
from tests.builders import an_execution, records, requested, started
from tests.clocks import START
from tests.contract.suites.stores import Stores, StoresBasic, acceptance, change, over, saga_of, stored

DAY = timedelta(days=1)


def of_day(number: int, execution: Execution) -> Execution:
    return replace(execution, id=ExecutionId(f"execution-{number}"), created_at=START + number * DAY)


async def with_tapes(stores: Stores, *executions: Execution) -> None:
    await stored(stores, *executions)
    for execution in executions:
        await stores.tape.append(PodKey(execution.id, 1), records("a", "b"))


async def kept_tapes(stores: Stores, *executions: Execution) -> list[bool]:
    return [await stores.tape.kept(PodKey(execution.id, 1)) for execution in executions]


class ExpirableContract(StoresBasic):
    async def test_older_executions_go_with_all_that_is_theirs(self, stores: Stores) -> None:
        ended = [of_day(number, over(requested(an_execution(key=f"k{number}")))) for number in range(5)]
        await with_tapes(stores, *ended)
        await stored(stores, *(saga_of(execution) for execution in ended))
        prune = stores.expirable["executions"].prune
        assert await prune(START + 3 * DAY, 2) == 2
        assert [await stores.executions.get(each.id) for each in ended] == [None, None, *ended[2:]]
        assert await prune(START + 3 * DAY, 2) == 1
        assert await prune(START + 3 * DAY, 2) == 0
        assert [await stores.executions.get(each.id) for each in ended] == [None, None, None, *ended[3:]]
        assert [await stores.sagas.get(each.id) is None for each in ended] == [True, True, True, False, False]
        assert await kept_tapes(stores, *ended) == [False, False, False, True, True]
        assert await stores.executions.by_idempotency_key(ended[0].user_id, "k0") is None

    async def test_an_execution_that_is_not_over_stays_with_its_tape(self, stores: Stores) -> None:
        first, live, last = (
            of_day(0, over(requested(an_execution()))),
            of_day(1, started(requested(an_execution()))),
            of_day(2, over(requested(an_execution()))),
        )
        await with_tapes(stores, first, live, last)
        for kind in ("tapes", "executions"):
            while await stores.expirable[kind].prune(START + 9 * DAY, 100):
                pass
        assert await stores.executions.get(live.id) == live
        assert await kept_tapes(stores, live) == [True]
        assert await stores.executions.get(first.id) is None
        assert await stores.executions.get(last.id) is None

    async def test_older_tapes_go_and_their_results_stay(self) -> None:
        ended = [of_day(number, over(requested(an_execution()))) for number in range(4)]
        async with self.open() as stores:
            await with_tapes(stores, *ended)
            assert await stores.expirable["tapes"].prune(START + 2 * DAY, 1) == 1
            assert await kept_tapes(stores, *ended) == [False, True, True, True]
        async with self.open() as stores:  # where it was is known to the next process
            assert await stores.expirable["tapes"].prune(START + 2 * DAY, 100) == 1
            assert await stores.expirable["tapes"].prune(START + 2 * DAY, 100) == 0
            assert await kept_tapes(stores, *ended) == [False, False, True, True]
            assert [await stores.executions.get(each.id) for each in ended] == ended

    async def test_tapes_of_new_executions_are_found_after_all_old_ones_are_gone(self, stores: Stores) -> None:
        old, new = of_day(0, over(requested(an_execution()))), of_day(1, over(requested(an_execution())))
        await with_tapes(stores, old)
        for kind in ("tapes", "executions"):
            assert await stores.expirable[kind].prune(START + DAY, 100) == 1
        await with_tapes(stores, new)
        assert await stores.expirable["tapes"].prune(START + 2 * DAY, 100) == 1
        assert await kept_tapes(stores, new) == [False]

    async def test_large_tapes_go_a_few_at_a_time(self, stores: Stores) -> None:
        ended = [of_day(number, over(requested(an_execution()))) for number in range(3)]
        await stored(stores, *ended)
        for execution in ended:
            await stores.tape.append(PodKey(execution.id, 1), records(bytes(6 << 20)))
        assert await stores.expirable["tapes"].prune(START + 9 * DAY, 100) == 1
        assert await stores.expirable["tapes"].prune(START + 9 * DAY, 100) == 1
        assert await kept_tapes(stores, *ended) == [False, False, True]


class EventsOfLiveExecutionsContract(StoresBasic):
    async def handle(self, stores: Stores, count: int) -> None:
        """Have all `count` messages of the log handled, where events are kept until they are."""

    async def test_events_of_what_is_not_over_stay_until_it_is(self) -> None:
        names = ["live-1", "live-2", "done-1", "live-3", "done-2", "done-3", "newest"]
        async with self.open() as stores:
            for name in names:
                await stores.unit_of_work.commit([acceptance(an_execution(name))])
            for name in names:
                if name.startswith("done"):
                    await stores.unit_of_work.commit([change(over(requested(an_execution(name))), 1)])
            await self.handle(stores, len(names))
        async with self.open() as stores:
            assert await told(stores) == {*names}
            prune = stores.expirable["events"].prune
            assert await prune(START, 100) == 0, "not older"
            assert await prune(START + DAY, 2) == 2, "as many as are wanted, beyond those that stay"
            assert await told(stores) == {*names} - {"done-1", "done-2"}
            assert [await prune(START + DAY, 2) for _ in range(2)] == [1, 0]
            assert await told(stores) == {"live-1", "live-2", "live-3", "newest"}
            assert await stores.events.get(EventId("done-3.1")) is None
            assert await stores.events.get(EventId("live-3.1")) is not None
            digest = await stores.events.digest()
            await stores.events.rebuild()
            assert await stores.events.digest() == digest
            await stores.unit_of_work.commit([change(over(requested(an_execution("live-2"))), 1)])
            assert [await prune(START + DAY, 1) for _ in range(2)] == [1, 0]
            assert await told(stores) == {"live-1", "live-3", "newest"}


async def told(stores: Stores) -> set[str]:
    """Return the executions that there are events of."""
    found = await stores.events.browse(EventFilter(), 100)
    return {event.execution_id for event in found.events}


class ExpirableEventsContract(StoresBasic):
    @abstractmethod
    def plant(self, topic: str, key: str, type: str, body: bytes | str) -> int:
        """Put a row into the log past all code, while nothing is open, and return its offset."""

    async def test_what_cannot_be_read_goes_with_its_neighbours(self) -> None:
        at = b'{"at":"%s"}'
        bodies = [
            b"",
            b"\xff",
            b"[" * 5000,
            b"{}",
            b'{"at":3}',
            at % b"soon",
            at % b"\xff",
            at % b"2026-01-05T09:30:00",
            "x",
        ]
        async with self.open() as stores:
            await stored(stores, over(requested(an_execution("done"))))
        for body in bodies:
            self.plant(EXECUTION_EVENTS, "done", "execution.completed", body)
        async with self.open() as stores:
            for name in ("old", "newest"):
                await stores.unit_of_work.commit([acceptance(an_execution(name))])
            seen = stores.log.consume("group", (EXECUTION_EVENTS,))
            for _ in range(len(bodies) + 2):
                stores.log.acknowledge("group", await anext(seen))
            await seen.aclose()  # pyright: ignore[reportAttributeAccessIssue]
        async with self.open() as stores:
            assert await stores.expirable["events"].prune(START + DAY, 100) == len(bodies)
            assert await stores.expirable["events"].prune(START + DAY, 100) == 0

    async def test_only_handled_events_of_what_is_over_go(self) -> None:
        live, done = requested(an_execution("live")), over(requested(an_execution("done")))
        async with self.open() as stores:
            for execution in (an_execution("live"), an_execution("done"), an_execution("newest")):
                await stores.unit_of_work.commit([acceptance(execution)])
            assert await stores.events.get(EventId("done.1")) is not None
            await stores.unit_of_work.commit([change(done, 1)])
            prune = stores.expirable["events"].prune
            assert await prune(START + DAY, 100) == 0, "nobody has handled them"
            seen = stores.log.consume("group", (EXECUTION_EVENTS,))
            for _ in range(3):
                stores.log.acknowledge("group", await anext(seen))
            await seen.aclose()  # pyright: ignore[reportAttributeAccessIssue]
        async with self.open() as stores:
            prune = stores.expirable["events"].prune
            assert await prune(START, 100) == 0, "not older"
            assert await prune(START + DAY, 100) == 1
            assert await prune(START + DAY, 100) == 0
            found: list[str] = []
            async with asyncio.timeout(5):
                async for delivery in stores.log.consume("another", (EXECUTION_EVENTS,)):
                    assert isinstance(delivery, Delivery)
                    found.append(delivery.message.execution_id)
                    if len(found) == 2:
                        break
            assert found == [live.id, "newest"]
            assert await stores.events.get(EventId("done.1")) is None
            told = await stores.events.browse(EventFilter(), 10)
            assert {event.execution_id for event in told.events} == {live.id, "newest"}
            digest = await stores.events.digest()
            await stores.events.rebuild()
            assert await stores.events.digest() == digest
