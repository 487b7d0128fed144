"""The k8s_worker over pods that only pretend; lines on standard input let their programs go on."""

import sys

from dishka import Provider, Scope, provide

from runtape.ports.pod_runtime import PodRuntime
from runtape.runtime.cluster_process import run
from runtape.runtime.roles import Role
from tests.e2e.simulated_server import Feed, Pods


class PodsProvider(Provider):
    scope = Scope.APP

    @provide
    async def pods(self) -> PodRuntime:
        return Pods(Feed())


if __name__ == "__main__":
    sys.exit(run(Role.K8S_WORKER, PodsProvider()))
