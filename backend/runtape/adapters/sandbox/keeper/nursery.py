"""Boxes that C programs make: the keeper's side of native/.

Theory of operation.  `open_nursery` starts the nursery in namespaces of its own, over one socket.  From then on the
keeper asks it for a slot or a zygote by a single datagram that carries the new one's socket, and never waits: a slot
may be told to arm a box before it lives.  Each slot has its own socket, on which it says that a box is armed and that
it is dead; one whose socket ends has died.  A zygote says nothing; it has died when its socket ends.

A slot serves one interpreter (a zygote, or one that is parked in each box), or none, for its whole life: a zygote that
is replaced takes its slots with it as they fall idle.  Slots and zygotes are replaced after a number of boxes or an
hour, so that nothing builds up in namespaces or cgroups, and the address layout that all runners of a zygote share does
not stay for good.
"""

import fcntl
import os
import resource
import signal
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NoReturn

from . import linux, rootfs, wire
from .box import FIXED_LIMITS, Box, within
from .cgroups import Group, Hierarchy

_BOXES_OF_A_ZYGOTE: Final = 10_000
_LIFE_S: Final = 3600.0
"""After which a slot or zygote is replaced when it falls idle."""
_MAKING_TIMEOUT_S: Final = 10.0

_NAMESPACES: Final = (
    linux.CLONE_NEWUSER
    | linux.CLONE_NEWNS
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWCGROUP
)
_CONTROL_FD, _LOCK_FD = 3, 4

# native/confine.h lays these out.
_MAKE_SLOT: Final = struct.Struct("=IIQQII")
_MAKE_ZYGOTE: Final = struct.Struct("=I")
_ARM: Final = struct.Struct("=IIQQ")
_ARMED: Final = struct.Struct("=IIQQ")
_DEAD: Final = struct.Struct("=IIiIQQQ")
_FAILED: Final = struct.Struct("=II")
_SHARE_WORK_DIRECTORY, _OWN_KERNEL = 1, 2
_CONTROL, _ZYGOTE, _PARKING = 0, 1, 12
"""Places of descriptors in a slot, beside those of its cgroup."""


def open_nursery(lock_fd: int, uids: tuple[int, int] | None) -> tuple[int, socket.socket]:
    """Start the nursery in the image; return its pid and the socket to it.

    `uids` are the first host uid and the number of those that it may give to slots; None where there is but our own.
    Raises: OSError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mapped_read, mapped_write = os.pipe()
    pid, pidfd = linux.clone(_NAMESPACES, signal.SIGCHLD)
    if pid == 0:
        _become_nursery(theirs.fileno(), lock_fd, mapped_read, mapped_write)
    os.close(pidfd)
    theirs.close()
    os.close(mapped_read)
    try:
        first, count = uids or (os.geteuid(), 1)
        files = [("gid_map", f"0 {first if uids else os.getegid()} {count}"), ("uid_map", f"0 {first} {count}")]
        for name, content in [("setgroups", "deny"), *files]:
            with open(f"/proc/{pid}/{name}", "w") as file:
                file.write(content)
        os.write(mapped_write, b"m")
    finally:
        os.close(mapped_write)
    answer = ours.recv(wire.DATAGRAM_BYTES)
    if answer != b"n":
        os.waitpid(pid, 0)
        what = answer[_FAILED.size :].decode(errors="replace") or "it died at once"
        raise OSError(f"the nursery cannot start: {what}")
    return pid, ours


def _become_nursery(control_fd: int, lock_fd: int, mapped_read: int, mapped_write: int) -> NoReturn:
    try:
        os.close(mapped_write)
        if os.read(mapped_read, 1) != b"m":
            os._exit(1)
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        linux.set_hostname(b"runtape")
        rootfs.enter_image()
        for kind, limits in FIXED_LIMITS:
            resource.setrlimit(kind, within(resource.getrlimit(kind)[1], limits))
        null = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        # By way of numbers that are in nobody's way.
        control_fd, lock_fd = (fcntl.fcntl(fd, fcntl.F_DUPFD, 64) for fd in (control_fd, lock_fd))
        os.dup2(control_fd, _CONTROL_FD)
        os.dup2(lock_fd, _LOCK_FD)
        control_fd = _CONTROL_FD
        linux.close_from(_LOCK_FD + 1)
        os.execve(f"{wire.STARTERS}/nursery", ["nursery"], {})  # noqa: S606
    except BaseException as error:
        os.write(control_fd, _FAILED.pack(ord("f"), 0) + f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(1)


@dataclass(slots=True, eq=False)
class _Zygote:
    name: str
    requests: socket.socket
    born_s: float
    boxes: int = 0
    lost: bool = False

    def worn_out(self) -> bool:
        """Whether another is to take its place."""
        return self.boxes >= _BOXES_OF_A_ZYGOTE or time.monotonic() >= self.born_s + _LIFE_S


@dataclass(slots=True, eq=False)
class _Slot:
    """A slot as the keeper sees it."""

    control: socket.socket
    interpreter: str
    zygote: _Zygote | None
    uid: int
    group: Group | None
    born_s: float
    boxes: int = 0
    shape: wire.Shape | None = None
    """Of the box in the making."""
    due_s: float = 0.0
    """Time by which that must be armed."""
    box: Box | None = None
    oom_kills: int = 0
    """Of its group before that box; version 2 kills the slot with it."""


@dataclass(slots=True, kw_only=True)
class SlotMaker:
    """Makes boxes by slots; tells `on_armed`, `on_unarmed` and `on_dead`."""

    nursery: socket.socket
    hierarchy: Hierarchy | None
    zygotes: Mapping[str, bytes]
    """Of each zygote by its name: arguments and environment, as native/confine.h has them."""
    parked: Mapping[str, int]
    """Of each interpreter that is parked in its boxes: a file with the order that starts it."""
    uids: int
    """How many uids slots may have; 1 when all share ours."""
    memory_bytes: int
    processes: int
    own_kernel: bool
    """Whether programs run on a kernel of their own."""
    boxes_per_slot: int
    """After which a slot is replaced; with 1 no two programs share anything that a slot pools."""
    listen: Callable[[int, Callable[[], None]], None]
    """Have a function called whenever a descriptor can be read."""
    forget: Callable[[int], None]
    on_armed: Callable[[Box, list[int]], None]
    on_unarmed: Callable[[wire.Shape, str], None]
    on_dead: Callable[[Box, int], None]
    discard: Callable[[Group], None]
    """Have the group of a slot that is gone removed."""
    _idle: defaultdict[str, list[_Slot]] = field(default_factory=lambda: defaultdict(list))
    _slots: set[_Slot] = field(default_factory=set)
    _warm: dict[str, _Zygote] = field(default_factory=dict)
    _free_uids: list[int] = field(default_factory=list)
    _last_uid: int = 0
    _last_slot: int = 0

    def make(self, number: int, shape: wire.Shape) -> None:
        """Have a box armed.  Raises: OSError, when no slot can be had."""
        zygote = self._warm.get(shape.interpreter)
        if zygote is not None and zygote.worn_out():
            self._retire(zygote)
        idle = self._idle[shape.interpreter]
        slot = idle.pop() if idle else self._make_slot(shape.interpreter)
        if slot.group is not None and self.hierarchy is not None and self.hierarchy.version == "v2":
            slot.oom_kills = slot.group.oom_kills()
        slot.due_s = time.monotonic() + _MAKING_TIMEOUT_S
        slot.boxes += 1
        if slot.zygote is not None:
            slot.zygote.boxes += 1
        slot.control.send(_ARM.pack(ord("A"), number, shape.disk_bytes, shape.inodes))
        slot.shape = shape

    def expire(self) -> None:
        """Give up on boxes that are in the making for too long, with the zygote that does not answer."""
        now_s = time.monotonic()
        for slot in [slot for slot in self._slots if slot.shape is not None and slot.due_s < now_s]:
            self._tell_unarmed(slot, "it was not armed in time")
            if slot.zygote is not None:
                self._retire(slot.zygote)
            self._dismiss(slot)

    def close(self) -> None:
        """Close every socket: the nursery ends, and with it all that it made."""
        self.nursery.close()
        for slot in self._slots:
            slot.control.close()
        for zygote in self._warm.values():
            zygote.requests.close()

    def groups(self) -> list[Group]:
        """Return the groups of all slots."""
        return [slot.group for slot in self._slots if slot.group is not None]

    def _make_slot(self, name: str) -> _Slot:
        zygote = self._zygote(name) if name in self.zygotes else None
        uid = self._take_uid()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._last_slot += 1
        group, files = None, dict[int, int]()
        try:
            if self.hierarchy is not None:
                group = self.hierarchy.group(f"slot-{self._last_slot}")
                group.make(self.memory_bytes, self.processes)
                group.listen_for_oom()
                files = group.open_slot_files()
            sent = {_CONTROL: theirs.fileno(), **files}
            if zygote is not None:
                sent[_ZYGOTE] = zygote.requests.fileno()
            elif name:
                sent[_PARKING] = self.parked[name]
            holds = sum(1 << index for index in sent)
            flags = (group is None) * _SHARE_WORK_DIRECTORY | self.own_kernel * _OWN_KERNEL
            message = _MAKE_SLOT.pack(ord("S"), uid, self.memory_bytes, self.processes, holds, flags)
            socket.send_fds(self.nursery, [message], [sent[index] for index in sorted(sent)])
        except OSError:
            ours.close()
            self._free_uids.append(uid)
            if group is not None:
                self.discard(group)
            raise
        finally:
            theirs.close()
        if group is not None:
            group.close_files()
        slot = _Slot(ours, name, zygote, uid, group, time.monotonic())
        self._slots.add(slot)
        self.listen(ours.fileno(), lambda: self._hear(slot))
        return slot

    def _take_uid(self) -> int:
        """Return a uid that no living slot has; 0 when all share ours.  Raises: OSError, when there is none left."""
        if self.uids == 1:
            return 0
        if self._free_uids:
            return self._free_uids.pop()
        if self._last_uid + 1 >= self.uids:
            raise OSError(f"{self._last_uid} slots live already")
        self._last_uid += 1
        return self._last_uid

    def _zygote(self, name: str) -> _Zygote:
        zygote = self._warm.get(name)
        if zygote is not None:
            return zygote
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        socket.send_fds(self.nursery, [_MAKE_ZYGOTE.pack(ord("Z")), self.zygotes[name]], [theirs.fileno()])
        theirs.close()
        fresh = self._warm[name] = _Zygote(name, ours, time.monotonic())
        self.listen(ours.fileno(), lambda: self._retire(fresh))
        return fresh

    def _retire(self, zygote: _Zygote) -> None:
        """Part with a zygote, dead or worn out; runners that it has forked already go on."""
        if zygote.lost:
            return
        zygote.lost = True
        self.forget(zygote.requests.fileno())
        zygote.requests.close()
        if self._warm.get(zygote.name) is zygote:
            del self._warm[zygote.name]
        for slot in self._idle.pop(zygote.name, []):
            self._dismiss(slot)

    def _hear(self, slot: _Slot) -> None:
        try:
            datagram, fds, _, _ = socket.recv_fds(slot.control, wire.DATAGRAM_BYTES, wire.BOX_FDS + 1)
        except ConnectionResetError:
            datagram, fds = b"", []
        if datagram[:1] == b"a" and slot.shape is not None and len(fds) >= wire.BOX_FDS:
            _, number, user_ns, system_ns = _ARMED.unpack(datagram)
            folder = fds.pop() if len(fds) > wire.BOX_FDS else -1
            slot.box = Box(number, slot.shape, fds[-1], group=slot.group, work_directory_fd=folder)
            slot.box.arming_cpu_ns = (user_ns, system_ns)
            slot.shape = None
            try:
                self.on_armed(slot.box, fds)
            finally:
                for fd in fds[:-1]:  # the service has its own now; the pidfd is the box's
                    os.close(fd)
        elif datagram[:1] == b"f":
            self._tell_unarmed(slot, datagram[_FAILED.size :].decode(errors="replace"))
        elif datagram[:1] == b"d":
            self._bury(slot, datagram)
        else:
            self._on_slot_lost(slot)

    def _tell_unarmed(self, slot: _Slot, what: str) -> None:
        if slot.shape is not None:
            shape, slot.shape = slot.shape, None
            self.on_unarmed(shape, what)

    def _bury(self, slot: _Slot, datagram: bytes) -> None:
        _, _, status, out_of_memory, user_ns, system_ns, peak_bytes = _DEAD.unpack(datagram)
        box, slot.box = slot.box, None
        self._tell_unarmed(slot, "its first process died")
        if box is not None:
            if out_of_memory:
                box.kill_reason = "oom"
            if slot.group is not None:
                box.cpu_ns, box.peak_memory_bytes = (user_ns, system_ns), peak_bytes
            self.on_dead(box, status)
        worn_out = slot.boxes >= self.boxes_per_slot or time.monotonic() >= slot.born_s + _LIFE_S
        if worn_out or (slot.zygote is not None and slot.zygote.lost):
            self._dismiss(slot)
        else:
            self._idle[slot.interpreter].append(slot)

    def _on_slot_lost(self, slot: _Slot) -> None:
        """Deal with a slot that was killed; its box gets the death signal, but perhaps not yet."""
        self._tell_unarmed(slot, "its slot died")
        for idle in self._idle.values():
            if slot in idle:
                idle.remove(slot)
        box = slot.box
        if box is None:
            self._dismiss(slot)
            return
        self.forget(slot.control.fileno())
        slot.control.close()
        if slot.group is not None:
            box.cpu_ns, box.peak_memory_bytes = slot.group.cpu_ns(), slot.group.peak_memory_bytes()
            if slot.group.oom_kills() > slot.oom_kills:
                box.kill_reason = "oom"
        box.kill("")
        self.listen(box.pidfd, lambda: self._bury_orphan(slot, box))

    def _bury_orphan(self, slot: _Slot, box: Box) -> None:
        """Tell the end of a box whose slot died before it; the nursery reaps it."""
        self.forget(box.pidfd)
        slot.box = None
        self.on_dead(box, -1)
        self._release(slot)

    def _dismiss(self, slot: _Slot) -> None:
        """Part with a slot that holds no box; its process ends when it reads that."""
        self.forget(slot.control.fileno())
        slot.control.close()
        self._release(slot)

    def _release(self, slot: _Slot) -> None:
        self._slots.discard(slot)
        if slot.uid:
            self._free_uids.append(slot.uid)
        if slot.group is not None:
            self.discard(slot.group)
