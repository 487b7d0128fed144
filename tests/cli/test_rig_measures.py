"""What the rig measures is judged: what must not be is said, and is an exit code."""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any
from unittest.mock import MagicMock

import pytest

from tests.cluster import streams
from tests.kubernetes import scale

STREAMS = {"streams": 10_000, "gaps_or_duplicates": 0, "redis_connections": [87, 87]}


def pods(first_ms: float, last_ms: float) -> dict[str, Any]:
    """Return a report of which the rest does not matter."""
    return {"made_to_seen_running_ms": {"first third": {"p50": first_ms}, "last third": {"p50": last_ms}}}


def answering(report: Mapping[str, Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def answer(*_: object) -> Any:
        return report

    return answer


@pytest.fixture
def nothing_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have nothing started, and nothing set for the whole process."""
    for module, name in ((streams, "Cluster"), (scale, "Kubernetes"), (scale, "configure_logging")):
        monkeypatch.setattr(module, name, MagicMock())
    monkeypatch.setattr(streams, "seeded", answering({}))


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        ({}, 0, ""),
        ({"redis_connections": [87, 80]}, 0, ""),
        ({"gaps_or_duplicates": 3}, 1, "FOUND: 3 of 10000 streams have gaps or duplicates\n"),
        (
            {"redis_connections": [87, 88]},
            1,
            "FOUND: connections to Redis: 87 before, 88 with 10000 streams\n",
        ),
    ],
)
@pytest.mark.usefixtures("nothing_real")
def test_streams_with_gaps_or_connections_of_their_own_are_a_failure(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: Mapping[str, Any],
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr(streams, "measure", answering(STREAMS | dict(found)))
    assert streams.main(["--json"]) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("frames", "once"),
    [
        ((b"a", b"b"), True),
        ((b"b", b"a"), True),
        ((b"a",), False),
        ((b"a", b"b", b"b"), False),
        ((b"a", b"b", b"c"), False),
    ],
)
def test_a_stream_has_each_output_once_or_that_is_noticed(frames: tuple[bytes, ...], once: bool) -> None:
    reader = streams.Reader(b"")
    for number, text in enumerate(frames):
        reader.data_received(b'id: %d\nevent: output\ndata: {"text":"%s\\n"}\n\n' % (number, text))
    assert reader.has_once(b"a", b"b") is once


@pytest.mark.parametrize(
    ("report", "code", "said"),
    [
        (pods(4000, 4030), 0, ""),
        (pods(4000, 6000), 0, ""),
        (pods(4000, 6100), 1, "FOUND: a queue that grows: 4000 ms until a pod of the first third was seen to run, "),
    ],
)
@pytest.mark.usefixtures("nothing_real")
def test_pods_that_wait_ever_longer_are_a_failure(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    report: Mapping[str, Any],
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr(scale, "measured", answering(report))
    assert scale.main([]) == code
    found = [line for line in capsys.readouterr().err.splitlines() if line.startswith("FOUND")]
    assert found == ([f"{said}6100 of the last"] if said else [])
