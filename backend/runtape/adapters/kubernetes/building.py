"""Makes the folder ``/runtape`` of an image in which programs run: the runner, its filter, starters, and the probe.

``python -m runtape.adapters.kubernetes.building FOLDER`` fills a folder; it needs gcc and a static C library.
"""

import argparse
import platform
import subprocess
from pathlib import Path
from typing import Final

from runtape.adapters.sandbox.keeper import seccomp
from runtape.adapters.sandbox.runtimes import starters

_HERE: Final = Path(__file__).parent
_NATIVE: Final = _HERE.parent / "sandbox" / "native"
_SOURCES: Final = (
    *sorted((_HERE / "runner").glob("*.c")),
    *(_NATIVE / name for name in ("collect.c", "confine.c", "runner.c")),
)
_PROBE: Final = (_HERE / "probe" / "probe.c",)
_FLAGS: Final = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2", "-static")


def build(folder: Path) -> None:
    """Fill `folder`, which is made.  Raises: subprocess.CalledProcessError, when the compiler has said why not."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "filter.bpf").write_bytes(seccomp.assemble(platform.machine()))
    for name, content in starters():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    for name, sources in (("pod", _SOURCES), ("probe", _PROBE)):
        subprocess.run(["gcc", *_FLAGS, f"-I{_NATIVE}", "-o", folder / name, *sources], check=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="make the folder /runtape of an image")
    parser.add_argument("folder", type=Path)
    build(parser.parse_args().folder)
