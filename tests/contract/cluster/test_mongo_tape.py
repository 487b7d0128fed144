"""A tape whose append is cut off between two of its pages."""

from typing import Any, cast

import pytest
from pymongo.errors import AutoReconnect

from runtape.adapters.mongo.connection import Store, connect, open_store
from runtape.adapters.mongo.indexes import TAPES, make_indexes
from runtape.adapters.mongo.tape import PAGE_BYTES, MongoTapeStore
from runtape.domain.ids import ExecutionId
from runtape.domain.tape import Record, Stream
from runtape.ports.errors import Unavailable
from runtape.ports.pod_runtime import PodKey
from tests.rig.mongo import Mongo

pytestmark = pytest.mark.needs("mongo")

KEY = PodKey(ExecutionId("cut-off"), 1)
RECORDS = [Record(seq=seq, stream=Stream.STDOUT, t_ns=0, data=bytes(PAGE_BYTES // 4)) for seq in range(1, 11)]


class Rows:
    """The pages, of which one cannot be written the first time; what was carried out of that insert is `done`."""

    def __init__(self, rows: Any, page: int, done: bool) -> None:
        self._rows = rows
        self._page = page
        self._done = done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows, name)

    async def insert_one(self, row: dict[str, Any]) -> object:
        if row["page"] != self._page:
            return await self._rows.insert_one(row)
        self._page = -1
        if self._done:
            await self._rows.insert_one(row)
        raise AutoReconnect("away")


@pytest.mark.parametrize("done", [False, True], ids=["lost", "carried out"])
@pytest.mark.parametrize("page", [0, 1, 2])
async def test_it_is_whole_when_it_is_appended_again(mongo_part: Mongo, page: int, done: bool) -> None:
    client = connect(mongo_part.url)
    try:
        store = await open_store(client, f"{mongo_part.scope}cut-off-{page}-{done}")
        await make_indexes(store)
        tape = MongoTapeStore(cast(Store, {TAPES: Rows(store[TAPES], page, done)}))
        tape.open_tape(KEY)
        with pytest.raises(Unavailable):
            await tape.append(KEY, RECORDS)
        await tape.append(KEY, RECORDS)
        reader = MongoTapeStore(store)
        assert await reader.reached(KEY, RECORDS[-1].seq)
        assert await reader.summary(KEY) == await tape.summary(KEY)
        rows = await store[TAPES].find().sort("page").to_list()
        assert [(row["first_seq"], row["last_seq"]) for row in rows] == [(1, 4), (5, 8), (9, 10)]
    finally:
        await client.close()
