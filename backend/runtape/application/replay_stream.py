"""The progress of a replay session as a stream of frames: its document whenever that has changed, until it ends."""

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec

from runtape.application.streaming import HEARTBEAT, RETRY_MS, Batch, Confirm, Cursor, Frame
from runtape.domain.errors import Unauthenticated
from runtape.domain.replay import ReplaySession, ReplaySessionId
from runtape.ports.live import FeedClosed, LiveFeed, Subscription
from runtape.ports.replay import ReplaySessionStore

FRAME_INTERVAL_S = 0.1
"""Steps come faster than anybody looks: what happens between two frames is told by the second."""

Encode = Callable[[ReplaySession], bytes]


class ReplayStreams:
    """Opens streams; the caller has checked that the principal may read the session."""

    def __init__(self, *, store: ReplaySessionStore, feed: LiveFeed, heartbeat_s: float) -> None:
        self._store = store
        self._feed = feed
        self._heartbeat_s = heartbeat_s

    def open(
        self, session_id: ReplaySessionId, cursor: Cursor, encode: Encode, confirm: Confirm
    ) -> tuple[AsyncIterator[Batch], Subscription]:
        """Subscribe at once and return the frames beyond `cursor` with the subscription, which the caller closes.

        A frame's ``version`` is the document's; its body is what `encode` makes of that.
        """
        subscription = self._feed.subscribe(session_id)
        return self._batches(session_id, cursor.version, subscription, encode, confirm), subscription

    async def _batches(
        self, session_id: ReplaySessionId, version: int, subscription: Subscription, encode: Encode, confirm: Confirm
    ) -> AsyncIterator[Batch]:
        loop = asyncio.get_running_loop()
        confirm_at_s = loop.time() + self._heartbeat_s
        try:
            while True:
                if loop.time() >= confirm_at_s:
                    confirm_at_s = loop.time() + self._heartbeat_s
                    await confirm()
                session = await self._store.get(session_id)
                batch: Batch = []
                if session is not None and session.version > version:
                    version = session.version
                    batch.append(Frame("status", Cursor(version), encode(session)))
                if session is None or session.status.ended:
                    yield [*batch, Frame("end", Cursor(version), b"{}")]
                    return
                yield batch or [HEARTBEAT]
                await asyncio.sleep(FRAME_INTERVAL_S)
                await subscription.next(self._heartbeat_s)
                while subscription.pending() is not None:
                    pass
        except FeedClosed:
            yield [Frame("shutdown", None, b"{}", RETRY_MS)]
        except Unauthenticated as refusal:
            body = msgspec.json.encode({"code": refusal.code, "detail": str(refusal)})
            yield [Frame("shutdown", None, body, RETRY_MS)]
