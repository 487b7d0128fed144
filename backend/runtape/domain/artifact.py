"""Artifacts: the files that a program leaves in its folder ``out``."""

from dataclasses import dataclass
from enum import StrEnum

FOLDER = "out"
"""Name of that folder in the work directory; every program finds it there, empty but for uploaded files."""

PATH_BYTES = 1024
NAME_BYTES = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One file that was kept, whole; `path` is relative to `FOLDER` (see `artifact_path`)."""

    path: str
    size_bytes: int
    sha256: str


class LeftOutFor(StrEnum):
    """Why something in `FOLDER` is no artifact."""

    TOO_LARGE = "too_large"
    """It did not fit what was left of ``artifact_bytes`` after those before it in path order."""
    TOO_MANY = "too_many"
    """As many as ``artifacts`` allows come before it."""
    NOT_REGULAR = "not_regular"
    """A symbolic link, FIFO, socket or device."""
    BAD_NAME = "bad_name"
    """Its path is none that `artifact_path` takes."""
    TOO_DEEP = "too_deep"
    """A folder in too many others; it counts once, whatever lies in it."""
    UNREADABLE = "unreadable"
    """The program has taken away its own right to read it; a folder counts once."""
    INTERRUPTED = "interrupted"
    """Collecting was cut short: it and an unknown number after it are missing."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """How many were left out for one reason."""

    reason: LeftOutFor
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifacts:
    """What came of `FOLDER`: the files that were kept, in the order of their paths' bytes, and why others were not."""

    kept: tuple[Artifact, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


NO_ARTIFACTS = Artifacts()


def artifact_path(raw: bytes) -> str | None:
    """Return the path that a program has made as text, None when it cannot be one of an artifact.

    It is relative, of printable UTF-8 (so without line feeds, escapes and marks that reverse its direction), and no
    part of it is ``.`` or ``..`` or empty.
    """
    try:
        path = raw.decode()
    except UnicodeDecodeError:
        return None
    names = raw.split(b"/")
    if not path.isprintable() or len(raw) > PATH_BYTES:
        return None
    return path if all(0 < len(name) <= NAME_BYTES and name not in (b".", b"..") for name in names) else None
