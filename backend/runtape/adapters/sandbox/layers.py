"""Sets of packages that were installed, kept by what was asked for.

Shape: two folders of the service's own.

    layers/<name>/      one set as it was installed, of regular files and folders alone
    sets/<digest>       JSON: the name of the layer, its size, when it was resolved, and in which boot of the machine;
                        mtime: about when it was last used

``<digest>`` is of the requirements, the interpreter and the index; ``<name>`` is 128 random bits.

Who may see what.  `layers` is shown read-only in every box by one mount that is made before there is any layer, so a
run that finds its set here pays for no mount.  Its mode lets nobody list it, its owner (whom the programs of an
unprivileged service are) included, and a read-only mount lets nobody change that; so a program knows the layers whose
names it was told, and no other.

Crashes.  A layer is written under its final name, and exists once its set says so: that file is moved into place when
all else is done.  Nothing is synced, as the disk may have more to do than this: whatever dies, files stay in the order
of their writing as long as the kernel lives, and a layer of another boot is not used.  It is removed with all that
no set names when the sandbox opens, while no program runs.

A layer goes when sets together grow beyond their bound, longest unused first, but never while a run has it; or when
its set was resolved anew.
"""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from .keeper import wire

log = structlog.get_logger(__name__)

_UNFINISHED: Final = ".part"
_UNLISTED: Final = 0o311
_LISTED: Final = 0o700
_FILES: Final = 200_000
_BLOCK_BYTES: Final = 4096
_BETWEEN_NOTES_S: Final = 60.0


class BadLayer(Exception):
    """What was installed is not of the shape that layers have; the reason is for people."""

    def __init__(self, reason: str, *, too_large: bool = False) -> None:
        super().__init__(reason)
        self.too_large = too_large


@dataclass(slots=True, eq=False)
class Layer:
    """One set of packages; whoever has it from `Layers` gives it back by `release`."""

    digest: str
    name: str
    size_bytes: int
    resolved_at_s: float
    """Unix time."""
    used_at_s: float
    noted_at_s: float
    """When that was last written down."""
    users: int = 0
    replaced: bool = False

    @property
    def folder(self) -> str:
        """The path in a box."""
        return f"{wire.LAYERS}/{self.name}"


@dataclass(frozen=True, slots=True)
class Survey:
    """What is in a folder: its size, and the Python modules worth compiling, relative and sorted."""

    size_bytes: int
    modules: tuple[str, ...]


class Layers:
    """The layers in one folder, which nobody else writes to; to be used in one event loop."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder = folder
        self._sets = folder / "sets"
        self._limit_bytes = limit_bytes
        self._kept: dict[str, Layer] = {}
        self._opened = False
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self.shown = folder / "layers"
        """The folder to show in boxes; there after `prepare`."""

    def prepare(self) -> None:
        """Make the folders; blocks.  An earlier service may still be there."""
        for each in (self._folder, self._sets):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.shown.mkdir(mode=_UNLISTED, exist_ok=True)
        self.shown.chmod(_UNLISTED)

    def open(self) -> None:
        """Find what is kept, and remove what a crash has left; blocks.  No program may run, of whatever service."""
        self._opened = True
        for path in self._sets.iterdir():
            layer = None if path.name.endswith(_UNFINISHED) else _read(path, self._boot)
            if layer is None or not (self.shown / layer.name).is_dir():
                path.unlink()
            else:
                self._kept[path.name] = layer
        names = {layer.name for layer in self._kept.values()}
        self.shown.chmod(_LISTED)
        try:
            for name in os.listdir(self.shown):
                if name not in names:
                    shutil.rmtree(self.shown / name, ignore_errors=True)
        finally:
            self.shown.chmod(_UNLISTED)

    def close(self) -> None:
        """Let whoever owns the data folder list it again; every program is dead."""
        if self._opened:
            self.shown.chmod(_LISTED)

    def find(self, digest: str) -> Layer | None:
        """Return the layer of a set, however old."""
        return self._kept.get(digest)

    def hold(self, layer: Layer) -> Layer:
        """Keep `layer` from being removed until `release`."""
        layer.users += 1
        layer.used_at_s = now_s = time.time()
        if now_s > layer.noted_at_s + _BETWEEN_NOTES_S:
            layer.noted_at_s = now_s
            asyncio.get_running_loop().run_in_executor(None, _touch, self._sets / layer.digest)
        return layer

    def put_off(self, layer: Layer, resolved_at_s: float) -> None:
        """Take `layer` for one that was resolved at that time, until the service ends."""
        layer.resolved_at_s = resolved_at_s

    def release(self, layer: Layer) -> None:
        """Say that one who held `layer` needs it no more."""
        layer.users -= 1
        if layer.replaced and not layer.users:
            asyncio.get_running_loop().run_in_executor(None, self.discard, layer.name)

    def begin(self) -> tuple[str, Path]:
        """Return the name and the empty folder of a new layer."""
        name = secrets.token_hex(16)
        folder = self.shown / name
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)
        return name, folder

    def discard(self, name: str) -> None:
        """Remove a layer that no set names; blocks."""
        shutil.rmtree(self.shown / name, ignore_errors=True)

    async def keep(self, digest: str, name: str, size_bytes: int) -> Layer:
        """Make the finished layer `name` that of a set, and return it held; others may go for it.  Raises: OSError."""
        now_s = time.time()
        layer = Layer(digest, name, size_bytes, now_s, now_s, now_s, users=1)
        await asyncio.to_thread(self._write, layer)
        former, self._kept[digest] = self._kept.get(digest), layer
        if former is not None:
            self._let_go(former)
        excess_bytes = sum(each.size_bytes for each in self._kept.values()) - self._limit_bytes
        for each in sorted(self._kept.values(), key=lambda each: each.used_at_s):
            if excess_bytes > 0 and not each.users:
                excess_bytes -= each.size_bytes
                del self._kept[each.digest]
                (self._sets / each.digest).unlink(missing_ok=True)
                self._let_go(each)
        return layer

    def _let_go(self, layer: Layer) -> None:
        layer.replaced = True
        layer.users += 1
        self.release(layer)

    def _write(self, layer: Layer) -> None:
        unfinished = self._sets / f"{layer.name}{_UNFINISHED}"
        content = {"layer": layer.name, "size_bytes": layer.size_bytes, "resolved_at_s": layer.resolved_at_s}
        unfinished.write_text(json.dumps({**content, "boot": self._boot}))
        unfinished.replace(self._sets / layer.digest)


def survey(folder: Path, limit_bytes: int) -> Survey:
    """Look at all that was installed in `folder`, and let every user read it; blocks.

    Nobody writes there any more.  Raises: BadLayer, for what is neither file nor folder, and beyond the limits.
    """
    size_bytes, count = 0, 0
    modules: list[str] = []
    for path, folders, names in os.walk(folder, onerror=_raise):
        for name in (*folders, *names):
            inner = os.path.join(path, name)
            state = os.lstat(inner)
            relative = os.path.relpath(inner, folder)
            if stat.S_ISDIR(state.st_mode):
                os.chmod(inner, 0o755)  # noqa: S103 - under root the programs are other users
            elif stat.S_ISREG(state.st_mode):
                os.chmod(inner, 0o755 if state.st_mode & 0o100 else 0o644)
                if name.endswith(".py") and _worth_compiling(relative):
                    modules.append(relative)
            else:
                raise BadLayer(f"{relative} is neither a file nor a folder")
            size_bytes += on_disk(state.st_size)
            count += 1
            if size_bytes > limit_bytes or count > _FILES:
                raise BadLayer("it is too large", too_large=True)
    return Survey(size_bytes, tuple(sorted(modules)))


def on_disk(size_bytes: int) -> int:
    """Return what a file of that size takes, in whole blocks; a hole counts as if it were filled."""
    return -(-size_bytes // _BLOCK_BYTES) * _BLOCK_BYTES


def _raise(error: OSError) -> None:
    raise error


def _worth_compiling(path: str) -> bool:
    """Whether programs import it: the tests that packages bring along are half of some."""
    return not {"test", "tests"}.intersection(path.split("/")[:-1])


def _read(path: Path, boot: str) -> Layer | None:
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        used_at_s = path.stat().st_mtime
        if content["boot"] != boot:
            return None
        return Layer(path.name, content["layer"], content["size_bytes"], content["resolved_at_s"], used_at_s, used_at_s)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):  # it may have gone meanwhile
        os.utime(path)
