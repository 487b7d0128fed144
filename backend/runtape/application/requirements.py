"""The packages that a run asks for: in its request, or in a header of its script (PEP 723).

A requirement is a name with extras, version specifiers and a marker (PEP 508).  What names a place instead of a
package (URL, path, repository) is refused, as are options of a resolver: all comes from the installation's index.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from runtape.domain.errors import RequirementInvalid, ValidationFailed, VersionUnknown
from runtape.ports.pod_runtime import Runtime

LANG = "python"
"""The language whose scripts may have such a header."""
REQUIREMENTS = 50
REQUIREMENT_CHARACTERS = 500
HEADER_CHARACTERS = 32 << 10

_BEGIN, _END = "# /// ", "# ///"


@dataclass(frozen=True, slots=True)
class Header:
    """What a script says of itself; `requires_python` is empty when it says nothing of that."""

    requirements: tuple[str, ...]
    requires_python: str = ""


def checked(texts: Sequence[str], field: str | None = None) -> tuple[str, ...]:
    """Return requirements in one spelling, sorted, each once: equal sets are equal.

    `field` is where they were found, when that is not the request's own list.  Raises: RequirementInvalid.
    """
    if len(texts) > REQUIREMENTS:
        raise RequirementInvalid(
            f"{len(texts)} requirements; the limit is {REQUIREMENTS}", field=field or "requirements"
        )
    return tuple(sorted({_one(text, field or f"requirements[{number}]") for number, text in enumerate(texts)}))


def _one(text: str, field: str) -> str:
    shown = text[:80]
    if len(text) > REQUIREMENT_CHARACTERS:
        raise RequirementInvalid(f"a requirement has at most {REQUIREMENT_CHARACTERS} characters", field=field)
    if not text.isprintable():
        raise RequirementInvalid("a requirement has no line breaks and no control characters", field=field)
    try:
        requirement = Requirement(text)
    except (InvalidRequirement, RecursionError) as error:
        reason = str(error).splitlines()[0]
        detail = f'"{shown}" is no requirement: {reason}; write NAME, NAME[EXTRA] or NAME>=VERSION'
        raise RequirementInvalid(detail, field=field) from None
    if requirement.url is not None:
        raise RequirementInvalid(f'"{shown}" names a place; packages come from the index, by name', field=field)
    extras = ",".join(sorted(canonicalize_name(extra) for extra in requirement.extras))
    # Written anew from what was understood: it begins with a letter or digit, so no resolver takes it for an option.
    return "".join(
        (
            canonicalize_name(requirement.name),
            f"[{extras}]" if extras else "",
            ",".join(sorted(str(specifier) for specifier in requirement.specifier)),
            f" ; {requirement.marker}" if requirement.marker is not None else "",
        )
    )


def read_header(script: str) -> Header | None:
    """Return what the script's header says; None when it has none.

    Raises: ValidationFailed, for a header that is not closed, is there twice or is no TOML of the right shape;
    RequirementInvalid.
    """
    text = _header_text(script)
    if text is None:
        return None
    if len(text) > HEADER_CHARACTERS:
        raise _malformed(f"it has more than {HEADER_CHARACTERS} characters")
    try:
        values = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _malformed(f"it is no TOML: {error}") from None
    dependencies, requires_python = values.get("dependencies", []), values.get("requires-python", "")
    if not isinstance(dependencies, list):
        raise _malformed("dependencies must be a list of strings")
    texts: list[str] = []
    for each in dependencies:  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(each, str):
            raise _malformed("dependencies must be a list of strings")
        texts.append(each)
    if not isinstance(requires_python, str):
        raise _malformed("requires-python must be a string")
    return Header(checked(texts, "script"), requires_python)


def _header_text(script: str) -> str | None:
    """Return the TOML of the one block of type ``script``.

    As the expression in PEP 723 finds it, but line by line: that takes time by the square of a hostile script's length.
    """
    found: str | None = None
    lines = script.replace("\r\n", "\n").split("\n")
    at = 0
    while at < len(lines):
        kind = lines[at].removeprefix(_BEGIN)
        if kind == lines[at] or not kind or not all(c.isascii() and (c.isalnum() or c == "-") for c in kind):
            at += 1
            continue
        begin = end = at + 1
        while end < len(lines) and (lines[end] == "#" or lines[end].startswith("# ")):
            end += 1
        closing = next((line for line in range(end - 1, at, -1) if lines[line] == _END), None)
        if kind == "script":
            if closing is None:
                raise _malformed(f'it is not closed by a line "{_END}"')
            if found is not None:
                raise _malformed("there are two")
            found = "\n".join(line[2:] for line in lines[begin:closing])
        at = end if closing is None else closing + 1
    return found


def _malformed(what: str) -> ValidationFailed:
    return ValidationFailed(f"the script's header (PEP 723) cannot be used: {what}", field="script")


def choose(runtimes: Sequence[Runtime], header: Header) -> Runtime:
    """Return the first of `runtimes` that the header allows.  Raises: VersionUnknown; ValidationFailed."""
    try:
        allowed = SpecifierSet(header.requires_python)
    except InvalidSpecifier:
        raise _malformed(f'requires-python = "{header.requires_python[:80]}" is no version specifier') from None
    fitting = [each for each in runtimes if _allows(allowed, each.version)]
    if not fitting:
        have = [each.version for each in runtimes]
        raise VersionUnknown(LANG, header.requires_python[:80], have, field="script")
    usable = [each for each in fitting if each.packages] if header.requirements else fitting
    if not usable:
        versions = ", ".join(each.version for each in fitting)
        raise ValidationFailed(f"{LANG} {versions} takes no requirements", field="script")
    return usable[0]


def _allows(allowed: SpecifierSet, version: str) -> bool:
    """Whether some release of `version`, of which the last number is not known here, is allowed."""
    return allowed.contains(version) or allowed.contains(f"{version}.999")
