"""A live feed between processes that loses nudges and keeps the order of what it carries."""

from runtape.adapters.embedded.live_feed import InProcessLiveFeed, InProcessSubscription
from runtape.domain.ids import ExecutionId
from runtape.ports.live import Nudge
from tests.simulation.world import Life, World


class FeedServer:
    """Carries each nudge to every process that listens."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._feeds: dict[Life, InProcessLiveFeed] = {}
        self._arrives_s: dict[Life, float] = {}

    def join(self, life: Life, feed: InProcessLiveFeed) -> None:
        """Carry nudges to a process from now on."""
        self._feeds[life] = feed

    def publish(self, execution_id: ExecutionId, nudge: Nudge) -> None:
        """Carry a nudge, or lose it, for each process apart."""
        world = self._world
        for life, feed in self._feeds.items():
            if not life.alive or not feed.watched(execution_id) or world.happens(world.mix.deaf):
                continue
            at_s = max(self._arrives_s.get(life, 0.0), world.loop.time() + world.way_s())
            self._arrives_s[life] = at_s
            world.loop.call_at(at_s, feed.publish, execution_id, nudge, context=life.context)

    def watched(self, execution_id: ExecutionId) -> bool:
        """Whether anybody listens, as far as a publisher can know."""
        return any(feed.watched(execution_id) for life, feed in self._feeds.items() if life.alive)


class RemoteFeed:
    """`LiveFeed` of one process over a `FeedServer`."""

    def __init__(self, server: FeedServer, life: Life) -> None:
        self._server = server
        self._own = InProcessLiveFeed()
        server.join(life, self._own)

    def publish(self, execution_id: ExecutionId, nudge: Nudge) -> None:
        self._server.publish(execution_id, nudge)

    def watched(self, execution_id: ExecutionId) -> bool:
        return self._server.watched(execution_id)

    def subscribe(self, execution_id: ExecutionId) -> InProcessSubscription:
        return self._own.subscribe(execution_id)

    def close(self) -> None:
        self._own.close()
