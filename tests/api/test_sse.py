"""An event stream as an ASGI answer: what a client that does not read can cost."""

import asyncio
import contextlib
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from starlette.types import Message

from runtape.adapters.embedded.live_feed import PENDING_BYTES, InProcessLiveFeed
from runtape.api.sse import WRITE_BYTES, SSEService
from runtape.application.announcing import output_frame
from runtape.application.streaming import PAGE_BYTES, Cursor, Streams, always
from runtape.domain import execution as executions
from runtape.domain.execution import Execution, evolve_all
from runtape.domain.tape import RECORD_BYTES, Record, Stream
from runtape.ports.live import OutputNudge
from runtape.ports.pod_runtime import PodKey
from tests.builders import EXECUTION, LEASE_TTL, requested
from tests.clocks import START, ManualClock

IN_WRITING_BYTES = 3 * WRITE_BYTES
"""A frame as it is sent, the piece that it is part of, and the objects around everything."""

ENCODED = 1.5
"""What a frame's bytes take for each byte in them: the encoder grows its buffer by half and cuts nothing off."""


@dataclass
class LongTape:
    """The stores of a running execution with `records` records of the greatest size, made anew by each read."""

    records: int

    async def get(self, execution_id: str) -> Execution:
        execution = requested()
        return evolve_all(execution, executions.start(execution, 1, "w", START, LEASE_TTL))

    async def read(self, key: PodKey, after_seq: int, limit_bytes: int) -> Sequence[Record]:
        last = min(self.records, after_seq + limit_bytes // RECORD_BYTES)
        return [a_record(seq) for seq in range(after_seq + 1, last + 1)]

    async def place(self, execution_id: str) -> None: ...


class StuckClient:
    """Takes what comes until the first output, and then nothing more."""

    def __init__(self) -> None:
        self.following = asyncio.Event()
        self.stuck = asyncio.Event()

    async def receive(self) -> Message:
        return await asyncio.Future()

    async def send(self, message: Message) -> None:
        data = message.get("body", b"")
        if b"event: output" in data:
            self.stuck.set()
            await asyncio.Future()
        elif data:
            self.following.set()


def a_record(seq: int) -> Record:
    return Record(seq=seq, stream=Stream.STDOUT, t_ns=seq, data=b"%08d" % seq * (RECORD_BYTES // 8))


def a_nudge(first_seq: int, count: int) -> OutputNudge:
    made = [a_record(seq) for seq in range(first_seq, first_seq + count)]
    return OutputNudge(1, made[0].seq, made[-1].seq, tuple(output_frame(1, record) for record in made))


@pytest.mark.parametrize(
    ("on_tape", "most"),
    [
        # What the reader took from its backlog in one go, and what waits there again.
        pytest.param(0, 2 * PENDING_BYTES, id="live"),
        # A page, and what waits meanwhile.
        pytest.param(1000, PAGE_BYTES + PENDING_BYTES, id="on the tape"),
    ],
)
async def test_client_that_does_not_read_costs_no_more_than_the_limits(on_tape: int, most: int) -> None:
    store: Any = LongTape(on_tape)
    feed = InProcessLiveFeed()
    clock = ManualClock()
    streams = Streams(executions=store, tape=store, feed=feed, queue=store, clock=clock)
    client = StuckClient()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    serving = asyncio.create_task(SSEService(streams).serve(EXECUTION, Cursor(), client.receive, client.send, always))
    try:
        await client.following.wait()
        seq = on_tape + 1
        held: list[int] = []
        # The largest nudge that is kept comes first; what follows overflows the backlog many times.
        for count in (PENDING_BYTES // RECORD_BYTES - 1, *[1] * 100):
            feed.publish(EXECUTION, a_nudge(seq, count))
            seq += count
            await asyncio.wait_for(client.stuck.wait(), 10)
            held.append(tracemalloc.get_traced_memory()[0] - before)
        assert most < max(held) <= ENCODED * most + IN_WRITING_BYTES
    finally:
        tracemalloc.stop()
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
