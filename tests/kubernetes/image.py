"""The image in which the tests' programs run: Debian's shell, with the product's runner."""

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

BASH = Recipe(
    "docker.io/runtape/bash:5.2",
    ("bash", "base-files", "coreutils", "dash"),
    ("bash",),
    {"usr/bin/sh": "dash"},
)


def archive() -> Path:
    """Return the archive of the image.  Raises: Unobtainable."""
    with tempfile.TemporaryDirectory(prefix="runtape-image-") as name:
        folder = Path(name) / Path(RUNNER).parent.name
        build(folder)
        content = b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())

        def add(tree: Path) -> None:
            shutil.copytree(folder, tree / folder.name)
            (tree / Path(WORK_DIRECTORY).name).mkdir()

        entry = f"{BASH.entry}-{hashlib.sha256(content).hexdigest()[:16]}"
        return obtained(entry, lambda into: images.build(BASH, SUITE, into, add)) / images.ARCHIVE
