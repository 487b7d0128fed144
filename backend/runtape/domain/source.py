"""What a run consists of: the script with everything that is handed to it."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from runtape.domain.artifact import FOLDER
from runtape.domain.errors import InvalidPath

PATH_BYTES = 4096
NAME_BYTES = 255


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file laid into the work directory before the program starts; `path` is relative and normalised."""

    path: str
    content: bytes


@dataclass(frozen=True, slots=True)
class PackagePolicy:
    """Whether sources may have requirements, on this installation."""

    enabled: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The script and what it is given; immutable, equal for every attempt."""

    script: str
    stdin: bytes = b""
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    files: tuple[SourceFile, ...] = ()
    requirements: tuple[str, ...] = ()
    """Packages that it imports, as PEP 508 has them, in one spelling and sorted."""

    @property
    def size_bytes(self) -> int:
        """About how many bytes all of it has; text counts by its characters."""
        return (
            len(self.script)
            + len(self.stdin)
            + sum(map(len, self.args))
            + sum(len(name) + len(value) for name, value in self.env)
            + sum(len(file.content) + len(file.path) for file in self.files)
            + sum(map(len, self.requirements))
        )


def checked_path(path: str, field: str) -> str:
    """Return `path` normalised, as a relative path that cannot leave the work directory.

    Raises: InvalidPath, for an absolute path, a ``..`` part, a NUL, an empty or over-long path or name, for a path
    under ``.tmp``, which the sandbox keeps for itself, and for the folder of artifacts itself.
    """
    if "\0" in path:
        raise InvalidPath("a path cannot contain NUL", field=field)
    if path.startswith("/"):
        raise InvalidPath(f'"{path}" is absolute; paths are relative to the work directory', field=field)
    parts = PurePosixPath(path).parts
    if not parts or path.endswith("/"):
        raise InvalidPath(f'"{path}" names no file', field=field)
    if ".." in parts:
        raise InvalidPath(f'"{path}" would leave the work directory', field=field)
    try:
        encoded = [part.encode() for part in parts]
    except UnicodeEncodeError:
        raise InvalidPath("a path must be valid Unicode", field=field) from None
    if len(path.encode()) > PATH_BYTES or any(len(part) > NAME_BYTES for part in encoded):
        raise InvalidPath(f"a path has at most {PATH_BYTES} bytes, each name at most {NAME_BYTES}", field=field)
    if parts[0] == ".tmp":
        raise InvalidPath(f'"{path}" lies under .tmp, which the sandbox keeps for itself', field=field)
    if parts == (FOLDER,):
        raise InvalidPath(f'"{path}" is the folder whose files are kept as artifacts', field=field)
    return "/".join(parts)
