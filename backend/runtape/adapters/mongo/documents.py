"""Execution and saga documents in MongoDB, and the unit of work that changes them with their outbox.

Theory of operation
===================
A row has the document as JSON under ``doc``, and beside it the fields that are searched or change without a new
version.  What the document has yet to tell is in the row too, under ``outbox``, in the order of its changes;
``told_us`` is since when, and is there as long as there is anything.  One conditional update writes all of it, so a
change and its messages are stored together or not at all.

What a change's owner is told is written before the document: who is interrupted in between does both again, and finds
the notification there.

A lease is extended beside the document, whose version stays.  Of two expiries of a live attempt the later holds, so an
update that is made from an older document does not shorten one: the update is a pipeline that compares.

Several processes write: nothing is kept in memory, and every read asks the store.
"""

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import msgspec
from pymongo import ASCENDING, DESCENDING
from pymongo.errors import DuplicateKeyError

from runtape.adapters.mongo.connection import Row, Rows, Store, transient
from runtape.adapters.mongo.events import EventRows
from runtape.adapters.mongo.indexes import EXECUTIONS, IDEMPOTENCY, NOTIFICATIONS, SAGAS, TAPES
from runtape.adapters.mongo.messages import told
from runtape.adapters.mongo.notifications import insert_notifications
from runtape.adapters.mongo.tape import of_execution
from runtape.adapters.mongo.together import Together
from runtape.application.relaying import key_of
from runtape.domain.execution import LEASE_GRACE, Execution
from runtape.domain.ids import ExecutionId, UserId
from runtape.domain.outcome import Status
from runtape.domain.saga import STATE_OF, Saga, SagaStep, settled
from runtape.domain.times import microseconds, moment
from runtape.ports.clock import Clock
from runtape.ports.errors import VersionConflict
from runtape.ports.events import Archival
from runtape.ports.outbox import DocumentKey
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import NEVER, Change, ExecutionFilter, IdempotencyKeyTaken, SagaFilter, folded

PAGE = 500

_encode = msgspec.json.Encoder().encode
_decode_execution = msgspec.json.Decoder(Execution).decode
_decode_saga = msgspec.json.Decoder(Saga).decode
_STATUS_OF = {state: status for status, state in STATE_OF.items()}


class MongoExecutionStore:
    """`ExecutionStore` over the collection ``executions``."""

    def __init__(self, store: Store, events: EventRows) -> None:
        self._rows = store[EXECUTIONS]
        self._sagas = store[SAGAS]
        self._tapes = store[TAPES]
        self._notifications = store[NOTIFICATIONS]
        self._events = events
        self._together = Together(self._fetch)

    async def get(self, execution_id: ExecutionId) -> Execution | None:
        return await self._together.get(execution_id)

    async def _fetch(self, ids: Sequence[ExecutionId]) -> Mapping[ExecutionId, Execution]:
        with transient():
            rows = await self._rows.find({"_id": {"$in": ids}}).to_list()
        return {row["_id"]: _execution(row) for row in rows}

    async def by_idempotency_key(self, user_id: UserId, key: str) -> Execution | None:
        with transient():
            row = await self._rows.find_one({"user_id": user_id, "idempotency_key": key})
        return _execution(row) if row else None

    async def release_idempotency_key(self, execution: Execution) -> None:
        if execution.idempotency is None:
            return
        with transient():
            await self._rows.update_one(
                {"_id": execution.id, "idempotency_key": execution.idempotency.key},
                {"$unset": {"idempotency_key": ""}},
            )

    async def extend_lease(self, keys: Sequence[PodKey], owner: str, expires_at: datetime) -> Sequence[PodKey]:
        if not keys:
            return []
        expires_us = microseconds(expires_at)
        held = {
            "$or": [{"_id": key.execution_id, "attempt": key.attempt} for key in keys],
            "lease_owner": owner,
            "status": Status.RUNNING,
        }
        with transient():
            await self._rows.update_many(
                held, {"$set": {"lease_us": expires_us, "due_us": microseconds(expires_at + LEASE_GRACE)}}
            )
            rows = await self._rows.find({**held, "lease_us": expires_us}, {"attempt": 1}).to_list()
        found = {(row["_id"], row["attempt"]) for row in rows}
        return [key for key in keys if (key.execution_id, key.attempt) in found]

    async def due(self, before: datetime, limit: int, beyond: datetime = NEVER) -> Sequence[Execution]:
        with transient():
            rows = await self._rows.find(_due(before, beyond)).sort("due_us", ASCENDING).limit(limit).to_list()
        return [_execution(row) for row in rows]

    async def unfinished(self) -> AsyncIterator[Execution]:
        after: Row | None = None
        while True:
            where: Row = {"due_us": {"$exists": True}}
            if after is not None:
                beyond = {"due_us": {"$gt": after["due_us"]}}
                where = {"$or": [beyond, {"due_us": after["due_us"], "_id": {"$gt": after["_id"]}}]}
            with transient():
                query = self._rows.find(where).sort([("due_us", ASCENDING), ("_id", ASCENDING)])
                rows = await query.limit(PAGE).to_list()
            for row in rows:
                yield _execution(row)
            if len(rows) < PAGE:
                return
            after = rows[-1]

    async def defer(self, execution: Execution, due_at: datetime) -> None:
        with transient():
            await self._rows.update_one(
                {"_id": execution.id, "version": execution.version, "due_us": {"$exists": True}},
                {"$set": {"due_us": microseconds(due_at)}},
            )

    async def list(self, where: ExecutionFilter, limit: int, before: ExecutionId | None) -> Sequence[Execution]:
        created: Row = {}
        if where.created_from is not None:
            created["$gte"] = microseconds(where.created_from)
        if where.created_before is not None:
            created["$lt"] = microseconds(where.created_before)
        conditions: Mapping[str, Any] = {
            "user_id": where.user_id,
            "project_id": where.project_id,
            "status": where.status,
            "lang": where.lang,
            "priority": where.priority,
            "created_us": created or None,
            "_id": None if before is None else {"$lt": before},
        }
        chosen = {name: value for name, value in conditions.items() if value is not None}
        with transient():
            rows = await self._rows.find(chosen).sort("_id", DESCENDING).limit(limit).to_list()
        return [_execution(row) for row in rows]

    async def delete(self, execution_id: ExecutionId, archival: Archival) -> None:
        await self._events.archive_execution(execution_id, archival)
        await self.remove(execution_id)

    async def remove(self, execution_id: ExecutionId) -> None:
        """Remove the execution with its saga, tape and notifications; its events stay."""
        # The execution goes last: who is interrupted finds it there, and deletes it again.
        with transient():
            await self._notifications.delete_many({"execution_id": execution_id})
            await self._sagas.delete_one({"_id": execution_id})
            await self._tapes.delete_many({"tape": of_execution(execution_id)})
            await self._rows.delete_one({"_id": execution_id})


class MongoSagaStore:
    """`SagaStore` over the collection ``sagas``."""

    def __init__(self, store: Store) -> None:
        self._rows = store[SAGAS]
        self._executions = store[EXECUTIONS]
        self._together = Together(self._fetch)

    async def get(self, execution_id: ExecutionId) -> Saga | None:
        return await self._together.get(execution_id)

    async def _fetch(self, ids: Sequence[ExecutionId]) -> Mapping[ExecutionId, Saga]:
        with transient():
            rows = await self._rows.find({"_id": {"$in": ids}}, {"doc": 1}).to_list()
        return {row["_id"]: _decode_saga(row["doc"]) for row in rows}

    async def unfinished(self) -> AsyncIterator[Saga]:
        after = ""
        while True:
            with transient():
                query = self._rows.find({"unfinished": True, "_id": {"$gt": after}}).sort("_id", ASCENDING)
                rows = await query.limit(PAGE).to_list()
            for row in rows:
                yield _decode_saga(row["doc"])
            if len(rows) < PAGE:
                return
            after = rows[-1]["_id"]

    async def due(self, before: datetime, limit: int, beyond: datetime = NEVER) -> Sequence[Saga]:
        with transient():
            rows = await self._rows.find(_due(before, beyond)).sort("due_us", ASCENDING).limit(limit).to_list()
        return [_decode_saga(row["doc"]) for row in rows]

    async def list(self, where: SagaFilter, limit: int, before: ExecutionId | None) -> Sequence[Saga]:
        # Whose a saga is and how it ended stands in its execution, so those are gone through.
        ended = _STATUS_OF.get(where.state) if where.state is not None else None
        found: list[Saga] = []
        while len(found) < limit:
            ids: Row = {} if before is None else {"$lt": before}
            if where.execution_id is not None:
                ids["$eq"] = where.execution_id
            chosen = {"user_id": where.user_id, "status": ended, "_id": ids or None}
            with transient():
                query = self._executions.find(
                    {name: value for name, value in chosen.items() if value is not None}, {"status": 1}
                )
                statuses = {row["_id"]: row["status"] async for row in query.sort("_id", DESCENDING).limit(PAGE)}
                rows = {row["_id"]: row async for row in self._rows.find({"_id": {"$in": list(statuses)}})}
            for execution_id, status in statuses.items():
                if execution_id in rows:
                    saga = settled(_decode_saga(rows[execution_id]["doc"]), Status(status))
                    if where.state is None or saga.state is where.state:
                        found.append(saga)
            if len(statuses) < PAGE:
                break
            before = min(statuses)
        return found[:limit]


class MongoUnitOfWork:
    """`UnitOfWork`: each document in a write of its own, in order, with its messages in its outbox.

    `Durability` makes no difference: a write that was acknowledged is in the journal of a majority.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self._executions = store[EXECUTIONS]
        self._sagas = store[SAGAS]
        self._notifications = store[NOTIFICATIONS]
        self._clock = clock

    async def commit(
        self, changes: Sequence[Change], handled_by: frozenset[str] = frozenset()
    ) -> Collection[DocumentKey]:
        behind: list[DocumentKey] = []
        for change in folded(changes):
            document = change.document
            if change.notifications:
                await insert_notifications(self._notifications, change.notifications)
            if isinstance(document, Execution):
                had_more = await self._write_execution(change, document)
            else:
                had_more = await self._write_saga(change, document)
            if had_more:
                behind.append(key_of(document))
        return behind

    async def _write_execution(self, change: Change, execution: Execution) -> bool:
        """Write it; return whether it had something to tell before."""
        fields = _execution_fields(execution)
        outbox = [told(message) for message in change.messages]
        if change.expected_version == 0:
            row = {"_id": execution.id, **_present(fields), **self._outbox(outbox)}
            try:
                with transient():
                    await self._executions.insert_one(row)
            except DuplicateKeyError as error:
                if IDEMPOTENCY in str(error):
                    raise IdempotencyKeyTaken(row.get("idempotency_key")) from error
                raise VersionConflict(f"execution {execution.id} exists") from error
            return False
        # What is set apart from the version is left as it is, or compared.
        for name in ("idempotency_key", "user_id", "project_id", "lang", "created_us", "blob"):
            del fields[name]
        live = execution.status is Status.RUNNING
        later = {"$and": [{"$eq": ["$status", Status.RUNNING]}, live]}
        for name in ("due_us", "lease_us"):
            value = fields.pop(name)
            fields[name] = {"$cond": [later, {"$max": [f"${name}", value]}, _value(value)]}
        compared = {name: fields.pop(name) for name in ("due_us", "lease_us")}
        stages = [{"$set": {**{name: _value(value) for name, value in fields.items()}, **compared}}]
        return await self._update(self._executions, execution.id, change.expected_version, stages, outbox)

    async def _write_saga(self, change: Change, saga: Saga) -> bool:
        """Write it; return whether it had something to tell before."""
        fields: Row = {
            "version": saga.version,
            "due_us": saga.due_at and microseconds(saga.due_at),
            "unfinished": saga.step is not SagaStep.DONE,
            "doc": _encode(saga),
        }
        outbox = [told(message) for message in change.messages]
        if change.expected_version == 0:
            try:
                with transient():
                    await self._sagas.insert_one({"_id": saga.execution_id, **_present(fields), **self._outbox(outbox)})
            except DuplicateKeyError as error:
                raise VersionConflict(f"saga {saga.execution_id} exists") from error
            return False
        stages = [{"$set": {name: _value(value) for name, value in fields.items()}}]
        return await self._update(self._sagas, saga.execution_id, change.expected_version, stages, outbox)

    async def _update(
        self, rows: Rows, execution_id: ExecutionId, expected_version: int, stages: list[Row], outbox: list[Row]
    ) -> bool:
        where = {"_id": execution_id, "version": expected_version}
        if outbox:
            now_us = microseconds(self._clock.now())
            stages.append(
                {
                    "$set": {
                        "outbox": {"$concatArrays": [{"$ifNull": ["$outbox", []]}, {"$literal": outbox}]},
                        "told_us": {"$ifNull": ["$told_us", now_us]},
                    }
                }
            )
            with transient():
                before = await rows.find_one_and_update(where, stages, {"told_us": 1})
            if before is not None:
                return "told_us" in before
        else:
            with transient():
                done = await rows.update_one(where, stages)
            if done.matched_count == 1:
                return False
        raise VersionConflict(f"{execution_id} in {rows.name} is no longer at version {expected_version}")

    def _outbox(self, outbox: list[Row]) -> Row:
        return {"outbox": outbox, "told_us": microseconds(self._clock.now())} if outbox else {}


def _execution_fields(execution: Execution) -> Row:
    return {
        "version": execution.version,
        "user_id": execution.user_id,
        "project_id": execution.project_id,
        "status": execution.status,
        "lang": execution.spec.lang,
        "priority": execution.spec.priority,
        "created_us": microseconds(execution.created_at),
        "due_us": execution.due_at and microseconds(execution.due_at),
        "attempt": execution.attempt,
        "lease_owner": execution.lease and execution.lease.owner,
        "lease_us": execution.lease and microseconds(execution.lease.expires_at),
        "idempotency_key": execution.idempotency and execution.idempotency.key,
        "blob": execution.source.blob_sha256,
        "artifacts": [artifact.sha256 for artifact in execution.artifacts.kept] or None,
        "doc": _encode(execution),
    }


def _present(fields: Row) -> Row:
    return {name: value for name, value in fields.items() if value is not None}


def _value(value: Any) -> Any:
    """Return `value` as a pipeline takes it: None removes the field, and no text is an expression."""
    return "$$REMOVE" if value is None else {"$literal": value}


def _due(before: datetime, beyond: datetime) -> Row:
    passed = {"due_us": {"$lte": microseconds(before)}}
    if beyond == NEVER:
        return passed
    return {"$or": [passed, {"due_us": {"$gt": microseconds(beyond)}}]}


def _execution(row: Row) -> Execution:
    """Decode a row, whose fields win over the document."""
    execution = _decode_execution(row["doc"])
    changed: dict[str, Any] = {}
    if "due_us" in row:
        changed["due_at"] = moment(row["due_us"])
    if "lease_us" in row and execution.lease is not None:
        changed["lease"] = replace(execution.lease, expires_at=moment(row["lease_us"]))
    if "idempotency_key" not in row and execution.idempotency is not None:
        changed["idempotency"] = None
    return replace(execution, **changed) if changed else execution
