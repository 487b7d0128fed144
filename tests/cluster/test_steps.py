"""Each worker dies, and stands still, at each of its steps: no run is lost, none ends twice, no byte is missing or
there twice.

The steps are those of `tests.cluster.mortal_worker`.  Under a flood of runs one worker of a role stands still at a step
and the other one dies at it.  Who died comes again in its data folder.  Who stands is taken for gone by the others, and
wakes in the middle of its step once they have done what it had in its hands.  Soon after that every run has ended and
every place is free.
"""

import signal
from collections.abc import Callable, Iterator

import pytest

from runtape.domain.outcome import Status
from runtape.runtime.roles import Role
from tests.cluster.mortal import (
    CONSUMERS,
    SOON_S,
    MortalCluster,
    MortalWorker,
    arm,
    leased_to,
    met,
    standing_still,
)
from tests.cluster.plugin import running
from tests.cluster.survival import settled, survived
from tests.e2e.server import Client

pytestmark = [pytest.mark.needs("kafka", "mongo", "redis", "registry", "alone", "own"), pytest.mark.timeout(240)]

PLACES = 16
"""How many runs are carried out at once: few enough that others wait in line."""
RUNS = 200
OVER_S = 2.0
"""They come faster than they end, so that most of them wait in line, and all are accepted before all is well."""
PART = 60
"""When so many runs are over without who stands still, others have done what it had in its hands, and most are to come.
"""

EVERY = ("fetched", "not-committed", "committed", "told", "handled")
"""The steps of whoever handles messages."""
CASES = [
    *((role, step, 4) for role in CONSUMERS for step in EVERY),
    (Role.SAGA_ORCHESTRATOR, "recorded", 1),
    (Role.K8S_WORKER, "recorded", 1),
    (Role.RESULT_PROCESSOR, "published", 1),
    (Role.SAGA_ORCHESTRATOR, "place-taken", 1),
    *((Role.SAGA_ORCHESTRATOR, step, 2) for step in ("not-in-line", "granted", "given-back")),
    *((Role.K8S_WORKER, step, 3) for step in ("leased", "started", "partly-written", "written", "end-recorded")),
]
ENDED = {"status": {"$in": [status for status in Status if status.terminal]}}
AMID = 20
"""By then a k8s_worker has several attempts at once."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MortalCluster]:
    with running(MortalCluster(tmp_path_factory.mktemp("mortal"), apis=1, running=PLACES)) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def whole(cluster: MortalCluster) -> Iterator[None]:
    """Every process runs again after a test that failed."""
    yield
    cluster.mend()


async def outlived(
    cluster: MortalCluster,
    clients: list[Client],
    name: str,
    meet: Callable[[], object],
    come_again: Callable[[], object],
) -> None:
    """Let a flood of runs go through all that, and check them; all places are free then."""
    found = await survived(
        clients, name, meet, come_again, runs=RUNS, over_s=OVER_S, before_s=0, down_s=0, within_s=SOON_S
    )
    await settled(cluster, clients, found)


@pytest.mark.parametrize(("role", "step", "nth"), [pytest.param(*case, id=f"{case[0]}-{case[1]}") for case in CASES])
async def test_one_worker_stands_still_and_the_other_dies_at_a_step(
    cluster: MortalCluster, clients: list[Client], role: Role, step: str, nth: int
) -> None:
    """A k8s_worker wakes as soon as its last attempt is given away, which somebody else begins to run just then."""
    stands, dies = cluster.pair(role)
    over = cluster.over()

    def come_again() -> None:
        dies.again().until_said("joined")  # with all partitions: the other one is missed
        if role is Role.K8S_WORKER:
            cluster.give_away(stands)
            stands.wake()
        else:
            wake_late(cluster, stands, over)

    arm(stands, dies, step, nth)
    await outlived(cluster, clients, f"{role}-{step}", lambda: met(stands, dies), come_again)
    stands.until_says("joined")


async def test_one_worker_stands_still_and_the_other_dies_while_it_takes_the_place_of_one_that_died(
    cluster: MortalCluster, clients: list[Client]
) -> None:
    """What was to be taken up by the one that stands still is given away meanwhile."""
    stands, dies = cluster.pair(Role.K8S_WORKER)

    def meet() -> None:
        for worker in (stands, dies):
            worker.await_death()
        stands.begin_armed(signal.SIGSTOP, "sealed", 1)
        dies.begin_armed(signal.SIGKILL, "sealed", 1)
        met(stands, dies)

    def come_again() -> None:
        dies.again()
        cluster.give_away(stands)
        stands.wake()

    for worker in (stands, dies):
        worker.arm(signal.SIGKILL, "leased", 3)
    await outlived(cluster, clients, "heir", meet, come_again)
    for worker in (stands.until_ready(), dies):
        worker.until_said("joined")


@pytest.mark.parametrize("step", ["found", "deferred", "not-committed", "committed", "told"])
async def test_one_monitor_stands_still_and_the_other_dies_over_ends_that_have_no_result(
    cluster: MortalCluster, clients: list[Client], step: str
) -> None:
    """Nobody else stores results meanwhile."""
    stands, dies = cluster.pair(Role.POD_MONITOR)
    over = cluster.over()

    def come_again() -> None:
        dies.again()
        wake_late(cluster, stands, over)

    with standing_still(*cluster.workers[Role.RESULT_PROCESSOR]):
        arm(stands, dies, step, 1)
        with cluster.hastened(ENDED):
            await outlived(cluster, clients, f"result-{step}", lambda: met(stands, dies), come_again)


@pytest.mark.parametrize("step", ["sealed", "committed"])
async def test_one_monitor_stands_still_and_the_other_dies_over_attempts_whose_worker_stands_still(
    cluster: MortalCluster, clients: list[Client], step: str
) -> None:
    """That worker wakes last, in the midst of what its programs print."""
    stands, dies = cluster.pair(Role.POD_MONITOR)
    lost = cluster.pair(Role.K8S_WORKER)[1]
    over = cluster.over()

    def meet() -> None:
        lost.await_standstill()
        with cluster.hastened(leased_to(lost)):
            met(stands, dies)

    def come_again() -> None:
        dies.again()
        cluster.give_away(lost)
        wake_late(cluster, stands, over)
        lost.wake()

    arm(stands, dies, step, 1)
    lost.arm(signal.SIGSTOP, "partly-written", AMID)
    await outlived(cluster, clients, f"lease-{step}", meet, come_again)


def wake_late(cluster: MortalCluster, stands: MortalWorker, over: int) -> None:
    """Wake a worker when so many runs more than `over` are over that what it had in its hands is done."""
    cluster.until_over(over + PART)
    stands.wake()
