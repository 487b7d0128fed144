"""Becomes the resolver, bounded: ``python -I -S resolver_boot.py SERVICE_PID FILE_BYTES COMMAND...``.

It dies with the service, gains no privilege, writes no file larger than FILE_BYTES and dumps no core.
"""

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


def _main(service_pid: str, file_bytes: str, *command: str) -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != int(service_pid):  # it died before we could ask for its death signal
        sys.exit(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(file_bytes), int(file_bytes)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.umask(0o022)
    os.execv(command[0], command)  # noqa: S606 - there is no shell


_main(*sys.argv[1:])
