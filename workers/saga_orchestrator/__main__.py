"""`python -m workers.saga_orchestrator`: the role saga_orchestrator as a process of its own."""

import sys

from runtape.runtime.roles import Role
from runtape.runtime.worker import run

if __name__ == "__main__":
    sys.exit(run(Role.SAGA_ORCHESTRATOR))
