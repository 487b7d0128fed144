"""A machine within this one, on which a node of Kubernetes does as it likes.

It is made of namespaces: its processes, its mounts and its network are its own, and end with its first process, which
ends with who started it.  What a node does to the machine that it has is done to this one and gone with it: mounts,
bridges, the shims of containers, what it writes below /run, /var/lib and /var/log, and what it sets of the kernel.
Only control groups are everybody's; those of a machine are below a group with a name of its own, which `stop` removes.
"""

import contextlib
import ctypes
import errno
import http.client
import os
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.rig import store
from tests.rig.kubernetes import programs
from tests.rig.part import LOOK_AGAIN_S, STOP_S, Part
from tests.rig.store import Unobtainable

PROGRAMS = ("unshare", "nsenter", "setpriv", "ip")
OWN_FOLDERS = ("/run", "/var/lib", "/var/log")
# A kubelet sets them, and nobody knows namespaces of them: it sets files that lie over them.
OWN_SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
ADDRESS = "10.244.0.1"
"""What a node calls itself: a loopback will not do."""
BRIDGE = "cni0"
ANSWER_S = 2.0
UNSHARE = ("unshare", "--mount", "--net", "--pid", "--mount-proc", "--propagation", "private", "--fork", "--kill-child")

_CLONE_NEWNET = 0x40000000
_GROUP = "runtape-rig-"


def why_impossible() -> str | None:
    """Return why no machine can be made on this one, None if it can."""
    for program in PROGRAMS:
        if shutil.which(program) is None:
            return f"needs {program}; on Debian: apt install util-linux iproute2"
    done = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"namespaces cannot be made here: {done.stderr.strip()}"
    if fixed := [str(root) for root in hierarchies() if not os.access(root, os.W_OK)]:
        return f"control groups cannot be made here, below {', '.join(fixed)}"
    return None


def hierarchies() -> list[Path]:
    """Return where control groups are mounted."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(where) for _, where, kind, *_ in mounts if kind in ("cgroup", "cgroup2")]


def enter_network(of_process: int) -> None:
    """Let this thread make its sockets in the network of another process.  Raises: OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(f"/proc/{of_process}/ns/net", os.O_RDONLY)
    try:
        if library.setns(namespace, _CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(namespace)


class Inner(Part):
    """A part whose command begins one process in other namespaces, and ends when that does."""

    @property
    def pid(self) -> int:
        """The process in those namespaces, by its number here.  Raises: ProcessLookupError, when it has ended."""
        outer = super().pid
        assert self._process is not None
        while self._process.poll() is None:
            if children := Path(f"/proc/{outer}/task/{outer}/children").read_text().split():
                return int(children[0])
            time.sleep(LOOK_AGAIN_S)
        raise ProcessLookupError(f"{type(self).__name__} has ended: {self.said()}")

    def _signal(self, number: signal.Signals) -> None:
        # Who waits for it stands still and ends as it does, but would not notice the end while it stands still.
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):  # it ends by itself at this moment
            os.kill(self.pid, number)
        if number in (signal.SIGKILL, signal.SIGCONT):
            self._process.send_signal(signal.SIGCONT)


class Machine(Inner):
    """The namespaces, which hold nothing but their first process."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._first = 0
        self._network: ThreadPoolExecutor | None = None

    @property
    def control_group(self) -> str:
        """The group that those of its pods are below, as a path from the root of each hierarchy."""
        return f"/{_GROUP}{self._first}"

    def command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        if reason := why_impossible():
            raise Unobtainable(reason)
        for folder in (self.folder.resolve(), store.folder().resolve()):
            if hidden := next(filter(folder.is_relative_to, OWN_FOLDERS), None):
                raise Unobtainable(f"{folder} cannot be seen on a machine with a {hidden} of its own")
        return [*UNSHARE, programs.pause()], os.environ

    def begin(self) -> None:
        super().begin()
        deadline = time.monotonic() + STOP_S
        while not self._has_begun():
            assert time.monotonic() < deadline, self.said()
            time.sleep(LOOK_AGAIN_S)
        self._first = self.pid
        self._network = ThreadPoolExecutor(1, "rig-network", enter_network, (self._first,))
        for name in OWN_FOLDERS:
            self.run("mount", "-t", "tmpfs", "tmpfs", name)
        for name in OWN_SETTINGS:
            self._shadow(Path("/proc/sys") / name)
        links = f"link set lo up\nlink add {BRIDGE} type bridge\naddress add {ADDRESS}/16 dev {BRIDGE}\n"
        self.run("ip", "-batch", "-", given=f"{links}link set {BRIDGE} up\n")
        for root in hierarchies():
            self._make_group(root)

    def _make_group(self, root: Path) -> None:
        for other in root.glob(f"{_GROUP}*"):
            if not _lives(other.name.removeprefix(_GROUP)):  # nobody was left to remove it
                _remove(other)
        group = root / self.control_group.lstrip("/")
        group.mkdir()
        for name in ("cpuset.cpus", "cpuset.mems"):  # what is empty lets no process in
            if (root / name).exists() and not (group / name).read_text().strip():
                (group / name).write_text((root / name).read_text())

    def _has_begun(self) -> bool:
        # Before, it is still the program that makes the namespaces.
        return Path(f"/proc/{self.pid}/exe").readlink() == programs.pause()

    def answers(self) -> bool:
        return not self.has_ended()

    def _shadow(self, setting: Path) -> None:
        """Lay a file over a setting of the kernel."""
        copy = Path("/run/settings") / setting.name
        self.path(copy).parent.mkdir(exist_ok=True)
        self.path(copy).write_text(setting.read_text())
        self.run("mount", "--bind", copy, setting)

    def path(self, path: Path) -> Path:
        """Return by what path a file of the machine can be reached from without."""
        return Path(f"/proc/{self._first}/root") / path.relative_to("/")

    def place(self, folder: Path, where: Path) -> None:
        """Let a folder, which is made, be seen on the machine at a path below those that are its own."""
        folder.mkdir(parents=True)
        self.path(where).mkdir(parents=True)
        self.run("mount", "--bind", folder, where)

    def within(self, command: Sequence[str | Path]) -> list[str | Path]:
        """Return the command that runs another on the machine."""
        return ["nsenter", "--target", str(self._first), "--mount", "--net", "--pid", "--", *command]

    def run(self, *command: str | Path, given: str = "") -> None:
        """Run a command on the machine to its end.  Raises: AssertionError, with what it said."""
        done = subprocess.run(self.within(command), input=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command[0]}: {done.stderr.strip()}"

    def status_of(self, port: int, path: str, *, encrypted: bool = True) -> int | None:
        """Return the HTTP status that a server answers with at that port of the machine's loopback; None: nothing."""
        assert self._network is not None
        return self._network.submit(_status_of, port, path, encrypted).result()

    def _end(self, number: signal.Signals) -> None:
        super()._end(number)
        if self._network is not None:
            self._network.shutdown()  # a network lasts as long as a thread is in it
            self._network = None
        if self._first:
            for root in hierarchies():
                _remove(root / self.control_group.lstrip("/"))


def _status_of(port: int, path: str, encrypted: bool) -> int | None:
    if encrypted:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=ANSWER_S, context=context)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _lives(first: str) -> bool:
    """Whether a process is the first of a machine, and neither dead already nor another with the same number."""
    try:
        return Path("/proc", first, "exe").readlink().name == "pause"
    except OSError:
        return False


def _remove(group: Path) -> None:
    """Remove a control group and those below, whose processes are dead, or will be in a moment."""
    deadline = time.monotonic() + STOP_S
    for folder, _, _ in os.walk(group, topdown=False):
        while True:
            try:
                Path(folder).rmdir()
                break
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(LOOK_AGAIN_S)
