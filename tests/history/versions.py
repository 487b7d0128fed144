"""The recorded versions, and Avro schemas as the tests use them."""

import io
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import fastavro
import msgspec
from hypothesis import strategies as st

from runtape.domain.events import MESSAGE_TYPES, Message

FOLDER = Path(__file__).parent
VERSIONS = sorted(path.name for path in FOLDER.iterdir() if (path / "messages.jsonl").exists())

Schema = dict[str, Any]

RECORDS = {message.__name__: message for message in MESSAGE_TYPES.values()}


@cache
def schemas(folder: Path) -> Mapping[str, Schema]:
    """Return the schemas in `folder` by the names of their records."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.avsc"))}


def lines(version: str, name: str) -> list[bytes]:
    """Return what was recorded of `version` under `name`."""
    return (FOLDER / version / name).read_bytes().splitlines()


def passed_on(datum: Mapping[str, Any], writer: Schema, reader: Schema) -> dict[str, Any]:
    """Return what a reader with `reader` gets of `datum`, which was written with `writer`."""
    wire = io.BytesIO()
    fastavro.schemaless_writer(wire, _parsed(json.dumps(writer)), dict(datum))
    wire.seek(0)
    read = fastavro.schemaless_reader(wire, _parsed(json.dumps(writer)), _parsed(json.dumps(reader)))
    assert isinstance(read, dict)
    return read


@cache
def _parsed(schema: str) -> Any:
    return fastavro.parse_schema(json.loads(schema))


def datum_of(message: Message) -> dict[str, Any]:
    """Return `message` as Avro writes it."""
    return _lists(msgspec.to_builtins(message, builtin_types=(datetime,)))


def _lists(value: Any) -> Any:
    """Return `value` without tuples: to fastavro one in a union is a branch and its value."""
    if isinstance(value, dict):
        return {name: _lists(each) for name, each in value.items()}
    return [_lists(each) for each in value] if isinstance(value, tuple | list) else value


def message_of(datum: Mapping[str, Any], type_: type[Message]) -> Message:
    """Return the message that was read as `datum`."""
    return msgspec.convert(datum, type_, builtin_types=(datetime,))


@cache
def data(folder: Path, name: str) -> st.SearchStrategy[dict[str, Any]]:
    """Return all that can be written with the schema `name` in `folder`."""
    return _data(schemas(folder)[name], {})


def _data(schema: Any, named: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    if isinstance(schema, list):
        return st.one_of([_data(branch, named) for branch in schema])
    if isinstance(schema, str):
        return named[schema] if schema in named else _PRIMITIVES[schema]
    if schema.get("logicalType") == "timestamp-micros":
        return st.integers(0, 1 << 52).map(lambda us: datetime.fromtimestamp(0, UTC) + timedelta(microseconds=us))
    match schema["type"]:
        case "array":
            return st.lists(_data(schema["items"], named), max_size=3)
        case "enum":
            named[schema["name"]] = st.sampled_from(schema["symbols"])
        case "record":
            fields = {field["name"]: _data(field["type"], named) for field in schema["fields"]}
            named[schema["name"]] = st.fixed_dictionaries(fields)
        case other:
            return _data(other, named)
    return named[schema["name"]]


_PRIMITIVES: dict[str, st.SearchStrategy[Any]] = {
    "null": st.none(),
    "string": st.text(st.characters(codec="utf-8"), max_size=20),
    "long": st.integers(-(1 << 63), (1 << 63) - 1),
    "double": st.floats(allow_nan=False),
    "boolean": st.booleans(),
}
