"""What happens to the outcome and the files when a box fails while it hands them over: the outcome stands."""

import asyncio
import signal
from collections.abc import Callable

import pytest

from runtape.adapters.sandbox import LocalSandbox
from runtape.adapters.sandbox.armed_box import ArmedBox
from runtape.adapters.sandbox.collection import Collection
from runtape.adapters.sandbox.keeper import wire
from runtape.adapters.sandbox.pod import CANCELLED, Pod
from runtape.domain.artifact import LeftOut, LeftOutFor
from runtape.domain.limits import Limits
from runtape.ports.pod_runtime import PodArtifact
from tests.sandbox.conftest import WAYS
from tests.sandbox.runs import left_by

SCRIPT = "open('out/a', 'wb').write(bytes(8 << 20))"
INTERRUPTED = ({}, {"interrupted": 1})


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return request.param


def when_asked(patch: pytest.MonkeyPatch, sandbox: LocalSandbox, act: Callable[[Pod, ArmedBox], None]) -> None:
    """Have `act` called when the service is about to ask a box for its files."""
    request = Collection.request

    def instead(self: Collection) -> bytes:
        pod = next(iter(sandbox._pods.values()))  # pyright: ignore[reportPrivateUsage]
        assert isinstance(pod, Pod)
        box = pod._box  # pyright: ignore[reportPrivateUsage]
        assert box is not None
        act(pod, box)
        return request(self)

    patch.setattr(Collection, "request", instead)


@pytest.mark.needs("sandbox")
class TestBoxThatFails:
    async def test_one_that_dies_costs_files_and_nothing_else(
        self, own_sandbox: LocalSandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        when_asked(monkeypatch, own_sandbox, lambda _, box: signal.pidfd_send_signal(box.pidfd, signal.SIGKILL))
        left = await left_by(own_sandbox, SCRIPT)
        assert left.ended.outcome.exit_code == 0
        assert (left.files, left.left_out) == INTERRUPTED

    async def test_one_that_stops_is_not_waited_for(
        self, own_sandbox: LocalSandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runtape.adapters.sandbox.pod.COLLECTION_TIMEOUT_S", 0.2)
        when_asked(monkeypatch, own_sandbox, lambda _, box: signal.pidfd_send_signal(box.pidfd, signal.SIGSTOP))
        left = await left_by(own_sandbox, SCRIPT)
        assert left.ended.outcome.exit_code == 0
        assert (left.files, left.left_out) == INTERRUPTED

    async def test_a_kill_that_comes_too_late_cuts_it_short(
        self, own_sandbox: LocalSandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loop = asyncio.get_running_loop()
        when_asked(monkeypatch, own_sandbox, lambda pod, _: loop.call_soon(pod.stop, CANCELLED) and None)
        left = await left_by(own_sandbox, SCRIPT)
        assert left.ended.outcome.exit_code == 0
        assert (left.files, left.left_out) == INTERRUPTED


LIMITS = Limits(artifacts=2, artifact_bytes=10)
DONE = wire.LeftOut(too_large=3).packed()
TOO_LARGE = LeftOut(LeftOutFor.TOO_LARGE, 3)
CUT_SHORT = LeftOut(LeftOutFor.INTERRUPTED, 1)


def collected(*messages: bytes) -> tuple[list[PodArtifact], tuple[LeftOut, ...]]:
    collection = Collection(LIMITS)
    assert [collection.take(message) for message in messages[:-1]] == [True] * (len(messages) - 1)
    assert not collection.take(messages[-1])
    return collection.files, collection.left_out


class TestCollection:
    def test_whole_files_are_kept(self) -> None:
        messages = [wire.artifact(b"a", 4), wire.piece(b"ab"), wire.piece(b"cd"), wire.artifact(b"b", 0), DONE]
        assert collected(*messages) == ([PodArtifact("a", b"abcd"), PodArtifact("b", b"")], (TOO_LARGE,))

    @pytest.mark.parametrize("path", [b"../a", b"/a", b"a//b", b"a/./b", b"a/", b"\n", b"\xff", b"", b"n" * 1025])
    def test_file_of_another_path_is_not(self, path: bytes) -> None:
        messages = [wire.artifact(path, 1), wire.piece(b"x"), DONE] if path else [wire.artifact(path, 1)]
        files, left_out = collected(*messages)
        assert files == []
        assert (LeftOut(LeftOutFor.BAD_NAME, 1) if path else CUT_SHORT) in left_out

    @pytest.mark.parametrize(
        "messages",
        [
            [b""],
            [b"?"],
            [b"A"],
            [b"l\0\0\0"],
            [wire.piece(b"x")],
            [wire.artifact(b"a", 11)],
            [wire.artifact(b"a", 2), wire.piece(b"xyz")],
            [wire.artifact(b"a", 2), wire.piece(b"x"), DONE],
            [wire.artifact(b"a", 2), wire.piece(b"x"), wire.artifact(b"b", 1)],
            [wire.artifact(b"a", 6), wire.piece(b"x" * 6), wire.artifact(b"b", 5)],
            [wire.artifact(b"a", 0), wire.artifact(b"b", 0), wire.artifact(b"c", 0)],
            [wire.artifact(b"a", 2)[:-1] + b"aa"],
        ],
    )
    def test_whatever_does_not_keep_to_the_protocol_ends_it(self, messages: list[bytes]) -> None:
        files, left_out = collected(*messages)
        assert left_out == (CUT_SHORT,)
        assert sum(len(file.content) for file in files) <= 10
        assert len(files) <= 2
