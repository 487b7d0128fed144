"""The battery as data: complete, well-formed, and what docs/security.md says of it."""

import re
from pathlib import Path

import pytest

from runtape.prove.case import Case
from runtape.prove.cases import FAMILIES, FAMILIES_OF_PODS
from runtape.prove.main import choose
from runtape.prove.target import Target

CHECKS = [check for checks in FAMILIES.values() for check in checks]
IDS = {check.id for check in CHECKS}
APPLICABLE = {*range(1, 54)} - {51}
IN_PODS = [check for checks in FAMILIES_OF_PODS.values() for check in checks]
APPLICABLE_IN_PODS = APPLICABLE | {64}
CASES = [
    pytest.param(check, id=f"{check.id}-{target}")
    for target in Target
    for _, check in choose(target, ())
    if isinstance(check, Case)
]
SECURITY = (Path(__file__).parent.parent.parent / "docs" / "security.md").read_text()


def test_every_case_of_the_catalogue_that_applies_is_there() -> None:
    assert {int(name[1:3]) for name in IDS} == APPLICABLE
    assert len(IDS) == len(CHECKS)
    names = {check.id for check in IN_PODS}
    assert {int(name[1:3]) for name in names} == APPLICABLE_IN_PODS
    assert len(names) == len(IN_PODS)
    assert all(re.fullmatch(r"A\d\d[b-z]?", name) for name in names)


@pytest.mark.parametrize("case", CASES)
def test_case_is_well_formed(case: Case) -> None:
    for program in filter(None, (case.program, case.companion)):
        compile(program, case.id, "exec")
        assert "inside" in program
    for text in (case.title, case.tries, case.holds, case.layer.title):
        assert text
        assert not text.endswith(".")


def test_security_page_claims_what_is_proven_and_nothing_else() -> None:
    named = set(re.findall(r"\bA\d\d[b-z]?\b", SECURITY))
    assert named == {check.id for check in IN_PODS}


def test_every_layer_of_the_security_page_names_its_cases() -> None:
    rows = [line for line in SECURITY.splitlines() if line.startswith("| **")]
    assert len(rows) > 10
    assert all(re.search(r"\bA\d\d", row) for row in rows)
