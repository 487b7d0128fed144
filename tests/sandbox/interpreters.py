"""An interpreter with packages of a test's own: the system's, copied to a prefix that has other libraries."""

import functools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uv

from runtape.adapters.sandbox.runtimes import InstalledRuntime, detect


@functools.cache
def why_not_installable(package: str) -> str | None:
    """Return why there can be no interpreter with `package`, or None when there can."""
    runtime = _of_the_system()
    if runtime is None:
        return "no Python below /usr"
    with tempfile.TemporaryDirectory() as folder:
        done = _install(runtime, Path(folder), "--dry-run", package)
    return None if done.returncode == 0 else f"{package} cannot be had from the index"


@contextmanager
def interpreter_with(*packages: str) -> Iterator[Path]:
    """Make a prefix whose interpreter has `packages`; not below /tmp, which boxes have for themselves."""
    runtime = _of_the_system()
    assert runtime is not None
    name = f"python{runtime.runtime.version}"
    with tempfile.TemporaryDirectory(prefix="runtape-test-", dir="/var/tmp") as folder:
        prefix = Path(folder)
        prefix.chmod(0o755)
        library = prefix / "lib" / name
        for made in (prefix / "bin", library):
            made.mkdir(parents=True)
        shutil.copy(runtime.binary, prefix / "bin" / name)
        for entry in Path(runtime.prefix, "lib", name).iterdir():
            if entry.name != "site-packages":
                (library / entry.name).symlink_to(entry)
        done = _install(runtime, library / "site-packages", *packages)
        assert done.returncode == 0, done.stderr
        yield prefix


def _of_the_system() -> InstalledRuntime | None:
    found = (each for each in detect()[0] if each.runtime.lang == "python" and each.shown_prefix is None)
    return next(found, None)


def _install(runtime: InstalledRuntime, target: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [uv.find_uv_bin(), "pip", "install", "-q", "--compile-bytecode", "--python", runtime.binary]
    command += ["--only-binary", ":all:", "--target", str(target), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
