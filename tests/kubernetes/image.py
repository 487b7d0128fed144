"""The images in which the tests' programs run: Debian's interpreters, with the product's runner."""

import hashlib
import shutil
import tempfile
from pathlib import Path

from runtape.adapters.kubernetes.building import build
from runtape.adapters.kubernetes.manifests import RUNNER, WORK_DIRECTORY
from tests.rig.kubernetes import images
from tests.rig.kubernetes.images import Recipe
from tests.rig.kubernetes.programs import SUITE
from tests.rig.store import obtained

_SHELL = ("bash", "base-files", "coreutils", "dash")
_SH = {"usr/bin/sh": "dash"}
BASH = Recipe("docker.io/runtape/bash:5.2", _SHELL, ("bash",), _SH)
PYTHON = Recipe("docker.io/runtape/python:3.11", ("python3", "tzdata", *_SHELL), ("bash",), _SH)
NODE = Recipe("docker.io/runtape/node:18", ("nodejs", *_SHELL), ("bash",), _SH)
BINARIES = {
    "bash:5.2": (BASH, "/usr/bin/bash"),
    "python:3.11": (PYTHON, "/usr/bin/python3.11"),
    "node:18": (NODE, "/usr/bin/node"),
}
"""The images with their executables, by language and version."""


def archive(recipe: Recipe) -> Path:
    """Return the archive of the image.  Raises: Unobtainable."""
    with tempfile.TemporaryDirectory(prefix="runtape-image-") as name:
        folder = Path(name) / Path(RUNNER).parent.name
        build(folder)
        content = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())

        def add(tree: Path) -> None:
            shutil.copytree(folder, tree / folder.name)
            (tree / Path(WORK_DIRECTORY).name).mkdir()

        entry = f"{recipe.entry}-{hashlib.sha256(content).hexdigest()[:16]}"
        return obtained(entry, lambda into: images.build(recipe, SUITE, into, add)) / images.ARCHIVE
