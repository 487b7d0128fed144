"""How a pod's end is told: from its runner's report, and from Kubernetes' own words where there is none.

Who wins is as in the local sandbox: the output limit, since what was printed after it is lost; a memory that ran out;
the program's own end before a reason to stop it that came too late; otherwise the first reason to stop it.
"""

import os
import signal
from collections.abc import Mapping
from typing import Any, Final

from runtape.adapters.kubernetes.protocol import ProtocolError, Report, report_of
from runtape.adapters.sandbox.pod import CANCELLED, LEASE_EXPIRED, OUTPUT_CUT
from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome, OutcomeKind, Usage

DELETED: Final = Outcome(
    kind=OutcomeKind.SANDBOX_ERROR, reason="pod_deleted", message="the pod was deleted while the program ran"
)
_OUT_OF_MEMORY: Final = Outcome(kind=OutcomeKind.MEMORY_LIMIT, reason="oom")
_TOO_MUCH_CPU: Final = Outcome(kind=OutcomeKind.TIME_LIMIT)
_STOPPED_FOR: Final = {
    "lease": LEASE_EXPIRED,
    "wall": Outcome(kind=OutcomeKind.WALL_LIMIT),
    "cpu": _TOO_MUCH_CPU,
    "output": OUTPUT_CUT,
    "cancelled": CANCELLED,
    "deleted": DELETED,
}
_POD_REASONS: Final = {
    "Evicted": ("evicted", "the node was short of something, and evicted the pod"),
    "Preempting": ("preempted", "a pod of a higher priority took its place"),
    "DeadlineExceeded": ("pod_deadline", "the pod lived longer than any program may"),
    "NodeLost": ("node_lost", "the node does not answer"),
    "NodeShutdown": ("node_lost", "the node was shut down"),
    "Terminated": ("node_lost", "the node was shut down"),
}
_WAITING_REASONS: Final = {
    "ErrImagePull": "image_pull_failed",
    "ErrImageNeverPull": "image_pull_failed",
    "ImagePullBackOff": "image_pull_failed",
    "InvalidImageName": "image_pull_failed",
    "CreateContainerConfigError": "container_refused",
    "CreateContainerError": "container_refused",
    "RunContainerError": "container_refused",
}


def outcome_of(report: Report, limits: Limits) -> Outcome:
    """Return the outcome that a report tells."""
    if report.truncated:
        return OUTPUT_CUT
    if report.oom_kills:
        return _OUT_OF_MEMORY
    stopped = _STOPPED_FOR.get(report.stopped_for)
    if report.failure:
        message = f"the program could not be started: {report.failure}"
        return stopped or Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason="start_failed", message=message)
    if not os.WIFSIGNALED(report.wait_status):
        return Outcome(kind=OutcomeKind.EXITED, exit_code=os.WEXITSTATUS(report.wait_status))
    number = os.WTERMSIG(report.wait_status)
    out_of_cpu = report.cpu_user_ns + report.cpu_system_ns >= limits.cpu_s * 1e9
    if number == signal.SIGKILL and stopped is not None:
        return _TOO_MUCH_CPU if out_of_cpu and report.stopped_for == "wall" else stopped
    if number == signal.SIGXCPU or (number == signal.SIGKILL and out_of_cpu):
        return _TOO_MUCH_CPU
    return Outcome(kind=OutcomeKind.SIGNALLED, signal=number)


def usage_of(report: Report) -> Usage:
    """Return what a report says that was used."""
    return Usage(
        wall_ns=report.wall_ns,
        cpu_user_ns=report.cpu_user_ns,
        cpu_system_ns=report.cpu_system_ns,
        peak_memory_bytes=report.peak_memory_bytes,
        output_bytes=report.output_bytes,
    )


def reported(status: Mapping[str, Any], token: str) -> Report | None:
    """Return the report in the status of a pod whose container has ended, None when it has none with that token."""
    ended = _container_state(status).get("terminated") or {}
    try:
        report = report_of(ended.get("message") or "")
    except ProtocolError:
        return None
    return report if report.token == token else None


def unreported(status: Mapping[str, Any]) -> Outcome | None:
    """Return the outcome of a pod whose runner has told none, by Kubernetes' words; None while it may still tell it."""
    state = _container_state(status)
    if (waiting := state.get("waiting")) and (reason := _WAITING_REASONS.get(waiting.get("reason") or "")):
        return _failed(reason, waiting.get("message") or waiting["reason"])
    ended = state.get("terminated")
    if ended and ended.get("reason") == "OOMKilled":
        return _OUT_OF_MEMORY
    if reason := _POD_REASONS.get(status.get("reason") or ""):
        return _failed(*reason)
    if ended:
        words = f"{ended.get('reason') or 'ended'}, exit code {ended.get('exitCode')}"
        return _failed("runner_killed", f"the first process of the container was killed from outside ({words})")
    if status.get("phase") in ("Failed", "Succeeded"):
        return _failed("pod_failed", status.get("message") or "the pod ended without a container")
    return None


def unschedulable(status: Mapping[str, Any]) -> str | None:
    """Return why no node takes the pod, in the scheduler's words; None when one did, or may."""
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return condition.get("message") if condition.get("reason") == "Unschedulable" else None
    return None


def _failed(reason: str, message: str) -> Outcome:
    return Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason=reason, message=message)


def _container_state(status: Mapping[str, Any]) -> Mapping[str, Any]:
    states = status.get("containerStatuses") or ()
    return states[0].get("state") or {} if states else {}
