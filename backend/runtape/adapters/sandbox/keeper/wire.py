"""What service, keeper, slots and boxes say to each other; every message is one datagram of a SOCK_SEQPACKET pair.

Service and keeper run the same interpreter binary and trust each other, so `marshal` is their encoding: it is the
fastest that the standard library has and takes bytes as they are.  What C programs take part in is packed as
native/confine.h lays it out.  A confined program holds none of these sockets.

Service to keeper:
    ("open", *Opening)                      first, once
    ("arm", *Shape)                         make one more box
    ("bound", box, memory_bytes)            without cgroups: kill `box` when its tree holds more
    ("bound_cpu", box, cpu_ns)              tell when the tree of `box` has used that much, and kill it some time later
    ("timeline", box)                       tell "point" now and then, until `box` is dead
Keeper to service:
    ("open", *Opened)                       answer to "open"; or
    ("refused", finding, fix)               isolation cannot be had; the keeper exits
    ("armed", *Shape, box)                  with BOX_FDS descriptors: order channel, stdout, stderr (read ends that
                                            do not block), pidfd of the box
    ("unarmed", *Shape, what)               one "arm" failed
    ("over_cpu", box, user_ns, system_ns)   `box` has used up its CPU time
    ("reaped", box, *Reaped)                `box` died without having told its end itself; nothing of it is left
    ("point", box, monotonic_ns, memory_bytes, cpu_ns)
                                            what the tree of `box` holds, and has used since it was armed
    ("crashed", traceback)                  the keeper fails and exits
Service to box, once:
    one flag byte, then the packed `Order`, in the datagram or (ORDER_IN_FD) in a memfd; descriptors: [order,] [stdin]
Box to service: `Ended`, packed, once the program and all it started are dead; or `failed`, when it could not be
    started.
Service to box, when that says that the program left files: what it takes of them (`collect`); or nothing, and it
    closes.
Box to service, for each file: `artifact`, and its bytes by `piece`; then `left_out`, which is the last message.
"""

import fcntl
import marshal
import os
import struct
from typing import Any, Final, NamedTuple

BOX_FDS: Final = 4
ORDER_IN_FD: Final = 1
STDIN_IN_FD: Final = 2
INLINE_BYTES: Final = 60_000
"""Greatest order in a datagram."""
INLINE_STDIN_BYTES: Final = 4096
"""Greatest stdin in an order: it must fit an empty pipe, which is one page when the user's pipes hold too much."""
DATAGRAM_BYTES: Final = 1 << 16


class Shape(NamedTuple):
    """What a box is made for."""

    interpreter: str
    """Name of the one that its program finds started: forked from a zygote, or parked; empty where it is exec'd."""
    disk_bytes: int
    inodes: int
    """Size of its work directory."""


class Opening(NamedTuple):
    """What the keeper needs to know before its first box."""

    instance: str
    """Name of this installation among others on the machine: names its cgroups."""
    prefixes: tuple[str, ...]
    """Folders of interpreters outside /usr, shown read-only at the same path."""
    starters: tuple[tuple[str, bytes], ...]
    """(name, content) of the files that are shown in STARTERS."""
    layers: str
    """Folder that is shown as LAYERS; empty where there are no packages."""
    native: str
    """Folder of the programs that `native.build` made; empty where there is no compiler."""
    zygotes: tuple[tuple[str, tuple[str, ...], dict[bytes, bytes]], ...]
    """(name, command, environment) of each zygote; started when a box is to be forked from it."""
    parked: tuple[tuple[str, bytes], ...]
    """(name, packed `Order` that starts it) of each interpreter that is parked in its boxes."""
    memory_bytes: int
    processes: int
    """Limits of the cgroup that a box is armed with; its order may name others.  `processes` counts ours too."""
    own_kernel: bool
    """Whether what is exec'd in boxes is a monitor that gives programs a kernel of their own."""
    boxes_per_slot: int
    """How many boxes a slot makes before another takes its place."""


class Opened(NamedTuple):
    """How the keeper can bound what a tree of processes uses."""

    cgroups: str
    """``v1``, ``v2`` or ``none``."""
    native: bool
    """Whether C programs make the boxes."""
    no_cgroups: str
    """Why cgroups are not used; empty when they are."""
    not_native: str
    """What kept the C programs that are there from making boxes; empty when nothing did."""


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
    """Limits of its cgroup, where it has one; 0 leaves what it was armed with.  `processes` counts ours too."""
    stdin: bytes

    def packed(self) -> bytes:
        """Return the order as a box reads it."""
        variables = [name + b"=" + value for name, value in self.env.items()]
        counts = len(self.files), len(self.argv), len(variables), len(self.rlimits)
        sources = (text for path, content in self.files for text in (path.encode(), content))
        texts = (*sources, *self.argv, *variables, self.stdin)
        return b"".join(
            (
                _ORDER.pack(self.memory_bytes, self.processes, *counts),
                *(_LIMIT.pack(*limit) for limit in self.rlimits),
                *(b"%b%b\0" % (_LENGTH.pack(len(text)), text) for text in texts),
            )
        )

    @classmethod
    def unpacked(cls, data: bytes) -> "Order":
        """Return the order that `packed` made `data` of."""
        memory_bytes, processes, files, arguments, variables, limits = _ORDER.unpack_from(data)
        at = _ORDER.size + limits * _LIMIT.size
        texts = []
        for _ in range(2 * files + arguments + variables + 1):
            begin = at + _LENGTH.size
            end = begin + _LENGTH.unpack_from(data, at)[0]
            texts.append(data[begin:end])
            at = end + 1
        paths, contents, texts = texts[: 2 * files : 2], texts[1 : 2 * files : 2], texts[2 * files :]
        return cls(
            files=tuple(zip((path.decode() for path in paths), contents, strict=True)),
            argv=tuple(texts[:arguments]),
            env=dict(text.split(b"=", 1) for text in texts[arguments:-1]),
            rlimits=tuple(_LIMIT.unpack_from(data, _ORDER.size + index * _LIMIT.size) for index in range(limits)),
            memory_bytes=memory_bytes,
            processes=processes,
            stdin=texts[-1],
        )


class Ended(NamedTuple):
    """The end of a program, told by its box."""

    wait_status: int
    cpu_user_ns: int
    cpu_system_ns: int
    peak_memory_bytes: int
    oom_kills: int
    left_files: int
    """Whether there are files for the service to ask for."""

    def packed(self) -> bytes:
        """Return the message of a box that tells this."""
        return _ENDED.pack(_KIND_ENDED, *self)


class FileBegins(NamedTuple):
    """A file that a box hands over; `size_bytes` of content follow."""

    path: bytes
    size_bytes: int


class LeftOut(NamedTuple):
    """How many files, and folders as one each, a box does not hand over, by the reason."""

    too_large: int = 0
    too_many: int = 0
    not_regular: int = 0
    bad_name: int = 0
    too_deep: int = 0
    unreadable: int = 0

    def packed(self) -> bytes:
        """Return the message of a box that tells this."""
        return _LEFT_OUT.pack(_KIND_LEFT_OUT, *self)


class Reaped(NamedTuple):
    """The end of a box that could not tell it: it was killed."""

    reason: str
    """``oom``, ``memory``, ``cpu`` when the keeper or the kernel enforced that limit; empty otherwise."""
    cpu_user_ns: int
    cpu_system_ns: int
    peak_memory_bytes: int


STARTERS: Final = "/runtape"
"""Folder inside a box with the files that start an interpreter."""
LAYERS: Final = "/runtape/layers"
"""Folder inside a box with the packages of all runs, each set under a name that nobody can guess or list."""


_ORDER: Final = struct.Struct("=QQIIII")
_LIMIT: Final = struct.Struct("=QQQ")
_LENGTH: Final = struct.Struct("=I")
_ENDED: Final = struct.Struct("=IiQQQQQ")
_FAILED: Final = struct.Struct("=II")
_COLLECT: Final = struct.Struct("=IIQ")
_ARTIFACT: Final = struct.Struct("=IIQ")
_LEFT_OUT: Final = struct.Struct("=I6I")
_KIND_ENDED: Final = ord("e")
_KIND_FAILED: Final = ord("f")
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_KIND_COLLECT: Final = ord("c")
_KIND_ARTIFACT: Final = ord("A")
_KIND_LEFT_OUT: Final = ord("l")
_PIECE: Final = struct.pack("=I", ord("p"))
PIECE_BYTES: Final = DATAGRAM_BYTES - len(_PIECE)
"""Most bytes of a file in one message."""


def failed(what: str) -> bytes:
    """Return the message of a box that its program could not be started."""
    return _FAILED.pack(_KIND_FAILED, 0) + what.encode(errors="replace")


def told(datagram: bytes) -> Ended | str:
    """Return how a program ended, or why it could not be started."""
    if datagram[0] == _KIND_ENDED:
        return Ended(*_ENDED.unpack(datagram)[1:])
    return datagram[_FAILED.size :].decode(errors="replace")


def sealed_memfd(content: bytes) -> int:
    """Return a descriptor of a file in memory with `content`, which nobody can change any more."""
    fd = os.memfd_create("runtape", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


def collect(files: int, size_bytes: int) -> bytes:
    """Return the message of a service that takes this much at most of what a program has left."""
    return _COLLECT.pack(_KIND_COLLECT, files, size_bytes)


def collected(datagram: bytes) -> tuple[int, int]:
    """Return what `collect` made a message of.  Raises: struct.error, when it is none."""
    _, files, size_bytes = _COLLECT.unpack(datagram)
    return files, size_bytes


def artifact(path: bytes, size_bytes: int) -> bytes:
    """Return the message that begins a file."""
    return _ARTIFACT.pack(_KIND_ARTIFACT, len(path), size_bytes) + path


def piece(content: bytes) -> bytes:
    """Return the message that goes on with the file begun last, by 1 to `PIECE_BYTES` bytes."""
    return _PIECE + content


def handed_over(datagram: bytes) -> FileBegins | bytes | LeftOut | None:
    """Return what begins a file, or a piece of the last one, or what was left out; None for anything else."""
    kind = datagram[0]
    if kind == _PIECE[0] and len(datagram) > len(_PIECE):
        return datagram[len(_PIECE) :]
    if kind == _KIND_ARTIFACT and len(datagram) > _ARTIFACT.size:
        _, path_bytes, size_bytes = _ARTIFACT.unpack_from(datagram)
        path = datagram[_ARTIFACT.size :]
        return FileBegins(path, size_bytes) if len(path) == path_bytes else None
    if kind == _KIND_LEFT_OUT and len(datagram) == _LEFT_OUT.size:
        return LeftOut(*_LEFT_OUT.unpack(datagram)[1:])
    return None


def pack(*message: Any) -> bytes:
    """Return `message` as a datagram."""
    return marshal.dumps(message)


def unpack(datagram: bytes) -> tuple[Any, ...]:
    """Return the message that `pack` made a datagram of."""
    return marshal.loads(datagram)
