"""The seccomp filter: an allow-list, assembled to classic BPF without a library.

Theory of operation.  The kernel runs the filter at every system call of the program, so it must be short on the
usual path: three instructions check the machine word and load the number, then a balanced binary tree over ranges
of numbers finds the verdict in at most eight comparisons.  Calls whose arguments decide jump from their leaf to a
block behind the tree.  Everything else answers EPERM, except calls that are newer than our table and `clone3`
(its flags lie behind a pointer, where a filter cannot look): they answer ENOSYS and libc takes the older call.
A foreign machine word (int 0x80) or an x32 number kills the process: no honest program makes one, and both would
be judged by the wrong table.

Arguments are compared in their low 32 bits alone where the kernel itself takes an ``int`` or 32 flags; the kernel
ignores the rest, so a set high half changes nothing.  `clone` and `prlimit64` are judged the same way for the same
reason.

Format of one instruction: ``struct sock_filter`` (linux/filter.h); offsets: ``struct seccomp_data`` (linux/seccomp.h).
"""

import errno
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from . import syscalls

ALLOW: Final = 0x7FFF0000
KILL_PROCESS: Final = 0x80000000
_ERRNO: Final = 0x00050000
EPERM: Final = _ERRNO | errno.EPERM
ENOSYS: Final = _ERRNO | errno.ENOSYS

AUDIT_ARCH: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT: Final = 0x40000000

_LOAD, _JUMP, _JUMP_EQ, _JUMP_GE, _AND, _RETURN = 0x20, 0x05, 0x15, 0x35, 0x54, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16

CLONE_NEW_ANY: Final = 0x7E020000
"""Every CLONE_NEW* bit that clone(2) takes; CLONE_NEWTIME is one of clone3 and unshare alone."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Allow when ``argument & mask`` is one of `values`, or when it is none of them."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    refused: bool = False
    """Whether `values` are those that are refused."""


_UNIX_INET_INET6: Final = (1, 2, 10)
_TERMINAL_AND_PIPE_IOCTLS: Final = (
    0x5401,  # TCGETS: isatty()
    0x5413,  # TIOCGWINSZ
    0x540F,  # TIOCGPGRP
    0x541B,  # FIONREAD
    0x5421,  # FIONBIO
    0x5450,  # FIONCLEX
    0x5451,  # FIOCLEX
)
_HARMLESS_PRCTLS: Final = (
    1,  # PR_SET_PDEATHSIG
    2,  # PR_GET_PDEATHSIG
    3,  # PR_GET_DUMPABLE; setting it would hide a process from the memory watchdog
    15,  # PR_SET_NAME
    16,  # PR_GET_NAME
    23,  # PR_CAPBSET_READ
    38,  # PR_SET_NO_NEW_PRIVS
    39,  # PR_GET_NO_NEW_PRIVS
    0x53564D41,  # PR_SET_VMA: names of anonymous maps
)
_STREAM_DATAGRAM_SEQPACKET: Final = (1, 2, 5)
_SOCKET_TYPE: Final = 0xF
_DEFAULT_TCP_UDP: Final = (0, 6, 17)
_TELLING_OR_BINDING_FCNTLS: Final = (
    1024,  # F_SETLEASE, and
    1026,  # F_NOTIFY: tell what others, also outside, do with the files that all boxes share
    1031,  # F_SETPIPE_SZ: takes from the pipe buffers that one user has for all boxes
)
_PRIO_PROCESS: Final = 0
_FIFO, _FILE_TYPE = 0o010000, 0o170000

GUARDS: Final[dict[str, tuple[Guard, ...] | int]] = {
    # Other protocols would have the kernel load modules, and be attacked in them.
    "socket": (
        Guard(0, _UNIX_INET_INET6),
        Guard(1, _STREAM_DATAGRAM_SEQPACKET, _SOCKET_TYPE),
        Guard(2, _DEFAULT_TCP_UDP),
    ),
    "socketpair": (Guard(0, _UNIX_INET_INET6),),
    "fcntl": (Guard(1, _TELLING_OR_BINDING_FCNTLS, refused=True),),
    "clone": (Guard(0, (0,), CLONE_NEW_ANY),),
    "clone3": ENOSYS,
    "prctl": (Guard(0, _HARMLESS_PRCTLS),),
    "ioctl": (Guard(1, _TERMINAL_AND_PIPE_IOCTLS),),
    # On another process it could starve our pid 1 of memory or descriptors and so pass off a failure as ours.
    "prlimit64": (Guard(0, (0,)),),
    # Who watches over a program in its own pid namespace is pid 1, of the same user: it must get a processor in time.
    "setpriority": (Guard(0, (_PRIO_PROCESS,)), Guard(1, (1,), refused=True)),
    "sched_setaffinity": (Guard(0, (1,), refused=True),),
    "mknod": (Guard(1, (_FIFO,), _FILE_TYPE),),
    "mknodat": (Guard(2, (_FIFO,), _FILE_TYPE),),
}
"""The rule of each call of `syscalls.GUARDED`: conditions that must all hold, or a fixed answer."""


@dataclass(frozen=True, slots=True)
class _Range:
    """Numbers from `first` up to the next range's first share one fate: a verdict, or a guarded call's name."""

    first: int
    fate: int | str


def assemble(machine: str) -> bytes:
    """Return the filter for `machine` as an array of ``struct sock_filter``.  Raises: KeyError, machine unknown."""
    plain, guarded = syscalls.PLAIN[machine], syscalls.GUARDED[machine]
    fates: dict[int, int | str] = dict.fromkeys(plain.values(), ALLOW)
    fates.update((number, name) for name, number in guarded.items())
    program = _begin(machine)
    program.tree(_ranges(fates, otherwise=EPERM))
    for name in sorted(guarded):
        program.guard(name, GUARDS[name])
    return program.link()


def assemble_for_monitor(machine: str) -> bytes:
    """Return the filter for a monitor that gives programs a kernel of its own, in the same form.

    Such a one makes namespaces and traces processes; that it asks the host for little on behalf of a program is its
    own part.  Here only what no monitor needs is refused.  Raises: KeyError, machine unknown.
    """
    program = _begin(machine)
    program.tree(_ranges(dict.fromkeys(syscalls.OF_NO_MONITOR[machine].values(), EPERM), otherwise=ALLOW))
    return program.link()


def _begin(machine: str) -> "_Program":
    """Return a program that has judged the machine word and holds the number."""
    program = _Program()
    program.emit(_LOAD, _ARCH_AT)
    program.emit(_JUMP_EQ, AUDIT_ARCH[machine], 1, 0)
    program.emit(_RETURN, KILL_PROCESS)
    program.emit(_LOAD, _NUMBER_AT)
    program.emit(_JUMP_GE, _X32_BIT, 0, 1)
    program.emit(_RETURN, KILL_PROCESS)
    return program


def instruction_count(program: bytes) -> int:
    """Return the length of an assembled filter in instructions, as the kernel counts it."""
    return len(program) // 8


def _ranges(fates: Mapping[int, int | str], otherwise: int) -> list[_Range]:
    ranges = [_Range(0, fates.get(0, otherwise))]
    for number in range(1, syscalls.NEWEST + 1):
        fate = fates.get(number, otherwise)
        if fate != ranges[-1].fate:
            ranges.append(_Range(number, fate))
    ranges.append(_Range(syscalls.NEWEST + 1, ENOSYS))
    return ranges


class _Program:
    """Instructions in order, with the jumps to guard blocks filled in at the end.

    A conditional jump reaches 255 instructions, an unconditional one any; so each inner node falls through into
    its lower half and goes to its upper half by an unconditional jump.
    """

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int]] = []
        self._block_of: dict[str, int] = {}
        self._jump_to_block: dict[int, str] = {}

    def emit(self, code: int, k: int, if_true: int = 0, if_false: int = 0) -> int:
        self._code.append((code, if_true, if_false, k))
        return len(self._code) - 1

    def tree(self, ranges: Sequence[_Range]) -> None:
        if len(ranges) == 1:
            fate = ranges[0].fate
            if isinstance(fate, str):
                self._jump_to_block[self.emit(_JUMP, 0)] = fate
            else:
                self.emit(_RETURN, fate)
            return
        middle = len(ranges) // 2
        self.emit(_JUMP_GE, ranges[middle].first, 0, 1)
        upward = self.emit(_JUMP, 0)
        self.tree(ranges[:middle])
        self._code[upward] = (_JUMP, 0, 0, len(self._code) - upward - 1)
        self.tree(ranges[middle:])

    def guard(self, name: str, rule: tuple[Guard, ...] | int) -> None:
        self._block_of[name] = len(self._code)
        if isinstance(rule, int):
            self.emit(_RETURN, rule)
            return
        for condition in rule:
            self._condition(condition)
        self.emit(_RETURN, ALLOW)

    def _condition(self, guard: Guard) -> None:
        """Refuse unless `guard` holds; else go on with what follows."""
        self.emit(_LOAD, _ARGUMENTS_AT + 8 * guard.argument)
        if guard.mask != 0xFFFFFFFF:
            self.emit(_AND, guard.mask)
        left = len(guard.values)
        for value in guard.values:
            # Behind the comparisons lies the refusal; with `refused` a jump over it comes first.
            self.emit(_JUMP_EQ, value, left, 0)
            left -= 1
        if guard.refused:
            self.emit(_JUMP, 1)
        self.emit(_RETURN, EPERM)

    def link(self) -> bytes:
        for at, name in self._jump_to_block.items():
            self._code[at] = (_JUMP, 0, 0, self._block_of[name] - at - 1)
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in self._code)
