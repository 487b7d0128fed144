"""What one run may use, and the bounds within which a request may ask for it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from runtape.domain.errors import LimitOutOfRange


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one run, after defaults are filled in and bounds are checked.

    Units are in the names.  ``output_bytes`` counts stdout and stderr together; ``memory_mb`` counts the
    whole process tree with its tmpfs, in MiB; ``disk_mb`` and ``inodes`` bound the work directory.
    ``artifact_bytes`` and ``artifacts`` bound what is kept of the files that a program leaves: all of them together,
    and their number.
    """

    wall_s: float = 10.0
    cpu_s: float = 10.0
    memory_mb: int = 256
    output_bytes: int = 1 << 20
    processes: int = 64
    disk_mb: int = 64
    inodes: int = 4096
    open_files: int = 256
    artifact_bytes: int = 16 << 20
    artifacts: int = 100


MAXIMUM = Limits(
    wall_s=300.0,
    cpu_s=300.0,
    memory_mb=4096,
    output_bytes=64 << 20,
    processes=512,
    disk_mb=1024,
    inodes=65_536,
    open_files=4096,
    artifact_bytes=64 << 20,
    artifacts=1000,
)
MINIMUM = Limits(
    wall_s=0.1,
    cpu_s=0.1,
    memory_mb=16,
    output_bytes=1,
    processes=1,
    disk_mb=1,
    inodes=16,
    open_files=16,
    artifact_bytes=0,
    artifacts=0,
)
REQUESTABLE = ("wall_s", "cpu_s", "memory_mb", "output_bytes", "processes")
"""The limits that a request may set; the others are the operator's."""


@dataclass(frozen=True, slots=True)
class LimitPolicy:
    """An installation's default and greatest limits."""

    default: Limits = Limits()
    maximum: Limits = MAXIMUM

    def resolve(self, requested: Mapping[str, float | int | None]) -> Limits:
        """Return the default limits with `requested` laid over them.

        `requested` maps names of `REQUESTABLE` to values; None stands for the default.
        Raises: LimitOutOfRange, naming the first limit outside its bounds.
        """
        chosen: dict[str, float | int] = {}
        for name, value in requested.items():
            if value is None:
                continue
            low, high = getattr(MINIMUM, name), getattr(self.maximum, name)
            if not low <= value <= high:
                raise LimitOutOfRange(name, value, low, high)
            chosen[name] = value
        return replace(self.default, **chosen) if chosen else self.default

    def check_again(self, limits: Limits) -> None:
        """Return when none of `limits`, resolved some time ago, exceeds today's maximum, the operator's own included.

        Raises: LimitOutOfRange, naming the first that does.
        """
        for field in fields(limits):
            value, low, high = (getattr(each, field.name) for each in (limits, MINIMUM, self.maximum))
            if value > high:
                fix = "the maximum was lowered since that run: submit its script again within it"
                raise LimitOutOfRange(field.name, value, low, high, fix)
