"""Whether the cluster keeps pods from the network, found out by trying: any API takes a policy, not all enforce it.

*Theory of operation.*  Two pods listen, then two try to reach them.  One of each kind is hardened and labelled as the
pods of programs are, so the policy ``deny-all`` keeps it from everything; the others differ by the label
`PROBE`=``control``, to which the policy ``probe-control`` gives the pods of the namespace (deploy/kubernetes)::

    control  ->  control     has to get through, or nothing was shown
    program  ->  control     gets through unless outgoing connections are denied
    control  ->  program     gets through unless incoming connections are denied

A connection counts once a word has come back.  One that gets through once has got through: a program may be quick too.
"""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import structlog

from runtape.adapters.kubernetes import manifests
from runtape.adapters.kubernetes.api import PodApi
from runtape.adapters.kubernetes.manifests import PodSettings
from runtape.adapters.kubernetes.outcomes import unreported, unschedulable
from runtape.adapters.kubernetes.watching import Pods
from runtape.domain.limits import MINIMUM
from runtape.ports.errors import InfrastructureError, SandboxUnavailable, Transient

log = structlog.get_logger(__name__)

PROGRAM: Final = "/runtape/probe"
PORT: Final = 9999
PROBE: Final = "runtape.dev/probe"
"""Label of the pods of a probe: ``control``, or ``program`` for those that are denied everything."""
RUN: Final = "runtape.dev/probe-run"
"""Label: which probe of which process it is of."""
TRY_S: Final = 5
"""How long one pod tries to reach another; the plugin has that time to let the control through, too."""
CPU: Final = "50m"
"""Of each of the four pods, which a node may have to hold at once."""
PROBE_S: Final = 90.0
"""How long all of it may take."""
PAUSES_S: Final = (1.0, 2.0, 4.0, 8.0)
"""Before it is done again where the API has failed in the middle of it."""
REMOVE_S: Final = 20.0
_REACHED: Final = 64
"""What the exit code of who tries begins at (probe.c)."""
FIX: Final = (
    "apply deploy/kubernetes, whose policies are deny-all and probe-control, to a cluster whose network plugin "
    "enforces them (Calico, Cilium); or set kubernetes.require_network_policy = false, and programs reach what pods do"
)


class Verdict(StrEnum):
    """What was found out."""

    ENFORCED = "enforced"
    NOT_ENFORCED = "not_enforced"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict, and what it rests on."""

    verdict: Verdict
    reason: str
    passing: bool = False
    """Whether what it rests on may be gone the next moment."""


class NetworkOpen(SandboxUnavailable):
    """Programs may be able to reach the network; the message says what was found and the fix."""


def judge(*, control: bool, outgoing: bool, incoming: bool) -> Finding:
    """Return what follows from who got through: the control, a program's pod, something to a program's pod."""
    if outgoing or incoming:
        which = [name for name, got in (("outgoing", outgoing), ("incoming", incoming)) if got]
        return Finding(Verdict.NOT_ENFORCED, f"{' and '.join(which)} connections of a program's pod get through")
    if not control:
        return Finding(Verdict.UNKNOWN, f"the pods of the control do not reach each other within {TRY_S} s either")
    return Finding(Verdict.ENFORCED, "a program's pod reaches nothing and is not reached, and the control is")


def settle(finding: Finding, *, required: bool) -> None:
    """Tell the log what was found.

    Raises: NetworkOpen, when enforcement is `required` and was not shown; Transient, when it may be the next time.
    """
    if finding.verdict is Verdict.ENFORCED:
        log.info("network_policy.enforced", reason=finding.reason)
        return
    if required and finding.passing:
        raise Transient(f"nobody can say yet whether network policies are enforced: {finding.reason}")
    if required:
        raise NetworkOpen(f"network policies are {_told(finding)}: {FIX}")
    log.warning(f"network_policy.{finding.verdict}", reason=finding.reason, fix=FIX)


def _told(finding: Finding) -> str:
    words = {Verdict.NOT_ENFORCED: "not enforced", Verdict.UNKNOWN: "perhaps not enforced"}
    return f"{words[finding.verdict]} ({finding.reason})"


async def find_out(api: PodApi, settings: PodSettings, image: str) -> Finding:
    """Return what `look` finds out, after another try or some where the API has failed, which says nothing of it."""
    for pause_s in PAUSES_S:
        finding = await look(api, settings, image)
        if not finding.passing:
            return finding
        log.warning("network_policy.looked_at_again", reason=finding.reason, in_s=pause_s)
        await asyncio.sleep(pause_s)
    return await look(api, settings, image)


async def look(api: PodApi, settings: PodSettings, image: str) -> Finding:
    """Return what four short-lived pods of `image` find out, within `PROBE_S`; they are gone afterwards.

    What keeps it from finding out is told in the finding.
    """
    run = secrets.token_hex(4)
    stage = _Stage(api, settings, image, run)
    try:
        async with asyncio.timeout(PROBE_S):
            await _remove(api, PROBE, _is_left)
            async with stage.watched():
                return await _tried(stage)
    except TimeoutError:
        reason = f"the pods of the probe took longer than {PROBE_S:g} s ({stage.told()})"
        return Finding(Verdict.UNKNOWN, reason, passing=stage.away)
    except (InfrastructureError, _Unusable) as error:
        passing = isinstance(error, Transient)
        return Finding(Verdict.UNKNOWN, f"the probe could not be carried out: {error}", passing)
    finally:
        await asyncio.shield(_removed(api, run))


async def _tried(stage: "_Stage") -> Finding:
    listen = ["listen", str(PORT)]
    await _both(stage.make("control-listens", listen), stage.make("program-listens", listen))
    control, program = await asyncio.gather(stage.address("control-listens"), stage.address("program-listens"))
    connect = ["connect", str(TRY_S), str(PORT)]
    await _both(
        stage.make("control-connects", [*connect, control, program]),
        stage.make("program-connects", [*connect, control]),
    )
    of_control, of_program = await asyncio.gather(stage.reached("control-connects"), stage.reached("program-connects"))
    # Who ended meanwhile was not listening all the time, and that nobody got through shows nothing.
    await asyncio.gather(stage.address("control-listens"), stage.address("program-listens"))
    return judge(control=bool(of_control & 1), outgoing=bool(of_program & 1), incoming=bool(of_control & 2))


async def _both(*making: Awaitable[None]) -> None:
    """Have pods made, and raise what one has met once it is settled what became of all: they are to be removed."""
    for met in await asyncio.gather(*making, return_exceptions=True):
        if met is not None:
            raise met


class _Unusable(Exception):
    """A pod of the probe does not do what it is there for."""


class _Stage:
    """The pods of one probe, which are made and watched."""

    def __init__(self, api: PodApi, settings: PodSettings, image: str, run: str) -> None:
        self._api = api
        self._settings = replace(settings, cpu=CPU)
        self._image = image
        self._run = run
        self._changed = asyncio.Event()
        self._pods = Pods(api, f"{RUN}={run}", self._on_change)
        self._roles: list[str] = []

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Keep up with the pods meanwhile."""
        watching = asyncio.ensure_future(self._pods.run())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    @property
    def away(self) -> bool:
        """Whether the API does not answer."""
        return not self._pods.up_to_date

    def told(self) -> str:
        """Return what is known of the pods that were made."""
        seen = {role: (self._pods[self._name(role)] or {}).get("status", {}) for role in self._roles}
        return "; ".join(
            f"{role}: {unschedulable(status) or status.get('phase') or 'not seen'}" for role, status in seen.items()
        )

    async def make(self, role: str, arguments: list[str]) -> None:
        """Make a pod that runs the probe with `arguments`; the first word of its `role` is its label."""
        labels = {manifests.NAME: "probe", RUN: self._run, PROBE: role.partition("-")[0]}
        pod = manifests.pod(self._name(role), self._settings, self._image, MINIMUM, labels, "")
        pod["spec"]["containers"][0]["command"] = [PROGRAM, *arguments]
        pod["spec"]["activeDeadlineSeconds"] = int(PROBE_S)
        self._roles.append(role)
        await self._api.create(pod)

    async def address(self, role: str) -> str:
        """Return the address of a pod that runs, once it does.  Raises: _Unusable, when it has ended."""

        def found(pod: Mapping[str, Any]) -> str | None:
            if failed := unreported(pod):
                raise _Unusable(f"{role}: {failed.message}")
            status = pod["status"]
            return status.get("podIP") if status.get("phase") == "Running" else None

        return await self._once(role, found)

    async def reached(self, role: str) -> int:
        """Return whom a pod has reached, as bits, once it has ended.  Raises: _Unusable, when that is not known."""

        def found(pod: Mapping[str, Any]) -> int | None:
            states = [each["state"] for each in pod["status"].get("containerStatuses") or ()]
            code = states[0].get("terminated", {}).get("exitCode", 0) if states else 0
            if code & ~3 == _REACHED:
                return code & 3
            if failed := unreported(pod):
                raise _Unusable(f"{role}: {failed.message}")
            return None

        return await self._once(role, found)

    async def _once(self, role: str, found: Callable[[Mapping[str, Any]], Any]) -> Any:
        """Return what `found` makes of a pod as soon as it is not None."""
        while True:
            pod = self._pods[self._name(role)]
            if pod is not None and (answer := found(pod)) is not None:
                return answer
            await self._changed.wait()

    def _name(self, role: str) -> str:
        return f"probe-{self._run}-{role}"

    def _on_change(self, _name: str, _pod: Mapping[str, Any] | None) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _is_left(pod: Mapping[str, Any]) -> bool:
    """Whether a pod is of a probe that nobody carries out any more, on whatever clock of two machines."""
    age = datetime.now(UTC) - datetime.fromisoformat(pod["metadata"]["creationTimestamp"])
    return age.total_seconds() > 2 * PROBE_S


async def _removed(api: PodApi, run: str) -> None:
    """Remove the pods of a probe, as far as the cluster lets us; what is left ends by itself."""
    try:
        async with asyncio.timeout(REMOVE_S):
            await _remove(api, f"{RUN}={run}", lambda _: True)
    except (InfrastructureError, TimeoutError) as error:
        log.warning("network_policy.probe_left", run=run, error=str(error) or type(error).__name__)


async def _remove(api: PodApi, selector: str, wanted: Callable[[Mapping[str, Any]], bool]) -> None:
    listed = await api.list(selector)
    await asyncio.gather(*(api.delete(pod["metadata"]["name"]) for pod in listed.pods if wanted(pod)))
