"""Clients that want their runs whatever breaks: they submit until they are accepted, and read until the end."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2

from tests.e2e.server import Client
from tests.e2e.sse import EventStream

PATIENCE_S = 150.0
PAUSE_S = 0.2
LINES = 5
"""How many a program prints."""
ENDS = ("completed", "failed", "timeout", "cancelled")
BROKEN = (OSError, EOFError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError, httpx2.HTTPError)


@dataclass
class Followed:
    """What one reader saw of a run, over all its connections."""

    execution_id: str
    records: dict[tuple[int, int], bytes] = field(default_factory=dict)
    result: dict[str, Any] | None = None
    connections: int = 0
    ended_at_s: float = 0.0

    def output(self) -> bytes:
        """Return what the last attempt printed."""
        last = max((attempt for attempt, _ in self.records), default=0)
        return b"".join(data for (attempt, _), data in sorted(self.records.items()) if attempt == last)


async def submitted(clients: Sequence[Client], script: str, key: str) -> str:
    """Submit until the run is accepted, at one process after another, and return its id."""
    for client in itertools.cycle(clients):
        try:
            answer = await client.post(
                "/execute", json={"script": script, "lang": "python"}, headers={"idempotency-key": key}
            )
        except BROKEN:
            await asyncio.sleep(PAUSE_S)
            continue
        if answer.status_code == 200:
            return answer.json()["execution_id"]
        assert answer.status_code in (429, 500, 502, 503), answer.text
        await asyncio.sleep(PAUSE_S)
    raise AssertionError("nobody to ask")


async def followed(clients: Sequence[Client], execution_id: str) -> Followed:
    """Read the stream of a run to its end, over as many connections as it takes; no byte may come twice."""
    found = Followed(execution_id)
    last_event_id: str | None = None
    for client in itertools.cycle(clients):
        found.connections += 1
        try:
            headers = dict(client.headers) | ({"last-event-id": last_event_id} if last_event_id else {})
            stream = await EventStream.open(client.url, f"/api/v1/events/{execution_id}", headers)
        except BROKEN:
            await asyncio.sleep(PAUSE_S)
            continue
        try:
            if stream.status != 200:
                assert stream.status in (429, 500, 502, 503), stream.status
                await asyncio.sleep(PAUSE_S)
                continue
            while (frame := await stream.next(wait_s=40.0)) is not None:
                last_event_id = frame.id or last_event_id
                if frame.event == "output":
                    place = frame.data["attempt"], frame.data["seq"]
                    assert place not in found.records, f"{execution_id}: {place} came twice"
                    found.records[place] = frame.output
                elif not frame.event and frame.data["event_type"] == "result_stored":
                    found.result = frame.data["result"]
                elif frame.event == "end":
                    found.ended_at_s = asyncio.get_running_loop().time()
                    return found
        except BROKEN:
            await asyncio.sleep(PAUSE_S)
        finally:
            stream.close()
    raise AssertionError("nobody to ask")


async def flood(
    clients: list[Client],
    name: str,
    count: int,
    over_s: float,
    write: Callable[[str, int], str] | None = None,
    enough: Callable[[], bool] = lambda: True,
) -> list[Followed]:
    """Let `count` clients want a run each, begun evenly over `over_s`; return what they saw, in order.

    More come as fast until it is `enough`.  `write` returns what a client wants to be run by the name and its number;
    `script` does unless it is given.
    """
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    wanted: list[asyncio.Task[Followed]] = []

    async def one(number: int) -> Followed:
        order = clients[number % len(clients) :] + clients[: number % len(clients)]
        execution_id = await submitted(order, (write or script)(name, number), f"{name}-{number}")
        return await followed(order[::-1], execution_id)

    try:
        async with asyncio.timeout(PATIENCE_S):
            while len(wanted) < count or not enough():
                wanted.append(asyncio.create_task(one(len(wanted))))
                await asyncio.sleep(began_s + len(wanted) * over_s / count - loop.time())
            return list(await asyncio.gather(*wanted))
    finally:
        for each in wanted:
            each.cancel()


def script(name: str, number: int) -> str:
    """Return what client `number` wants to be run."""
    return "\n".join(f"print {name} {number} {line}" for line in range(LINES))


def printed(name: str, number: int) -> bytes:
    """Return what that prints."""
    return "".join(f"{name} {number} {line}\n" for line in range(LINES)).encode()


async def check(client: Client, name: str, found: Sequence[Followed]) -> None:
    """Check that every run ended once, with every byte once, in its stream and in its result."""
    assert len({each.execution_id for each in found}) == len(found)

    async def one(number: int, each: Followed) -> None:
        assert each.output() == printed(name, number), each
        assert each.result is not None, each
        assert each.result["status"] == "completed", each.result
        assert each.result["stdout"].encode() == printed(name, number)
        told = (await client.get(f"/executions/{each.execution_id}/events", params={"limit": 100})).json()["events"]
        counts = Counter(event["event_type"] for event in told)
        assert sum(counts[f"execution_{end}"] for end in ENDS) == 1, counts
        assert counts["result_stored"] == 1, counts

    await asyncio.gather(*(one(number, each) for number, each in enumerate(found)))
