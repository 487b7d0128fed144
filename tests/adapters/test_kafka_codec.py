"""Messages in Confluent's wire format: every type there and back, other versions, and what is none."""

import copy
import io
from dataclasses import replace

import fastavro
import pytest

from runtape.adapters.kafka.codec import AvroCodec, schema_of
from runtape.domain.events import MESSAGE_TYPES, Message
from runtape.ports.errors import Poison, Transient
from tests.adapters.fixed_schemas import FixedSchemas
from tests.contract.suites.log import commands, one_of_each

FOREIGN = 1000


@pytest.mark.parametrize("message", one_of_each(), ids=lambda message: message.id)
async def test_every_message_is_what_it_was(message: Message) -> None:
    codec = AvroCodec(FixedSchemas())
    assert await codec.decode(message.type, codec.encode(message)) == message


def test_there_is_one_of_each() -> None:
    assert {message.type for message in one_of_each()} == set(MESSAGE_TYPES)


async def test_what_another_version_has_written_is_read() -> None:
    """It has a field that we do not know, and lacks one that has a default."""
    schemas = FixedSchemas()
    (message,) = commands("e")
    theirs = copy.deepcopy(dict(schema_of("PodCreate")))
    lacking = [field for field in theirs["fields"] if field["name"] != "causation_id"]
    theirs["fields"] = [*lacking, {"name": "mood", "type": "string"}]
    schemas.foreign[FOREIGN] = fastavro.parse_schema(theirs)  # type: ignore[assignment]
    out = io.BytesIO()
    values = {
        "execution_id": message.execution_id,
        "project_id": message.project_id,
        "at": message.at,
        "attempt": 7,
        "correlation": None,
        "mood": "sunny",
    }
    fastavro.schemaless_writer(out, schemas.foreign[FOREIGN], values)  # type: ignore[arg-type]
    body = b"\0" + FOREIGN.to_bytes(4, "big") + out.getvalue()
    assert await AvroCodec(schemas).decode("pod.create", body) == replace(message, attempt=7)


@pytest.mark.parametrize(
    ("name", "body", "cause"),
    [
        ("pod.dance", b"\0\0\0\0\1", "there is no message type 'pod.dance'"),
        ("pod.create", b"", "does not begin"),
        ("pod.create", b'{"attempt": 1}', "does not begin"),
        ("pod.create", b"\0\0\0\3\xe8", "no schema has the id 1000"),
        ("pod.create", b"\0\0\0\0\1", "cannot be decoded"),
        ("pod.create", b"\0\0\0\0\1" + b"\xff" * 40, "cannot be decoded"),
    ],
)
async def test_what_is_no_message_is_poison_and_says_why(name: str, body: bytes, cause: str) -> None:
    with pytest.raises(Poison, match=cause):
        await AvroCodec(FixedSchemas()).decode(name, body)


async def test_a_schema_that_cannot_be_had_just_now_is_no_poison() -> None:
    schemas = FixedSchemas()
    schemas.down = True
    with pytest.raises(Transient):
        await AvroCodec(schemas).decode("pod.create", b"\0" + FOREIGN.to_bytes(4, "big"))
