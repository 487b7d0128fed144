"""Boxes that the keeper makes by forking itself, where no compiler has made the programs of native/.

Each has all namespaces and its cgroup for itself, and its pid 1 is Python: slower by some 8 ms of processor time, and
just as tight.
"""

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from . import wire
from .box import Box, Clone, Confinement, make_box
from .cgroups import Group, Hierarchy

HOST_UIDS: Final = 4000


@dataclass(slots=True, eq=False)
class _Making:
    number: int
    shape: wire.Shape
    uid_slot: int
    clone: Clone
    group: Group | None
    box: Box | None = None
    """Once it is armed."""


@dataclass(slots=True, kw_only=True)
class ForkingMaker:
    """Makes boxes; tells `on_armed`, `on_unarmed` and `on_dead`."""

    confinement: Confinement
    hierarchy: Hierarchy | None
    memory_bytes: int
    processes: int
    listen: Callable[[int, Callable[[], None]], None]
    """Have a function called whenever a descriptor can be read."""
    forget: Callable[[int], None]
    on_armed: Callable[[Box, list[int]], None]
    on_unarmed: Callable[[wire.Shape, str], None]
    on_dead: Callable[[Box, int], None]
    discard: Callable[[Group], None]
    """Have the group of a box that is gone removed."""
    _made: set[_Making] = field(default_factory=set)
    _free_uid_slots: list[int] = field(default_factory=list)

    def make(self, number: int, shape: wire.Shape) -> None:
        """Begin a box.  Raises: OSError."""
        group = None if self.hierarchy is None else self.hierarchy.group(f"box-{number}")
        uid_slot = self._free_uid_slots.pop() if self._free_uid_slots else len(self._made)
        try:
            if uid_slot >= HOST_UIDS:
                raise OSError(errno.EAGAIN, f"{HOST_UIDS} boxes live already")
            if group is not None:
                group.make(self.memory_bytes, self.processes)
                group.listen_for_oom()
            making = _Making(number, shape, uid_slot, make_box(shape, uid_slot, group, self.confinement), group)
        except OSError:
            self._free_uid_slots.append(uid_slot)
            if group is not None:
                self.discard(group)
            raise
        self._made.add(making)
        self.listen(making.clone.channel.fileno(), lambda: self._hear(making))
        self.listen(making.clone.pidfd, lambda: self._bury(making))
        if group is None:
            return
        if group.oom_eventfd >= 0:
            self.listen(group.oom_eventfd, lambda: self._on_out_of_memory(making))
        try:
            group.attach(making.clone.pid)
        except OSError as error:
            self._kill(making, f"cannot enter its cgroup: {error}")

    def expire(self) -> None:
        """Boxes in the making need nobody else here, so none is late."""

    def close(self) -> None:
        """Kill every box and wait until each is gone."""
        for making in self._made:
            self._kill(making, "closed")
        for making in self._made:
            os.waitpid(making.clone.pid, 0)

    def groups(self) -> list[Group]:
        """Return the groups of all boxes."""
        return [making.group for making in self._made if making.group is not None]

    def _kill(self, making: _Making, reason: str) -> None:
        box = making.box or Box(making.number, making.shape, making.clone.pidfd, making.group)
        box.kill(reason)

    def _on_out_of_memory(self, making: _Making) -> None:
        self._kill(making, "oom")
        if making.group is not None:
            self.forget(making.group.oom_eventfd)

    def _hear(self, making: _Making) -> None:
        """Take what a box in the making tells: that it is armed, or why it cannot be."""
        clone = making.clone
        try:
            datagram, fds, _, _ = socket.recv_fds(clone.channel, wire.DATAGRAM_BYTES, 1)
        except ConnectionResetError:
            datagram, fds = b"", []
        told: tuple[Any, ...] = wire.unpack(datagram) if datagram else ("failed", "it died")
        self.forget(clone.channel.fileno())
        if told[0] == "armed":
            folder = fds[0] if fds else -1
            box = making.box = Box(making.number, making.shape, clone.pidfd, making.group, work_directory_fd=folder)
            box.arming_cpu_ns = (told[1], told[2])
            self.on_armed(box, [clone.channel.fileno(), *clone.output_fds, clone.pidfd])
        else:
            self.on_unarmed(making.shape, f"a box failed: {told[1]}")
            self._kill(making, "unarmed")
        clone.channel.close()
        for fd in clone.output_fds:
            os.close(fd)

    def _bury(self, making: _Making) -> None:
        """Reap a dead box and give up what was its."""
        if making.clone.channel.fileno() >= 0:
            self._hear(making)
        _, status = os.waitpid(making.clone.pid, 0)
        self.forget(making.clone.pidfd)
        self._made.discard(making)
        self._free_uid_slots.append(making.uid_slot)
        box, group = making.box, making.group
        if box is None:
            os.close(making.clone.pidfd)
        if group is not None:
            if box is not None and status != 0:
                box.peak_memory_bytes = group.peak_memory_bytes()
                box.cpu_ns = group.cpu_ns()
                if group.oom_kills():
                    box.kill_reason = "oom"
            if group.oom_eventfd >= 0:
                self.forget(group.oom_eventfd)
            self.discard(group)
        if box is not None:
            self.on_dead(box, status)
