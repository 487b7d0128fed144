"""Who ran here before: the workers that this process follows, which are known to be dead.

A worker writes its id into a file of its data folder, and holds a lock on it as long as it lives.  Who gets the lock
reads whose place it takes: the kernel gives the lock back when a process is gone, and its programs have ended with it,
or are ended then, where they run in pods.

Those before stay in the file until what they ran was taken up: whoever follows one that died while it did so takes the
place of both.
"""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from runtape.ports.errors import Permanent

OWNER_FILE = "worker"
"""One id in each line; the last is whose place it is."""


class Succession:
    """Holds the place of a worker in its data folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: int | None = None

    def take(self, owner: str) -> Sequence[str]:
        """Take the place as `owner`; return who had it before and is not `settled`, nobody while one of them lives.

        Raises: Permanent.
        """
        with self._writing():
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            held = os.open(self._folder / OWNER_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(held)
                return ()
            self._held = held
            before = (self._folder / OWNER_FILE).read_text(errors="replace").split()
            self._write(held, [*before, owner])
        return before

    def settled(self, owner: str) -> None:
        """Forget who had the place before `owner`: nothing of theirs is left.  Raises: Permanent."""
        if self._held is not None:
            with self._writing():
                self._write(self._held, [owner])

    @staticmethod
    def _write(held: int, owners: Sequence[str]) -> None:
        # Cut afterwards: who dies in between leaves an id too many, not one too few.
        size = os.pwrite(held, "".join(f"{owner}\n" for owner in owners).encode(), 0)
        os.ftruncate(held, size)
        os.fsync(held)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Permanent(f"cannot write to the data folder {self._folder}: {error.strerror or error}") from error
