"""`runtape tape`: stored output with its timing."""

import base64
import json
from collections.abc import Iterator

import pytest

from runtape.cli.stream import Output
from runtape.cli.tape import Pace
from tests.cli.commands import runtape
from tests.cli.fake_server import BEGIN, EXECUTION, FakeServer, Reply, Request, lifecycle, output, result

MS = 1_000_000
PIECES = [
    BEGIN,
    output(1, b"out\n", t_ns=5 * MS),
    output(2, b"err\n", stream="stderr", t_ns=9 * MS),
    output(3, b"\xff\n", t_ns=600_000 * MS),
    result(3, exit_code=7),
]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def store(server: FakeServer, *pieces: bytes) -> None:
    async def events(request: Request, reply: Reply) -> None:
        await reply.stream(*pieces)

    server.handlers[f"GET /events/{EXECUTION}"] = events


@pytest.mark.parametrize("speed", ["0", "inf", "1e9"])
def test_streams_are_kept_apart_and_the_exit_code_is_our_own(server: FakeServer, speed: str) -> None:
    store(server, *PIECES)
    done = runtape("tape", EXECUTION, "--server", server.url, "--speed", speed)
    assert done.stdout == b"out\n\xff\n"
    assert done.stderr.startswith(b"err\nruntape: " + EXECUTION.encode() + b": exited 7, wall 213 ms")
    assert done.returncode == 0


def test_json_holds_every_record_and_the_result(server: FakeServer) -> None:
    store(server, *PIECES)
    told = json.loads(runtape("tape", EXECUTION, "--server", server.url, "--json").stdout)
    assert [record["t_ns"] for record in told["records"]] == [5 * MS, 9 * MS, 600_000 * MS]
    assert told["records"][0] == {"attempt": 1, "seq": 1, "stream": "stdout", "t_ns": 5 * MS, "text": "out\n"}
    assert base64.b64decode(told["records"][2]["b64"]) == b"\xff\n"
    assert told["result"]["outcome"]["exit_code"] == 7


def test_restart_and_truncation_are_said(server: FakeServer) -> None:
    last = output(2, b"", attempt=2).replace(b"}", b', "truncated": true}')
    again = lifecycle("execution_restarted", 3, attempt=2)
    store(server, BEGIN, output(1, b"a\n"), again, output(1, b"b\n", attempt=2), last, result(2, attempt=2))
    done = runtape("tape", EXECUTION, "--server", server.url)
    assert done.stdout == b"a\nb\n"
    assert b"runtape: attempt 2 starts again\nruntape: the output was cut off here, at its limit\n" in done.stderr


def test_unknown_execution_is_an_error(server: FakeServer) -> None:
    done = runtape("tape", "nothing", "--server", server.url)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"error: no /events/nothing (not_found)\n"


def test_negative_speed_is_an_error(server: FakeServer) -> None:
    done = runtape("tape", EXECUTION, "--server", server.url, "--speed=-1")
    assert (done.returncode, done.stderr) == (1, b"error: --speed is -1; it is 0 or more\n")


def record(attempt: int, t_ms: int) -> Output:
    return Output(attempt=attempt, seq=1, stream="stdout", t_ns=t_ms * MS, data=b"", truncated=False)


@pytest.mark.parametrize(
    ("speed", "slept"), [(1.0, [0.5, 1.0]), (2.0, [0.25, 0.5]), (0.5, [1.0, 2.0]), (0.0, []), (float("inf"), [])]
)
def test_pace_keeps_the_distances(speed: float, slept: list[float]) -> None:
    sleeps: list[float] = []
    pace = Pace(speed, clock=lambda: 100.0 + sum(sleeps), sleep=sleeps.append)
    for t_ms in (0, 500, 500, 1500):
        pace.hold(record(1, t_ms))
    assert sleeps == pytest.approx(slept)


def test_pace_does_not_wait_for_what_is_late_and_begins_again_with_an_attempt() -> None:
    sleeps: list[float] = []
    now = [100.0]
    pace = Pace(1.0, clock=lambda: now[0], sleep=sleeps.append)
    pace.hold(record(1, 0))
    now[0] = 110.0
    pace.hold(record(1, 9000))
    pace.hold(record(2, 250))
    assert sleeps == pytest.approx([0.25])
