"""Breaking something under a flood of runs: none is lost, none ends twice, no byte is missing, and soon all is well."""

import asyncio
from collections.abc import Callable

from tests.cluster.flood import check, flood
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
    within_s: float = RETURN_S,
) -> None:
    """Break something, mend it, and check all runs; both are called in a thread."""
    loop = asyncio.get_running_loop()
    began_at_s = loop.time()
    flooding = asyncio.ensure_future(flood(clients, name, RUNS, OVER_S))
    await asyncio.sleep(BEFORE_S)
    await asyncio.to_thread(break_it)
    await asyncio.sleep(DOWN_S)
    await asyncio.to_thread(mend_it)
    well_at_s = max(loop.time(), began_at_s + OVER_S)
    found = await flooding
    await check(clients[0], name, found)
    late_s = max(each.ended_at_s for each in found) - well_at_s
    assert late_s <= within_s, f"the last run ended {late_s:.1f} s after all was well"
