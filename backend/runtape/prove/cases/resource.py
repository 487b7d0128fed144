"""Programs that take more than their share.

Each pursues a goal beyond its limit and reports a leak when it has reached it.  The goal is small and has an end, so
that the control, in a box with a wider limit, is harmless.
"""

import zlib
from collections.abc import Iterator

from runtape.domain.outcome import OutcomeKind
from runtape.prove.case import Case, Ends, Inside, Layer
from runtape.prove.ran import MARK, Ran

_OUT_OF_CPU = Ends((OutcomeKind.TIME_LIMIT,))
_OUT_OF_TIME = Ends((OutcomeKind.WALL_LIMIT,))
_OUT_OF_MEMORY = Ends((OutcomeKind.MEMORY_LIMIT,))
_OUT_OF_OUTPUT = Ends((OutcomeKind.OUTPUT_LIMIT,))

_DELEGATE = "delegate a cgroup of version 2 with the memory controller to the service (systemd: Delegate=yes)"

_ODD_BYTES = bytes(range(256)) * 8 + b"\n\ndata: {}\n\nevent: end\nid: 9\n\n\x1b]52;c;eA==\a\x1b[2J\r\xff\xfe\0"


def _other_than_printed(ran: Ran) -> Iterator[str]:
    if not ran.stdout.endswith(_ODD_BYTES):
        yield "the bytes on the tape are not those that were printed"


def _more_than_the_limit(ran: Ran) -> Iterator[str]:
    if (size := len(ran.stdout) + len(ran.stderr)) > ran.limits.output_bytes:
        yield f"{size} bytes of output were taken, the limit is {ran.limits.output_bytes}"
    printed = b"".join(line for line in ran.stdout.splitlines() if MARK not in line)
    if printed.strip(b"x"):
        yield "other bytes than those that were printed are on the tape"


_FILLS_FOLDERS = """
from inside import leak, tried

for path in ("/tmp/a", "/box/c"):
    written = 0
    try:
        with open(path, "wb") as file:
            for _ in range(12):
                tried()
                file.write(bytes(1 << 20))
                file.flush()
                written += 1
    except OSError:
        pass
    if written > 8:
        leak("%d MiB written to %s" % (written, path))
"""
_NESTS_FOLDERS = """
import os, sys
from inside import leak, tried

for name in ("a" * 255, "line\\nend", "\\u202egnp.exe", "-rf", "*", "..."):
    os.mkdir(name)
for _ in range(1000):
    tried()
    os.mkdir("d")
    os.chdir("d")
if sys.argv[1:]:
    leak("1000 folders deep")
"""

CASES = (
    Case(
        id="A01",
        title="fork bomb",
        tries="makes more processes than it may have",
        holds="fork fails at the limit, for the whole tree",
        layer=Layer.PROCESSES,
        limits={"processes": 20},
        args=("40",),
        control=Inside({"processes": 64}),
        program="""
import os, signal, sys, time
from inside import leak, tried

made = []
try:
    while len(made) < int(sys.argv[1]):
        tried()
        pid = os.fork()
        if pid == 0:
            time.sleep(30)
            os._exit(0)
        made.append(pid)
    leak("%d processes live at once" % len(made))
except OSError:
    pass
""",
    ),
    Case(
        id="A01b",
        title="fork bomb that never stops",
        tries="forks from every process for as long as it lives",
        holds="the tree ends at its wall or CPU limit",
        layer=Layer.WALL,
        limits={"processes": 24, "wall_s": 0.5},
        ends=Ends((OutcomeKind.WALL_LIMIT, OutcomeKind.TIME_LIMIT)),
        due_s=2.0,
        control=Inside({"wall_s": 30.0}, due_s=0.8),
        program="""
import os, time
import inside

while True:
    try:
        os.fork()
    except OSError:
        time.sleep(0.01)
""",
    ),
    Case(
        id="A02",
        title="thread bomb",
        tries="starts more threads than it may have",
        holds="threads count as processes and are refused at the limit",
        layer=Layer.PROCESSES,
        limits={"processes": 20},
        args=("40",),
        # Each arena of malloc takes 64 MiB of address space, which is bounded too where there are no cgroups.
        env={"MALLOC_ARENA_MAX": "1"},
        control=Inside({"processes": 64}),
        program="""
import os, sys, threading
from inside import done, leak, tried

threading.stack_size(1 << 18)
started = 0
try:
    while started < int(sys.argv[1]):
        tried()
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        started += 1
    leak("%d threads live at once" % started)
except RuntimeError:
    pass
done()
os._exit(0)
""",
    ),
    Case(
        id="A03",
        title="memory bomb of one process",
        tries="holds more memory than it may",
        holds="the run ends as memory_limit before that",
        layer=Layer.MEMORY,
        limits={"memory_mb": 64},
        ends=_OUT_OF_MEMORY,
        args=("200",),
        control=Inside({"memory_mb": 320}),
        program="""
import sys, time
from inside import leak

held = []
for _ in range(int(sys.argv[1]) // 8):
    held.append(bytearray(b"x") * (8 << 20))
time.sleep(0.2)
leak("%s MiB held" % sys.argv[1])
""",
    ),
    Case(
        id="A03b",
        title="memory bomb of 64 children",
        tries="spreads over 64 processes what one may not have",
        holds="the limit is that of the tree",
        layer=Layer.MEMORY,
        limits={"memory_mb": 64, "processes": 80},
        ends=_OUT_OF_MEMORY,
        control=Inside({"memory_mb": 448, "processes": 80}),
        program="""
import os, time
from inside import leak

read_end, write_end = os.pipe()
for _ in range(64):
    if os.fork() == 0:
        held = bytearray(b"x") * (2 << 20)
        os.write(write_end, b"1")
        time.sleep(20)
        os._exit(0)
held = 0
while held < 64:
    held += len(os.read(read_end, 64))
time.sleep(0.2)
leak("64 processes hold 2 MiB each")
""",
    ),
    Case(
        id="A03c",
        title="memory in unix sockets",
        tries="fills the buffers of socket pairs, which belong to the kernel and to no process",
        holds="kernel memory counts as the run's own",
        layer=Layer.MEMORY,
        limits={"memory_mb": 64, "open_files": 256},
        ends=_OUT_OF_MEMORY,
        fix=_DELEGATE,
        control=Inside({"memory_mb": 512}),
        program="""
import os, socket, time
from inside import leak

def fill():
    queued, held = 0, []
    try:
        while queued < 40 << 20:
            pair = socket.socketpair()
            held.append(pair)
            for each in pair:
                each.setblocking(False)
                try:
                    while True:
                        queued += each.send(bytes(4096))
                except BlockingIOError:
                    pass
    except OSError:
        pass
    return queued, held

read_end, write_end = os.pipe()
for _ in range(4):
    if os.fork() == 0:
        queued, held = fill()
        os.write(write_end, b"%16d" % queued)
        time.sleep(20)
        os._exit(0)
queued = sum(int(os.read(read_end, 16)) for _ in range(4)) >> 20
time.sleep(0.2)
if queued > 96:
    leak("%d MiB wait in sockets" % queued)
""",
    ),
    Case(
        id="A03d",
        title="memory in TCP buffers",
        tries="fills connections to itself over loopback, whose buffers are counted apart from other memory",
        holds="they count as the run's own",
        layer=Layer.MEMORY,
        limits={"memory_mb": 64, "open_files": 256},
        ends=Ends((OutcomeKind.MEMORY_LIMIT, OutcomeKind.EXITED)),
        args=("128",),
        fix=_DELEGATE,
        control=Inside({"memory_mb": 512}, args=("1",)),
        in_pods={"fix": "give the nodes control groups of version 2: those of version 1 do not count TCP's buffers"},
        program="""
import socket, sys, time
from inside import leak, tried

server = socket.create_server(("127.0.0.1", 0), backlog=8)
queued, held = 0, []
while queued < 160 << 20 and len(held) < 60:
    tried()
    pair = socket.create_connection(server.getsockname()), server.accept()[0]
    held.append(pair)
    for each in pair:
        each.setblocking(False)
        try:
            while True:
                queued += each.send(bytes(65536))
        except BlockingIOError:
            pass
time.sleep(0.2)
if queued > int(sys.argv[1]) << 20:
    leak("%d MiB wait in TCP connections" % (queued >> 20))
""",
    ),
    Case(
        id="A04",
        title="filling of /tmp and /dev/shm",
        tries="writes more to the work directory, /tmp and /dev/shm than the disk limit",
        holds="writing fails with ENOSPC; all three are one sized tmpfs",
        layer=Layer.DISK,
        limits={"disk_mb": 8},
        control=Inside({"disk_mb": 64}),
        in_pods={
            "tries": "writes more to the work directory and to /tmp than the disk limit",
            "holds": "writing fails with ENOSPC; each is a sized tmpfs, which the memory limit counts",
            "program": _FILLS_FOLDERS,
        },
        program="""
from inside import leak, tried

written = 0
for path in ("/tmp/a", "/dev/shm/b", "/box/c"):
    try:
        with open(path, "wb") as file:
            for _ in range(6):
                tried()
                file.write(bytes(1 << 20))
                file.flush()
                written += 1
    except OSError:
        pass
if written > 8:
    leak("%d MiB written" % written)
""",
    ),
    Case(
        id="A05",
        title="sparse and preallocated files",
        tries="makes a file of 1 TiB without data, and reserves 32 MiB by fallocate",
        holds="no file is larger than the disk limit, and none gets more blocks than that",
        layer=Layer.RLIMITS,
        limits={"disk_mb": 8},
        args=(str(1 << 40),),
        control=Inside({"disk_mb": 64}, args=(str(32 << 20),)),
        program="""
import os, sys
from inside import attempt

file = os.open("sparse", os.O_RDWR | os.O_CREAT)
attempt("a file of %s bytes" % sys.argv[1], lambda: os.truncate(file, int(sys.argv[1])))
reserved = os.open("reserved", os.O_RDWR | os.O_CREAT)
attempt("32 MiB reserved by fallocate", lambda: os.posix_fallocate(reserved, 0, 32 << 20))
os.truncate(file, 0)
""",
    ),
    Case(
        id="A06",
        title="exhaustion of inodes",
        tries="makes more files than it may",
        holds="making fails with ENOSPC",
        layer=Layer.DISK,
        limits={"inodes": 64},
        control=Inside({"inodes": 4096}),
        not_in_pods="a tmpfs of Kubernetes has no limit of inodes; A06b shows that the memory limit counts them",
        program="""
import os
from inside import leak, tried

try:
    for number in range(200):
        tried()
        os.mkdir(str(number))
    leak("200 folders made")
except OSError:
    pass
""",
    ),
    Case(
        id="A07",
        title="exhaustion of descriptors",
        tries="opens more files and pipes than it may",
        holds="opening fails with EMFILE, and the limit cannot be raised",
        layer=Layer.RLIMITS,
        limits={"open_files": 32},
        control=Inside({"open_files": 256}),
        program="""
import os, resource
from inside import attempt, leak, tried

held = []
try:
    while len(held) < 100:
        tried()
        held += os.pipe()
    leak("%d descriptors open" % len(held))
except OSError:
    pass
for each in held:
    os.close(each)
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (most + 1, most + 1))
    leak("the limit was raised")
except (OSError, ValueError):
    pass
""",
    ),
    Case(
        id="A07b",
        title="exhaustion of the user's pipes",
        tries="opens so many pipes that the kernel makes every further pipe of the same user a small one",
        holds="its neighbours are other users: their pipes, and so their input, are whole",
        layer=Layer.USERS,
        limits={"open_files": 256, "processes": 32},
        due_s=4.0,
        control_first=True,
        control=Inside(args=("tell",)),
        program="""
import os, sys, time

read_end, write_end = os.pipe()
for _ in range(12):
    if os.fork() == 0:
        made = 0
        try:
            while True:
                os.pipe()
                made += 1
        except OSError:
            os.write(write_end, b"%8d" % made)
        time.sleep(20)
        os._exit(0)
made = sum(int(os.read(read_end, 8)) for _ in range(12))
import inside
inside.tried(made)
if sys.argv[1:]:
    inside.leak("%d pipes are held" % made)
else:
    time.sleep(0.4)
""",
    ),
    Case(
        id="A08",
        title="endless output",
        tries="prints 1 GiB",
        holds="output is cut at its limit and the run ends at once",
        layer=Layer.OUTPUT,
        limits={"output_bytes": 64 << 10},
        ends=_OUT_OF_OUTPUT,
        due_s=4.0,
        args=(str(1 << 30),),
        judge=_more_than_the_limit,
        control=Inside({"output_bytes": 8 << 20}, args=(str(4 << 20),)),
        program="""
import os, sys
from inside import leak

for _ in range(int(sys.argv[1]) >> 16):
    os.write(1, b"x" * 65535 + b"\\n")
leak("%s bytes printed" % sys.argv[1])
""",
    ),
    Case(
        id="A08b",
        title="one line of 100 MB",
        tries="prints 100 MB without a line end, on both streams",
        holds="it is cut at the limit, which counts both streams",
        layer=Layer.OUTPUT,
        limits={"output_bytes": 1 << 20},
        ends=_OUT_OF_OUTPUT,
        due_s=4.0,
        args=("1600",),
        judge=_more_than_the_limit,
        control=Inside({"output_bytes": 8 << 20}, args=("30",)),
        program="""
import os, sys
from inside import leak

for _ in range(int(sys.argv[1])):
    os.write(1, b"x" * 32768)
    os.write(2, b"x" * 32768)
os.write(1, b"\\n")
leak("the whole line was taken")
""",
    ),
    Case(
        id="A09",
        title="bytes that imitate something else",
        tries="prints NUL, invalid UTF-8, terminal sequences, OSC 52 and forged SSE frames",
        holds="the tape has exactly these bytes, and nothing reads them",
        layer=Layer.OUTPUT,
        files={"odd": _ODD_BYTES},
        judge=_other_than_printed,
        control=Inside(args=("something else",)),
        program="""
import os, sys
from inside import done, tried

tried()
done()
os.write(1, sys.argv[1].encode() if sys.argv[1:] else open("odd", "rb").read())
os._exit(0)
""",
    ),
    Case(
        id="A10",
        title="spinning child that ignores signals",
        tries="burns CPU in a child that ignores SIGTERM while its parent waits",
        holds="the CPU time of the tree counts, and the run ends as time_limit",
        layer=Layer.CPU,
        limits={"cpu_s": 0.3},
        ends=_OUT_OF_CPU,
        control=Inside({"cpu_s": 8.0}),
        program="""
import os, signal, time
from inside import leak

if os.fork() == 0:
    for number in range(1, 65):
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            pass
    while time.process_time() < 0.6:
        pass
    leak("a child had 0.6 s of CPU time")
    os._exit(0)
os.wait()
""",
    ),
    Case(
        id="A11",
        title="sleep past the wall limit",
        tries="sleeps, which costs no CPU time",
        holds="the run ends as wall_limit",
        layer=Layer.WALL,
        limits={"wall_s": 0.4},
        ends=_OUT_OF_TIME,
        due_s=1.6,
        control=Inside({"wall_s": 30.0}, due_s=0.6),
        program="import inside, time\ntime.sleep(20)\n",
    ),
    Case(
        id="A12",
        title="daemon",
        tries="leaves a daemon behind: forked twice, in a session of its own, deaf to signals",
        holds="the end of the program is the end of its tree",
        layer=Layer.TEARDOWN,
        due_s=2.0,
        args=("leave",),
        control=Inside(args=("stay",), due_s=0.5),
        program="""
import os, signal, sys, time
from inside import done, tried

tried()
read_end, write_end = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (1, 2, 3, 15):
            signal.signal(number, signal.SIG_IGN)
        os.write(write_end, b"1")
        time.sleep(60)
    os._exit(0)
os.wait()
os.read(read_end, 1)
time.sleep(60 if sys.argv[1] == "stay" else 0.05)
""",
    ),
    Case(
        id="A13",
        title="stopped processes",
        tries="stops itself and a child by SIGSTOP, so that nothing of it can act on a request to end",
        holds="the run ends as wall_limit",
        layer=Layer.WALL,
        limits={"wall_s": 0.4},
        ends=_OUT_OF_TIME,
        due_s=1.6,
        control=Inside({"wall_s": 30.0}, due_s=0.6),
        program="""
import os, signal
import inside

os.fork()
os.kill(os.getpid(), signal.SIGSTOP)
""",
    ),
    Case(
        id="A14",
        title="input that is not read, or read for ever",
        tries="leaves 4 MiB of input unread, makes them grow, then reads to their end",
        holds="neither waits for the other; input ends and cannot be changed",
        layer=Layer.SUPERVISOR,
        stdin=b"i" * (4 << 20),
        due_s=3.0,
        args=("given",),
        control=Inside(args=("own",)),
        program="""
import os, sys
from inside import attempt, leak, tried

def grow():
    file = os.open("/dev/stdin", os.O_RDWR)
    os.lseek(file, 0, os.SEEK_END)
    return os.write(file, b"x" * 4096)

source = 0
if sys.argv[1] == "own":
    source, write_end = os.pipe()
    os.close(write_end)
else:
    attempt("the input was made to grow", grow)
tried()
size = 0
while True:
    piece = os.read(source, 1 << 16)
    if not piece:
        break
    size += len(piece)
if size != 4 << 20:
    leak("the input has %d bytes" % size)
""",
    ),
    Case(
        id="A15",
        title="compile bomb",
        tries="has its interpreter compile a source that needs far more memory than it has text",
        holds="the memory limit counts for compiling too",
        layer=Layer.MEMORY,
        limits={"memory_mb": 64},
        ends=_OUT_OF_MEMORY,
        args=("2000000",),
        control=Inside(args=("2000",)),
        program="""
import sys
from inside import leak

compile("x = [" + "a.b(1)," * int(sys.argv[1]) + "]", "bomb", "exec")
leak("%s calls compiled" % sys.argv[1])
""",
    ),
    Case(
        id="A16",
        title="bomb in a regular expression",
        tries="matches an expression that backtracks without end",
        holds="the CPU limit ends it",
        layer=Layer.CPU,
        limits={"cpu_s": 0.3},
        ends=_OUT_OF_CPU,
        args=("60",),
        control=Inside(args=("10",)),
        program="""
import re, sys
from inside import leak

re.match("(a+)+$", "a" * int(sys.argv[1]) + "b")
leak("the match came to its end")
""",
    ),
    Case(
        id="A16b",
        title="bomb in an uploaded archive",
        tries="unpacks an upload of 120 KB to 120 MB",
        holds="nothing but the program unpacks it, within the memory limit",
        layer=Layer.MEMORY,
        limits={"memory_mb": 64},
        ends=_OUT_OF_MEMORY,
        files={"bomb.z": zlib.compress(bytes(120 << 20), 9)},
        control=Inside({"memory_mb": 320}),
        program="""
import time, zlib
from inside import leak

unpacked = bytearray()
unpacker = zlib.decompressobj()
packed = open("bomb.z", "rb").read()
while packed:
    unpacked += unpacker.decompress(packed, 1 << 20)
    packed = unpacker.unconsumed_tail
time.sleep(0.2)
leak("%d MiB unpacked" % (len(unpacked) >> 20))
""",
    ),
    Case(
        id="A17",
        title="deep folders and odd names",
        tries="nests folders until it fails, with names of 255 bytes, line ends and right-to-left marks",
        holds="the inode limit stops it, and all of it is gone with the box",
        layer=Layer.DISK,
        limits={"inodes": 512},
        due_s=4.0,
        control=Inside({"inodes": 4096}),
        in_pods={
            "tries": "nests 1000 folders, with names of 255 bytes, line ends and right-to-left marks",
            "holds": "all of it is gone with the pod; a tmpfs of Kubernetes has no limit of inodes, and the memory "
            "limit counts them (A06b)",
            "control": Inside(args=("tell",)),
            "program": _NESTS_FOLDERS,
        },
        program="""
import os
from inside import leak, tried

for name in ("a" * 255, "line\\nend", "\\u202egnp.exe", "-rf", "*", "..."):
    os.mkdir(name)
depth = 0
try:
    while depth < 1000:
        tried()
        os.mkdir("d")
        os.chdir("d")
        depth += 1
    leak("%d folders deep" % depth)
except OSError:
    pass
""",
    ),
    Case(
        id="A18",
        title="flood of core dumps",
        tries="crashes again and again, to fill the disk or to start the host's crash handler",
        holds="no core file is written and no program of the host is started",
        layer=Layer.RLIMITS,
        args=("{core_pattern}",),
        control=Inside(args=("|/usr/lib/crash-handler %p",)),
        fix="sysctl kernel.core_pattern=core: a crash in a box starts the program named there, outside and as root, "
        "unless RLIMIT_CORE is exactly 1, which a program may change",
        program="""
import os, resource, sys
from inside import leak, tried

pattern = sys.argv[1]
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
if pattern[:1] in ("|", "@") and resource.getrlimit(resource.RLIMIT_CORE)[0] != 1:
    leak("a crash is handed to %s, outside of the box" % pattern)
for _ in range(0 if pattern[:1] in ("|", "@") else 10):
    tried()
    pid = os.fork()
    if pid == 0:
        os.abort()
    if os.WCOREDUMP(os.waitpid(pid, 0)[1]):
        leak("a core was dumped")
if any(name.startswith("core") for folder in ("/box", "/tmp") for name in os.listdir(folder)):
    leak("a core file was written")
""",
    ),
    Case(
        id="A19",
        title="zombies",
        tries="fills the process table with children that nobody waits for",
        holds="the dead count until they are reaped, and the box reaps them",
        layer=Layer.PROCESSES,
        limits={"processes": 24},
        args=("48",),
        due_s=3.0,
        control=Inside({"processes": 64}),
        program="""
import os, sys
from inside import leak, tried

dead = 0
try:
    while dead < int(sys.argv[1]):
        tried()
        if os.fork() == 0:
            os._exit(0)
        dead += 1
    leak("%d zombies at once" % dead)
except OSError:
    pass
""",
    ),
    Case(
        id="A20",
        title="noisy neighbour",
        tries="keeps every processor busy with 32 processes that compute and write",
        holds="another program gets a share: what it computes takes at most 4 times its CPU time",
        layer=Layer.SCHEDULER,
        due_s=20.0,
        companion="""
import os
import inside

for _ in range(5):
    os.fork()
print("up")
while True:
    with open("noise-%d" % os.getpid(), "wb") as file:
        for _ in range(64):
            file.write(bytes(4096))
""",
        companion_stays=True,
        control=Inside(args=("idle",)),
        kernel="one scheduler, one page cache and one disk serve all boxes: shares are fair, not reserved",
        program="""
import sys, time
from inside import leak, tried

def slowness():
    tried()
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    while time.process_time() - cpu_s < 0.03:
        if sys.argv[1:]:
            time.sleep(0.1)
            break
    return (time.perf_counter() - wall_s) / max(0.001, time.process_time() - cpu_s)

best = slowness()
# The host may be busy with other work for a moment: noise that starves us does so in every moment.
until_s = time.monotonic() + (0.5 if sys.argv[1:] else 12)
while best > 4 and time.monotonic() < until_s:
    best = min(best, slowness())
if best > 4:
    leak("a computation takes %.1f times its CPU time" % best)
""",
    ),
)
