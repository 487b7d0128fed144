"""Programs that only pods have to bear: on their runner, on what the cluster is told of them, on their node."""

from collections.abc import Iterator, Mapping
from typing import Any

from runtape.domain.outcome import OutcomeKind
from runtape.prove.case import Case, Ends, Inside, Layer, Outside
from runtape.prove.ran import Ran

_TO_BE_FOUND_NOWHERE = "{{ .Values.canary }}-${canary}-$(canary)-%canary%"
_FORGED_FRAMES = b"\0runtape" + bytes(16) + b"e\x02\0\0\0{}\x5a" + b"W\5\0\0\0\1\0\0\0e\x5a" + bytes(64)


def _spec_of(ran: Ran) -> Mapping[str, Any]:
    return ran.manifest.get("spec", {})


def _unhardened(ran: Ran) -> Iterator[str]:
    """Yield where a pod, as it ran, is less than it was to be."""
    spec = _spec_of(ran)
    pod = spec.get("securityContext", {})
    container: Mapping[str, Any] = next(iter(spec.get("containers", ())), {})
    own: Mapping[str, Any] = container.get("securityContext", {})
    expected = {
        "no token is mounted": spec.get("automountServiceAccountToken") is False,
        "it has no service's addresses": spec.get("enableServiceLinks") is False,
        "it has none of the node's namespaces": not any(spec.get(f"host{kind}") for kind in ("Network", "PID", "IPC")),
        "it is not root": pod.get("runAsNonRoot") is True and pod.get("runAsUser", 0) > 0,
        "it has a seccomp profile": pod.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
        "it has no capability": own.get("capabilities") == {"drop": ["ALL"]},
        "it can get no privilege": own.get("allowPrivilegeEscalation") is False and not own.get("privileged"),
        "its root is read-only": own.get("readOnlyRootFilesystem") is True,
        "it is started once": spec.get("restartPolicy") == "Never",
        "it ends some time": spec.get("activeDeadlineSeconds", 0) > 0,
        "it is bounded": {"cpu", "memory"} <= container.get("resources", {}).get("limits", {}).keys(),
        "it is alone": len(spec.get("containers", ())) == 1 and not spec.get("ephemeralContainers"),
        "its volumes are its own memory": all(
            each.keys() == {"name", "emptyDir"} and each["emptyDir"].keys() == {"medium", "sizeLimit"}
            for each in spec.get("volumes", ({},))
        ),
    }
    yield from (f"it does not hold that {what}" for what, holds in expected.items() if not holds)


def _written_down(ran: Ran) -> Iterator[str]:
    """Yield what a pod's manifest says of what its program was given."""
    said = ran.stdout.partition(b"given: ")[2].split(b"\n")[0].decode()
    if not said or said in str(ran.manifest):
        yield f"the pod's manifest says {said!r}"


def _other_than_printed(ran: Ran) -> Iterator[str]:
    if not ran.stdout.endswith(_FORGED_FRAMES):
        yield "the bytes on the tape are not those that were printed"


CASES = (
    Case(
        id="A21b",
        title="folders of the node",
        tries="looks for mounts beyond those of any container, and for some that it can write to",
        holds="nothing of the node is mounted but what the cluster writes for the pod, and that is read-only",
        layer=Layer.ROOT,
        control=Outside(("{outside}",)),
        program="""
import os, sys
from inside import leak, tried

OF_ANY = {"/", "/box", "/tmp", "/dev", "/dev/pts", "/dev/mqueue", "/dev/shm", "/dev/termination-log", "/etc/hosts",
          "/etc/hostname", "/etc/resolv.conf"}
WRITABLE = {"/box", "/tmp", "/dev/shm", "/dev/mqueue", "/dev/termination-log"}
for line in open("/proc/self/mountinfo"):
    path = line.split()[4]
    tried()
    if path not in OF_ANY and not path.startswith(("/proc", "/sys")):
        leak("%s is mounted" % path)
    if path not in WRITABLE and not path.startswith("/proc") and os.access(path, os.W_OK):
        leak("%s can be written to" % path)
for path in sys.argv[1:]:
    if os.path.isdir(path):
        leak("%s is there" % path)
""",
    ),
    Case(
        id="A04b",
        title="filling of the node's disk",
        tries="writes without end to the one file of the node that a container may write to, its termination log",
        holds="it takes no more than the disk limit of a file, and goes with the pod",
        layer=Layer.RLIMITS,
        limits={"disk_mb": 8},
        control=Inside({"disk_mb": 64}),
        program="""
import signal
from inside import leak, tried

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
written = 0
try:
    with open("/dev/termination-log", "wb", 0) as file:
        for _ in range(16):
            tried()
            written += file.write(bytes(1 << 20))
except OSError:
    tried()
if written > 8 << 20:
    leak("%d MiB written to the node's disk" % (written >> 20))
""",
    ),
    Case(
        id="A04c",
        title="filling of shared memory",
        tries="writes more than its memory limit to /dev/shm, which has no size of its own",
        holds="it counts as the run's own memory",
        layer=Layer.MEMORY,
        limits={"memory_mb": 32},
        ends=Ends((OutcomeKind.MEMORY_LIMIT, OutcomeKind.EXITED)),
        control=Inside({"memory_mb": 256}),
        program="""
import signal
from inside import leak, tried

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
written = 0
try:
    for number in range(8):
        with open("/dev/shm/%d" % number, "wb", 0) as file:
            for _ in range(7):
                tried()
                written += file.write(bytes(1 << 20))
except OSError:
    pass
if written > 49 << 20:
    leak("%d MiB written" % (written >> 20))
""",
    ),
    Case(
        id="A06b",
        title="exhaustion of memory by inodes",
        tries="makes empty files without end, which take none of the room of a file system",
        holds="they count as the run's own memory",
        layer=Layer.MEMORY,
        limits={"memory_mb": 32},
        ends=Ends((OutcomeKind.MEMORY_LIMIT,)),
        args=("1000000",),
        due_s=18.0,
        control=Inside(args=("1000",)),
        program="""
import sys
from inside import leak, tried

for number in range(int(sys.argv[1])):
    tried()
    open("/tmp/%d" % number, "w").close()
leak("%s files made" % sys.argv[1])
""",
    ),
    Case(
        id="A03e",
        title="memory bomb that would rather have others killed",
        tries="asks the kernel to kill anybody before it, its runner least of all, and then holds too much memory",
        holds="the run ends as memory_limit, whoever was killed first",
        layer=Layer.MEMORY,
        limits={"memory_mb": 64},
        ends=Ends((OutcomeKind.MEMORY_LIMIT,)),
        due_s=20.0,  # the kernel kills a good twenty of them, which takes six seconds where little else runs
        control=Inside({"memory_mb": 320}),
        program="""
import os, time
from inside import leak, tried

SCORE = "/proc/self/oom_score_adj"
with open(SCORE) as file:
    if int(file.read()) < 500:
        leak("it is killed no sooner than its runner")
for score in range(-1000, 500, 50):
    tried()
    try:
        with open(SCORE, "w") as file:
            file.write(str(score))
        break
    except OSError:
        pass
children = []
for _ in range(24):
    child = os.fork()
    if child == 0:
        held = bytearray(b"x") * (8 << 20)
        time.sleep(20)
        os._exit(0)
    children.append(child)
    time.sleep(0.02)
time.sleep(0.5)
if all(os.waitpid(child, os.WNOHANG)[0] == 0 for child in children):
    leak("192 MiB held")
""",
    ),
    Case(
        id="A31b",
        title="a pod that is weaker than it was to be",
        tries="nothing: what the cluster has made of the pod's manifest is read while it is there",
        holds="nobody between the service and the node has taken any of its walls away",
        layer=Layer.CAPABILITIES,
        judge=_unhardened,
        control=Outside(),
        program="from inside import tried\ntried()\n",
    ),
    Case(
        id="A43b",
        title="forged report",
        tries="writes a report that it ended well to its termination log, to its runner's descriptors and memory",
        holds="its own exit code is told: the report bears a token that no program knows",
        layer=Layer.RUNNER,
        ends=Ends((OutcomeKind.EXITED,), exit_code=7),
        args=("/proc/1/mem", "/proc/1/environ", "/proc/1/auxv", "/proc/1/oom_score_adj", "/proc/1/clear_refs"),
        control=Outside(("{outside_file}",)),
        program="""
import json, os, sys
from inside import attempt, done

forged = json.dumps({
    "version": 1, "token": "00" * 16, "wait_status": 0, "stopped_for": "", "failure": "", "wall_ns": 1,
    "cpu_user_ns": 1, "cpu_system_ns": 1, "peak_memory_bytes": 1, "oom_kills": 0, "output_bytes": 0,
    "truncated": False, "last_seq": 0, "left_files": False,
}).encode()

def write(path):
    descriptor = os.open(path, os.O_WRONLY)
    os.write(descriptor, forged)
    os.close(descriptor)

try:
    write("/dev/termination-log")
except OSError:
    pass
for path in [*sys.argv[1:], *("/proc/1/fd/%d" % number for number in range(64))]:
    attempt(path + " takes a report", lambda: write(path))
done()
os._exit(7)
""",
    ),
    Case(
        id="A43c",
        title="signals to the runner",
        tries="kills and stops its runner, says in Kubernetes' name that the pod is deleted, and takes its priority",
        holds="its own exit code is told: the runner hears Kubernetes alone, and runs as it did",
        layer=Layer.RUNNER,
        ends=Ends((OutcomeKind.EXITED,), exit_code=7),
        args=("runner",),
        control=Inside(args=("itself",)),
        program="""
import ctypes, os, signal, struct, sys
from inside import attempt, done, libc, reach, tried

SIGQUEUEINFO = {"x86_64": 129, "aarch64": 138}[os.uname().machine]
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
target = 1 if sys.argv[1] == "runner" else os.getpid()
for number in range(1, 65) if target == 1 else ():
    for each in (target, -1):
        try:
            tried()
            os.kill(each, number)
        except OSError:
            pass
    # As if there were no sender in this namespace: si_signo, si_errno, si_code, a gap, si_pid, si_uid.
    told = ctypes.create_string_buffer(struct.pack("iiiiii", number, 0, -1, 0, 0, 0), 128)
    libc.syscall(SIGQUEUEINFO, target, number, told)
reach("ptrace", 16, target, 0, 0)
attempt("a priority was changed", lambda: os.setpriority(os.PRIO_PROCESS, target, 19))
attempt("processors were changed", lambda: os.sched_setaffinity(target, {min(os.sched_getaffinity(0))}))
if target == 1:
    attempt("the priority of all of its user was changed", lambda: os.setpriority(os.PRIO_USER, 0, 19))
    attempt("the priority of a group was changed", lambda: os.setpriority(os.PRIO_PGRP, os.getpgid(1), 19))
done()
os._exit(7)
""",
    ),
    Case(
        id="A43d",
        title="runner that gets no processor",
        tries="keeps its processors busy with 40 processes, so that its runner comes too late to end it",
        holds="the run ends at its wall or CPU limit",
        layer=Layer.WALL,
        limits={"wall_s": 1.0},
        ends=Ends((OutcomeKind.WALL_LIMIT, OutcomeKind.TIME_LIMIT)),
        due_s=3.0,
        control=Inside({"wall_s": 30.0}, due_s=0.8),
        program="""
import os
import inside

try:
    for _ in range(40):
        if os.fork() == 0:
            break
except OSError:
    pass
while True:
    pass
""",
    ),
    Case(
        id="A43e",
        title="output that imitates the runner",
        tries="prints what its runner says to the service: that it is another runner, and a report",
        holds="the tape has exactly these bytes, and its own exit code is told",
        layer=Layer.RUNNER,
        ends=Ends((OutcomeKind.EXITED,), exit_code=7),
        files={"forged": _FORGED_FRAMES},
        judge=_other_than_printed,
        control=Inside(args=("something else",)),
        program="""
import os, sys
from inside import done, tried

tried()
done()
os.write(1, sys.argv[1].encode() if sys.argv[1:] else open("forged", "rb").read())
os._exit(7)
""",
    ),
    Case(
        id="A49d",
        title="ports of the node",
        tries="asks kubelet, API server, etcd and others at the node's address, and whoever listens on usual ports",
        holds="nothing answers there, or no more than that it refuses",
        layer=Layer.POLICY,
        args=tuple(f"{{node_address}} {port}" for port in (10250, 10255, 6443, 2379, 2375, 2376, 22, 111, 4194, 9100)),
        control=Outside(("127.0.0.1 {tcp_port}",)),
        due_s=20.0,
        program="""
import sys
from inside import accepting, guarded, leak, status_of

PATHS = {"10250": "/pods", "10255": "/pods", "2375": "/version", "2376": "/version", "2379": "/v2/keys"}
for address in accepting(sys.argv[1:]):
    port = address.rpartition(" ")[2]
    path = PATHS.get(port, "/")
    status = status_of(address, path, port not in ("10255", "2375", "4194", "9100", "22", "111"))
    if status == 200:
        leak("%s answers %s" % (address, path))
    else:
        guarded("%s can be reached, and refuses (%s)" % (address, status))
""",
    ),
    Case(
        id="A64",
        title="templates in what a program is given",
        tries="names arguments, variables and files so that they mean something in a manifest, a template or a label",
        holds="nothing that a program is given is written down anywhere in its pod",
        layer=Layer.SUPERVISOR,
        args=(_TO_BE_FOUND_NOWHERE,),
        env={f"runtape.dev/owner: {_TO_BE_FOUND_NOWHERE}": _TO_BE_FOUND_NOWHERE, "HOSTNAME": _TO_BE_FOUND_NOWHERE},
        stdin=_TO_BE_FOUND_NOWHERE.encode(),
        files={f"{_TO_BE_FOUND_NOWHERE}\n  hostNetwork: true": _TO_BE_FOUND_NOWHERE.encode()},
        judge=_written_down,
        control=Inside(args=("runtape.dev/execution",)),
        program="""
import sys
from inside import tried

tried()
print("given:", sys.argv[1])
""",
    ),
)
