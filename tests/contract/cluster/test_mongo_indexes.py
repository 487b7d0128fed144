"""The indexes are there once a process has begun, and one that is another than the adapters rely on is refused."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from runtape.adapters.mongo.connection import Store, connect, open_store
from runtape.adapters.mongo.indexes import EXECUTIONS, INDEXES, USERS, make_indexes
from runtape.ports.errors import Permanent, Transient
from runtape.runtime.cluster import ClusterService, NoPodsProvider
from runtape.runtime.parts import KafkaSettings, MongoSettings, RedisSettings, RegistrySettings
from runtape.runtime.settings import Settings
from tests.rig.mongo import Mongo
from tests.rig.part import free_port

pytestmark = pytest.mark.needs("mongo")
_numbers = iter(range(1_000_000))


@pytest.fixture
async def store(mongo_part: Mongo) -> AsyncIterator[Store]:
    """An empty database."""
    client = connect(mongo_part.url)
    yield await open_store(client, f"{mongo_part.scope}indexes{next(_numbers)}")
    await client.close()


async def names(store: Store) -> dict[str, set[str]]:
    """Return what the indexes of each collection are called."""
    return {collection: set(await store[collection].index_information()) for collection in INDEXES}


ALL = {collection: {"_id_", *(model.document["name"] for model in models)} for collection, models in INDEXES.items()}


async def test_a_process_makes_them_in_an_empty_database_before_it_needs_anything_else(
    mongo_part: Mongo, store: Store, tmp_path: Path
) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    settings = Settings(
        profile="cluster",
        data=tmp_path,
        mongo=MongoSettings(url=SecretStr(mongo_part.url), database=store.name),
        kafka=KafkaSettings(bootstrap=nobody),
        registry=RegistrySettings(url=f"http://{nobody}"),
        redis=RedisSettings(url=SecretStr(f"redis://{nobody}")),
    )
    service = ClusterService(settings, None, NoPodsProvider())
    try:
        with pytest.raises(Transient, match="no worker has ever said"):
            await service.start()
    finally:
        await service.stop()
    assert await names(store) == ALL


async def test_those_that_are_there_are_left_as_they_are(store: Store) -> None:
    for _ in range(2):
        await make_indexes(store)
        assert await names(store) == ALL


@pytest.mark.parametrize(
    ("collection", "name", "fields", "options", "differs"),
    [
        pytest.param(USERS, "name", {"email": 1}, {"unique": True}, "other fields", id="field"),
        pytest.param(EXECUTIONS, "of_user", {"user_id": 1}, {}, "other fields", id="fewer"),
        pytest.param(EXECUTIONS, "of_user", {"user_id": 1, "_id": 1}, {}, "other fields", id="direction"),
        pytest.param(EXECUTIONS, "of_user", {"_id": -1, "user_id": 1}, {}, "other fields", id="order"),
        pytest.param(USERS, "name", {"username": 1}, {}, "another unique", id="unique"),
        pytest.param(EXECUTIONS, "due", {"due_us": 1}, {}, "another partialFilterExpression", id="whole"),
        pytest.param(
            EXECUTIONS,
            "due",
            {"due_us": 1},
            {"partialFilterExpression": {"status": {"$exists": True}}},
            "another partialFilterExpression",
            id="part",
        ),
    ],
)
async def test_another_one_of_the_same_name_is_refused_until_it_is_dropped(
    store: Store, collection: str, name: str, fields: dict[str, int], options: dict[str, Any], differs: str
) -> None:
    await store[collection].create_index(list(fields.items()), name=name, **options)
    with pytest.raises(Permanent, match=f"^index {name} of {collection} has {differs}; drop it and start again$"):
        await make_indexes(store)
    await store[collection].drop_index(name)
    await make_indexes(store)
    assert await names(store) == ALL
