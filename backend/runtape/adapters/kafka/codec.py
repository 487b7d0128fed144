"""Messages in Avro, in the wire format of Confluent's serializers: a zero, the schema's id in four bytes, the record.

The types of the domain are what the committed schemas were generated from, so a message becomes the plain values that
the schema describes, and back.  What was written with another version of a schema is read through both: fields that it
lacks have their defaults, fields that this version does not know are skipped.

A registry that has lost what it acknowledged gives the same ids to other schemas, and bytes that are read through the
wrong version of their schema may pass for a message.  So a message is told with the fingerprint of its schema, and that
decides: what this version writes itself is read without asking, whatever the registry says of the id; anything else is
read through the schema with that id only if that is the one (docs/decisions/0028).
"""

import io
import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from importlib.resources import files
from typing import Any, Protocol

import fastavro
import msgspec
from fastavro.schema import fingerprint, to_parsing_canonical_form

from runtape.domain.events import MESSAGE_TYPES, Message
from runtape.ports.errors import Poison

MAGIC = b"\0"
HEAD_BYTES = 5

Schema = Mapping[str, Any]


@lru_cache
def schema_of(name: str) -> Schema:
    """Return the committed schema of the record `name`, parsed."""
    text = (files("runtape") / "schemas" / f"{name}.avsc").read_text()
    return fastavro.parse_schema(json.loads(text))  # type: ignore[return-value]


@lru_cache
def fingerprint_of(name: str) -> str:
    """Return the fingerprint of the committed schema of the record `name`."""
    return _fingerprint(schema_of(name))


class Schemas(Protocol):
    """What a registry knows."""

    async def register(self) -> None:
        """Let it know the committed schemas.  Raises: Permanent, when it refuses one; Transient."""
        ...

    def id_of(self, name: str) -> int:
        """Return the id of the committed schema of the record `name`, once all are registered."""
        ...

    async def by_id(self, schema_id: int) -> Schema:
        """Return what a writer used.  Raises: LookupError, when nothing has that id; Transient."""
        ...


class AvroCodec:
    """Encodes with the ids that the registry has given, and decodes with the schemas that it has."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas
        self._fingerprints: dict[int, str] = {}

    async def register(self) -> None:
        """Let the registry know the schemas of what is encoded here.  Raises: Permanent, Transient."""
        await self._schemas.register()

    def encode(self, message: Message) -> bytes:
        """Return `message` as its topic holds it; the schemas are registered before."""
        name = type(message).__name__
        out = io.BytesIO()
        out.write(MAGIC + self._schemas.id_of(name).to_bytes(4, "big"))
        values = _listed(msgspec.to_builtins(message, builtin_types=(datetime,)))
        fastavro.schemaless_writer(out, schema_of(name), values)  # type: ignore[arg-type]
        return out.getvalue()

    async def decode(self, type_name: str, body: bytes, written_with: str | None = None) -> Message:
        """Return the message of that type in `body`.

        `written_with` is the fingerprint of its writer's schema, None where nobody has told it.
        Raises: Poison, saying what is wrong with it; Transient.
        """
        message = MESSAGE_TYPES.get(type_name)
        if message is None:
            raise Poison(f"there is no message type {type_name!r}")
        if len(body) < HEAD_BYTES or body[:1] != MAGIC:
            raise Poison("the body does not begin as Confluent's wire format does")
        name = message.__name__
        reader = writer = schema_of(name)
        if written_with != fingerprint_of(name):
            writer = await self._writer(int.from_bytes(body[1:HEAD_BYTES], "big"), written_with)
        try:
            values = fastavro.schemaless_reader(io.BytesIO(body[HEAD_BYTES:]), writer, reader)  # type: ignore[arg-type]
            return msgspec.convert(values, message)
        except Exception as error:  # fastavro raises whatever its bytes lead it to
            raise Poison(f"the body cannot be decoded: {type(error).__name__}: {error}") from error

    async def _writer(self, schema_id: int, fingerprint: str | None) -> Schema:
        """Return the schema with that id, and that fingerprint if there is one.  Raises: Poison; Transient."""
        try:
            schema = await self._schemas.by_id(schema_id)
        except LookupError as error:
            raise Poison(f"no schema has the id {schema_id}") from error
        if fingerprint is None:
            return schema
        if schema_id not in self._fingerprints:
            self._fingerprints[schema_id] = _fingerprint(schema)  # takes half a millisecond
        if self._fingerprints[schema_id] != fingerprint:
            raise Poison(f"the id {schema_id} stands for another schema than the message was written with")
        return schema


def _fingerprint(schema: Schema) -> str:
    """Return what is the same for all schemas that give the same bytes the same meaning, in 16 hexadecimal digits.

    Source: "Schema Fingerprints" in Avro's specification.
    """
    return fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO")  # type: ignore[arg-type]


def _listed(value: Any) -> Any:
    """Return `value` with lists for tuples, which fastavro takes for the choice of a union's branch."""
    if isinstance(value, dict):
        return {name: _listed(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_listed(each) for each in value]
    return value
