"""Kubernetes and what it runs containers with: one program of the former that is built here, the latter from Debian."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.rig import debian, store
from tests.rig.kubernetes import images
from tests.rig.store import Unobtainable, obtained

MODULE = Path(__file__).parent / "hyperkube"
PAUSE = Path(__file__).parent / "pause.c"
SUITE = "bookworm"
RUNTIME = ("containerd", "runc", "containernetworking-plugins", "libseccomp2")
TELL_EVERY_S = 30.0

_VERSION = re.search(r"k8s\.io/kubernetes v(1\.(\d+)\.\d+)", (MODULE / "go.mod").read_text())
assert _VERSION is not None
VERSION = _VERSION[1]
_STAMPS = {"gitVersion": f"v{VERSION}", "gitMajor": "1", "gitMinor": _VERSION[2]}
_LINK = " ".join(
    [
        "-s -w",
        *(
            f"-X {package}.{name}={value}"
            for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
            for name, value in _STAMPS.items()
        ),
    ]
)
# Nobody debugs it, and without the debugging information it is built in two thirds of the time.
_BUILD = ["-trimpath", "-gcflags=all=-dwarf=false", f"-ldflags={_LINK}"]


def hyperkube() -> Path:
    """Return the program that is etcd and every component of Kubernetes, after minutes of building if it has to be.

    Raises: Unobtainable.
    """

    def make(folder: Path) -> None:
        if shutil.which("go") is None:
            raise Unobtainable("Kubernetes is built here, which needs Go 1.24 or newer")
        environment = {**os.environ, "CGO_ENABLED": "0"}
        listed = subprocess.run(
            ["go", "list", "-deps", "."], cwd=MODULE, env=environment, capture_output=True, text=True, check=False
        )
        if listed.returncode:
            raise Unobtainable(f"go list: {listed.stderr.strip()[-500:]}")
        _build(folder / "hyperkube", len(listed.stdout.splitlines()), environment)

    return obtained(_built_name(), make) / "hyperkube"


def _built_name() -> str:
    content = b"".join((MODULE / name).read_bytes() for name in ("go.mod", "go.sum", "main.go")) + repr(_BUILD).encode()
    return f"hyperkube-{VERSION}-{hashlib.sha256(content).hexdigest()[:16]}"


def _build(program: Path, packages: int, environment: dict[str, str]) -> None:
    command = ["go", "build", "-v", *_BUILD, "-o", program, "."]
    began_s = told_s = time.monotonic()
    with subprocess.Popen(command, cwd=MODULE, env=environment, stderr=subprocess.PIPE, text=True) as build:
        assert build.stderr is not None
        said: list[str] = []
        for line in build.stderr:
            said.append(line)
            if time.monotonic() - told_s > TELL_EVERY_S:
                told_s = time.monotonic()
                print(
                    f"hyperkube: {len(said)} of {packages} packages after {told_s - began_s:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
    if build.returncode:
        raise Unobtainable(f"go build: {''.join(said).strip()[-500:]}")


def runtime() -> Path:
    """Return the folder that containerd, runc and CNI's plugins are unpacked in.  Raises: Unobtainable."""
    return obtained(_RUNTIME_NAME, lambda folder: debian.unpack(RUNTIME, folder, SUITE))


_RUNTIME_NAME = f"containerd-{SUITE}"


def pause() -> Path:
    """Return the program that does nothing and reaps whom nobody waits for.  Raises: Unobtainable."""

    def make(folder: Path) -> None:
        if shutil.which("cc") is None:
            raise Unobtainable("needs a C compiler; on Debian: apt install gcc libc6-dev")
        done = subprocess.run(
            ["cc", "-static", "-Os", "-s", "-o", folder / "pause", PAUSE], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise Unobtainable(f"cc pause.c: {done.stderr.strip()[-500:]}")

    return obtained(_pause_name(), make) / "pause"


def _pause_name() -> str:
    return f"pause-{hashlib.sha256(PAUSE.read_bytes()).hexdigest()[:16]}"


def image(recipe: images.Recipe) -> Path:
    """Return the archive of an image.  Raises: Unobtainable."""
    return obtained(recipe.entry, lambda folder: images.build(recipe, SUITE, folder)) / images.ARCHIVE


def pause_image() -> Path:
    """Return the archive of the image that every pod's namespaces are held by.  Raises: Unobtainable."""

    def make(folder: Path) -> None:
        tree = folder / "tree"
        tree.mkdir()
        shutil.copy(pause(), tree)
        images.write(tree, folder / images.ARCHIVE, images.PAUSE, {"Entrypoint": ["/pause"], "User": "65535:65535"})
        shutil.rmtree(tree)

    return obtained(f"image-{_pause_name()}", make) / images.ARCHIVE


def obtain() -> None:
    """Get everything that is not there yet.  Raises: Unobtainable."""
    runtime()
    pause_image()
    for recipe in images.RECIPES:
        image(recipe)
    hyperkube()


def missing() -> list[str]:
    """Return the names of what is not there yet."""
    recipes = [recipe.entry for recipe in images.RECIPES]
    names = [_built_name(), _RUNTIME_NAME, _pause_name(), f"image-{_pause_name()}", *recipes]
    return [name for name in names if not store.is_there(name)]
