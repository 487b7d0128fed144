"""Values of the domain with everything filled in that a test does not care about."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from runtape.domain import execution as executions
from runtape.domain.artifact import NO_ARTIFACTS, Artifact, Artifacts
from runtape.domain.dead_letter import RawMessage
from runtape.domain.events import POD_COMMANDS, ExecutionEvent
from runtape.domain.execution import Execution, Idempotency, OnInterrupt, SourceRef, Spec, evolve_all
from runtape.domain.identity import CredentialKind, Principal, Role, Scope, scopes_of
from runtape.domain.ids import ExecutionId, ProjectId, UserId
from runtape.domain.limits import Limits
from runtape.domain.outcome import Outcome, OutcomeKind, Usage
from runtape.domain.source import Source
from runtape.domain.tape import Record, Stream
from tests.clocks import START

ALICE = UserId("user-alice")
PROJECT = ProjectId("project-alice")
EXECUTION = ExecutionId("execution-1")
OWNER = "worker-1"
LEASE_TTL = timedelta(seconds=30)
EXITED = Outcome(kind=OutcomeKind.EXITED, exit_code=0)
LOST = Outcome(kind=OutcomeKind.SANDBOX_ERROR, reason="worker_lost")


def a_principal(name: str = "alice", role: Role = Role.USER, scopes: frozenset[Scope] | None = None) -> Principal:
    """Return a principal with a project of its own."""
    return Principal(
        user_id=UserId(f"user-{name}"),
        username=name,
        role=role,
        project_id=ProjectId(f"project-{name}"),
        scopes=scopes_of(role) if scopes is None else scopes,
        credential=CredentialKind.API_KEY,
        credential_id="credential",
    )


def an_execution(
    execution_id: str = EXECUTION,
    *,
    script: str = "print(1)",
    key: str | None = None,
    on_interrupt: OnInterrupt = OnInterrupt.RESTART,
    spec: Spec | None = None,
    **changes: Any,
) -> Execution:
    """Return an execution that nobody has accepted yet: its version is 0."""
    execution = Execution(
        id=ExecutionId(execution_id),
        project_id=PROJECT,
        user_id=ALICE,
        spec=spec or Spec(lang="python", lang_version="3.11", limits=Limits(), on_interrupt=on_interrupt),
        source=SourceRef(inline=Source(script=script)),
        created_at=START,
        idempotency=Idempotency(key, "digest", START + timedelta(hours=24)) if key else None,
    )
    return replace(execution, **changes)


def requested(execution: Execution | None = None) -> Execution:
    """Return an accepted execution."""
    execution = execution or an_execution()
    return evolve_all(execution, executions.request(execution, START))


def started(execution: Execution | None = None, seconds: float = 1) -> Execution:
    """Return an execution whose next attempt holds a lease."""
    execution = execution or requested()
    at = START + timedelta(seconds=seconds)
    return evolve_all(execution, executions.start(execution, execution.attempt + 1, OWNER, at, LEASE_TTL))


def ended(
    execution: Execution | None = None,
    outcome: Outcome = EXITED,
    last_seq: int = 0,
    artifacts: Artifacts = NO_ARTIFACTS,
) -> Execution:
    """Return an execution whose live attempt ended with `outcome`."""
    execution = execution or started()
    at = START + timedelta(seconds=2)
    if outcome.kind is OutcomeKind.CANCELLED:
        asked = executions.cancel(execution, "alice", None, at)
        execution = evolve_all(execution, [each for each in asked if isinstance(each, ExecutionEvent)])
    events = executions.finish(execution, execution.attempt, outcome, Usage(), last_seq, at, artifacts=artifacts)
    return evolve_all(execution, events)


def an_artifact(path: str, sha256: str, size_bytes: int = 1) -> Artifact:
    return Artifact(path=path, size_bytes=size_bytes, sha256=sha256)


def records(*texts: str | bytes, first_seq: int = 1, stream: Stream = Stream.STDOUT) -> list[Record]:
    """Return one record for each text."""
    return [
        Record(seq, stream, seq * 1000, text.encode() if isinstance(text, str) else text)
        for seq, text in enumerate(texts, first_seq)
    ]


def a_raw_message(offset: int = 1, key: str = EXECUTION, topic: str = POD_COMMANDS, **changes: Any) -> RawMessage:
    """Return a message as a log holds it."""
    raw = RawMessage(topic=topic, partition=0, offset=offset, key=key, type="pod.create", body=b"\x00\xff raw")
    return replace(raw, **changes)
