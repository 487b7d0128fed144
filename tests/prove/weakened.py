"""A sandbox with one layer dropped, so that `runtape prove` has something to find.

No setting of the product reaches this: the keeper is started by another boot file, which takes a layer away before it
serves.  All else is the product's own, from the service to the box.
"""

from pathlib import Path

import pytest

from runtape.adapters.sandbox import keeper_process

BOOT = """
import sys
sys.path.append({folder!r})
from keeper import box, cgroups, init, linux, service

{weakness}

service.main(control_fd=int(sys.argv[1]), lock_fd=int(sys.argv[2]))
"""

NO_FILTER = "linux.install_filter = lambda program: None"
NO_NETWORK_NAMESPACE = "box._NAMESPACES &= ~linux.CLONE_NEWNET; box._raise_loopback = lambda: None"
WRITABLE_MOUNTS = "linux.set_mount_attributes = lambda *_, **__: None"
NO_CAPABILITY_DROPPED = "linux.drop_capabilities = linux.forbid_new_privileges = lambda: None"
DESCRIPTORS_INHERITED = """
def close_from(lowest_fd):
    import os
    for fd in (100, 101):
        os.dup2(0, fd)
linux.close_from = close_from
"""
NOBODY_WATCHES = """
def unusable(*_):
    raise cgroups.Unusable("dropped")
cgroups.open_hierarchy = unusable
service.Keeper._sample_one = lambda *_: None
"""
TREE_NOT_KILLED = "init._kill_tree = lambda *_: None"
REFUSED = """
def refuse():
    raise service.Refused("walls are sold out", "come back tomorrow")

def exit_when_hung_up_on(code, exit=service.os._exit):
    service.os.read(int(sys.argv[1]), 1)
    exit(code)

service._check_machine = refuse
service.os._exit = exit_when_hung_up_on
"""


def weaken(weakness: str, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have every keeper that is started from now on drop a layer."""
    boot = folder / "boot.py"
    package = Path(keeper_process.__file__).parent
    boot.write_text(BOOT.format(folder=str(package), weakness=weakness))
    patch.setattr(keeper_process, "_BOOT", boot)
