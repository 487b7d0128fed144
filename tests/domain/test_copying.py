"""Copies of frozen values."""

import dataclasses

import pytest

from runtape.domain.copying import replace
from tests.builders import an_execution, started


def test_a_copy_has_the_other_fields_and_leaves_the_value_as_it_was() -> None:
    execution = started()
    copy = replace(execution, version=7, lease=None)
    assert copy == dataclasses.replace(execution, version=7, lease=None)
    assert execution == started()
    assert type(copy) is type(execution)


def test_a_copy_is_frozen_too() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        replace(an_execution(), version=7).version = 8  # pyright: ignore[reportAttributeAccessIssue]


def test_a_name_that_is_no_field_is_refused() -> None:
    with pytest.raises(TypeError, match="Execution has no field colour"):
        replace(an_execution(), colour="red")
