"""How a pod ended, from what its runner and Kubernetes say."""

import json
import signal
from dataclasses import asdict, replace
from typing import Any

import pytest

from runtape.adapters.kubernetes.outcomes import outcome_of, reported, unreported, unschedulable
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


def told(report: Report) -> str:
    return json.dumps({"version": VERSION, **asdict(report)})


def test_a_report_counts_by_its_token_alone() -> None:
    assert reported(status(terminated={"exitCode": 0, "message": told(ENDED)}), "00ff") == ENDED
    assert reported(status(terminated={"exitCode": 0, "message": told(ENDED)}), "0000") is None
    assert reported(status(running={}), "00ff") is None


@pytest.mark.parametrize("message", ["", "x", "{}", "[]", "null", '{"version":1}', '{"version":9,"token":"00ff"}'])
def test_what_is_no_report_is_none(message: str) -> None:
    assert reported(status(terminated={"exitCode": 1, "message": message}), "00ff") is None


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (status(terminated={"reason": "OOMKilled", "exitCode": 137}), "oom"),
        (status(terminated={"reason": "Error", "exitCode": 137}), "runner_killed"),
        ({"phase": "Failed", "reason": "Evicted", **status(terminated={"exitCode": 137})}, "evicted"),
        ({"phase": "Failed", "reason": "DeadlineExceeded"}, "pod_deadline"),
        ({"phase": "Failed", "reason": "NodeLost"}, "node_lost"),
        ({"phase": "Failed"}, "pod_failed"),
        (status(waiting={"reason": "ErrImageNeverPull", "message": "no such image"}), "image_pull_failed"),
        (status(waiting={"reason": "CreateContainerConfigError"}), "container_refused"),
    ],
)
def test_kubernetes_words_stand_where_there_is_no_report(pod: dict[str, Any], reason: str) -> None:
    outcome = unreported(pod)
    assert outcome is not None
    assert outcome.reason == reason


@pytest.mark.parametrize(
    "pod", [{"phase": "Pending"}, status(running={}), status(waiting={"reason": "PodInitializing"})]
)
def test_a_pod_that_may_still_tell_has_no_outcome(pod: dict[str, Any]) -> None:
    assert unreported(pod) is None


def test_why_no_node_takes_a_pod() -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
    assert unschedulable({"conditions": [condition]}) == "0/1 nodes"
    assert unschedulable({"conditions": [{**condition, "status": "True"}]}) is None
    assert unschedulable({}) is None
