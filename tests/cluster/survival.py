"""Breaking something under a flood of runs: none is lost, none ends twice, no byte is missing, and soon all is well."""

import asyncio
from collections.abc import Callable, Sequence

from tests.cluster.flood import Followed, check, flood, followed, script
from tests.cluster.mortal import LOOK_S, SOON_S, MortalCluster
from tests.e2e.server import Client

RUNS = 200
OVER_S = 6.0
BEFORE_S = 1.5
DOWN_S = 3.0
RETURN_S = 30.0
"""Within so long after all is mended every run has ended."""


async def survived(
    clients: list[Client],
    name: str,
    break_it: Callable[[], object],
    mend_it: Callable[[], object] = lambda: None,
    *,
    runs: int = RUNS,
    over_s: float = OVER_S,
    before_s: float = BEFORE_S,
    down_s: float = DOWN_S,
    within_s: float = RETURN_S,
    write: Callable[[str, int], str] = script,
    enough: Callable[[], bool] = lambda: True,
) -> Sequence[Followed]:
    """Break something, mend it, check all runs and return them; both are called in a thread.

    `write` returns what a client wants to be run, by the name and its number; it prints what `flood.printed` says.
    More than `runs` come until it is `enough`: for what only breaks when somebody has a run.
    """
    loop = asyncio.get_running_loop()
    began_at_s = loop.time()
    flooding = asyncio.ensure_future(flood(clients, name, runs, over_s, write, enough))
    try:
        await asyncio.sleep(before_s)
        await asyncio.to_thread(break_it)
        await asyncio.sleep(down_s)
        await asyncio.to_thread(mend_it)
        well_at_s = max(loop.time(), began_at_s + over_s)
        found = await flooding
    finally:
        flooding.cancel()
    await check(clients[0], name, found)
    late_s = max(each.ended_at_s for each in found) - well_at_s
    assert late_s <= within_s, f"the last run ended {late_s:.1f} s after all was well"
    return found


async def settled(cluster: MortalCluster, clients: list[Client], found: Sequence[Followed]) -> None:
    """Check that runs that have ended leave nothing to do and hold no place, and that who reads late reads the same."""
    await asyncio.to_thread(cluster.settle, [each.execution_id for each in found])
    for each in found:
        if any(attempt > 1 for attempt, _ in each.records):
            late = await followed(clients, each.execution_id)
            assert late.records == each.records, "who reads later is told of another tape"
    async with asyncio.timeout(SOON_S):
        while await in_the_queue(clients[0]):  # noqa: ASYNC110  # whoever is, is in another process
            await asyncio.sleep(LOOK_S)


async def in_the_queue(client: Client) -> int:
    """Return how many hold a place or wait for one."""
    answer = (await client.get("/admin/executions/queue")).json()
    return answer["active_count"] + answer["queue_depth"]
