"""An attempt that ends before it has a pod."""

import contextlib
from typing import Any, cast

from runtape.adapters.kubernetes.attempt import Attempt
from runtape.adapters.kubernetes.protocol import Link
from runtape.adapters.kubernetes.warm import Taken
from runtape.adapters.sandbox.pod import CANCELLED
from runtape.domain.ids import ExecutionId
from runtape.domain.limits import Limits
from runtape.ports.pod_runtime import PodEnded, PodKey


async def test_a_connection_that_comes_after_the_end_is_closed_and_nothing_is_said_over_it() -> None:
    ends: list[PodEnded] = []
    nobody = cast(Any, None)
    run = Attempt(PodKey(ExecutionId("e"), 1), Limits(), 0.0, ends.append)
    await run.kill()
    assert [end.outcome for end in ends] == [CANCELLED]
    held = contextlib.AsyncExitStack()
    closed: list[str] = []
    held.callback(closed.append, "closed")
    await run.converse(nobody, "pod", nobody, Taken("pod", nobody, Link(), held))
    assert closed == ["closed"]
