"""`python -m workers.result_processor`: the role result_processor as a process of its own."""

import sys

from runtape.runtime.roles import Role
from runtape.runtime.worker import run

if __name__ == "__main__":
    sys.exit(run(Role.RESULT_PROCESSOR))
