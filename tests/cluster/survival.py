"""Breaking something under a flood of runs: none is lost, none ends twice, no byte is missing, and soon all is well."""

import asyncio
from collections.abc import Callable, Sequence

from tests.cluster.flood import Followed, check, flood, script
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
) -> Sequence[Followed]:
    """Break something, mend it, check all runs and return them; both are called in a thread.

    `write` returns what a client wants to be run, by the name and its number; it prints what `flood.printed` says.
    """
    loop = asyncio.get_running_loop()
    began_at_s = loop.time()
    flooding = asyncio.ensure_future(flood(clients, name, runs, over_s, write))
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
