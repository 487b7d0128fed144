"""Each worker dies at each of its steps: no run is lost, none ends twice, no byte is missing or there twice.

The steps are those of `tests.cluster.mortal_worker`.  A worker dies at one of them under a flood of runs and comes
again in its data folder; soon after that every run has ended and every place is free.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator

import pytest

from runtape.domain.outcome import Status
from runtape.runtime.roles import Role
from runtape.runtime.succession import OWNER_FILE
from tests.cluster.mortal import CONSUMERS, MortalCluster, arm, await_death, begin_armed
from tests.cluster.plugin import running
from tests.cluster.processes import Process
from tests.cluster.survival import survived
from tests.e2e.server import Client
from tests.e2e.test_sagas import ended

pytestmark = [pytest.mark.needs("kafka", "mongo", "redis", "registry", "alone", "own"), pytest.mark.timeout(120)]

RUNS = 30
OVER_S = 1.5
AT_ONCE_S = 0.0
"""When they come at once there are more than places, so most of them wait in line."""

WITHIN_S = 20.0
"""Whatever a death leaves behind is taken up in that time.  It is less than the 30 s after which documents are looked
at by themselves: what waits for that was lost."""
LOOK_S = 0.1

EVERY = ("fetched", "not-committed", "committed", "told", "handled")
"""The steps of whoever handles messages."""
CASES = [
    *((role, step, 4, OVER_S) for role in CONSUMERS for step in EVERY),
    (Role.SAGA_ORCHESTRATOR, "recorded", 1, OVER_S),
    (Role.K8S_WORKER, "recorded", 1, OVER_S),
    (Role.RESULT_PROCESSOR, "published", 1, OVER_S),
    (Role.SAGA_ORCHESTRATOR, "place-taken", 1, OVER_S),
    *((Role.SAGA_ORCHESTRATOR, step, 2, AT_ONCE_S) for step in ("not-in-line", "granted", "given-back")),
    *(
        (Role.K8S_WORKER, step, 3, OVER_S)
        for step in ("leased", "started", "partly-written", "written", "end-recorded")
    ),
]
ENDED = {"status": {"$in": [status for status in Status if status.terminal]}}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MortalCluster]:
    with running(MortalCluster(tmp_path_factory.mktemp("mortal"))) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def whole(cluster: MortalCluster) -> Iterator[None]:
    """Every process runs again after a test that failed."""
    yield
    cluster.mend()


async def outlived(
    clients: list[Client],
    name: str,
    die: Callable[[], object],
    come_again: Callable[[], object],
    over_s: float = OVER_S,
) -> None:
    """Let a flood of runs go through what `die` waits for, and check them; all places are free then."""
    found = await survived(
        clients, name, die, come_again, runs=RUNS, over_s=over_s, before_s=0, down_s=0, within_s=WITHIN_S
    )
    client = clients[0]
    for each in found:
        await ended(client, each.execution_id)
        assert await lacking(client, each.execution_id) == set()
    async with asyncio.timeout(WITHIN_S):
        while await in_the_queue(client):  # noqa: ASYNC110  # whoever is, is in another process
            await asyncio.sleep(LOOK_S)


async def lacking(client: Client, execution_id: str) -> set[str]:
    """Return which steps of an execution the event store does not have."""
    steps = (await client.get(f"/executions/{execution_id}/events", params={"limit": 100})).json()["events"]
    body = {"filters": {"execution_id": execution_id}}
    stored = (await client.post("/admin/events/browse", json=body)).json()["events"]
    return {each["event_id"] for each in steps} - {each["event_id"] for each in stored}


async def in_the_queue(client: Client) -> int:
    """Return how many hold a place or wait for one."""
    answer = (await client.get("/admin/executions/queue")).json()
    return answer["active_count"] + answer["queue_depth"]


@pytest.mark.parametrize(
    ("role", "step", "nth", "over_s"), [pytest.param(*case, id=f"{case[0]}-{case[1]}") for case in CASES]
)
async def test_a_worker_dies_at_a_step(
    cluster: MortalCluster, clients: list[Client], role: Role, step: str, nth: int, over_s: float
) -> None:
    worker = cluster.workers[role][0]
    arm(worker, step, nth)
    await outlived(clients, f"{role}-{step}", lambda: await_death(worker), lambda: again(worker), over_s)
    worker.until_said("joined")


async def test_a_worker_dies_while_it_takes_the_place_of_one_that_died(
    cluster: MortalCluster, clients: list[Client]
) -> None:
    worker = cluster.workers[Role.K8S_WORKER][0]

    def die_twice() -> None:
        await_death(worker)
        begin_armed(worker, "sealed", 1)
        await_death(worker)

    arm(worker, "leased", 3)
    await outlived(clients, "heir", die_twice, lambda: again(worker))
    worker.until_said("joined")


@pytest.mark.parametrize("step", ["found", "deferred", "not-committed", "committed", "told"])
async def test_a_monitor_dies_over_ends_that_have_no_result(
    cluster: MortalCluster, clients: list[Client], step: str
) -> None:
    """Nobody else stores results meanwhile."""
    monitor, other = cluster.workers[Role.POD_MONITOR]
    with standing_still(other, *cluster.workers[Role.RESULT_PROCESSOR]):
        arm(monitor, step, 1)
        with cluster.hastened(ENDED):
            await outlived(clients, f"result-{step}", lambda: await_death(monitor), lambda: again(monitor))


@pytest.mark.parametrize("step", ["sealed", "committed"])
async def test_a_monitor_dies_over_attempts_whose_worker_is_gone(
    cluster: MortalCluster, clients: list[Client], step: str
) -> None:
    """The worker comes again when all is over, and somebody else runs what it ran."""
    monitor, other = cluster.workers[Role.POD_MONITOR]
    gone = cluster.workers[Role.K8S_WORKER][1]

    def die_both() -> None:
        await_death(gone)
        await_death(monitor)

    with standing_still(other):
        arm(monitor, step, 1)
        arm(gone, "leased", 1)
        with cluster.hastened({"lease_owner": {"$in": (gone.data / OWNER_FILE).read_text().split()}}):
            await outlived(clients, f"lease-{step}", die_both, lambda: again(monitor))
    again(gone).until_said("joined")


def again(worker: Process) -> Process:
    """Start a worker that died in its data folder."""
    return worker.begin().until_ready()


@contextlib.contextmanager
def standing_still(*processes: Process) -> Iterator[None]:
    """Let processes do nothing for a while."""
    for process in processes:
        process.pause()
    try:
        yield
    finally:
        for process in processes:
            process.resume()
