"""Hands the service what a program has left in `out`: what native/collect.c does, and its theory of operation holds.

The order of the walk, what is left out and why, and every message are the same.
"""

import os
import socket
import stat
import struct
from dataclasses import dataclass, field
from typing import Final

from . import rootfs, wire

PATH_BYTES: Final = 1024
DEPTH: Final = 32
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


def open_out() -> int:
    """Return a descriptor of the folder when there is anything in it; else -1."""
    try:
        folder = os.open(rootfs.OUT, _FOLDER_FLAGS)
    except OSError:
        return -1
    with os.scandir(folder) as entries:
        if next(entries, None) is not None:
            return folder
    os.close(folder)
    return -1


def hand_over_files(channel: socket.socket, folder: int) -> None:
    """Wait for the service to ask for what is in `folder`, and send it.

    Returns early when the service does not want it.  Raises: OSError, when it no longer does.
    """
    try:
        files, size_bytes = wire.collected(channel.recv(wire.DATAGRAM_BYTES))
    except (ConnectionResetError, struct.error):
        return
    walk = _Walk(channel, files, size_bytes)
    walk.take_folder(folder, b"", 1)
    channel.send(wire.LeftOut(**walk.left_out).packed())


@dataclass(slots=True)
class _Walk:
    channel: socket.socket
    files_left: int
    bytes_left: int
    left_out: dict[str, int] = field(default_factory=lambda: dict.fromkeys(wire.LeftOut._fields, 0))

    def take_folder(self, folder: int, path: bytes, depth: int) -> None:
        """Take what lies in `folder`, whose path is `path` with a slash at its end; closes it."""
        with os.scandir(folder) as entries:
            # A folder sorts as the paths below it do.
            names = sorted(os.fsencode(each.name) + b"/" * each.is_dir(follow_symlinks=False) for each in entries)
        for name in names:
            if len(path + name) > PATH_BYTES:
                self.left_out["bad_name"] += 1
            elif not name.endswith(b"/"):
                self._take_file(folder, name, path + name)
            elif depth >= DEPTH:
                self.left_out["too_deep"] += 1
            else:
                try:
                    below = os.open(name, _FOLDER_FLAGS, dir_fd=folder)
                except OSError:
                    self.left_out["unreadable"] += 1
                else:
                    self.take_folder(below, path + name, depth + 1)
        os.close(folder)

    def _take_file(self, folder: int, name: bytes, path: bytes) -> None:
        # By its name first: to open a FIFO, a socket or a device is an act in itself.
        state = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not stat.S_ISREG(state.st_mode):
            self.left_out["not_regular"] += 1
        elif self.files_left == 0:
            self.left_out["too_many"] += 1
        elif state.st_size > self.bytes_left:
            self.left_out["too_large"] += 1
        else:
            try:
                fd = os.open(name, _FILE_FLAGS, dir_fd=folder)
            except OSError:
                self.left_out["unreadable"] += 1
                return
            state = os.fstat(fd)
            if stat.S_ISREG(state.st_mode) and state.st_size <= self.bytes_left:
                self.files_left -= 1
                self.bytes_left -= state.st_size
                self._send(fd, path, state.st_size)
            else:
                self.left_out["not_regular"] += 1
            os.close(fd)

    def _send(self, fd: int, path: bytes, size_bytes: int) -> None:
        self.channel.send(wire.artifact(path, size_bytes))
        while size_bytes:
            content = os.read(fd, min(size_bytes, wire.PIECE_BYTES))
            if not content:
                raise OSError("a file has shrunk")  # the service sees that the last message lacks
            self.channel.send(wire.piece(content))
            size_bytes -= len(content)
