"""Events as administrators see them: of real runs, over HTTP."""

import asyncio
import csv
import io
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable
from operator import itemgetter
from typing import Any

import pytest

from runtape.runtime.providers.embedded import DATABASE_FILE
from tests.adapters.test_event_index import MANY
from tests.e2e.server import Client, Server

USER = "user-watched"
FORMULA = '=HYPERLINK("http://evil")'


@pytest.fixture(scope="module")
def ended() -> list[str]:
    """Ids of the executions that the tests of this module know, in the order of their start."""
    return []


@pytest.fixture
async def runs(client: Client, watched: Client, ended: list[str]) -> list[str]:
    """Return executions of one user: forty that ended by themselves, two that failed, one that was cancelled.

    All their events are told, so that those of this user are no more and no fewer from here on.
    """
    if not ended:
        made = await asyncio.gather(*(watched.run("print 1") for _ in range(40)))
        for script in ("end memory_limit", "end wall_limit"):
            ended.append((await watched.run(script))["execution_id"])
        waits = await watched.execute("wait for-ever")
        async with watched.stream(waits) as stream:
            await stream.until("execution_started")
        await watched.post(f"/executions/{waits}/cancel", json={"reason": FORMULA})
        await watched.ended(waits)
        ended.append(waits)
        await asyncio.gather(*(all_told(client, run) for run in ended + [run["execution_id"] for run in made]))
    return ended


async def browse(client: Client, limit: int = 500, cursor: str | None = None, **filters: Any) -> dict[str, Any]:
    answer = await client.post("/admin/events/browse", json={"filters": filters, "limit": limit, "cursor": cursor})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def all_pages(client: Client, limit: int, **filters: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        page = await browse(client, limit, cursor, **filters)
        found += page["events"]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


async def all_told(client: Client, execution_id: str) -> list[dict[str, Any]]:
    """Wait until the last event of an execution that has ended is in the log, and return all of them."""
    async with asyncio.timeout(20):
        while True:
            events = (await browse(client, execution_id=execution_id))["events"]
            if "result_stored" in {event["event_type"] for event in events}:
                return events
            await asyncio.sleep(0.01)


async def test_pages_of_one_user_have_every_event_once(client: Client, runs: list[str]) -> None:
    found = await all_pages(client, 500, user_id=USER)
    assert len(found) >= 43 * 4
    assert len({event["event_id"] for event in found}) == len(found)
    assert [event["timestamp"] for event in found] == sorted((event["timestamp"] for event in found), reverse=True)
    assert await all_pages(client, 7, user_id=USER) == found


async def test_filters_and_text(client: Client, runs: list[str]) -> None:
    failed, timeout, cancelled = runs
    kinds = ["execution_failed", "execution_timeout"]
    found = (await browse(client, user_id=USER, event_types=kinds))["events"]
    assert [event["execution_id"] for event in found[:2]] == [timeout, failed]
    assert found[1]["payload"]["outcome"]["kind"] == "memory_limit"
    of_one = (await browse(client, execution_id=failed))["events"]
    assert (await browse(client, aggregate_id=failed))["events"] == of_one
    assert [event["event_type"] for event in of_one][:2] == ["result_stored", "execution_failed"]
    correlated = (await browse(client, correlation_id=of_one[0]["correlation_id"]))["events"]
    assert correlated == of_one
    text = (await browse(client, search_text="hyperlink", execution_id=cancelled))["events"]
    assert [event["event_type"] for event in text] == ["execution_cancel_requested"]
    later = (await browse(client, execution_id=failed, start_time=of_one[0]["timestamp"]))["events"]
    assert later[0] == of_one[0]
    assert (await browse(client, execution_id=failed, end_time=of_one[-1]["timestamp"]))["events"] == []


async def test_an_event_with_what_belongs_to_it(client: Client, runs: list[str]) -> None:
    answer = await client.get(f"/admin/events/{runs[0]}.3")
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["event"]["event_type"], found["event"]["user_id"]) == ("execution_failed", USER)
    assert [step["event_type"] for step in found["timeline"]] == [
        "execution_requested",
        "pod_create",
        "execution_started",
        "execution_failed",
        "result_stored",
    ]
    elapsed = [step["elapsed_ms"] for step in found["timeline"]]
    assert elapsed[0] == 0
    assert elapsed == sorted(elapsed)
    assert {event["event_id"] for event in found["related"]} == {
        step["event_id"] for step in found["timeline"] if step["event_id"] != f"{runs[0]}.3"
    }
    assert (await client.get("/admin/events/nobody.1")).status_code == 404


async def test_statistics(client: Client, runs: list[str]) -> None:
    found = (await client.get("/admin/events/stats", params={"hours": 2})).json()
    assert found["total"] == sum(found["by_type"].values()) == sum(hour["events"] for hour in found["by_hour"])
    assert found["by_type"]["execution_completed"] >= 40
    assert len(found["by_hour"]) in (2, 3)
    users = {each["user_id"]: each["events"] for each in found["top_users"]}
    assert users[USER] == len(await all_pages(client, 500, user_id=USER))
    assert 0 < found["error_rate"] < 1
    assert 0 < found["mean_duration_ms"] < 60_000


async def test_exports_have_what_browsing_shows(client: Client, runs: list[str]) -> None:
    expected = await all_pages(client, 500, user_id=USER)
    as_json = await client.get("/admin/events/export/json", params={"user_id": USER})
    assert as_json.headers["content-disposition"] == 'attachment; filename="events.json"'
    assert as_json.json() == expected
    as_csv = await client.get("/admin/events/export/csv", params={"user_id": USER})
    assert as_csv.headers["content-type"].startswith("text/csv")
    rows = list(csv.DictReader(io.StringIO(as_csv.text, newline="")))
    assert [row["Event ID"] for row in rows] == [event["event_id"] for event in expected]
    assert Counter(row["Event Type"] for row in rows) == Counter(event["event_type"] for event in expected)
    few = await client.get(
        "/admin/events/export/json",
        params=[("event_types", "execution_failed"), ("event_types", "pod_create"), ("limit", "3")],
    )
    assert len(few.json()) == 3
    none = await client.get("/admin/events/export/json", params={"execution_id": "nobody"})
    assert none.json() == []


async def test_no_cell_of_the_table_is_a_formula(client: Client, runs: list[str]) -> None:
    answer = await client.get("/admin/events/export/csv", params={"execution_id": runs[2]})
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert "'" + FORMULA in {row["Reason"] for row in rows}
    assert not [cell for row in rows for cell in row.values() if cell.startswith(tuple("=+-@\t\r\n"))]


async def test_a_deleted_execution_is_in_the_archive(client: Client, stranger: Client) -> None:
    deleted = (await stranger.run("print 1"))["execution_id"]
    told = await all_told(client, deleted)
    assert (await client.http.delete(f"/executions/{deleted}")).status_code == 204
    assert (await browse(client, execution_id=deleted))["events"] == []
    archived = (await client.get("/admin/events/archive", params={"execution_id": deleted})).json()["events"]
    without = sorted(({name: event[name] for name in told[0]} for event in archived), key=itemgetter("event_id"))
    assert without == sorted(told, key=itemgetter("event_id"))
    about = {(event["archived_by"], event["reason"]) for event in archived}
    assert about == {("admin", "the execution was deleted")}
    first = (await client.get("/admin/events/archive", params={"limit": 2})).json()
    second = (await client.get("/admin/events/archive", params={"limit": 2, "cursor": first["next_cursor"]})).json()
    assert [event["event_id"] for event in first["events"] + second["events"]] == [
        event["event_id"] for event in archived[:4]
    ]


async def test_one_event_is_archived_unless_its_execution_is_live(client: Client, stranger: Client) -> None:
    live = await stranger.execute("wait archived")
    answer = await client.http.delete(f"/admin/events/{live}.1")
    assert (answer.status_code, answer.json()["code"]) == (409, "not_terminal")
    await stranger.post(f"/executions/{live}/cancel")
    await stranger.ended(live)
    answer = await client.http.delete(f"/admin/events/{live}.1", params={"reason": "a secret"})
    assert answer.status_code == 204, answer.text
    assert (await client.get(f"/admin/events/{live}.1")).status_code == 404
    assert (await client.http.delete(f"/admin/events/{live}.1")).status_code == 404
    (archived,) = (await client.get("/admin/events/archive", params={"execution_id": live})).json()["events"]
    assert (archived["event_id"], archived["reason"]) == (f"{live}.1", "a secret")


async def test_a_user_sees_causes_in_pages(watched: Client, runs: list[str]) -> None:
    everything = (await watched.get(f"/executions/{runs[0]}/events")).json()
    assert everything["next_cursor"] is None
    events = everything["events"]
    assert [event["causation_id"] for event in events] == [None, f"{runs[0]}.create.1", None, f"{runs[0]}.3"]
    assert len({event["correlation_id"] for event in events}) == 1
    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await watched.get(f"/executions/{runs[0]}/events", params={"limit": 3, **cursor})).json()
        found += page["events"]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert found == events


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/admin/events/browse", {}),
        ("GET", "/admin/events/stats", None),
        ("GET", "/admin/events/archive", None),
        ("GET", "/admin/events/export/csv", None),
        ("GET", "/admin/events/export/json", None),
        ("GET", "/admin/events/e.1", None),
        ("DELETE", "/admin/events/e.1", None),
    ],
)
async def test_events_are_for_administrators(stranger: Client, method: str, path: str, body: object) -> None:
    answer = await stranger.http.request(method, path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/admin/events/browse", {"filters": {"event_types": ["execution_exploded"]}}),
        ("/admin/events/browse", {"filters": {"execution_id": "a", "aggregate_id": "b"}}),
        ("/admin/events/browse", {"filters": {"start_time": "2026-01-05T00:00:00"}}),
        ("/admin/events/browse", {"filters": {"service_name": "backend"}}),
        ("/admin/events/browse", {"limit": 501}),
        ("/admin/events/browse", {"cursor": "1.2.3"}),
        ("/admin/events/browse", {"cursor": "99999999999999999999.1"}),
        ("/admin/events/stats?hours=169", None),
        ("/admin/events/export/csv?limit=50001", None),
        ("/admin/events/export/csv?event_types=a,b", None),
        ("/admin/events/export/xml", None),
    ],
)
async def test_what_is_not_understood_is_refused(client: Client, path: str, body: object) -> None:
    answer = await (client.get(path) if body is None else client.post(path, json=body))
    assert (answer.status_code, answer.json()["code"]) == (422, "validation_failed")


@pytest.fixture
async def laden(serve: Callable[..., Server]) -> AsyncIterator[tuple[Server, Client]]:
    """Start a server whose log has 50,000 events already."""
    server = serve()
    server.stop()
    store = sqlite3.connect(server.data / DATABASE_FILE)
    store.execute(MANY, (50_000,))
    store.commit()
    store.close()
    server.start()
    async with server.client() as client:
        yield server, client


@pytest.mark.embedded  # its events are put into the server's file
@pytest.mark.needs("patience")
async def test_an_export_takes_no_memory_however_long_it_is(laden: tuple[Server, Client]) -> None:
    server, client = laden
    sizes: dict[str, int] = {}
    for name in ("json", "csv"):
        await client.get(f"/admin/events/export/{name}", params={"limit": 100})
        before, size, events = server.peak_memory_bytes(), 0, 0
        async with client.http.stream("GET", f"/admin/events/export/{name}") as answer:
            async for line in answer.aiter_lines():
                size += len(line)
                events += line.count("execution_requested")
        assert events == 50_000
        sizes[name] = size
        assert server.peak_memory_bytes() - before < 6 << 20, name
    assert sizes["json"] > 12 << 20
