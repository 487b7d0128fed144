"""Who ran here before: the worker that this process follows, which is known to be dead.

A worker writes its id into a file of its data folder, and holds a lock on it as long as it lives.  Who gets the lock
reads whose place it takes: the kernel gives the lock back when a process is gone, and its programs have ended with it.
"""

import fcntl
import os
from pathlib import Path

from runtape.ports.errors import Permanent

OWNER_FILE = "worker"


class Succession:
    """Holds the place of a worker in its data folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: int | None = None

    def take(self, owner: str) -> str | None:
        """Take the place as `owner`; return who had it before, None for nobody or while that process lives.

        Raises: Permanent.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            held = os.open(self._folder / OWNER_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(held)
                return None
            self._held = held
            before = os.read(held, 1024).decode(errors="replace")
            os.ftruncate(held, 0)
            os.pwrite(held, owner.encode(), 0)
            os.fsync(held)
        except OSError as error:
            raise Permanent(f"cannot write to the data folder {self._folder}: {error.strerror or error}") from error
        return before or None
