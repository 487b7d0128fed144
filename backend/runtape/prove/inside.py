"""Goes into the boxes beside each hostile program: how it makes attempts, and reports those that succeed.

Stands alone: nothing of Runtape is there.  Importing it tells the program's pid namespace and leaves a marked file
wherever a program can write, so that what stays behind is known again.
"""

import ctypes
import errno
import json
import os
import select
import socket
import sys
import time

_MACHINE = ("x86_64", "aarch64").index(os.uname().machine)
_CALLS = {
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "clone": (56, 220),
    "clone3": (435, 435),
    "mknodat": (259, 33),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "personality": (135, 92),
    "seccomp": (317, 277),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "syslog": (103, 116),
    "swapon": (167, 224),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "fsopen": (430, 430),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
    "sethostname": (170, 161),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "reboot": (169, 142),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "fanotify_init": (300, 262),
    "lookup_dcookie": (212, 18),
    "vhangup": (153, 58),
}

_UNREACHABLE = {
    errno.ENETUNREACH,
    errno.EADDRNOTAVAIL,
    errno.EINVAL,
    errno.ENODEV,
    errno.EPERM,
    errno.EACCES,
    errno.EAFNOSUPPORT,
}
_PATIENCE_S = 0.5

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
_attempts = 0


def say(**report):
    """Report something, in one write."""
    os.write(1, b"prove: " + json.dumps(report).encode() + b"\n")


def leak(what):
    """Report a success."""
    say(leak=str(what))


def reached(what):
    """Report something that the kernel itself answers, without giving anything away."""
    say(reached=str(what))


def guarded(what):
    """Report a part of the cluster that answers, and refuses."""
    say(guarded=str(what))


def tried(count=1):
    """Count an attempt, so that a program that attempts nothing is found out."""
    global _attempts
    _attempts += count


def done():
    """Report the end, with the number of attempts."""
    say(done=_attempts)


def attempt(what, action):
    """Do what must be refused: an OSError is a refusal, anything else a leak."""
    tried()
    try:
        result = action()
    except OSError:
        return None
    leak(what)
    return result


def call(name, *arguments):
    """Make a system call by its name; return the name of the error, or ``OK``."""
    tried()
    number = _CALLS[name][_MACHINE]
    ctypes.set_errno(0)
    sent = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = libc.syscall(ctypes.c_long(number), *sent)
    if name in ("clone", "clone3") and result == 0:
        os._exit(0)  # the child of a clone that was not refused
    return errno.errorcode.get(ctypes.get_errno(), "?") if result < 0 else "OK"


def reach(name, *arguments):
    """Make a system call that must not be let through to the kernel: whatever it answers but a refusal is a leak."""
    answer = call(name, *arguments)
    if answer not in ("EPERM", "ENOSYS"):
        leak(f"{name} answers {answer}")


def connect(address, family=socket.AF_INET, kind=socket.SOCK_STREAM, refusable=False):
    """Try to reach `address`: a leak unless the kernel knows no way there.

    With `refusable` a refused connection holds too: for addresses of the box's own loopback.
    """
    tried()
    held = _UNREACHABLE | ({errno.ECONNREFUSED, errno.ENOENT} if refusable else set())
    try:
        with socket.socket(family, kind) as probe:
            probe.setblocking(False)
            number = probe.connect_ex(address)
            if number in (errno.EINPROGRESS, errno.EAGAIN):
                select.select([], [probe], [], _PATIENCE_S)
                number = probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                told = errno.errorcode.get(number, "connected or waiting")
            else:
                told = errno.errorcode.get(number, "connected")
            if number not in held:
                leak(f"{address}: {told}")
    except OSError as error:
        if error.errno not in held:
            leak(f"{address}: {error}")


def accepting(addresses, patience_s=2.0):
    """Return those of `addresses`, each as ``host port``, that accept a connection soon; all are asked at once.

    For networks where much can be sent to, and nothing may come of it.
    """
    waiting, found = {}, []
    for text in addresses:
        tried()
        host, _, port = text.rpartition(" ")
        probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        probe.setblocking(False)
        try:
            if probe.connect_ex((host, int(port))) in (0, errno.EINPROGRESS):
                waiting[probe] = text
        except OSError:
            continue
    until_s = time.monotonic() + patience_s
    while waiting and time.monotonic() < until_s:
        for probe in select.select([], list(waiting), [], until_s - time.monotonic())[1]:
            text = waiting.pop(probe)
            if probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                found.append(text)
    return found


def status_of(address, path, encrypted):
    """Return the HTTP status that a server answers with, or the name of the error when it does not speak HTTP."""
    import http.client  # takes longer than most programs
    import ssl

    host, _, port = address.rpartition(" ")
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    if encrypted:
        connection = http.client.HTTPSConnection(host, int(port), timeout=8, context=trusting)
    else:
        connection = http.client.HTTPConnection(host, int(port), timeout=8)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


def answer_of(address, data, patience_s=1.0):
    """Return what comes back for a datagram, None when nothing does."""
    tried()
    host, _, port = address.rpartition(" ")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(patience_s)
        try:
            probe.connect((host, int(port)))
            probe.send(data)
            return probe.recv(4096)
        except OSError:
            return None


def send(address, family=socket.AF_INET, data=b"x"):
    """Try to send a datagram to `address`: a leak when the kernel takes it."""
    tried()
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.setblocking(False)
            probe.sendto(data, address)
    except OSError as error:
        if error.errno not in _UNREACHABLE:
            leak(f"{address}: {error}")
    else:
        leak(f"{address}: a datagram went out")


def _begin():
    try:
        namespace = int(os.readlink("/proc/self/ns/pid").strip("pid:[]"))
    except OSError:
        namespace = 0
    say(namespace=namespace)
    mark = os.environ.get("PROVE_MARK")
    for folder in ("/tmp", "/dev/shm", ".") if mark else ():
        try:
            with open(f"{folder}/{mark}", "w"):
                pass
        except OSError:
            continue


if __name__ != "__main__":
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115  # for as long as the program lives
    _begin()
