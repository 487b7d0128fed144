"""`python -m workers.k8s_worker`: the role k8s_worker as a process of its own."""

import sys

from runtape.runtime.roles import Role
from runtape.runtime.worker import run

if __name__ == "__main__":
    sys.exit(run(Role.K8S_WORKER))
