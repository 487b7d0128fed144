"""How a pod's end is told: from its runner's report, and from Kubernetes' own words where there is none.

Who wins is as in the local sandbox: the output limit, since what was printed after it is lost; a memory that ran out;
the program's own end before a reason to stop it that came too late; otherwise the first reason to stop it.
"""

import os
import signal
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from runtape.adapters.kubernetes.protocol import ProtocolError, Report, report_of
from runtape.adapters.sandbox.pod import CANCELLED, LEASE_EXPIRED, OUTPUT_CUT
from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome, OutcomeKind, Usage

FILES_LOST: Final = Outcome(
    kind=OutcomeKind.SANDBOX_ERROR,
    reason="files_lost",
    message="the pod was gone before the files that its program left were taken from it",
)
_OUT_OF_MEMORY: Final = Outcome(kind=OutcomeKind.MEMORY_LIMIT, reason="oom")
_TOO_MUCH_CPU: Final = Outcome(kind=OutcomeKind.TIME_LIMIT)
_STOPPED_FOR: Final = {
    "lease": LEASE_EXPIRED,
    "wall": Outcome(kind=OutcomeKind.WALL_LIMIT),
    "cpu": _TOO_MUCH_CPU,
    "output": OUTPUT_CUT,
    "cancelled": CANCELLED,
}
_POD_REASONS: Final = {
    "Evicted": ("evicted", "the node was short of something, and evicted the pod"),
    "Preempting": ("preempted", "a pod of a higher priority took its place"),
    "DeadlineExceeded": ("pod_deadline", "the pod lived longer than any program may"),
    "NodeLost": ("node_lost", "the node does not answer"),
    "NodeShutdown": ("node_lost", "the node was shut down"),
    "Terminated": ("node_lost", "the node was shut down"),
}
_DISRUPTIONS: Final = {
    "EvictionByEvictionAPI": ("evicted", "the pod was evicted from its node"),
    "PreemptionByScheduler": ("preempted", "a pod of a higher priority took its place"),
    "DeletionByTaintManager": ("node_lost", "the node was not fit for pods any more"),
    "DeletionByPodGC": ("node_lost", "the node is gone"),
    "TerminationByKubelet": ("evicted", "the node was short of something or shut down, and ended the pod"),
}
"""By the reason of the condition ``DisruptionTarget``, which tells why a pod was deleted."""
_IMAGE: Final = "image_pull_failed", "check the image's name, and that the nodes may pull it from its registry"
_REFUSED: Final = "container_refused", "the node's kubelet and container runtime tell more"
_WAITING_REASONS: Final = {
    "ErrImagePull": _IMAGE,
    "ErrImageNeverPull": _IMAGE,
    "ImagePullBackOff": _IMAGE,
    "InvalidImageName": _IMAGE,
    "ImageInspectError": _IMAGE,
    "CreateContainerConfigError": _REFUSED,
    "CreateContainerError": _REFUSED,
    "RunContainerError": _REFUSED,
}
"""Why a container does not begin, and what to do about it; another pod may fare better on another node."""


def outcome_of(report: Report, limits: Limits, pod: Mapping[str, Any] | None = None) -> Outcome:
    """Return the outcome that a report tells; `pod`, as it was last seen, tells why it was deleted."""
    if report.truncated:
        return OUTPUT_CUT
    if report.oom_kills:
        return _OUT_OF_MEMORY
    stopped = deleted(pod) if report.stopped_for == "deleted" else _STOPPED_FOR.get(report.stopped_for)
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


def reported(pod: Mapping[str, Any], token: str) -> Report | None:
    """Return the report of a pod whose container has ended, None when it has none with that token."""
    ended = _container_state(pod["status"]).get("terminated") or {}
    try:
        report = report_of(ended.get("message") or "")
    except ProtocolError:
        return None
    return report if report.token == token else None


def unreported(pod: Mapping[str, Any]) -> Outcome | None:
    """Return the outcome of a pod whose runner has told none, by Kubernetes' words; None while it may still tell it."""
    status = pod["status"]
    state = _container_state(status)
    if (waiting := state.get("waiting")) and (why := _WAITING_REASONS.get(waiting.get("reason") or "")):
        words = waiting.get("message") or waiting["reason"]
        return _failed(why[0], f"the container cannot be started ({words}): {why[1]}")
    ended = state.get("terminated")
    if ended and ended.get("reason") == "OOMKilled":
        return _OUT_OF_MEMORY
    if status.get("reason") in _POD_REASONS:
        return deleted(pod)
    over = ended or status.get("phase") in ("Failed", "Succeeded")
    if over and (pod["metadata"].get("deletionTimestamp") or _disruption(status)):
        return deleted(pod)
    if ended:
        words = f"{ended.get('reason') or 'ended'}, exit code {ended.get('exitCode')}"
        return _failed("runner_killed", f"the first process of the container was killed from outside ({words})")
    if over:
        return _failed("pod_failed", status.get("message") or "the pod ended without a container")
    return None


def deleted(pod: Mapping[str, Any] | None) -> Outcome:
    """Return the outcome of a pod that was deleted before its program's end was told; `pod` is how it was last seen."""
    status = pod["status"] if pod is not None else {}
    why = _POD_REASONS.get(status.get("reason") or "") or _disruption(status)
    return _failed(*(why or ("pod_deleted", "the pod was deleted before its program had ended")))


def not_begun(pod: Mapping[str, Any] | None, waited_s: float) -> Outcome:
    """Return the outcome of a pod that does not run after so long, and why, as far as Kubernetes says it."""
    status = pod["status"] if pod is not None else {}
    if words := unschedulable(status):
        advice = "lower the limits of the run, or add to the cluster"
        return _failed("unschedulable", f"no node took the pod within {waited_s:g} s ({words}): {advice}")
    waiting = _container_state(status).get("waiting") or {}
    words = waiting.get("message") or waiting.get("reason") or f"its phase is {status.get('phase', 'unknown')}"
    node = ((pod or {}).get("spec") or {}).get("nodeName")
    advice = f"look at the kubelet of the node {node}" if node else "look at the cluster's scheduler"
    return _failed("pod_not_started", f"the pod did not run within {waited_s:g} s ({words}): {advice}")


def refused(words: str) -> Outcome:
    """Return the outcome of a pod that Kubernetes does not take, in its words."""
    return _failed("pod_refused", f"the pod was not taken: {words}")


def forbidden(words: str, waited_s: float) -> Outcome:
    """Return the outcome of a pod that was forbidden for so long: mostly to the account that asked, else to anybody."""
    may_not = "cannot create resource" in words
    advice = ": give the account the role k8s-worker of deploy/kubernetes/base/access.yaml" if may_not else ""
    return _failed("pod_refused", f"the pod was forbidden for {waited_s:g} s ({words}){advice}")


def quota_exceeded(words: str, waited_s: float) -> Outcome:
    """Return the outcome of a pod for which the namespace had no room for so long."""
    advice = "raise the quota of the namespace, or let fewer programs run at once"
    return _failed("quota_exceeded", f"there was no room for the pod within {waited_s:g} s ({words}): {advice}")


def out_of_reach() -> Outcome:
    """Return the outcome of a program whose runner was not reached until after its lease."""
    return _failed("node_lost", "the pod could not be reached until its program's lease had run out there")


def not_handed_over(waited_s: float) -> Outcome:
    """Return the outcome of a pod whose runner has not taken a program for so long."""
    return _failed("pod_not_started", f"the pod runs, and its runner has taken no program within {waited_s:g} s")


def not_enough_time(left_s: float, wall_s: float) -> Outcome:
    """Return the outcome of a pod that its own deadline would end before its program's."""
    return _failed("pod_not_started", f"the pod may live for {left_s:.0f} s more, and its program for {wall_s:g} s")


def left_to_live_s(pod: Mapping[str, Any]) -> float | None:
    """Return when Kubernetes is going to end the pod, in seconds from now; None when that is not known yet."""
    deadline_s, started = pod["spec"].get("activeDeadlineSeconds"), pod["status"].get("startTime")
    if deadline_s is None or started is None:
        return None
    return deadline_s - (datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds()


def unschedulable(status: Mapping[str, Any]) -> str | None:
    """Return why no node takes the pod, in the scheduler's words; None when one did, or may."""
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return condition.get("message") if condition.get("reason") == "Unschedulable" else None
    return None


def _disruption(status: Mapping[str, Any]) -> tuple[str, str] | None:
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return _DISRUPTIONS.get(condition.get("reason") or "")
    return None


def _failed(reason: str, message: str) -> Outcome:
    return Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason=reason, message=message)


def _container_state(status: Mapping[str, Any]) -> Mapping[str, Any]:
    states = status.get("containerStatuses") or ()
    return states[0].get("state") or {} if states else {}
