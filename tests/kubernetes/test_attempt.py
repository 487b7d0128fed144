"""Attempts whose pod is never reached, or is gone before it has told everything."""

import asyncio
import contextlib
import dataclasses
import json
import struct
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from runtape.adapters.kubernetes import attempt
from runtape.adapters.kubernetes.attempt import Attempt
from runtape.adapters.kubernetes.manifests import TOKEN
from runtape.adapters.kubernetes.outcomes import FILES_LOST, left_to_live_s
from runtape.adapters.kubernetes.protocol import END_OF_FRAME, MARK, VERSION, Link
from runtape.adapters.kubernetes.warm import Taken
from runtape.adapters.sandbox.pod import CANCELLED
from runtape.domain.ids import ExecutionId
from runtape.domain.limits import Limits
from runtape.ports.errors import Permanent, Transient
from runtape.ports.pod_runtime import PodEnded, PodKey
from tests.kubernetes.test_outcomes import ENDED


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


class Order:
    """A program of which only its size is asked."""

    stdin = b""

    def _replace(self, **_: bytes) -> "Order":
        return self

    def packed(self) -> bytes:
        return b""


class LeavesFiles:
    """A connection to a runner whose program ended at once and left files, which never come."""

    def __init__(self) -> None:
        self.said = asyncio.Event()
        report = {**dataclasses.asdict(ENDED), "left_files": True, "version": VERSION}
        self._frames = [framed(b"S"), framed(b"e", json.dumps(report).encode())]

    async def write(self, data: bytes) -> None:
        if data[:1] == b"C":
            self.said.set()

    async def read(self) -> bytes:
        if not self._frames:
            await asyncio.Event().wait()
        return self._frames.pop(0)


def framed(kind: bytes, payload: bytes = b"") -> bytes:
    return struct.pack("<cI", kind, len(payload)) + payload + END_OF_FRAME


def greeted() -> Link:
    """Return a link over which a runner has said that it waits."""
    link = Link()
    nonce = link.hello()[-21:-5]
    assert [*link.take(MARK + nonce + framed(b"W", struct.pack("<Ic", VERSION, b"w")))]
    return link


async def test_a_pod_that_would_end_before_its_program_does_not_get_it() -> None:
    ends: list[PodEnded] = []
    limits = Limits(wall_s=30.0)
    run = Attempt(PodKey(ExecutionId("e"), 1), limits, 0.0, ends.append)

    def pod(seconds: float) -> dict[str, Any]:
        started = datetime.now(UTC) - timedelta(seconds=seconds)
        return {
            "metadata": {"annotations": {TOKEN: run.token.hex()}},
            "spec": {"activeDeadlineSeconds": 90},
            "status": {"phase": "Running", "startTime": started.isoformat()},
        }

    told = left_to_live_s(pod(70.0))
    assert told is not None and 19.0 < told <= 20.0
    assert left_to_live_s({"spec": {"activeDeadlineSeconds": 90}, "status": {}}) is None
    run.seen(pod(70.0))
    attachment: Any = LeavesFiles()
    await run.converse(
        cast(Any, None), "pod", cast(Any, Order()), Taken("pod", attachment, greeted(), contextlib.AsyncExitStack())
    )
    assert [(end.outcome.reason, end.ran) for end in ends] == [("pod_not_started", False)]
    assert "may live for 20 s more, and its program for 30 s" in (ends[0].outcome.message or "")


async def test_a_run_whose_pod_is_gone_with_its_files_does_not_pass_for_complete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempt, "LAST_WORDS_S", 0.0)
    ends: list[PodEnded] = []
    run = Attempt(PodKey(ExecutionId("e"), 1), Limits(), 0.0, ends.append)
    connection: Any = LeavesFiles()
    taken = Taken("pod", connection, greeted(), contextlib.AsyncExitStack())
    talking = asyncio.ensure_future(run.converse(cast(Any, None), "pod", cast(Any, Order()), taken))
    async with asyncio.timeout(10):
        await connection.said.wait()
        assert run.seen(None)
        await run.over.wait()
    talking.cancel()
    await asyncio.gather(talking, return_exceptions=True)
    assert [end.outcome for end in ends] == [FILES_LOST]
    assert run.artifacts == []
