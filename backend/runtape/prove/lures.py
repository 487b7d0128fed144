"""What stands outside for the programs to be tempted by: servers on this host, and a folder that no box can see.

The servers answer nothing; that a connection to them comes about at all is the leak.
"""

import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

_PRIVILEGED_STATUS: Final = "".join(
    f"{name}:\t{value}\n"
    for name, value in (
        ("Uid", "0\t0\t0\t0"),
        ("Gid", "0\t0\t0\t0"),
        ("Groups", "0"),
        *((name, "000001ffffffffff") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")),
        ("NoNewPrivs", "0"),
        ("Seccomp", "0"),
    )
)
"""The part of /proc/self/status that a process with all privileges would see."""
_UNUSED_ADDRESS: Final = "192.0.2.1"
"""TEST-NET-1 of RFC 5737: stands for an address that this machine does not have."""
_CONTENT: Final = {"file": "untouched", "cgroup.procs": ""}


@dataclass(frozen=True, slots=True)
class Bait:
    """A folder of the host for one program, and the names by which the program is told of it and of the servers."""

    folder: Path
    names: Mapping[str, str]

    def fill(self, text: str) -> str:
        """Return `text` with the names in braces replaced."""
        for name, value in self.names.items():
            text = text.replace(f"{{{name}}}", value)
        return text

    def also(self, names: Mapping[str, str]) -> "Bait":
        """Return the same with more names."""
        return replace(self, names={**self.names, **names})

    def touched(self) -> list[str]:
        """Return what has changed in the folder: something outside of the box has followed a path of the program."""
        now = {path.name: path.read_text() if path.is_file() else None for path in self.folder.iterdir()}
        changed = sorted(name for name in {*now, *_CONTENT} if now.get(name, 0) != _CONTENT.get(name, 0))
        return [f"{self.folder / name} was made, changed or removed outside" for name in changed]


class Lures:
    """The servers, and where the folders are made; used by `open_lures`."""

    def __init__(self, folder: Path, names: Mapping[str, str]) -> None:
        self._folder = folder
        self._names = names
        self._count = 0

    def tell(self, names: Mapping[str, str]) -> None:
        """Let programs be told of more by these names."""
        self._names = {**self._names, **names}

    @contextmanager
    def bait(self) -> Iterator[Bait]:
        """Lay out a folder for one program; removed afterwards."""
        self._count += 1
        outside = self._folder / f"outside-{self._count}"
        outside.mkdir()
        for name, content in _CONTENT.items():
            (outside / name).write_text(content)
        own = {"outside": outside, "outside_file": outside / "file", "outside_link": outside / "file.link"}
        try:
            yield Bait(outside, {**self._names, **{name: str(path) for name, path in own.items()}})
        finally:
            shutil.rmtree(outside)


@contextmanager
def open_lures(folder: Path) -> Iterator[Lures]:
    """Open servers on loopback and in `folder`, for as long as the context lasts."""
    with ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=128))
        udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        abstract = f"runtape-prove-{os.getpid()}"
        for address in (f"\0{abstract}", str(folder / "socket")):
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(address)
            server.listen(128)
        status = folder / "status"
        status.write_text(_PRIVILEGED_STATUS)
        yield Lures(
            folder,
            {
                "tcp_port": str(tcp.getsockname()[1]),
                "udp_port": str(udp.getsockname()[1]),
                "abstract": abstract,
                "outside_socket": str(folder / "socket"),
                "privileged_status": str(status),
                "core_pattern": _read("/proc/sys/kernel/core_pattern").strip() or "core",
                "nameserver": _nameserver(),
                "host_address": _host_address(),
            },
        )


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _nameserver() -> str:
    found = re.search(r"^nameserver\s+([\d.]+)\s*$", _read("/etc/resolv.conf"), re.MULTILINE)
    return found[1] if found else _UNUSED_ADDRESS


def _host_address() -> str:
    """Return the address that this machine sends from, or one that it does not have when it sends nowhere."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((_UNUSED_ADDRESS, 9))  # sends nothing: only the route is looked up
        except OSError:
            return _UNUSED_ADDRESS
        return probe.getsockname()[0]
