"""What a keeper is told of the runtimes, and a box of its run: the translation of `Source` and `Limits`."""

import math
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from runtape.domain.limits import Limits
from runtape.domain.source import Source

from .keeper import wire
from .runtimes import InstalledRuntime, starters

_SYSTEM_PATH: Final = "/usr/local/bin:/usr/bin:/bin"

OURS: Final = 2
"""Processes of a box that are not the program's: its slot and its pid 1."""
OURS_FORKED: Final = 1
"""The same where the keeper makes boxes: pid 1 alone."""


class ArmedLimits(NamedTuple):
    """What a box is armed with."""

    grouped: bool
    """Whether it has a cgroup, which has these limits."""
    memory_bytes: int
    processes: int
    ours: int
    """How many of the processes are not the program's."""


def group_limits(limits: Limits, ours: int) -> tuple[int, int]:
    """Return (memory in bytes, processes) for the cgroup of a box, in which `ours` are not the program's."""
    return limits.memory_mb << 20, limits.processes + ours


def environment(runtime: InstalledRuntime) -> dict[bytes, bytes]:
    """Return the environment of a program that asks for none."""
    path = _SYSTEM_PATH if runtime.shown_prefix is None else f"{runtime.shown_prefix}/bin:{_SYSTEM_PATH}"
    return {b"PATH": path.encode(), b"HOME": b"/box", b"LANG": b"C.UTF-8"}


def make_opening(
    instance: str,
    runtimes: Sequence[InstalledRuntime],
    limits: Limits,
    *,
    programs: Path | None = None,
    zygotes: bool = False,
) -> wire.Opening:
    """Return what a keeper needs to know: boxes are armed for `limits`, and made by `programs` if there are any."""
    memory_bytes, processes = group_limits(limits, OURS if programs else OURS_FORKED)
    warmed = [each for each in runtimes if each.zygote] if programs and zygotes else []
    return wire.Opening(
        instance=instance,
        prefixes=tuple(sorted({each.shown_prefix for each in runtimes if each.shown_prefix is not None})),
        starters=starters(),
        native=str(programs or ""),
        zygotes=tuple((each.name, each.zygote, environment(each)) for each in warmed),
        memory_bytes=memory_bytes,
        processes=processes,
    )


def null_byte_in(source: Source) -> str | None:
    """Return where `source` has a null byte that no process can be given, if anywhere."""
    places = {
        "an argument": source.args,
        "the environment": (text for variable in source.env for text in variable),
        "the path of a file": (file.path for file in source.files),
    }
    return next((place for place, texts in places.items() if any("\0" in text for text in texts)), None)


def make_order(
    runtime: InstalledRuntime, source: Source, limits: Limits, armed: ArmedLimits, *, zygote: bool
) -> wire.Order:
    """Return what a box needs to run `source`; `zygote` tells whether its runner is an interpreter already.

    The script comes last, over an uploaded file of its name.  Lone surrogates in texts, which JSON can carry, pass
    through: the interpreter will complain to their author.
    """
    memory_bytes, processes = group_limits(limits, armed.ours)
    changed = armed.grouped and (armed.memory_bytes, armed.processes) != (memory_bytes, processes)
    env = environment(runtime)
    env.update((_encoded(name), _encoded(value)) for name, value in source.env)
    script = (runtime.runtime.file_name, _encoded(source.script))
    argv = [part.replace("{memory_mb}", str(limits.memory_mb)).encode() for part in runtime.argv]
    if zygote:
        argv = [runtime.script.encode()]
    return wire.Order(
        files=(*((file.path, file.content) for file in source.files), script),
        argv=(*argv, *(_encoded(argument) for argument in source.args)),
        env=env,
        rlimits=_rlimits(limits, armed.ours, 0 if armed.grouped else runtime.reserve_mb),
        memory_bytes=memory_bytes if changed else 0,
        processes=processes if changed else 0,
        stdin=source.stdin,
    )


def _rlimits(limits: Limits, ours: int, reserve_mb: int) -> tuple[tuple[int, int, int], ...]:
    """Return the limits of one process each; those of the tree are the cgroup's and the keeper's."""
    disk_bytes, cpu_s = limits.disk_mb << 20, math.ceil(limits.cpu_s)
    rlimits = [
        (resource.RLIMIT_FSIZE, disk_bytes, disk_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files, limits.open_files),
        # Counted per user of a user namespace that no other box is in.
        (resource.RLIMIT_NPROC, limits.processes + ours, limits.processes + ours),
        # The keeper stops the tree at the exact time; this is for the case that it cannot.
        (resource.RLIMIT_CPU, cpu_s + 1, cpu_s + 2),
    ]
    if reserve_mb:
        space_bytes = (limits.memory_mb + reserve_mb) << 20
        rlimits.append((resource.RLIMIT_AS, space_bytes, space_bytes))
    return tuple(rlimits)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
