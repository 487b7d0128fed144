"""Users, sessions and API keys in MongoDB: a JSON document each, beside the fields by which it is found."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import TypeVar

import msgspec
from pymongo import ASCENDING
from pymongo.errors import DuplicateKeyError

from runtape.adapters.mongo.connection import Row, Rows, Store, transient
from runtape.adapters.mongo.indexes import API_KEYS, SESSIONS, USERS
from runtape.adapters.mongo.together import Together
from runtape.domain.identity import ApiKey, Session, User
from runtape.domain.ids import ApiKeyId, SessionId, UserId
from runtape.domain.times import microseconds

T = TypeVar("T", ApiKey, Session)

_encode = msgspec.json.Encoder().encode
_users = msgspec.json.Decoder(User)
_sessions = msgspec.json.Decoder(Session)
_keys = msgspec.json.Decoder(ApiKey)


class MongoIdentityStore:
    """`IdentityStore` over the collections ``users``, ``sessions`` and ``api_keys``."""

    def __init__(self, store: Store) -> None:
        self._users = store[USERS]
        self._sessions = store[SESSIONS]
        self._keys = store[API_KEYS]
        self._sessions_by_digest = Together(partial(self._credentials, self._sessions, "token_sha256", _sessions))
        self._keys_by_digest = Together(partial(self._credentials, self._keys, "key_sha256", _keys))

    async def has_users(self) -> bool:
        with transient():
            return await self._users.find_one({}, {"_id": 1}) is not None

    async def user_by_name(self, username: str) -> User | None:
        if not _storable(username):
            return None
        with transient():
            row = await self._users.find_one({"username": username})
        return _user(row) if row else None

    async def add_user(self, user: User) -> bool:
        # The hash is changed alone, so it stands beside the document.
        row = {
            "_id": user.id,
            "username": user.username,
            "password_hash": user.password_hash,
            "doc": _encode(replace(user, password_hash="")),
        }
        try:
            with transient():
                await self._users.insert_one(row)
        except DuplicateKeyError:
            return False
        return True

    async def replace_password_hash(self, user_id: UserId, old: str, new: str) -> None:
        with transient():
            await self._users.update_one({"_id": user_id, "password_hash": old}, {"$set": {"password_hash": new}})

    async def add_session(self, session: Session) -> None:
        row = {
            "token_sha256": session.token_sha256,
            "expires_us": microseconds(session.expires_at),
            "doc": _encode(session),
        }
        with transient():
            await self._sessions.update_one({"_id": session.id}, {"$setOnInsert": row}, upsert=True)

    async def session_by_digest(self, token_sha256: str) -> tuple[Session, User] | None:
        return await self._sessions_by_digest.get(token_sha256)

    async def remove_session(self, session_id: SessionId) -> None:
        with transient():
            await self._sessions.delete_one({"_id": session_id})

    async def forget_sessions(self, expired_before: datetime) -> None:
        with transient():
            await self._sessions.delete_many({"expires_us": {"$lt": microseconds(expired_before)}})

    async def put_key(self, key: ApiKey) -> None:
        row = {
            "key_sha256": key.key_sha256,
            "user_id": key.user_id,
            "created_us": microseconds(key.created_at),
            "doc": _encode(key),
        }
        with transient():
            await self._keys.replace_one({"_id": key.id}, row, upsert=True)

    async def key_by_digest(self, key_sha256: str) -> tuple[ApiKey, User] | None:
        return await self._keys_by_digest.get(key_sha256)

    async def keys_of(self, user_id: UserId) -> Sequence[ApiKey]:
        with transient():
            query = self._keys.find({"user_id": user_id}, {"doc": 1})
            rows = await query.sort([("created_us", ASCENDING), ("_id", ASCENDING)]).to_list()
        return [_keys.decode(row["doc"]) for row in rows]

    async def remove_key(self, user_id: UserId, key_id: ApiKeyId) -> bool:
        if not _storable(key_id):
            return False
        with transient():
            return (await self._keys.delete_one({"_id": key_id, "user_id": user_id})).deleted_count == 1

    async def _credentials(
        self, rows: Rows, name: str, decoder: "msgspec.json.Decoder[T]", digests: Sequence[str]
    ) -> Mapping[str, tuple[T, User]]:
        """Return what the digests, which stand in the field `name`, are digests of, each with its user."""
        with transient():
            found = await rows.find({name: {"$in": digests}}, {name: 1, "doc": 1}).to_list()
            credentials = {row[name]: decoder.decode(row["doc"]) for row in found}
            if not credentials:
                return {}
            owners = {"_id": {"$in": list({credential.user_id for credential in credentials.values()})}}
            users = {row["_id"]: _user(row) for row in await self._users.find(owners).to_list()}
        return {
            digest: (credential, users[credential.user_id])
            for digest, credential in credentials.items()
            if credential.user_id in users
        }


def _user(row: Row) -> User:
    return replace(_users.decode(row["doc"]), password_hash=row["password_hash"])


def _storable(text: str) -> bool:
    """Whether a document can hold `text`: a lone surrogate has no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
