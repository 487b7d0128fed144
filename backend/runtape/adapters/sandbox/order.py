"""What a box is told to do for a run: the translation of a `Source` and its `Limits` into an `Order`."""

import math
import resource

from runtape.domain.limits import Limits
from runtape.domain.source import Source

from .keeper import wire
from .runtimes import InstalledRuntime

_SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"


def group_limits(limits: Limits) -> tuple[int, int]:
    """Return (memory in bytes, processes) for the cgroup of a box; its pid 1 is a process too."""
    return limits.memory_mb << 20, limits.processes + 1


def make_order(
    runtime: InstalledRuntime, source: Source, limits: Limits, armed_limits: tuple[int, int] | None
) -> wire.Order:
    """Return what a box needs to run `source`.

    `armed_limits` are those of `group_limits` that the box has already, or None when it has no cgroup.
    The script comes last, over an uploaded file of its name.  Lone surrogates in texts, which JSON can carry, pass
    through: the interpreter will complain to their author.
    """
    memory_bytes, processes = group_limits(limits)
    changed = armed_limits is not None and armed_limits != (memory_bytes, processes)
    path = _SYSTEM_PATH if runtime.shown_prefix is None else f"{runtime.shown_prefix}/bin:{_SYSTEM_PATH}"
    env = {b"PATH": path.encode(), b"HOME": b"/box", b"LANG": b"C.UTF-8"}
    env.update((_encoded(name), _encoded(value)) for name, value in source.env)
    script = (runtime.runtime.file_name, _encoded(source.script))
    argv = [part.replace("{memory_mb}", str(limits.memory_mb)).encode() for part in runtime.argv]
    return wire.Order(
        files=(*((file.path, file.content) for file in source.files), script),
        argv=(*argv, *(_encoded(argument) for argument in source.args)),
        env=env,
        rlimits=_rlimits(limits, runtime.reserve_mb if armed_limits is None else 0),
        memory_bytes=memory_bytes if changed else 0,
        processes=processes if changed else 0,
        stdin=source.stdin,
    )


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
