"""What a case of the battery is, and the layers of the sandbox that cases test."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from runtape.domain.outcome import Outcome, OutcomeKind
from runtape.prove.ran import Ran
from runtape.prove.target import Target

_REPORT = "report it as a bug, and do not run programs of people whom you do not trust until it is mended"


class Layer(Enum):
    """One wall of the sandbox: its name, and what to do when it does not hold."""

    SECCOMP = "seccomp filter", "a system call outside the allow-list is answered: " + _REPORT
    CAPABILITIES = "capabilities and no_new_privs", "programs keep privileges: " + _REPORT
    ROOT = "read-only root in a mount namespace", "run `runtape doctor`; " + _REPORT
    PROC = "own /proc", "run `runtape doctor`; a container engine must permit a fresh mount of proc; else " + _REPORT
    DEVICES = "own /dev", "take devices away from the service (no --device, no --privileged); else " + _REPORT
    DESCRIPTORS = "closed descriptors and a clean environment", "something of the service is inherited: " + _REPORT
    NETWORK = "network namespace", "run `runtape doctor`: the kernel must permit network namespaces; else " + _REPORT
    PROCESSES = (
        "process limit",
        "delegate the pids controller to the service (systemd: Delegate=yes) or run it as an ordinary user, whose "
        "RLIMIT_NPROC counts",
    )
    MEMORY = (
        "memory limit",
        "delegate a cgroup with the memory controller to the service (systemd: Delegate=yes): `runtape doctor` tells "
        "what it uses now",
    )
    DISK = "sized work directory", "the kernel must support size and nr_inodes of tmpfs; else " + _REPORT
    RLIMITS = "resource limits", "a limit is not in force: " + _REPORT
    CPU = "CPU limit", "delegate a cgroup to the service (systemd: Delegate=yes); else " + _REPORT
    WALL = "wall limit", "the supervisor did not end the program in time: is the machine overloaded? else " + _REPORT
    OUTPUT = "output limit", "the supervisor took other bytes than it should: " + _REPORT
    TEARDOWN = "process namespace and its teardown", "something outlives its run: " + _REPORT
    SUPERVISOR = "supervisor", "the service acts on what a program made: " + _REPORT
    FRESH_BOX = "a box for each run", "something passes from one run to another: " + _REPORT
    USERS = (
        "a user for each box",
        "run the service as root: each box then has a uid of its own, and none uses up what a user's processes share",
    )
    LAYERS = "packages in unlisted read-only folders", "set packages.enabled to false, and " + _REPORT
    SHARED_FILES = "files shared by all boxes", "run each tenant's programs on a machine of their own; " + _REPORT
    SCHEDULER = (
        "fair scheduler",
        "sysctl kernel.sched_autogroup_enabled=1, or lower limits.processes and admission.running",
    )
    PROBE = "the probe itself", "nothing is proven here: look at what the program said, and " + _REPORT
    HARDWARE = "one machine for all", "give each tenant a machine"
    POLICY = (
        "network policy",
        "apply deploy/kubernetes to the namespace, on a cluster whose network plugin enforces NetworkPolicy, as Calico "
        "and Cilium do: pods can reach what it should keep them from",
    )
    CREDENTIALS = "no credentials in pods", "a pod can act in the cluster: " + _REPORT
    RUNNER = "runner, pid 1 of its container", "a program can work on what watches over it: " + _REPORT

    def __init__(self, title: str, fix: str) -> None:
        self.title = title
        self.fix = fix

    def fix_in(self, target: Target) -> str:
        """What to do when it does not hold there."""
        return _FIXES_IN_PODS.get(self, _FIX_IN_PODS) if target is Target.KUBERNETES else self.fix


_FIX_IN_PODS: Final = (
    "compare the pod's spec in the cluster with what the service asks for: an admission webhook or the container "
    "runtime of the nodes may have taken this away; else " + _REPORT
)
_FIXES_IN_PODS: Final = {
    **{each: each.fix for each in (Layer.POLICY, Layer.PROBE, Layer.HARDWARE, Layer.OUTPUT, Layer.SUPERVISOR)},
    Layer.PROCESSES: "set podPidsLimit of the kubelets, and kubernetes.user_namespaces where the nodes can make them",
    Layer.WALL: "is the node or the API overloaded? else " + _REPORT,
    Layer.SCHEDULER: "lower kubernetes.cpu, or give programs nodes of their own",
}


@dataclass(frozen=True, slots=True)
class Ends:
    """The outcomes that attribute a case rightly: one of `kinds`, and the code or signal where one is given."""

    kinds: tuple[OutcomeKind, ...]
    exit_code: int | None = None
    signal: int | None = None

    def allows(self, outcome: Outcome) -> bool:
        """Whether `outcome` is one of them."""
        return (
            outcome.kind in self.kinds
            and self.exit_code in (None, outcome.exit_code)
            and self.signal in (None, outcome.signal)
        )

    def __str__(self) -> str:
        details = [f"code {self.exit_code}"] if self.exit_code is not None else []
        details += [f"signal {self.signal}"] if self.signal is not None else []
        return " ".join([" or ".join(self.kinds), *details])


ENDS_BY_ITSELF = Ends((OutcomeKind.EXITED,), exit_code=0)


@dataclass(frozen=True, slots=True)
class Outside:
    """Control: the same program directly on this machine, aimed at what is known to be open.

    `args` name targets that are harmless here; `inherits` gives it a descriptor too many.
    """

    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    inherits: bool = False


@dataclass(frozen=True, slots=True)
class Inside:
    """Control: the same program in a box that lets it: wider `limits`, or `args` that make it do what must not be."""

    limits: Mapping[str, int | float] = field(default_factory=dict[str, int | float])
    args: tuple[str, ...] | None = None
    due_s: float | None = None
    """When it is overdue: sooner than the case, for a control that shows just this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One row of the report.  By itself, without a program, it stands for a limit that is known and not closed."""

    id: str
    """Its number in the catalogue of abuse; a letter behind it tells several programs of one number apart."""
    title: str
    tries: str
    """What is tried; a sentence without a subject."""
    holds: str
    """What must hold."""
    layer: Layer
    fix: str = ""
    """What to change, where the layer's own advice does not fit."""
    kernel: str = ""
    """Why it is held only as far as the kernel, where that is so; empty where a layer of ours keeps it off."""
    kernel_without_root: str = ""
    """The same, for a service that is not root."""
    not_in_pods: str = ""
    """Why it does not apply to pods, where that is so."""
    in_pods: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The fields that are others for pods, by their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case(Check):
    """One hostile program, what must come of it, and the control that shows that its success would be seen.

    The program prints its successes as leaks, by `inside.py`.  In `args`, ``{name}`` stands for a lure
    (`lures.Bait.names`).  A case whose `control` reports no leak proves nothing, and has failed.
    """

    program: str
    control: Outside | Inside
    ends: Ends = ENDS_BY_ITSELF
    limits: Mapping[str, int | float] = field(default_factory=dict[str, int | float])
    args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    stdin: bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    requirements: tuple[str, ...] = ()
    """Packages that it runs with; `package.NAME` is the one that there is."""
    due_s: float = 8.0
    """A program that has not ended by then is not contained."""
    companion: str = ""
    """Another tenant's program, started before: run to its end, or, when it stays, until it has printed ``up``."""
    companion_stays: bool = False
    times: int = 1
    """How often the program is run, one after another: for what another run might have left in some box."""
    started_twice: bool = False
    """Whether the same attempt of the same execution is started a second time."""
    control_first: bool = False
    """Whether the control has to be over before, as the two would share what is used up."""
    judge: Callable[[Ran], Iterable[str]] = lambda _: ()
    """Returns leaks that are seen from outside alone."""
    machines: tuple[str, ...] = ()
    """The machines that it is for; all when empty."""
