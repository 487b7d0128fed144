"""Replay sessions and rebuilds over HTTP, on a real server with runs behind it."""

import asyncio
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from runtape.runtime.providers.embedded import DATABASE_FILE, REPLAYS_FOLDER
from tests.e2e.server import Client, Server
from tests.e2e.sse import EventStream
from tests.e2e.test_refusals import assert_problem

SESSIONS = "/admin/replay/sessions"
RUNS = 60
PER_RUN = 5
"""requested, pod.create, started, completed, result.stored"""

SLOWEST = {"speed": 0.1, "preserve_timestamps": True}


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a server that has had some runs."""

    async def work() -> None:
        async with server.client() as client:
            for _ in range(RUNS // 10):
                await asyncio.gather(*(client.run("print 1") for _ in range(10)))

    server = Server(tmp_path_factory.mktemp("past") / "data", simulated=True).start()
    try:
        asyncio.run(work())
    finally:
        server.close()
    return server.data


@pytest.fixture
def server(serve: Callable[..., Server], past: Path, tmp_path: Path) -> Server:
    """A server of the test's own with a few hundred events, and no pod since its start."""
    shutil.copytree(past, tmp_path / "data")
    return serve(data=tmp_path / "data")


@pytest.fixture
async def admin(server: Server) -> AsyncIterator[Client]:
    async with server.client() as client:
        yield client


async def create(client: Client, **body: Any) -> dict[str, Any]:
    answer = await client.post(SESSIONS, json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def told(client: Client, name: str, verb: str) -> dict[str, Any]:
    answer = await client.post(f"{SESSIONS}/{name}/{verb}")
    assert answer.status_code == 200, answer.text
    return answer.json()


@asynccontextmanager
async def following(client: Client, name: str, last_event_id: str | None = None) -> AsyncIterator[EventStream]:
    headers = {**client.headers, **({"last-event-id": last_event_id} if last_event_id else {})}
    stream = await EventStream.open(client.url, f"/api/v1{SESSIONS}/{name}/status", headers)
    try:
        yield stream
    finally:
        stream.close()


async def ended(client: Client, name: str) -> dict[str, Any]:
    """Follow the session to its end and return what its last frame says."""
    async with following(client, name) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        frames = await stream.rest()
    assert [frame.event for frame in frames[-2:]] == ["status", "end"]
    done = [sum(frame.data["progress"][each] for each in ("replayed", "failed", "skipped")) for frame in frames[:-1]]
    assert done == sorted(done)
    return frames[-2].data


async def replayed(client: Client, **body: Any) -> dict[str, Any]:
    """Create a session, start it and return it at its end."""
    session = await create(client, **body)
    await told(client, session["session_id"], "start")
    return await ended(client, session["session_id"])


async def preview(client: Client, execution_id: str) -> int:
    """Return how many events of a run there are to tell again."""
    answer = await client.post("/admin/events/replay", json={"aggregate_id": execution_id})
    assert answer.status_code in (200, 404), answer.text
    return answer.json()["total_events"] if answer.status_code == 200 else 0


async def lines(client: Client, session: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await client.get(f"{SESSIONS}/{session['session_id']}/download")
    assert answer.status_code == 200, answer.text
    assert "attachment" in answer.headers["content-disposition"]
    assert len(answer.content) == session["file_bytes"]
    return [json.loads(line) for line in answer.text.splitlines()]


def asked(server: Server, query: str, *values: object) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(server.data / DATABASE_FILE)) as connection, connection:
        return connection.execute(query, values).fetchall()


def ids_in_log(server: Server) -> list[str]:
    """Return the ids of the events that the log has of what happened, commands left out, in order."""
    rows = asked(
        server,
        "select key || '.' || json_extract(cast(body as text), '$.version') from log where type not like 'pod.%'"
        " and offset not in (select offset from log_replay) order by offset",
    )
    return [row[0] for row in rows]


def copies(server: Server, name: str) -> list[str]:
    """Return the ids of what the session has published, in order."""
    rows = asked(
        server,
        "select event_id from log_replay join log using (offset) where session_id = ? order by offset",
        name,
    )
    return [row[0] for row in rows]


async def documents(client: Client) -> Any:
    return (await client.get("/user/executions?limit=200")).json()


class TestOneRun:
    """What is told again of a run, in whichever process it ended."""

    @pytest.fixture
    async def run(self, client: Client) -> str:
        """A run whose events are all known to be there: each is indexed a moment after it happened."""
        execution_id = (await client.run("print 1"))["execution_id"]
        async with asyncio.timeout(20):
            while await preview(client, execution_id) != PER_RUN:  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # an index tells nobody
        return execution_id

    async def test_to_the_log_it_publishes_its_events_and_does_not_run_it(self, client: Client, run: str) -> None:
        before = (await client.get(f"/executions/{run}")).json()
        began = await client.post("/admin/events/replay", json={"aggregate_id": run, "dry_run": False})
        assert began.status_code == 200, began.text
        session = await ended(client, began.json()["session_id"])
        progress = session["progress"]
        assert (session["status"], progress["replayed"], progress["skipped"]) == ("completed", PER_RUN - 1, 1)
        assert (await client.get(f"/executions/{run}")).json() == before
        assert await preview(client, run) == PER_RUN

    async def test_to_a_file_it_writes_them_in_order(self, client: Client, run: str) -> None:
        filters = {"execution_id": run, "exclude_event_types": ["pod_create"]}
        session = await replayed(client, target="file", filters=filters)
        assert [line["event_id"] for line in await lines(client, session)] == [f"{run}.{n}" for n in (1, 2, 3, 4)]
        assert (await client.http.delete(f"{SESSIONS}/{session['session_id']}")).status_code == 204
        assert_problem(await client.get(f"{SESSIONS}/{session['session_id']}"), 404, "not_found")

    async def test_a_dry_run_tells_what_the_log_would_get(self, client: Client, run: str) -> None:
        session = await replayed(client, target="dry_run", filters={"execution_id": run})
        progress = session["progress"]
        assert (progress["total"], progress["replayed"], progress["skipped"]) == (PER_RUN, PER_RUN - 1, 1)


@pytest.mark.embedded  # it is compared with what stands in the server's file
class TestReplay:
    async def test_to_the_log_it_publishes_events_and_runs_nothing(self, server: Server, admin: Client) -> None:
        before, events = await documents(admin), ids_in_log(server)
        session = await create(admin, target="log")
        assert session["status"] == "created"
        assert session["progress"]["total"] == RUNS * PER_RUN
        assert session["preview"]["by_type"]["pod_create"] == RUNS
        assert len(session["preview"]["sample"]) == 10
        assert copies(server, session["session_id"]) == []
        await told(admin, session["session_id"], "start")
        session = await ended(admin, session["session_id"])
        assert session["status"] == "completed"
        progress = session["progress"]
        assert (progress["replayed"], progress["skipped"], progress["failed"]) == (RUNS * 4, RUNS, 0)
        assert copies(server, session["session_id"]) == events
        # A run after it shows that the log was read so far, and is the only new pod.
        await admin.run("print 1")
        server.tell("pods?")
        assert server.told() == "pods 1"
        assert (await documents(admin))["executions"][1:] == before["executions"]
        stats = (await admin.get("/admin/events/stats")).json()
        assert stats["total"] == (RUNS + 1) * PER_RUN

    async def test_a_command_that_is_asked_for_by_its_id_is_skipped(self, server: Server, admin: Client) -> None:
        first = (await documents(admin))["executions"][0]["execution_id"]
        names = [f"{first}.create.1", f"{first}.1"]
        session = await replayed(admin, target="log", filters={"event_ids": names})
        assert session["progress"]["replayed"] == session["progress"]["skipped"] == 1
        assert copies(server, session["session_id"]) == [f"{first}.1"]

    async def test_to_a_file_it_writes_lines_in_the_order_of_the_log(self, server: Server, admin: Client) -> None:
        session = await replayed(admin, target="file", filters={"exclude_event_types": ["pod_create"]})
        found = await lines(admin, session)
        assert [line["event_id"] for line in found] == ids_in_log(server)
        assert {line["replayed_by"] for line in found} == {session["session_id"]}
        assert found[0]["event_type"] == "execution_requested"
        assert found[0]["payload"]["lang"] == "python"
        part = await admin.get(f"{SESSIONS}/{session['session_id']}/download", headers={"range": "bytes=0-9"})
        assert (part.status_code, part.content) == (206, b'{"event_id')
        assert [path.name for path in (server.data / REPLAYS_FOLDER).iterdir()] == [f"{session['session_id']}.jsonl"]
        assert (await admin.http.delete(f"{SESSIONS}/{session['session_id']}")).status_code == 204
        assert list((server.data / REPLAYS_FOLDER).iterdir()) == []
        assert_problem(await admin.get(f"{SESSIONS}/{session['session_id']}"), 404, "not_found")

    async def test_a_dry_run_tells_what_the_log_would_get_and_does_nothing(self, server: Server, admin: Client) -> None:
        session = await replayed(admin, target="dry_run", max_events=100)
        progress = session["progress"]
        assert (progress["total"], progress["replayed"] + progress["skipped"]) == (100, 100)
        assert progress["skipped"] == session["preview"]["by_type"]["pod_create"]
        assert copies(server, session["session_id"]) == []
        answer = await admin.get(f"{SESSIONS}/{session['session_id']}/download")
        assert_problem(answer, 404, "not_found")

    async def test_what_is_selected_is_replayed_and_nothing_else(self, server: Server, admin: Client) -> None:
        runs = (await documents(admin))["executions"]
        one, newest = runs[7]["execution_id"], runs[0]["execution_id"]
        for filters, count in (
            ({"execution_id": one}, PER_RUN),
            ({"aggregate_id": one, "event_types": ["execution_started"]}, 1),
            ({"event_types": ["execution_started"]}, RUNS),
            ({"start_time": runs[0]["created_at"]}, None),
            ({"search_text": newest}, None),
            ({"user_id": "nobody"}, 0),
        ):
            session = await replayed(admin, target="dry_run", filters=filters)
            assert session["status"] == "completed"
            progress = session["progress"]
            assert progress["replayed"] + progress["skipped"] == progress["total"]
            assert progress["total"] > 0 if count is None else progress["total"] == count

    async def test_the_short_form_shows_first_and_then_does_it(self, server: Server, admin: Client) -> None:
        run = (await documents(admin))["executions"][0]["execution_id"]
        preview = await admin.post("/admin/events/replay", json={"aggregate_id": run})
        assert preview.status_code == 200, preview.text
        assert preview.json()["total_events"] == PER_RUN
        assert (preview.json()["dry_run"], preview.json()["session_id"]) == (True, None)
        real = await admin.post("/admin/events/replay", json={"aggregate_id": run, "dry_run": False})
        session = await ended(admin, real.json()["session_id"])
        assert (session["status"], session["progress"]["replayed"]) == ("completed", PER_RUN - 1)
        assert copies(server, session["session_id"]) == [f"{run}.{version}" for version in (1, 2, 3, 4)]
        nothing = await admin.post("/admin/events/replay", json={"dry_run": False})
        assert_problem(nothing, 422, "validation_failed", "event_ids")
        none = await admin.post("/admin/events/replay", json={"aggregate_id": "nobody"})
        assert_problem(none, 404, "not_found")


@pytest.mark.embedded  # it is compared with what stands in the server's file
class TestControl:
    async def test_pause_resume_and_cancel(self, server: Server, admin: Client) -> None:
        session = await create(admin, target="log", **SLOWEST)
        name = session["session_id"]
        assert_problem(await admin.post(f"{SESSIONS}/{name}/pause"), 409, "session_state_conflict")
        await told(admin, name, "start")
        async with following(admin, name) as stream:
            await stream.until(lambda frame: frame.data["progress"]["replayed"] > 0)
        paused = await told(admin, name, "pause")
        assert paused["status"] == "paused"
        assert 0 < paused["progress"]["replayed"] < RUNS * 4
        published = copies(server, name)
        assert len(published) == paused["progress"]["replayed"]
        assert_problem(await admin.http.delete(f"{SESSIONS}/{name}"), 409, "session_state_conflict")
        # What is not running does not run: another session comes through meanwhile.
        await replayed(admin, target="dry_run")
        assert copies(server, name) == published
        assert (await told(admin, name, "resume"))["status"] == "running"
        async with following(admin, name) as stream:
            await stream.until(lambda frame: frame.data["progress"]["replayed"] > len(published))
        cancelled = await told(admin, name, "cancel")
        assert (cancelled["status"], cancelled["reason"]) == ("cancelled", "cancelled by admin")
        assert_problem(await admin.post(f"{SESSIONS}/{name}/resume"), 409, "session_state_conflict")
        published = copies(server, name)
        assert len(published) == cancelled["progress"]["replayed"]
        assert len(set(published)) == len(published)
        assert published == ids_in_log(server)[: len(published)]

    async def test_a_stream_goes_on_behind_what_was_seen(self, server: Server, admin: Client) -> None:
        session = await replayed(admin, target="dry_run")
        async with following(admin, session["session_id"]) as stream:
            (status, end) = await stream.rest()
        async with following(admin, session["session_id"], status.id) as stream:
            assert [frame.event for frame in await stream.rest()] == [end.event]

    async def test_lists_have_pages_and_filters(self, server: Server, admin: Client) -> None:
        names = [(await create(admin, target=target))["session_id"] for target in ("log", "file", "log")]
        await told(admin, names[2], "cancel")

        async def listed(query: str) -> list[str]:
            answer = (await admin.get(f"{SESSIONS}?{query}")).json()
            return [session["session_id"] for session in answer["sessions"]]

        assert await listed("") == names[::-1]
        assert await listed("target=log") == [names[2], names[0]]
        assert await listed("target=log&status=created") == [names[0]]
        page = (await admin.get(f"{SESSIONS}?limit=2")).json()
        assert page["next_cursor"] == names[1]
        assert await listed(f"limit=2&cursor={page['next_cursor']}") == [names[0]]

    @pytest.mark.needs("patience")
    @pytest.mark.parametrize("target", ["log", "file"])
    async def test_killed_in_the_middle_it_goes_on_and_repeats_nothing(
        self, serve: Callable[..., Server], server: Server, target: str
    ) -> None:
        async with server.client() as client:
            session = await create(client, target=target, filters={"exclude_event_types": ["pod_create"]}, speed=0.3)
            name = session["session_id"]
            await told(client, name, "start")
            async with following(client, name) as stream:
                await stream.until(lambda frame: frame.data["progress"]["replayed"] > 20)
                server.kill()
        (rest,) = asked(server, "select json_extract(cast(doc as text), '$.replayed') from replay_session")
        assert 20 < rest[0] < RUNS * 4
        server = serve(data=server.data)
        async with server.client() as client:
            session = await ended(client, name)
            assert (session["status"], session["progress"]["replayed"]) == ("completed", RUNS * 4)
            if target == "log":
                assert copies(server, name) == ids_in_log(server)
            else:
                assert [line["event_id"] for line in await lines(client, session)] == ids_in_log(server)
        server.tell("pods?")
        assert server.told() == "pods 0"

    async def test_ended_sessions_and_their_files_are_not_kept_for_ever(
        self, serve: Callable[..., Server], server: Server
    ) -> None:
        async with server.client() as client:
            session = await replayed(client, target="file")
            waiting = await create(client, target="file")
        server.stop()
        server = serve(data=server.data, retention__replays_days=1e-6)
        async with server.client() as client, asyncio.timeout(10):
            while (await client.get(f"{SESSIONS}/{session['session_id']}")).status_code != 404:  # noqa: ASYNC110
                await asyncio.sleep(0.02)  # a sweep tells nobody
            assert list((server.data / REPLAYS_FOLDER).iterdir()) == []
            assert (await client.get(f"{SESSIONS}/{waiting['session_id']}")).status_code == 200


@pytest.mark.embedded  # the damage is done in the server's file
class TestRebuild:
    async def rebuilt(self, client: Client, what: str) -> dict[str, Any]:
        answer = await client.post("/admin/rebuild", json={"what": what})
        assert answer.status_code == 202, answer.text
        return await ended(client, answer.json()["session_id"])

    async def test_a_damaged_index_is_made_anew_equal_by_its_digest(self, server: Server, admin: Client) -> None:
        whole = await self.rebuilt(admin, "event_index")
        assert whole["status"] == "completed"
        assert whole["digest_before"] == whole["digest_after"]
        assert whole["progress"]["replayed"] == whole["progress"]["total"] == RUNS * PER_RUN
        asked(server, "update event_index set type = 'execution.failed', at_us = 7 where offset % 5 = 0")
        asked(server, "delete from event_index where offset % 7 = 0")
        asked(
            server,
            "insert into event_index select 1000000 - offset, 'ghost', type, execution_id, null, null, 0, 0,"
            " null, null from event_index where offset = 1",
        )
        assert (await admin.get("/admin/events/stats")).json()["total"] != RUNS * PER_RUN
        mended = await self.rebuilt(admin, "event_index")
        assert mended["digest_before"] != whole["digest_after"]
        assert mended["digest_after"] == whole["digest_after"]
        assert (await admin.get("/admin/events/stats")).json()["total"] == RUNS * PER_RUN
        again = await self.rebuilt(admin, "event_index")
        assert again["digest_before"] == again["digest_after"] == whole["digest_after"]

    async def test_documents_that_say_something_else_are_found_and_left_alone(
        self, server: Server, admin: Client
    ) -> None:
        clean = await self.rebuilt(admin, "compare_documents")
        assert clean["status"] == "completed"
        assert (clean["progress"]["replayed"], clean["errors"]) == (RUNS, [])
        names = [run["execution_id"] for run in (await documents(admin))["executions"][:4]]
        for name, path, value in (
            (names[0], "$.outcome.exit_code", 7),
            (names[1], "$.user_id", "somebody"),
            (names[2], "$.usage.cpu_user_ns", -1),
        ):
            asked(
                server,
                "update execution set doc = cast(json_set(cast(doc as text), ?, ?) as blob) where id = ?",
                *(path, value, name),
            )
        asked(server, "delete from log where key = ? and type = 'execution.started'", names[3])
        asked(server, "delete from event_index where execution_id = ? and type = 'execution.started'", names[3])
        stored = asked(server, "select id, version, doc from execution order by id")
        found = await self.rebuilt(admin, "compare_documents")
        errors = {error["subject"]: error["reason"] for error in found["errors"]}
        assert set(errors) == set(names)
        assert errors[names[0]].startswith("different: outcome: ")
        assert "user_id" in errors[names[1]]
        assert "usage" in errors[names[2]]
        assert errors[names[3]] == "incomplete: the log has no event for version 2"
        progress = found["progress"]
        assert (progress["replayed"], progress["failed"], progress["skipped"]) == (RUNS - 4, 3, 1)
        assert asked(server, "select id, version, doc from execution order by id") == stored


class TestRights:
    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("GET", SESSIONS, None),
            ("POST", SESSIONS, {"target": "log"}),
            ("GET", f"{SESSIONS}/x", None),
            ("GET", f"{SESSIONS}/x/status", None),
            ("GET", f"{SESSIONS}/x/download", None),
            ("DELETE", f"{SESSIONS}/x", None),
            *(("POST", f"{SESSIONS}/x/{verb}", None) for verb in ("start", "pause", "resume", "cancel")),
            ("POST", "/admin/events/replay", {"aggregate_id": "x"}),
            ("POST", "/admin/rebuild", {"what": "event_index"}),
        ],
    )
    async def test_it_is_for_administrators(
        self, client: Client, stranger: Client, method: str, path: str, body: Any
    ) -> None:
        answer = await stranger.http.request(method, path, json=body)
        assert_problem(answer, 403, "scope_missing")
        if path.startswith(f"{SESSIONS}/x"):
            assert_problem(await client.http.request(method, path, json=body), 404, "not_found")

    @pytest.mark.parametrize(
        ("field", "body"),
        [
            ("target", {}),
            ("target", {"target": "kafka"}),
            ("target", {"target": "event_index"}),
            ("speed", {"target": "log", "speed": 0.05}),
            ("speed", {"target": "log", "speed": 101}),
            ("max_events", {"target": "log", "max_events": 0}),
            ("max_events", {"target": "log", "max_events": 100_001}),
            ("target_file_path", {"target": "file", "target_file_path": "/etc/passwd"}),
            ("filters.event_types.0", {"target": "log", "filters": {"event_types": ["execution_exploded"]}}),
            ("filters.start_time", {"target": "log", "filters": {"start_time": "2026-01-05T00:00:00"}}),
            ("filters.event_ids.0", {"target": "log", "filters": {"event_ids": [""]}}),
        ],
    )
    async def test_what_cannot_be_is_refused(self, client: Client, field: str, body: Any) -> None:
        assert_problem(await client.post(SESSIONS, json=body), 422, "validation_failed", field)

    async def test_a_replay_is_no_rebuild(self, client: Client) -> None:
        assert_problem(await client.post("/admin/rebuild", json={"what": "log"}), 422, "validation_failed", "what")
