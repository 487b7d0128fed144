"""The files of replay sessions: one each, in a folder of the service's own, under a name of its own.

A write goes to the place that it is told and the file ends behind it, so what a crash has left beyond the last step
that was committed is written over.
"""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

from runtape.domain.replay import ReplaySessionId
from runtape.ports.errors import Transient

READ_BYTES = 256 << 10

_NAME = re.compile(r"[A-Za-z0-9-]+\Z", re.ASCII)


class FolderReplayFiles:
    """`ReplayFiles` in `folder`, which is made when it is needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def write(self, session_id: ReplaySessionId, at_bytes: int, data: bytes) -> None:
        try:
            await asyncio.to_thread(self._write, self._path(session_id), at_bytes, data)
        except OSError as error:
            raise Transient(f"cannot write the file of session {session_id}: {error.strerror}") from error

    async def read(self, session_id: ReplaySessionId, start: int, end: int) -> AsyncIterator[bytes]:
        path = self._path(session_id)
        while start < end:
            size = min(READ_BYTES, end - start)
            try:
                data = await asyncio.to_thread(self._read, path, start, size)
            except OSError as error:
                raise Transient(f"cannot read the file of session {session_id}: {error.strerror}") from error
            if not data:
                raise Transient(f"the file of session {session_id} ends at {start} bytes")
            yield data
            start += len(data)

    async def remove(self, session_id: ReplaySessionId) -> None:
        try:
            await asyncio.to_thread(self._path(session_id).unlink, missing_ok=True)
        except OSError as error:
            raise Transient(f"cannot remove the file of session {session_id}: {error.strerror}") from error

    def _path(self, session_id: ReplaySessionId) -> Path:
        if not _NAME.match(session_id):  # ids are made here; this is about who calls with something else
            raise ValueError(f"{session_id!r} is no id of a session")
        return self._folder / f"{session_id}.jsonl"

    def _write(self, path: Path, at_bytes: int, data: bytes) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            file.truncate(at_bytes)
            file.seek(at_bytes)
            rest = memoryview(data)
            while rest:
                rest = rest[file.write(rest) :]
            os.fdatasync(descriptor)

    @staticmethod
    def _read(path: Path, start: int, size: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(size)
