"""Users, sessions and API keys in the embedded database: a JSON document each, under indexed columns."""

import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from runtape.adapters.embedded.database import Database
from runtape.domain.identity import ApiKey, Session, User
from runtape.domain.ids import ApiKeyId, SessionId, UserId

T = TypeVar("T", ApiKey, Session)

SCHEMA: tuple[str, ...] = (
    """create table if not exists users (
        id text primary key,
        username text not null generated always as (json_extract(doc, '$.username')) virtual,
        doc text not null
    ) without rowid""",
    "create unique index if not exists users_username on users (username)",
    """create table if not exists sessions (
        id text primary key,
        token_sha256 text not null generated always as (json_extract(doc, '$.token_sha256')) virtual,
        user_id text not null generated always as (json_extract(doc, '$.user_id')) virtual,
        expires_s real not null,
        doc text not null
    ) without rowid""",
    "create unique index if not exists sessions_token on sessions (token_sha256)",
    "create index if not exists sessions_expiry on sessions (expires_s)",
    """create table if not exists api_keys (
        id text primary key,
        key_sha256 text not null generated always as (json_extract(doc, '$.key_sha256')) virtual,
        user_id text not null generated always as (json_extract(doc, '$.user_id')) virtual,
        created_s real not null,
        doc text not null
    ) without rowid""",
    "create unique index if not exists api_keys_key on api_keys (key_sha256)",
    "create index if not exists api_keys_user on api_keys (user_id, created_s, id)",
)

_SESSION = """select c.doc, u.doc from sessions c join users u on u.id = c.user_id where c.token_sha256 = ?"""
_KEY = """select c.doc, u.doc from api_keys c join users u on u.id = c.user_id where c.key_sha256 = ?"""

_users = msgspec.json.Decoder(User)
_sessions = msgspec.json.Decoder(Session)
_keys = msgspec.json.Decoder(ApiKey)


class SqliteIdentityStore:
    """`IdentityStore` over `database`, which has to be opened with `SCHEMA` among its statements."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def has_users(self) -> bool:
        return await self._database.read(lambda c: c.execute("select 1 from users limit 1").fetchone() is not None)

    async def user_by_name(self, username: str) -> User | None:
        if not _storable(username):
            return None

        def work(connection: sqlite3.Connection) -> User | None:
            row = connection.execute("select doc from users where username = ?", (username,)).fetchone()
            return None if row is None else _users.decode(row[0])

        return await self._database.read(work)

    async def add_user(self, user: User) -> bool:
        doc = _encode(user)

        def work(connection: sqlite3.Connection) -> bool:
            statement = "insert into users (id, doc) values (?, ?) on conflict do nothing"
            return connection.execute(statement, (user.id, doc)).rowcount == 1

        return await self._database.write(work, durable=True)

    async def replace_password_hash(self, user_id: UserId, old: str, new: str) -> None:
        statement = """update users set doc = json_set(doc, '$.password_hash', ?)
                       where id = ? and json_extract(doc, '$.password_hash') = ?"""
        await self._run(statement, (new, user_id, old))

    async def add_session(self, session: Session) -> None:
        statement = "insert into sessions (id, expires_s, doc) values (?, ?, ?) on conflict do nothing"
        await self._run(statement, (session.id, session.expires_at.timestamp(), _encode(session)))

    async def session_by_digest(self, token_sha256: str) -> tuple[Session, User] | None:
        return await self._credential(_SESSION, token_sha256, _sessions)

    async def remove_session(self, session_id: SessionId) -> None:
        await self._run("delete from sessions where id = ?", (session_id,), durable=True)

    async def forget_sessions(self, expired_before: datetime) -> None:
        await self._run("delete from sessions where expires_s < ?", (expired_before.timestamp(),))

    async def put_key(self, key: ApiKey) -> None:
        statement = """insert into api_keys (id, created_s, doc) values (?, ?, ?)
                       on conflict (id) do update set created_s = excluded.created_s, doc = excluded.doc"""
        await self._run(statement, (key.id, key.created_at.timestamp(), _encode(key)), durable=True)

    async def key_by_digest(self, key_sha256: str) -> tuple[ApiKey, User] | None:
        return await self._credential(_KEY, key_sha256, _keys)

    async def keys_of(self, user_id: UserId) -> Sequence[ApiKey]:
        def work(connection: sqlite3.Connection) -> Sequence[ApiKey]:
            statement = "select doc from api_keys where user_id = ? order by created_s, id"
            return [_keys.decode(row[0]) for row in connection.execute(statement, (user_id,)).fetchall()]

        return await self._database.read(work)

    async def remove_key(self, user_id: UserId, key_id: ApiKeyId) -> bool:
        if not _storable(key_id):
            return False
        statement = "delete from api_keys where id = ? and user_id = ?"
        return await self._run(statement, (key_id, user_id), durable=True) == 1

    async def _credential(
        self, statement: str, digest: str, decoder: "msgspec.json.Decoder[T]"
    ) -> tuple[T, User] | None:
        def work(connection: sqlite3.Connection) -> tuple[T, User] | None:
            row = connection.execute(statement, (digest,)).fetchone()
            return None if row is None else (decoder.decode(row[0]), _users.decode(row[1]))

        return await self._database.read(work)

    async def _run(self, statement: str, values: tuple[Any, ...], *, durable: bool = False) -> int:
        return await self._database.write(lambda c: c.execute(statement, values).rowcount, durable=durable)


def _encode(document: User | Session | ApiKey) -> str:
    return msgspec.json.encode(document).decode()


def _storable(text: str) -> bool:
    """Whether the driver can bind `text`: a lone surrogate has no UTF-8 form, so no row can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
