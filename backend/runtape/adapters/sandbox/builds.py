"""What compilers have made, kept by content: the same script with the same files is compiled once.

Shape: one file per build in a folder of the service's own.  Its name is a digest of all that the compiler saw (its
own binary as it lies on disk, its argv and environment, the script, every file), its content is

    32 bytes SHA-256 of what follows | 8 bytes length of the text | the compiler's text | the program

A program comes out of a box, so it is bytes and no more: it is never executed, unpacked or parsed out here, and its
name is none of its making.  Whoever gets to run it has handed in the very source that it was made of.

A file is written under another name and moved into place.  It is not synced: what a power loss leaves of it does not
fit its digest, counts as absent and is removed.  The time of its last use is its mtime; the longest unused go first
when all together grow beyond their bound.
"""

import contextlib
import hashlib
import os
import platform
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtape.domain.source import Source

from .runtimes import InstalledRuntime, identity

_DIGEST_BYTES: Final = 32
_LENGTH_BYTES: Final = 8
_UNFINISHED: Final = ".part"


@dataclass(frozen=True, slots=True)
class Build:
    """What came of compiling."""

    program: bytes
    text: bytes
    """What the compiler said, such as warnings: shown again when the build is used again."""


class Builds:
    """The builds in one folder, which nobody else writes to.  Every method does blocking I/O; any thread may call."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes

    def open(self) -> None:
        """Remove what a crash has left unfinished; the folder itself is made for the first build."""
        for path in self._folder.glob(f"*{_UNFINISHED}"):
            path.unlink(missing_ok=True)

    def load(self, name: str) -> Build | None:
        """Return the build of that name, or None when there is none or it is damaged."""
        path = self._folder / name
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        digest, rest = content[:_DIGEST_BYTES], memoryview(content)[_DIGEST_BYTES:]
        if hashlib.sha256(rest).digest() != digest:
            path.unlink(missing_ok=True)
            return None
        length = int.from_bytes(rest[:_LENGTH_BYTES], "big")
        text_end = _LENGTH_BYTES + length
        return Build(program=bytes(rest[text_end:]), text=bytes(rest[_LENGTH_BYTES:text_end]))

    def store(self, name: str, build: Build) -> None:
        """Keep `build` under `name`, at the cost of the longest unused ones.  Raises: OSError."""
        rest = len(build.text).to_bytes(_LENGTH_BYTES, "big") + build.text + build.program
        self._folder.mkdir(mode=0o700, exist_ok=True)
        unfinished = self._folder / f"{secrets.token_hex(8)}{_UNFINISHED}"
        try:
            unfinished.write_bytes(hashlib.sha256(rest).digest() + rest)
            unfinished.replace(self._folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
        self._evict()

    def _evict(self) -> None:
        """Remove what was unused for longest until the rest fits the bound; on disk each takes whole blocks."""
        entries: list[tuple[int, int, str]] = []
        with os.scandir(self._folder) as found:
            for entry in found:
                with contextlib.suppress(FileNotFoundError):
                    state = entry.stat(follow_symlinks=False)
                    entries.append((state.st_mtime_ns, state.st_blocks * 512, entry.path))
        excess_bytes = sum(size_bytes for _, size_bytes, _ in entries) - self._limit_bytes
        for _, size_bytes, path in sorted(entries):
            if excess_bytes <= 0:
                return
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            excess_bytes -= size_bytes


def build_name(runtime: InstalledRuntime, source: Source) -> str:
    """Return the name of what `runtime` makes of `source`: equal only when its compiler sees the same in all."""
    parts = [
        *(runtime.runtime.lang, runtime.runtime.version, platform.machine()),
        *(runtime.binary, identity(runtime.binary)),
        *(str(len(runtime.compile)), *runtime.compile),
        *(str(len(runtime.env)), *(text for pair in runtime.env for text in pair)),
        source.script,
    ]
    digest = hashlib.sha256()
    for content in (
        *(part.encode("utf-8", "surrogatepass") for part in parts),
        *(content for file in source.files for content in (file.path.encode(), file.content)),
    ):
        digest.update(len(content).to_bytes(_LENGTH_BYTES, "big"))
        digest.update(content)
    return digest.hexdigest()
