"""Forks processes that call ``main`` of a module: ``python -m tests.e2e.forker FD MODULE``.

Reads from the socket FD datagrams of JSON ``{argument, env}`` with four descriptors: a process's standard input, output
and error, and a socket that gets its pid and, once it is dead, its exit code.  What ``main`` returns is that code.  At
the end of the requests it kills the processes that are left.
"""

import contextlib
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

REQUEST_BYTES = 1 << 17
DESCRIPTORS = 4


Main = Callable[[str], int]


def serve_requests(requests: socket.socket, main: Main) -> None:
    """Fork a process for each request, until there are no more."""
    living: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not requests:
                    pidfd = key.fd
                    selector.unregister(pidfd)
                    os.close(pidfd)
                    _bury(*living.pop(pidfd))
                    continue
                data, fds, _, _ = socket.recv_fds(requests, REQUEST_BYTES, DESCRIPTORS)
                if not data:
                    for pidfd in living:
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    return
                pid = os.fork()
                if pid == 0:
                    _become(main, **json.loads(data), fds=fds)
                told = socket.socket(fileno=fds.pop())
                for fd in fds:
                    os.close(fd)
                told.send(str(pid).encode())
                pidfd = os.pidfd_open(pid)
                living[pidfd] = (pid, told)
                selector.register(pidfd, selectors.EVENT_READ)


def _bury(pid: int, told: socket.socket) -> None:
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(BrokenPipeError), told:
        told.send(str(os.waitstatus_to_exitcode(status)).encode())


def _become(main: Main, argument: str, env: Mapping[str, str], fds: Sequence[int]) -> NoReturn:
    code = 1
    try:
        for target, fd in enumerate(fds[:3]):
            os.dup2(fd, target)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.environ.clear()
        os.environ.update(env)
        code = main(argument)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve_requests(socket.socket(fileno=int(sys.argv[1])), importlib.import_module(sys.argv[2]).main)
