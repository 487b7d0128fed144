"""The images that programs run in, as the settings have them."""

from typing import Any

import pytest

from runtape.ports.errors import Permanent
from runtape.runtime.pods import KubernetesSettings
from runtape.runtime.providers.kubernetes import images


def of(**given: str) -> KubernetesSettings:
    named: Any = {name.replace("_", ":", 1): {"reference": "a/b:1", "binary": path} for name, path in given.items()}
    return KubernetesSettings(images={name.replace("_", "."): each for name, each in named.items()})


def test_every_recipe_has_an_image_unless_some_are_named() -> None:
    found = images(KubernetesSettings(image_prefix="registry.example/team/"))
    assert {each.runtime.runtime.lang for each in found} >= {"python", "node", "bash"}
    assert "registry.example/team/python:3.13" in [each.reference for each in found]
    assert [each.runtime.name for each in images(of(python_3_11="/usr/bin/python3.11"))] == ["python 3.11"]


def test_the_newest_version_of_a_language_comes_first() -> None:
    found = images(of(python_3_9="/usr/bin/python3.9", python_3_13="/usr/bin/python3.13", python_3_11="/bin/python3"))
    assert [each.runtime.runtime.version for each in found] == ["3.13", "3.11", "3.9"]


def test_no_image_has_packages() -> None:
    assert not any(each.runtime.runtime.packages for each in images(KubernetesSettings()))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"cobol_85": "/usr/bin/cobc"}, "no language is called 'cobol'"),
        ({"go_1_22": "/usr/bin/go"}, "go 1.22 is compiled, and pods have no box for a compiler"),
    ],
)
def test_a_language_that_cannot_be_had_is_refused(given: dict[str, str], problem: str) -> None:
    with pytest.raises(Permanent, match=problem):
        images(of(**given))
