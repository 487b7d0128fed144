"""Filling a store: `python -m runtape.bench.preload DATA COUNT` adds COUNT finished executions of the admin.

They go through the adapters of the embedded profile, each in one commit instead of three, while no server has the
folder open.
"""

import asyncio
import hashlib
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from runtape.adapters.embedded import identity_store, schema
from runtape.adapters.embedded.clock import SystemClock, Uuid7Ids
from runtape.adapters.embedded.database import Database
from runtape.adapters.embedded.documents import SqliteExecutionStore, SqliteSagaStore, SqliteUnitOfWork
from runtape.adapters.embedded.event_store import SqliteEventStore
from runtape.adapters.embedded.identity_store import SqliteIdentityStore
from runtape.adapters.embedded.log import SqliteEventLog
from runtape.adapters.embedded.passwords import Argon2Hasher
from runtape.adapters.embedded.tape import SqliteTapeStore
from runtape.application import admission, running, storing
from runtape.application.identity import ADMIN_NAME, Identity
from runtape.application.running import LEASE_TTL
from runtape.bench.answers import PRINTED, SCRIPT
from runtape.domain import execution as executions
from runtape.domain import saga as sagas
from runtape.domain.events import ExecutionEvent, ExecutionRequested, Message, StoredResult
from runtape.domain.execution import Execution, SourceRef, Spec, evolve
from runtape.domain.identity import User
from runtape.domain.ids import ExecutionId
from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome, OutcomeKind, Usage
from runtape.domain.source import Source
from runtape.domain.tape import Record, Stream
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import Change, Durability
from runtape.runtime.providers.embedded import DATABASE_FILE

AT_ONCE = 250
_GROUPS = (admission.GROUP, running.GROUP, storing.GROUP)
_DIGEST = hashlib.sha256(PRINTED.encode()).hexdigest()
_NOTHING = hashlib.sha256().hexdigest()


def life(execution: Execution, at: datetime) -> list[Change]:
    """Return the changes that a run of `execution`, which is new, comes to: one per document."""
    requested = _requested(execution, at)
    saga, commands = sagas.admit(sagas.begin(requested), at)
    messages: list[Message] = [requested, *commands]
    execution = evolve(execution, requested)
    outcome = Outcome(kind=OutcomeKind.EXITED, exit_code=0)
    usage = Usage(wall_ns=1_000_000, output_bytes=len(PRINTED))
    result = StoredResult(stdout_bytes=len(PRINTED), stdout_sha256=_DIGEST, stderr_sha256=_NOTHING)
    steps: tuple[Callable[[Execution], list[ExecutionEvent]], ...] = (
        lambda now: executions.start(now, 1, "bench", at, LEASE_TTL),
        lambda now: executions.finish(now, 1, outcome, usage, 1, at),
        lambda now: executions.store_result(now, result, at),
    )
    for step in steps:
        for event in step(execution):
            execution = evolve(execution, event)
            saga, _ = sagas.follow(saga, event)
            messages.append(event)
    return [
        Change(document=execution, expected_version=0, messages=tuple(messages), durability=Durability.PROCESS),
        Change(document=saga, expected_version=0, messages=(), durability=Durability.PROCESS),
    ]


def _requested(execution: Execution, at: datetime) -> ExecutionRequested:
    (event,) = executions.request(execution, at)
    assert isinstance(event, ExecutionRequested)
    return event


async def preload(data: Path, count: int) -> None:
    """Add `count` finished executions to the store in `data`, and the admin if there is none."""
    clock, ids = SystemClock(), Uuid7Ids()
    database = Database(data / DATABASE_FILE, (*schema.STORE_SCHEMA, *identity_store.SCHEMA))
    await database.open()
    try:
        identities = SqliteIdentityStore(database)
        await Identity(identities, Argon2Hasher(), clock, ids).ensure_admin(None)
        admin = await identities.user_by_name(ADMIN_NAME)
        assert admin is not None
        saga_store = SqliteSagaStore(database)
        store = SqliteExecutionStore(database, saga_store)
        unit_of_work = SqliteUnitOfWork(database, store, saga_store, SqliteEventLog(database))
        tape = SqliteTapeStore(database)

        async def one() -> None:
            execution = _new(admin, ExecutionId(ids.new_id()), clock.now())
            record = Record(1, Stream.STDOUT, 1000, PRINTED.encode())
            await asyncio.gather(
                tape.append(PodKey(execution.id, 1), [record]),
                unit_of_work.commit(life(execution, execution.created_at)),
            )

        for start in range(0, count, AT_ONCE):
            await asyncio.gather(*(one() for _ in range(min(AT_ONCE, count - start))))
        # All of it was acted on: a server must not begin by reading the log from its start.
        await database.write(
            lambda c: (
                c.executemany(
                    "insert or replace into consumer_offset select ?, max(offset) from log",
                    [(group,) for group in _GROUPS],
                ).rowcount
            )
        )
        # A server that has run them has indexed their events meanwhile, and is not to be measured while it does so.
        await SqliteEventStore(database).index()
    finally:
        await database.close()


def _new(owner: User, execution_id: ExecutionId, at: datetime) -> Execution:
    return Execution(
        id=execution_id,
        project_id=owner.project_id,
        user_id=owner.id,
        spec=Spec(lang="python", lang_version="3.11", limits=Limits()),
        source=SourceRef(inline=Source(script=SCRIPT)),
        created_at=at,
    )


if __name__ == "__main__":
    asyncio.run(preload(Path(sys.argv[1]), int(sys.argv[2])))
