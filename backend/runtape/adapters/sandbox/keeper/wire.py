"""What service, keeper and boxes say to each other; every message is one datagram of a SOCK_SEQPACKET pair.

Both ends run the same interpreter binary and trust each other, so `marshal` is the encoding: it is the fastest
that the standard library has and takes bytes as they are.  A confined program holds none of these sockets.

Service to keeper:
    ("open", *Opening)                      first, once
    ("arm", disk_bytes, inodes)             make one more box
    ("bound", box, memory_bytes)            without cgroups: kill `box` when its tree holds more
    ("bound_cpu", box, cpu_ns)              kill `box` when its tree has used that much, from now on
Keeper to service:
    ("open", *Opened)                       answer to "open"; or
    ("refused", finding, fix)               isolation cannot be had; the keeper exits
    ("armed", disk_bytes, inodes, box)      with BOX_FDS descriptors: order channel, stdout, stderr (read ends that
                                            do not block), pidfd of the box
    ("unarmed", disk_bytes, inodes, what)   one "arm" failed
    ("reaped", box, *Reaped)                `box` died without having told its end itself; nothing of it is left
    ("crashed", traceback)                  the keeper fails and exits
Service to box, once:
    one flag byte, then the `Order`, in the datagram or (ORDER_IN_FD) in a memfd; descriptors: [order,] [stdin]
Box to keeper: ("armed", cpu_user_ns, cpu_system_ns) [with its work directory], or ("failed", what)
Box to service, once the program and all it started are dead: ("ended", *Ended), or ("failed", what) when it could
not be started.
"""

import marshal
from typing import Any, Final, NamedTuple

BOX_FDS: Final = 4
ORDER_IN_FD: Final = 1
STDIN_IN_FD: Final = 2
INLINE_BYTES: Final = 60_000
"""Greatest order in a datagram, and greatest stdin in an order: the latter must fit an empty pipe (64 KiB)."""
DATAGRAM_BYTES: Final = 1 << 16


class Opening(NamedTuple):
    """What the keeper needs to know before its first box."""

    instance: str
    """Name of this installation among others on the machine: names its cgroups."""
    prefixes: tuple[str, ...]
    """Folders of interpreters outside /usr, shown read-only at the same path."""
    starters: tuple[tuple[str, bytes], ...]
    """(name, content) of the files that are shown in STARTERS."""
    memory_bytes: int
    processes: int
    """Limits of the cgroup that a box is armed with; its order may name others.  `processes` counts pid 1 too."""


class Opened(NamedTuple):
    """How the keeper can bound what a tree of processes uses."""

    cgroups: str
    """``v1``, ``v2`` or ``none``."""
    finding: str
    """Why cgroups are not used; empty when they are."""


class Order(NamedTuple):
    """One program to run."""

    files: tuple[tuple[str, bytes], ...]
    """(relative path, content); all parents are made."""
    argv: tuple[bytes, ...]
    """``argv[0]`` is the absolute path of the interpreter."""
    env: dict[bytes, bytes]
    rlimits: tuple[tuple[int, int, int], ...]
    """(resource, soft, hard)."""
    memory_bytes: int
    processes: int
    """Limits of its cgroup, where it has one; 0 leaves what it was armed with.  `processes` counts pid 1 too."""
    stdin: bytes


class Ended(NamedTuple):
    """The end of a program, told by its box."""

    wait_status: int
    cpu_user_ns: int
    cpu_system_ns: int
    peak_memory_bytes: int
    oom_kills: int


class Reaped(NamedTuple):
    """The end of a box that could not tell it: it was killed."""

    reason: str
    """``oom``, ``memory``, ``cpu`` when the keeper or the kernel enforced that limit; empty otherwise."""
    cpu_user_ns: int
    cpu_system_ns: int
    peak_memory_bytes: int


STARTERS: Final = "/runtape"
"""Folder inside a box with the files that start an interpreter."""


def pack(*message: Any) -> bytes:
    """Return `message` as a datagram."""
    return marshal.dumps(message)


def unpack(datagram: bytes) -> tuple[Any, ...]:
    """Return the message that `pack` made a datagram of."""
    return marshal.loads(datagram)
