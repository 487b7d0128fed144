"""Accepting requests: execute, retry, cancel and delete.

Everything is checked before anything is written, so what is refused leaves no trace.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from runtape.application.flow import Documents, Flow, Step, execution_change
from runtape.application.queries import Queries
from runtape.application.runtimes import RuntimeCatalogue
from runtape.application.sources import SourceLibrary
from runtape.domain import execution as executions
from runtape.domain.errors import (
    Draining,
    IdempotencyConflict,
    InvalidPath,
    NotFound,
    NotTerminal,
    PackagesDisabled,
    QueueFull,
    ScriptTooLarge,
    ValidationFailed,
)
from runtape.domain.events import Correlation, Priority
from runtape.domain.execution import Execution, Idempotency, OnInterrupt, Spec
from runtape.domain.identity import Principal
from runtape.domain.ids import ExecutionId
from runtape.domain.limits import LimitPolicy
from runtape.domain.source import PackagePolicy, Source, SourceFile, checked_path
from runtape.ports.admission import AdmissionQueue, Gate, Room
from runtape.ports.clock import Clock, Ids
from runtape.ports.events import Archival
from runtape.ports.idempotency import SeenKeys
from runtape.ports.pod_runtime import Runtime
from runtape.ports.stores import ExecutionStore, IdempotencyKeyTaken

SCRIPT_BYTES = 1 << 20
FILES = 100
ARGUMENT_BYTES = 128 << 10
"""Arguments and environment together; the kernel's own bound on one string (MAX_ARG_STRLEN)."""

IDEMPOTENCY_TTL = timedelta(hours=24)
IDEMPOTENCY_KEY_BYTES = 255
LONGEST_RETRY_S = 3600

METADATA = "# /// script"
"""The line that begins a header with requirements in a script (PEP 723)."""

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A request to execute, decoded but not yet checked; None stands for the default."""

    lang: str
    lang_version: str | None
    script: str
    stdin: bytes
    args: tuple[str, ...]
    env: Mapping[str, str]
    files: tuple[tuple[str, bytes], ...]
    requirements: tuple[str, ...] | None = None
    """None: as the script's own header says, if it has one."""
    limits: Mapping[str, float | int | None]
    priority: Priority
    on_interrupt: OnInterrupt
    timeline: bool
    idempotency_key: str | None
    body_sha256: str


@dataclass(frozen=True, slots=True)
class Requested:
    """The request that a client made, as far as it can be found again: its id here, and the trace that it came with."""

    id: str | None = None
    traceparent: str | None = None


NOT_TRACED = Requested()


class Submissions:
    """Turns requests into accepted executions."""

    def __init__(
        self,
        *,
        flow: Flow,
        executions: ExecutionStore,
        queries: Queries,
        seen_keys: SeenKeys,
        queue: AdmissionQueue,
        library: SourceLibrary,
        catalogue: RuntimeCatalogue,
        limits: LimitPolicy,
        packages: PackagePolicy,
        clock: Clock,
        ids: Ids,
    ) -> None:
        self._flow = flow
        self._executions = executions
        self._queries = queries
        self._seen_keys = seen_keys
        self._queue = queue
        self._library = library
        self._catalogue = catalogue
        self._limits = limits
        self._packages = packages
        self._clock = clock
        self._ids = ids

    async def execute(
        self, principal: Principal, submission: Submission, requested: Requested = NOT_TRACED
    ) -> ExecutionId:
        """Accept the submission and return its execution's id once it is durable.

        The same idempotency key with the same body gives the execution that it gave before, for 24 hours.
        Raises: Invalid; IdempotencyConflict; Draining; QueueFull; Transient.
        """
        spec, source, file_name = self._checked(submission)
        _check_files(source, file_name)
        return await self._accept(
            principal, spec, source, submission.idempotency_key, submission.body_sha256, requested
        )

    async def retry(
        self,
        principal: Principal,
        execution_id: ExecutionId,
        idempotency_key: str | None,
        requested: Requested = NOT_TRACED,
    ) -> ExecutionId:
        """Run the source of an ended execution again, as a new execution.

        Raises: NotFound; NotTerminal; Invalid, when what it ran with cannot be had any more; as `execute`.
        """
        earlier = await self._queries.execution(principal, execution_id)
        if not earlier.status.terminal:
            raise NotTerminal(f"execution {execution_id} is {earlier.status}; it can be retried once it has ended")
        self._catalogue.resolve(earlier.spec.lang, earlier.spec.lang_version)
        self._limits.check_again(earlier.spec.limits)
        source = await self._library.load(earlier.source)
        if source.requirements and not self._packages.enabled:
            raise PackagesDisabled("requirements")
        body_sha256 = f"retry:{execution_id}"
        return await self._accept(
            principal, earlier.spec, source, idempotency_key, body_sha256, requested, retry_of=execution_id
        )

    async def cancel(self, principal: Principal, execution_id: ExecutionId, reason: str | None) -> Execution:
        """Ask for the end of an execution and return it as it then stands.

        Raises: NotFound; AlreadyTerminal.
        """
        await self._queries.execution(principal, execution_id)

        async def decide(documents: Documents) -> Step:
            execution = await documents.execution(execution_id)
            if execution is None:
                raise NotFound(f"no execution {execution_id}")
            messages = executions.cancel(execution, principal.username, reason, self._clock.now())
            return Step(changes=(execution_change(execution, messages),)) if messages else Step()

        await self._flow.perform(decide)
        return await self._queries.execution(principal, execution_id)

    async def delete(self, principal: Principal, execution_id: ExecutionId) -> None:
        """Remove an ended execution with its tape, and archive its events.  Raises: NotFound; NotTerminal."""
        execution = await self._queries.execution(principal, execution_id)
        if execution.due_at is not None:
            raise NotTerminal(f"execution {execution_id} is {execution.status}; cancel it first")
        await self._executions.delete(
            execution_id, Archival(principal.username, self._clock.now(), "the execution was deleted")
        )

    async def _accept(
        self,
        principal: Principal,
        spec: Spec,
        source: Source,
        key: str | None,
        body_sha256: str,
        requested: Requested,
        retry_of: ExecutionId | None = None,
    ) -> ExecutionId:
        looked_up = False
        if key is not None:
            if not 0 < len(key.encode()) <= IDEMPOTENCY_KEY_BYTES:
                raise ValidationFailed(
                    f"an idempotency key has 1 to {IDEMPOTENCY_KEY_BYTES} bytes", field="Idempotency-Key"
                )
            looked_up = not await self._seen_keys.add(principal.user_id, key)
            if looked_up and (known := await self._known(principal, key, body_sha256)) is not None:
                return known
        room = await self._queue.room(principal.project_id)
        if refusal := _refusal(room):
            # Who asks for nothing new is refused nothing, also when nobody remembers the key.
            if key is not None and not looked_up and (known := await self._known(principal, key, body_sha256)):
                return known
            raise refusal
        now = self._clock.now()
        execution_id = ExecutionId(self._ids.new_id())
        execution = Execution(
            id=execution_id,
            project_id=principal.project_id,
            user_id=principal.user_id,
            spec=spec,
            source=await self._library.keep(source),
            created_at=now,
            idempotency=Idempotency(key, body_sha256, now + IDEMPOTENCY_TTL) if key is not None else None,
            retry_of=retry_of,
            correlation=Correlation(requested.id or execution_id, requested.traceparent or self._ids.new_traceparent()),
        )
        change = execution_change(execution, executions.request(execution, now))

        async def accept(documents: Documents) -> Step:
            return Step(changes=(change,))

        while True:
            try:
                await self._flow.perform(accept)
                return execution.id
            except IdempotencyKeyTaken:
                # Somebody has used the key: since it was looked up, or longer ago than anybody remembers.
                assert key is not None
                known = await self._known(principal, key, body_sha256)
                if known is not None:
                    return known

    async def _known(self, principal: Principal, key: str, body_sha256: str) -> ExecutionId | None:
        """Return the execution that `key` stands for; None when the key is free, after releasing an expired one."""
        holder = await self._executions.by_idempotency_key(principal.user_id, key)
        if holder is None or holder.idempotency is None:
            return None
        if holder.idempotency.expires_at <= self._clock.now():
            await self._executions.release_idempotency_key(holder)
            return None
        if holder.idempotency.body_sha256 != body_sha256:
            raise IdempotencyConflict(
                f"the key was used for execution {holder.id} with another body; use a new key", field="Idempotency-Key"
            )
        return holder.id

    def _checked(self, submission: Submission) -> tuple[Spec, Source, str]:
        runtime = self._catalogue.resolve(submission.lang, submission.lang_version)
        try:
            script_bytes = len(submission.script.encode())
        except UnicodeEncodeError:
            raise ValidationFailed("the script is not valid Unicode", field="script") from None
        if script_bytes > SCRIPT_BYTES:
            raise ScriptTooLarge(script_bytes, SCRIPT_BYTES)
        _check_arguments(submission)
        if len(submission.files) > FILES:
            raise ValidationFailed(f"{len(submission.files)} files; the limit is {FILES}", field="files")
        requirements: tuple[str, ...] = ()
        if submission.requirements or (submission.requirements is None and METADATA in submission.script):
            runtime, requirements = self._required(submission, runtime)
        spec = Spec(
            lang=runtime.lang,
            lang_version=runtime.version,
            limits=self._limits.resolve(submission.limits),
            priority=submission.priority,
            on_interrupt=submission.on_interrupt,
            timeline=submission.timeline,
        )
        source = Source(
            script=submission.script,
            stdin=submission.stdin,
            args=submission.args,
            env=tuple(submission.env.items()),
            files=tuple(
                SourceFile(checked_path(path, f"files[{number}].path"), content)
                for number, (path, content) in enumerate(submission.files)
            ),
            requirements=requirements,
        )
        return spec, source, runtime.file_name

    def _required(self, submission: Submission, runtime: Runtime) -> tuple[Runtime, tuple[str, ...]]:
        """Return the requirements, and the runtime that the script's own header asks for, if it does."""
        # Imported here: it takes 15 ms, and most processes never need it.
        from runtape.application import requirements

        if submission.requirements is not None:
            if not runtime.packages:
                raise ValidationFailed(f"{runtime.lang} {runtime.version} takes no requirements", field="requirements")
            field, required = "requirements", requirements.checked(submission.requirements)
        elif runtime.lang == requirements.LANG and (header := requirements.read_header(submission.script)) is not None:
            known = self._catalogue.versions(runtime.lang) if submission.lang_version is None else [runtime]
            runtime = requirements.choose(known, header)
            field, required = "script", header.requirements
        else:
            return runtime, ()
        if required and not self._packages.enabled:
            raise PackagesDisabled(field)
        return runtime, required


def _refusal(room: Room) -> Draining | QueueFull | None:
    """Return why nothing new is accepted, None when it is."""
    if room.gate is Gate.DRAINING:
        return Draining("this installation is being drained and accepts nothing new; try again later")
    if room.accepts:
        return None
    wait_s = min(max(math.ceil(room.in_s), 1), LONGEST_RETRY_S)
    return QueueFull(f"the queue is full; try again in about {wait_s} s", retry_after_s=wait_s)


def _check_arguments(submission: Submission) -> None:
    size = 0
    for number, argument in enumerate(submission.args):
        size += _text_bytes(argument, f"args[{number}]")
    for name, value in submission.env.items():
        if not _ENV_NAME.match(name):
            raise ValidationFailed(f'"{name}" cannot be the name of an environment variable', field="env")
        size += len(name) + 1 + _text_bytes(value, f"env.{name}")
    if size > ARGUMENT_BYTES:
        raise ValidationFailed(
            f"arguments and environment have {size} bytes; the limit is {ARGUMENT_BYTES}", field="args"
        )


def _text_bytes(text: str, field: str) -> int:
    if "\0" in text:
        raise ValidationFailed("NUL cannot be passed to a program", field=field)
    try:
        return len(text.encode()) + 1
    except UnicodeEncodeError:
        raise ValidationFailed("not valid Unicode", field=field) from None


def _check_files(source: Source, file_name: str) -> None:
    """Refuse files that stand in each other's way or in the script's.  Raises: InvalidPath."""
    if not source.files:
        return
    taken = {file_name}
    folders: set[str] = set()
    for number, file in enumerate(source.files):
        field = f"files[{number}].path"
        parts = file.path.split("/")
        parents = {"/".join(parts[:length]) for length in range(1, len(parts))}
        if file.path == file_name:
            raise InvalidPath(f'"{file.path}" is the name of the script itself', field=field)
        if file.path in taken:
            raise InvalidPath(f'"{file.path}" is given twice', field=field)
        if file.path in folders or parents & taken:
            raise InvalidPath(f'"{file.path}" is a file and a folder at once', field=field)
        taken.add(file.path)
        folders |= parents
