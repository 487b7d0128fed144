"""What documents in MongoDB have yet to tell."""

from collections.abc import Collection, Mapping, Sequence

from pymongo import ASCENDING, UpdateOne, WriteConcern

from runtape.adapters.mongo.connection import Rows, Store, transient
from runtape.adapters.mongo.indexes import EXECUTIONS, SAGAS
from runtape.adapters.mongo.messages import message_of
from runtape.adapters.mongo.together import Together
from runtape.domain.events import Message
from runtape.domain.ids import EventId, ExecutionId
from runtape.ports.outbox import DocumentKey, DocumentKind, Waiting

AT_ONCE = WriteConcern(w=1, j=False)
"""A removal that a crash takes back is done again, after its message was published again."""


_Removal = tuple[DocumentKey, frozenset[EventId]]
"""Which messages of a document were published."""


class MongoOutbox:
    """`Outbox` over the rows of executions and sagas."""

    def __init__(self, store: Store) -> None:
        self._rows: dict[DocumentKind, Rows] = {
            DocumentKind.EXECUTION: store.get_collection(EXECUTIONS, write_concern=AT_ONCE),
            DocumentKind.SAGA: store.get_collection(SAGAS, write_concern=AT_ONCE),
        }
        self._removals = Together(self._remove)

    async def read(self, document: DocumentKey) -> Sequence[Message]:
        with transient():
            row = await self._rows[document.kind].find_one({"_id": document.id}, {"outbox": 1})
        return [message_of(each) for each in (row or {}).get("outbox", ())]

    async def remove(self, document: DocumentKey, published: Collection[EventId]) -> None:
        await self._removals.get((document, frozenset(published)))

    async def _remove(self, removals: Sequence[_Removal]) -> Mapping[_Removal, None]:
        for kind, rows in self._rows.items():
            updates = [_removal(document.id, published) for document, published in removals if document.kind is kind]
            if updates:
                with transient():
                    await rows.bulk_write(updates, ordered=False)
        return {}

    async def unpublished(self, limit: int) -> Sequence[Waiting]:
        waiting: list[Waiting] = []
        for kind, rows in self._rows.items():
            with transient():
                query = rows.find({"told_us": {"$exists": True}}, {"told_us": 1}).sort("told_us", ASCENDING)
                found = await query.limit(limit).to_list()
            waiting += [Waiting(DocumentKey(kind, ExecutionId(row["_id"])), row["told_us"]) for row in found]
        return sorted(waiting, key=lambda each: each.mark)[:limit]

    async def take_up(self, waiting: Waiting) -> bool:
        # It stays among the oldest: who has waited long is looked at first when this caller dies as well.
        where = {"_id": waiting.document.id, "told_us": waiting.mark}
        with transient():
            done = await self._rows[waiting.document.kind].update_one(where, {"$inc": {"told_us": 1}})
        return done.matched_count == 1


def _removal(document_id: ExecutionId, published: Collection[EventId]) -> UpdateOne:
    ids = list(published)
    left = {"$filter": {"input": "$outbox", "cond": {"$not": [{"$in": ["$$this.id", ids]}]}}}
    nothing = {"$eq": [{"$size": "$outbox"}, 0]}
    return UpdateOne(
        {"_id": document_id, "outbox.id": {"$in": ids}},
        [
            {"$set": {"outbox": left}},
            {"$set": {name: {"$cond": [nothing, "$$REMOVE", f"${name}"]} for name in ("told_us", "outbox")}},
        ],
    )
