"""Programs that leave in `out` what should not be collected: links, pipes, holes, swarms, and names that lie.

What was kept is looked at from outside.  Each control leaves the same as a plain file, which is kept, so that the
look would find it.
"""

from collections.abc import Iterator

from runtape.domain.artifact import artifact_path
from runtape.domain.outcome import OutcomeKind
from runtape.prove.case import Case, Ends, Inside, Layer
from runtape.prove.ran import Ran

_SECRET_MARKS = (b"root:", b"user:x:", b"nobody:x:", b"secret of the test", b"VERSION_ID=")


def _foreign(ran: Ran) -> Iterator[str]:
    """Yield the artifacts that hold what the program can only have had kept by a link."""
    for path, content in ran.artifacts.items():
        if any(mark in content for mark in _SECRET_MARKS):
            yield f"out/{path} was kept with the content of another file"


def _named_badly(ran: Ran) -> Iterator[str]:
    for path in ran.artifacts:
        if artifact_path(path.encode(errors="surrogateescape")) is None or "evil" in path:
            yield f"an artifact is called {path!a}"


def _too_much(ran: Ran) -> Iterator[str]:
    size_bytes = sum(map(len, ran.artifacts.values()))
    if size_bytes > ran.limits.artifact_bytes:
        yield f"{size_bytes} bytes were kept, the limit is {ran.limits.artifact_bytes}"
    if len(ran.artifacts) > ran.limits.artifacts:
        yield f"{len(ran.artifacts)} files were kept, the limit is {ran.limits.artifacts}"
    if any("big" in path for path in ran.artifacts):
        yield "a file was kept that is larger than it may be"


_LEAVES_SWARMS = """
import os
from inside import tried

tried()
made = 0
try:
    os.chdir("out")
    for depth in range(1000):
        os.mkdir("d")
        os.chdir("d")
    os.chdir("/box/out")
    while made < 100_000:
        open("%06d" % made, "w").close()
        made += 1
except OSError:
    pass
for number in range(min(made, 10)):  # room for what a good program needs to end
    os.unlink("/box/out/%06d" % number)
"""

CASES = (
    Case(
        id="A39",
        title="links among the artifacts",
        tries="leaves symbolic links to files and folders of the system, of pid 1 and of the host, also by a chain",
        holds="no link is followed: nothing is kept but what the program itself has written",
        layer=Layer.SUPERVISOR,
        args=(
            "/etc/passwd",
            "/etc",
            "/proc/1/environ",
            "/proc/1/root",
            "/proc/self/cwd",
            "{outside}",
            "{outside_file}",
        ),
        control=Inside(args=("copy",)),
        judge=_foreign,
        program="""
import os, sys
from inside import tried

for number, target in enumerate(sys.argv[1:]):
    tried()
    if target == "copy":
        with open("out/copy", "w") as file:
            file.write(open("/etc/passwd").read())
    else:
        os.symlink(target, "out/%d" % number)
        os.symlink("%d" % number, "out/chain-%d" % number)
        os.makedirs("out/deep/%d" % number)
        os.symlink(target, "out/deep/%d/link" % number)
""",
    ),
    Case(
        id="A39b",
        title="pipes, sockets and devices among the artifacts",
        tries="leaves a FIFO that nobody writes to, a socket, links to devices, and the whole folder as a FIFO",
        holds="none is opened, so that nobody waits for it, and none is kept",
        layer=Layer.SUPERVISOR,
        due_s=4.0,
        args=("special",),
        control=Inside(args=("plain",)),
        judge=lambda ran: (f"out/{path} was kept" for path in ran.artifacts),
        program="""
import os, socket, stat, sys
from inside import attempt, tried

tried()
if sys.argv[1] == "plain":
    open("out/fifo", "w").close()
else:
    os.mkfifo("out/fifo")
    socket.socket(socket.AF_UNIX).bind("out/socket")
    for number, name in enumerate(("zero", "random", "full", "stdin")):
        os.symlink("/dev/" + name, "out/" + name)
    attempt("a device was made", lambda: os.mknod("out/device", stat.S_IFCHR | 0o666, os.makedev(1, 5)))
""",
    ),
    Case(
        id="A39c",
        title="sparse files among the artifacts",
        tries="leaves files that are nothing but a hole: one of 1 TB, one beyond the limit, many up to it",
        holds="a hole counts by its size, so no more is read and kept than the limit says",
        layer=Layer.SUPERVISOR,
        limits={"artifact_bytes": 4 << 20, "artifacts": 50},
        control=Inside({"artifact_bytes": 64 << 20}),
        judge=_too_much,
        program="""
import signal
from inside import tried

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for name, size in (("tera", 1 << 40), ("!big", 5 << 20), *(("%03d" % number, 4 << 20) for number in range(200))):
    tried()
    with open("out/" + name, "wb") as file:
        try:
            file.truncate(size)
        except OSError:
            pass  # beyond what a file may have here
""",
    ),
    Case(
        id="A39d",
        title="swarms and depths among the artifacts",
        tries="leaves as many files as the disk takes, and folders in folders in folders",
        holds="no more are kept than the limit says, the walk ends, and soon",
        layer=Layer.SUPERVISOR,
        due_s=6.0,
        limits={"artifacts": 20},
        control=Inside({"artifacts": 1000}),
        judge=lambda ran: ["more than 20 files were kept"] if len(ran.artifacts) > 20 else [],
        in_pods={
            "tries": "leaves 5,000 files, and folders in folders in folders",
            "program": _LEAVES_SWARMS.replace("100_000", "5_000"),
        },
        program=_LEAVES_SWARMS,
    ),
    Case(
        id="A39e",
        title="artifacts that change while they are collected",
        tries="leaves a daemon behind that swaps a file with a link, and lets another grow, without a pause",
        holds="it is dead before anything is looked at",
        layer=Layer.TEARDOWN,
        args=("swap",),
        control=Inside(args=("copy",)),
        judge=_foreign,
        program="""
import os, sys
from inside import tried

tried()
if sys.argv[1] == "copy":
    with open("out/file", "w") as file:
        file.write(open("/etc/passwd").read())
else:
    ready, told = os.pipe()
    open("out/file", "w").close()
    os.symlink("/etc/passwd", "out/link")
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while True:
                os.rename("out/file", "out/spare")
                os.rename("out/link", "out/file")
                os.rename("out/file", "out/link")
                os.rename("out/spare", "out/file")
                with open("out/growing", "ab") as file:
                    file.write(bytes(1000))
                os.write(told, b"x") if told else None
                told = 0
        os._exit(0)
    os.read(ready, 1)
""",
    ),
    Case(
        id="A40c",
        title="artifacts whose names lie",
        tries="names files with line feeds, escapes, reversed text, bytes that are no UTF-8, and as a path upwards",
        holds="only printable relative paths are kept, the others are counted",
        layer=Layer.SUPERVISOR,
        ends=Ends((OutcomeKind.EXITED,), exit_code=0),
        args=("lie",),
        control=Inside(args=("plain",)),
        judge=_named_badly,
        program="""
import os, sys
from inside import tried

names = [b"evil\\n", b"\\x1b[2Jevil", b"\\xe2\\x80\\xaeevil", b"evil\\xff", b"evil\\r\\nSet-Cookie: x", b"\\x7fevil"]
for name in [b"evil"] if sys.argv[1] == "plain" else names:
    tried()
    open(b"out/" + name, "w").close()
    os.makedirs(b"out/below/" + (name if sys.argv[1] == "lie" else b"x"))
    open(b"out/below/" + (name if sys.argv[1] == "lie" else b"x") + b"/file", "w").close()
""",
    ),
    Case(
        id="A37b",
        title="hard links to the system among the artifacts",
        tries="links files of the system into its folder, by name and by descriptor",
        holds="no link can be made across mounts, so none can be kept",
        layer=Layer.ROOT,
        args=("/etc/passwd", "/etc/os-release", "/usr/bin/env"),
        control=Inside(args=("copy",)),
        judge=_foreign,
        program="""
import os, sys
from inside import attempt, tried

for number, path in enumerate(sys.argv[1:]):
    tried()
    if path == "copy":
        with open("out/copy", "w") as file:
            file.write(open("/etc/passwd").read())
        continue
    attempt(path + " was linked", lambda: os.link(path, "out/%d" % number))
    fd = os.open(path, os.O_RDONLY)
    attempt(path + " was linked by descriptor", lambda: os.link("/proc/self/fd/%d" % fd, "out/fd-%d" % number))
""",
    ),
)
