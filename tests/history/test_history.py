"""What every released version has written is read by today's code, and means the same."""

from collections import defaultdict
from typing import Any

import msgspec
import pytest

from runtape.adapters.embedded import documents, log
from runtape.domain.events import MESSAGE_TYPES, ExecutionEvent, Message
from runtape.domain.execution import Execution, evolve_all
from runtape.domain.ids import ExecutionId
from scripts.schemas import FOLDER as TODAY
from tests.history.versions import FOLDER, RECORDS, VERSIONS, datum_of, lines, message_of, passed_on, schemas


def messages_of(version: str) -> list[Message]:
    """Return the recorded messages, decoded as the log decodes them."""
    found: list[Message] = []
    for line in lines(version, "messages.jsonl"):
        row: dict[str, msgspec.Raw] = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        decode = log._decoders[msgspec.json.decode(row["type"], type=str)]
        message = decode(row["body"])
        about: list[Any] = [msgspec.json.decode(row[name]) for name in ("topic", "key")]
        assert about == [message.topic, message.execution_id]
        found.append(message)
    return found


def test_this_and_an_earlier_version_are_recorded() -> None:
    assert {"0.1.0a1", "0.1.0"} <= set(VERSIONS)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_type_of_message_that_a_version_had_is_recorded(version: str) -> None:
    recorded = {type(message).__name__ for message in messages_of(version)}
    assert recorded == set(schemas(FOLDER / version))


@pytest.mark.parametrize("version", VERSIONS)
def test_messages_fold_to_the_documents_that_were_stored_with_them(version: str) -> None:
    events: dict[ExecutionId, list[ExecutionEvent]] = defaultdict(list)
    for message in messages_of(version):
        if isinstance(message, ExecutionEvent):
            events[message.execution_id].append(message)
    stored = [documents._decode_execution(line) for line in lines(version, "executions.jsonl")]
    assert {execution.id for execution in stored} == set(events)
    for execution in stored:
        accepted = Execution(
            id=execution.id,
            project_id=execution.project_id,
            user_id=execution.user_id,
            spec=execution.spec,
            source=execution.source,
            created_at=execution.created_at,
            idempotency=execution.idempotency,
            retry_of=execution.retry_of,
            correlation=execution.correlation,
        )
        assert evolve_all(accepted, events[execution.id]) == execution


@pytest.mark.parametrize("version", VERSIONS)
def test_sagas_are_read(version: str) -> None:
    executions = {documents._decode_execution(line).id for line in lines(version, "executions.jsonl")}
    assert {documents._decode_saga(line).execution_id for line in lines(version, "sagas.jsonl")} == executions


@pytest.mark.parametrize("version", VERSIONS)
def test_avro_says_what_json_says(version: str) -> None:
    """A message that was stored as JSON, and one that was sent with the schema of its version, are one message."""
    writers, readers = schemas(FOLDER / version), schemas(TODAY)
    for message in messages_of(version):
        name = type(message).__name__
        sent = passed_on(datum_of(message), writers[name], readers[name])
        assert message_of(sent, RECORDS[name]) == message


def test_every_type_of_today_has_a_name_of_its_own() -> None:
    assert len(RECORDS) == len(MESSAGE_TYPES)
