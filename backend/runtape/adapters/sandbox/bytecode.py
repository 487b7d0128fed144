"""Gives a set of packages its bytecode, which is made in a box.

A read-only layer without it would be compiled by every run again: `import pandas` 2.3 s instead of 0.6.  Compiling is
what the interpreter does with a hostile text, so it is done by one in a box (starters/compile_layer.py), which prints
what it made.  Out here it is bytes and no more: they are told apart by length, never loaded, and each goes beside the
module that we named ourselves; no path comes out of the box.  A text that subverts the compiler has by that only
decided on its own bytecode, or on that of its set, which runs with it in any case.
"""

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from runtape.domain.tape import Stream

from .layers import on_disk
from .output import Output

_FRAME: Final = struct.Struct("<II")
_MODULE_BYTES: Final = 32 << 20
"""Greatest bytecode of one module that is taken."""


class BadFrame(Exception):
    """The box prints something that is no bytecode of a module that we asked for."""


class BytecodeOutput(Output):
    """What the compiling box prints; its complaints are nobody's."""

    def append(self, stream: Stream, t_ns: int, piece: bytes) -> bool:
        return stream is Stream.STDERR or super().append(stream, t_ns, piece)

    def take_bytes(self) -> bytes:
        """Return what was printed since the last call, and keep nothing of it."""
        taken = b"".join(record.data for record in self.take(0))
        self._records.clear()
        return taken


class BytecodeWriter:
    """Writes bytecode beside `modules` of a layer that nobody uses yet; `feed` blocks."""

    def __init__(self, folder: Path, modules: Sequence[str], version: str) -> None:
        self._folder = folder
        self._modules = modules
        self._tag = f"cpython-{version.replace('.', '')}"
        self._missing = set(range(len(modules)))
        self._buffer = bytearray()
        self.size_bytes = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the box.  Raises: BadFrame; OSError."""
        self._buffer += data
        for place, content in self._frames():
            if place not in self._missing:
                raise BadFrame(f"module {place} is none, or comes twice")
            self._missing.discard(place)
            self._write(self._modules[place], content)

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        at = 0
        while len(self._buffer) - at >= _FRAME.size:
            place, length = _FRAME.unpack_from(self._buffer, at)
            if length > _MODULE_BYTES:
                raise BadFrame(f"module {place} has {length} bytes")
            end = at + _FRAME.size + length
            if len(self._buffer) < end:
                break
            yield place, bytes(self._buffer[at + _FRAME.size : end])
            at = end
        del self._buffer[:at]

    def _write(self, module: str, content: bytes) -> None:
        folder, _, name = module.rpartition("/")
        cache = self._folder / folder / "__pycache__"
        with contextlib.suppress(FileExistsError):
            cache.mkdir(mode=0o755)
            cache.chmod(0o755)
        path = cache / f"{name.removesuffix('.py')}.{self._tag}.pyc"
        path.unlink(missing_ok=True)  # a wheel's own: a link to the cache of wheels
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with open(fd, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), 0o644)
        self.size_bytes += on_disk(len(content))
