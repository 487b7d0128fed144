"""What the rig has obtained: entries of a folder that outlives the tests.

An entry is made once, by whoever wants it first, and is complete or not there.  `RUNTAPE_RIG` names the folder, which
is ``runtape/rig`` in the user's cache otherwise.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


class Unobtainable(Exception):
    """A part cannot be had on this machine; the message says what is missing and what would help."""


def folder() -> Path:
    """Return the folder of the entries."""
    if named := os.environ.get("RUNTAPE_RIG"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "runtape" / "rig"


def is_there(name: str) -> bool:
    """Whether the entry `name` was made already."""
    return (folder() / name).exists()


def obtained(name: str, make: Callable[[Path], None]) -> Path:
    """Return the entry `name`, which says its version too, after `make` has filled its folder if it was not there.

    Raises: Unobtainable, from `make`, and there is no entry then.
    """
    entry = folder() / name
    if entry.exists():
        return entry
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not entry.exists():
            draft = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=folder()))
            try:
                make(draft)
                draft.rename(entry)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
    return entry
