"""The keeper: makes boxes ahead of time, bounds what the kernel does not, and buries the dead.

Theory of operation.  One process, one thread, one epoll.  It is exec'd by the service with a clean environment and
two descriptors: the control socket and the locked lock file.  It prepares the root file system once, then has boxes
made on demand: by the C programs (`nursery.SlotMaker`), or by forking itself (`forking.ForkingMaker`).  An armed box's
order channel and output pipes go to the service, which from then on deals with the box directly; the keeper hears of it
again when it is dead.

What it watches: the control socket (an end of file means that the service is gone: kill every box, wait until each is
gone, exit, and with us goes the lock); the sockets of its maker.  Timers exist only while a box is bound to be sampled.

Who dies first.  Service: end of file here, and a death signal for the case that a child of its own holds a copy of the
socket.  Keeper: nursery or boxes have a death signal on us.  Signals that a service manager sends to the whole group
are ignored: the service decides when its runs end.
"""

import gc
import os
import platform
import resource
import select
import signal
import socket
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Final, NoReturn

from . import cgroups, linux, rootfs, seccomp, timeline, watchdog, wire
from .box import DEATH_SIGNAL, Box, Confinement
from .forking import HOST_UIDS, ForkingMaker
from .nursery import SlotMaker, open_nursery

_MAKING_AT_ONCE: Final = os.cpu_count() or 1
_HOST_UID_RANGES: Final = (1_900_000_000, 60_000, 30_000)
"""First uids of the ranges to take box uids from, under root; the first that this user namespace maps."""
_EXPIRY_CHECK_S: Final = 1.0
_STOP_TIMEOUT_S: Final = 0.5
"""Time that the service has to stop a program that has used up its CPU time, before the keeper kills it."""
_CPU_CHECK_S: Final = 0.01
_CPU_OF_OURS_NS: Final = 5_000_000
"""What our own processes may use on the account of a box; nobody is to be stopped too early for it."""
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
    """Owns every box from its making to its burial."""

    def __init__(self, control: socket.socket, lock_fd: int, opening: wire.Opening) -> None:
        self._control = control
        _check_machine()
        self._hierarchy, no_cgroups = _open_cgroups(opening.instance, lock_fd)
        first_host_uid = _enter_namespaces()
        assemble = seccomp.assemble_for_monitor if opening.own_kernel else seccomp.assemble
        seccomp_filter = assemble(linux.MACHINE)
        try:
            starters = (*opening.starters, *_native_files(opening.native, seccomp_filter))
            rootfs.enter_own_root(opening.prefixes, starters, opening.layers, with_run=opening.own_kernel)
        except OSError as error:
            raise Refused(f"cannot prepare the sandbox's file system: {error}", _MOUNT_FIX) from error
        self._epoll = select.epoll()
        self._on_readable: dict[int, Callable[[], None]] = {}
        self._armed: dict[int, Box] = {}
        self._to_make: defaultdict[str, deque[wire.Shape]] = defaultdict(deque)
        """By interpreter: one that is slow or stuck holds up no other boxes."""
        self._making: defaultdict[str, int] = defaultdict(int)
        self._last_number = 0
        self._sampled: set[Box] = set()
        self._dead_groups: list[cgroups.Group] = []
        self._served = True
        self._service_pid = os.getppid()
        self._signalled_fd = _wake_on(DEATH_SIGNAL)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        common = {
            "hierarchy": self._hierarchy,
            "memory_bytes": opening.memory_bytes,
            "processes": opening.processes,
            "listen": self._listen,
            "forget": self._forget,
            "on_armed": self._on_armed,
            "on_unarmed": self._on_unarmed,
            "on_dead": self._on_dead,
            "discard": self._dead_groups.append,
        }
        self._nursery_pid = 0
        self._maker: SlotMaker | ForkingMaker
        native, not_native = opening.native != "", ""
        if native:
            uids = None if first_host_uid is None else (first_host_uid, HOST_UIDS)
            try:
                self._nursery_pid, nursery = open_nursery(lock_fd, uids)
            except OSError as error:
                native, not_native = False, str(error)
            else:
                self._listen(nursery.fileno(), self._on_nursery_lost)
                zygotes = {name: _exec_texts(command, env) for name, command, env in opening.zygotes}
                parked = {name: wire.sealed_memfd(order) for name, order in opening.parked}
                self._maker = SlotMaker(
                    nursery=nursery,
                    zygotes=zygotes,
                    parked=parked,
                    uids=uids[1] if uids else 1,
                    own_kernel=opening.own_kernel,
                    boxes_per_slot=opening.boxes_per_slot,
                    **common,
                )
        if not native and opening.own_kernel:
            raise Refused(f"gVisor runs in boxes that C programs make: {not_native or 'there are none'}", _COMPILER_FIX)
        if opening.own_kernel and self._hierarchy is None:
            # What gVisor hands out to a program is no memory of a process that the watchdog could count.
            raise Refused(f"gVisor's memory can be bounded by a cgroup alone: {no_cgroups}", _CGROUP_FIX)
        if not native:
            confinement = Confinement(
                seccomp_filter=seccomp_filter,
                lock_fd=lock_fd,
                first_host_uid=first_host_uid,
                share_work_directory=self._hierarchy is None,
            )
            self._maker = ForkingMaker(confinement=confinement, **common)
        self._listen(control.fileno(), self._obey)
        self._listen(self._signalled_fd, self._on_signal)
        # A collection in a box would touch every object, and so copy every page that is shared with the keeper.
        gc.collect()
        gc.freeze()
        gc.disable()
        mode = "none" if self._hierarchy is None else self._hierarchy.version
        self._send("open", *wire.Opened(mode, native, no_cgroups, not_native))

    def run(self) -> None:
        """Serve until the service is gone; then kill what runs and clean up."""
        try:
            while self._served:
                self._turn()
        finally:
            self._bury_all()

    def _turn(self) -> None:
        """Wait for the next events and handle them."""
        for fd, _ in self._epoll.poll(0.0 if self._makeable() else self._pause_s()):
            if fd in self._on_readable:
                self._on_readable[fd]()
        for interpreter in self._makeable():
            self._make(self._to_make[interpreter].popleft())
        if any(self._making.values()):
            self._maker.expire()
        if self._sampled:
            self._sample()
        if self._dead_groups:
            self._dead_groups[:] = [group for group in self._dead_groups if not group.remove()]

    def _makeable(self) -> list[str]:
        """Return the interpreters for which a box is wanted and can be begun."""
        return [name for name, shapes in self._to_make.items() if shapes and self._making[name] < _MAKING_AT_ONCE]

    def _obey(self) -> None:
        datagram = self._control.recv(wire.DATAGRAM_BYTES)
        if not datagram:
            self._served = False
            return
        kind, *fields = wire.unpack(datagram)
        if kind == "arm":
            shape = wire.Shape(*fields)
            self._to_make[shape.interpreter].append(shape)
            return
        box = self._armed.get(fields[0])
        if box is not None and kind == "bound":
            box.memory_limit_bytes = fields[1]
            self._sampled.add(box)
        elif box is not None and kind == "bound_cpu":
            box.cpu_limit_ns = fields[1]
            box.cpu_check_due_s = 0.0
            self._sampled.add(box)
        elif box is not None and kind == "timeline":
            timeline.begin(box)
            self._sampled.add(box)

    def _on_signal(self) -> None:
        os.read(self._signalled_fd, 64)
        self._served = os.getppid() == self._service_pid

    def _on_nursery_lost(self) -> None:
        raise RuntimeError("the nursery was killed")

    # Making

    def _make(self, shape: wire.Shape) -> None:
        self._last_number += 1
        self._making[shape.interpreter] += 1
        try:
            self._maker.make(self._last_number, shape)
        except OSError as error:
            self._on_unarmed(shape, f"cannot make a box: {error}")

    def _on_armed(self, box: Box, fds: list[int]) -> None:
        """Hand a box over to the service: order channel, outputs, and a copy of its pidfd."""
        self._making[box.shape.interpreter] -= 1
        self._armed[box.number] = box
        self._send("armed", *box.shape, box.number, fds=fds)

    def _on_unarmed(self, shape: wire.Shape, what: str) -> None:
        self._making[shape.interpreter] -= 1
        self._send("unarmed", *shape, what)

    # Bounding

    def _pause_s(self) -> float | None:
        if self._dead_groups:
            return watchdog.INTERVAL_S
        if not self._sampled:
            return _EXPIRY_CHECK_S if any(self._making.values()) else None
        now_s = time.monotonic()
        return max(0.001, min(_sample_due_s(box, now_s) for box in self._sampled) - now_s)

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
        pids = watchdog.tree(box.pid()) if box.group is None else []
        if box.memory_limit_bytes:
            held_bytes = watchdog.memory_bytes(pids[1:], box.work_directory_fd, box.memory_limit_bytes)
            box.peak_memory_bytes = max(box.peak_memory_bytes, held_bytes)
            if held_bytes > box.memory_limit_bytes:
                box.cpu_ns = watchdog.cpu_ns(pids)
                box.kill("memory")
        if box.cpu_limit_ns and now_s >= box.cpu_check_due_s:
            box.cpu_ns = box.group.cpu_ns() if box.group else watchdog.cpu_ns(pids)
            left_ns = box.cpu_limit_ns - (sum(box.cpu_ns) - sum(box.arming_cpu_ns))
            if left_ns > -_CPU_OF_OURS_NS:
                # All processors together cannot spend what is left any sooner.
                box.cpu_check_due_s = now_s + max(_CPU_CHECK_S, left_ns / 1e9 / (os.cpu_count() or 1))
            elif box.stop_asked:
                box.kill("cpu")
            else:
                box.stop_asked = True
                box.cpu_check_due_s = now_s + _STOP_TIMEOUT_S
                self._send("over_cpu", box.number, *_used(box))
        if box.point_pause_s and now_s >= box.point_due_s:
            timeline.passed(box, now_s)
            self._send("point", box.number, *timeline.look(box))

    # Burying

    def _on_dead(self, box: Box, status: int) -> None:
        """Forget a box of which nothing is left; tell its end unless it has told it itself."""
        os.close(box.pidfd)
        if box.work_directory_fd >= 0:
            os.close(box.work_directory_fd)
        self._sampled.discard(box)
        del self._armed[box.number]
        if status != 0:
            reaped = wire.Reaped(box.kill_reason, *_used(box), box.peak_memory_bytes)
            self._send("reaped", box.number, *reaped)

    def _bury_all(self) -> None:
        """Kill every box, wait until each is gone, and remove the cgroups.  The service hears nothing of it."""
        self._maker.close()
        if self._nursery_pid:
            os.kill(self._nursery_pid, signal.SIGKILL)
            os.waitpid(self._nursery_pid, 0)
        groups = self._maker.groups() + self._dead_groups
        deadline_s = time.monotonic() + 1.0
        while groups := [group for group in groups if not group.remove()]:
            if time.monotonic() > deadline_s:
                break
            time.sleep(0.002)
        if self._hierarchy is not None:
            self._hierarchy.remove()

    def _listen(self, fd: int, on_readable: Callable[[], None]) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._on_readable[fd] = on_readable

    def _forget(self, fd: int) -> None:
        if self._on_readable.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _send(self, *message: object, fds: list[int] | None = None) -> None:
        socket.send_fds(self._control, [wire.pack(*message)], fds or [])


def _sample_due_s(box: Box, now_s: float) -> float:
    """Return when `box` is to be looked at next."""
    dues = [now_s + watchdog.INTERVAL_S] if box.memory_limit_bytes else []
    if box.cpu_limit_ns:
        dues.append(box.cpu_check_due_s)
    if box.point_pause_s:
        dues.append(box.point_due_s)
    return min(dues)


def _used(box: Box) -> tuple[int, int]:
    """Return user and system time that a box has used since it was armed, as it was looked at last."""
    (user_ns, system_ns), (arming_user_ns, arming_system_ns) = box.cpu_ns, box.arming_cpu_ns
    return max(0, user_ns - arming_user_ns), max(0, system_ns - arming_system_ns)


def _exec_texts(command: tuple[str, ...], environment: dict[bytes, bytes]) -> bytes:
    """Return arguments and environment as native/confine.h has them."""
    variables = [name + b"=" + value for name, value in environment.items()]
    return b"".join(text + b"\0" for text in (*(text.encode() for text in command), b"", *variables))


def _native_files(folder: str, seccomp_filter: bytes) -> list[tuple[str, bytes]]:
    if not folder:
        return []
    files = [("filter.bpf", seccomp_filter)]
    for name in os.listdir(folder):
        with open(f"{folder}/{name}", "rb") as file:
            files.append((name, file.read()))
    return files


_CGROUP_FIX: Final = "delegate a cgroup to the service (systemd: Delegate=yes)"
_COMPILER_FIX: Final = "apt install gcc libc6-dev"
_USERNS_FIX: Final = (
    "allow unprivileged user namespaces: sysctl user.max_user_namespaces=15000, and where they exist "
    "kernel.unprivileged_userns_clone=1 and kernel.apparmor_restrict_unprivileged_userns=0; "
    "in a container, run with a seccomp profile that permits clone and mount"
)
_MOUNT_FIX: Final = (
    "in a container, run as an ordinary user (--user 1000:1000) and permit mounts: "
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined"
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
        if all(any(inner <= first and first + HOST_UIDS <= inner + n for inner, _, n in map_) for map_ in maps):
            return first
    raise Refused(
        "root's user namespace maps no uids to run programs as",
        f"map {HOST_UIDS} subordinate uids and gids from {_HOST_UID_RANGES[-1]}, or run as an ordinary user",
    )
