"""Pid 1 of a box: takes one order, starts the program, and tells its end.

Theory of operation.  When this runs, the process is confined for good: its own namespaces, no capability, the
seccomp filter.  Nothing that an order asks for needs more.  It blocks in one `recvmsg` on its order channel; an end
of file there (the service or the keeper died) ends it.  On an order it writes the files, lowers its limits, and
starts the program by `posix_spawn` (vfork and exec: no page is copied) as a session of its own.

What the program inherits: descriptors 0, 1 and 2, and the confinement.  All else is close-on-exec.  It shares its
uid with pid 1 yet can neither see it (not dumpable, hidepid) nor signal it (the kernel drops signals to a pid 1
without a handler; for the one that has, see below), nor change its limits (seccomp), so it has no way to the channel
and cannot forge its end.

The environment goes to `execve` as the order names it, LD_PRELOAD and all: nothing privileged is ever executed
here, set-uid bits are void, and whatever a loader could be told to load is the program's own file, run as itself.

The end.  Orphans fall to us and are reaped on the way.  When the program itself has ended, what is left of its tree
is killed and reaped: `kill(-1)` is atomic against fork.  Only then is the end told, so whoever hears it knows that
no byte will follow in the pipes and that the resource usage is that of the whole tree.  Then the files that the program
has left are handed over (`collect.py`), if there are any and the service wants them; this process exits, and the kernel
removes the namespaces.

To stop a program early the service sends SIGTERM: we kill the tree, and the end takes its usual course with the usage
complete.  (A program that sends us one kills itself and nobody else.)  If that takes too long we are killed: the kernel
then kills the tree before our death becomes visible, and the keeper tells the end.
"""

import contextlib
import os
import resource
import signal
import socket
from typing import Final, NoReturn

from . import collect, wire
from .cgroups import GroupFiles, parse_field

_STDIN: Final = 0
_DEFAULTED: Final = [signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGHUP]
"""Signals that this interpreter or the keeper ignores; a program begins with all at their default."""


def serve(channel: socket.socket, group: GroupFiles) -> NoReturn:
    """Wait for the order, carry it out, tell the end and exit."""
    signal.signal(signal.SIGTERM, _kill_tree)
    _rehearse(group)
    datagram, fds = _receive(channel)
    if not datagram:
        os._exit(0)
    out = -1
    try:
        wait_status = _reap_all(_start(datagram, fds, group))
        out = collect.open_out()
        told = _ended(wait_status, group, left_files=out >= 0)
    except Exception as error:
        told = wire.failed(f"{type(error).__name__}: {error}")
    with contextlib.suppress(OSError):  # nobody listens any more: the service has died, or has no use for the files
        channel.send(told)
        if out >= 0:
            collect.hand_over_files(channel, out)
    os._exit(0)


def _rehearse(group: GroupFiles) -> None:
    """Do once all that an order will ask for.

    Every page that this process writes to is still the keeper's, and costs a fault to copy (5 us each on a virtual
    machine, some 80 of them): better now than when somebody waits.
    """
    name = "rehearsal"
    order = wire.Order(((name, b"-"),), (b"",), {b"HOME": b"/"}, ((resource.RLIMIT_CORE, 1, 1),), 0, 0, b"")
    with contextlib.suppress(ValueError):  # of a program without a name, raised before a process is made
        _start(b"\0" + order.packed(), [], group)
    os.unlink(name)
    _ended(0, group, left_files=False)
    collect.open_out()


def _receive(channel: socket.socket) -> tuple[bytes, list[int]]:
    try:
        datagram, fds, _, _ = socket.recv_fds(channel, wire.DATAGRAM_BYTES, 2)
    except ConnectionResetError:
        return b"", []
    return datagram, fds


def _start(datagram: bytes, fds: list[int], group: GroupFiles) -> int:
    flags, packed = datagram[0], datagram[1:]
    if flags & wire.ORDER_IN_FD:
        fd = fds.pop(0)
        packed = os.pread(fd, os.fstat(fd).st_size, 0)
        os.close(fd)
    order = wire.Order.unpacked(packed)
    _write_files(order.files)
    if order.memory_bytes and group.memory_limit >= 0:
        os.write(group.memory_limit, b"%d" % order.memory_bytes)
    if order.processes and group.processes >= 0:
        os.write(group.processes, b"%d" % order.processes)
    if group.peak_memory >= 0:
        with contextlib.suppress(OSError):  # arming is not the program's usage; needs v1, or Linux 6.12
            os.write(group.peak_memory, b"0")
    _open_stdin(order.stdin, fds.pop() if flags & wire.STDIN_IN_FD else -1)
    for kind, soft, hard in order.rlimits:
        resource.setrlimit(kind, (soft, hard))
    return os.posix_spawn(order.argv[0], order.argv, order.env, setsid=True, setsigmask=[], setsigdef=_DEFAULTED)


def _write_files(files: tuple[tuple[str, bytes], ...]) -> None:
    """Write into the work directory, which is empty but for `.tmp`: no path can lead astray yet.

    All may be executed, since one of them can be a compiled program.
    """
    for path, content in files:
        folder, slash, _ = path.rpartition("/")
        if slash:
            os.makedirs(folder, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o755)
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.close(fd)


def _open_stdin(content: bytes, fd: int) -> None:
    """Put the input at descriptor 0: the sealed memfd `fd`, or a pipe that holds all of `content`, or nothing."""
    if fd >= 0:
        os.dup2(fd, _STDIN)
        os.close(fd)
    elif content:
        read_end, write_end = os.pipe()
        os.write(write_end, content)
        os.close(write_end)
        os.dup2(read_end, _STDIN)
        os.close(read_end)


def _reap_all(program: int) -> int:
    """Wait for the program, then kill and reap all that it left; return its wait status."""
    wait_status = -1
    while wait_status < 0:
        pid, status = os.waitpid(-1, 0)
        if pid == program:
            wait_status = status
    with contextlib.suppress(ChildProcessError):
        while True:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                _kill_tree()
                os.waitpid(-1, 0)
    return wait_status


def _kill_tree(*_: object) -> None:
    """Kill all processes of this pid namespace but this one."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)


def _ended(wait_status: int, group: GroupFiles, *, left_files: bool) -> bytes:
    """Return the message that tells the end, with what the program and all it started have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wire.Ended(
        wait_status,
        int(used.ru_utime * 1e9),
        int(used.ru_stime * 1e9),
        int(os.pread(group.peak_memory, 64, 0)) if group.peak_memory >= 0 else used.ru_maxrss * 1024,
        parse_field(os.pread(group.events, 4096, 0), b"oom_kill") if group.events >= 0 else 0,
        left_files,
    ).packed()
