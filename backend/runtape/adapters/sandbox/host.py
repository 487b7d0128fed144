"""What this host can do for the sandbox: the checks behind ``runtape doctor``.

The one that counts makes a real box, with the keeper and the very steps that runs get, in a folder of its own.  All
is undone before the checks return.
"""

import os
import platform
import secrets
import socket
import subprocess
import tempfile
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from runtape.domain.limits import Limits

from . import gvisor, native
from .keeper import wire
from .keeper_process import command
from .order import make_opening
from .runtimes import InstalledRuntime, MissingRuntime, detect

_ANSWER_TIMEOUT_S: Final = 10.0
_EXIT_TIMEOUT_S: Final = 5.0


class State(StrEnum):
    """How a host meets one requirement."""

    OK = "ok"
    DEGRADED = "degraded"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class HostCheck:
    """One requirement; `fix` is empty when nothing needs to be done."""

    name: str
    state: State
    finding: str
    fix: str = ""


def inspect_host() -> list[HostCheck]:
    """Return what was found, the most fundamental first.  Programs can be run when nothing is `MISSING`.

    Blocks for some 200 ms, needs no privilege, and leaves nothing behind.
    """
    found, missing = detect()
    return [_user(), *_isolation(), *_languages(found, missing)]


def _user() -> HostCheck:
    machine = f"Linux {platform.release()} on {platform.machine()}"
    if os.geteuid() == 0:
        return HostCheck("host", State.OK, f"{machine}, as root: programs run as unprivileged users of their own")
    return HostCheck("host", State.OK, f"{machine}, as user {os.geteuid()}: programs run as the same user, confined")


def _isolation() -> list[HostCheck]:
    try:
        answers = _try_one_box()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return [HostCheck("isolation", State.MISSING, f"the keeper did not answer: {error}", "report this as a bug")]
    kinds = {answer[0]: answer for answer in answers}
    if "refused" in kinds:
        _, finding, fix = kinds["refused"]
        return [HostCheck("isolation", State.MISSING, finding, fix)]
    if "armed" not in kinds or "open" not in kinds:
        finding = str(answers[-1][-1]).strip().rpartition("\n")[2] if answers else "the keeper ended"
        return [HostCheck("isolation", State.MISSING, finding, "permit user namespaces and mounts to the service")]
    opened = wire.Opened(*kinds["open"][1:])
    return [
        HostCheck(
            "isolation",
            State.OK,
            "a box was made: own user, pid, mount, network, ipc, uts and cgroup namespaces, no capability, seccomp",
        ),
        _speed(opened),
        _memory(opened),
        _gvisor(),
    ]


def _speed(opened: wire.Opened) -> HostCheck:
    if opened.native:
        return HostCheck("speed", State.OK, "boxes are made by C programs, and interpreters are forked into them")
    if native.compiler() is None:
        finding, fix = "there is no C compiler", "apt install gcc libc6-dev"
    elif "mount proc" in opened.not_native:
        finding = opened.not_native
        fix = "in a container, do not mask its /proc: --security-opt systempaths=unconfined"
    else:
        finding, fix = opened.not_native or "the C programs could not be built", "see the warning in the log"
    return HostCheck("speed", State.DEGRADED, f"every run starts an interpreter: {finding}", fix)


def _memory(opened: wire.Opened) -> HostCheck:
    if opened.cgroups != "none":
        return HostCheck("memory limit", State.OK, f"by cgroups {opened.cgroups}")
    return HostCheck(
        "memory limit",
        State.DEGRADED,
        f"by a watchdog that samples, as no cgroup can be used: {opened.no_cgroups}",
        "delegate a cgroup: start by `systemd-run --user --scope -p Delegate=yes`, or a unit with Delegate=yes",
    )


def _gvisor() -> HostCheck:
    runsc = gvisor.find()
    if runsc is None:
        finding = "no runsc on PATH, which only sandbox.runtime_class = gvisor needs: apt install runsc"
        return HostCheck("gvisor", State.OK, finding)
    return HostCheck("gvisor", State.OK, f"{runsc}, for sandbox.runtime_class = gvisor")


def _languages(found: list[InstalledRuntime], missing: list[MissingRuntime]) -> list[HostCheck]:
    versions: dict[str, list[str]] = {}
    for each in found:
        versions.setdefault(each.runtime.lang, []).append(each.runtime.version)
    checks = [HostCheck(lang, State.OK, ", ".join(numbers)) for lang, numbers in versions.items()]
    lacking = State.DEGRADED if found else State.MISSING
    return checks + [HostCheck(each.lang, lacking, each.finding, each.fix) for each in missing]


def _try_one_box() -> list[tuple[Any, ...]]:
    """Start a keeper, have it make one box, and return its answers."""
    limits = Limits()
    answers: list[tuple[Any, ...]] = []
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with tempfile.TemporaryDirectory() as folder, ours, open(Path(folder) / "lock", "wb+") as lock:
        with theirs:
            keeper = subprocess.Popen(
                command(theirs.fileno(), lock.fileno()),
                pass_fds=(theirs.fileno(), lock.fileno()),
                env={},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        ours.settimeout(_ANSWER_TIMEOUT_S)
        try:
            opening = make_opening(f"doctor-{secrets.token_hex(4)}", (), limits, programs=native.built(Path(folder)))
            ours.send(wire.pack("open", *opening))
            ours.send(wire.pack("arm", *wire.Shape("", limits.disk_mb << 20, limits.inodes)))
            while not answers or answers[-1][0] == "open":
                datagram, fds, _, _ = socket.recv_fds(ours, wire.DATAGRAM_BYTES, wire.BOX_FDS)
                for fd in fds:
                    os.close(fd)
                if not datagram:
                    break
                answers.append(wire.unpack(datagram))
        finally:
            ours.close()
            try:
                keeper.wait(_EXIT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                keeper.kill()
                keeper.wait()
    return answers
