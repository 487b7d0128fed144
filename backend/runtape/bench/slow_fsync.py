"""A slower disk: a shim that is preloaded into the server and adds a pause to each fsync."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from runtape.bench.errors import BenchError

_SOURCE = Path(__file__).with_suffix(".c")


def environment(folder: Path, pause_ms: float) -> Mapping[str, str]:
    """Build the shim in `folder` and return what preloads it.  Raises: BenchError."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise BenchError("--slow-fsync needs a C compiler; install gcc or clang")
    library = folder / "slow_fsync.so"
    built = subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode != 0:
        raise BenchError(f"{compiler} could not build the fsync shim: {built.stderr.strip()[-400:]}")
    preload = ":".join(filter(None, (str(library), os.environ.get("LD_PRELOAD"))))
    return {"LD_PRELOAD": preload, "RUNTAPE_BENCH_SYNC_US": str(round(pause_ms * 1000))}
