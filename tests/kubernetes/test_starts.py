"""What a k8s_worker over pods says of its cluster when it starts, and when it does not."""

from collections.abc import Iterator

import pytest

from runtape.runtime.roles import Role
from tests.cluster.processes import Process
from tests.kubernetes.plugin import PodCluster

pytestmark = [
    pytest.mark.needs("kubernetes", "kafka", "mongo", "redis", "registry", "own"),
    pytest.mark.timeout(240),
]
PROBED_S = 120.0


@pytest.fixture
def strict(podded: PodCluster) -> Iterator[Process]:
    """A k8s_worker that runs nothing where programs may reach the network."""
    process = podded.worker(Role.K8S_WORKER, kubernetes__require_network_policy="true")
    yield process
    process.close()


def test_a_worker_refuses_a_cluster_that_enforces_no_network_policy(strict: Process) -> None:
    assert strict.ended(PROBED_S) == 1
    said = strict.log.read_text()
    assert "network policies are not enforced (outgoing and incoming connections" in said
    assert "require_network_policy = false" in said


def test_a_worker_that_is_told_nothing_of_it_warns(podded: PodCluster) -> None:
    worker = podded.workers[Role.K8S_WORKER][0]
    worker.until_logged("network_policy.not_enforced", PROBED_S)
