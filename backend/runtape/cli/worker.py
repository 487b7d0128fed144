"""`runtape worker`: one role of a cluster, as a process of its own."""

from typing import Literal

WorkerRole = Literal["saga_orchestrator", "k8s_worker", "pod_monitor", "result_processor"]
"""The roles that are processes of a cluster; they do the others' work as well."""


def worker(role: WorkerRole, /) -> int:
    """Work as one role of a cluster until SIGTERM; print `ready http://...` once it does.

    Its settings come from the environment; docs/operations.md says what each role does.

    Args:
        role: What the process does.
    """
    from runtape.runtime import worker as process
    from runtape.runtime.roles import Role

    return process.run(Role(role))
