"""Fan-out of nudges inside one process."""

import asyncio
from collections import deque

from runtape.ports.live import FeedClosed, LifecycleNudge, Nudge, OutputNudge, SubscriptionClosed, Watched

PENDING_BYTES = 1 << 20
"""What may wait for one reader.  Beyond that all of it is dropped and the reader goes to the tape."""


class InProcessLiveFeed:
    """`LiveFeed` for readers in this process."""

    def __init__(self) -> None:
        self._subscriptions: dict[Watched, dict[InProcessSubscription, None]] = {}
        self._closed = False

    def publish(self, watched_id: Watched, nudge: Nudge) -> None:
        for subscription in self._subscriptions.get(watched_id, ()):
            subscription.push(nudge)

    def doubt(self, watched_id: Watched) -> None:
        """Tell the present subscribers that something may have been lost."""
        for subscription in self._subscriptions.get(watched_id, ()):
            subscription.lose()

    def watched(self, watched_id: Watched) -> bool:
        return watched_id in self._subscriptions

    def subscribe(self, watched_id: Watched) -> "InProcessSubscription":
        subscription = InProcessSubscription(self, watched_id)
        if self._closed:
            subscription.end(FeedClosed)
        else:
            self._subscriptions.setdefault(watched_id, {})[subscription] = None
        return subscription

    def forget(self, subscription: "InProcessSubscription") -> None:
        """Stop telling `subscription`; idempotent."""
        readers = self._subscriptions.get(subscription.watched_id)
        if readers is None or subscription not in readers:
            return
        del readers[subscription]
        if not readers:
            del self._subscriptions[subscription.watched_id]

    @property
    def subscribers(self) -> int:
        """How many readers there are now."""
        return sum(map(len, self._subscriptions.values()))

    def close(self) -> None:
        self._closed = True
        for readers in list(self._subscriptions.values()):
            for subscription in readers:
                subscription.end(FeedClosed)


class InProcessSubscription:
    """`Subscription` with a bounded backlog.  One task reads it."""

    def __init__(self, feed: InProcessLiveFeed, watched_id: Watched) -> None:
        self.watched_id = watched_id
        self._feed = feed
        self._nudges: deque[tuple[Nudge, int]] = deque()
        self._bytes = 0
        self._lost = False
        self._ended: type[Exception] | None = None
        self._waiter: asyncio.Future[None] | None = None

    def push(self, nudge: Nudge) -> None:
        """Add `nudge`, or drop all that waits when it is too much."""
        size = sum(map(len, nudge.bodies)) if isinstance(nudge, OutputNudge | LifecycleNudge) else 0
        self._bytes += size
        if self._bytes > PENDING_BYTES:
            self.lose()
        else:
            self._nudges.append((nudge, size))
            self._wake()

    def lose(self) -> None:
        """Drop all that waits and say so: what comes after it does not follow on what came before."""
        self._nudges.clear()
        self._bytes = 0
        self._lost = True
        self._wake()

    def end(self, why: type[Exception]) -> None:
        """Let the reader's next call raise `why`; the first reason stands."""
        self._ended = self._ended or why
        self._wake()

    async def next(self, timeout_s: float) -> Nudge | None:
        if not self._nudges and not self._lost and self._ended is None:
            loop = asyncio.get_running_loop()
            self._waiter = loop.create_future()
            timer = loop.call_later(timeout_s, self._wake)
            try:
                await self._waiter
            finally:
                timer.cancel()
                self._waiter = None
        if self._ended is not None:
            raise self._ended
        return self.pending()

    def pending(self) -> Nudge | None:
        if self._lost:
            self._lost = False
            self._nudges.clear()
            self._bytes = 0
            return None
        if not self._nudges:
            return None
        nudge, size = self._nudges.popleft()
        self._bytes -= size
        return nudge

    def close(self) -> None:
        self._feed.forget(self)
        self.end(SubscriptionClosed)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
