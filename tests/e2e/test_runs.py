"""Idempotency keys, cancelling, retrying and deleting, and the list of a run's events."""

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.server import Client, Server
from tests.e2e.sse import kinds, printed
from tests.e2e.test_queue import holding, lined_up
from tests.e2e.test_refusals import assert_problem

BODY = {"script": "print 1", "lang": "python"}


def named(comm: str) -> Iterator[int]:
    """Yield the processes of this host that call themselves `comm`."""
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == comm:
                yield int(path.parent.name)
        except OSError:
            continue


# Idempotency


async def test_same_key_and_body_give_the_same_bytes_before_and_after_the_end(
    client: Client, simulated: Server
) -> None:
    headers = {"idempotency-key": "same-key"}
    body = {"script": "wait same-key", "lang": "python"}
    first = await client.post("/execute", json=body, headers=headers)
    second = await client.post("/execute", json=body, headers=headers)
    simulated.let("same-key")
    await client.ended(first.json()["execution_id"])
    third = await client.post("/execute", json=body, headers=headers)
    assert first.content == second.content == third.content
    assert [answer.status_code for answer in (first, second, third)] == [200, 200, 200]


async def test_key_refuses_another_body(client: Client) -> None:
    headers = {"idempotency-key": "other-body"}
    assert (await client.post("/execute", json=BODY, headers=headers)).status_code == 200
    answer = await client.post("/execute", json={**BODY, "script": "print 2"}, headers=headers)
    assert_problem(answer, 409, "idempotency_conflict", "Idempotency-Key")


async def test_key_belongs_to_its_user(client: Client, stranger: Client) -> None:
    assert await client.execute("print 1", key="shared") != await stranger.execute("print 1", key="shared")
    assert await stranger.execute("print 1", key="shared") == await stranger.execute("print 1", key="shared")


async def test_refused_request_does_not_use_up_its_key(client: Client) -> None:
    headers = {"idempotency-key": "second-chance"}
    assert (await client.post("/execute", json={**BODY, "lang": "cobol"}, headers=headers)).status_code == 422
    assert (await client.post("/execute", json=BODY, headers=headers)).status_code == 200


async def test_duplicates_at_the_same_time_are_one_execution(client: Client, simulated: Server) -> None:
    headers = {"idempotency-key": "storm"}
    answers = await asyncio.gather(*(client.post("/execute", json=BODY, headers=headers) for _ in range(30)))
    assert {(answer.status_code, answer.content) for answer in answers} == {(200, answers[0].content)}
    assert simulated.store.with_idempotency_key("storm") == [answers[0].json()["execution_id"]]


async def test_duplicate_that_asks_for_the_stream_gets_the_first_ones(client: Client) -> None:
    execution_id = await client.execute("print once", key="streamed")
    await client.ended(execution_id)
    headers = {"idempotency-key": "streamed", "accept": "text/event-stream"}
    answer = await client.post("/execute", json={"script": "print once", "lang": "python"}, headers=headers)
    assert answer.headers["x-execution-id"] == execution_id
    assert '"text":"once\\n"' in answer.text
    assert answer.text.endswith("event: end\ndata: {}\n\n")


# Cancelling


@pytest.mark.needs("server")
async def test_running_program_is_gone_a_second_after_its_cancellation(real: Client) -> None:
    mark = f"rt-e2e-{os.getpid()}"  # over another profile the same may run beside this
    script = f"""
import os, signal
open("/proc/self/comm", "w").write("{mark}")
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
if all(os.fork() for _ in range(3)):
    os.write(1, b"running\\n")  # one record: after a second one the cancellation need not come last
else:
    os.setsid()
while True:
    pass
"""
    execution_id = await real.execute(script, limits={"wall_s": 60, "cpu_s": 60})
    async with real.stream(execution_id) as stream:
        frames = await stream.until("output")
        assert len(list(named(mark))) > 0
        began = time.monotonic()
        answer = await real.post(f"/executions/{execution_id}/cancel", json={"reason": "no longer needed"})
        assert (answer.status_code, answer.json()["status"]) == (200, "cancellation_requested")
        frames += await stream.rest()
        assert time.monotonic() - began < 1.0
    assert list(named(mark)) == []
    assert kinds(frames)[-4:] == ["execution_cancel_requested", "execution_cancelled", "result_stored", "end"]
    result = frames[-2].data["result"]
    assert (result["status"], result["outcome"]["kind"], result["stdout"]) == ("cancelled", "cancelled", "running\n")
    requested = next(frame for frame in frames if frame.kind == "execution_cancel_requested")
    assert requested.data["reason"] == "no longer needed"


async def test_queued_run_is_cancelled_without_ever_starting(small: Server) -> None:
    async with small.client() as client:
        await holding(client, "cancelled-while-queued")
        waiting = await lined_up(client)
        async with client.stream(waiting) as stream:
            frames = await stream.until("execution_queued")
            assert frames[-1].id is None
            assert frames[-1].data["position"] == 1
            answer = await client.post(f"/executions/{waiting}/cancel")
            assert answer.json()["status"] == "cancelled"
            rest = [frame for frame in await stream.rest() if frame.id]  # its place may be told again
            assert kinds(rest) == ["execution_cancelled", "result_stored", "end"]
        result = await client.result(waiting)
        assert (result["status"], result["attempt"], result["started_at"]) == ("cancelled", 0, None)
        small.let("cancelled-while-queued")
        after = await client.run("print 2")
        assert after["status"] == "completed"


async def test_second_cancellation_changes_nothing_and_one_after_the_end_is_refused(
    client: Client, simulated: Server
) -> None:
    execution_id = await client.execute("wait never-let")
    assert (await client.post(f"/executions/{execution_id}/cancel")).status_code == 200
    result = await client.ended(execution_id)
    assert result["status"] == "cancelled"
    assert_problem(await client.post(f"/executions/{execution_id}/cancel"), 409, "already_terminal")
    events = (await client.get(f"/executions/{execution_id}/events")).json()["events"]
    assert [event["event_type"] for event in events].count("execution_cancel_requested") <= 1


# Retrying and deleting


async def test_retry_is_a_new_run_of_the_same_source(client: Client) -> None:
    script = "print again\n" + "# as long as a blob\n" * 1000
    earlier = await client.run(script, limits={"memory_mb": 99}, priority="low")
    answer = await client.post(f"/executions/{earlier['execution_id']}/retry")
    assert answer.json()["status"] == "queued"
    later = await client.ended(answer.json()["execution_id"])
    assert later["execution_id"] != earlier["execution_id"]
    assert later["stdout"].startswith("again\n")
    assert later["stdout_sha256"] == earlier["stdout_sha256"]
    execution = (await client.get(f"/executions/{later['execution_id']}")).json()
    assert execution["retry_of"] == earlier["execution_id"]
    assert (execution["limits"]["memory_mb"], execution["priority"]) == (99, "low")


async def test_retry_takes_an_idempotency_key(client: Client) -> None:
    earlier, other = await client.run("print 1"), await client.run("print 1")
    headers = {"idempotency-key": "retry-once"}
    path = f"/executions/{earlier['execution_id']}/retry"
    first, second = await client.post(path, headers=headers), await client.post(path, headers=headers)
    assert first.content == second.content
    answer = await client.post(f"/executions/{other['execution_id']}/retry", headers=headers)
    assert_problem(answer, 409, "idempotency_conflict", "Idempotency-Key")


async def test_retry_before_the_end_is_refused(client: Client, simulated: Server) -> None:
    execution_id = await client.execute("wait retry-too-early")
    assert_problem(await client.post(f"/executions/{execution_id}/retry"), 409, "not_terminal")
    simulated.let("retry-too-early")
    await client.ended(execution_id)


async def test_deleted_run_leaves_no_row(client: Client, stranger: Client, simulated: Server) -> None:
    execution_id = (await stranger.run("print deleted"))["execution_id"]
    assert simulated.store.rows_of(execution_id) > 0
    await stranger.run("print the newest row of the log")
    assert_problem(await stranger.http.delete(f"/executions/{execution_id}"), 403, "scope_missing")
    assert (await client.http.delete(f"/executions/{execution_id}")).status_code == 204
    for path in ("executions/{}", "executions/{}/result", "executions/{}/output/stdout", "events/{}"):
        assert (await stranger.get("/" + path.format(execution_id))).status_code == 404, path
    assert_problem(await client.http.delete(f"/executions/{execution_id}"), 404, "not_found")
    assert simulated.store.rows_of(execution_id) == 0


async def test_run_is_deleted_only_after_its_end(client: Client, simulated: Server) -> None:
    execution_id = await client.execute("wait delete-too-early")
    assert_problem(await client.http.delete(f"/executions/{execution_id}"), 409, "not_terminal")
    simulated.let("delete-too-early")
    await client.ended(execution_id)
    assert (await client.http.delete(f"/executions/{execution_id}")).status_code == 204


# Events


async def test_events_are_the_lifecycle_frames_of_the_stream(client: Client) -> None:
    execution_id = await client.execute("print 1\nfail broken\n")
    async with client.stream(execution_id) as stream:
        frames = [frame for frame in await stream.rest() if not frame.event and frame.id]
    events = (await client.get(f"/executions/{execution_id}/events")).json()["events"]
    shown = [{k: v for k, v in frame.data.items() if k != "result"} for frame in frames]
    causes = ("correlation_id", "causation_id")
    assert [{k: v for k, v in event.items() if v is not None and k not in causes} for event in events] == shown
    types = [event["event_type"] for event in events]
    assert types.count("execution_started") == 3
    assert types[-2:] == ["execution_failed", "result_stored"]
    wanted = "event_types=execution_started&event_types=result_stored"
    some = (await client.get(f"/executions/{execution_id}/events?{wanted}&limit=4")).json()["events"]
    assert [event["attempt"] for event in some] == [1, 2, 3, 3]
    few = (await client.get(f"/executions/{execution_id}/events?limit=2")).json()["events"]
    assert [event["event_type"] for event in few] == types[:2]


async def test_failure_of_ours_is_tried_three_times_and_told(client: Client) -> None:
    execution_id = await client.execute("print 1\nfail broken\n")
    async with client.stream(execution_id) as stream:
        frames = await stream.rest()
    assert [frame.data["reason"] for frame in frames if frame.kind == "execution_restarted"] == ["broken"] * 2
    assert printed(frames) == b"1\n" * 3
    assert [frame.data["attempt"] for frame in frames if frame.event == "output"] == [1, 2, 3]
    result = frames[-2].data["result"]
    assert (result["status"], result["outcome"]["kind"], result["stdout"]) == ("failed", "sandbox_error", "1\n")


async def test_failure_of_ours_ends_a_run_that_must_not_be_repeated(client: Client) -> None:
    result = await client.run("print 1\nfail broken\n", on_interrupt="fail")
    assert (result["attempt"], result["outcome"]["kind"], result["outcome"]["reason"]) == (1, "sandbox_error", "broken")
    assert result["stdout"] == "1\n"


def test_marker_of_processes_is_found() -> None:
    own = Path("/proc/self/comm").read_text().strip()
    assert os.getpid() in set(named(own))
