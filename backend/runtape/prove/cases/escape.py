"""Programs that look for a way out through the kernel or through what is shown to them.

Where it can be harmless, the control is the same program directly on this machine; else it is aimed at something that
is known to be open, in a folder of its own.
"""

from runtape.domain.outcome import OutcomeKind
from runtape.prove.case import Case, Check, Ends, Layer, Outside

_LOOKS_FOR_DEVICES = """
import os, stat, sys
from inside import leak, reach, tried

harmless = {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)}
for folder, _, files in os.walk(sys.argv[1]):
    for name in files:
        tried()
        try:
            found = os.lstat(folder + "/" + name)
        except OSError:
            continue
        number = (os.major(found.st_rdev), os.minor(found.st_rdev))
        if stat.S_ISBLK(found.st_mode) or (stat.S_ISCHR(found.st_mode) and number not in harmless):
            leak("%s/%s is there" % (folder, name))
if "make" in sys.argv:
    for kind, major, minor in ((stat.S_IFCHR, 1, 1), (stat.S_IFBLK, 8, 0), (stat.S_IFCHR, 10, 232)):
        # A null pointer in the path's place: a call that is let through answers EFAULT.
        reach("mknodat", -100, 0, kind | 0o666, os.makedev(major, minor))
"""
_LOOKS_FOR_PRIVILEGES = """
import os, sys
from inside import leak, tried

fields = dict(line.split(":", 1) for line in open(sys.argv[1]) if ":" in line)
for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
    tried()
    if int(fields[name], 16):
        leak("%s is %s" % (name, fields[name].strip()))
for name, expected in (("NoNewPrivs", "1"), ("Seccomp", "2"), ("Groups", "")):
    tried()
    if fields[name].strip() != expected:
        leak("%s is %s" % (name, fields[name].strip()))
for name in ("Uid", "Gid"):
    tried()
    if "0" in fields[name].split():
        leak("%s is %s" % (name, fields[name].strip()))
for path in sys.argv[2:]:
    tried()
    if not os.statvfs(path).f_flag & os.ST_NOSUID:
        leak("set-uid bits count on %s" % path)
"""
_READS_PROC_OF_THE_NODE = """
import os, sys
from inside import attempt, leak, tried

EMPTY = ("/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/kmsg", "/proc/sched_debug")
for path in sys.argv[1:]:
    if path.startswith(("/proc/1/", "/proc/self/")):
        attempt(path + " can be read", lambda: os.close(os.open(path, os.O_RDONLY)))
for path in EMPTY:
    tried()
    try:
        with open(path, "rb") as file:
            if file.read(1):
                leak(path + " can be read")
    except OSError:
        pass
tried()
try:
    with open("/proc/kallsyms") as file:
        if any(int(line.split()[0], 16) for line in file):
            leak("/proc/kallsyms tells addresses of the kernel")
except OSError:
    pass
others = [name for name in os.listdir("/proc") if name.isdigit() and int(name) not in (os.getpid(), 1)]
if others:
    leak("processes of others: %s" % " ".join(others[:5]))
"""
_WRITES_CONTROL_GROUPS = """
import os, sys
from inside import attempt, leak, reach, tried

NAMES = {"cgroup.procs", "tasks", "release_agent", "memory.max", "memory.limit_in_bytes", "pids.max", "cpu.max",
         "cpu.cfs_quota_us", "devices.allow", "notify_on_release", "cgroup.subtree_control", "cgroup.kill"}
for folder, _, files in os.walk(sys.argv[1]):
    for name in sorted(set(files) & NAMES):
        path = folder + "/" + name
        attempt(path + " can be written", lambda: os.close(os.open(path, os.O_WRONLY)))
    attempt("a group was made in " + folder, lambda: os.mkdir(folder + "/" + "prove"))
if sys.argv[1] == "/sys/fs/cgroup":
    reach("mount", b"c", b"/tmp", b"cgroup2", 0, 0)
    reach("mount", b"c", b"/tmp", b"cgroup", 0, b"memory")
"""

CASES = (
    Case(
        id="A21",
        title="reading the machine's /proc",
        tries="reads pid 1's environment and memory, /proc/kcore, kernel symbols, keys, and looks for other processes",
        holds="/proc shows the program's own processes alone",
        layer=Layer.PROC,
        kernel="the kernel's procfs itself answers; two mount options (subset, hidepid) hide the rest",
        args=(
            "/proc/1/environ",
            "/proc/1/mem",
            "/proc/1/maps",
            "/proc/1/root/etc/hostname",
            "/proc/1/cwd/.",
            "/proc/1/fd/0",
            "/proc/kcore",
            "/proc/kallsyms",
            "/proc/kmsg",
            "/proc/keys",
            "/proc/cmdline",
            "/proc/config.gz",
            "/proc/timer_list",
            "/proc/sys/kernel/hostname",
        ),
        control=Outside(("/proc/self/environ",)),
        in_pods={
            "title": "reading the node's /proc",
            "tries": "reads pid 1's environment and memory, the kernel's memory, keys and addresses, and looks for "
            "other processes",
            "holds": "pid 1 cannot be looked into; what is the node's is empty or hides its values",
            "kernel": "the kernel's procfs itself answers, but for what the container runtime lays over it",
            "program": _READS_PROC_OF_THE_NODE,
        },
        program="""
import os, sys
from inside import attempt, leak, tried

for path in sys.argv[1:]:
    attempt(path + " can be read", lambda: os.close(os.open(path, os.O_RDONLY)))
tried()
others = [name for name in os.listdir("/proc") if name.isdigit() and int(name) not in (os.getpid(), 1)]
if others:
    leak("processes of others: %s" % " ".join(others[:5]))
""",
    ),
    Case(
        id="A22",
        title="writing the kernel's settings",
        tries="opens core_pattern, modprobe, sysrq-trigger and the like for writing",
        holds="none of them is there",
        layer=Layer.PROC,
        args=(
            "/proc/sys/kernel/core_pattern",
            "/proc/sys/kernel/modprobe",
            "/proc/sys/kernel/hotplug",
            "/proc/sys/vm/overcommit_memory",
            "/proc/sys/fs/binfmt_misc/register",
            "/proc/sysrq-trigger",
            "/proc/irq/default_smp_affinity",
            "/sys/kernel/uevent_helper",
            "/sys/kernel/mm/ksm/run",
            "/sys/power/state",
        ),
        control=Outside(("{outside_file}",)),
        in_pods={"holds": "none of them can be opened for writing"},
        program="""
import os, sys
from inside import attempt

for path in sys.argv[1:]:
    attempt(path + " can be written", lambda: os.close(os.open(path, os.O_WRONLY)))
""",
    ),
    Case(
        id="A23",
        title="control groups",
        tries="looks for release_agent and for its own group's files, and mounts the cgroup file systems",
        holds="no control group can be seen, and none can be mounted",
        layer=Layer.ROOT,
        args=("/sys/fs/cgroup", "/sys", "/box", "/tmp"),
        control=Outside(("{outside}",)),
        in_pods={
            "holds": "its group's files are shown and cannot be written, and no other group is shown or can be mounted",
            "args": ("/sys/fs/cgroup",),
            "program": _WRITES_CONTROL_GROUPS,
        },
        program="""
import os, sys
from inside import leak, reach, tried

for top in sys.argv[1:]:
    tried()
    for folder, _, files in os.walk(top):
        for name in set(files) & {"cgroup.procs", "release_agent", "memory.max", "memory.limit_in_bytes"}:
            leak("%s/%s is there" % (folder, name))
if "/sys" in sys.argv:
    reach("mount", b"c", b"/tmp", b"cgroup2", 0, 0)
    reach("mount", b"c", b"/tmp", b"cgroup", 0, b"memory")
""",
    ),
    Case(
        id="A24",
        title="mounts in a new user namespace",
        tries="makes a user namespace, and in it mounts tmpfs and overlay, pivots, and makes its mounts writable",
        holds="none of these calls reaches the kernel",
        layer=Layer.SECCOMP,
        args=("unshare", "mount", "umount2", "pivot_root", "chroot", "fsopen", "open_tree", "mount_setattr"),
        control=Outside(("unshare",)),
        program="""
import sys
from inside import reach

CALLS = {
    "unshare": (0x10000000 | 0x20000,),
    "mount": (b"t", b"/tmp", b"tmpfs", 0, 0),
    "umount2": (b"/proc", 2),
    "pivot_root": (0, 0),
    "chroot": (b"/tmp",),
    "fsopen": (b"overlay", 0),
    "open_tree": (-100, b"/", 1),
    "mount_setattr": (-100, b"/usr", 0, 0, 0),
}
for name in sys.argv[1:]:
    reach(name, *CALLS[name])
""",
    ),
    Case(
        id="A25",
        title="namespaces of its own or of others",
        tries="calls unshare, clone and clone3 with each namespace flag, and setns",
        holds="none of these calls reaches the kernel",
        layer=Layer.SECCOMP,
        args=("0x10000000", "0x20000", "0x20000000", "0x40000000", "0x8000000", "0x4000000", "0x2000000", "0x80"),
        control=Outside(("0x10000000",)),
        program="""
import sys
from inside import reach

for text in sys.argv[1:]:
    flag = int(text, 16)
    reach("unshare", flag)
    if flag != 0x80:  # CLONE_NEWTIME has a bit that clone takes for a signal number
        reach("clone", flag | 17, 0, 0, 0, 0)
    reach("clone3", flag.to_bytes(8, "little") + bytes(56), 64)
reach("setns", 0, 0)
""",
    ),
    Case(
        id="A26",
        title="leaked descriptors and folder",
        tries="looks for open descriptors beyond 0, 1 and 2, and for a working directory outside",
        holds="there are none; no secret of the service is in its environment",
        layer=Layer.DESCRIPTORS,
        control=Outside(env={"RUNTAPE_ADMIN_PASSWORD": "hunter2"}, inherits=True),
        program="""
import os, stat
from inside import leak, tried

for number in range(3, 4096):
    tried()
    try:
        kind = stat.S_IFMT(os.fstat(number).st_mode)
    except OSError:
        continue
    leak("descriptor %d is open, of type %o" % (number, kind))
for number in range(3):
    tried()
    if stat.S_ISDIR(os.fstat(number).st_mode):
        leak("descriptor %d is a folder" % number)
tried()
if not os.getcwd().startswith("/box"):
    leak("the working directory is %s" % os.getcwd())
for name in os.environ:
    if name.startswith("RUNTAPE"):
        leak("%s is in the environment" % name)
""",
    ),
    Case(
        id="A27",
        title="device nodes",
        tries="looks for devices beyond null, zero, full and random, and makes some: memory, disk, kvm, fuse",
        holds="there are none, and none can be made or opened",
        layer=Layer.DEVICES,
        args=("/dev", "make"),
        control=Outside(("/dev",)),
        in_pods={
            "tries": "looks for devices beyond null, zero, full, random and its terminal's, and makes some: memory, "
            "disk, kvm, fuse",
            "program": _LOOKS_FOR_DEVICES.replace("(1, 9)}", "(1, 9), (5, 0), (5, 2)}"),
        },
        program=_LOOKS_FOR_DEVICES,
    ),
    Case(
        id="A28",
        title="system calls with a history of escapes",
        tries="calls io_uring, bpf, userfaultfd, perf, keyrings, ptrace, process memory, modules, kexec and others",
        holds="none of these calls reaches the kernel",
        layer=Layer.SECCOMP,
        control=Outside(("ptrace", "process_vm_readv", "keyctl", "io_uring_setup", "memfd_create")),
        program="""
import sys
from inside import reach

CALLS = {
    "io_uring_setup": (1, 0),
    "bpf": (0, 0, 0),
    "userfaultfd": (1 << 20,),
    "perf_event_open": (0, 0, -1, -1, 0),
    "keyctl": (0, -1, 0),
    "add_key": (0, 0, 0, 0, 0),
    "request_key": (0, 0, 0, 0),
    "ptrace": (0, 0, 0, 0),
    "process_vm_readv": (1, 0, 0, 0, 0, 0),
    "process_vm_writev": (1, 0, 0, 0, 0, 0),
    "kcmp": (1, 1, 0, 0, 0),
    "pidfd_getfd": (0, 0, 0),
    "init_module": (0, 0, 0),
    "finit_module": (-1, 0, 0),
    "kexec_load": (0, 1, 0, -1),
    "open_by_handle_at": (-1, 0, 0),
    "name_to_handle_at": (-100, 0, 0, 0, 0),
    "personality": (0x0400000,),
    "seccomp": (2, 0, 0),
    "memfd_create": (0, 0),
    "memfd_secret": (0,),
    "shmget": (0, 4096, 0o1600),
    "semget": (0, 1, 0o1600),
    "msgget": (0, 0o1600),
    "mq_open": (0, 0, 0, 0),
    "syslog": (3, 0, 0),
    "swapon": (0, 0),
    "acct": (b"/nowhere",),
    "quotactl": (0, 0, 0, 0),
    "landlock_create_ruleset": (0, 0, 1),
    "sethostname": (b"x", 1),
    "settimeofday": (0, 0),
    "clock_settime": (0, 0),
    "adjtimex": (0,),
    "reboot": (0, 0, 0, 0),
    "move_pages": (0, 0, 0, 0, 0, 0),
    "migrate_pages": (0, 0, 0, 0),
    "fanotify_init": (0, 0),
    "lookup_dcookie": (0, 0, 0),
    "vhangup": (),
}
for name in sys.argv[1:] or CALLS:
    reach(name, *CALLS[name])
""",
    ),
    Case(
        id="A29",
        title="unusual sockets",
        tries="opens sockets of every family but unix and inet: netlink, packet, alg, vsock and the rest",
        holds="no such socket can be made",
        layer=Layer.SECCOMP,
        control=Outside(),
        program="""
import socket
from inside import attempt

for family in range(3, 46):
    for kind in () if family == socket.AF_INET6 else range(1, 6):
        attempt("a socket of family %d" % family, lambda: socket.socket(family, kind).close())
""",
    ),
    Case(
        id="A29b",
        title="unusual protocols",
        tries="opens inet sockets of other protocols than TCP and UDP, which can make the kernel load modules",
        holds="no such socket reaches the kernel",
        layer=Layer.SECCOMP,
        args=("SCTP 1 132", "SCTP 5 132", "DCCP 6 33", "UDP-Lite 2 136", "MPTCP 1 262", "SMC 1 256", "L2TP 2 115"),
        control=Outside(("TCP 1 6",)),
        program="""
import errno, socket, sys
from inside import reached, tried

for text in sys.argv[1:]:
    name, kind, protocol = text.split()
    tried()
    try:
        socket.socket(socket.AF_INET, int(kind), int(protocol)).close()
        reached(name)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES):
            reached(name)
""",
    ),
    Case(
        id="A30",
        title="system calls of another word size",
        tries="enters the kernel by int 0x80 and by x32 numbers, past a filter that knows one table alone",
        holds="either kills the process before the kernel answers",
        layer=Layer.SECCOMP,
        machines=("x86_64",),
        args=("x32", "i386"),
        control=Outside(("native",)),
        program="""
import ctypes, mmap, os, sys
from inside import leak, tried

GETPID_BY_INT80 = bytes((0xB8, 20, 0, 0, 0, 0xCD, 0x80, 0xC3))
libc = ctypes.CDLL(None)

def answer(how):
    if how == "native":
        return libc.syscall(39)
    if how == "x32":
        return libc.syscall(0x40000000 + 39)
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(GETPID_BY_INT80)
    return ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()

for how in sys.argv[1:]:
    tried()
    child = os.fork()
    if child == 0:
        os._exit(0 if answer(how) == os.getpid() else 1)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
        leak("a call by %s is answered" % how)
""",
    ),
    Case(
        id="A30b",
        title="end of a process that makes such a call",
        tries="makes an x32 call itself",
        holds="the run ends as signalled, by SIGSYS",
        layer=Layer.SECCOMP,
        machines=("x86_64",),
        ends=Ends((OutcomeKind.SIGNALLED,), signal=31),
        args=("0x40000027",),
        control=Outside(("39",)),
        program="""
import ctypes, sys
from inside import leak

ctypes.CDLL(None).syscall(int(sys.argv[1], 0))
leak("the call returned")
""",
    ),
    Case(
        id="A31",
        title="set-uid programs and capabilities",
        tries="looks for privileges: capabilities, uid 0, groups, set-uid bits that count, no_new_privs off, no filter",
        holds="there are none, and there is no way to get any",
        layer=Layer.CAPABILITIES,
        args=("/proc/self/status", "/", "/usr", "/box", "/tmp"),
        control=Outside(("{privileged_status}",)),
        in_pods={
            "tries": "looks for privileges: capabilities, uid 0, foreign groups, no_new_privs off, no filter",
            "args": ("/proc/self/status",),
            "program": _LOOKS_FOR_PRIVILEGES.replace('("Groups", "")', '("Groups", str(os.getgid()))'),
        },
        program=_LOOKS_FOR_PRIVILEGES,
    ),
    Case(
        id="A32",
        title="race for masked paths",
        tries="puts a symbolic link in the place of /dev/null and of /proc, for the supervisor to follow",
        holds="neither can be replaced: they lie on read-only mounts",
        layer=Layer.ROOT,
        args=("/dev/null", "/dev/stdin", "/proc", "/etc/passwd"),
        control=Outside(("{outside_file}",)),
        program="""
import os, sys
from inside import attempt

for path in sys.argv[1:]:
    attempt(path + " was moved away", lambda: os.rename(path, path + ".was"))
    attempt(path + " was replaced", lambda: os.symlink("/etc", path + ".new") or os.rename(path + ".new", path))
""",
    ),
    Case(
        id="A33",
        title="injection into a terminal",
        tries="types into the terminal of whoever started the service, by TIOCSTI and TIOCLINUX",
        holds="there is no terminal, and these requests do not reach the kernel",
        layer=Layer.SECCOMP,
        control=Outside(),
        program="""
import errno, fcntl, os
from inside import leak, tried

for number in range(3):
    for request in (0x5412, 0x541C):
        tried()
        try:
            fcntl.ioctl(number, request, b"x")
            leak("request %#x is answered" % request)
        except OSError as error:
            if error.errno != errno.EPERM:
                leak("request %#x on %d answers %s" % (request, number, errno.errorcode[error.errno]))
    if os.isatty(number):
        leak("descriptor %d is a terminal" % number)
try:
    os.close(os.open("/dev/tty", os.O_RDWR))
    leak("there is a controlling terminal")
except OSError:
    pass
""",
    ),
    Case(
        id="A34",
        title="sockets of the host's services",
        tries="connects to abstract unix sockets of this host, to D-Bus, docker and containerd",
        holds="abstract names are those of its own network namespace, and no socket file is shown",
        layer=Layer.NETWORK,
        args=(
            "@{abstract}",
            "{outside_socket}",
            "/run/docker.sock",
            "/var/run/docker.sock",
            "/run/containerd/containerd.sock",
            "/run/dbus/system_bus_socket",
            "/run/systemd/private",
            "/run/user/0/bus",
        ),
        control=Outside(("@{abstract}",)),
        program="""
import socket, sys
from inside import connect

for path in sys.argv[1:]:
    connect("\\0" + path[1:] if path[0] == "@" else path, socket.AF_UNIX, refusable=True)
""",
    ),
    Check(
        id="A35",
        title="side channels of the processor",
        tries="learns of its neighbours by the timing of caches, huge pages or merged pages",
        holds="not promised",
        layer=Layer.HARDWARE,
        kernel="programs share processors, caches and memory; no layer here closes that",
    ),
)
