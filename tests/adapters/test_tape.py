"""The tape in SQLite, between the moment at which records are committed and the one at which that is known."""

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from runtape.adapters.embedded.database import Database
from runtape.adapters.embedded.schema import STORE_SCHEMA
from runtape.adapters.embedded.tape import SqliteTapeStore
from runtape.ports.pod_runtime import PodKey
from tests.builders import EXECUTION, records

KEY = PodKey(EXECUTION, 1)


class Held(Database):
    """Tells of a commit some time after it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, STORE_SCHEMA, wal_bytes=1 << 16)
        self.told = asyncio.Event()
        self.told.set()
        self.committed = asyncio.Event()

    def write(self, *arguments: Any, **named: Any) -> asyncio.Future[Any]:
        return asyncio.ensure_future(self._tell_later(super().write(*arguments, **named)))

    async def _tell_later(self, writing: Awaitable[Any]) -> Any:
        answer = await writing
        self.committed.set()
        await self.told.wait()
        return answer


async def test_nobody_reads_a_record_before_the_summary_counts_it(tmp_path: Path) -> None:
    database = Held(tmp_path / "test.db")
    await database.open()
    tape = SqliteTapeStore(database)
    written = records("a", "b", "c")
    tape.open_tape(KEY)
    await tape.append(KEY, written[:1])
    database.told.clear()
    database.committed.clear()
    appending = asyncio.create_task(tape.append(KEY, written[1:]))
    await database.committed.wait()
    seen = await tape.read(KEY, 0, 1 << 20)
    assert [record.seq for record in seen] == [1]
    assert (await tape.summary(KEY)).last_seq == 1
    database.told.set()
    await appending
    assert list(await tape.read(KEY, 0, 1 << 20)) == written
    await database.close()
