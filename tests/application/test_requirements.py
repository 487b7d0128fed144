"""What a run may ask for by name: one spelling for equal sets, and every refusal names the field."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtape.application.requirements import (
    HEADER_CHARACTERS,
    REQUIREMENT_CHARACTERS,
    REQUIREMENTS,
    Header,
    checked,
    choose,
    read_header,
)
from runtape.domain.errors import Invalid, RequirementInvalid, ValidationFailed, VersionUnknown
from runtape.ports.pod_runtime import Runtime

PYTHONS = [Runtime("python", version, "main.py", "", packages=version != "3.6") for version in ("3.13", "3.11", "3.6")]


def script(*lines: str) -> str:
    """Return a script with a header of these lines."""
    return "\n".join(["#!/usr/bin/python3", "# /// script", *(f"# {line}".rstrip() for line in lines), "# ///", "pass"])


def test_equal_sets_have_one_spelling() -> None:
    one = checked(["Zope.Interface >=5,<9", "numpy", "requests[Socks, security]; python_version<'4'"])
    other = checked(['requests[security,socks];python_version < "4"', "NumPy", "zope_interface<9, >=5", "numpy"])
    assert one == other == ("numpy", 'requests[security,socks] ; python_version < "4"', "zope-interface<9,>=5")


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "numpy >", "numpy numpy", "numpy==", "a/b", "./numpy", "/numpy", "numpy.whl @", "-r x", "--pre"),
        *("-e .", "numpy --hash=sha256:00", "numpy\n--index-url http://x", "numpy\0", "nump\u00ff", "numpy; os.name"),
        *(
            "numpy @ https://example.org/numpy.whl",
            "numpy @ file:///etc",
            "git+https://example.org/x",
            "https://x/y.whl",
        ),
        "n" * (REQUIREMENT_CHARACTERS + 1),
        "\ud800",
    ],
)
def test_what_is_no_requirement_is_refused(text: str) -> None:
    with pytest.raises(RequirementInvalid) as refused:
        checked(["numpy", text])
    assert refused.value.field == "requirements[1]"


def test_too_many_are_refused() -> None:
    assert len(checked([f"p{number}" for number in range(REQUIREMENTS)])) == REQUIREMENTS
    with pytest.raises(RequirementInvalid) as refused:
        checked([f"p{number}" for number in range(REQUIREMENTS + 1)])
    assert refused.value.field == "requirements"


@given(st.text(max_size=60))
def test_whatever_passes_begins_as_a_name_and_stays_as_it_is(text: str) -> None:
    try:
        (one,) = checked([text])
    except RequirementInvalid:
        return
    assert one[0].isascii() and one[0].isalnum()
    assert one.isprintable()
    assert checked([one]) == (one,)


def test_header_is_read() -> None:
    text = script('requires-python = ">=3.12"', "dependencies = [", '  "Numpy>=2",', "", '  "six",', "]", "[tool.x]")
    assert read_header(text) == Header(("numpy>=2", "six"), ">=3.12")
    assert read_header(text.replace("\n", "\r\n")) == read_header(text)
    assert read_header(script()) == Header(())


@pytest.mark.parametrize(
    "text",
    [
        "print(1)",
        "x = '# /// script'\n",
        "  # /// script\n  # ///\n",
        "# /// other\n# dependencies = 1\n# ///\n",
        "# /// script x\n# ///\n",
        "#/// script\n# ///",
    ],
)
def test_script_without_a_header_has_none(text: str) -> None:
    assert read_header(text) is None


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (script("dependencies = ["), "no TOML"),
        (script("dependencies = 'six'"), "list of strings"),
        (script("dependencies = [1]"), "list of strings"),
        (script("requires-python = 3"), "string"),
        (script() + "\n" + script(), "two"),
        ("# /// script\n# dependencies = []\nprint(1)\n", "not closed"),
        ("# /// script", "not closed"),
        (script("x = '" + "x" * HEADER_CHARACTERS + "'"), "characters"),
        (script("x = " + "[" * 5000), "no TOML"),
    ],
)
def test_malformed_header_is_refused(text: str, what: str) -> None:
    with pytest.raises(ValidationFailed, match=what) as refused:
        read_header(text)
    assert refused.value.field == "script"


def test_requirement_of_a_header_is_checked_as_any_other() -> None:
    with pytest.raises(RequirementInvalid) as refused:
        read_header(script('dependencies = ["six @ https://example.org/six.whl"]'))
    assert refused.value.field == "script"


@given(st.lists(st.sampled_from(["# /// script", "# ///", "#", "# x", "# /// other", "pass", ""]), max_size=12))
def test_blocks_are_found_as_the_expression_of_the_specification_finds_them(lines: list[str]) -> None:
    import re

    # PEP 723, with the end of the text as the end of a line.
    expression = r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$"
    text = "\n".join(lines)
    wanted = [found["content"] for found in re.finditer(expression, text) if found["type"] == "script"]
    try:
        header = read_header(text)
    except Invalid:
        return  # more is refused than is overlooked there; what is well-formed is in the tests above
    assert (header is not None) == bool(wanted) or header == Header(())


def test_hostile_script_takes_time_by_its_length_alone() -> None:
    def took_s(count: int) -> float:
        text = "# /// other\n" * count + "pass"
        begun_s = time.process_time()
        assert read_header(text) is None
        return time.process_time() - begun_s

    def least_s(count: int) -> float:
        return min(took_s(count) for _ in range(7))

    assert least_s(80_000) < 50 * least_s(8_000)  # by the square it is 100 times


def test_newest_python_that_the_header_allows_is_chosen() -> None:
    assert choose(PYTHONS, Header((), "")).version == "3.13"
    assert choose(PYTHONS, Header((), "<3.13")).version == "3.11"
    assert choose(PYTHONS, Header((), ">=3.11.4,<3.12")).version == "3.11"
    assert choose(PYTHONS, Header((), "==3.11.*")).version == "3.11"
    assert choose(PYTHONS, Header((), "<3.7")).version == "3.6"


def test_python_that_is_not_there_is_told() -> None:
    with pytest.raises(VersionUnknown, match=r'no python ">=3.14" \(have: 3.13, 3.11, 3.6\)') as refused:
        choose(PYTHONS, Header((), ">=3.14"))
    assert refused.value.field == "script"
    with pytest.raises(ValidationFailed, match="requires-python"):
        choose(PYTHONS, Header((), "three"))
    with pytest.raises(ValidationFailed, match=r"python 3.6 takes no requirements"):
        choose(PYTHONS, Header(("six",), "<3.7"))
