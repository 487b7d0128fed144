"""Two hundred runs in flight, each followed by a client whose connection breaks all the time."""

import random

import pytest

from tests.process.trial import Trial

pytestmark = pytest.mark.needs("patience", "server")

RUNS = 200

PRINTING = "import os\nfor n in range({lines}): os.write(1 + n % 2, b'%04d %s\\n' % (n, b'x' * {width}))"


@pytest.mark.timeout(90)
async def test_readers_whose_connections_break_every_few_bytes_miss_nothing(trial: Trial) -> None:
    draw = random.Random(20260105)
    followers = [
        trial.submit(
            f"run-{number}",
            PRINTING.format(lines=draw.randrange(1, 60), width=draw.choice((1, 80, 2000))),
            cut_bytes=draw.randrange(200, 9_000),
        )
        for number in range(RUNS)
    ]
    await trial.ended(within_s=60)
    assert await trial.over() == []
    assert {follower.check()["status"] for follower in followers} == {"completed"}
    assert sum(follower.resumed for follower in followers) > 2 * RUNS
