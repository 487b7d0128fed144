"""What a program finds when it looks around: every fact here is one that an escape would change."""

import json
import os
import socket
import threading
from pathlib import Path

import pytest

from runtape.adapters.sandbox import LocalSandbox
from tests.sandbox.conftest import WAYS
from tests.sandbox.runs import descendants, name_of, run, start, until_printed, way_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.needs("sandbox")]


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return request.param


async def probe(sandbox: LocalSandbox, expression: str, imports: str = "os", **how: object) -> object:
    """Evaluate `expression` in a box; an OSError counts as its name."""
    script = f"import errno, json, {imports}\ntry:\n    result = {expression}\nexcept OSError as error:\n"
    script += "    result = errno.errorcode.get(error.errno, str(error))\nprint(json.dumps(result))"
    return json.loads((await run(sandbox, script, **how)).text)


SYSCALL = """
import ctypes, errno, json, os
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    ctypes.set_errno(0)
    result = libc.syscall(*[ctypes.c_long(n) if isinstance(n, int) else n for n in arguments])
    return errno.errorcode.get(ctypes.get_errno(), "OK") if result == -1 else "OK"
"""


async def syscall(sandbox: LocalSandbox, *arguments: int) -> str:
    """Make a system call in a box; return ``OK`` or the name of the error."""
    return (await run(sandbox, f"{SYSCALL}\nprint(call(*{arguments}))")).text


# The file system


@pytest.mark.parametrize(
    "path", ["/etc/shadow", "/root/.bashrc", "/home", "/var", "/sys", "/work", "/host", "/image", "/run", "/boot"]
)
async def test_folders_of_the_host_are_not_there(sandbox: LocalSandbox, path: str) -> None:
    assert await probe(sandbox, f"os.stat({path!r}).st_mode") == "ENOENT"


async def test_interpreter_and_its_library_are_there(sandbox: LocalSandbox) -> None:
    assert await probe(sandbox, "os.path.isfile('/usr/bin/bash')") is True


async def test_every_mount_but_the_work_directory_is_read_only(sandbox: LocalSandbox) -> None:
    mounts = str(await probe(sandbox, "open('/proc/self/mountinfo').read()")).splitlines()
    writable = {fields[4] for fields in map(str.split, mounts) if "rw" in fields[5].split(",")}
    assert writable == {"/box", "/tmp", "/proc"}
    assert all("nosuid" in fields[5].split(",") for fields in map(str.split, mounts))
    device_folders = {fields[4] for fields in map(str.split, mounts) if "nodev" not in fields[5].split(",")}
    assert device_folders == {"/", "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}


@pytest.mark.parametrize("path", ["/x", "/usr/lib/x", "/etc/x", "/dev/x", "/runtape/x"])
async def test_system_folders_cannot_be_written(sandbox: LocalSandbox, path: str) -> None:
    assert await probe(sandbox, f"open({path!r}, 'w').close()") == "EROFS"


@pytest.mark.parametrize("path", ["/usr/bin/bash", "/etc/passwd", "/runtape/python.py"])
async def test_system_files_cannot_be_written(sandbox: LocalSandbox, path: str) -> None:
    assert await probe(sandbox, f"open({path!r}, 'a').close()") in ("EROFS", "EACCES")


@pytest.mark.parametrize("path", ["/box/x", "/tmp/x", "/dev/shm/x"])
async def test_work_directory_and_tmp_can_be_written(sandbox: LocalSandbox, path: str) -> None:
    assert await probe(sandbox, f"open({path!r}, 'w').write('abc')") == 3


async def test_program_starts_in_a_work_directory_with_its_files_alone(sandbox: LocalSandbox) -> None:
    files = {"a.txt": b"1", "deep/er/b.bin": b"\0\xff"}
    found = "[sorted(os.listdir('.')), os.getcwd(), list(open('deep/er/b.bin', 'rb').read())]"
    assert await probe(sandbox, found, files=files) == [[".tmp", "a.txt", "deep", "main.py", "out"], "/box", [0, 255]]


async def test_run_finds_nothing_of_the_run_before(sandbox: LocalSandbox) -> None:
    for _ in range(6):
        script = "import os; print(os.listdir('/tmp')); open('/tmp/canary', 'w'); open('/box/canary', 'w')"
        assert (await run(sandbox, script)).text == "[]"


# Processes


async def test_program_sees_its_own_processes_alone(sandbox: LocalSandbox) -> None:
    seen = "[n for n in os.listdir('/proc') if n.isdigit()]"
    assert await probe(sandbox, f"[str(os.getpid())] == {seen}") is True


@pytest.mark.parametrize("name", ["environ", "mem", "maps", "cwd", "root", "fd", "stat"])
async def test_first_process_of_the_box_cannot_be_looked_into(sandbox: LocalSandbox, name: str) -> None:
    assert await probe(sandbox, f"os.stat('/proc/1/{name}').st_mode") == "ENOENT"


@pytest.mark.parametrize("name", ["kcore", "sysrq-trigger", "kallsyms", "cmdline", "keys", "sys", "meminfo"])
async def test_proc_shows_processes_and_nothing_of_the_machine(sandbox: LocalSandbox, name: str) -> None:
    assert await probe(sandbox, f"os.stat('/proc/{name}').st_mode") == "ENOENT"


async def test_signals_to_the_first_process_change_nothing(sandbox: LocalSandbox) -> None:
    script = "import os, time\nfor n in range(1, 65):\n    if n not in (15, 32, 33): os.kill(1, n)\n"
    script += "time.sleep(0.1); print('alive')"
    assert (await run(sandbox, script)).text == "alive"


async def test_limits_of_the_first_process_cannot_be_changed(sandbox: LocalSandbox) -> None:
    assert await probe(sandbox, "resource.prlimit(1, resource.RLIMIT_AS, (0, 0))", "resource") == "EPERM"
    assert await probe(sandbox, "resource.prlimit(0, resource.RLIMIT_CORE)", "resource") == [1, 1]


async def test_status_of_the_process_says_it_is_confined(sandbox: LocalSandbox) -> None:
    text = str(await probe(sandbox, "open('/proc/self/status').read()"))
    status = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
    for field in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[field], 16) == 0, field
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert status["Uid"].split() == status["Gid"].split() == ["1000"] * 4
    assert status["Groups"].strip() == ""


async def test_program_is_an_unprivileged_user_outside(sandbox: LocalSandbox) -> None:
    key = await start(sandbox, "print('up', flush=True)\nimport time; time.sleep(60)")
    await until_printed(sandbox, key, b"up")
    uids = {uid_in_box(pid) for pid in descendants(os.getpid()) if name_of(pid).startswith("python")} - {None}
    assert uids
    assert all(uid == os.geteuid() or uid >= 30_000 for uid in uids if uid is not None)
    assert 0 not in uids
    await sandbox.remove(key)


def uid_in_box(pid: int) -> int | None:
    """Return the uid of a process in a user namespace that has no user but `BOX_UID`; None of any other."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        if Path(f"/proc/{pid}/uid_map").read_text().split()[:1] != ["1000"]:
            return None
    except OSError:
        return None
    return int(next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1])


async def test_every_namespace_is_its_own(sandbox: LocalSandbox) -> None:
    names = ["user", "pid", "mnt", "net", "ipc", "uts", "cgroup"]
    seen = [await probe(sandbox, f"[os.readlink('/proc/self/ns/' + n) for n in {names}]") for _ in range(2)]
    host = [os.readlink(f"/proc/self/ns/{name}") for name in names]
    for first, second, outside in zip(*seen, host, strict=True):  # pyright: ignore[reportArgumentType]
        assert len({first, second, outside}) == 3


async def test_no_descriptor_is_inherited_but_three(sandbox: LocalSandbox) -> None:
    # The fourth is the folder that is being listed.
    assert await probe(sandbox, "len(os.listdir('/proc/self/fd'))") == 4
    assert (await run(sandbox, "ls /proc/self/fd | tr '\\n' ' '", lang="bash")).text.split()[:3] == ["0", "1", "2"]


async def test_environment_holds_nothing_of_the_service(sandbox: LocalSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTAPE_SECRET", "canary")
    env = await probe(sandbox, "dict(os.environ)")
    assert isinstance(env, dict)
    assert {*env} == {"PATH", "HOME", "LANG", "MPLBACKEND"}
    assert env["HOME"] == "/box"


async def test_environment_of_the_request_is_added_as_it_is(sandbox: LocalSandbox) -> None:
    env = {"A": "x=y z", "LD_PRELOAD": "/box/none.so", "ÜNI": "☃"}
    found = await run(sandbox, 'printf "%s|%s" "$A" "$LD_PRELOAD"; env | grep -c ☃', lang="bash", env=env)
    assert found.stdout == b"x=y z|/box/none.so1\n"


async def test_limits_of_the_process_are_those_of_the_request(sandbox: LocalSandbox) -> None:
    names = ["CORE", "MEMLOCK", "MSGQUEUE", "NOFILE", "NPROC", "FSIZE"]
    hard_limits = f"[resource.getrlimit(getattr(resource, 'RLIMIT_' + n))[1] for n in {names}]"
    found = await probe(sandbox, hard_limits, "resource")
    ours = {"in_python": 1}.get(await way_of(sandbox), 2)  # pid 1, and a slot
    assert found == [1, 0, 0, 256, 64 + ours, 64 << 20]


# The network


async def test_only_loopback_exists_and_works(sandbox: LocalSandbox) -> None:
    assert await probe(sandbox, "[name for _, name in socket.if_nameindex()]", "socket") in (["lo"], "EPERM")
    script = """
import socket, threading
server = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=lambda: server.accept()[0].sendall(b"hello")).start()
print(socket.create_connection(server.getsockname()).recv(5).decode())
"""
    assert (await run(sandbox, script)).text == "hello"


async def test_port_of_the_run_before_is_free(sandbox: LocalSandbox) -> None:
    script = """
import socket, threading
server = socket.socket()
server.bind(("127.0.0.1", 8080))
server.listen()
def serve():
    peer, _ = server.accept()
    peer.close()  # who closes first has to wait
client = threading.Thread(target=lambda: socket.create_connection(("127.0.0.1", 8080)).recv(1))
client.start(); serve(); client.join()
print("served")
"""
    for _ in range(12):
        assert (await run(sandbox, script)).text == "served"


@pytest.mark.parametrize("address", ["192.0.2.1", "169.254.169.254", "10.0.0.1"])
async def test_no_address_outside_can_be_reached(sandbox: LocalSandbox, address: str) -> None:
    assert await probe(sandbox, f"socket.create_connection(({address!r}, 80), 1)", "socket") == "ENETUNREACH"


async def test_servers_of_the_host_cannot_be_reached(sandbox: LocalSandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0runtape-test-canary")
        abstract.listen()
        accepted = threading.Thread(target=lambda: tcp.accept()[0].close())
        accepted.start()
        port = tcp.getsockname()[1]
        assert await probe(sandbox, f"socket.create_connection(('127.0.0.1', {port}), 1)", "socket") == "ECONNREFUSED"
        connect = "socket.socket(socket.AF_UNIX).connect('\\0runtape-test-canary')"
        assert await probe(sandbox, connect, "socket") == "ECONNREFUSED"
        socket.create_connection(("127.0.0.1", port)).close()  # it was there all the time
        accepted.join()


@pytest.mark.parametrize("family", [16, 17, 38, 40])  # netlink, packet, alg, vsock
async def test_other_socket_families_are_refused(sandbox: LocalSandbox, family: int) -> None:
    assert await probe(sandbox, f"socket.socket({family}, socket.SOCK_DGRAM)", "socket") == "EPERM"


# System calls

CLONE_NEWUSER = 0x10000000


async def test_allowed_calls_are_allowed(sandbox: LocalSandbox) -> None:
    assert await syscall(sandbox, 39) == "OK"  # getpid


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("unshare", (272, CLONE_NEWUSER)),
        ("clone of a user namespace", (56, CLONE_NEWUSER | 17, 0, 0, 0, 0)),
        ("setns", (308, 0, 0)),
        ("mount", (165, 0, 0, 0, 0, 0)),
        ("pivot_root", (155, 0, 0)),
        ("chroot", (161, 0)),
        ("ptrace", (101, 0, 0, 0, 0)),
        ("process_vm_readv", (310, 1, 0, 0, 0, 0, 0)),
        ("bpf", (321, 0, 0, 0)),
        ("perf_event_open", (298, 0, 0, 0, 0, 0)),
        ("io_uring_setup", (425, 1, 0)),
        ("userfaultfd", (323, 0)),
        ("keyctl", (250, 0, 0, 0, 0, 0)),
        ("add_key", (248, 0, 0, 0, 0, 0)),
        ("kexec_load", (246, 0, 0, 0, 0)),
        ("memfd_create", (319, 0, 0)),
        ("shmget", (29, 0, 4096, 0o1600)),
        ("mq_open", (240, 0, 0, 0, 0)),
        ("open_by_handle_at", (304, 0, 0, 0)),
        ("pidfd_getfd", (438, 0, 0, 0)),
        ("personality", (135, 0)),
        ("seccomp", (317, 0, 0, 0)),
        ("prctl of dumpable", (157, 4, 0, 0, 0, 0)),
        ("ioctl that types into a terminal", (16, 0, 0x5412, 0)),
        ("mknod of a device", (133, 0, 0o020666, 0x103)),
    ],
)
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
async def test_call_is_refused(sandbox: LocalSandbox, name: str, arguments: tuple[int, ...]) -> None:
    assert await syscall(sandbox, *arguments) == "EPERM"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
async def test_calls_that_libc_can_do_without_are_unknown(sandbox: LocalSandbox) -> None:
    assert await syscall(sandbox, 435, 0, 0) == "ENOSYS"  # clone3
    assert await syscall(sandbox, 999) == "ENOSYS"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 is of x86_64")
async def test_x32_call_kills(sandbox: LocalSandbox) -> None:
    result = await run(sandbox, f"{SYSCALL}\ncall({0x40000000 + 39})")
    assert result.outcome.signal == 31  # SIGSYS


async def test_fifo_can_be_made(sandbox: LocalSandbox) -> None:
    assert await probe(sandbox, "os.mkfifo('/box/f')") is None


async def test_supervisor_does_not_follow_links_that_a_program_made(sandbox: LocalSandbox, tmp_path: Path) -> None:
    target = tmp_path / "target"
    script = f"import os\nos.remove('main.py'); os.symlink({str(target)!r}, 'main.py'); os.symlink('/etc', '.tmp/x')"
    assert (await run(sandbox, script)).outcome.exit_code == 0
    assert not target.exists()


async def test_program_that_stops_the_first_process_stops_itself(sandbox: LocalSandbox) -> None:
    result = await run(sandbox, "import os, time; os.kill(1, 15); time.sleep(10)")
    assert result.outcome.signal == 9
