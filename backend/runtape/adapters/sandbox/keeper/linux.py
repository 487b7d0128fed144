"""The Linux calls that the standard library lacks, checked: each raises `OSError` naming the call that failed.

Used by the keeper and in boxes, before a program runs there.  `ctypes.PyDLL` keeps the interpreter lock during a
call, which spares two lock operations and, above all, leaves no lock half-way in the child of `clone3`.
"""

import ctypes
import errno
import os
import platform
from typing import Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
_CLONE_PIDFD: Final = 0x00001000

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MNT_DETACH: Final = 2

MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_DROP: Final = 24
_PR_SET_SECUREBITS: Final = 28
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_SET_MODE_FILTER: Final = 1

# The generic table serves both machines from 424 up; below it every machine has its own numbers.
_SYS_CLONE3: Final = 435
_SYS_MOUNT_SETATTR: Final = 442
_SYS_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}
_SYS_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}

MACHINE: Final = platform.machine()

_libc = ctypes.PyDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _CloneArgs(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in ("flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size", "tls")
    ]


class _MountAttr(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


class _CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _long(value: int) -> ctypes.c_ulong:
    return ctypes.c_ulong(value)


def clone(flags: int, exit_signal: int) -> tuple[int, int]:
    """Fork into new namespaces; return (pid, pidfd) in the parent and (0, -1) in the child.

    For single-threaded processes only: libc's and Python's fork handlers do not run.
    """
    pidfd = ctypes.c_int(-1)
    arguments = _CloneArgs(
        flags=flags | _CLONE_PIDFD,
        pidfd=ctypes.addressof(pidfd),
        exit_signal=exit_signal,
    )
    size = ctypes.c_size_t(ctypes.sizeof(arguments))
    pid = _checked(_libc.syscall(_long(_SYS_CLONE3), ctypes.byref(arguments), size), "clone3")
    return pid, -1 if pid == 0 else pidfd.value


def unshare(flags: int) -> None:
    """Move this process to new namespaces."""
    _checked(_libc.unshare(flags), f"unshare({flags:#x})")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """Make a mount, as `flags` say: a new file system, a bind of another path, or a change of propagation."""
    encoded = [None if text is None else os.fsencode(text) for text in (source, target, kind, options)]
    result = _libc.mount(encoded[0], encoded[1], encoded[2], _long(flags), encoded[3])
    _checked(result, f"mount {kind or source or 'flags'} on {target}")


def set_mount_attributes(target: str, attributes: int, *, below: bool = True) -> None:
    """Set `attributes` on the mount at `target` and on those below it; what is set already stays set.  Linux 5.12."""
    at_fdcwd, at_recursive = -100, 0x8000
    request = _MountAttr(attr_set=attributes)
    result = _libc.syscall(
        _long(_SYS_MOUNT_SETATTR),
        ctypes.c_long(at_fdcwd),
        os.fsencode(target),
        _long(at_recursive if below else 0),
        ctypes.byref(request),
        ctypes.c_size_t(ctypes.sizeof(request)),
    )
    _checked(result, f"mount_setattr {target}")


def unmount(target: str) -> None:
    """Take the mount at `target` out of sight with all below it; it goes when nobody uses it."""
    _checked(_libc.umount2(os.fsencode(target), MNT_DETACH), f"umount {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    """Make the mount at `new_root` the root of this mount namespace, and show the old one at `put_old`."""
    result = _libc.syscall(_long(_SYS_PIVOT_ROOT[MACHINE]), os.fsencode(new_root), os.fsencode(put_old))
    _checked(result, "pivot_root")


def set_hostname(name: bytes) -> None:
    """Name the machine as this uts namespace sees it."""
    _checked(_libc.sethostname(name, ctypes.c_size_t(len(name))), "sethostname")


def prctl(operation: int, value: int) -> None:
    """Change an attribute of this process."""
    _checked(_libc.prctl(operation, _long(value), _long(0), _long(0), _long(0)), f"prctl({operation})")


def drop_capabilities() -> None:
    """Give up every capability for good: the bounding set first, then effective, permitted and inheritable.

    The ambient set empties itself with the permitted one.
    """
    for capability in range(64):
        try:
            prctl(_PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno != errno.EINVAL or capability == 0:
                raise
            break  # the kernel knows none beyond
    header = _CapabilityHeader(version=0x20080522, pid=0)
    data = (ctypes.c_uint32 * 6)()
    _checked(_libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset")


def keep_capabilities_as_another_user() -> None:
    """Have changes of the effective user leave the capabilities alone (SECBIT_NO_SETUID_FIXUP)."""
    prctl(_PR_SET_SECUREBITS, 1 << 2)


def forbid_new_privileges() -> None:
    """Make set-uid bits and file capabilities void for this process and all that it starts."""
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def install_filter(program: bytes) -> None:
    """Install a seccomp filter on this process and all that it starts; it cannot be taken off again."""
    request = _FilterProgram(length=len(program) // 8, filter=program)
    result = _libc.syscall(
        _long(_SYS_SECCOMP[MACHINE]), _long(_SECCOMP_SET_MODE_FILTER), _long(0), ctypes.byref(request)
    )
    _checked(result, "seccomp")


def close_from(lowest_fd: int) -> None:
    """Close every descriptor from `lowest_fd` up."""
    _checked(_libc.syscall(_long(436), _long(lowest_fd), _long(0xFFFFFFFF), _long(0)), "close_range")
