"""Attempts whose pod is never reached."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from runtape.adapters.kubernetes import attempt
from runtape.adapters.kubernetes.attempt import Attempt
from runtape.adapters.kubernetes.protocol import Link
from runtape.adapters.kubernetes.warm import Taken
from runtape.adapters.sandbox.pod import CANCELLED
from runtape.domain.ids import ExecutionId
from runtape.domain.limits import Limits
from runtape.ports.errors import Permanent, Transient
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


class Refusing:
    """An API over which no pod is reached, and that refuses to say of one, the first time."""

    refusals = 0

    @contextlib.asynccontextmanager
    async def attached(self, name: str, container: str) -> AsyncIterator[None]:
        raise Transient("nobody answers")
        yield

    async def read(self, name: str) -> None:
        self.refusals += 1
        if self.refusals == 1:
            raise Permanent("forbidden")


async def test_an_api_that_refuses_to_say_of_a_pod_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "HAND_OVER_S", 0.0)
    monkeypatch.setattr(attempt, "LAST_WORDS_S", 0.0)
    ends: list[PodEnded] = []
    run = Attempt(PodKey(ExecutionId("e"), 1), Limits(), 0.0, ends.append)
    api: Any = Refusing()
    await run.converse(api, "pod", cast(Any, None))
    assert api.refusals == 2
    assert [end.ran for end in ends] == [False]
