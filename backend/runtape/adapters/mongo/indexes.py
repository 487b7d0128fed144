"""The indexes that the adapters rely on: made at the start, and compared with what is there."""

from collections.abc import Mapping, Sequence

from pymongo import ASCENDING, DESCENDING, IndexModel

from runtape.adapters.mongo.connection import Store, transient
from runtape.ports.errors import Permanent

EXECUTIONS, SAGAS, TAPES, BLOBS, PARTS = "executions", "sagas", "tapes", "blobs", "blob_parts"
USERS, SESSIONS, API_KEYS, DEAD_LETTERS = "users", "sessions", "api_keys", "dead_letters"
EVENTS, EVENT_ARCHIVE, REPLAYS, REPLAY_PARTS = "events", "event_archive", "replays", "replay_parts"
SETTINGS, COUNTERS, WORKERS = "settings", "counters", "workers"
NOTIFICATIONS = "notifications"
IDEMPOTENCY = "idempotency"


def _by_time(name: str, time: str = "at_us") -> IndexModel:
    """Return the index that finds what has one value in `name`, newest first."""
    return IndexModel([(name, ASCENDING), (time, DESCENDING), ("number", DESCENDING)], name=f"by_{name}")


def _there(*names: str) -> dict[str, object]:
    return {name: {"$exists": True} for name in names}


INDEXES: Mapping[str, Sequence[IndexModel]] = {
    EXECUTIONS: (
        IndexModel(
            [("user_id", ASCENDING), ("idempotency_key", ASCENDING)],
            name=IDEMPOTENCY,
            unique=True,
            partialFilterExpression=_there("idempotency_key"),
        ),
        IndexModel([("due_us", ASCENDING)], name="due", partialFilterExpression=_there("due_us")),
        IndexModel([("told_us", ASCENDING)], name="outbox", partialFilterExpression=_there("told_us")),
        IndexModel([("user_id", ASCENDING), ("_id", DESCENDING)], name="of_user"),
        IndexModel([("project_id", ASCENDING), ("_id", DESCENDING)], name="of_project"),
        IndexModel([("status", ASCENDING), ("_id", DESCENDING)], name="by_status"),
        IndexModel([("created_us", ASCENDING)], name="by_age"),
        IndexModel([("blob", ASCENDING)], name="blob", partialFilterExpression=_there("blob")),
        IndexModel([("artifacts", ASCENDING)], name="artifacts", partialFilterExpression=_there("artifacts")),
    ),
    SAGAS: (
        IndexModel([("due_us", ASCENDING)], name="due", partialFilterExpression=_there("due_us")),
        IndexModel([("told_us", ASCENDING)], name="outbox", partialFilterExpression=_there("told_us")),
        IndexModel([("unfinished", ASCENDING), ("_id", ASCENDING)], name="unfinished"),
    ),
    TAPES: (
        # Of two pages that end in the same record the second seals the tape.
        IndexModel([("tape", ASCENDING), ("last_seq", ASCENDING), ("page", ASCENDING)], name="records"),
    ),
    BLOBS: (
        IndexModel([("created_us", ASCENDING), ("_id", ASCENDING)], name="by_age"),
        IndexModel([("parts", ASCENDING)], name="parts", partialFilterExpression=_there("parts")),
    ),
    PARTS: (
        IndexModel([("of", ASCENDING), ("number", ASCENDING)], name="of"),
        IndexModel([("created_us", ASCENDING), ("_id", ASCENDING)], name="by_age"),
    ),
    EVENTS: (
        IndexModel([("number", ASCENDING)], name="number", unique=True, partialFilterExpression=_there("number")),
        IndexModel([("new", ASCENDING)], name="new", partialFilterExpression=_there("new")),
        IndexModel([("at_us", DESCENDING), ("number", DESCENDING)], name="by_time"),
        *map(_by_time, ("type", "execution_id", "correlation_id", "user_id", "project_id")),
    ),
    EVENT_ARCHIVE: (
        IndexModel([("archived_us", DESCENDING), ("number", DESCENDING)], name="by_time"),
        _by_time("execution_id", "archived_us"),
    ),
    REPLAYS: (
        IndexModel([("status", ASCENDING), ("_id", ASCENDING)], name="by_status"),
        IndexModel([("ended_us", ASCENDING)], name="by_age", partialFilterExpression=_there("ended_us")),
    ),
    REPLAY_PARTS: (IndexModel([("session", ASCENDING), ("start", ASCENDING)], name="of"),),
    USERS: (IndexModel([("username", ASCENDING)], name="name", unique=True),),
    SESSIONS: (
        IndexModel([("token_sha256", ASCENDING)], name="token", unique=True),
        IndexModel([("expires_us", ASCENDING)], name="expiry"),
    ),
    API_KEYS: (
        IndexModel([("key_sha256", ASCENDING)], name="key", unique=True),
        IndexModel([("user_id", ASCENDING), ("created_us", ASCENDING), ("_id", ASCENDING)], name="of_user"),
    ),
    DEAD_LETTERS: (
        IndexModel(
            [(name, ASCENDING) for name in ("consumer_group", "topic", "partition", "offset")],
            name="place",
            unique=True,
        ),
        IndexModel(
            [("consumer_group", ASCENDING), ("key", ASCENDING), ("message_id", ASCENDING)],
            name="message",
            unique=True,
            partialFilterExpression=_there("open", "message_id"),
        ),
        IndexModel(
            [("consumer_group", ASCENDING), ("key", ASCENDING), ("_id", ASCENDING)],
            name="line",
            partialFilterExpression=_there("open"),
        ),
        IndexModel([("next_retry_us", ASCENDING)], name="retry", partialFilterExpression=_there("next_retry_us")),
        IndexModel([("last_us", ASCENDING)], name="tried", partialFilterExpression=_there("next_retry_us")),
        IndexModel([("resolved_us", ASCENDING)], name="by_age", partialFilterExpression=_there("resolved_us")),
    ),
    NOTIFICATIONS: (
        IndexModel([("user_id", ASCENDING), ("created_us", DESCENDING), ("_id", DESCENDING)], name="of_user"),
        IndexModel(
            [("user_id", ASCENDING), ("created_us", DESCENDING), ("_id", DESCENDING)],
            name="unread",
            partialFilterExpression=_there("unread"),
        ),
        IndexModel([("created_us", ASCENDING)], name="by_age"),
        IndexModel([("execution_id", ASCENDING)], name="of_execution", partialFilterExpression=_there("execution_id")),
    ),
}


async def make_indexes(store: Store) -> None:
    """Make every index, and check those that are there.  Raises: Permanent, naming what differs; Transient."""
    for collection, models in INDEXES.items():
        with transient():
            present = await store[collection].index_information()
        for model in models:
            wanted = model.document
            found = present.get(wanted["name"])
            if found is None:
                with transient():
                    await store[collection].create_indexes([model])
                continue
            for option in ("unique", "partialFilterExpression"):
                if found.get(option) != wanted.get(option):
                    raise Permanent(
                        f"index {wanted['name']} of {collection} has another {option}; drop it and start again"
                    )
            if list(found["key"]) != list(wanted["key"].items()):  # in their order, which is what an index is
                raise Permanent(f"index {wanted['name']} of {collection} has other fields; drop it and start again")
