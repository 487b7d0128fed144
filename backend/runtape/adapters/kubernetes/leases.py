"""Work that one of several processes does at a time, shared among them by Lease objects.

Theory of operation.  The work is cut into numbered partitions, and each has a Lease (coordination.k8s.io/v1) that says
who does it.  Whoever holds one writes it again every `TURN_S`; each write is for the version that was read, so of two
who want a lease one gets it.  A lease that nobody has written for as long as it lasts is free.  That time is taken by
the monotonic clock of whoever looks, from when it first saw the lease as it is: what the lease says of times is for
people, as clocks differ (client-go's leaderelection does the same).  A holder stops its work by its own clock
`LEASE_S - RENEWED_S` before anybody else can begin, also when the API does not answer.

Every process also has a Lease of its own, as a member.  From the members that live, each process reckons how many
partitions are its share: all the same, but for one more for the first ones by name.  Who has less takes what is free,
and who has more gives one up in each turn.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Protocol

import structlog
from kubernetes_asyncio import client

from runtape.adapters.kubernetes.api import RAW, Changed, Exists, Missing, asked
from runtape.adapters.kubernetes.manifests import MANAGED_BY
from runtape.ports.errors import InfrastructureError

log = structlog.get_logger(__name__)

LEASE_S: Final = 15
RENEWED_S: Final = 10.0
"""A holder that could not renew its lease for so long stops."""
TURN_S: Final = 2.0
FORGOTTEN_S: Final = 600.0
"""The lease of a member that is gone is removed after so long."""
GROUP: Final = "runtape.dev/leases"
"""Label: which leases belong together."""
_ASKED_S: Final = 5.0

Lease = Mapping[str, Any]
Work = Callable[[int], Coroutine[object, object, None]]


class LeaseApi(Protocol):
    """Lease objects, as plain JSON."""

    async def list(self, group: str) -> list[dict[str, Any]]:
        """Return the leases of a group.  Raises: Transient."""
        ...

    async def create(self, lease: Lease) -> dict[str, Any]:
        """Make a lease and return it.  Raises: Exists; Transient; Permanent."""
        ...

    async def replace(self, lease: Lease) -> dict[str, Any]:
        """Write a lease of the version that `lease` has.  Raises: Changed; Missing; Transient; Permanent."""
        ...

    async def delete(self, lease: Lease) -> None:
        """Remove a lease of that version.  Raises: Changed; Missing; Transient."""
        ...


class Leases:
    """Lease objects of one namespace; `close` ends its connections."""

    def __init__(self, configuration: client.Configuration, namespace: str) -> None:
        self._namespace = namespace
        self._client = client.ApiClient(configuration)
        # Typed as what they return when answers are made into models, which they are not here.
        self._api: Any = client.CoordinationV1Api(self._client)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def list(self, group: str) -> list[dict[str, Any]]:
        found = await asked(self._api.list_namespaced_lease(self._namespace, label_selector=f"{GROUP}={group}", **RAW))
        return found["items"]

    async def create(self, lease: Lease) -> dict[str, Any]:
        return await asked(self._api.create_namespaced_lease(self._namespace, lease, **RAW))

    async def replace(self, lease: Lease) -> dict[str, Any]:
        return await asked(self._api.replace_namespaced_lease(_name(lease), self._namespace, lease, **RAW))

    async def delete(self, lease: Lease) -> None:
        body = {"preconditions": {"resourceVersion": lease["metadata"]["resourceVersion"]}}
        await asked(self._api.delete_namespaced_lease(_name(lease), self._namespace, body=body, **RAW))


@dataclass(slots=True)
class _Holding:
    """A partition that is ours: its work, and the time after which it is not any more."""

    task: asyncio.Task[None]
    until: asyncio.Timeout


class Partitions:
    """The share of this process, `me`, in the partitions 0 to `count` - 1 of the work called `name`."""

    def __init__(self, api: LeaseApi, name: str, count: int, me: str) -> None:
        self._api = api
        self._name = name
        self._me = me
        self._numbers = {f"{name}-{number}": number for number in range(count)}
        self._member = f"{name}-member-{me}"
        self._seen: dict[str, tuple[Lease, float]] = {}
        """Each lease as it is, and since when it was seen as it is."""
        self._held: dict[int, _Holding] = {}

    @property
    def held(self) -> frozenset[int]:
        """The partitions whose work runs here."""
        return frozenset(number for number, holding in self._held.items() if not holding.task.done())

    async def run(self, work: Work) -> None:
        """Do `work` for each partition while it is held; runs until cancelled, and then gives all of them up."""
        try:
            while True:
                try:
                    async with asyncio.timeout(_ASKED_S):
                        await self._turn(work)
                except (InfrastructureError, TimeoutError) as error:
                    log.warning("leases.not_renewed", group=self._name, error=str(error) or "no answer")
                await asyncio.sleep(TURN_S)
        finally:
            await self._leave()

    async def _turn(self, work: Work) -> None:
        began_s = time.monotonic()
        self._observe(await self._api.list(self._name))
        await self._renew_member()
        for number in [number for number, holding in self._held.items() if holding.task.done()]:
            await self._give_up(number)
        await asyncio.gather(*(self._renew(number, began_s) for number in [*self._held]))
        share = self._share()
        if len(self._held) > share:
            await self._give_up(max(self._held))
        for name, number in self._numbers.items():
            if len(self._held) < share and number not in self._held and self._is_free(name):
                await self._take(name, number, work)

    def _observe(self, leases: list[dict[str, Any]]) -> None:
        now_s = time.monotonic()
        found = {_name(lease): lease for lease in leases}
        for name in [name for name in self._seen if name not in found]:
            del self._seen[name]
        for name, lease in found.items():
            before = self._seen.get(name)
            if before is None or before[0]["spec"] != lease["spec"]:
                self._seen[name] = lease, now_s
            else:
                self._seen[name] = lease, before[1]

    def _is_free(self, name: str) -> bool:
        if name not in self._seen:
            return True
        lease, since_s = self._seen[name]
        holder = lease["spec"].get("holderIdentity")
        lasts_s = lease["spec"].get("leaseDurationSeconds") or LEASE_S
        return not holder or holder == self._me or time.monotonic() - since_s > lasts_s

    def _share(self) -> int:
        """Return how many partitions this process is to hold."""
        members = sorted(
            {name for name in self._seen if name not in self._numbers and not self._is_free(name)} | {self._member}
        )
        each, left = divmod(len(self._numbers), len(members))
        return each + (members.index(self._member) < left)

    async def _renew_member(self) -> None:
        for name in [name for name in self._seen if name not in self._numbers]:
            lease, since_s = self._seen[name]
            if time.monotonic() - since_s > FORGOTTEN_S:
                with contextlib.suppress(Changed, Missing):
                    await self._api.delete(lease)
        await self._write(self._member, self._me)

    async def _renew(self, number: int, began_s: float) -> None:
        name = f"{self._name}-{number}"
        lease = self._seen.get(name)
        holding = self._held[number]
        if lease is None or lease[0]["spec"].get("holderIdentity") != self._me:
            await self._stop(number)
        elif await self._write(name, self._me) and not (holding.until.expired() or holding.task.done()):
            holding.until.reschedule(_on_loop(began_s + RENEWED_S))

    async def _take(self, name: str, number: int, work: Work) -> None:
        began_s = time.monotonic()
        if not await self._write(name, self._me):
            return
        log.info("partition.taken", lease=name)
        until = asyncio.timeout_at(_on_loop(began_s + RENEWED_S))
        entered = asyncio.Event()

        async def hold() -> None:
            try:
                async with until:
                    entered.set()
                    await work(number)
            except TimeoutError:
                log.warning("partition.lost", lease=name)
            except Exception as error:  # the loop's edge: another turn takes it again, or another process
                log.error("partition.failed", lease=name, exc_info=error)

        self._held[number] = _Holding(asyncio.create_task(hold()), until)
        await entered.wait()

    async def _give_up(self, number: int) -> None:
        """Stop the work, then let others have it."""
        await self._stop(number)
        name = f"{self._name}-{number}"
        lease = self._seen.get(name)
        if lease is not None and lease[0]["spec"].get("holderIdentity") == self._me:
            await self._write(name, "")
            log.info("partition.given_up", lease=name)

    async def _stop(self, number: int) -> None:
        holding = self._held.pop(number)
        holding.task.cancel()
        await asyncio.gather(holding.task, return_exceptions=True)

    async def _write(self, name: str, holder: str) -> bool:
        """Write a lease, as new or as it was seen; return whether nobody else has written it meanwhile."""
        seen = self._seen.get(name)
        try:
            if seen is None:
                lease = await self._api.create(self._made(name, holder))
            else:
                lease = await self._api.replace(_written(seen[0], holder))
        except (Exists, Changed, Missing):
            self._seen.pop(name, None)
            return False
        self._seen[name] = lease, time.monotonic()
        return True

    def _made(self, name: str, holder: str) -> Lease:
        labels = {MANAGED_BY: "runtape", GROUP: self._name}
        empty = {"metadata": {"name": name, "labels": labels}, "spec": {}}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", **_written(empty, holder)}

    async def _leave(self) -> None:
        """Stop all work, and say so as far as that is possible."""
        await asyncio.gather(*(self._stop(number) for number in [*self._held]))
        with contextlib.suppress(InfrastructureError, TimeoutError):
            async with asyncio.timeout(_ASKED_S):
                for lease in await self._api.list(self._name):
                    if lease["spec"].get("holderIdentity") != self._me:
                        continue
                    if _name(lease) == self._member:
                        await self._api.delete(lease)
                    else:
                        await self._api.replace(_written(lease, ""))


def _written(lease: Lease, holder: str) -> dict[str, Any]:
    """Return the lease as `holder` writes it now; nobody holds it if that is empty."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    before = lease["spec"]
    spec: dict[str, Any] = {"leaseDurationSeconds": LEASE_S, "renewTime": now}
    if holder:
        spec["holderIdentity"] = holder
    changes = holder and before.get("holderIdentity") != holder
    spec["acquireTime"] = now if changes else before.get("acquireTime", now)
    spec["leaseTransitions"] = before.get("leaseTransitions", 0) + bool(changes)
    return {**lease, "spec": spec}


def _name(lease: Lease) -> str:
    return lease["metadata"]["name"]


def _on_loop(monotonic_s: float) -> float:
    return asyncio.get_running_loop().time() + monotonic_s - time.monotonic()
