"""What is told of a message beside its body."""

from collections.abc import Mapping, Sequence

from runtape.adapters.kafka.codec import fingerprint_of
from runtape.domain.events import Message

TYPE = "type"
SCHEMA = "schema"
"""The fingerprint of the schema that the body was written with."""
REPLAYED_BY = "replayed_by"
CORRELATION, TRACEPARENT, CAUSATION = "correlation_id", "traceparent", "causation_id"

Headers = Sequence[tuple[str, bytes]]


def of_message(message: Message) -> Headers:
    """Return the headers of a message that is published for the first time."""
    found = {TYPE: message.type, SCHEMA: fingerprint_of(type(message).__name__)}
    if message.correlation is not None:
        found |= {CORRELATION: message.correlation.id, TRACEPARENT: message.correlation.traceparent}
    if message.causation_id is not None:
        found[CAUSATION] = message.causation_id
    return [(name, value.encode()) for name, value in found.items()]


def header(headers: Headers, name: str) -> str | None:
    """Return the last header of that name, None when there is none."""
    for key, value in reversed(headers):
        if key == name:
            return value.decode("utf-8", "replace")
    return None


def headers_of(headers: Headers) -> Mapping[str, str]:
    """Return what tells where a message comes from, and how to read it."""
    found = {name: header(headers, name) for name in (CORRELATION, TRACEPARENT, CAUSATION, SCHEMA)}
    return {name: value for name, value in found.items() if value is not None}
