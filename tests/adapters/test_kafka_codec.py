"""Messages in Confluent's wire format: every type there and back, other versions, and what is none."""

import copy
import io
from dataclasses import replace

import fastavro
import pytest
from fastavro.schema import fingerprint, to_parsing_canonical_form

from runtape.adapters.kafka.codec import AvroCodec, Schema, fingerprint_of, schema_of
from runtape.adapters.kafka.headers import SCHEMA, headers_of, of_message
from runtape.adapters.kafka.log import decoded
from runtape.domain.dead_letter import RawMessage
from runtape.domain.events import MESSAGE_TYPES, Message
from runtape.ports.errors import Poison, Transient
from tests.adapters.fixed_schemas import FixedSchemas
from tests.contract.suites.log import commands, one_of_each

FOREIGN = 1000
(COMMAND,) = commands("e")


@pytest.mark.parametrize("message", one_of_each(), ids=lambda message: message.id)
async def test_every_message_is_what_it_was(message: Message) -> None:
    codec = AvroCodec(FixedSchemas())
    assert await codec.decode(message.type, codec.encode(message)) == message


def test_there_is_one_of_each() -> None:
    assert {message.type for message in one_of_each()} == set(MESSAGE_TYPES)


def written_by_others() -> tuple[Schema, str, bytes]:
    """Return another version of a command's schema, its fingerprint, and a body under the id `FOREIGN`.

    It has a field that we do not know, and lacks one that has a default.
    """
    theirs = copy.deepcopy(dict(schema_of("PodCreate")))
    lacking = [field for field in theirs["fields"] if field["name"] != "causation_id"]
    theirs["fields"] = [{"name": "mood", "type": "string"}, *lacking]
    parsed = fastavro.parse_schema(theirs)
    out = io.BytesIO()
    values = {
        "execution_id": COMMAND.execution_id,
        "project_id": COMMAND.project_id,
        "at": COMMAND.at,
        "attempt": 7,
        "correlation": None,
        "mood": "sunny",
    }
    fastavro.schemaless_writer(out, parsed, values)
    told = fingerprint(to_parsing_canonical_form(parsed), "CRC-64-AVRO")
    return parsed, told, under(FOREIGN, out.getvalue())  # type: ignore[return-value]


def under(schema_id: int, record: bytes) -> bytes:
    return b"\0" + schema_id.to_bytes(4, "big") + record


async def test_what_another_version_has_written_is_read() -> None:
    schemas = FixedSchemas()
    schemas.foreign[FOREIGN], told, body = written_by_others()
    codec = AvroCodec(schemas)
    for written_with in (None, told, told):
        assert await codec.decode("pod.create", body, written_with) == replace(COMMAND, attempt=7)


async def test_what_this_version_has_written_is_read_whatever_its_id_has_come_to_mean() -> None:
    schemas = FixedSchemas()
    codec = AvroCodec(schemas)
    record = codec.encode(COMMAND)[5:]
    written_with = header_of(COMMAND)
    assert await codec.decode("pod.create", under(FOREIGN, record), written_with) == COMMAND, "it means nothing"
    schemas.foreign[FOREIGN], *_ = written_by_others()
    assert await codec.decode("pod.create", under(FOREIGN, record), written_with) == COMMAND, "it means another version"
    schemas.down = True
    assert await codec.decode("pod.create", under(FOREIGN + 1, record), written_with) == COMMAND, "nobody knows"


async def test_what_stands_in_the_log_is_read_by_what_its_headers_say() -> None:
    codec = AvroCodec(FixedSchemas())
    raw = RawMessage(
        topic=COMMAND.topic,
        partition=0,
        offset=1,
        key=COMMAND.execution_id,
        type=COMMAND.type,
        body=under(FOREIGN, codec.encode(COMMAND)[5:]),
        headers=headers_of(of_message(COMMAND)),
    )
    assert await decoded(codec, raw) == COMMAND
    with pytest.raises(Poison, match="no schema has the id 1000"):
        await decoded(codec, replace(raw, headers={}))


async def test_what_another_version_has_written_is_poison_once_its_id_means_ours() -> None:
    schemas = FixedSchemas()
    _, told, body = written_by_others()
    schemas.foreign[FOREIGN] = schema_of("PodCreate")
    with pytest.raises(Poison, match="the id 1000 stands for another schema"):
        await AvroCodec(schemas).decode("pod.create", body, told)


def test_every_schema_has_a_fingerprint_of_its_own_and_its_messages_carry_it() -> None:
    assert len({fingerprint_of(message.__name__) for message in MESSAGE_TYPES.values()}) == len(MESSAGE_TYPES)
    assert {header_of(message) for message in one_of_each()} == {
        fingerprint_of(message.__name__) for message in MESSAGE_TYPES.values()
    }


def header_of(message: Message) -> str:
    return headers_of(of_message(message))[SCHEMA]


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
