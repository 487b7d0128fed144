"""The list of a user's executions: filters, and pages without a gap or a duplicate."""

from datetime import datetime
from itertools import chain
from typing import Any

from tests.e2e.server import Client


async def pages(client: Client, **query: Any) -> list[list[str]]:
    """Return the ids of every page, following the cursors to the end."""
    found: list[list[str]] = []
    while True:
        answer = await client.get("/user/executions", params=query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found.append([execution["execution_id"] for execution in page["executions"]])
        if page["next_cursor"] is None:
            return found
        query["cursor"] = page["next_cursor"]


def joined(found: list[list[str]]) -> list[str]:
    return list(chain.from_iterable(found))


async def test_pages_have_no_gap_and_no_duplicate_while_runs_are_added(stranger: Client) -> None:
    before = joined(await pages(stranger))
    made = [await stranger.execute("print 1") for _ in range(11)]
    expected = made[::-1] + before
    assert joined(await pages(stranger, limit=200)) == expected
    for limit in (1, 3, 11):
        found = await pages(stranger, limit=limit)
        assert joined(found) == expected
        assert all(len(page) == limit for page in found[:-1])
    answer = (await stranger.get("/user/executions", params={"limit": 4})).json()
    added = await stranger.execute("print 2")
    seen = [execution["execution_id"] for execution in answer["executions"]]
    rest = joined(await pages(stranger, limit=4, cursor=answer["next_cursor"]))
    assert seen + rest == expected
    assert joined(await pages(stranger))[0] == added


async def test_page_of_exactly_the_rest_is_the_last(stranger: Client) -> None:
    made = [await stranger.execute("print 1", "bash") for _ in range(2)]
    total = len(joined(await pages(stranger)))
    answer = (await stranger.get("/user/executions", params={"limit": total})).json()
    assert (len(answer["executions"]), answer["next_cursor"]) == (total, None)
    assert answer["executions"][0]["execution_id"] == made[-1]


async def test_filters_hold_together(stranger: Client) -> None:
    ended = await stranger.run("print 1", "bash")
    failed = await stranger.run("end memory_limit", "bash")
    other = await stranger.run("end memory_limit")

    async def found(**query: Any) -> list[str]:
        return joined(await pages(stranger, **query))

    assert (await found(status="failed", lang="bash"))[0] == failed["execution_id"]
    assert ended["execution_id"] not in await found(status="failed")
    assert (await found(status="failed"))[:2] == [other["execution_id"], failed["execution_id"]]
    assert (await found(lang="bash"))[:2] == [failed["execution_id"], ended["execution_id"]]
    assert await found(status="queued") == []
    since = {"start_time": failed["created_at"]}
    assert await found(**since) == [other["execution_id"], failed["execution_id"]]
    assert await found(**since, end_time=other["created_at"]) == [failed["execution_id"]]
    assert failed["execution_id"] not in await found(end_time=failed["created_at"])
    assert datetime.fromisoformat(failed["created_at"]) < datetime.fromisoformat(other["created_at"])
