"""The steps of a saga as spans.

They are told when the saga is finished, from its document alone: so they are all there, with their true times, also
when the process died between two steps, and a run that is not traced pays for one look at who listens.
"""

from datetime import UTC, datetime, timedelta

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from runtape.domain.saga import Saga, SagaState, StepRecord

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NOBODY = (trace.ProxyTracerProvider, trace.NoOpTracerProvider)


class OpenTelemetrySpans:
    """`StepSpans` over `provider`, or over the one of this process, which may be set later.

    A span is named ``saga.<step>`` and is a child of the request's.  It has the attributes ``runtape.execution.id``,
    ``runtape.execution.lang``, ``runtape.execution.priority``, ``runtape.attempt`` (where the step belongs to one) and
    ``runtape.saga.state``; nothing of it tells who asked.  What was given back is an event ``compensated``.
    """

    def __init__(self, provider: trace.TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer = trace.get_tracer("runtape", tracer_provider=provider)
        self._propagator = TraceContextTextMapPropagator()

    @property
    def recording(self) -> bool:
        return not isinstance(self._provider or trace.get_tracer_provider(), _NOBODY)

    def tell(self, saga: Saga) -> None:
        carrier = {"traceparent": saga.correlation.traceparent} if saga.correlation is not None else {}
        parent = self._propagator.extract(carrier, Context())
        for record in saga.records:
            self._tell(saga, record, parent)

    def _tell(self, saga: Saga, record: StepRecord, parent: Context) -> None:
        attributes: dict[str, str | int] = {
            "runtape.execution.id": saga.execution_id,
            "runtape.execution.lang": saga.lang,
            "runtape.execution.priority": saga.priority.value,
            "runtape.saga.state": saga.state.value,
        }
        if record.attempt:
            attributes["runtape.attempt"] = record.attempt
        span = self._tracer.start_span(
            f"saga.{record.step.value}", parent, start_time=_ns(record.began_at), attributes=attributes
        )
        if record.compensated_at is not None:
            span.add_event("compensated", timestamp=_ns(record.compensated_at))
        if saga.state is SagaState.FAILED and saga.reason is not None and record.done_at is None:
            span.set_status(trace.StatusCode.ERROR, saga.reason)
        span.end(_ns(record.done_at or record.compensated_at or record.began_at))


def _ns(at: datetime) -> int:
    return (at - _EPOCH) // _MICROSECOND * 1000
