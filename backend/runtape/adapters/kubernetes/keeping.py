"""Keeping pools of warm pods filled, as many as the load of the last minutes asks for.

Theory of operation.  What there is is what the cluster says: pods are known by their labels, so a keeper that begins
goes on with those that another has made.  It looks at all pools whenever a pod of one changes, and at times.  A pod is
in the making from the moment it is asked for; of those there are `MAKING_MOST` at once, so that what does not start (no
room, no image, no answer) is not multiplied.  What is deleted is deleted as it was seen: a pod that was claimed
meanwhile is another version, and stays.

The target follows the pods that were taken: see `target`.
"""

import asyncio
import contextlib
import secrets
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog

from runtape.adapters.kubernetes import manifests
from runtape.adapters.kubernetes.api import Changed, PodApi
from runtape.adapters.kubernetes.manifests import POOL, STATE, WARM
from runtape.adapters.kubernetes.pools import OLDEST_S, Pool, PoolSize, age_s, leaves, waits
from runtape.adapters.kubernetes.watching import Pods
from runtape.ports.errors import InfrastructureError

log = structlog.get_logger(__name__)

REFILL_S: Final = 10.0
"""How long it may take until a claimed pod has a successor: 2 s for one, and several are made at a time."""
MAKING_MOST: Final = 8
"""How many pods of one pool may be on their way."""
LOOK_AGAIN_S: Final = 10.0
_UNSEEN_S: Final = 30.0
"""How long a pod that was asked for counts without having been seen: the answer may be lost, the watch behind."""
_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 60.0


def target(taken_s: Sequence[float], size: PoolSize) -> int:
    """Return how many pods are to wait: as many as were ever taken within `REFILL_S`, within the bounds of `size`.

    `taken_s` are the times, in order, of the pods that were taken or had to be made at once in the last minutes.
    """
    most = max((at + 1 - bisect_right(taken_s, now_s - REFILL_S) for at, now_s in enumerate(taken_s)), default=0)
    return min(max(most, size.least), size.most)


class _Kept:
    """What is known of one pool, beside its pods."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.taken_s: list[float] = []
        self.unseen: dict[str, float] = {}
        """Pods that were asked for and not seen yet, and until when they count."""
        self.again_s = 0.0
        """When the next may be made, after some have failed."""
        self._pause_s = _PAUSE_S

    def failed(self, now_s: float) -> None:
        """Wait with the next, each time for longer, until none has failed for a while."""
        if now_s < self.again_s:
            return  # of those that fail together the first counts
        calm = now_s > self.again_s + _LONGEST_PAUSE_S
        self._pause_s = _PAUSE_S if calm else min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self.again_s = now_s + self._pause_s


class Keeper:
    """Makes and deletes the warm pods of a namespace; for a moment there may be two of it, and then some too many."""

    def __init__(self, api: PodApi, pools: Sequence[Pool], window_s: float) -> None:
        """Prepare; a load is provided for until it was last seen `window_s` ago."""
        self._api = api
        self._window_s = window_s
        self._kept = {pool.name: _Kept(pool) for pool in pools}
        self._pods = Pods(api, POOL, self._on_change)
        self._warm: dict[str, dict[str, Any]] = {}
        self._seen_taken: set[str] = set()
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Keep the pools; runs until cancelled."""
        watching = asyncio.ensure_future(self._pods.run())
        try:
            await self._pods.listed()
            began_s = time.monotonic()
            while True:
                self._woken.clear()
                await self._look(may_shrink=time.monotonic() >= began_s + self._window_s)
                with contextlib.suppress(TimeoutError):
                    # Not wait_for, which in Python 3.11 loses a cancellation that comes together with the event.
                    async with asyncio.timeout(LOOK_AGAIN_S):
                        await self._woken.wait()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    def _on_change(self, name: str, pod: dict[str, Any] | None) -> None:
        self._warm.pop(name, None)
        self._woken.set()
        if pod is None:
            self._seen_taken.discard(name)
            return
        labels = pod["metadata"]["labels"]
        kept = self._kept.get(labels[POOL])
        if labels.get(STATE) == WARM:
            self._warm[name] = pod
            if kept is not None:
                kept.unseen.pop(name, None)
        elif kept is not None and name not in self._seen_taken:
            self._seen_taken.add(name)
            kept.taken_s.append(time.monotonic())

    async def _look(self, *, may_shrink: bool) -> None:
        """Make and delete what is to be made and deleted now."""
        by_pool: dict[str, list[dict[str, Any]]] = {name: [] for name in self._kept}
        work = []
        for pod in self._warm.values():
            if leaves(pod):
                continue
            kept = self._kept.get(pod["metadata"]["labels"][POOL])
            if kept is None or not kept.pool.holds(pod):
                work.append(self._delete(pod, "made of another spec"))
            elif _is_over(pod):
                kept.failed(time.monotonic())
                work.append(self._delete(pod, "it has ended"))
            else:
                by_pool[kept.pool.name].append(pod)
        for name, pods in by_pool.items():
            work.extend(self._fill(self._kept[name], pods, may_shrink=may_shrink))
        await asyncio.gather(*work)

    def _fill(self, kept: _Kept, pods: Sequence[dict[str, Any]], *, may_shrink: bool) -> list[Any]:
        """Return the work that gives the pool its target, `pods` being what it has."""
        now_s = time.monotonic()
        kept.taken_s = kept.taken_s[bisect_right(kept.taken_s, now_s - self._window_s) :]
        kept.unseen = {name: until_s for name, until_s in kept.unseen.items() if until_s > now_s}
        wanted = target(kept.taken_s, kept.pool.size)
        ready = [pod for pod in pods if waits(pod)]
        there = len(pods) + len(kept.unseen)
        making = there - len(ready)
        if there < wanted:
            count = min(wanted - there, MAKING_MOST - making) if now_s >= kept.again_s else 0
            return [self._make(kept) for _ in range(count)]
        by_use = sorted(pods, key=lambda pod: (waits(pod), -age_s(pod)))  # what is not there yet first, then the oldest
        # Who began a moment ago knows of no load: it takes none away that another has provided for.
        surplus = there - (wanted if may_shrink else kept.pool.size.most)
        if surplus > 0:
            return [self._delete(pod, "one too many") for pod in by_use[:surplus]]
        if not making and ready and age_s(oldest := max(ready, key=age_s)) > OLDEST_S:
            return [self._delete(oldest, "too old")]  # one at a time, so that the pool is not empty meanwhile
        return []

    async def _make(self, kept: _Kept) -> None:
        name = f"warm-{secrets.token_hex(8)}"
        kept.unseen[name] = time.monotonic() + _UNSEEN_S
        try:
            await self._api.create(kept.pool.manifest(name))
        except InfrastructureError as error:
            # It may have been made all the same: it counts until then, and its pool's next one waits.
            log.warning("warm_pod.not_made", pool=kept.pool.name, error=str(error))
            kept.failed(time.monotonic())

    async def _delete(self, pod: Mapping[str, Any], why: str) -> None:
        name = pod["metadata"]["name"]
        try:
            await self._api.delete(name, version=pod["metadata"]["resourceVersion"])
            log.info("warm_pod.deleted", pod=name, pool=pod["metadata"]["labels"][manifests.POOL], reason=why)
        except Changed:
            self._woken.set()  # it is looked at anew, as it is now
        except InfrastructureError as error:
            log.warning("warm_pod.not_deleted", pod=name, error=str(error))


def _is_over(pod: Mapping[str, Any]) -> bool:
    """Whether it will not wait for anybody any more: ended, or running on a node that does not say so."""
    phase = pod.get("status", {}).get("phase")
    return phase in ("Failed", "Succeeded") or (phase == "Running" and not waits(pod))
