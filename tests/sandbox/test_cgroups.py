"""Control groups of version 2, read and written as the kernel's documentation has them.

Here its controllers belong to version 1, so no test can have the kernel's own files: plain ones stand in, which tells
that they are found, parsed and written, and not what the kernel does with it.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtape.adapters.sandbox import native
from runtape.adapters.sandbox.keeper.cgroups import Group, Hierarchy, Unusable, delegate, located

CPU_STAT = """usage_usec 4242
user_usec 3000
system_usec 1242
core_sched.force_idle_usec 0
nr_periods 0
nr_throttled 0
throttled_usec 0
nr_bursts 0
burst_usec 0
"""
EVENTS = "low 0\nhigh 0\nmax 17\noom 3\noom_kill 2\noom_group_kill 1\nsock_throttled 0\n"
FILES = {
    "cgroup.procs": "",
    "memory.max": "max\n",
    "memory.swap.max": "max\n",
    "memory.oom.group": "0\n",
    "memory.current": "8192\n",
    "memory.peak": "1234567\n",
    "memory.events": EVENTS,
    "pids.max": "max\n",
    "cpu.stat": CPU_STAT,
}


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which new ones come with a kernel's files."""
    make = os.mkdir

    def make_as_the_kernel_does(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        make(path, mode, dir_fd=dir_fd)
        for name, text in FILES.items():
            fd = os.open(f"{path}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, dir_fd=dir_fd)
            os.write(fd, text.encode())
            os.close(fd)

    monkeypatch.setattr(os, "mkdir", make_as_the_kernel_does)
    return tmp_path


@pytest.fixture
def group(parent: Path) -> Iterator[Group]:
    hierarchy = Hierarchy("v2", dict.fromkeys(("memory", "pids", "cpuacct"), str(parent)))
    group = hierarchy.group("slot-1")
    group.make(64 << 20, 66)
    yield group
    group.close_files()


def test_limits_are_written(parent: Path, group: Group) -> None:
    group.attach(4711)
    written = {name: (parent / "slot-1" / name).read_text() for name in FILES}
    assert written["memory.max"].startswith("67108864")
    assert written["pids.max"].startswith("66")
    assert (written["memory.swap.max"][0], written["memory.oom.group"][0]) == ("0", "1")
    assert written["cgroup.procs"] == "4711"


def test_usage_is_read(parent: Path, group: Group) -> None:
    assert group.cpu_ns() == (3_000_000, 1_242_000)
    assert group.memory_bytes() == 8192
    assert group.peak_memory_bytes() == 1_234_567
    assert group.oom_kills() == 2
    (parent / "slot-1/memory.peak").unlink()
    assert group.peak_memory_bytes() == 0  # before Linux 5.19


def test_slot_is_handed_each_file_at_its_place(group: Group) -> None:
    files = group.open_slot_files()
    names = {place: Path(os.readlink(f"/proc/self/fd/{fd}")).name for place, fd in files.items()}
    assert names == {
        2: "cgroup.procs",
        5: "memory.max",
        6: "pids.max",
        7: "memory.peak",
        8: "memory.events",
        9: "cpu.stat",
    }


@pytest.mark.parametrize(
    ("groups", "mounts", "bases", "unified"),
    [
        pytest.param(
            "0::/system.slice/runtape.service\n",
            "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
            {},
            "/sys/fs/cgroup/system.slice/runtape.service",
            id="systemd",
        ),
        pytest.param(
            "0::/\n",
            "900 899 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw\n",
            {},
            "/sys/fs/cgroup",
            id="container with a namespace",
        ),
        pytest.param(
            "0::/docker/ab12\n",
            "900 899 0:30 /docker/ab12 /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n",
            {},
            "/sys/fs/cgroup",
            id="container without",
        ),
        pytest.param(
            "9:memory:/user\n8:cpu,cpuacct:/\n7:pids:/user\n0::/x\n",
            "30 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            "31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
            "32 24 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"
            "33 24 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            {
                "memory": "/sys/fs/cgroup/memory/user",
                "cpuacct": "/sys/fs/cgroup/cpu",
                "pids": "/sys/fs/cgroup/pids/user",
            },
            "/sys/fs/cgroup/unified/x",
            id="both versions",
        ),
        pytest.param("0::/\n", "30 24 8:1 / / rw - ext4 /dev/sda rw\n", {}, "", id="none"),
    ],
)
def test_own_group_is_found(groups: str, mounts: str, bases: dict[str, str], unified: str) -> None:
    assert located(groups, mounts) == (bases, unified)


def delegated(base: Path, controllers: str, enabled: str = "", processes: str | None = None) -> Path:
    """Make `base` look like a group that was handed to us, not the root group when it has `processes`."""
    (base / "cgroup.controllers").write_text(controllers)
    (base / "cgroup.subtree_control").write_text(enabled)
    if processes is not None:
        (base / "cgroup.type").write_text("domain\n")
        (base / "cgroup.procs").write_text(processes)
    return base


def test_group_without_the_controllers_is_of_no_use(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=f"memory and pids not delegated to {tmp_path}"):
        delegate(str(delegated(tmp_path, "cpuset cpu io hugetlb\n")))
    with pytest.raises(Unusable, match="pids not delegated"):
        delegate(str(delegated(tmp_path, "cpu memory\n")))


def test_group_that_delegates_already_is_left_as_it_is(tmp_path: Path) -> None:
    base = delegated(tmp_path, "cpu memory pids\n", "memory pids\n", "1\n")
    delegate(str(base))
    assert (base / "cgroup.subtree_control").read_text() == "memory pids\n"


def test_service_alone_in_its_group_moves_to_a_leaf(parent: Path) -> None:
    base = delegated(parent, "cpu memory pids\n", "", f"{os.getpid()}\n")
    delegate(str(base))
    assert (base / "runtape-service/cgroup.procs").read_text() == str(os.getpid())
    assert (base / "cgroup.subtree_control").read_text() == "+memory +pids"


def test_group_with_others_in_it_is_not_touched(tmp_path: Path) -> None:
    base = delegated(tmp_path, "cpu memory pids\n", "", f"{os.getpid()}\n1\n")
    with pytest.raises(Unusable, match="holds other processes too"):
        delegate(str(base))
    assert (base / "cgroup.subtree_control").read_text() == ""


DRIVER = """
#include "confine.h"
#include <fcntl.h>
#include <stdio.h>
int main(int count, char **arguments) {
    int fd = open(arguments[1], O_RDONLY);
    printf("%llu", (unsigned long long)(count > 2 ? field_in(fd, arguments[2]) : number_in(fd)));
}
"""


@pytest.mark.needs("c")
def test_programs_in_c_read_the_same(tmp_path: Path) -> None:
    sources = Path(native.__file__).parent / "native"
    (tmp_path / "driver.c").write_text(DRIVER)
    compiler = native.compiler()
    assert compiler is not None
    driver = tmp_path / "driver"
    command = [compiler, "-I", sources, "-o", driver, tmp_path / "driver.c", sources / "confine.c"]
    subprocess.run(command, check=True, capture_output=True)

    def read(text: str, *field: str) -> int:
        (tmp_path / "file").write_text(text)
        return int(subprocess.run([driver, tmp_path / "file", *field], check=True, capture_output=True).stdout)

    assert (read(CPU_STAT, "user_usec"), read(CPU_STAT, "system_usec")) == (3000, 1242)
    assert read(EVENTS, "oom_kill") == 2
    assert read(EVENTS, "kill") == 0
    assert read("oom_kill_disable 1\nunder_oom 0\noom_kill 5\n", "oom_kill") == 5  # version 1
    assert (read("1234567\n"), read("18446744073709551615\n")) == (1_234_567, 2**64 - 1)
