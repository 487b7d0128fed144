"""How a pod ended, from what its runner and Kubernetes say."""

import json
import signal
from dataclasses import asdict, replace
from typing import Any

import pytest

from runtape.adapters.kubernetes.outcomes import (
    deleted,
    forbidden,
    not_begun,
    outcome_of,
    reported,
    unreported,
    unschedulable,
)
from runtape.adapters.kubernetes.protocol import VERSION, Report
from runtape.domain.limits import Limits
from runtape.domain.outcome import OutcomeKind

ENDED = Report(
    token="00ff",
    wait_status=0,
    stopped_for="",
    failure="",
    wall_ns=5,
    cpu_user_ns=1,
    cpu_system_ns=1,
    peak_memory_bytes=1,
    oom_kills=0,
    output_bytes=0,
    truncated=False,
    last_seq=0,
    left_files=False,
)
KILLED = int(signal.SIGKILL)
SECOND_NS = 10**9
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}


@pytest.mark.parametrize(
    ("changes", "kind", "reason"),
    [
        ({}, OutcomeKind.EXITED, None),
        ({"wait_status": 3 << 8, "stopped_for": "wall"}, OutcomeKind.EXITED, None),
        ({"wait_status": int(signal.SIGSEGV)}, OutcomeKind.SIGNALLED, None),
        ({"wait_status": KILLED}, OutcomeKind.SIGNALLED, None),
        ({"wait_status": KILLED, "stopped_for": "wall"}, OutcomeKind.WALL_LIMIT, None),
        ({"wait_status": KILLED, "stopped_for": "cpu"}, OutcomeKind.TIME_LIMIT, None),
        ({"wait_status": KILLED, "stopped_for": "cancelled"}, OutcomeKind.CANCELLED, None),
        ({"wait_status": KILLED, "stopped_for": "lease"}, OutcomeKind.SANDBOX_ERROR, "lease_expired"),
        ({"wait_status": KILLED, "stopped_for": "deleted"}, OutcomeKind.SANDBOX_ERROR, "pod_deleted"),
        ({"wait_status": KILLED, "stopped_for": "output", "truncated": True}, OutcomeKind.OUTPUT_LIMIT, None),
        ({"wait_status": 0, "truncated": True}, OutcomeKind.OUTPUT_LIMIT, None),
        ({"wait_status": KILLED, "oom_kills": 1}, OutcomeKind.MEMORY_LIMIT, "oom"),
        ({"wait_status": KILLED, "cpu_user_ns": 10 * SECOND_NS}, OutcomeKind.TIME_LIMIT, None),
        ({"wait_status": int(signal.SIGXCPU)}, OutcomeKind.TIME_LIMIT, None),
        (
            {"wait_status": KILLED, "stopped_for": "wall", "cpu_user_ns": 10 * SECOND_NS},
            OutcomeKind.TIME_LIMIT,
            None,
        ),
        ({"wait_status": 127 << 8, "failure": "/no: No such file"}, OutcomeKind.SANDBOX_ERROR, "start_failed"),
    ],
)
def test_a_report_tells_one_outcome(changes: dict[str, Any], kind: OutcomeKind, reason: str | None) -> None:
    outcome = outcome_of(replace(ENDED, **changes), Limits(cpu_s=10.0))
    assert (outcome.kind, outcome.reason) == (kind, reason)


def status(**state: object) -> dict[str, Any]:
    return {"phase": "Running", "containerStatuses": [{"state": state}]}


def pod(status: dict[str, Any], **metadata: object) -> dict[str, Any]:
    return {"metadata": metadata, "status": status}


def target(reason: str) -> dict[str, Any]:
    return {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": reason}]}


def told(report: Report) -> str:
    return json.dumps({"version": VERSION, **asdict(report)})


def test_a_report_counts_by_its_token_alone() -> None:
    assert reported(pod(status(terminated={"exitCode": 0, "message": told(ENDED)})), "00ff") == ENDED
    assert reported(pod(status(terminated={"exitCode": 0, "message": told(ENDED)})), "0000") is None
    assert reported(pod(status(running={})), "00ff") is None


@pytest.mark.parametrize("message", ["", "x", "{}", "[]", "null", '{"version":1}', '{"version":9,"token":"00ff"}'])
def test_what_is_no_report_is_none(message: str) -> None:
    assert reported(pod(status(terminated={"exitCode": 1, "message": message})), "00ff") is None


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (status(terminated={"reason": "OOMKilled", "exitCode": 137}), "oom"),
        (status(terminated={"reason": "Error", "exitCode": 137}), "runner_killed"),
        ({"phase": "Failed", "reason": "Evicted", **status(terminated={"exitCode": 137})}, "evicted"),
        ({"phase": "Failed", "reason": "DeadlineExceeded"}, "pod_deadline"),
        ({"phase": "Failed", "reason": "NodeLost"}, "node_lost"),
        ({"phase": "Failed"}, "pod_failed"),
        ({"phase": "Failed", **target("DeletionByPodGC")}, "node_lost"),
        ({"phase": "Failed", **target("EvictionByEvictionAPI")}, "evicted"),
        ({**status(terminated={"exitCode": 137}), **target("DeletionByTaintManager")}, "node_lost"),
        (status(waiting={"reason": "ErrImageNeverPull", "message": "no such image"}), "image_pull_failed"),
        (status(waiting={"reason": "CreateContainerConfigError"}), "container_refused"),
    ],
)
def test_kubernetes_words_stand_where_there_is_no_report(said: dict[str, Any], reason: str) -> None:
    outcome = unreported(pod(said))
    assert outcome is not None
    assert outcome.reason == reason


def test_a_pod_that_was_deleted_says_so_once_it_has_ended() -> None:
    at = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    outcome = unreported(pod(status(terminated={"reason": "Completed", "exitCode": 0}), **at))
    assert outcome is not None
    assert outcome.reason == "pod_deleted"
    assert unreported(pod(status(running={}), **at)) is None


def test_why_a_pod_was_deleted_is_told_with_its_report() -> None:
    stopped = replace(ENDED, wait_status=KILLED, stopped_for="deleted")
    evicted = pod({"phase": "Running", **target("PreemptionByScheduler")})
    assert outcome_of(stopped, Limits(), evicted).reason == "preempted"
    assert deleted(None).reason == "pod_deleted"


@pytest.mark.parametrize(
    ("seen", "reason", "words"),
    [
        (pod({"conditions": [UNSCHEDULABLE]}), "unschedulable", "(0/1 nodes)"),
        (pod(status(waiting={"reason": "ContainerCreating"})), "pod_not_started", "(ContainerCreating)"),
        (pod({"phase": "Pending"}) | {"spec": {"nodeName": "n7"}}, "pod_not_started", "the kubelet of the node n7"),
        (None, "pod_not_started", "scheduler"),
    ],
)
def test_what_keeps_a_pod_from_running_is_told_with_what_to_do(
    seen: dict[str, Any] | None, reason: str, words: str
) -> None:
    outcome = not_begun(seen, 60.0)
    assert outcome.reason == reason
    assert words in (outcome.message or "")


@pytest.mark.parametrize(
    "said", [{"phase": "Pending"}, status(running={}), status(waiting={"reason": "PodInitializing"})]
)
def test_a_pod_that_may_still_tell_has_no_outcome(said: dict[str, Any]) -> None:
    assert unreported(pod(said)) is None


def test_why_no_node_takes_a_pod() -> None:
    assert unschedulable({"conditions": [UNSCHEDULABLE]}) == "0/1 nodes"
    assert unschedulable({"conditions": [{**UNSCHEDULABLE, "status": "True"}]}) is None
    assert unschedulable({}) is None


def test_a_right_that_is_lacking_is_told_with_the_role_that_has_it_and_no_other_prohibition_is() -> None:
    lacking = forbidden('User "worker" cannot create resource "pods" in API group ""', 10.0)
    bounded = forbidden("maximum memory usage per Container is 1Gi, but limit is 2Gi", 10.0)
    assert lacking.message is not None and "role k8s-worker of deploy/kubernetes/base/access.yaml" in lacking.message
    assert bounded.message is not None and bounded.message.endswith("limit is 2Gi)")
