"""What every `LiveFeed` does."""

import asyncio
from abc import ABC, abstractmethod

import pytest

from runtape.domain.ids import ExecutionId
from runtape.ports.live import (
    FeedClosed,
    LifecycleNudge,
    LiveFeed,
    OutputNudge,
    PodNudge,
    QueueNudge,
    Subscription,
    SubscriptionClosed,
    Watched,
)
from tests.builders import EXECUTION, requested

FAR_S = 30.0
OTHER = ExecutionId("other")


def output(seq: int, body: bytes = b"x") -> OutputNudge:
    return OutputNudge(1, seq, seq, (body,))


class LiveFeedContract(ABC):
    @abstractmethod
    def make(self) -> LiveFeed:
        """Return a feed that nobody has subscribed to."""

    async def subscribe(self, feed: LiveFeed, watched_id: Watched) -> Subscription:
        """Return a reader that has missed nothing and hears of what is published from now on."""
        return feed.subscribe(watched_id)

    async def delivered(self, feed: LiveFeed) -> None:
        """Return once what was published has reached its readers: here it always has."""
        assert feed

    async def test_nudges_arrive_in_the_order_of_publishing_at_every_reader(self) -> None:
        feed = self.make()
        readers = [await self.subscribe(feed, EXECUTION) for _ in range(3)]
        nudges = [output(1), LifecycleNudge(requested(), (b"{}",)), QueueNudge(), PodNudge(b"{}"), output(2)]
        for nudge in nudges:
            feed.publish(EXECUTION, nudge)
        for reader in readers:
            assert [await reader.next(FAR_S) for _ in nudges] == nudges
            assert reader.pending() is None

    async def test_a_reader_hears_of_its_own_execution_from_its_subscription_on(self) -> None:
        feed = self.make()
        feed.publish(EXECUTION, output(1))
        reader = await self.subscribe(feed, EXECUTION)
        feed.publish(OTHER, output(2))
        feed.publish(EXECUTION, output(3))
        assert await reader.next(FAR_S) == output(3)

    async def test_a_waiting_reader_is_woken(self) -> None:
        feed = self.make()
        reader = await self.subscribe(feed, EXECUTION)
        waiting = asyncio.ensure_future(reader.next(FAR_S))
        await asyncio.sleep(0)
        feed.publish(EXECUTION, output(1))
        assert await asyncio.wait_for(waiting, 5) == output(1)

    async def test_after_its_time_the_reader_gets_none(self) -> None:
        reader = await self.subscribe(self.make(), EXECUTION)
        assert await asyncio.wait_for(reader.next(0.0), 5) is None
        assert await asyncio.wait_for(reader.next(0.01), 5) is None

    async def test_a_reader_that_gives_up_waiting_loses_nothing(self) -> None:
        feed = self.make()
        reader = await self.subscribe(feed, EXECUTION)
        waiting = asyncio.ensure_future(reader.next(FAR_S))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        feed.publish(EXECUTION, output(1))
        assert await asyncio.wait_for(reader.next(FAR_S), 5) == output(1)

    async def test_a_slow_reader_is_told_that_it_lost_something_and_costs_nobody_else(self) -> None:
        feed = self.make()
        slow, quick = await self.subscribe(feed, EXECUTION), await self.subscribe(feed, EXECUTION)
        big = b"x" * 65_536
        for seq in range(1, 101):
            feed.publish(EXECUTION, output(seq, big))
            assert await quick.next(FAR_S) == output(seq, big)
        heard = 0
        while await asyncio.wait_for(slow.next(FAR_S), 5) is not None:
            heard += 1
        assert heard < 100
        while slow.pending() is not None:
            pass
        feed.publish(EXECUTION, output(101))
        assert await slow.next(FAR_S) == output(101)

    async def test_a_loss_is_told_before_whatever_came_after_it(self) -> None:
        feed = self.make()
        reader = await self.subscribe(feed, EXECUTION)
        for seq in range(1, 20):
            feed.publish(EXECUTION, output(seq, b"x" * 65_536))
        feed.publish(EXECUTION, output(20))
        await self.delivered(feed)
        assert reader.pending() is None
        got = await asyncio.wait_for(reader.next(0.01), 5)
        assert got in (None, output(20))

    async def test_it_knows_who_watches(self) -> None:
        feed = self.make()
        assert not feed.watched(EXECUTION)
        readers = [feed.subscribe(EXECUTION) for _ in range(2)]
        assert feed.watched(EXECUTION)
        readers[0].close()
        readers[0].close()
        assert feed.watched(EXECUTION)
        readers[1].close()
        assert not feed.watched(EXECUTION)
        last = await self.subscribe(feed, EXECUTION)
        feed.close()
        last.close()
        assert not feed.watched(EXECUTION)

    async def test_closing_a_subscription_wakes_its_reader(self) -> None:
        reader = await self.subscribe(self.make(), EXECUTION)
        waiting = asyncio.ensure_future(reader.next(FAR_S))
        await asyncio.sleep(0)
        reader.close()
        with pytest.raises(SubscriptionClosed):
            await asyncio.wait_for(waiting, 5)
        with pytest.raises(SubscriptionClosed):
            await reader.next(FAR_S)

    async def test_closing_the_feed_wakes_everybody_and_refuses_newcomers(self) -> None:
        feed = self.make()
        readers = [await self.subscribe(feed, EXECUTION), await self.subscribe(feed, OTHER)]
        waiting = [asyncio.ensure_future(reader.next(FAR_S)) for reader in readers]
        await asyncio.sleep(0)
        feed.close()
        feed.close()
        for reader in (*waiting, feed.subscribe(EXECUTION).next(FAR_S)):
            with pytest.raises(FeedClosed):
                await asyncio.wait_for(reader, 5)
        feed.publish(EXECUTION, output(1))
        for each in readers:
            each.close()
