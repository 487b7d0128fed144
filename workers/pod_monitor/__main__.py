"""`python -m workers.pod_monitor`: the role pod_monitor as a process of its own."""

import sys

from runtape.runtime.roles import Role
from runtape.runtime.worker import run

if __name__ == "__main__":
    sys.exit(run(Role.POD_MONITOR))
