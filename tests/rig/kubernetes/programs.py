"""Kubernetes and what it runs containers with: programs of the former that are built here, the latter from Debian."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.rig import debian, store
from tests.rig.kubernetes import images
from tests.rig.store import Unobtainable, obtained

PAUSE = Path(__file__).parent / "pause.c"
SUITE = "bookworm"
RUNTIME = ("containerd", "runc", "containernetworking-plugins", "libseccomp2")
TELL_EVERY_S = 30.0
LEAST_GO = (1, 24)
COLLECT_AT = "400"
"""How much a compiler's heap may grow by, in percent, before it is collected: a fifth of the processor's time less than
with 100, for half as much memory again."""


@dataclass(frozen=True, slots=True)
class GoProgram:
    """A program of a Go module that lies here, with the versions and sums of all that it is made of."""

    name: str
    version: str
    package: str
    """What is built, as the module sees it."""
    link: str = "-s -w"
    """Options of the linker."""

    @property
    def module(self) -> Path:
        """The folder of the module."""
        return Path(__file__).parent / self.name

    @property
    def entry(self) -> str:
        """Its name in the store, which changes with whatever it is built from."""
        files = sorted(path for path in self.module.iterdir() if path.is_file())
        content = b"".join(path.read_bytes() for path in files) + repr(self._options()).encode()
        return f"{self.name}-{self.version}-{hashlib.sha256(content).hexdigest()[:16]}"

    def path(self) -> Path:
        """Return the program, after minutes of building if it has to be built.  Raises: Unobtainable."""
        return obtained(self.entry, self._make) / self.name

    def _options(self) -> list[str]:
        # Nobody debugs it, and without the debugging information it is built in two thirds of the time.
        return ["-trimpath", "-gcflags=all=-dwarf=false", f"-ldflags={self.link}"]

    def _make(self, folder: Path) -> None:
        go = _go()
        environment = {**os.environ, "CGO_ENABLED": "0", "GOGC": COLLECT_AT}
        listed = subprocess.run(
            [go, "list", "-deps", self.package],
            cwd=self.module,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if listed.returncode:
            raise Unobtainable(f"go list: {listed.stderr.strip()[-500:]}")
        self._build(go, folder / self.name, len(listed.stdout.splitlines()), environment)

    def _build(self, go: str, program: Path, packages: int, environment: dict[str, str]) -> None:
        command = [go, "build", "-v", *self._options(), "-o", program, self.package]
        began_s = told_s = time.monotonic()
        with subprocess.Popen(command, cwd=self.module, env=environment, stderr=subprocess.PIPE, text=True) as build:
            assert build.stderr is not None
            said: list[str] = []
            for line in build.stderr:
                said.append(line)
                if time.monotonic() - told_s > TELL_EVERY_S:
                    told_s = time.monotonic()
                    print(
                        f"{self.name}: {len(said)} of {packages} packages after {told_s - began_s:.0f} s",
                        file=sys.stderr,
                        flush=True,
                    )
        if build.returncode:
            raise Unobtainable(f"go build: {''.join(said).strip()[-500:]}")


def _go() -> str:
    """Return a Go that is new enough, the first of those on PATH and where its own archive puts it."""
    folders = [*os.get_exec_path(), "/usr/local/go/bin"]
    for found in filter(None, (shutil.which("go", path=folder) for folder in folders)):
        said = subprocess.run([found, "version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"go(\d+)\.(\d+)", said)
        if version and (int(version[1]), int(version[2])) >= LEAST_GO:
            return found
    raise Unobtainable(f"Kubernetes is built here, which needs Go {LEAST_GO[0]}.{LEAST_GO[1]} or newer on PATH")


def _version_in(module: str, of: str) -> str:
    found = re.search(rf"{re.escape(of)} v(\d+\.\d+\.\d+)", (Path(__file__).parent / module / "go.mod").read_text())
    assert found is not None
    return found[1]


VERSION = _version_in("hyperkube", "k8s.io/kubernetes")
_STAMPS = {"gitVersion": f"v{VERSION}", "gitMajor": "1", "gitMinor": VERSION.split(".")[1]}
HYPERKUBE = GoProgram(
    "hyperkube",
    VERSION,
    ".",
    " ".join(
        [
            "-s -w",
            *(
                f"-X {package}.{name}={value}"
                for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
                for name, value in _STAMPS.items()
            ),
        ]
    ),
)
"""Etcd and every component of Kubernetes, and kubectl."""
KWOK = GoProgram("kwok", _version_in("kwok", "sigs.k8s.io/kwok"), "sigs.k8s.io/kwok/cmd/kwok")
"""Plays the kubelet of nodes that are not there."""


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
    HYPERKUBE.path()


def missing() -> list[str]:
    """Return the names of what is not there yet."""
    recipes = [recipe.entry for recipe in images.RECIPES]
    names = [HYPERKUBE.entry, _RUNTIME_NAME, _pause_name(), f"image-{_pause_name()}", *recipes]
    return [name for name in names if not store.is_there(name)]
