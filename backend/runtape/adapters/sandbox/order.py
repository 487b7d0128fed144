"""What a box is told to do for a run: the translation of a `Source` and its `Limits` into an `Order`."""

import math
import resource
from dataclasses import replace
from typing import Final

from runtape.domain.limits import Limits
from runtape.domain.source import Source

from .keeper import wire
from .runtimes import PROGRAM, InstalledRuntime

_SYSTEM_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_COMPILER: Final = Limits()
"""What a compiler is granted at least of processes, files and room."""
_COMPILE: Final = f'"$@" >&2 && exec cat {PROGRAM}'
"""What the shell of a compiler's box does with the compiler's argv; its exit status is the compiler's."""
_PROGRAM_FILE: Final = f".tmp{PROGRAM.removeprefix('/tmp')}"
"""`PROGRAM` below the work directory, of which /tmp shows a part; no uploaded file has such a path."""


def group_limits(limits: Limits) -> tuple[int, int]:
    """Return (memory in bytes, processes) for the cgroup of a box; its pid 1 is a process too."""
    return limits.memory_mb << 20, limits.processes + 1


def compiler_limits(runtime: InstalledRuntime, limits: Limits) -> Limits:
    """Return what a compiler may use in a run with `limits`: of time and output the same, of the rest what it needs."""
    return replace(
        limits,
        memory_mb=max(limits.memory_mb, runtime.compile_mb),
        processes=max(limits.processes, _COMPILER.processes),
        open_files=max(limits.open_files, _COMPILER.open_files),
        disk_mb=max(limits.disk_mb, _COMPILER.disk_mb),
        inodes=max(limits.inodes, _COMPILER.inodes),
    )


def make_compile_order(
    runtime: InstalledRuntime, source: Source, limits: Limits, armed_limits: tuple[int, int] | None
) -> wire.Order:
    """Return what a box needs to compile `source` and print the program to stdout; `limits` are the compiler's.

    The script lies there with the files.  What a program is given (input, arguments, environment) is none of the
    compiler's business: nobody changes its options by a variable.
    """
    memory_bytes, processes = _changed(limits, armed_limits)
    argv = ("/bin/sh", "-c", _COMPILE, "sh", *runtime.compile)
    return wire.Order(
        files=_files(runtime, source),
        argv=tuple(part.encode() for part in argv),
        env=_environment(runtime),
        rlimits=_rlimits(limits, 0),
        memory_bytes=memory_bytes,
        processes=processes,
        stdin=b"",
    )


def make_order(
    runtime: InstalledRuntime,
    source: Source,
    limits: Limits,
    armed_limits: tuple[int, int] | None,
    program: bytes | None = None,
) -> wire.Order:
    """Return what a box needs to run `source`, or the `program` that was made of it.

    `armed_limits` are those of `group_limits` that the box has already, or None when it has no cgroup.
    Lone surrogates in texts, which JSON can carry, pass through: the interpreter will complain to their author.
    """
    memory_bytes, processes = _changed(limits, armed_limits)
    files = _files(runtime, source)
    argv = [part.replace("{memory_mb}", str(limits.memory_mb)).encode() for part in runtime.argv]
    arguments = source.args if runtime.takes_arguments else ()
    env = _environment(runtime)
    env.update((_encoded(name), _encoded(value)) for name, value in source.env)
    return wire.Order(
        files=files if program is None else (*files, (_PROGRAM_FILE, program)),
        argv=(*argv, *(_encoded(argument) for argument in arguments)),
        env=env,
        rlimits=_rlimits(limits, runtime.reserve_mb if armed_limits is None else 0),
        memory_bytes=memory_bytes,
        processes=processes,
        stdin=source.stdin,
    )


def _changed(limits: Limits, armed_limits: tuple[int, int] | None) -> tuple[int, int]:
    """Return the limits for the cgroup of a box that was armed with others; else zeros."""
    wanted = group_limits(limits)
    return wanted if armed_limits is not None and armed_limits != wanted else (0, 0)


def _files(runtime: InstalledRuntime, source: Source) -> tuple[tuple[str, bytes], ...]:
    """Return the uploaded files and the script: last, over a file of its name."""
    return (*((file.path, file.content) for file in source.files), (runtime.runtime.file_name, _encoded(source.script)))


def _environment(runtime: InstalledRuntime) -> dict[bytes, bytes]:
    path = _SYSTEM_PATH if runtime.shown_prefix is None else f"{runtime.shown_prefix}/bin:{_SYSTEM_PATH}"
    env = {"PATH": path, "HOME": "/box", "LANG": "C.UTF-8", **dict(runtime.env)}
    return {name.encode(): value.encode() for name, value in env.items()}


def _rlimits(limits: Limits, reserve_mb: int) -> tuple[tuple[int, int, int], ...]:
    """Return the limits of one process each; those of the tree are the cgroup's and the keeper's."""
    disk_bytes, cpu_s = limits.disk_mb << 20, math.ceil(limits.cpu_s)
    rlimits = [
        (resource.RLIMIT_FSIZE, disk_bytes, disk_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files, limits.open_files),
        # Counted per user of the box's own user namespace, so in effect per box; its pid 1 is one of them.
        (resource.RLIMIT_NPROC, limits.processes + 1, limits.processes + 1),
        # The keeper stops the tree at the exact time; this is for the case that it cannot.
        (resource.RLIMIT_CPU, cpu_s + 1, cpu_s + 2),
    ]
    if reserve_mb:
        space_bytes = (limits.memory_mb + reserve_mb) << 20
        rlimits.append((resource.RLIMIT_AS, space_bytes, space_bytes))
    return tuple(rlimits)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
