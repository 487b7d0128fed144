"""The keeper: makes boxes ahead of time, bounds what the kernel does not, and buries the dead.

Theory of operation.  One process, one thread, one epoll.  It is exec'd by the service with a clean environment and
two descriptors: the control socket and the locked lock file.  It prepares the root file system once, then forks
boxes on demand.  An armed box's order channel and output pipes go to the service, which from then on deals with the
box directly; the keeper hears of it again when it dies.

What it watches: the control socket (an end of file means that the service is gone: kill every box, wait for each,
exit, and with us goes the lock); each box's channel until it is armed; each box's pidfd; under cgroups v1 the eventfd
that tells of an exhausted memory limit.  Timers exist only while a box is bound to be sampled.

Who dies first.  Service: end of file here, and a death signal for the case that a child of its own holds a copy of the
socket.  Keeper: every box has a death signal on us, and pid 1 takes its tree along.  Box: the pidfd; a pid namespace is
empty before the death of its pid 1 shows.  Signals that a service manager sends to the whole group are ignored: the
service decides when its runs end.
"""

import contextlib
import errno
import gc
import os
import platform
import resource
import select
import signal
import socket
import time
import traceback
from collections import deque
from typing import Any, Final, NoReturn

from . import cgroups, linux, rootfs, seccomp, watchdog, wire
from .box import DEATH_SIGNAL, Box, Confinement, make_box

_MAKING_AT_ONCE: Final = os.cpu_count() or 1
_HOST_UID_RANGES: Final = (1_900_000_000, 60_000, 30_000)
"""First uids of the ranges to take box uids from, under root; the first that this user namespace maps."""
_HOST_UIDS: Final = 4000
_CPU_CHECK_S: Final = 0.01
_KERNEL: Final = (5, 12)


class Refused(Exception):
    """Isolation cannot be had here."""

    def __init__(self, finding: str, fix: str) -> None:
        super().__init__(finding)
        self.finding = finding
        self.fix = fix


def main(control_fd: int, lock_fd: int) -> NoReturn:
    """Serve `control_fd` until its other end is closed."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    linux.prctl(linux.PR_SET_PDEATHSIG, DEATH_SIGNAL)
    for fd in (control_fd, lock_fd):
        os.set_inheritable(fd, False)
    control = socket.socket(fileno=control_fd)
    try:
        opening = wire.Opening(*wire.unpack(control.recv(wire.DATAGRAM_BYTES))[1:])
        keeper = Keeper(control, lock_fd, opening)
        keeper.run()
    except Refused as refusal:
        control.send(wire.pack("refused", refusal.finding, refusal.fix))
    except (BrokenPipeError, ConnectionResetError):
        pass
    except Exception:
        control.send(wire.pack("crashed", traceback.format_exc()))
    os._exit(0)


class Keeper:
    """Owns every box from its clone to its burial."""

    def __init__(self, control: socket.socket, lock_fd: int, opening: wire.Opening) -> None:
        self._control = control
        self._opening = opening
        _check_machine()
        self._hierarchy, finding = _open_cgroups(opening.instance, lock_fd)
        first_host_uid = _enter_namespaces()
        try:
            rootfs.enter_own_root(opening.prefixes, opening.starters)
        except OSError as error:
            raise Refused(f"cannot prepare the sandbox's file system: {error}", _MOUNT_FIX) from error
        self._confinement = Confinement(
            seccomp_filter=seccomp.assemble(linux.MACHINE),
            lock_fd=lock_fd,
            first_host_uid=first_host_uid,
            share_work_directory=self._hierarchy is None,
        )
        self._epoll = select.epoll()
        self._epoll.register(control, select.EPOLLIN)
        self._service_pid = os.getppid()
        self._signalled_fd = _wake_on(DEATH_SIGNAL)
        self._epoll.register(self._signalled_fd, select.EPOLLIN)
        self._box_of: dict[int, Box] = {}
        """Box of each descriptor in the epoll set."""
        self._boxes: dict[int, Box] = {}
        self._to_make: deque[tuple[int, int]] = deque()
        self._making = 0
        self._last_number = 0
        self._free_slots: list[int] = []
        self._sampled: set[Box] = set()
        self._dead_groups: list[cgroups.Group] = []
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        # A collection in a box would touch every object, and so copy every page that is shared with the keeper.
        gc.collect()
        gc.freeze()
        gc.disable()
        mode = "none" if self._hierarchy is None else self._hierarchy.version
        self._send("open", *wire.Opened(mode, finding))

    def run(self) -> None:
        """Serve until the service is gone; then kill what runs and clean up."""
        try:
            while self._turn():
                pass
        finally:
            self._bury_all()

    def _turn(self) -> bool:
        """Wait for the next events and handle them; false when the service is gone."""
        able_to_make = bool(self._to_make) and self._making < _MAKING_AT_ONCE
        pause_s = 0.0 if able_to_make else self._pause_s()
        for fd, _ in self._epoll.poll(pause_s):
            if fd == self._control.fileno():
                if not self._obey():
                    return False
            elif fd == self._signalled_fd:
                os.read(fd, 64)
                if os.getppid() != self._service_pid:
                    return False
            elif (box := self._box_of.get(fd)) is not None:
                if fd == box.pidfd:
                    self._bury(box)
                elif box.group is not None and fd == box.group.oom_eventfd:
                    self._kill(box, "oom")
                    self._forget(fd)
                else:
                    self._hear(box)
        if self._to_make and self._making < _MAKING_AT_ONCE:
            self._make(self._to_make.popleft())
        if self._sampled:
            self._sample()
        if self._dead_groups:
            self._dead_groups = [group for group in self._dead_groups if not group.remove()]
        return True

    def _obey(self) -> bool:
        datagram = self._control.recv(wire.DATAGRAM_BYTES)
        if not datagram:
            return False
        kind, *fields = wire.unpack(datagram)
        if kind == "arm":
            self._to_make.append((fields[0], fields[1]))
            return True
        box = self._boxes.get(fields[0])
        if box is not None and kind == "bound":
            box.memory_limit_bytes = fields[1]
            self._sampled.add(box)
        elif box is not None and kind == "bound_cpu":
            box.cpu_limit_ns = fields[1]
            box.cpu_check_due_s = 0.0
            self._sampled.add(box)
        return True

    # Making

    def _make(self, shape: tuple[int, int]) -> None:
        self._last_number += 1
        number = self._last_number
        group = None if self._hierarchy is None else self._hierarchy.group(f"box-{number}")
        slot = self._free_slots.pop() if self._free_slots else len(self._boxes)
        try:
            if slot >= _HOST_UIDS:
                raise OSError(errno.EAGAIN, f"{_HOST_UIDS} boxes live already")
            if group is not None:
                group.make(self._opening.memory_bytes, self._opening.processes)
                group.listen_for_oom()
            box = make_box(number, shape, slot, group, self._confinement)
        except OSError as error:
            self._free_slots.append(slot)
            if group is not None:
                self._dead_groups.append(group)
            self._send("unarmed", *shape, f"cannot make a box: {error}")
            return
        self._making += 1
        self._boxes[number] = box
        self._listen(box.channel.fileno(), box)
        self._listen(box.pidfd, box)
        if group is not None:
            if group.oom_eventfd >= 0:
                self._listen(group.oom_eventfd, box)
            try:
                group.attach(box.pid)
            except OSError as error:
                self._kill(box, f"cannot enter its cgroup: {error}")

    def _hear(self, box: Box) -> None:
        """Take what a box in the making tells: that it is armed, or why it cannot be."""
        try:
            datagram, fds, _, _ = socket.recv_fds(box.channel, wire.DATAGRAM_BYTES, 1)
        except ConnectionResetError:
            datagram, fds = b"", []
        told: tuple[Any, ...] = wire.unpack(datagram) if datagram else ("failed", "it died")
        if fds:
            box.work_directory_fd = fds[0]
        self._forget(box.channel.fileno())
        self._making -= 1
        if told[0] == "armed" and not box.kill_reason:
            box.armed = True
            box.arming_cpu_ns = (told[1], told[2])
            handed = [box.channel.fileno(), *box.output_fds, box.pidfd]
            self._send("armed", *box.shape, box.number, fds=handed)
        else:
            self._send("unarmed", *box.shape, f"a box failed: {box.kill_reason or told[1]}")
            self._kill(box, "unarmed")
        box.channel.close()
        for fd in box.output_fds:
            os.close(fd)

    # Bounding

    def _pause_s(self) -> float | None:
        if self._dead_groups:
            return watchdog.INTERVAL_S
        if not self._sampled:
            return None
        if any(box.memory_limit_bytes for box in self._sampled):
            return watchdog.INTERVAL_S
        return max(0.001, min(box.cpu_check_due_s for box in self._sampled) - time.monotonic())

    def _sample(self) -> None:
        now_s = time.monotonic()
        for box in self._sampled:
            if box.kill_reason:
                continue
            try:
                self._sample_one(box, now_s)
            except OSError:
                continue  # it dies just now

    def _sample_one(self, box: Box, now_s: float) -> None:
        pids = watchdog.tree(box.pid) if box.group is None else []
        if box.memory_limit_bytes:
            held_bytes = watchdog.memory_bytes(pids[1:], box.work_directory_fd, box.memory_limit_bytes)
            box.peak_memory_bytes = max(box.peak_memory_bytes, held_bytes)
            if held_bytes > box.memory_limit_bytes:
                box.cpu_ns = watchdog.cpu_ns(pids)
                self._kill(box, "memory")
        if box.cpu_limit_ns and now_s >= box.cpu_check_due_s:
            box.cpu_ns = box.group.cpu_ns() if box.group else watchdog.cpu_ns(pids)
            left_ns = box.cpu_limit_ns - (sum(box.cpu_ns) - sum(box.arming_cpu_ns))
            if left_ns <= 0:
                self._kill(box, "cpu")
            # All processors together cannot spend what is left any sooner.
            box.cpu_check_due_s = now_s + max(_CPU_CHECK_S, left_ns / 1e9 / (os.cpu_count() or 1))

    def _kill(self, box: Box, reason: str) -> None:
        box.kill_reason = box.kill_reason or reason
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(box.pidfd, signal.SIGKILL)

    # Burying

    def _bury(self, box: Box) -> None:
        """Reap a dead box and remove what was its; tell its end unless it has told it itself."""
        if not box.armed and box.channel.fileno() >= 0:
            self._hear(box)
        _, status = os.waitpid(box.pid, 0)
        self._forget(box.pidfd)
        os.close(box.pidfd)
        if box.work_directory_fd >= 0:
            os.close(box.work_directory_fd)
        self._sampled.discard(box)
        del self._boxes[box.number]
        self._free_slots.append(box.uid_slot)
        if box.group is not None:
            if status != 0:
                box.peak_memory_bytes = box.group.peak_memory_bytes()
                box.cpu_ns = box.group.cpu_ns()
                if box.group.oom_kills():
                    box.kill_reason = "oom"
            self._forget(box.group.oom_eventfd)
            self._dead_groups.append(box.group)
        if status != 0 and box.armed:
            user_ns, system_ns = (
                max(0, all_ns - arming_ns) for all_ns, arming_ns in zip(box.cpu_ns, box.arming_cpu_ns, strict=True)
            )
            reaped = wire.Reaped(box.kill_reason, user_ns, system_ns, box.peak_memory_bytes)
            self._send("reaped", box.number, *reaped)

    def _bury_all(self) -> None:
        """Kill every box, wait until each is gone, and remove the cgroups.  The service hears nothing of it."""
        boxes = list(self._boxes.values())
        for box in boxes:
            self._kill(box, "closed")
        for box in boxes:
            os.waitpid(box.pid, 0)
        groups = [box.group for box in boxes if box.group is not None] + self._dead_groups
        deadline_s = time.monotonic() + 1.0
        while groups := [group for group in groups if not group.remove()]:
            if time.monotonic() > deadline_s:
                break
            time.sleep(0.002)
        if self._hierarchy is not None:
            self._hierarchy.remove()

    def _listen(self, fd: int, box: Box) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._box_of[fd] = box

    def _forget(self, fd: int) -> None:
        if self._box_of.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _send(self, *message: object, fds: list[int] | None = None) -> None:
        socket.send_fds(self._control, [wire.pack(*message)], fds or [])


_USERNS_FIX: Final = (
    "allow unprivileged user namespaces: sysctl user.max_user_namespaces=15000, and where they exist "
    "kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0; "
    "in a container, run with a seccomp profile that permits clone and mount"
)
_MOUNT_FIX: Final = (
    "in a container, permit mounts: --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
)


def _check_machine() -> None:
    if linux.MACHINE not in seccomp.AUDIT_ARCH:
        raise Refused(f"no seccomp filter for {linux.MACHINE}", f"run on {' or '.join(seccomp.AUDIT_ARCH)}")
    release = platform.release()
    version = tuple(int(part) for part in release.split(".")[:2] if part.isdigit())
    if version < _KERNEL:
        raise Refused(f"Linux {release} is too old", f"use Linux {_KERNEL[0]}.{_KERNEL[1]} or newer")


def _open_cgroups(instance: str, lock_fd: int) -> tuple[cgroups.Hierarchy | None, str]:
    try:
        return cgroups.open_hierarchy(instance, lock_fd), ""
    except (cgroups.Unusable, OSError) as error:
        finding = str(error)
    try:
        watchdog.tree(os.getpid())
        with open(f"/proc/self/task/{os.getpid()}/children"):
            pass
    except OSError as error:
        raise Refused(
            f"memory cannot be bounded: no cgroup ({finding}), and the kernel does not list children ({error})",
            "delegate a cgroup to the service (systemd: Delegate=yes), or use a kernel with CONFIG_PROC_CHILDREN",
        ) from error
    return None, finding


def _enter_namespaces() -> int | None:
    """Enter a mount namespace, and a user namespace unless we are root; return the first uid for boxes under root."""
    if os.geteuid() == 0:
        first_uid = _first_host_uid()
        try:
            os.setgroups([])
            # For a moment of each clone the keeper bears the uid of a box.  Killed in that moment, it must still have
            # the right to send the boxes of other uids their death signal.
            linux.keep_capabilities_as_another_user()
            linux.unshare(linux.CLONE_NEWNS)
        except OSError as error:
            raise Refused(f"root without the privilege to isolate: {error}", _MOUNT_FIX) from error
        return first_uid
    uid, gid = os.geteuid(), os.getegid()
    try:
        linux.prctl(linux.PR_SET_DUMPABLE, 1)
        linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
        for name, content in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(content)
    except OSError as error:
        raise Refused(f"user namespaces cannot be had: {error}", _USERNS_FIX) from error
    linux.prctl(linux.PR_SET_PDEATHSIG, DEATH_SIGNAL)  # the change of ids has cleared it
    return None


def _wake_on(number: signal.Signals) -> int:
    """Have `number` make a descriptor readable, and return that."""
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    return read_fd


def _first_host_uid() -> int:
    maps = []
    for kind in ("uid", "gid"):
        with open(f"/proc/self/{kind}_map") as file:
            maps.append([tuple(int(number) for number in line.split()) for line in file])
    for first in _HOST_UID_RANGES:
        if all(any(inner <= first and first + _HOST_UIDS <= inner + n for inner, _, n in map_) for map_ in maps):
            return first
    raise Refused(
        "root's user namespace maps no uids to run programs as",
        f"map {_HOST_UIDS} subordinate uids and gids from {_HOST_UID_RANGES[-1]}, or run as an ordinary user",
    )
