"""The result_processor's work: once the tape is complete, record its digest as the result.

Here an execution's end becomes final, so here it is decided whether its owner is notified, in the same change: told
again, replayed or redelivered, an end that has its result makes nothing any more.
"""

from runtape.application.announcing import Announcer
from runtape.application.flow import NOTHING, Documents, Step, execution_change
from runtape.domain import execution as executions
from runtape.domain.copying import replace
from runtape.domain.events import ExecutionEnded, Message, StoredResult
from runtape.domain.execution import Execution
from runtape.domain.notification import of_end
from runtape.domain.outcome import OUTPUT_LOST, Outcome, OutcomeKind
from runtape.ports.clock import Clock
from runtape.ports.pod_runtime import PodKey
from runtape.ports.stores import TapeStore

GROUP = "result-processor"


class ResultProcessor:
    """Stores the result of an ended execution: stored before it is announced."""

    def __init__(self, *, tape: TapeStore, announcer: Announcer, clock: Clock) -> None:
        self._tape = tape
        self._announcer = announcer
        self._clock = clock

    async def on_ended(self, message: Message, documents: Documents) -> Step:
        """Wait for the tape to hold all that was printed, then record the result, and tell the owner of a bad end.

        When records are missing and nobody is writing them any more, the loss is recorded as our failure.
        """
        assert isinstance(message, ExecutionEnded)
        execution = await documents.execution(message.execution_id)
        if execution is None or execution.result is not None or execution.outcome is None:
            return NOTHING
        key = PodKey(execution.id, execution.attempt)
        complete = await self._tape.reached(key, execution.last_seq)
        summary = await self._tape.summary(key)
        result = StoredResult(
            stdout_bytes=summary.stdout_bytes,
            stderr_bytes=summary.stderr_bytes,
            stdout_sha256=summary.stdout_sha256,
            stderr_sha256=summary.stderr_sha256,
            truncated=summary.truncated,
        )
        lost = None
        if not complete:
            lost = Outcome(
                kind=OutcomeKind.SANDBOX_ERROR,
                reason=OUTPUT_LOST,
                message=f"the tape ends at record {summary.last_seq} of {execution.last_seq}",
            )
        events = executions.store_result(execution, result, self._clock.now(), lost=lost)
        change = execution_change(execution, events)
        assert isinstance(change.document, Execution)
        if (told := of_end(change.document)) is not None:
            change = replace(change, notifications=(told,))
        self._announcer.remember(execution.id, summary)
        return Step(changes=(change,))
