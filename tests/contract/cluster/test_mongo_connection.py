"""What a write waits for before it returns."""

from typing import Any

import pytest
from pymongo.monitoring import CommandListener

from runtape.adapters.mongo.connection import concern_for, connect, open_store
from tests.rig.mongo import Mongo

MAJORITY = {"w": "majority", "j": True}
ITS_OWN_JOURNAL = {"w": 1, "j": True}


@pytest.mark.parametrize("hello", [{"setName": "rs0"}, {"msg": "isdbgrid"}])
def test_where_there_are_replicas_a_majority_has_it(hello: dict[str, Any]) -> None:
    assert concern_for(hello).document == MAJORITY


def test_a_server_without_replicas_writes_its_own_journal_first() -> None:
    assert concern_for({"ok": 1.0}).document == ITS_OWN_JOURNAL


@pytest.mark.needs("mongo")
async def test_a_write_waits_for_a_majority_or_for_the_journal_whatever_the_url_says(mongo_part: Mongo) -> None:
    sent = _Sent()
    client = connect(mongo_part.url + "&w=0&journal=false", event_listeners=[sent])
    try:
        hello = await client.admin.command("hello")
        store = await open_store(client, f"{mongo_part.scope}connection")
        await store["things"].insert_one({"_id": 1})
        await store["things"].update_one({"_id": 1}, {"$set": {"seen": True}})
    finally:
        await client.close()
    assert [sent.concerns[name] for name in ("insert", "update")] == [concern_for(hello).document] * 2


class _Sent(CommandListener):
    def __init__(self) -> None:
        self.concerns: dict[str, Any] = {}

    def started(self, event: Any) -> None:
        self.concerns[event.command_name] = event.command.get("writeConcern")

    def succeeded(self, event: Any) -> None: ...

    def failed(self, event: Any) -> None: ...
