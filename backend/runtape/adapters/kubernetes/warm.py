"""Warm pods as a worker sees them: which ones wait, and how one becomes that of an attempt.

Theory of operation.  A warm pod is made like any other; its runner waits for somebody to attach.  Whoever wants it
patches its labels, and says of which ``resourceVersion``: of several claimers one is answered, and the others are told
of a conflict.  The answer is the pod as it is then, and is checked as a whole against what would be made now; a pod
that differs is nobody's.  Beside the patch the connection to the runner is opened, over which nothing is said until the
pod is ours.  Then it has to answer: one whose runner is dead may be Ready for as long as nobody tells Kubernetes.  Up
to there nothing of the program has left this process, so the next pod can be tried.

An answer that is lost leaves open who has the pod.  The same patch is sent again, and meets either the pod as it was or
the labels that tell whose it is.  A patch that comes through when nobody waits for it any more makes a pod with this
process's label that it knows nothing of, which is deleted as soon as it is seen (`KubernetesPods`).
"""

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from runtape.adapters.kubernetes import manifests
from runtape.adapters.kubernetes.api import Attachment, Changed, Missing, PodApi
from runtape.adapters.kubernetes.hardening import difference
from runtape.adapters.kubernetes.manifests import CLAIMED, CONTAINER, STATE, WARM
from runtape.adapters.kubernetes.pools import Pool, deadline_s, leaves, waits
from runtape.adapters.kubernetes.protocol import Link, ProtocolError, State, Welcome
from runtape.adapters.kubernetes.watching import Pods
from runtape.ports.errors import Permanent, Transient
from runtape.ports.pod_runtime import PodKey

log = structlog.get_logger(__name__)

WELCOME_S: Final = 2.0
"""How long a runner may take to answer before its pod counts as dead; it takes some ms."""
TRIED_S: Final = 5.0
"""How long a pod that was not to be had is left alone as it is: the watch may be behind, or the API may refuse."""
_PAUSES_S: Final = (0.05, 0.2, 0.5)
"""Before a claim that was not answered is sent again, or a runner called that was not reached."""
_LONGEST_PAUSE_S: Final = 2.0


class NotTaken(Exception):
    """The pod is somebody else's, or is no more."""


class Unfit(Exception):
    """The pod was claimed and cannot be used: it is to be deleted."""


class Dead(Unfit):
    """Its runner does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Who wants a pod, and for what."""

    key: PodKey
    owner: str
    token: str
    wall_s: float

    @property
    def labels(self) -> dict[str, str]:
        """Those of the pod once it is claimed."""
        return {**labels_of(self.key), manifests.OWNER: self.owner, STATE: CLAIMED}


def labels_of(key: PodKey) -> dict[str, str]:
    """Return the labels by which the pod of an attempt is found, whatever its name is."""
    return {manifests.EXECUTION: key.execution_id, manifests.ATTEMPT: str(key.attempt)}


def selector(labels: Mapping[str, str]) -> str:
    """Return what finds the pods that have all `labels`."""
    return ",".join(f"{name}={value}" for name, value in labels.items())


class Taken:
    """A claimed pod, and the connection to its runner, which has said that it waits; to be closed."""

    def __init__(self, name: str, attachment: Attachment, link: Link, held: contextlib.AsyncExitStack) -> None:
        self.name = name
        self.attachment = attachment
        self.link = link
        self.aclose = held.aclose


class WarmPods:
    """The warm pods of a namespace, watched; any number of processes may claim them."""

    def __init__(self, api: PodApi, pools: Mapping[tuple[str, str], Pool]) -> None:
        self._api = api
        self._pools = pools
        self._pods = Pods(api, f"{STATE}={WARM}", self._on_change)
        self._waiting: dict[str, dict[str, Any]] = {}
        self._tried: dict[str, tuple[str, float]] = {}
        """Versions of pods that were not to be had, and until when they are left alone, monotonic."""
        self._taking: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.count: Counter[str] = Counter()
        """How often a pod was ``claimed``, was somebody else's (``lost``), ``unfit``, or ``dead``."""

    async def run(self) -> None:
        """Keep up with the cluster; runs until cancelled."""
        await self._pods.run()

    async def listed(self) -> None:
        """Return once the pods were listed."""
        await self._pods.listed()

    async def close(self) -> None:
        """Return when the connections that were of no use are closed."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def pool(self, lang: str, version: str) -> Pool | None:
        """Return the pool of a runtime."""
        return self._pools.get((lang, version))

    def waiting(self, pool: Pool) -> int:
        """Return how many pods of a pool wait."""
        return sum(pool.holds(pod) for pod in self._waiting.values())

    def choose(self, pool: Pool, wall_s: float) -> str | None:
        """Return a pod to `take`, None when none is left: at random, so that claimers seldom meet."""
        ready = [
            name
            for name, pod in self._waiting.items()
            if name not in self._taking
            and not self._is_tried(name, pod)
            and pool.holds(pod)
            and deadline_s(pod, wall_s) is not None
        ]
        return random.choice(ready) if ready else None  # noqa: S311

    async def take(self, pool: Pool, name: str, claim: Claim) -> Taken:
        """Claim a pod that was chosen, check it, and call its runner.

        Raises: NotTaken; Unfit, Dead; Transient, when nobody knows whether it was claimed.
        """
        pod = self._waiting[name]
        self._tried[name] = pod["metadata"]["resourceVersion"], time.monotonic() + TRIED_S
        self._taking.add(name)
        held = contextlib.AsyncExitStack()
        attaching = asyncio.ensure_future(self._attached(name, held))
        try:
            if (deadline := deadline_s(pod, claim.wall_s)) is None:
                raise NotTaken(name)
            mine = await self._claimed(pod, claim, deadline)
            if leaves(mine):
                raise Unfit("it is being deleted")
            if found := difference(mine, pool.manifest(name, deadline)):
                raise Unfit(found)
            taken = Taken(name, *await _greeted(attaching), held)
        except BaseException as error:
            self.count[_TALLY.get(type(error), "failed")] += 1
            self._spawn(_hang_up(attaching, held))
            raise
        finally:
            self._taking.discard(name)
        self.count["claimed"] += 1
        return taken

    async def _attached(self, name: str, held: contextlib.AsyncExitStack) -> Attachment:
        """Return a connection to a pod's runner; a refusal may say nothing of the pod, and is not its death.

        Raises: Transient.
        """
        for pause_s in (*_PAUSES_S, None):
            try:
                return await held.enter_async_context(self._api.attached(name, CONTAINER))
            except Transient:
                if pause_s is None:
                    raise
                await asyncio.sleep(pause_s)
        raise AssertionError("the last of the tries raises")

    async def _claimed(self, pod: Mapping[str, Any], claim: Claim, deadline: int) -> dict[str, Any]:
        """Return the pod as it is now that it is ours.  Raises: NotTaken; Transient."""
        name = pod["metadata"]["name"]
        changes = {
            "metadata": {
                "resourceVersion": pod["metadata"]["resourceVersion"],
                "labels": claim.labels,
                "annotations": {manifests.TOKEN: claim.token, **manifests.MUST_STAY},
            },
            "spec": {"activeDeadlineSeconds": deadline},
        }
        doubtful = False
        for pause_s in (*_PAUSES_S, None):
            try:
                return await self._api.patch(name, changes)
            except Changed:
                mine = await self._found(name, claim) if doubtful else None
                if mine is None:
                    raise NotTaken(name) from None
                return mine
            except Missing:
                raise NotTaken(name) from None
            except Permanent as error:
                log.error("warm_pod.not_claimed", pod=name, error=str(error))
                raise NotTaken(name) from error
            except Transient as error:
                doubtful = True
                if pause_s is None:
                    raise
                await asyncio.sleep(min(max(pause_s, error.retry_after_s or 0.0), _LONGEST_PAUSE_S))
        raise AssertionError("the last of the tries raises")

    async def _found(self, name: str, claim: Claim) -> dict[str, Any] | None:
        """Return the pod if it has our labels: of the patches that were not answered one was carried out."""
        listed = await self._api.list(selector(claim.labels))
        return next((pod for pod in listed.pods if pod["metadata"]["name"] == name), None)

    def _is_tried(self, name: str, pod: Mapping[str, Any]) -> bool:
        version, until_s = self._tried.get(name, ("", 0.0))
        return version == pod["metadata"]["resourceVersion"] and time.monotonic() < until_s

    def _on_change(self, name: str, pod: Mapping[str, Any] | None) -> None:
        if pod is not None and waits(pod):
            self._waiting[name] = dict(pod)
            return
        self._waiting.pop(name, None)
        if pod is None:
            self._tried.pop(name, None)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_TALLY: Final[Mapping[type[BaseException], str]] = {NotTaken: "lost", Unfit: "unfit", Dead: "dead"}


async def _greeted(attaching: asyncio.Future[Attachment]) -> tuple[Attachment, Link]:
    """Return the connection once the runner has said over it that it waits.  Raises: Dead."""
    link = Link()
    try:
        async with asyncio.timeout(WELCOME_S):
            attachment = await attaching
            await attachment.write(link.hello())
            while data := await attachment.read():
                for event in [*link.take(data)]:
                    if event == Welcome(State.WAITING):
                        return attachment, link
                    raise Dead(f"its runner says {event!r} instead of waiting")
    except TimeoutError:
        raise Dead(f"its runner does not answer within {WELCOME_S:g} s") from None
    except (Transient, ProtocolError) as error:
        raise Dead(str(error)) from error
    raise Dead("its runner hangs up")


async def _hang_up(attaching: asyncio.Future[Attachment], held: contextlib.AsyncExitStack) -> None:
    """Close the connection, which may not be open yet."""
    attaching.cancel()
    await asyncio.gather(attaching, return_exceptions=True)
    await held.aclose()
