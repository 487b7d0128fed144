"""Images of containers, made of Debian's packages without a container: a tree of files, and the archive of it.

The packages are laid out as dpkg(1) unpacks them; none of their scripts runs, and what those would have made is in
the recipe.  `write` puts a tree into one layer, in the layout of the Open Container Initiative (image-spec v1.1,
image-layout.md), which containerd imports.
"""

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.rig import debian

ARCHIVE = "image.tar"
PAUSE = "rig.invalid/pause:1"

_MERGED = ("bin", "sbin", "lib", "lib64")
_EMPTY = {"dev": 0o755, "proc": 0o755, "sys": 0o755, "run": 0o755, "root": 0o700, "home": 0o755, "tmp": 0o1777}
_READ_BY_NOBODY = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/bug")
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_PLATFORM = {"architecture": "amd64", "os": "linux"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """An image; `links` are symbolic links by path, and `command` is what runs when a pod says nothing.

    `reference` is what pods call it: the published image that it stands for.  It is not that, and holds less.
    """

    reference: str
    packages: tuple[str, ...]
    command: tuple[str, ...]
    links: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def entry(self) -> str:
        """Its name in the store, which changes with the recipe."""
        short = self.reference.rpartition("/")[2].replace(":", "-")
        return f"image-{short}-{hashlib.sha256(repr(self).encode()).hexdigest()[:16]}"


_SHELL = ("base-files", "coreutils", "dash")
PYTHON = Recipe(
    "docker.io/library/python:3.11-slim-bookworm",
    ("python3", *_SHELL, "tzdata"),
    ("python",),
    {"usr/bin/sh": "dash", "usr/local/bin/python": "../../bin/python3.11"},
    {"LANG": "C.UTF-8"},
)
NODE = Recipe(
    "docker.io/library/node:18-bookworm-slim",
    ("nodejs", *_SHELL),
    ("node",),
    {"usr/bin/sh": "dash"},
)
RECIPES = (PYTHON, NODE)


def build(recipe: Recipe, suite: str, folder: Path, add: Callable[[Path], object] = lambda _: None) -> None:
    """Make the image's archive in `folder`, with what `add` lays into its tree.  Raises: Unobtainable."""
    tree = folder / "tree"
    tree.mkdir()
    debian.unpack(recipe.packages, tree, suite, whole=True)
    for name in _MERGED:
        (tree / "usr" / name).mkdir(parents=True, exist_ok=True)
        if (tree / name).is_dir():
            _merge(tree / name, tree / "usr" / name)
        (tree / name).symlink_to(f"usr/{name}")
    for name in _READ_BY_NOBODY:
        shutil.rmtree(tree / name, ignore_errors=True)
    for name, mode in _EMPTY.items():
        (tree / name).mkdir(exist_ok=True)
        (tree / name).chmod(mode)
    for name, content in _FILES.items():
        (tree / name).write_text(content)
    for name, target in recipe.links.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).unlink(missing_ok=True)
        (tree / name).symlink_to(target)
    add(tree)
    environment = [f"{name}={value}" for name, value in {"PATH": _PATH, **recipe.environment}.items()]
    write(tree, folder / ARCHIVE, recipe.reference, {"Cmd": recipe.command, "Env": environment, "WorkingDir": "/"})
    shutil.rmtree(tree)


def _merge(source: Path, target: Path) -> None:
    """Move what is in `source` to where a merged /usr has it."""
    for path in source.iterdir():
        there = target / path.name
        if path.is_dir() and not path.is_symlink() and there.is_dir():
            _merge(path, there)
        else:
            path.rename(there)
    source.rmdir()


def write(tree: Path, archive: Path, reference: str, config: Mapping[str, Any]) -> None:
    """Write the image `reference` of one layer, the files below `tree`, all of which belong to root."""
    layer = archive.with_suffix(".layer")
    with tarfile.open(layer, "w", format=tarfile.GNU_FORMAT) as content:
        for name in sorted(os.listdir(tree)):
            content.add(tree / name, name, filter=_of_root)
    with layer.open("rb") as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    layers = {"type": "layers", "diff_ids": [digest]}
    settings = json.dumps({**_PLATFORM, "config": config, "rootfs": layers}).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _descriptor(_CONFIG, settings),
            "layers": [{"mediaType": _LAYER, "digest": digest, "size": layer.stat().st_size}],
        }
    ).encode()
    listed = {
        **_descriptor(_MANIFEST, manifest),
        "platform": _PLATFORM,
        "annotations": {"io.containerd.image.name": reference},
    }
    with tarfile.open(archive, "w") as image:
        _add(image, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(image, "index.json", json.dumps({"schemaVersion": 2, "manifests": [listed]}).encode())
        for blob in (settings, manifest):
            _add(image, _blob(_digest(blob)), blob)
        image.add(layer, _blob(digest), filter=_of_root)
    layer.unlink()


def _of_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    return entry


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _descriptor(media_type: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(blob), "size": len(blob)}


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
