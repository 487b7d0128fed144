"""The server, or the keeper of its sandbox, stands still for long and goes on as if nothing had been."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import Server
from tests.process.conftest import EIGHT_PLACES
from tests.process.programs import ticking
from tests.process.remains import keeper_of
from tests.process.short_lease_server import LEASE_TTL
from tests.process.trial import Trial

pytestmark = pytest.mark.needs("server")

STOPPED_S = 8.0
"""Longer than a lease and the time after which the sweeper takes it for lost."""


@pytest.fixture
def hasty(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "data", module="tests.process.short_lease_server", **EIGHT_PLACES)
    yield server
    server.close()


@pytest.mark.timeout(90)
@pytest.mark.needs("patience")
async def test_server_that_slept_through_its_leases_runs_nothing_beside_itself(
    hasty: Server, tmp_path: Path, temporary: Path
) -> None:
    assert LEASE_TTL.total_seconds() + 6 < STOPPED_S
    trial = Trial(hasty, tmp_path / "histories", temporary)
    quick = [trial.submit(f"quick-{number}", ticking(1, 0.2, number)) for number in range(4)]
    # These are in the midst of it when the server wakes up, those above have ended in its absence.
    long: dict[str, Any] = {"limits": {"wall_s": 60}}
    slow = [trial.submit(f"slow-{number}", ticking(45, 0.2, number), **long) for number in range(3)]
    waiting = [trial.submit(f"waiting-{number}", ticking(1, 0.01, number)) for number in range(8)]
    once = trial.submit("once", ticking(45, 0.2), on_interrupt="fail", **long)
    await trial.printed(*slow, once)
    with trial.nemesis.fault("SIGSTOP"):
        os.kill(hasty.pid, signal.SIGSTOP)
        await asyncio.sleep(STOPPED_S)
        os.kill(hasty.pid, signal.SIGCONT)
    async with hasty.client() as client:
        await slow[0].cancel(client)
    await trial.ended(within_s=60)
    assert await trial.over() == []
    for follower in (*quick, *slow[1:], *waiting):
        assert follower.check()["status"] == "completed"
    outcome = slow[0].check()["outcome"]  # whichever came first
    assert outcome["kind"] == "cancelled" or outcome["reason"] == "lease_expired"
    result = once.check()
    assert (result["attempt"], result["outcome"]["reason"]) == (1, "lease_expired")


@pytest.mark.timeout(60)
@pytest.mark.needs("patience")
async def test_keeper_that_stood_still_costs_time_and_nothing_else(trial: Trial) -> None:
    running = [trial.submit(f"running-{number}", ticking(20, 0.1, number)) for number in range(4)]
    cancelled = trial.submit("cancelled", ticking(300, 0.1))
    await trial.printed(*running, cancelled)
    keeper = keeper_of(trial.server)
    with trial.nemesis.fault("SIGSTOP of the keeper"):
        os.kill(keeper, signal.SIGSTOP)
        later = [trial.submit(f"later-{number}", ticking(1, 0.01, number)) for number in range(16)]
        async with trial.server.client() as client:
            await cancelled.cancel(client)
            await asyncio.sleep(4)
            os.kill(keeper, signal.SIGCONT)
    await trial.ended(within_s=30)
    assert await trial.over() == []
    for follower in (*running, *later):
        assert (follower.check()["status"], follower.check()["attempt"]) == ("completed", 1)
    assert cancelled.check()["status"] == "cancelled"
