"""A sandbox with one layer dropped, so that `runtape prove` has something to find.

No setting of the product reaches this.  The keeper is started by another boot file, which takes a layer away before it
serves; and the C programs are built from sources in which a line is changed.  All else is the product's own.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtape.adapters.sandbox import keeper_process, native

BOOT = """
import sys
sys.path.append({folder!r})
from keeper import cgroups, linux, nursery, seccomp, service

{weakness}

service.main(control_fd=int(sys.argv[1]), lock_fd=int(sys.argv[2]))
"""


@dataclass(frozen=True)
class Weakness:
    """What to run in the keeper before it serves, and which lines of which C sources to change."""

    keeper: str = ""
    programs: tuple[tuple[str, str, str], ...] = ()
    """(source, line, what stands there instead)."""


NO_FILTER = Weakness("import struct; seccomp.assemble = lambda machine: struct.pack('=HBBI', 6, 0, 0, seccomp.ALLOW)")
NO_NETWORK_NAMESPACE = Weakness(
    "nursery._NAMESPACES &= ~linux.CLONE_NEWNET",
    (
        ("nursery.c", "CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWUTS", "CLONE_NEWUSER | CLONE_NEWUTS"),
        ("slot.c", "return raise_loopback() < 0", "return raise_loopback() > 0"),
        ("zygote.c", "CLONE_NEWNS | CLONE_NEWNET |", "CLONE_NEWNS |"),
    ),
)
WRITABLE_MOUNTS = Weakness("linux.set_mount_attributes = lambda *_, **__: None")
NO_CAPABILITY_DROPPED = Weakness(
    programs=(
        ("confine.c", "prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0", "0"),
        ("confine.c", "syscall(SYS_capset, &header, none) < 0", "header.version == 0 && none->effective"),
        ("confine.c", "prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0", "0"),
        ("nursery.c", "prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);", ""),
    )
)
DESCRIPTORS_INHERITED = Weakness(
    programs=(
        ("zygote.c", "return syscall(SYS_close_range, SYNC + 1, ~0u, 0);", "return dup2(0, 100) + dup2(0, 101) - 201;"),
        ("init.c", "    setsid();\n", "    setsid(); dup2(0, 100); dup2(0, 101);\n"),
    )
)
NOBODY_WATCHES = Weakness(
    """
def unusable(*_):
    raise cgroups.Unusable("dropped")
cgroups.open_hierarchy = unusable
service.Keeper._sample_one = lambda *_: None
"""
)
TREE_NOT_KILLED = Weakness(programs=(("init.c", "kill(-1, SIGKILL);", ""),))
LINKS_FOLLOWED = Weakness(
    programs=(
        ("collect.c", "&file, AT_SYMLINK_NOFOLLOW", "&file, 0"),
        ("collect.c", "(O_RDONLY | O_NOFOLLOW | O_NONBLOCK", "(O_RDONLY | O_NONBLOCK"),
    )
)
REFUSED = Weakness(
    """
def refuse():
    raise service.Refused("walls are sold out", "come back tomorrow")

service._check_machine = refuse
"""
)


def weaken(weakness: Weakness, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have every sandbox that is opened from now on drop a layer."""
    boot = folder / "boot.py"
    package = Path(keeper_process.__file__).parent
    boot.write_text(BOOT.format(folder=str(package), weakness=weakness.keeper))
    patch.setattr(keeper_process, "_BOOT", boot)
    if weakness.programs:
        sources = shutil.copytree(package / "native", folder / "native")
        for name, line, instead in weakness.programs:
            text = (sources / name).read_text()
            assert line in text, f"{name} has no {line!r} to weaken"
            (sources / name).write_text(text.replace(line, instead))
        patch.setattr(native, "_SOURCES", sources)
        patch.setattr("sys.prefix", str(folder / "nowhere"))
