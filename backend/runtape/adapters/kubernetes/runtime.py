"""`PodRuntime` over a Kubernetes cluster: a pod for each attempt."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self

import structlog
from kubernetes_asyncio import client

from runtape.adapters.kubernetes import manifests, outcomes
from runtape.adapters.kubernetes.api import Exists, Forbidden, PodApi, QuotaExceeded
from runtape.adapters.kubernetes.attempt import Attempt
from runtape.adapters.kubernetes.keeping import Keeper
from runtape.adapters.kubernetes.manifests import PodSettings
from runtape.adapters.kubernetes.placed import placed
from runtape.adapters.kubernetes.pools import Pool, WarmSettings, leaves, pools
from runtape.adapters.kubernetes.warm import Claim, Dead, NotTaken, Taken, Unfit, WarmPods, labels_of, selector
from runtape.adapters.kubernetes.watching import Pods
from runtape.adapters.sandbox.order import ArmedLimits, Ours, make_order, null_byte_in
from runtape.adapters.sandbox.runtimes import InstalledRuntime
from runtape.domain.outcome import Outcome, OutcomeKind
from runtape.domain.tape import Record
from runtape.ports.errors import InfrastructureError, Permanent, SandboxUnavailable, Transient
from runtape.ports.placed_pods import PodState
from runtape.ports.pod_runtime import PodArtifact, PodEnded, PodKey, PodSpec, PodStart, Runtime

log = structlog.get_logger(__name__)

START_S: Final = 60.0
"""How long a pod may take to run, with its image and a node for it, before another is tried.

While the API does not answer nobody knows whether it runs: that time is not counted.
"""
QUOTA_S: Final = 2.0
"""How often a pod is asked for that the namespace has no room for, or that is forbidden."""
FORBIDDEN_S: Final = 6.0
"""How long a pod may be forbidden before that is told as its end: rights come back as outages do."""
CLOSE_S: Final = 10.0
"""How long `close` waits for the end of programs; beyond it their leases end them."""
INHERIT_S: Final = 30.0
"""How long pods may take to end whose worker is dead; beyond it their leases end them."""
_LOOK_S: Final = 0.5
DEAD_MOST: Final = 2
"""How many warm pods without an answer are waited for, before a pod is made that is no older than its program."""
_OURS: Final = Ours(processes=2, memory_mb=manifests.RUNNER_MB)
"""In a pod beside its program: the runner, and who collects files for it."""


@dataclass(frozen=True, slots=True)
class Image:
    """A container image with the interpreter that is in it."""

    reference: str
    runtime: InstalledRuntime


class KubernetesPods:
    """Runs programs in pods of one namespace; use as an async context manager."""

    def __init__(
        self,
        configuration: client.Configuration,
        settings: PodSettings,
        images: Sequence[Image],
        owner: str,
        warm: WarmSettings | None = None,
    ) -> None:
        """Prepare; `owner`, which is unique to this process, is a label of its pods.

        With `warm` its programs run in pods that wait, where one does; somebody has to `keep` the pools filled.
        """
        self._settings = settings
        self._images = {(each.runtime.runtime.lang, each.runtime.runtime.version): each for each in images}
        self._owner = owner
        self._api = PodApi(configuration, settings.namespace)
        self._pods = Pods(self._api, f"{manifests.OWNER}={owner}", self._on_change)
        known = ((each.runtime.runtime, each.reference) for each in images)
        self._window_s = warm.window_s if warm is not None else 0.0
        self._pools = pools(settings, warm, known) if warm is not None else {}
        self.warm = WarmPods(self._api, self._pools) if warm is not None else None
        self._attempts: dict[PodKey, Attempt] = {}
        self._by_name: dict[str, Attempt] = {}
        self._names: dict[PodKey, str] = {}
        self._claiming: set[str] = set()
        """Pods that may become an attempt's, and of which it is not told until then."""
        self._doubtful: set[PodKey] = set()
        """Attempts whose start has failed, and of which a pod may be there, or come."""
        self._deleted: set[str] = set()
        """Pods that were deleted and that the watch may tell of once more."""
        self._running: dict[str, asyncio.Event] = {}
        self._watchers: set[asyncio.Queue[PodEnded | None]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Return when the cluster has answered.  Raises: Transient."""
        watched = [self._pods, self.warm] if self.warm is not None else [self._pods]
        for each in watched:
            self._spawn(each.run())
        try:
            async with asyncio.timeout(START_S):
                await asyncio.gather(*(each.listed() for each in watched))
        except TimeoutError as error:
            raise Transient(f"the pods of {self._settings.namespace} were not listed within {START_S:g} s") from error

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def runtimes(self) -> Sequence[Runtime]:
        return [each.runtime.runtime for each in self._images.values()]

    async def keep(self) -> None:
        """Keep the pools filled; runs until cancelled, in one process of those that share the namespace."""
        await Keeper(self._api, [*self._pools.values()], self._window_s).run()

    async def inherit(self, owners: Collection[str]) -> Collection[PodKey]:
        wanted = f"{manifests.EXECUTION},{manifests.OWNER} in ({','.join(owners)})"
        try:
            async with asyncio.timeout(INHERIT_S):
                while True:
                    pods = (await self._api.list(wanted)).pods
                    found = [(pod, each) for pod in pods if (each := placed(pod)) is not None]
                    running = [pod["metadata"] for pod, each in found if each.state is not PodState.ENDED]
                    if not running:
                        return [each.key for _, each in found]
                    # With some grace it is there until nothing of it runs.
                    await asyncio.gather(*(self._api.delete(each["name"], 1, uid=each["uid"]) for each in running))
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise Transient(f"pods of {', '.join(owners)} were not gone within {INHERIT_S:g} s") from None

    async def start(self, spec: PodSpec, attempt: int, lease_expires_at: datetime) -> PodStart | None:
        key = PodKey(spec.execution_id, attempt)
        if key in self._attempts:
            return None
        image = self._images.get((spec.lang, spec.lang_version))
        lease_due_s = _loop_time(lease_expires_at)
        run = Attempt(key, spec.limits, lease_due_s, self._tell, timeline=spec.timeline)
        self._attempts[key] = run
        if image is None:
            message = f"there is no image for {spec.lang} {spec.lang_version}"
            run.fail(Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason="runtime_missing", message=message))
            return None
        if place := null_byte_in(spec.source):
            message = f"the program could not be started: there is a null byte in {place}"
            run.fail(Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason="start_failed", message=message))
            return None
        armed = ArmedLimits(grouped=True, memory_bytes=0, processes=0, ours=_OURS)
        order = make_order(image.runtime, spec.source, spec.limits, armed)
        try:
            if key in self._doubtful:
                await self._clear(key)
            taken = await self._take(spec, run)
            if taken is None:
                self._assign(_name(key), run)
                await self._make(_name(key), image, spec, run)
            elif self._attempts.get(key) is run:
                self._assign(taken.name, run)
            else:  # it was removed meanwhile
                self._let_go(taken.name)
            self._spawn(run.converse(self._api, _name(key) if taken is None else taken.name, order, taken))
            await run.started
        except BaseException:
            if run.ended is None:
                del self._attempts[key]
                self._doubtful.add(key)
                if (name := self._names.pop(key, None)) is not None:
                    self._let_go(name)
            raise
        if self.warm is None:
            return None
        return PodStart.COLD if taken is None else PodStart.WARM

    async def _clear(self, key: PodKey) -> None:
        """Delete whatever there is of an attempt whose start has failed.  Raises: Transient."""
        for pod in (await self._api.list(selector(labels_of(key)))).pods:
            await self._api.delete(pod["metadata"]["name"], uid=pod["metadata"]["uid"])
        self._doubtful.discard(key)

    async def _take(self, spec: PodSpec, run: Attempt) -> Taken | None:
        """Return a warm pod that is now the attempt's, None when there is none for it.  Raises: Transient."""
        pool = self._pool(spec)
        if self.warm is None or pool is None:
            return None
        claim = Claim(key=run.key, owner=self._owner, token=run.token.hex(), wall_s=spec.limits.wall_s)
        dead = 0
        while dead < DEAD_MOST and run.ended is None and (name := self.warm.choose(pool, spec.limits.wall_s)):
            self._claiming.add(name)
            try:
                return await self.warm.take(pool, name, claim)
            except Unfit as error:
                log.warning("warm_pod.deleted", pod=name, pool=pool.name, reason=str(error))
                dead += isinstance(error, Dead)
                self._let_go(name)
            except BaseException as error:
                if self._pods[name] is not None:  # it is ours, and nobody was told
                    self._let_go(name)
                if not isinstance(error, NotTaken):
                    raise
            finally:
                self._claiming.discard(name)
        return None

    def _pool(self, spec: PodSpec) -> Pool | None:
        """Return the pool whose pods can run the program."""
        pool = self._pools.get((spec.lang, spec.lang_version))
        return pool if pool is not None and pool.fits(spec.limits) else None

    def _assign(self, name: str, run: Attempt) -> None:
        self._names[run.key] = name
        self._by_name[name] = run
        if (pod := self._pods[name]) is not None:  # what was told of it while it was not the attempt's
            run.seen(pod)

    def _let_go(self, name: str) -> None:
        """Forget the pod of an attempt, and have it deleted: now, or as soon as it is seen.

        By its name alone it is not: the next start may have made another of that name meanwhile.
        """
        self._by_name.pop(name, None)
        if (pod := self._pods[name]) is not None:
            self._spawn(self._delete(name, pod["metadata"]["uid"]))

    async def _delete(self, name: str, uid: str) -> None:
        try:
            await self._api.delete(name, uid=uid)
        except InfrastructureError as error:
            log.warning("pod.not_deleted", pod=name, error=str(error))

    async def _make(self, name: str, image: Image, spec: PodSpec, run: Attempt) -> None:
        """Make the pod and return when it runs, or when its attempt has ended: also with what keeps it from running.

        Raises: Transient.
        """
        labels = {**labels_of(run.key), manifests.OWNER: self._owner}
        if pool := self._pool(spec):
            labels[manifests.POOL] = pool.name  # it is the pool's load, though not its pod
        manifest = manifests.pod(name, self._settings, image.reference, spec.limits, labels, run.token.hex())
        running = self._running[name] = asyncio.Event()
        try:
            try:
                await self._create(manifest, run)
            except Exists:
                await self._api.delete(name)
                raise
            if not await self._begun(running, run):
                # The watch may be deaf, and not know it yet.
                pod = await self._api.read(name)
                if pod is None or not _runs(pod):
                    run.fail(outcomes.not_begun(pod, START_S))
        finally:
            del self._running[name]

    async def _begun(self, running: asyncio.Event, run: Attempt) -> bool:
        """Return whether a pod runs, or its attempt is over, before it was seen not to for `START_S`."""
        waiting = [asyncio.ensure_future(each.wait()) for each in (running, run.over)]
        until_s = time.monotonic() - self._pods.away_s + START_S
        try:
            while (left_s := until_s - time.monotonic() + self._pods.away_s) > 0:
                done, _ = await asyncio.wait(waiting, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    return True
            return False
        finally:
            for each in waiting:
                each.cancel()

    async def _create(self, manifest: Mapping[str, Any], run: Attempt) -> None:
        """Have the pod made, once the quota has room for it, unless its attempt ends before or with that.

        Raises: Exists; Transient.
        """
        now_s = time.monotonic()
        until_s, forbidden_until_s = now_s + START_S, now_s + FORBIDDEN_S
        while run.ended is None:
            try:
                await self._api.create(manifest)
                return
            except QuotaExceeded as error:
                if time.monotonic() >= until_s:
                    run.fail(outcomes.quota_exceeded(str(error), START_S))
            except Forbidden as error:
                if time.monotonic() >= forbidden_until_s:
                    run.fail(outcomes.forbidden(str(error), FORBIDDEN_S))
            except Permanent as error:
                run.fail(outcomes.refused(str(error)))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(run.over.wait(), QUOTA_S)

    def _on_change(self, name: str, pod: Mapping[str, Any] | None) -> None:
        run = self._by_name.get(name)
        if pod is None:
            self._deleted.discard(name)
            if run is not None and run.was_seen:  # else it was the pod of an earlier start
                run.seen(None)
        elif run is None or not run.owns(pod):
            if name not in self._deleted and name not in self._claiming and not leaves(pod):
                # A claim, or a making, that was carried out after nobody waited for it any more.
                log.warning("pod.of_nobody", pod=name)
                self._spawn(self._delete(name, pod["metadata"]["uid"]))
        else:
            if (event := self._running.get(name)) is not None and _runs(pod):
                event.set()
            run.seen(pod)

    async def records(self, key: PodKey, after_seq: int = 0) -> AsyncIterator[tuple[Record, ...]]:
        run = self._attempts.get(key)
        if run is not None:
            async for batch in run.records(after_seq):
                yield batch

    async def artifacts(self, key: PodKey) -> AsyncIterator[PodArtifact]:
        run = self._attempts.get(key)
        for artifact in run.artifacts if run is not None else ():
            yield artifact

    async def extend(self, key: PodKey, lease_expires_at: datetime) -> None:
        if run := self._attempts.get(key):
            await run.extend(_loop_time(lease_expires_at))

    async def kill(self, key: PodKey) -> None:
        if run := self._attempts.get(key):
            await run.kill()

    async def remove(self, key: PodKey) -> None:
        run = self._attempts.get(key)
        if run is None:
            self._doubtful.discard(key)  # what there is of it is nobody's, as soon as it is seen
            return
        if run.ended is None:
            await run.kill()
        if (name := self._names.get(key)) is not None:
            await self._api.delete(name)
        await run.over.wait()
        self._attempts.pop(key, None)
        if name is not None and self._names.pop(key, None) is not None:
            del self._by_name[name]
            if self._pods[name] is not None:
                self._deleted.add(name)

    async def list(self) -> Sequence[PodKey]:
        return [*self._attempts]

    async def watch(self) -> AsyncIterator[PodEnded]:
        queue: asyncio.Queue[PodEnded | None] = asyncio.Queue()
        for run in self._attempts.values():
            if run.ended is not None:
                queue.put_nowait(run.ended)
        self._watchers.add(queue)
        try:
            while (ended := await queue.get()) is not None:
                yield ended
        finally:
            self._watchers.discard(queue)

    async def ready(self) -> None:
        try:
            await self._api.list(f"{manifests.OWNER}={self._owner}")
        except InfrastructureError as error:
            raise SandboxUnavailable(f"pods cannot be made: {error}") from error

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await asyncio.gather(*(run.kill() for run in self._attempts.values()))
        await asyncio.gather(*(self._api.delete(name) for name in self._names.values()), return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await asyncio.gather(*(run.over.wait() for run in self._attempts.values()))
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.warm is not None:
            await self.warm.close()
        await self._api.close()
        for queue in self._watchers:
            queue.put_nowait(None)

    def _tell(self, ended: PodEnded) -> None:
        for queue in self._watchers:
            queue.put_nowait(ended)


def _name(key: PodKey) -> str:
    """Return the name of the pod of an attempt, which is the same whoever makes it."""
    return f"exec-{key.execution_id}-{key.attempt}"


def _runs(pod: Mapping[str, Any]) -> bool:
    """Whether a container of the pod runs."""
    return any("running" in each["state"] for each in pod["status"].get("containerStatuses") or ())


def _loop_time(moment: datetime) -> float:
    """Return `moment` on the event loop's clock."""
    return asyncio.get_running_loop().time() + (moment - datetime.now(UTC)).total_seconds()
