"""docker-compose.yml and the recipes of images, read as far as the tests ask for it."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

PROJECT = Path(__file__).parents[2]
COMPOSE_FILE = PROJECT / "docker-compose.yml"
DOCKERFILE = PROJECT / "deploy" / "Dockerfile"
GIVEN = {
    "MONGO_ROOT_PASSWORD": "0root0",
    "MONGO_PASSWORD": "0mongo0",
    "REDIS_PASSWORD": "0redis0",
    "RUNTAPE_ADMIN_PASSWORD": "0admin0admin0",
}
"""What .env has to give."""

_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?P<rule>:[?-])(?P<rest>[^}]*)\})")


@cache
def compose() -> dict[str, Any]:
    """Return the file as it is written, with its anchors and merges carried out."""
    return YAML(typ="safe", pure=True).load(COMPOSE_FILE.read_text())


@cache
def services() -> dict[str, dict[str, Any]]:
    return compose()["services"]


def variables(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield the name of each variable in `text`, whether it is required or has a default, and the rest."""
    for found in _VARIABLE.finditer(text):
        if found["name"]:
            yield found["name"], "required" if found["rule"] == ":?" else "default", found["rest"]


def resolved(value: object, given: Mapping[str, str] = GIVEN) -> str:
    """Return what Compose makes of `value`.  Raises: KeyError, naming a required variable that is not given."""

    def put(found: re.Match[str]) -> str:
        if not found["name"]:
            return "$"
        return given[found["name"]] if found["rule"] == ":?" else given.get(found["name"], found["rest"])

    return _VARIABLE.sub(put, str(value))


def environment(service: str, given: Mapping[str, str] = GIVEN) -> dict[str, str]:
    """Return the variables that the processes of `service` get."""
    return {name: resolved(value, given) for name, value in services()[service].get("environment", {}).items()}


@cache
def instructions(file: Path = DOCKERFILE) -> list[tuple[str, str, list[str]]]:
    """Return a Dockerfile's instructions as stage, name and words."""
    text = re.sub(r"^\s*#.*\n", "", file.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[tuple[str, str, list[str]]] = []
    stage = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        name, _, rest = line.partition(" ")
        plain, bracket, listed = rest.partition('["')
        words = shlex.split(plain) + (json.loads(bracket + listed) if bracket else [])
        if name == "FROM":
            stage = words[-1]
        found.append((stage, name, words))
    return found


def lineage(target: str) -> list[tuple[str, list[str]]]:
    """Return the instructions of a stage after those of the stages that it is made from."""
    own = [(name, words) for stage, name, words in instructions() if stage == target]
    if not own:
        return []
    return [*lineage(own[0][1][0]), *own]
