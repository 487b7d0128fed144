"""What a keeper is told of the runtimes, and a box of its run: the translation of `Source` and `Limits`."""

import math
import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from runtape.domain.limits import Limits
from runtape.domain.source import Source

from .keeper import wire
from .runtimes import PROGRAM, InstalledRuntime, starters

_SYSTEM_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_COMPILER: Final = Limits()
"""What a compiler is granted at least of processes, files and room."""
BYTECODE_LIMITS: Final = Limits(wall_s=120.0, cpu_s=240.0, memory_mb=1024)
"""What the compiling of a set of packages is granted: some 2 s for numpy and pandas together."""
_COMPILE: Final = f'"$@" >&2 && exec cat {PROGRAM}'
"""What the shell of a compiler's box does with the compiler's argv; its exit status is the compiler's."""
_PROGRAM_FILE: Final = f".tmp{PROGRAM.removeprefix('/tmp')}"
"""`PROGRAM` below the work directory, of which /tmp shows a part; no uploaded file has such a path."""

BOXES_PER_SLOT: Final = 1000


class Ours(NamedTuple):
    """What is in a box, or on its account, that is not the program's."""

    processes: int
    memory_mb: int = 0


OURS: Final = Ours(processes=2)
"""Its slot and its pid 1."""
OURS_FORKED: Final = Ours(processes=1)
"""Where the keeper makes boxes: pid 1 alone."""
OURS_GVISOR: Final = Ours(processes=OURS.processes + 256, memory_mb=64)
"""With a kernel of its own, its threads and the memory that it takes before a program begins."""


class ArmedLimits(NamedTuple):
    """What a box is armed with."""

    grouped: bool
    """Whether it has a cgroup, which has these limits."""
    memory_bytes: int
    processes: int
    ours: Ours


def group_limits(limits: Limits, ours: Ours) -> tuple[int, int]:
    """Return (memory in bytes, processes) for the cgroup of a box, in which `ours` is too."""
    return (limits.memory_mb + ours.memory_mb) << 20, limits.processes + ours.processes


def environment(runtime: InstalledRuntime) -> dict[bytes, bytes]:
    """Return the environment of a program that asks for none."""
    path = _SYSTEM_PATH if runtime.shown_prefix is None else f"{runtime.shown_prefix}/bin:{_SYSTEM_PATH}"
    env = {"PATH": path, "HOME": "/box", "LANG": "C.UTF-8", **dict(runtime.env)}
    return {name.encode(): value.encode() for name, value in env.items()}


def make_opening(
    instance: str,
    runtimes: Sequence[InstalledRuntime],
    limits: Limits,
    *,
    programs: Path | None = None,
    warm: bool = False,
    own_kernel: bool = False,
    boxes_per_slot: int = BOXES_PER_SLOT,
    layers: Path | None = None,
) -> wire.Opening:
    """Return what a keeper needs to know: boxes are armed for `limits`, and made by `programs` if there are any.

    `warm` says whether interpreters are started ahead of their programs; `layers` is the folder with the packages.
    """
    ours = OURS_GVISOR if own_kernel else OURS if programs else OURS_FORKED
    # A runner and, for an instant, its go-between: a lower limit comes with the order.
    memory_bytes, processes = group_limits(replace(limits, processes=max(limits.processes, 2)), ours)
    warmed = [each for each in runtimes if each.warm] if programs and warm else []
    return wire.Opening(
        instance=instance,
        prefixes=tuple(sorted({folder for each in runtimes for folder in each.shown})),
        starters=starters(),
        layers=str(layers or ""),
        native=str(programs or ""),
        zygotes=tuple((each.name, each.zygote, environment(each)) for each in warmed if each.zygote),
        parked=tuple((each.name, _parking_order(each, limits, ours).packed()) for each in warmed if each.parked),
        memory_bytes=memory_bytes,
        processes=processes,
        own_kernel=own_kernel,
        boxes_per_slot=boxes_per_slot,
    )


def _parking_order(runtime: InstalledRuntime, limits: Limits, ours: Ours) -> wire.Order:
    """Return what starts an interpreter that is to wait for a program with `limits`."""
    return wire.Order(
        files=(),
        argv=_argv(runtime.parked, limits),
        env=environment(runtime),
        rlimits=_rlimits(limits, ours, 0),
        memory_bytes=0,
        processes=0,
        stdin=b"",
    )


def warmable(runtime: InstalledRuntime, source: Source, limits: Limits, default: Limits) -> bool:
    """Return whether a program can be run by an interpreter that has started without knowing of it.

    Not when the environment asks for what takes effect only at a start.  One that was parked has its limits for good:
    those of the process are `default`, and an input must have found room in a pipe before it reads.
    """
    if not runtime.warm or any(name.startswith(runtime.read_at_start) for name, _ in source.env):
        return False
    if not runtime.parked:
        return True
    return len(source.stdin) <= wire.INLINE_STDIN_BYTES and limits == replace(
        default,
        wall_s=limits.wall_s,
        output_bytes=limits.output_bytes,
        cpu_s=min(limits.cpu_s, default.cpu_s),  # the limit of the process is but for the case that we cannot
    )


def null_byte_in(source: Source) -> str | None:
    """Return where `source` has a null byte that no process can be given, if anywhere."""
    places = {
        "an argument": source.args,
        "the environment": (text for variable in source.env for text in variable),
        "the path of a file": (file.path for file in source.files),
    }
    return next((place for place, texts in places.items() if any("\0" in text for text in texts)), None)


def started(order: wire.Order, runtime: InstalledRuntime, layer: str) -> wire.Order:
    """Return `order` for an interpreter that has started already; `layer` as for `make_order`."""
    first = (layer.encode(),) if runtime.zygote else ()
    return order._replace(argv=(*first, runtime.script.encode(), *order.argv[len(runtime.argv) :]))


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


def make_trial_order(limits: Limits, armed: ArmedLimits) -> wire.Order:
    """Return what a box needs to run a program that does nothing."""
    return wire.Order(
        files=(),
        argv=(b"/bin/sh", b"-c", b":"),
        env={},
        rlimits=_rlimits(limits, armed.ours, 0),
        memory_bytes=0,
        processes=0,
        stdin=b"",
    )


def make_compile_order(runtime: InstalledRuntime, source: Source, limits: Limits, armed: ArmedLimits) -> wire.Order:
    """Return what a box needs to compile `source` and print the program to stdout; `limits` are the compiler's.

    The script lies there with the files.  What a program is given (input, arguments, environment) is none of the
    compiler's business: nobody changes its options by a variable.
    """
    memory_bytes, processes = _changed(limits, armed)
    argv = ("/bin/sh", "-c", _COMPILE, "sh", *runtime.compile)
    return wire.Order(
        files=_files(runtime, source),
        argv=tuple(part.encode() for part in argv),
        env=environment(runtime),
        rlimits=_rlimits(limits, armed.ours, 0),
        memory_bytes=memory_bytes,
        processes=processes,
        stdin=b"",
    )


def make_order(
    runtime: InstalledRuntime,
    source: Source,
    limits: Limits,
    armed: ArmedLimits,
    program: bytes | None = None,
    layer: str = "",
) -> wire.Order:
    """Return what a box needs to run `source`, or the `program` that was made of it.

    `layer` is the folder of its packages, as boxes show it; empty when it has none.
    Lone surrogates in texts, which JSON can carry, pass through: the interpreter will complain to their author.
    """
    memory_bytes, processes = _changed(limits, armed)
    files = _files(runtime, source)
    arguments = source.args if runtime.takes_arguments else ()
    env = environment(runtime)
    if layer:  # for interpreters and scripts that the program starts
        env[b"PATH"] = f"{layer}/bin:".encode() + env[b"PATH"]
        env[b"PYTHONPATH"] = layer.encode()
    env.update((_encoded(name), _encoded(value)) for name, value in source.env)
    return wire.Order(
        files=files if program is None else (*files, (_PROGRAM_FILE, program)),
        argv=(*_argv(runtime.argv, limits, layer), *(_encoded(argument) for argument in arguments)),
        env=env,
        rlimits=_rlimits(limits, armed.ours, 0 if armed.grouped else runtime.reserve_mb),
        memory_bytes=memory_bytes,
        processes=processes,
        stdin=source.stdin,
    )


def _argv(command: Sequence[str], limits: Limits, layer: str = "") -> tuple[bytes, ...]:
    memory_mb, first = str(limits.memory_mb), f"{layer}:" if layer else ""
    return tuple(part.replace("{memory_mb}", memory_mb).replace("{layer}", first).encode() for part in command)


def make_bytecode_order(runtime: InstalledRuntime, layer: str, modules: bytes, armed: ArmedLimits) -> wire.Order:
    """Return what a box needs to compile `modules` of a layer; see starters/compile_layer.py."""
    memory_bytes, processes = _changed(BYTECODE_LIMITS, armed)
    argv = (runtime.binary, "-I", "-S", "-u", "-W", "ignore", f"{wire.STARTERS}/compile_layer.py", layer)
    return wire.Order(
        files=(),
        argv=tuple(part.encode() for part in argv),
        env=environment(runtime),
        rlimits=_rlimits(BYTECODE_LIMITS, armed.ours, 0 if armed.grouped else runtime.reserve_mb),
        memory_bytes=memory_bytes,
        processes=processes,
        stdin=modules,
    )


def _changed(limits: Limits, armed: ArmedLimits) -> tuple[int, int]:
    """Return the limits for the cgroup of a box that was armed with others; else zeros."""
    wanted = group_limits(limits, armed.ours)
    return wanted if armed.grouped and wanted != (armed.memory_bytes, armed.processes) else (0, 0)


def _files(runtime: InstalledRuntime, source: Source) -> tuple[tuple[str, bytes], ...]:
    """Return the uploaded files and the script: last, over a file of its name."""
    return (*((file.path, file.content) for file in source.files), (runtime.runtime.file_name, _encoded(source.script)))


def _rlimits(limits: Limits, ours: Ours, reserve_mb: int) -> tuple[tuple[int, int, int], ...]:
    """Return the limits of one process each; those of the tree are the cgroup's and the keeper's."""
    disk_bytes, cpu_s = limits.disk_mb << 20, math.ceil(limits.cpu_s)
    rlimits = [
        (resource.RLIMIT_FSIZE, disk_bytes, disk_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files, limits.open_files),
        # Counted per user of a user namespace that no other box is in.
        (resource.RLIMIT_NPROC, limits.processes + ours.processes, limits.processes + ours.processes),
        # The keeper stops the tree at the exact time; this is for the case that it cannot.
        (resource.RLIMIT_CPU, cpu_s + 1, cpu_s + 2),
    ]
    if reserve_mb:
        space_bytes = (limits.memory_mb + reserve_mb) << 20
        rlimits.append((resource.RLIMIT_AS, space_bytes, space_bytes))
    return tuple(rlimits)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
