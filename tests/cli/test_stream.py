"""Following a run over connections that break: real sockets, each byte once."""

import contextlib
import itertools
import socket
from collections.abc import Callable
from http.client import HTTPResponse

import pytest

from runtape.cli.client import Api
from runtape.cli.errors import CliError, Refused
from runtape.cli.stream import Backoff, Event, Lifecycle, Loss, Output, Position, follow, open_existing
from tests.cli.fake_server import BEGIN, EXECUTION, FakeServer, Handler, Reply, Request, lifecycle, output, result

PATH = f"/events/{EXECUTION}"
QUICK = Backoff(attempts=4, sleep=lambda _s: None)


def collect(server: FakeServer, *, idle_s: float = 10.0, said: list[str] | None = None) -> list[Event]:
    apis: list[Api] = []

    def open_stream(position: Position) -> tuple[Api, HTTPResponse]:
        apis.append(Api(server.url, timeout_s=idle_s))
        return open_existing(apis[-1], position)

    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [api.close() for api in apis])
        heard: list[str] = [] if said is None else said
        return list(follow(open_stream, Position(EXECUTION), backoff=QUICK, say=heard.append))


def printed(events: list[Event]) -> bytes:
    return b"".join(event.data for event in events if isinstance(event, Output))


def in_turn(*answers: Callable[[Reply], object]) -> Handler:
    """Return a handler that gives each connection the next answer, and the last one to all that follow."""
    turns = itertools.chain(answers, itertools.repeat(answers[-1]))

    async def handle(request: Request, reply: Reply) -> None:
        await next(turns)(reply)  # type: ignore[misc]

    return handle


def sends(*pieces: bytes, then: str = "cut") -> Callable[[Reply], object]:
    async def answer(reply: Reply) -> None:
        await reply.stream(*pieces)
        if then == "cut":
            await reply.cut()
        elif then == "end":
            await reply.end()

    return answer


def answers(status: int, **problem: object) -> Callable[[Reply], object]:
    return lambda reply: reply.json(status, problem)


def test_whole_stream_on_one_connection() -> None:
    with FakeServer({f"GET {PATH}": in_turn(sends(BEGIN, output(1, b"a"), result(1)))}) as server:
        events = collect(server)
    assert [type(event) for event in events] == [Lifecycle, Lifecycle, Output, Lifecycle]
    assert server.requests[0].headers["accept"] == "text/event-stream"
    assert "last-event-id" not in server.requests[0].headers


def test_connection_lost_in_the_middle_of_a_record_resumes_behind_the_last_whole_one() -> None:
    half = output(2, b"second\n")[:40]
    first = sends(BEGIN, output(1, b"first\n"), half)
    second = sends(output(2, b"second\n"), result(2))
    said: list[str] = []
    with FakeServer({f"GET {PATH}": in_turn(first, second)}) as server:
        events = collect(server, said=said)
    assert printed(events) == b"first\nsecond\n"
    assert [request.headers.get("last-event-id") for request in server.requests] == [None, "2.1.1"]
    assert len(said) == 2
    assert said[0].endswith("; resuming")
    assert said[1] == "connected again"


@pytest.mark.parametrize("cut", range(0, len(output(1, b"abc") + output(2, b"def")), 7))
def test_no_byte_twice_and_none_lost_wherever_the_stream_is_cut(cut: int) -> None:
    records = output(1, b"abc") + output(2, b"def")

    async def resume(request: Request, reply: Reply) -> None:
        if len(server.requests) == 1:
            await sends(BEGIN, records[:cut])(reply)  # type: ignore[misc]
            return
        seen = int(request.headers["last-event-id"].split(".")[2])
        rest = [output(1, b"abc"), output(2, b"def")][seen:]
        await sends(*rest, result(2))(reply)  # type: ignore[misc]

    with FakeServer({f"GET {PATH}": resume}) as server:
        assert printed(collect(server)) == b"abcdef"


def test_records_that_come_again_are_skipped() -> None:
    first = sends(BEGIN, output(1, b"a"), output(2, b"b"))
    second = sends(BEGIN, output(1, b"a"), output(2, b"b"), output(3, b"c"), result(3))
    with FakeServer({f"GET {PATH}": in_turn(first, second)}) as server:
        events = collect(server)
    assert printed(events) == b"abc"
    assert len([event for event in events if isinstance(event, Lifecycle)]) == 3


def test_missing_record_is_asked_for_again() -> None:
    first = sends(BEGIN, output(1, b"a"), output(3, b"c"))
    second = sends(output(2, b"b"), output(3, b"c"), result(3))
    with FakeServer({f"GET {PATH}": in_turn(first, second)}) as server:
        events = collect(server)
    assert printed(events) == b"abc"
    assert server.requests[1].headers["last-event-id"] == "2.1.1"


def test_record_that_stays_missing_is_reported_as_a_loss() -> None:
    first = sends(BEGIN, output(1, b"a"), output(3, b"c"))
    with FakeServer({f"GET {PATH}": in_turn(first, sends(output(3, b"c"), result(3)))}) as server:
        events = collect(server)
    assert printed(events) == b"ac"
    assert [event for event in events if isinstance(event, Loss)] == [Loss("output before record 1.3 is missing")]


def test_gap_told_by_the_server_is_a_loss_and_no_break() -> None:
    gap = b'event: gap\nid: 2.1.5\ndata: {"from_id": "1.0.0", "to_id": "2.1.5", "reason": "retention"}\n\n'
    with FakeServer({f"GET {PATH}": in_turn(sends(BEGIN, gap, output(6, b"late"), result(6)))}) as server:
        events = collect(server)
    assert printed(events) == b"late"
    assert ["retention" in event.reason for event in events if isinstance(event, Loss)] == [True]
    assert len(server.requests) == 1


def test_new_attempt_begins_again_at_record_one() -> None:
    again = lifecycle("execution_restarted", 3, attempt=2)
    stream = (BEGIN, output(1, b"a"), output(2, b"b"), again, output(1, b"c", attempt=2, version=3), result(attempt=2))
    with FakeServer({f"GET {PATH}": in_turn(sends(*stream))}) as server:
        assert printed(collect(server)) == b"abc"


def test_bytes_that_are_no_text_come_through() -> None:
    data = bytes(range(256))
    with FakeServer({f"GET {PATH}": in_turn(sends(BEGIN, output(1, data), result(1)))}) as server:
        assert printed(collect(server)) == data


def test_shutdown_frame_leads_to_another_connection() -> None:
    first = sends(BEGIN, output(1, b"a"), b"event: shutdown\nretry: 10\ndata: {}\n\n", then="stay")
    with FakeServer({f"GET {PATH}": in_turn(first, sends(output(2, b"b"), result(2)))}) as server:
        assert printed(collect(server)) == b"ab"


def test_end_of_ones_rights_is_told_and_ends_the_tries() -> None:
    told = b'event: shutdown\nretry: 10\ndata: {"code": "unauthenticated", "detail": "the API key was revoked"}\n\n'
    refused = answers(401, title="Not authenticated", code="unauthenticated", detail="the API key was revoked")
    said: list[str] = []
    with (
        FakeServer({f"GET {PATH}": in_turn(sends(BEGIN, output(1, b"a"), told, then="stay"), refused)}) as server,
        pytest.raises(Refused, match="revoked"),
    ):
        collect(server, said=said)
    assert len(server.requests) == 2
    assert said == ["the API key was revoked; resuming"]


def test_silent_connection_is_given_up() -> None:
    first = sends(BEGIN, output(1, b"a"), then="stay")
    with FakeServer({f"GET {PATH}": in_turn(first, sends(output(2, b"b"), result(2)))}) as server:
        assert printed(collect(server, idle_s=0.2)) == b"ab"


def test_server_that_is_gone_for_a_while_is_found_again() -> None:
    down = answers(503, title="starting")
    last = sends(output(2, b"b"), result(2))
    with FakeServer({f"GET {PATH}": in_turn(sends(BEGIN, output(1, b"a")), down, down, last)}) as server:
        assert printed(collect(server)) == b"ab"


def test_server_that_stays_away_ends_in_an_error_that_names_the_run() -> None:
    handlers = {f"GET {PATH}": in_turn(sends(BEGIN), answers(502, title="bad gateway"))}
    with FakeServer(handlers) as server, pytest.raises(CliError, match=f"runtape tape {EXECUTION}"):
        collect(server)
    assert len(server.requests) == QUICK.attempts


def test_refusal_is_not_tried_again() -> None:
    refused = answers(404, detail="no such execution", code="not_found")
    handlers = {f"GET {PATH}": in_turn(refused)}
    with FakeServer(handlers) as server, pytest.raises(Refused, match=r"no such execution \(not_found\)"):
        collect(server)
    assert len(server.requests) == 1


def test_stream_that_ends_without_its_end_frame_is_a_break() -> None:
    first = sends(BEGIN, output(1, b"a"), then="end")
    with FakeServer({f"GET {PATH}": in_turn(first, sends(output(2, b"b"), result(2)))}) as server:
        assert printed(collect(server)) == b"ab"


def test_nobody_listening_is_an_error_that_names_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with pytest.raises(CliError, match=f"127.0.0.1:{port}: Connection refused"):
        Api(f"http://127.0.0.1:{port}").connect()


def test_backoff_doubles_within_its_bound_and_jitters() -> None:
    slept: list[float] = []
    backoff = Backoff(base_s=1.0, most_s=4.0, sleep=slept.append)
    for failures in (1, 2, 3, 4):
        backoff.wait(failures, 0.0)
    assert [low <= delay <= high for delay, low, high in zip(slept, (0.5, 1, 2, 2), (1, 2, 4, 4), strict=True)] == [
        True
    ] * 4
    backoff.wait(1, 2.5)
    assert slept[-1] == 2.5
