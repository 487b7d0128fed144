"""The wall clock is set while programs run: nothing runs again for it, nothing waits for it, no time is negative."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.e2e.server import Server
from tests.process.conftest import EIGHT_PLACES
from tests.process.programs import ticking
from tests.process.trial import Trial
from tests.process.wall_clock import WallClock

pytestmark = pytest.mark.needs("patience", "server", "faketime")


@pytest.fixture
def wall_clock(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path)


@pytest.fixture
def server(tmp_path: Path, wall_clock: WallClock) -> Iterator[Server]:
    berlin = {"TZ": "Europe/Berlin"}
    server = Server(
        tmp_path / "data",
        module="tests.process.wall_clock_server",
        env={**wall_clock.environment, **berlin},
        **EIGHT_PLACES,
    )
    yield server
    server.close()


def told(server: Server, event: str) -> int:
    return server.log.read_text().count(event)


@pytest.mark.timeout(90)
@pytest.mark.parametrize("offset", ["+3600", "-3600"])
async def test_clock_that_jumps_by_an_hour_runs_nothing_again(trial: Trial, wall_clock: WallClock, offset: str) -> None:
    # Longer than two sweeps, the first of which meets leases that seem to have run out an hour ago.
    running = [
        trial.submit(f"running-{number}", ticking(55, 0.2, number), limits={"wall_s": 60}) for number in range(8)
    ]
    waiting = [trial.submit(f"waiting-{number}", ticking(1, 0.01, number)) for number in range(8)]
    await trial.printed(*running)
    with trial.nemesis.fault(f"the clock is set by {offset} s"):
        wall_clock.set(offset)
    after = [trial.submit(f"after-{number}", ticking(1, 0.01, number)) for number in range(8)]
    await trial.ended(within_s=40)
    assert told(trial.server, "clock.jumped") == 1
    assert told(trial.server, "execution.interrupted") == 0
    wall_clock.set("+0")
    assert await trial.over() == []
    for follower in (*running, *waiting, *after):
        result = follower.check()
        assert (result["status"], result["attempt"]) == ("completed", 1), result
        assert result["usage"]["wall_ns"] > 0


@pytest.mark.timeout(60)
async def test_end_of_summer_time_is_no_event(
    server: Server, tmp_path: Path, temporary: Path, wall_clock: WallClock
) -> None:
    wall_clock.set("@2026-10-25 02:59:56")
    trial = Trial(server, tmp_path / "histories", temporary)
    running = [trial.submit(f"running-{number}", ticking(30, 0.2, number)) for number in range(4)]
    await trial.ended(within_s=30)
    assert told(server, "clock.jumped") == 0
    assert await trial.over() == []
    for follower in running:
        result = follower.check()
        times = [datetime.fromisoformat(result[name]) for name in ("created_at", "started_at", "finished_at")]
        assert times == sorted(times)
        assert 5 < (times[2] - times[1]).total_seconds() < 20
        assert (result["status"], result["attempt"]) == ("completed", 1)
