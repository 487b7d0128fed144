"""The file system that a confined program sees.

Theory of operation.  Mounts live in mount namespaces alone; nothing is mounted or created on the host, so nothing
stays behind.  Once, at its start, the keeper enters a mount namespace of its own and pivots to a small tmpfs of
two folders: ``/proc`` (the host's, which the kernel wants to see before a box may mount its own) and ``/image``,
the finished read-only root of every box: /usr and its kin, interpreters, five device nodes, a synthetic /etc.
The host's files are then out of the keeper's reach too.

Each box inherits a copy of these few mounts, lays its own work directory (a sized tmpfs, with /tmp inside it) and
its own /proc over the image, pivots into it and drops the rest: six calls instead of thirty, and no path of the
host is resolved on behalf of a box.  As the copy crosses a user namespace, the kernel locks every mount in it:
none can be made writable or be lifted, not even by somebody who got capabilities inside.
"""

import contextlib
import os
from collections.abc import Sequence
from typing import Final

from . import linux, wire

_IMAGE: Final = "/image"
_HOST: Final = "/host"
_STAGES: Final = ("/tmp", "/run", "/mnt", "/var")
"""Any folder will do to stand on while pivoting, and is covered for that moment in the keeper's view alone."""
_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_DEVICES: Final = ("null", "zero", "full", "random", "urandom")
_COPIED: Final = ("/etc/ld.so.cache", "/etc/os-release")
_PROC_FLAGS: Final = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
_READ_ONLY: Final = linux.MOUNT_ATTR_RDONLY | linux.MOUNT_ATTR_NOSUID

BOX_UID: Final = 1000
WORK_DIRECTORY: Final = "/box"
TEMPORARY: Final = ".tmp"
"""Name in the work directory of what /tmp shows."""
OUT: Final = "out"
"""Name in the work directory of the folder whose files are kept when the program has ended."""
OWN_INODES: Final = 3
"""Those of a work directory that are not the program's: the folder itself, `TEMPORARY` and `OUT`."""

_ETC: Final = {
    "passwd": f"user:x:{BOX_UID}:{BOX_UID}::{WORK_DIRECTORY}:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    "group": f"user:x:{BOX_UID}:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost runtape\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}


def enter_own_root(
    prefixes: Sequence[str], starters: Sequence[tuple[str, bytes]], layers: str, *, with_run: bool
) -> None:
    """Move the calling keeper, already in its own mount namespace, to a root that holds /proc and the image alone.

    `starters` are (name, content) of the files to show in `wire.STARTERS`, all of them executable.  `layers` is the
    folder to show as `wire.LAYERS`, if any: one mount for all sets of packages, of those that come later too.
    `with_run` asks for an empty folder /run, for boxes to mount something on.
    """
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    stage = next(path for path in _STAGES if os.path.isdir(path))
    linux.mount("keeper", stage, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "size=16m,mode=755")
    for folder in ("proc", "image", "host"):
        os.mkdir(f"{stage}/{folder}")
    linux.pivot_root(stage, stage + _HOST)
    os.chdir("/")
    _bind_proc()
    _build_image(prefixes, starters, layers)
    if with_run:
        os.mkdir(f"{_IMAGE}/run")
    linux.set_mount_attributes(_IMAGE, _READ_ONLY)
    linux.unmount(_HOST)
    os.rmdir(_HOST)
    linux.set_mount_attributes("/", _READ_ONLY | linux.MOUNT_ATTR_NODEV, below=False)


def _bind_proc() -> None:
    try:
        # Without what is mounted inside it (masks of a container engine): real root may have it that way.
        linux.mount(_HOST + "/proc", "/proc", None, linux.MS_BIND)
    except OSError:
        linux.mount(_HOST + "/proc", "/proc", None, linux.MS_BIND | linux.MS_REC)


def _build_image(prefixes: Sequence[str], starters: Sequence[tuple[str, bytes]], layers: str) -> None:
    linux.mount("image", _IMAGE, "tmpfs", linux.MS_NOSUID, "size=16m,mode=755")
    for folder in ("dev", "etc", "proc", "tmp", WORK_DIRECTORY[1:], wire.STARTERS[1:]):
        os.mkdir(f"{_IMAGE}/{folder}")
    for path in _SYSTEM:
        if os.path.islink(_HOST + path):
            os.symlink(os.readlink(_HOST + path), _IMAGE + path)
        elif os.path.isdir(_HOST + path):
            _bind_folder(path)
    for path in prefixes:
        _bind_folder(path)
    for name in _DEVICES:
        _write(f"dev/{name}", b"")
        target = f"{_IMAGE}/dev/{name}"
        linux.mount(f"{_HOST}/dev/{name}", target, None, linux.MS_BIND)
        linux.set_mount_attributes(target, _READ_ONLY | linux.MOUNT_ATTR_NOEXEC)
    for name, target in (("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        os.symlink(f"/proc/self/{target}", f"{_IMAGE}/dev/{name}")
    os.symlink("/tmp", f"{_IMAGE}/dev/shm")
    for name, text in _ETC.items():
        _write(f"etc/{name}", text.encode())
    for path in _COPIED:
        if os.path.isfile(_HOST + path):
            with open(_HOST + path, "rb") as file:
                _write(path[1:], file.read())
    if os.path.isdir(_HOST + "/etc/alternatives"):
        _bind_folder("/etc/alternatives")
    if layers:
        _bind_folder(layers, wire.LAYERS)
    for name, content in starters:
        os.makedirs(os.path.dirname(f"{_IMAGE}{wire.STARTERS}/{name}"), exist_ok=True)
        _write(f"{wire.STARTERS[1:]}/{name}", content)
        os.chmod(f"{_IMAGE}{wire.STARTERS}/{name}", 0o555)  # noqa: S103 - nobody may write, here least of all


def _bind_folder(path: str, shown_as: str | None = None) -> None:
    target = _IMAGE + (shown_as or path)
    os.makedirs(target, mode=0o755, exist_ok=True)
    linux.mount(_HOST + path, target, None, linux.MS_BIND | linux.MS_REC)
    linux.set_mount_attributes(target, _READ_ONLY | linux.MOUNT_ATTR_NODEV)


def _write(path: str, content: bytes) -> None:
    with open(f"{_IMAGE}/{path}", "wb") as file:
        file.write(content)


def enter_image() -> None:
    """Move the calling nursery, in fresh namespaces, to the image, with a /proc of its own pid namespace.

    Where the kernel refuses a fresh /proc, as in a container whose own is masked, it stays an empty folder, and no box
    can be made that way.
    """
    # A mount that came with the namespace is locked in its place; only a new bind of it can become the root.
    linux.mount(_IMAGE, _IMAGE, None, linux.MS_BIND | linux.MS_REC)
    linux.mount("proc", f"{_IMAGE}/proc", "proc", _PROC_FLAGS)
    _pivot_to_image()


def enter_box(disk_bytes: int, inodes: int) -> None:
    """Move the calling box, in fresh namespaces, to the image with its own work directory, /tmp and /proc.

    Ends in the work directory.  /proc stays an empty read-only folder where the kernel refuses a fresh one, as in
    a container whose own /proc is masked.
    """
    linux.mount(_IMAGE, _IMAGE, None, linux.MS_BIND | linux.MS_REC)  # as above
    work = _IMAGE + WORK_DIRECTORY
    options = f"size={disk_bytes},nr_inodes={inodes},mode=700"
    linux.mount("box", work, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, options)
    os.mkdir(f"{work}/{TEMPORARY}", 0o700)
    os.mkdir(f"{work}/{OUT}", 0o755)
    linux.mount(f"{work}/{TEMPORARY}", f"{_IMAGE}/tmp", None, linux.MS_BIND)
    with contextlib.suppress(PermissionError):
        linux.mount("proc", f"{_IMAGE}/proc", "proc", _PROC_FLAGS, "hidepid=2,subset=pid")
    _pivot_to_image()
    os.chdir(WORK_DIRECTORY)


def _pivot_to_image() -> None:
    os.chdir(_IMAGE)
    linux.pivot_root(".", ".")
    linux.unmount(".")
    os.chdir("/")
