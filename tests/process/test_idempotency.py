"""How long an idempotency key stands for its execution."""

from datetime import timedelta
from pathlib import Path

import pytest

from runtape.application.submission import IDEMPOTENCY_TTL
from runtape.domain.errors import IdempotencyConflict
from tests.clocks import ManualClock
from tests.process.lives import Installation


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "stepwise"])
async def test_key_is_free_after_24_hours_and_not_before(folder: Path, fused: bool) -> None:
    assert timedelta(hours=24) == IDEMPOTENCY_TTL
    clock = ManualClock()
    life = await Installation(folder, fused, clock=clock).open(None)
    first = await life.submit("print 1", "key")
    with pytest.raises(IdempotencyConflict):
        await life.submit("print 2", "key", body_sha256="another")
    clock.advance(24 * 3600 - 1)
    assert await life.submit("print 1", "key") == first
    with pytest.raises(IdempotencyConflict):
        await life.submit("print 2", "key", body_sha256="another")
    clock.advance(1)
    second = await life.submit("print 2", "key", body_sha256="another")
    assert second != first
    assert await life.submit("print 2", "key", body_sha256="another") == second
    assert (await life.execution(first)).id == first
    await life.service.stop()


async def test_key_outlives_the_process(folder: Path) -> None:
    installation = Installation(folder, True, clock=ManualClock())
    first = await (await installation.open(None)).submit("print 1", "key")
    await installation.bury()
    life = await installation.open(None)
    assert await life.submit("print 1", "key") == first
    await life.service.stop()
