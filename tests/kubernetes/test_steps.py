"""k8s_worker and pod_monitor die, and stand still, at each of their steps over real pods: no run is lost, none ends
twice, no byte is missing or there twice, no pod of a run is left, and as many warm pods wait as before.

The steps are those of `tests.kubernetes.mortal_worker`.  As in `tests.cluster.test_steps` one worker of a role stands
still at a step while the other one dies at it; who died comes again in its data folder, and who stands wakes in the
middle of its step once others have done what it had in its hands.  What a monitor does is only of use when a k8s_worker
is gone: one dies for it, and comes again last.
"""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import pytest

from runtape.runtime.roles import Role
from tests.cluster.mortal import MortalWorker, arm, leased_to, met, repeated, standing_still
from tests.cluster.plugin import running
from tests.cluster.survival import settled, survived
from tests.e2e.server import Client
from tests.kubernetes.mortal_cluster import WARM, MortalPodCluster, owned_by
from tests.kubernetes.survival import IS_WARM, script, until_none_is_left
from tests.rig.kubernetes.cluster import Kubernetes

pytestmark = [
    pytest.mark.needs("kubernetes", "kafka", "mongo", "redis", "registry", "alone", "own"),
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]

RUNS = 12
OVER_S = 4.0
WITHIN_S = 60.0
"""Two cores make two or three pods a second, and many a run begins again."""

WORKER_STEPS = [
    ("not-made", 2),
    ("made", 2),
    ("not-claimed", 1),
    ("claimed", 1),
    ("not-handed-over", 2),
    ("handed-over", 2),
    ("partly-written", 3),
    ("written", 2),
    ("end-recorded", 2),
    ("not-deleted", 2),
    ("deleted", 2),
    ("warm-made", 1),
]
LEAVES = {"end": "written", "left": "end-recorded", "loss": "partly-written", "expiry": "partly-written"}
"""Where a k8s_worker dies, by what a monitor finds then: an end that its pod has told, a pod that nobody needs, an
attempt without a pod, and one whose program runs on."""


@pytest.fixture(scope="module")
def cluster(kubernetes: Kubernetes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MortalPodCluster]:
    with running(MortalPodCluster(tmp_path_factory.mktemp("mortal-pods"), kubernetes)) as cluster:
        yield cluster


@pytest.fixture
async def clients(cluster: MortalPodCluster) -> AsyncIterator[list[Client]]:
    """The admin, at the API."""
    client = cluster.client_of(cluster.apis[0])
    yield [client]
    await client.http.aclose()


@pytest.fixture(autouse=True)
def whole(cluster: MortalPodCluster) -> Iterator[None]:
    """Every process runs again after a test that failed."""
    yield
    cluster.mend()


async def outlived(
    cluster: MortalPodCluster,
    clients: list[Client],
    name: str,
    meet: Callable[[], object],
    come_again: Callable[[], object],
    enough: threading.Event,
) -> None:
    """Let runs go through all that, until there are `enough`, and check them; nothing of them is left soon."""
    found = await survived(
        clients,
        name,
        meet,
        come_again,
        runs=RUNS,
        over_s=OVER_S,
        before_s=0,
        down_s=0,
        within_s=WITHIN_S,
        write=script,
        enough=enough.is_set,
    )
    await settled(cluster, clients, found)
    await until_none_is_left(cluster, WARM)


@pytest.mark.parametrize(("step", "nth"), [pytest.param(*case, id=case[0]) for case in WORKER_STEPS])
async def test_one_worker_stands_still_and_the_other_dies_at_a_step(
    cluster: MortalPodCluster, clients: list[Client], step: str, nth: int
) -> None:
    stands, dies = cluster.pair(Role.K8S_WORKER)
    both = threading.Event()

    def meet() -> None:
        met(stands, dies)
        both.set()

    def come_again() -> None:
        dies.again().until_said("joined")  # with all partitions: the other one is missed
        cluster.give_away(stands)
        stands.wake()

    arm(stands, dies, step, nth)
    await outlived(cluster, clients, step, meet, come_again, both)
    stands.until_says("joined")


async def test_one_keeper_of_warm_pods_stands_still_and_the_other_dies_before_it_knows_what_it_has_made(
    cluster: MortalPodCluster,
) -> None:
    """Nobody runs anything meanwhile, and takes away what is too many."""
    stands, dies = cluster.pair(Role.K8S_WORKER)

    def meet() -> None:
        with repeated(lambda: cluster.delete(cluster.pods(IS_WARM))):
            met(stands, dies)

    async def refilled() -> None:
        await until_none_is_left(cluster, WARM)
        await asyncio.to_thread(lambda: cluster.delete(cluster.pods(IS_WARM)[:1]))
        await until_none_is_left(cluster, WARM)  # whoever keeps them knows of the other one

    arm(stands, dies, "warm-made", 1)
    await asyncio.to_thread(meet)
    await asyncio.to_thread(dies.again)
    await refilled()
    await asyncio.to_thread(stands.wake)
    await refilled()
    await asyncio.to_thread(stands.until_says, "joined")


@pytest.mark.parametrize("found", LEAVES)
async def test_one_monitor_stands_still_and_the_other_dies_before_it_does_a_thing_for_a_dead_worker(
    cluster: MortalPodCluster, clients: list[Client], found: str
) -> None:
    stands, dies = cluster.pair(Role.POD_MONITOR)
    lost, died = cluster.pair(Role.K8S_WORKER)[1], threading.Event()
    told: list[str] = []

    def meet() -> None:
        lost.await_death()
        died.set()
        with left_behind(cluster, lost, found):
            met(stands, dies)
        if found == "end":
            told.extend(cluster.told_by(lost))

    def come_again() -> None:
        dies.again()
        if told:
            cluster.until_completed(told)
        cluster.give_away(lost)
        stands.wake()
        lost.again()

    arm(stands, dies, f"{found}-seen", 1)
    lost.arm(signal.SIGKILL, LEAVES[found], 1)
    await outlived(cluster, clients, f"{found}-seen", meet, come_again, died)


@pytest.mark.parametrize("step", ["end-told", "left-deleted", "loss-told", "expiry-told"])
async def test_the_only_monitor_dies_as_soon_as_it_has_done_a_thing_for_a_dead_worker(
    cluster: MortalPodCluster, clients: list[Client], step: str
) -> None:
    other, dies = cluster.pair(Role.POD_MONITOR)
    lost, died = cluster.pair(Role.K8S_WORKER)[1], threading.Event()
    found = step.partition("-")[0]

    def meet() -> None:
        lost.await_death()
        died.set()
        with left_behind(cluster, lost, found):
            dies.await_death()

    def come_again() -> None:
        dies.again()
        cluster.give_away(lost)
        lost.again()

    dies.arm(signal.SIGKILL, step, 1)
    lost.arm(signal.SIGKILL, LEAVES[found], 1)
    with standing_still(other):
        await outlived(cluster, clients, step, meet, come_again, died)


async def test_one_monitor_stands_still_and_the_other_dies_once_it_has_partitions_and_knows_of_no_pods(
    cluster: MortalPodCluster, clients: list[Client]
) -> None:
    stands, dies = cluster.pair(Role.POD_MONITOR)
    lost, died = cluster.pair(Role.K8S_WORKER)[1], threading.Event()

    def meet() -> None:
        lost.await_death()
        died.set()
        for monitor in (stands, dies):
            monitor.kill()
        stands.begin_armed(signal.SIGSTOP, "taken", 1)
        dies.begin_armed(signal.SIGKILL, "taken", 1)
        met(stands, dies)

    def come_again() -> None:
        dies.again()
        cluster.give_away(lost)
        stands.wake()
        lost.again()

    lost.arm(signal.SIGKILL, "end-recorded", 1)
    await outlived(cluster, clients, "taken", meet, come_again, died)
    stands.until_ready()


def left_behind(cluster: MortalPodCluster, lost: MortalWorker, found: str) -> AbstractContextManager[None]:
    """Let a monitor come to what a dead k8s_worker has left and is to be `found`."""
    match found:
        case "expiry":
            return cluster.hastened(leased_to(lost))
        case "loss":
            cluster.delete(cluster.pods(owned_by(lost)))
            return cluster.hastened(leased_to(lost), "lease_us")
        case _:
            return nullcontext()
