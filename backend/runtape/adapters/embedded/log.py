"""The event log in SQLite: rows written with the change that caused them, read by in-process groups."""

import asyncio
import sqlite3
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from runtape.adapters.embedded.database import Database
from runtape.domain.dead_letter import RawMessage
from runtape.domain.events import MESSAGE_TYPES, Correlation, Message
from runtape.domain.replay import ReplaySessionId
from runtape.ports.errors import Poison, Transient
from runtape.ports.log import Delivery, UndecodableDelivery
from runtape.ports.replay import ReplayedMessage


class _Origin(msgspec.Struct):
    """What every message tells of where it comes from, read apart from the rest."""

    correlation: Correlation | None = None
    causation_id: str | None = None


_encode = msgspec.json.Encoder().encode
_decoders = {name: msgspec.json.Decoder(message).decode for name, message in MESSAGE_TYPES.items()}
_decode_origin = msgspec.json.Decoder(_Origin).decode

_ROW = (
    "offset, topic, key, type, cast(body as blob),"
    " (select session_id from log_replay r where r.offset = log.offset) as replayed_by"
)

PAGE = 500
FLUSH_INTERVAL_S = 1.0
"""How far a group's stored offset may lag behind: so much is redelivered after a crash."""

BACKLOG = 10_000
"""Messages that wait in memory for one group; beyond that it reads them from the table again."""


class SqliteEventLog:
    """`EventLog` for one process; `insert` and `committed` are the unit of work's side of it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._groups: dict[str, _Group] = {}
        self._flusher: asyncio.TimerHandle | None = None
        self._told = 0
        """The newest row that this process has been told of, or found when a group began."""

    @staticmethod
    def insert(connection: sqlite3.Connection, messages: Sequence[Message]) -> Sequence[int]:
        """Append `messages` inside the caller's transaction and return their offsets."""
        values: list[str | bytes] = []
        for message in messages:
            values += (message.topic, message.execution_id, message.type, _encode(message))
        # One statement: the driver gives up the interpreter lock around each, and has to win it back from the loop.
        rows = ",".join(["(?,?,?,?)"] * len(messages))
        last = connection.execute(f"insert into log (topic, key, type, body) values {rows}", values).lastrowid
        assert last is not None
        return range(last - len(messages) + 1, last + 1)

    def committed(self, rows: Sequence[tuple[int, Message]], handled_by: frozenset[str]) -> None:
        """Hand rows that are now durable to the groups, except to those that have acted on them."""
        if rows:
            self._told = max(self._told, rows[-1][0])
        for group in self._groups.values():
            done = group.name in handled_by
            for offset, message in rows:
                if message.topic in group.topics:
                    group.offer(offset, message, done=done)
        self._schedule_flush()

    @staticmethod
    def insert_again(
        connection: sqlite3.Connection, again: Sequence[ReplayedMessage], session_id: ReplaySessionId
    ) -> Sequence[int]:
        """Append copies with their mark inside the caller's transaction and return their offsets."""
        offsets: list[int] = []
        for each in again:
            message = each.message
            row = (message.topic, message.execution_id, message.type, each.body)
            offset = connection.execute("insert into log (topic, key, type, body) values (?,?,?,?)", row).lastrowid
            assert offset is not None
            mark = (offset, session_id, message.id, message.execution_id)
            connection.execute("insert into log_replay values (?,?,?,?)", mark)
            offsets.append(offset)
        return offsets

    def committed_again(
        self, offsets: Sequence[int], again: Sequence[ReplayedMessage], session_id: ReplaySessionId
    ) -> None:
        """Hand copies that are now durable to the groups."""
        if offsets:
            self._told = max(self._told, offsets[-1])
        for offset, each in zip(offsets, again, strict=True):
            for group in self._groups.values():
                if each.message.topic in group.topics:
                    group.offer(offset, each.message, done=False, replayed_by=session_id)
        self._schedule_flush()

    async def consume(self, group: str, topics: Sequence[str]) -> AsyncGenerator[Delivery | UndecodableDelivery, None]:
        acknowledged, newest = await self._database.read(
            lambda c: c.execute(
                "select (select offset from consumer_offset where consumer_group = ?), (select max(offset) from log)",
                (group,),
            ).fetchone()
        )
        self._told = max(self._told, newest or 0)
        state = self._groups[group] = _Group(group, frozenset(topics), acknowledged or 0)
        try:
            while True:
                if state.behind:
                    async for delivery in self._catch_up(state):
                        yield delivery
                while state.waiting:
                    yield state.take()
                if not state.behind:
                    await state.woken.wait()
                    state.woken.clear()
        finally:
            if self._groups.get(group) is state:
                del self._groups[group]
                self._store_offsets([state])

    async def _catch_up(self, state: "_Group") -> AsyncGenerator[Delivery | UndecodableDelivery, None]:
        """Deliver from the table until nothing lies between it and what arrives in memory."""
        while True:
            # A row that is committed and not yet told of is left for `committed`, which knows who has handled it.
            told = self._told
            rows = await self._database.read(
                lambda c, after=state.read_to, told=told: c.execute(
                    f"select {_ROW} from log where offset > ? and offset <= ? order by offset limit ?",
                    (after, told, PAGE),
                ).fetchall()
            )
            if not rows:
                # Nothing is awaited between this read's answer and the switch, so no row can slip past both: what
                # was told before the read is behind us, and what is told from now on waits in memory.
                if self._told != told:
                    continue
                state.behind = False
                return
            for row in rows:
                offset, topic, *_ = row
                state.read_to = offset
                if topic in state.topics and not state.is_done(offset):
                    state.in_flight.add(offset)
                    yield _delivery(row)

    async def raw(self, delivery: Delivery) -> RawMessage | None:
        row = await self._database.read(
            lambda c: c.execute(f"select {_ROW} from log where offset = ?", (delivery.offset,)).fetchone()
        )
        return _raw(row) if row else None

    async def decode(self, raw: RawMessage) -> Message:
        return _decode(raw.key, raw.type, raw.body)

    def acknowledge(self, group: str, delivery: Delivery | UndecodableDelivery) -> None:
        state = self._groups.get(group)
        if state is not None:
            state.in_flight.discard(delivery.offset)
            self._schedule_flush()

    def _schedule_flush(self) -> None:
        if self._flusher is None:
            self._flusher = asyncio.get_running_loop().call_later(FLUSH_INTERVAL_S, self._flush)

    def _flush(self) -> None:
        self._flusher = None
        self._store_offsets(list(self._groups.values()))

    def _store_offsets(self, groups: Sequence["_Group"]) -> None:
        rows = [(group.name, group.low_watermark()) for group in groups]
        with suppress(Transient):  # the store is closed: what is not noted is delivered again
            self._database.write(
                lambda c: c.executemany("insert or replace into consumer_offset values (?,?)", rows).rowcount
            ).add_done_callback(lambda future: future.exception())

    async def ready(self) -> None:
        await self._database.probe()

    def close(self) -> None:
        """Write the offsets a last time; the database commits them when it closes."""
        if self._flusher is not None:
            self._flusher.cancel()
            self._flush()


def _decode(key: str, name: str, body: bytes) -> Message:
    """Return the message of a row.  Raises: Poison."""
    decode = _decoders.get(name)
    if decode is None:
        raise Poison(f'no message has the type "{name}" here')
    try:
        message = decode(body)
    except Exception as error:  # whatever the bytes are, they must not stop those who read the log
        raise Poison(f'not a message of the type "{name}": {error}') from error
    if message.execution_id != key:
        raise Poison(f'a message about "{message.execution_id}" under the key "{key}"')
    return message


def _delivery(row: tuple[Any, ...]) -> Delivery | UndecodableDelivery:
    offset, _, key, name, body, replayed_by = row
    try:
        return Delivery(_decode(key, name, body), offset, replayed_by)
    except Poison as error:
        return UndecodableDelivery(_raw(row), str(error))


def _raw(row: tuple[Any, ...]) -> RawMessage:
    """Return a row of the one partition that there is here."""
    offset, topic, key, name, body, _ = row
    return RawMessage(topic=topic, partition=0, offset=offset, key=key, type=name, body=body, headers=_headers(body))


def _headers(body: bytes) -> dict[str, str]:
    try:
        origin = _decode_origin(body)
    except Exception:  # as above
        return {}
    headers = {"causation_id": origin.causation_id} if origin.causation_id is not None else {}
    if origin.correlation is not None:
        headers |= {"correlation_id": origin.correlation.id, "traceparent": origin.correlation.traceparent}
    return headers


class _Group:
    """What one consumer group has yet to see."""

    def __init__(self, name: str, topics: frozenset[str], offset: int) -> None:
        self.name = name
        self.topics = topics
        self.waiting: deque[Delivery] = deque()
        self.in_flight: set[int] = set()
        self.read_to = offset
        """Every offset up to here was delivered, passed over, or waits in memory."""
        self.behind = True
        """Whether messages have to be read from the table before those that arrive now."""
        self.woken = asyncio.Event()
        self._done_ahead: set[int] = set()

    def offer(self, offset: int, message: Message, *, done: bool, replayed_by: ReplaySessionId | None = None) -> None:
        """Take a message that was just committed; `done` says that the group has acted on it."""
        if offset <= self.read_to:  # read from the table before this was told
            return
        if self.behind:
            if done:
                self._done_ahead.add(offset)
            return
        self.read_to = offset
        if done:
            return
        if len(self.waiting) >= BACKLOG:
            self.behind = True
            self.read_to = self.waiting[0].offset - 1
            self.waiting.clear()
        else:
            self.waiting.append(Delivery(message, offset, replayed_by))
        self.woken.set()

    def take(self) -> Delivery:
        """Return the message that has waited longest; it is in flight now."""
        delivery = self.waiting.popleft()
        self.in_flight.add(delivery.offset)
        return delivery

    def is_done(self, offset: int) -> bool:
        """Whether the group had acted on the message before it was read."""
        if offset in self._done_ahead:
            self._done_ahead.discard(offset)
            return True
        return False

    def low_watermark(self) -> int:
        """Return the offset up to which everything is acknowledged."""
        ahead = set(self.in_flight)
        if self.waiting:
            ahead.add(self.waiting[0].offset)
        if ahead:
            return min(ahead) - 1
        offset = self.read_to
        while offset + 1 in self._done_ahead:  # acted on while the group was still behind
            offset += 1
        return offset
