"""Records what this version writes: `.venv/bin/python -m tests.history.record tests/history/VERSION`.

Run it when a version is released; what is there is never recorded again.  Real handlers write real stores, over
simulated pods and a clock that the recording moves.  The folder then has

``messages.jsonl``    the log: ``{offset, topic, key, type, body}``, the body byte for byte as it was stored
``executions.jsonl``  every execution document, byte for byte
``sagas.jsonl``       every saga document, byte for byte
``*.avsc``            the schema of every message
"""

import asyncio
import sqlite3
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from runtape.application.submission import Submission
from runtape.domain.events import Priority
from runtape.domain.execution import OnInterrupt
from runtape.domain.ids import ExecutionId
from runtape.ports.admission import Capacity
from runtape.ports.pod_runtime import PodKey
from scripts import schemas
from tests.application.world import ALICE, World, a_submission, a_world
from tests.clocks import CountingIds, ManualClock

CAPACITY = Capacity(running=2, running_per_project=2, running_per_lang=2, queued=50, queued_per_project=50)

LEAVES = "leave figure-1.png drawn\nleave Übung/ä.txt text\nomit too_large 2\nomit not_regular 1\nprint done"


def submissions() -> list[Submission]:
    """Return a request for each way in which an execution goes its way by itself."""
    return [
        a_submission("print 1\neprint 2\nbytes ff00fe"),
        a_submission("print 1", lang="bash", timeline=True, priority=Priority.BACKGROUND, stdin=b"\0\xff"),
        a_submission(LEAVES, args=("a", "b c"), env={"NAME": "wert"}, files=(("data/in.csv", b"1,2\n"),)),
        a_submission("# " + "long " * 2_000 + "\nexit 3", limits={"wall_s": 2.5, "memory_mb": 64}),
        a_submission("end memory_limit", idempotency_key="order-4711"),
        a_submission("end wall_limit"),
        a_submission("end time_limit"),
        a_submission("end output_limit"),
        a_submission("print 1\nfail out_of_boxes"),
        a_submission("fail gone", on_interrupt=OnInterrupt.FAIL),
        a_submission("end signalled", requirements=("six>=1.16",), priority=Priority.CRITICAL),
    ]


async def a_life(world: World) -> None:
    """Carry out all requests, one retry and both cancellations, and leave one running and one queued."""
    await world.start()
    made: list[ExecutionId] = []
    for submission in submissions():
        made.append(await world.submissions.execute(ALICE, submission))
        await world.until_stored(made[-1])
        world.clock.advance(0.0123)
    retried = await world.submissions.retry(ALICE, made[4], None)
    await world.until_stored(retried)

    running = await world.submit("print 1\nwait cancelled")
    await world.until_started(PodKey(running, 1))
    world.clock.advance(1)
    await world.submissions.cancel(ALICE, running, "nicht mehr nötig")
    await world.until_stored(running)

    lost = [await world.submit("print 1\nwait next-life") for _ in range(2)]
    for execution in lost:
        await world.until_started(PodKey(execution, 1))
    queued = await world.submit("print never")
    await world.submissions.cancel(ALICE, queued, None)
    await world.until_stored(queued)
    await world.submit("print later")
    world.clock.advance(3600)


async def a_next_life(world: World) -> None:
    """Take up what the first has left, which is lost, and leave the new attempts running."""
    await world.start()
    async for execution in world.stores.executions.unfinished():
        if execution.spec.on_interrupt is OnInterrupt.RESTART and execution.attempt > 0:
            await world.until_started(PodKey(execution.id, 2))
    await world.until_quiet()


async def record(folder: Path) -> None:
    """Write everything to `folder`."""
    schemas.write(folder)
    with TemporaryDirectory() as place:
        clock, ids = ManualClock(), CountingIds()
        for fused, live in ((True, a_life), (False, a_next_life)):
            async with a_world(
                Path(place), fused=fused, clock=clock, ids=ids, owner=f"worker-{live.__name__}", capacity=CAPACITY
            ) as world:
                await live(world)
        store = sqlite3.connect(Path(place) / "runtape.db")
        rows = store.execute("select offset, topic, key, type, body from log order by offset")
        names = ("offset", "topic", "key", "type", "body")
        lines = [msgspec.json.encode(dict(zip(names, (*row[:-1], msgspec.Raw(row[-1])), strict=True))) for row in rows]
        (folder / "messages.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
        for table, order in (("execution", "id"), ("saga", "execution_id")):
            documents = store.execute(f"select doc from {table} order by {order}")
            (folder / f"{table}s.jsonl").write_bytes(b"".join(doc + b"\n" for (doc,) in documents))
        store.close()


if __name__ == "__main__":
    asyncio.run(record(Path(sys.argv[1])))
