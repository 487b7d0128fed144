"""Programs on a kernel of their own: gVisor's, inside a box like any other.

Theory of operation.  The box stays what it is: namespaces, cgroup, limits, pid 1 that alone tells the end, no network.
What its runner execs is not the program but ``runsc run``, with an OCI bundle that describes the same view: the same
read-only root, /box and /tmp.  Every system call of the program is answered by gVisor's kernel, a process without
privilege in the box; ours refuses that process less than it refuses a program (`seccomp.assemble_for_monitor`), which
is what somebody who breaks out of gVisor would stand in.

Bundle and state of runsc lie in the box's /run, which the program cannot see: its own /run is empty.

What differs for a program: it is root, of nothing; uname says Linux 4.4; a signal that kills it is told as exit code
128 + n, as a shell does; time and memory of gVisor itself, about 0.1 s and 30 MiB, are on its account.
"""

import json
import resource
import shutil
from typing import Any, Final

from .keeper import wire

_BUNDLE: Final = "/run/bundle"
_CONFIG_FILE: Final = f"..{_BUNDLE}/config.json"
"""Its path as seen from the work directory, where the files of an order are written."""
_FLAGS: Final = ("--rootless", "--network=none", "--ignore-cgroups", "--overlay2=none", "--root=/run/state")
_IN_CONTAINER: Final = {
    resource.RLIMIT_FSIZE: "RLIMIT_FSIZE",
    resource.RLIMIT_NOFILE: "RLIMIT_NOFILE",
    resource.RLIMIT_NPROC: "RLIMIT_NPROC",
    resource.RLIMIT_CPU: "RLIMIT_CPU",
    resource.RLIMIT_AS: "RLIMIT_AS",
}
_OF_MONITOR: Final = (resource.RLIMIT_NPROC,)
"""Limits that gVisor's own processes bear as well; it needs files that are larger and more of them."""


def find() -> str | None:
    """Return the path of runsc, where it is installed."""
    return shutil.which("runsc")


def on_own_kernel(order: wire.Order, runsc: str) -> wire.Order:
    """Return the order that has `runsc` carry out what `order` says, in the same box."""
    config = json.dumps(_config(order)).encode()
    return order._replace(
        files=(*order.files, (_CONFIG_FILE, config)),
        argv=(runsc.encode(), *(flag.encode() for flag in _FLAGS), b"run", b"--bundle", _BUNDLE.encode(), b"box"),
        env={b"PATH": b"/usr/bin:/bin"},
        rlimits=tuple(limit for limit in order.rlimits if limit[0] in _OF_MONITOR),
    )


def _config(order: wire.Order) -> dict[str, Any]:
    """Return the OCI runtime configuration (config.json) of a program."""
    nothing: dict[str, list[str]] = {
        kind: [] for kind in ("bounding", "effective", "inheritable", "permitted", "ambient")
    }
    return {
        "ociVersion": "1.0.2",
        "hostname": "runtape",
        "root": {"path": "/"},  # mounted read-only already, in a way that may not be changed
        "process": {
            "user": {"uid": 0, "gid": 0},  # the one user that the box has, as its kernel numbers it
            "args": [_text(argument) for argument in order.argv],
            "env": [f"{_text(name)}={_text(value)}" for name, value in order.env.items()],
            "cwd": "/box",
            "noNewPrivileges": True,
            "capabilities": nothing,
            "rlimits": [
                {"type": _IN_CONTAINER[kind], "soft": soft, "hard": hard} for kind, soft, hard in order.rlimits
            ],
        },
        "mounts": [
            {"destination": "/box", "type": "bind", "source": "/box", "options": ["rw", "nosuid", "nodev"]},
            {"destination": "/tmp", "type": "bind", "source": "/box/.tmp", "options": ["rw", "nosuid", "nodev"]},
            {"destination": "/run", "type": "tmpfs", "source": "run", "options": ["ro"]},
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "dev"},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]},
    }


def _text(value: bytes) -> str:
    """Return `value` as JSON can carry it."""
    return value.decode(errors="replace")
