"""Writes the Avro schema of every message from the types of the domain: `.venv/bin/python scripts/schemas.py [FOLDER]`.

FOLDER is `backend/runtape/schemas` unless it is given.  Each schema stands alone in the file of its record's name,
which is its subject in a registry.  A field has a default where the type has one: so a schema says of each change what
the decoders of the log do with it.
"""

import json
import sys
import types
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NewType, Union, get_args, get_origin, get_type_hints

from runtape.domain.events import MESSAGE_TYPES

FOLDER = Path(__file__).parent.parent / "backend" / "runtape" / "schemas"
NAMESPACE = "runtape"

_PRIMITIVES: dict[Any, Any] = {
    str: "string",
    int: "long",
    float: "double",
    bool: "boolean",
    datetime: {"type": "long", "logicalType": "timestamp-micros"},
}


def schema_of(message: type) -> dict[str, Any]:
    """Return the schema of a message type."""
    return {"namespace": NAMESPACE, **_record(message, set())}


def text_of(schema: dict[str, Any]) -> str:
    """Return `schema` as it stands in its file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def write(folder: Path) -> None:
    """Write the schemas of all messages to `folder`, and remove those of others."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {f"{message.__name__}.avsc": schema_of(message) for message in MESSAGE_TYPES.values()}
    for path in folder.glob("*.avsc"):
        if path.name not in names:
            path.unlink()
    for name, schema in names.items():
        (folder / name).write_text(text_of(schema))


def _record(type_: type, named: set[str]) -> dict[str, Any]:
    named.add(type_.__name__)
    hints = get_type_hints(type_)
    described: list[dict[str, Any]] = []
    for field in fields(type_):
        entry: dict[str, Any] = {"name": field.name, "type": _type(hints[field.name], named)}
        if field.default is not MISSING:
            entry["default"] = _default(field.default)
        described.append(entry)
    doc = (type_.__doc__ or "").partition("\n")[0]
    return {"type": "record", "name": type_.__name__, "doc": doc, "fields": described}


def _type(hint: Any, named: set[str]) -> Any:
    if isinstance(hint, NewType):
        return _type(hint.__supertype__, named)
    if hint in _PRIMITIVES:
        return _PRIMITIVES[hint]
    if get_origin(hint) in (types.UnionType, Union):
        (some,) = (each for each in get_args(hint) if each is not types.NoneType)
        return ["null", _type(some, named)]
    if get_origin(hint) is tuple:
        item, _ = get_args(hint)
        return {"type": "array", "items": _type(item, named)}
    if hint.__name__ in named:
        return hint.__name__
    if isinstance(hint, type) and is_dataclass(hint):
        return _record(hint, named)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        named.add(hint.__name__)
        return {"type": "enum", "name": hint.__name__, "symbols": [each.value for each in hint]}
    raise TypeError(f"there is no Avro type for {hint}")


def _default(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _default(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_default(each) for each in value]
    return str(value) if isinstance(value, StrEnum) else value


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
