"""The stream of a run: live, resumed at any point, and told honestly when something is missing."""

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.e2e.server import ADMIN_PASSWORD, Client, Server
from tests.e2e.sse import EventStream, Frame, kinds, printed
from tests.e2e.test_queue import holding, lined_up
from tests.e2e.test_refusals import assert_problem

LIFE = ["execution_requested", "execution_started"]
END = ["execution_completed", "result_stored", "end"]


def after(frames: Sequence[Frame], frame_id: str | None) -> list[bytes]:
    """Return the bytes of the frames beyond `frame_id`; one that stands at the end gets `end` again."""
    if frame_id is None:
        return [frame.raw for frame in frames]
    last = max(number for number, frame in enumerate(frames) if frame.id == frame_id)
    return [frame.raw for frame in frames[min(last + 1, len(frames) - 1) :]]


@pytest.mark.needs("server")
async def test_output_arrives_while_the_program_runs(real: Client) -> None:
    execution_id = await real.execute("import os, signal\nos.write(1, b'early\\n')\nsignal.pause()")
    async with real.stream(execution_id) as stream:
        frames = await stream.until("output")
        assert printed(frames) == b"early\n"
        assert (await real.get(f"/executions/{execution_id}")).json()["status"] == "running"
        await real.post(f"/executions/{execution_id}/cancel")
        assert kinds(await stream.rest())[-1] == "end"


@pytest.mark.embedded  # the heartbeat is a setting of the server's
async def test_streams_end_with_the_credentials_that_opened_them(serve: Callable[..., Server]) -> None:
    server = serve(streams__heartbeat_s=0.1)
    async with server.client() as client, server.client(None) as browser, AsyncExitStack() as stack:
        made = (await client.post("/api-keys", json={"name": "short-lived", "scopes": ["execute", "read"]})).json()
        login = await browser.post("/auth/login", data={"username": "admin", "password": ADMIN_PASSWORD})
        browser.headers = {"cookie": f"session={browser.http.cookies['session']}"}
        reader = await stack.enter_async_context(server.client(made["key"]))
        execution_id = await reader.execute("print a\nwait rights")
        body = json.dumps({"script": "print a\nwait rights", "lang": "python"}).encode()
        by_key = await stack.enter_async_context(reader.stream(execution_id))
        submitted = await EventStream.open(
            server.url, "/api/v1/execute", {**reader.headers, "accept": "text/event-stream"}, body=body
        )
        stack.callback(submitted.close)
        by_session = await stack.enter_async_context(browser.stream(execution_id))
        other = await stack.enter_async_context(client.stream(execution_id))
        for stream in (by_key, submitted, by_session, other):
            await stream.until("output")

        assert (await client.http.delete(f"/api-keys/{made['id']}")).status_code == 204
        for stream in (by_key, submitted):
            last = (await stream.rest())[-1]
            assert (last.event, last.id, last.retry) == ("shutdown", None, "1000")
            assert last.data == {"code": "unauthenticated", "detail": "the API key is unknown or was revoked"}
        assert_problem(await reader.get(f"/events/{execution_id}"), 401, "unauthenticated")

        answer = await browser.post("/auth/logout", headers={"x-csrf-token": login.json()["csrf_token"]})
        assert answer.status_code == 200, answer.text
        last = (await by_session.rest())[-1]
        assert (last.event, last.data["code"]) == ("shutdown", "unauthenticated")

        # Whoever may still read goes on, over as many heartbeats, to the end.
        server.let("rights")
        assert kinds(await other.rest())[-3:] == END


async def test_frames_have_the_promised_form(client: Client, simulated: Server) -> None:
    execution_id = await client.execute("print one\neprint two\nbytes ff\nwait form")
    async with client.stream(execution_id) as stream:
        assert stream.status == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-store"
        assert stream.headers["x-accel-buffering"] == "no"
        assert "content-length" not in stream.headers
        frames = await stream.until(lambda frame: frame.event == "output" and frame.data["seq"] == 3)
        simulated.let("form")
        frames += await stream.rest()
    assert kinds(frames) == [*LIFE, "output", "output", "output", *END]
    assert [frame.id for frame in frames] == ["1.0.0", "2.1.0", "2.1.1", "2.1.2", "2.1.3", "3.1.3", "4.1.3", "4.1.3"]
    assert [frame.data.get("text") for frame in frames[2:5]] == ["one\n", "two\n", None]
    assert [frame.output for frame in frames[2:5]] == [b"one\n", b"two\n", b"\xff"]
    assert [frame.data["stream"] for frame in frames[2:5]] == ["stdout", "stderr", "stdout"]
    assert [frame.data["seq"] for frame in frames[2:5]] == [1, 2, 3]
    times = [frame.data["t_ns"] for frame in frames[2:5]]
    assert times == sorted(times)
    for frame in frames:
        if not frame.event:
            assert frame.data["execution_id"] == execution_id
            assert {"event_type", "event_id", "attempt", "timestamp", "status"} <= frame.data.keys()
    ids = [frame.data["event_id"] for frame in frames if not frame.event]
    assert len(set(ids)) == len(ids)
    assert frames[-2].data["result"] == await client.result(execution_id)
    assert frames[-1].data == {}


async def test_resumed_after_the_end_at_every_frame_gives_exactly_the_rest(client: Client) -> None:
    lines = ["print one", "eprint two", "bytes 00ff", "print " + "x" * 70_000, "fail lost"]
    execution_id = await client.execute("\n".join(lines))
    async with client.stream(execution_id) as stream:
        recorded = await stream.rest()
    assert kinds(recorded).count("output") == 12
    cuts = [None, *dict.fromkeys(frame.id for frame in recorded)]
    assert len(cuts) == len(recorded)
    for cut in cuts:
        async with client.stream(execution_id, cut) as stream:
            assert [frame.raw for frame in await stream.rest()] == after(recorded, cut), cut


async def test_resumed_during_the_run_at_every_frame_gives_exactly_the_rest(client: Client, simulated: Server) -> None:
    """At each pause of the program, streams are opened from every id there is so far; all must end alike."""
    steps = 6
    lines: list[str] = []
    for step in range(steps):
        lines += [f"print {step} {'y' * 1000 * step}", f"eprint {step}", f"wait during-{step}"]
    execution_id = await client.execute("\n".join(lines))
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(client.stream(execution_id))
        recorded: list[Frame] = []
        resumed: list[tuple[str | None, EventStream]] = []
        for step in range(steps):
            recorded += await first.until(
                lambda frame, last=2 * step + 2: frame.event == "output" and frame.data["seq"] == last
            )
            for cut in [None, *(frame.id for frame in recorded)]:
                resumed.append((cut, await stack.enter_async_context(client.stream(execution_id, cut))))
            simulated.let(f"during-{step}")
        recorded += await first.rest()
        assert len(resumed) == sum(3 + 2 * step + 2 for step in range(steps)), "all ids were used at each pause"
        for cut, stream in resumed:
            assert [frame.raw for frame in await stream.rest()] == after(recorded, cut), cut
    assert kinds(recorded) == [*LIFE, *["output"] * 2 * steps, *END]


async def test_last_event_id_is_taken_from_the_query_and_the_header_wins(client: Client) -> None:
    execution_id = await client.execute("print one\nprint two")
    async with client.stream(execution_id) as stream:
        recorded = await stream.rest()
    answer = await client.get(f"/events/{execution_id}?last_event_id=2.1.1")
    assert answer.content == b"".join(raw + b"\n\n" for raw in after(recorded, "2.1.1"))
    answer = await client.get(f"/events/{execution_id}?last_event_id=2.1.1", headers={"last-event-id": "2.1.2"})
    assert answer.content == b"".join(raw + b"\n\n" for raw in after(recorded, "2.1.2"))
    other = await client.get(f"/events/executions/{execution_id}")
    assert other.content == b"".join(frame.raw + b"\n\n" for frame in recorded)


async def test_late_readers_get_everything_at_once_and_then_the_same(client: Client, simulated: Server) -> None:
    execution_id = await client.execute("print one\nprint two\nwait late\nprint three")
    async with client.stream(execution_id) as early, client.stream(execution_id) as second:
        seen = await early.until(lambda frame: frame.id == "2.1.2")
        async with client.stream(execution_id) as late:
            assert [frame.raw for frame in await late.until(lambda frame: frame.id == "2.1.2")] == [
                frame.raw for frame in seen
            ]
            simulated.let("late")
            rest = [await each.rest() for each in (early, late)]
            assert rest[0] == rest[1]
            assert await second.rest() == seen + rest[0]


async def test_post_that_accepts_a_stream_gets_it(client: Client) -> None:
    body = json.dumps({"script": "print hello\nexit 3", "lang": "python"}).encode()
    headers = {**client.headers, "accept": "text/event-stream", "content-type": "application/json"}
    stream = await EventStream.open(client.url, "/api/v1/execute", headers, body=body)
    frames = await stream.rest()
    assert kinds(frames) == [*LIFE, "output", *END]
    assert frames[0].data["execution_id"] == stream.headers["x-execution-id"]
    assert frames[-2].data["result"]["exit_code"] == 3
    stream.close()


async def test_post_of_bad_input_that_accepts_a_stream_is_a_problem(client: Client) -> None:
    headers = {"accept": "text/event-stream"}
    answer = await client.post("/execute", json={"script": "", "lang": "cobol"}, headers=headers)
    assert_problem(answer, 422, "runtime_unknown", "lang")


async def test_run_goes_on_when_the_client_of_its_stream_leaves(client: Client, simulated: Server) -> None:
    body = json.dumps({"script": "print one\nwait left\nprint two", "lang": "python"}).encode()
    headers = {**client.headers, "accept": "text/event-stream"}
    stream = await EventStream.open(client.url, "/api/v1/execute", headers, body=body)
    frames = await stream.until("output")
    stream.close()
    simulated.let("left")
    execution_id = stream.headers["x-execution-id"]
    async with client.stream(execution_id, frames[-1].id) as again:
        rest = await again.rest()
    assert printed(frames + rest) == b"one\ntwo\n"


@pytest.mark.parametrize(
    "text", ["x", "1", "1.2", "1.2.3.4", "1.2.-3", "1.2.3x", "a.b.c", "..", "1. 2.3", "1.2.99999999999999999999"]
)
async def test_malformed_id_is_refused(client: Client, text: str) -> None:
    execution_id = (await client.run("print 1"))["execution_id"]
    answer = await client.get(f"/events/{execution_id}", headers={"last-event-id": text})
    assert_problem(answer, 422, "validation_failed", "Last-Event-ID")


@pytest.mark.parametrize(
    ("given", "actual"),
    [
        ("9.1.2", "4.1.2"),
        ("4.1.9", "4.1.2"),
        ("2.1.9", "2.1.2"),
        ("9.9.9", "4.1.2"),
        ("4.2.0", "4.1.2"),
        ("4.2.1", "4.1.2"),
        ("1.0.5", "1.0.0"),
    ],
)
async def test_id_ahead_of_what_there_is_gets_a_gap(client: Client, given: str, actual: str) -> None:
    execution_id = await client.execute("print one\nprint two")
    async with client.stream(execution_id) as stream:
        recorded = await stream.rest()
    async with client.stream(execution_id, given) as stream:
        frames = await stream.rest()
    assert frames[0].event == "gap"
    assert frames[0].data == {"from_id": given, "to_id": actual, "reason": "ahead"}
    assert frames[0].id == actual
    assert [frame.raw for frame in frames[1:]] == after(recorded, actual)


async def test_id_ahead_of_a_running_program_goes_on_from_what_there_is(client: Client, simulated: Server) -> None:
    execution_id = await client.execute("print one\nwait ahead\nprint two")
    async with client.stream(execution_id) as stream:
        await stream.until("output")
        async with client.stream(execution_id, "2.1.700") as ahead:
            gap = await ahead.next()
            assert gap is not None
            assert gap.data == {"from_id": "2.1.700", "to_id": "2.1.1", "reason": "ahead"}
            simulated.let("ahead")
            assert printed(await ahead.rest()) == b"two\n"


def gaps(frames: Sequence[Frame]) -> list[tuple[Any, ...]]:
    return [tuple(frame.data.values()) for frame in frames if frame.event == "gap"]


@pytest.mark.parametrize(
    ("kept", "given", "expected"),
    [
        ((3, 4, 5), None, [("2.1.0", "2.1.2", "retention")]),
        ((3, 4, 5), "2.1.1", [("2.1.1", "2.1.2", "retention")]),
        ((3, 4, 5), "2.1.2", []),
        ((3, 4, 5), "2.1.4", []),
        ((), None, [("2.1.0", "2.1.5", "retention")]),
        ((), "2.1.2", [("2.1.2", "2.1.5", "retention")]),
        ((), "2.1.5", []),
        ((), "4.1.5", []),
        ((1, 2, 5), None, [("2.1.2", "2.1.4", "retention")]),
        ((1, 2), None, [("2.1.2", "2.1.5", "retention")]),
    ],
)
async def test_pruned_records_are_told_as_a_gap(
    client: Client, simulated: Server, kept: tuple[int, ...], given: str | None, expected: list[tuple[str, ...]]
) -> None:
    execution_id = await client.execute("\n".join(f"print {number}" for number in range(1, 6)))
    await client.ended(execution_id)
    simulated.store.prune(execution_id, kept)
    async with client.stream(execution_id, given) as stream:
        frames = await stream.rest()
    assert gaps(frames) == expected
    since = int(given.split(".")[2]) if given else 0
    wanted = b"".join(b"%d\n" % number for number in kept if number > since)
    assert printed(frames) == wanted
    assert kinds(frames)[-1] == "end"


@pytest.mark.embedded  # the heartbeat is a setting of the server's
async def test_silent_stream_beats_its_heart_and_misses_nothing(serve: Callable[..., Server]) -> None:
    server = serve(streams__heartbeat_s=0.05)
    async with server.client() as client:
        execution_id = await client.execute("print one\nwait beat\nprint two")
        async with client.stream(execution_id) as stream:
            frames = await stream.until("output")
            for _ in range(3):
                await stream.heartbeat()
            server.let("beat")
            frames += await stream.rest()
    assert kinds(frames) == [*LIFE, "output", "output", *END]
    assert printed(frames) == b"one\ntwo\n"


async def test_waiting_run_is_told_its_place_each_time_it_moves(small: Server) -> None:
    async with small.client() as client:
        running = [await holding(client, "place-0")]
        running += [await lined_up(client, f"wait place-{number}") for number in (1, 2)]
        last = await lined_up(client)
        async with client.stream(last) as stream:
            frames = await stream.until("execution_queued")
            for number in range(2):
                small.let(f"place-{number}")
                await client.ended(running[number])
                frames += await stream.until(
                    lambda frame, place=2 - number: frame.kind == "execution_queued" and frame.data["position"] == place
                )
            small.let("place-2")
            rest = await stream.rest()
    places = [frame.data["position"] for frame in frames if frame.kind == "execution_queued"]
    assert sorted(set(places), reverse=True) == [3, 2, 1]
    assert places == sorted(places, reverse=True)
    assert kinds([frame for frame in rest if frame.id])[-3:] == END


async def test_stream_of_a_deleted_run_is_not_found(client: Client) -> None:
    execution_id = (await client.run("print 1"))["execution_id"]
    await client.http.delete(f"/executions/{execution_id}")
    assert_problem(await client.get(f"/events/{execution_id}"), 404, "not_found")


async def test_many_readers_read_the_same(client: Client, simulated: Server) -> None:
    execution_id = await client.execute("\n".join([*(f"print {n}" for n in range(500)), "wait many", "print last"]))
    async with AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(client.stream(execution_id)) for _ in range(40)]
        simulated.let("many")
        read = await asyncio.gather(*(stream.rest() for stream in streams))
    assert all(frames == read[0] for frames in read)
    assert kinds(read[0]) == [*LIFE, *["output"] * 501, *END]
