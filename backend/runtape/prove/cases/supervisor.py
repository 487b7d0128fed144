"""Programs that work on whoever watches over them, and on the runs before, beside and after them.

The supervisor's own acts are looked at from outside: `lures.Bait.touched` tells when a file changed that no box can
see, so that only something outside can have followed a link there.
"""

from collections.abc import Iterator

from runtape.domain.outcome import OutcomeKind
from runtape.prove import package
from runtape.prove.case import Case, Ends, Inside, Layer, Outside
from runtape.prove.ran import Ran


def _twice(ran: Ran) -> Iterator[str]:
    if (count := ran.stdout.count(b"begun once")) > 1:
        yield f"the program ran {count} times"


_LOOKS_FOR_INJECTIONS = """
import os, sys
from inside import leak, tried

tried()
expected = ["-c", "print('injected')", "-m", "http.server", "--", "-o/box/x", "$(id)", "`id`", "a b\\n"]
if sys.argv[1:] != expected:
    leak("the arguments are %r" % sys.argv[1:])
tried()
if any("injected" in path for path in sys.path) or os.environ.get("PYTHONINSPECT") != "1":
    leak("the environment took effect on the interpreter, or did not arrive")
for path in ("/proc/1/environ", "/proc/1/cmdline"):
    try:
        leak("pid 1 shows %r" % open(path).read()[:40])
    except OSError:
        tried()
"""
_NO_PACKAGES = "pods have the packages of their image, and none are laid into them"

CASES = (
    Case(
        id="A36",
        title="symbolic links where the supervisor writes",
        tries="replaces its script, its folders and every likely name by links to a file and a folder of the host",
        holds="nothing outside is written, made, or removed through them, before, during or after the run",
        layer=Layer.SUPERVISOR,
        files={"given/data": b"given"},
        args=("{outside}", "leave"),
        control=Outside(("{outside}", "follow")),
        program="""
import os, shutil, sys
from inside import attempt, tried

target, mode = sys.argv[1:]
for name in ("main.py", "inside.py", "given", ".tmp", "out", "core", "stdout", "stderr", "status", "meta"):
    tried()
    if os.path.isdir(name):
        shutil.rmtree(name)
    elif os.path.exists(name):
        os.remove(name)
    os.symlink(target if name in ("given", ".tmp", "out") else target + "/file", name)
if mode == "follow":
    with open("stdout", "a") as file:
        file.write("followed")
""",
    ),
    Case(
        id="A37",
        title="hard links to files of the host",
        tries="links interpreters, libraries and system files into its work directory, also by descriptor",
        holds="no link can be made across mounts",
        layer=Layer.ROOT,
        args=("/usr/bin/env", "/etc/passwd", "/etc/os-release", "/dev/null", "/runtape/python.py"),
        control=Outside(("{outside_file}", "{outside_link}")),
        program="""
import os, sys
from inside import attempt

link = sys.argv.pop() if "/file.link" in sys.argv[-1] else "link"
for path in sys.argv[1:]:
    attempt(path + " was linked", lambda: os.link(path, link))
    attempt(path + " was linked by descriptor", lambda: os.link("/proc/self/fd/%d" % os.open(path, os.O_RDONLY), link))
""",
    ),
    Case(
        id="A38",
        title="race by swapping folders",
        tries="swaps its folders with links to a folder of the host without a pause, until it is killed",
        holds="the clean-up removes nothing outside",
        layer=Layer.SUPERVISOR,
        limits={"wall_s": 0.4},
        ends=Ends((OutcomeKind.WALL_LIMIT, OutcomeKind.TIME_LIMIT)),
        args=("{outside}", "leave"),
        due_s=2.0,
        control=Outside(("{outside}", "follow")),
        program="""
import os, sys
import inside

target, mode = sys.argv[1:]
os.makedirs("folder/below")
open("folder/file", "w").close()
os.symlink(target, "link")
while mode == "leave":
    for a, b in (("folder", "spare"), ("link", "folder"), ("folder", "link"), ("spare", "folder")):
        os.rename(a, b)
os.remove("link/file")
""",
    ),
    Case(
        id="A40",
        title="path traversal in the names of uploads",
        tries="names its files so that they would be laid outside of the work directory",
        holds="no file of the host is made or changed; at worst the run cannot start",
        layer=Layer.SUPERVISOR,
        ends=Ends((OutcomeKind.EXITED, OutcomeKind.SANDBOX_ERROR)),
        files={
            "../../../../../../..{outside}/traversed": b"traversed",
            "{outside}/absolute": b"absolute",
            "given/../../tmp/dotted": b"dotted",
        },
        args=("none",),
        control=Outside(("{outside}/traversed",)),
        program="""
import sys
from inside import tried

tried()
if sys.argv[1] != "none":
    open(sys.argv[1], "w").close()
""",
    ),
    Case(
        id="A40b",
        title="path traversal in an archive",
        tries="unpacks an archive whose names climb out of the work directory",
        holds="what it writes stays in its box",
        layer=Layer.ROOT,
        args=("{outside}/slipped", "/usr/slipped", "/etc/slipped", "/slipped"),
        control=Outside(("{outside}/slipped",)),
        program="""
import io, os, sys, zipfile
from inside import attempt

archive = zipfile.ZipFile(io.BytesIO(), "w")
for path in sys.argv[1:]:
    archive.writestr("../" * 16 + path.lstrip("/"), "slipped")

def unpack(name):
    with open(os.path.join(os.getcwd(), name), "wb") as file:
        file.write(archive.read(name))

for name in archive.namelist():
    attempt(name + " was written", lambda: unpack(name))
""",
    ),
    Case(
        id="A41",
        title="injection by arguments and environment",
        tries="passes interpreter options as arguments, and LD_PRELOAD, PYTHONSTARTUP, NODE_OPTIONS and others as "
        "environment",
        holds="arguments arrive as they are, and the environment reaches the program alone",
        layer=Layer.SUPERVISOR,
        args=("-c", "print('injected')", "-m", "http.server", "--", "-o/box/x", "$(id)", "`id`", "a b\n"),
        env={
            "LD_PRELOAD": "/box/none.so",
            "LD_LIBRARY_PATH": "/box",
            "PYTHONSTARTUP": "/box/injected.py",
            "PYTHONPATH": "/box/injected",
            "PYTHONINSPECT": "1",
            "NODE_OPTIONS": "--require /box/injected.js",
            "GIT_SSH_COMMAND": "/box/injected",
            "BASH_ENV": "/box/injected.sh",
        },
        files={"injected.py": b'print(\'prove: {"leak": "PYTHONSTARTUP was run"}\')'},
        control=Inside(args=("-c", "something else")),
        in_pods={
            "program": _LOOKS_FOR_INJECTIONS.replace('"/proc/1/environ", "/proc/1/cmdline"', '"/proc/1/environ",')
        },
        program=_LOOKS_FOR_INJECTIONS,
    ),
    Case(
        id="A42",
        title="poisoning of the interpreter",
        tries="writes to the interpreter, its library, its caches, the starter and the linker's configuration",
        holds="every mount but the work directory is read-only, so the next run finds what this one found",
        layer=Layer.ROOT,
        args=("/", "/usr", "/usr/bin", "/usr/lib", "/etc", "/runtape", "/dev", "interpreter"),
        control=Outside(("{outside}",)),
        in_pods={
            "holds": "every mount but the work directory and /tmp is read-only, or takes nothing",
            "args": ("/", "/usr", "/usr/bin", "/usr/lib", "/etc", "/runtape", "interpreter"),
        },
        program="""
import os, sys
from inside import attempt, leak, tried

folders = sys.argv[1:]
if "interpreter" in folders:
    folders.remove("interpreter")
    library = os.path.dirname(os.__file__)
    folders += [library, library + "/__pycache__", os.path.dirname(os.path.realpath(sys.executable))]
    folders += [path for path in sys.path if path.startswith("/") and path != "/box" and os.path.isdir(path)]
for folder in folders:
    attempt(folder + " takes a new file", lambda: os.close(os.open(folder + "/poison", os.O_WRONLY | os.O_CREAT)))
    tried()
    if os.path.isdir(folder) and not os.statvfs(folder).f_flag & os.ST_RDONLY:
        leak("%s is on a writable mount" % folder)
for path in (sys.executable, os.__file__, "/etc/ld.so.preload", "/etc/ld.so.cache") if len(sys.argv) > 2 else ():
    attempt(path + " can be written", lambda: os.close(os.open(path, os.O_WRONLY)))
""",
    ),
    Case(
        id="A42b",
        title="packages of other runs",
        tries="lists the folder with everybody's packages, opens it in every way, guesses, writes, and looks for names "
        "in /proc",
        holds="it knows the folder of its own packages alone, and can change nothing there",
        layer=Layer.LAYERS,
        requirements=(package.NAME,),
        args=("layers",),
        due_s=20.0,
        control=Outside(("{outside}",)),
        not_in_pods=_NO_PACKAGES,
        program="""
import os, re, sys
from inside import attempt, leak, tried

if sys.argv[1] == "layers":
    from runtape_prove_package import folder as own
    layers = os.path.dirname(own)
else:
    own = layers = sys.argv[1]
attempt("the layers were listed", lambda: os.listdir(layers))
attempt("the layers were opened", lambda: os.open(layers, os.O_RDONLY))
attempt("the layers were listed by descriptor",
        lambda: os.listdir("/proc/self/fd/%d" % os.open(layers, os.O_PATH | os.O_DIRECTORY)))
attempt("the layers' mode was changed", lambda: os.chmod(layers, 0o777))
for guess in ("0" * 32, "f" * 32, "sets", "wheels", ".part"):
    attempt(guess + " was guessed", lambda: os.stat(layers + "/" + guess))
attempt("a layer was made", lambda: os.mkdir(layers + "/" + "a" * 32))
for path in (own + "/new.py", own + "/runtape_prove_package/__init__.py", own + "/__pycache__/new.pyc"):
    attempt(path + " was written", lambda: os.close(os.open(path, os.O_WRONLY | os.O_CREAT)))
attempt("a layer was renamed", lambda: os.rename(own, layers + "/" + "b" * 32))
for name in ("maps", "mountinfo", "mounts", "mountstats", "smaps", "environ"):
    text = open("/proc/self/" + name, errors="replace").read()
    tried()
    for other in set(re.findall("layers/([0-9a-f]{32})", text)) - {os.path.basename(own)}:
        leak("/proc/self/%s names %s" % (name, other))
""",
    ),
    Case(
        id="A42c",
        title="code of a package that runs by itself",
        tries="brings a .pth file, sitecustomize, usercustomize and setup.py, which report that they run",
        holds="nothing of a package runs before the program imports it, in a warm interpreter and outside least of all",
        layer=Layer.LAYERS,
        requirements=(package.NAME,),
        times=2,
        due_s=20.0,
        args=("import",),
        control=Inside(args=("site",)),
        not_in_pods=_NO_PACKAGES,
        program="""
import site, sys
import runtape_prove_package
from inside import leak, tried

tried()
if sys.argv[1] == "site":
    site.addsitedir(runtape_prove_package.folder)
if "sitecustomize" in sys.modules or "usercustomize" in sys.modules:
    leak("a customisation was imported")
""",
    ),
    Case(
        id="A43",
        title="forged exit status",
        tries="writes messages to every descriptor, signals pid 1 and changes its limits, to be told as ended well",
        holds="its own exit code is told",
        layer=Layer.DESCRIPTORS,
        ends=Ends((OutcomeKind.EXITED,), exit_code=7),
        args=("signal",),
        control=Outside(inherits=True),
        program="""
import marshal, os, resource, sys
from inside import attempt, done, leak, tried

for forged in (marshal.dumps(("ended", 0, 0, 0, 0, 0)), b'{"exit_code": 0}\\n', b"exited 0\\n"):
    for number in range(3, 512):
        attempt("descriptor %d takes a message" % number, lambda: os.write(number, forged))
if "signal" in sys.argv:
    for number in range(1, 65):
        if number not in (15, 32, 33):  # SIGTERM is how the supervisor itself asks for the end
            try:
                os.kill(1, number)
            except OSError:
                tried()
    attempt("the limits of pid 1 were changed", lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0)))
done()
os._exit(7)
""",
    ),
    Case(
        id="A44",
        title="reading another run's code, input and secrets",
        tries="searches files, environment and its own memory for what the run before it was given",
        holds="nothing of another run is there, in whatever box it is run",
        layer=Layer.FRESH_BOX,
        companion="""
import os, sys
import inside

secret = "CANARY-" + "0123456789abcdef"
for path in ("/box/left", "/tmp/left", "/dev/shm/left"):
    with open(path, "w") as file:
        file.write(secret)
held = [secret + str(number) for number in range(1000)]
os.environ["SECRET"] = secret
""",
        times=5,
        control=Inside(args=("fedcba9876543210",)),
        program="""
import os, re, sys
from inside import leak, tried

kept = "CANARY-" + sys.argv[1] if sys.argv[1:] else ""
pattern = re.compile(b"CANARY-[0-9a-f]{16}")
memory = open("/proc/self/mem", "rb", 0)
for line in open("/proc/self/maps"):
    span, rights = line.split()[:2]
    if rights[0] != "r" or "[v" in line:
        continue
    first, last = (int(part, 16) for part in span.split("-"))
    tried()
    try:
        memory.seek(first)
        found = pattern.search(memory.read(min(last - first, 64 << 20)))
    except (OSError, OverflowError, ValueError):
        continue
    if found:
        leak("the secret is in memory")
for top in ("/box", "/tmp", "/dev/shm"):
    for folder, _, files in os.walk(top):
        if "left" in files:
            leak("%s/left is there" % folder)
if "SECRET" in os.environ:
    leak("the secret is in the environment")
""",
    ),
    Case(
        id="A45",
        title="collision with the run before",
        tries="is started twice by one id, and looks for the port and the daemon that the run before it left",
        holds="it runs once, and nothing of the run before lingers",
        layer=Layer.FRESH_BOX,
        kernel_without_root="all boxes bear the service's own uid: namespaces alone keep them apart",
        companion="""
import os, socket, time
import inside

server = socket.create_server(("127.0.0.1", 45454))
if os.fork() == 0:
    time.sleep(60)
""",
        times=3,
        args=("45454",),
        started_twice=True,
        judge=_twice,
        control=Outside(("{tcp_port}",)),
        in_pods={"kernel_without_root": ""},
        program="""
import socket, sys
from inside import connect, tried

print("begun once", flush=True)
connect(("127.0.0.1", int(sys.argv[1])), refusable=True)
if sys.argv[1] == "45454":
    tried()
    socket.create_server(("127.0.0.1", 45454)).close()
""",
    ),
)
