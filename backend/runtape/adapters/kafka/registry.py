"""The schemas in a registry that speaks Confluent's protocol."""

import asyncio
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import fastavro
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from runtape.adapters.kafka.codec import Schema as ParsedSchema
from runtape.adapters.kafka.codec import schema_of
from runtape.domain.events import MESSAGE_TYPES
from runtape.ports.errors import Permanent, Transient

COMPATIBILITY = "FULL"
"""Both ways: old consumers meet new messages while an upgrade rolls, and new ones the messages that lie there."""

_REFUSED = (409, 422)
_ABSENT = 404
_UNAUTHORISED = (401, 403)
REFUSED_WAIT_S = 10.0
"""The pause after credentials were refused: tried every second, they might lock the user out."""


class SchemaRegistryManager:
    """Registers the committed schemas, and fetches those of others once.

    Ids never change, so each is asked for once, in a thread: the client blocks.  What this process writes and reads
    itself it knows from its start, with the registry or without it.
    """

    def __init__(self, settings: Mapping[str, Any], prefix: str = "") -> None:
        """`settings` are those of confluent-kafka's client; `prefix` stands before the names of subjects."""
        self._client = SchemaRegistryClient(dict(settings))
        self._prefix = prefix
        self._ids: dict[str, int] = {}
        self._schemas: dict[int, ParsedSchema] = {}

    def close(self) -> None:
        """Close the connections."""
        self._client.__exit__()

    async def register(self) -> None:
        """Register every schema under its record's name.

        Raises: Permanent, naming the subject that takes no such schema; Transient.
        """
        for message in MESSAGE_TYPES.values():
            name = message.__name__
            schema_id = await asyncio.to_thread(self._register, name)
            self._ids[name] = schema_id
            self._schemas[schema_id] = schema_of(name)

    def _register(self, name: str) -> int:
        subject = f"{self._prefix}runtape.{name}"
        text = (files("runtape") / "schemas" / f"{name}.avsc").read_text()
        try:
            self._compare(subject)
            return self._client.register_schema(subject, Schema(text, "AVRO"))
        except SchemaRegistryError as error:
            if error.http_status_code in _REFUSED:
                raise Permanent(f"the registry refuses the schema of {subject}: {error.error_message}") from error
            raise _transient(error) from error
        except Exception as error:  # of the HTTP client that it happens to use
            raise _transient(error) from error

    def _compare(self, subject: str) -> None:
        """Let the registry compare the subject's schemas: its own default may be not to."""
        try:
            self._client.set_compatibility(subject, COMPATIBILITY)
        except SchemaRegistryError as error:
            # Some refuse what another process has just asked for as well.
            if error.http_status_code not in _REFUSED or self._client.get_compatibility(subject) != COMPATIBILITY:
                raise

    def id_of(self, name: str) -> int:
        """Return the id of the committed schema of the record `name`, once all are registered."""
        return self._ids[name]

    async def by_id(self, schema_id: int) -> ParsedSchema:
        """Return the schema with that id.  Raises: LookupError, when there is none; Transient."""
        known = self._schemas.get(schema_id)
        if known is None:
            known = self._schemas[schema_id] = await asyncio.to_thread(self._fetch, schema_id)
        return known

    def _fetch(self, schema_id: int) -> ParsedSchema:
        try:
            text = self._client.get_schema(schema_id).schema_str
        except SchemaRegistryError as error:
            if error.http_status_code == _ABSENT:
                raise LookupError(schema_id) from error
            raise _transient(error) from error
        except Exception as error:  # of the HTTP client that it happens to use
            raise _transient(error) from error
        try:
            return fastavro.parse_schema(json.loads(text or "null"))  # type: ignore[return-value]
        except Exception as error:  # a schema of another kind than Avro, or none
            raise LookupError(schema_id) from error


def _transient(error: Exception) -> Transient:
    """Return what a failure of the registry is called."""
    if not isinstance(error, SchemaRegistryError):
        return Transient(f"the registry does not answer: {type(error).__name__}: {error}")
    if error.http_status_code in _UNAUTHORISED:
        message = f"the registry refuses the user: it answers {error.http_status_code}"
        return Transient(message, retry_after_s=REFUSED_WAIT_S)
    return Transient(f"the registry answers {error.http_status_code}: {error.error_message}")
