"""Builds the C programs of native/, which make boxes; without a compiler the keeper makes them itself, slower.

Built once per content of the sources, mostly when the environment is made (``python -m`` this module), and put below
the Python environment, or below the data folder where that is not ours to write to.  What is there already is used as
it is: whoever may write there may change this package as well.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger(__name__)

_SOURCES: Final = Path(__file__).parent / "native"
_FLAGS: Final = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2")
_LIBRARY_SOURCES: Final = ("zygote.c", "runner.c", "confine.c")
_TIMEOUT_S: Final = 60.0


def compiler() -> str | None:
    """Return the path of the C compiler: that of $CC, or the system's."""
    return shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc") or shutil.which("clang")


def built(data_dir: Path) -> Path | None:
    """Return the folder with the programs, after building them if need be; None where they cannot be had.

    Blocks for about a second when it builds.
    """
    name = f"runtape-native-{_digest()}"
    homes = [Path(sys.prefix) / "lib", data_dir]
    for home in homes:
        if (home / name).is_dir():
            return home / name
    command = compiler()
    if command is None:
        return None
    home = next(home for home in homes if os.access(home, os.W_OK) or home == data_dir)
    home.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=home) as stage:
            _build(command, Path(stage))
            finished = Path(stage) / "programs"
            try:
                finished.rename(home / name)
            except OSError:
                if not (home / name).is_dir():  # somebody else has built the same
                    raise
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).splitlines()
        reason = next((line for line in lines if "error" in line), lines[-1])
        log.warning("sandbox.build_failed", compiler=command, reason=reason)
        return None
    return home / name


def _digest() -> str:
    digest = hashlib.sha256("\0".join(_FLAGS).encode())
    for path in sorted(_SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _build(command: str, stage: Path) -> None:
    programs = stage / "programs"
    programs.mkdir(mode=0o755)
    sources = sorted(str(path) for path in _SOURCES.glob("*.c") if path.name != "zygote.c")
    nursery, library = str(programs / "nursery"), str(programs / "zygote.so")
    try:
        _compile(command, "-static", "-o", nursery, *sources)
    except subprocess.CalledProcessError:
        _compile(command, "-o", nursery, *sources)  # no static libc is installed
    _compile(command, "-shared", "-fPIC", "-o", library, *(str(_SOURCES / name) for name in _LIBRARY_SOURCES))


def _compile(command: str, *arguments: str) -> None:
    subprocess.run(
        [command, *_FLAGS, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=True,
    )


if __name__ == "__main__":
    built(Path(sys.prefix) / "lib")
