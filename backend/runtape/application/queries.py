"""Reading executions: every read checks who asks before the first byte; what is foreign does not exist."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from runtape.application.artifacts import ArtifactLibrary
from runtape.application.results import Result, result_of, summary_of
from runtape.domain.artifact import Artifact
from runtape.domain.errors import NotFound, OutputExpired
from runtape.domain.execution import Execution
from runtape.domain.identity import Principal, Scope
from runtape.domain.ids import ExecutionId
from runtape.domain.tape import Stream
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import ExecutionFilter, ExecutionStore, TapeStore


@dataclass(frozen=True, slots=True)
class Output:
    """One stream of the last attempt: how long it is now, and whether it can still grow."""

    execution: Execution
    stream: Stream
    size_bytes: int
    sha256: str | None


class Queries:
    """Reads for principals."""

    def __init__(self, *, executions: ExecutionStore, tape: TapeStore, library: ArtifactLibrary) -> None:
        self._executions = executions
        self._tape = tape
        self._library = library

    async def execution(self, principal: Principal, execution_id: ExecutionId) -> Execution:
        """Return the execution.  Raises: NotFound, also when it belongs to another project."""
        execution = await self._executions.get(execution_id)
        if execution is None or not _may_see(principal, execution):
            raise NotFound(f"no execution {execution_id}")
        return execution

    async def result(self, principal: Principal, execution_id: ExecutionId) -> Result:
        """Return the result, or what there is of it before the end.  Raises: NotFound."""
        execution = await self.execution(principal, execution_id)
        return await self.result_of(execution)

    async def result_of(self, execution: Execution) -> Result:
        """Return the result of `execution` as its document and its tape stand."""
        return result_of(execution, await summary_of(execution, self._tape))

    async def list(
        self, where: ExecutionFilter, limit: int, before: ExecutionId | None
    ) -> tuple[Sequence[Execution], ExecutionId | None]:
        """Return up to `limit` executions, newest first, and where the next page begins."""
        found = await self._executions.list(where, limit + 1, before)
        page = found[:limit]
        return page, page[-1].id if len(found) > limit else None

    async def output(self, principal: Principal, execution_id: ExecutionId, stream: Stream) -> Output:
        """Return what is known of one stream.  Raises: NotFound; OutputExpired."""
        execution = await self.execution(principal, execution_id)
        stored = execution.result
        key = PodKey(execution.id, execution.attempt)
        if stored is not None and execution.last_seq and not await self._tape.kept(key):
            raise OutputExpired(f"the output of execution {execution_id} is no longer kept; its result is")
        held = stored or await self._tape.summary(key)
        if stream is Stream.STDOUT:
            return Output(execution, stream, held.stdout_bytes, stored and stored.stdout_sha256)
        return Output(execution, stream, held.stderr_bytes, stored and stored.stderr_sha256)

    def output_bytes(self, output: Output, start: int, end: int) -> AsyncIterator[bytes]:
        """Yield the bytes `start` to `end` (exclusive) exactly as they were printed."""
        key = PodKey(output.execution.id, output.execution.attempt)
        return self._tape.read_stream(key, output.stream, start, end)

    async def artifact(self, principal: Principal, execution_id: ExecutionId, path: str) -> Artifact:
        """Return the artifact under exactly that path.  Raises: NotFound."""
        execution = await self.execution(principal, execution_id)
        for artifact in execution.artifacts.kept:
            if artifact.path == path:
                return artifact
        raise NotFound(f"execution {execution_id} has no artifact of that path")

    async def artifact_bytes(self, artifact: Artifact, start: int, end: int) -> AsyncIterator[bytes]:
        """Yield the bytes `start` to `end` (exclusive) exactly as the program left them."""
        yield (await self._library.content(artifact))[start:end]


def _may_see(principal: Principal, execution: Execution) -> bool:
    return execution.project_id == principal.project_id or Scope.ADMIN in principal.scopes
