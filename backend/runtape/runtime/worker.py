"""A role as a process of its own, from whichever command starts it."""

import sys

from runtape.runtime import cluster_packages
from runtape.runtime.cluster_packages import MissingPackages
from runtape.runtime.roles import Role


def run(role: Role) -> int:
    """Work as `role` until a signal, and return the exit code; errors are told on standard error, in one line."""
    try:
        cluster_packages.require()
    except MissingPackages as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    from runtape.runtime import cluster_process  # it imports what was asked for just now

    return cluster_process.run(role)
