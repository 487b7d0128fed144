"""Messages in Avro, in the wire format of Confluent's serializers: a zero, the schema's id in four bytes, the record.

The types of the domain are what the committed schemas were generated from, so a message becomes the plain values that
the schema describes, and back.  What was written with another version of a schema is read through both: fields that it
lacks have their defaults, fields that this version does not know are skipped.
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


class Schemas(Protocol):
    """What a registry knows."""

    def id_of(self, name: str) -> int:
        """Return the id of the committed schema of the record `name`."""
        ...

    async def by_id(self, schema_id: int) -> Schema:
        """Return what a writer used.  Raises: LookupError, when nothing has that id; Transient."""
        ...


class AvroCodec:
    """Encodes with the ids that the registry has given, and decodes with the schemas that it has."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas

    def encode(self, message: Message) -> bytes:
        """Return `message` as its topic holds it."""
        name = type(message).__name__
        out = io.BytesIO()
        out.write(MAGIC + self._schemas.id_of(name).to_bytes(4, "big"))
        values = _listed(msgspec.to_builtins(message, builtin_types=(datetime,)))
        fastavro.schemaless_writer(out, schema_of(name), values)  # type: ignore[arg-type]
        return out.getvalue()

    async def decode(self, type_name: str, body: bytes) -> Message:
        """Return the message of that type in `body`.  Raises: Poison, saying what is wrong with it; Transient."""
        message = MESSAGE_TYPES.get(type_name)
        if message is None:
            raise Poison(f"there is no message type {type_name!r}")
        if len(body) < HEAD_BYTES or body[:1] != MAGIC:
            raise Poison("the body does not begin as Confluent's wire format does")
        schema_id = int.from_bytes(body[1:HEAD_BYTES], "big")
        try:
            writer = await self._schemas.by_id(schema_id)
        except LookupError as error:
            raise Poison(f"no schema has the id {schema_id}") from error
        try:
            reader = schema_of(message.__name__)
            values = fastavro.schemaless_reader(io.BytesIO(body[HEAD_BYTES:]), writer, reader)  # type: ignore[arg-type]
            return msgspec.convert(values, message)
        except Exception as error:  # fastavro raises whatever its bytes lead it to
            raise Poison(f"the body cannot be decoded: {type(error).__name__}: {error}") from error


def _listed(value: Any) -> Any:
    """Return `value` with lists for tuples, which fastavro takes for the choice of a union's branch."""
    if isinstance(value, dict):
        return {name: _listed(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_listed(each) for each in value]
    return value
