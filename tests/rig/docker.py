"""Docker's engine from Debian's packages, for this process alone: what is needed to test the rig in its containers.

The engine has a network, mounts and process ids of its own.  So nothing is left of it when it ends, however it ends:
neither a bridge nor a mount nor a container's process; its folder and empty groups of processes (cgroups) are all.
Ports that it publishes are on the loopback of its own network, which `inside` enters.  Root alone can have it.

It pulls images from that loopback alone, where a registry may be that was begun `within` it; `put` makes images of what
this machine has.
"""

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.rig import debian
from tests.rig.part import Part
from tests.rig.store import obtained

SUITE = "bookworm"
PACKAGES = ("docker.io", "containerd", "runc", "tini")
"""Static programs, so that any Debian runs those of this suite."""

NAMESPACES = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
CGROUPS = Path("/sys/fs/cgroup")
GROUP = "rig-docker"
_CLONE_NEWNET = 0x40000000

# Within its namespaces: its loopback is up, and what the engine keeps at fixed places is kept nowhere.
_BEGIN = """
import fcntl, os, socket, struct, subprocess, sys
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
for folder in ("/run", "/opt"):
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], check=True)
os.execv(sys.argv[1], sys.argv[1:])
"""


def programs() -> Path:
    """Return the folder that Docker is unpacked in.  Raises: Unobtainable."""
    return obtained(f"docker-{SUITE}", lambda folder: debian.unpack(PACKAGES, folder, suite=SUITE))


class Docker(Part):
    """One engine with its images and containers in `folder`, whose path is to be short: it has sockets in it."""

    @property
    def host(self) -> str:
        """What clients connect to."""
        return f"unix://{self.folder}/socket"

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which ``docker`` is a client of this engine."""
        found = [str(programs() / "usr" / each) for each in ("bin", "sbin")]
        return {"DOCKER_HOST": self.host, "PATH": os.pathsep.join([*found, os.environ.get("PATH", os.defpath)])}

    def command(self) -> tuple[Sequence[str | Path], Mapping[str, str]]:
        remove_groups()
        root = programs() / "usr"
        settings = {
            "hosts": [self.host],
            "data-root": f"{self.folder}/data",
            "exec-root": f"{self.folder}/exec",
            "pidfile": f"{self.folder}/pid",
            "deprecated-key-path": f"{self.folder}/key.json",  # its own choice would be below /etc
            "userland-proxy-path": str(root / "sbin" / "docker-proxy"),
            "cgroup-parent": f"/{GROUP}-{os.getpid()}",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            # A negative one, as it would choose, is not permitted everywhere, and nobody misses it here.
            "oom-score-adjust": 0,
            # Its network has no other side.
            "iptables": False,
            "ip6tables": False,
            "ip-forward": False,
            "ip-masq": False,
        }
        file = self.folder / "daemon.json"
        file.write_text(json.dumps(settings))
        begin = [sys.executable, "-c", _BEGIN, root / "sbin" / "dockerd", "--config-file", file]
        return ["unshare", *NAMESPACES, *begin], {**os.environ, **self.environment}

    def answers(self) -> bool:
        env = {**os.environ, **self.environment}
        return not subprocess.run(["docker", "version"], env=env, capture_output=True, check=False).returncode

    def _first(self) -> int | None:
        """Return the first process of its namespaces, with which all others end."""
        try:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        except OSError:
            return None
        return int(children[0]) if children else None

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        watched = None
        with contextlib.suppress(ProcessLookupError):
            first = self._first()
            watched = first and os.pidfd_open(first)
        super()._end(number)
        if watched is not None:
            select.select([watched], [], [])
            os.close(watched)
        remove_groups()

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Have this thread, and what it starts, in the engine's network."""
        first = Path(f"/proc/{self._first()}/ns/net")
        with Path("/proc/thread-self/ns/net").open() as ours, first.open() as its:
            _enter(its.fileno())
            try:
                yield
            finally:
                _enter(ours.fileno())

    def within(self, command: Sequence[str | Path]) -> list[str | Path]:
        """Return the command that has `command` in the engine's network."""
        return ["nsenter", f"--net=/proc/{self._first()}/ns/net", *command]


def put(name: str, tree: Path, changes: Sequence[str] = ()) -> None:
    """Make an image of the files below `tree`, with `changes` as in a Dockerfile."""
    changed = [word for change in changes for word in ("--change", change)]
    with subprocess.Popen(["tar", "-C", tree, "-c", "."], stdout=subprocess.PIPE) as packed:
        subprocess.run(
            ["docker", "import", *changed, "-", name], stdin=packed.stdout, stdout=subprocess.DEVNULL, check=True
        )


def _enter(network: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if library.setns(network, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def remove_groups() -> None:
    """Remove the groups of engines that have ended: containers that were killed with theirs leave them."""
    for group in (*CGROUPS.glob(f"{GROUP}-*"), *CGROUPS.glob(f"*/{GROUP}-*")):  # of versions 2 and 1
        pid = int(group.name.rpartition("-")[2])
        if pid == os.getpid() or not Path(f"/proc/{pid}").exists():
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)


def tree_of(programs: Sequence[Path], into: Path, libraries: Path | None = None) -> None:
    """Copy `programs` to ``/usr/bin`` of the tree `into`, with what they load from this machine or from `libraries`.

    A library that is in the tree already stays.
    """
    (into / "usr" / "bin").mkdir(parents=True, exist_ok=True)
    for program in programs:
        shutil.copy(program, into / "usr" / "bin")
        env = {**os.environ, "LD_LIBRARY_PATH": str(libraries or "")}
        told = subprocess.run(["ldd", program], env=env, capture_output=True, text=True, check=True).stdout
        for library in (Path(word) for word in told.split() if word.startswith("/")):
            place = library
            if libraries is not None and library.is_relative_to(libraries):
                place = "usr/lib" / library.relative_to(libraries)
            target = into / str(place).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                shutil.copy(library, target)
