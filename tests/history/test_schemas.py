"""The schemas are those of the types, and go with those of every released version in both directions."""

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import avro.schema
import pytest
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from hypothesis import given, settings
from hypothesis import strategies as st

from runtape.domain.events import MESSAGE_TYPES
from scripts import schemas as generator
from tests.history.versions import FOLDER, RECORDS, VERSIONS, Schema, data, datum_of, message_of, passed_on, schemas

TODAY = schemas(generator.FOLDER)
RELEASED = [(version, name) for version in VERSIONS for name in schemas(FOLDER / version)]
NAMES = list(RECORDS)


def incompatibilities(reader: Schema, writer: Schema) -> list[str]:
    """Return what keeps `reader` from reading all that is written with `writer`, as Apache Avro sees it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_with, written_with = (avro.schema.parse(json.dumps(schema)) for schema in (reader, writer))
    found = ReaderWriterCompatibilityChecker().get_compatibility(read_with, written_with)
    return (
        [] if found.compatibility is SchemaCompatibilityType.compatible else sorted(map(str, found.incompatibilities))
    )


def test_the_files_are_what_the_types_say(tmp_path: Path) -> None:
    generator.write(tmp_path)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_text() for path in generator.FOLDER.glob("*.avsc")}
    assert committed == written, "run .venv/bin/python scripts/schemas.py"
    assert set(TODAY) == {message.__name__ for message in MESSAGE_TYPES.values()}


def test_a_schema_whose_type_is_gone_is_removed(tmp_path: Path) -> None:
    (tmp_path / "ExecutionDreamt.avsc").write_text("{}")
    generator.write(tmp_path)
    assert not (tmp_path / "ExecutionDreamt.avsc").exists()


@pytest.mark.parametrize("name", NAMES)
@given(choice=st.data())
@settings(max_examples=25)
def test_every_message_passes_through_its_schema_unchanged(name: str, choice: st.DataObject) -> None:
    message = message_of(choice.draw(data(generator.FOLDER, name)), RECORDS[name])
    assert message_of(passed_on(datum_of(message), TODAY[name], TODAY[name]), RECORDS[name]) == message


@pytest.mark.parametrize(("version", "name"), RELEASED)
class TestReleased:
    def test_today_reads_what_that_version_wrote(self, version: str, name: str) -> None:
        assert incompatibilities(TODAY[name], schemas(FOLDER / version)[name]) == []

    def test_that_version_reads_what_today_writes(self, version: str, name: str) -> None:
        assert incompatibilities(schemas(FOLDER / version)[name], TODAY[name]) == []

    @given(choice=st.data())
    @settings(max_examples=15)
    def test_whatever_either_writes_the_other_reads(self, version: str, name: str, choice: st.DataObject) -> None:
        released = schemas(FOLDER / version)[name]
        message_of(passed_on(choice.draw(data(FOLDER / version, name)), released, TODAY[name]), RECORDS[name])
        read = passed_on(choice.draw(data(generator.FOLDER, name)), TODAY[name], released)
        assert set(read) == {field["name"] for field in released["fields"]}


def _field(schema: Schema, name: str) -> dict[str, Any]:
    return next(field for field in schema["fields"] if field["name"] == name)


def _added(schema: Schema) -> None:
    schema["fields"].append({"name": "shard", "type": "long"})


def _added_with_default(schema: Schema) -> None:
    schema["fields"].append({"name": "shard", "type": "long", "default": 0})


def _removed(schema: Schema) -> None:
    schema["fields"].remove(_field(schema, "last_seq"))


def _removed_with_default(schema: Schema) -> None:
    schema["fields"].remove(_field(schema, "attempt"))


def _retyped(schema: Schema) -> None:
    _field(schema, "last_seq")["type"] = "string"


def _widened(schema: Schema) -> None:
    _field(schema, "version")["type"] = "double"


def _nullable(schema: Schema) -> None:
    _field(schema, "last_seq")["type"] = ["null", "long"]


def _renamed(schema: Schema) -> None:
    schema["name"] = "ExecutionFinished"


def _new_symbol(schema: Schema) -> None:
    outcome = _field(schema, "outcome")["type"]
    _field(outcome, "kind")["type"]["symbols"].append("abducted")


def _lost_symbol(schema: Schema) -> None:
    outcome = _field(schema, "outcome")["type"]
    _field(outcome, "kind")["type"]["symbols"].remove("wall_limit")


@pytest.mark.parametrize(
    ("change", "backward", "forward"),
    [
        (_added_with_default, True, True),
        (_removed_with_default, True, True),
        (_added, False, True),
        (_removed, True, False),
        (_retyped, False, False),
        (_widened, True, False),
        (_nullable, True, False),
        (_renamed, False, False),
        (_new_symbol, True, False),
        (_lost_symbol, False, True),
    ],
)
def test_the_check_sees_what_breaks(change: Callable[[Schema], None], backward: bool, forward: bool) -> None:
    """Backward: the changed reads what the unchanged wrote; forward: the unchanged reads what the changed writes."""
    before = TODAY["ExecutionCompleted"]
    after = copy.deepcopy(before)
    change(after)
    assert (incompatibilities(after, before) == [], incompatibilities(before, after) == []) == (backward, forward)
