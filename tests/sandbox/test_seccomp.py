"""The seccomp filter judged by an interpreter of its instructions: every call of both machines, without a kernel."""

import errno
import struct

import pytest

from runtape.adapters.sandbox.keeper import seccomp, syscalls

MACHINES = ["x86_64", "aarch64"]
EPERM, ENOSYS = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS


def judge(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """Return what the filter answers, as the kernel's interpreter of classic BPF would."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *arguments, *([0] * (6 - len(arguments))))
    code = list(struct.iter_unpack("=HBBI", program))
    at = accumulator = 0
    while True:
        operation, if_true, if_false, k = code[at]
        at += 1
        if operation == 0x06:
            return k
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif operation == 0x54:
            accumulator &= k
        elif operation == 0x05:
            at += k
        elif operation in (0x15, 0x35):
            at += if_true if (accumulator == k if operation == 0x15 else accumulator >= k) else if_false
        else:
            raise AssertionError(f"unknown instruction {operation:#x}")


@pytest.mark.parametrize("machine", MACHINES)
def test_every_number_gets_the_verdict_of_the_tables(machine: str) -> None:
    program, arch = seccomp.assemble(machine), seccomp.AUDIT_ARCH[machine]
    plain, guarded = set(syscalls.PLAIN[machine].values()), set(syscalls.GUARDED[machine].values())
    for number in range(1000):
        if number in guarded:
            continue
        expected = seccomp.ALLOW if number in plain else ENOSYS if number > syscalls.NEWEST else EPERM
        assert judge(program, arch, number) == expected, number


@pytest.mark.parametrize("machine", MACHINES)
def test_foreign_and_x32_calls_kill(machine: str) -> None:
    program, arch = seccomp.assemble(machine), seccomp.AUDIT_ARCH[machine]
    assert judge(program, 0x40000003, 3) == seccomp.KILL_PROCESS
    assert judge(program, arch, 0x40000000) == seccomp.KILL_PROCESS
    assert judge(program, arch, 0xFFFFFFFF) == seccomp.KILL_PROCESS


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("socket", (1, 1, 0), seccomp.ALLOW),
        ("socket", (10, 2, 17), seccomp.ALLOW),
        ("setpriority", (0, 0, 19), seccomp.ALLOW),
        ("setpriority", (0, 2, 19), seccomp.ALLOW),
        ("setpriority", (0, 1, 19), EPERM),
        ("setpriority", (0, 0x1_0000_0001, 19), EPERM),
        ("setpriority", (1, 0, 19), EPERM),
        ("setpriority", (2, 0, 19), EPERM),
        ("sched_setaffinity", (0, 8, 0), seccomp.ALLOW),
        ("sched_setaffinity", (7, 8, 0), seccomp.ALLOW),
        ("sched_setaffinity", (1, 8, 0), EPERM),
        ("socket", (2, 1 | 0o2000000 | 0o4000, 6), seccomp.ALLOW),  # close-on-exec, not blocking
        ("socket", (16, 1, 0), EPERM),
        ("socket", (2 | 7 << 32, 1, 0), seccomp.ALLOW),  # the kernel takes an int
        *(("socket", (2, kind, 0), EPERM) for kind in (0, 3, 4, 6, 10)),
        *(("socket", (2, 1, protocol), EPERM) for protocol in (1, 132, 136, 256, 262)),
        *(("fcntl", (0, command), seccomp.ALLOW) for command in (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)),
        *(("fcntl", (0, command), EPERM) for command in (1024, 1026, 1031, 1026 | 1 << 32)),
        ("socketpair", (1,), seccomp.ALLOW),
        ("socketpair", (40,), EPERM),
        ("clone", (0x01200011,), seccomp.ALLOW),
        ("clone", (0x003D0F00,), seccomp.ALLOW),  # a thread, as glibc makes it
        *(("clone", (flag | 17,), EPERM) for flag in (0x20000, *(1 << bit for bit in range(25, 31)))),
        ("clone3", (), ENOSYS),
        ("prctl", (15,), seccomp.ALLOW),
        ("prctl", (4,), EPERM),
        ("prctl", (22,), EPERM),
        ("ioctl", (0, 0x5401), seccomp.ALLOW),
        ("ioctl", (0, 0x5412), EPERM),
        ("ioctl", (0, 0x5412 | 1 << 32), EPERM),
        ("prlimit64", (0,), seccomp.ALLOW),
        ("prlimit64", (1,), EPERM),
        ("mknodat", (0, 0, 0o010644), seccomp.ALLOW),
        ("mknodat", (0, 0, 0o020644), EPERM),
        ("mknodat", (0, 0, 0o060644), EPERM),
    ],
)
def test_arguments_decide(machine: str, name: str, arguments: tuple[int, ...], expected: int) -> None:
    program, arch = seccomp.assemble(machine), seccomp.AUDIT_ARCH[machine]
    assert judge(program, arch, syscalls.GUARDED[machine][name], *arguments) == expected


@pytest.mark.parametrize("machine", MACHINES)
def test_usual_path_is_short(machine: str) -> None:
    program = seccomp.assemble(machine)
    assert seccomp.instruction_count(program) < 512


def test_no_call_is_listed_twice() -> None:
    for machine in MACHINES:
        numbers = [*syscalls.PLAIN[machine].values(), *syscalls.GUARDED[machine].values()]
        assert len(numbers) == len(set(numbers))
        assert not set(syscalls.PLAIN[machine]) & set(syscalls.GUARDED[machine])
        assert set(syscalls.GUARDED[machine]) <= set(seccomp.GUARDS)
