"""What an operator says of pods, and what is refused."""

import pytest

from runtape.runtime.pods import ImageSettings, KubernetesSettings


@pytest.mark.parametrize(
    "reference",
    [
        "runtape/python:3.13",
        "python",
        "registry.example:5000/team/python_3/slim-bookworm:3.13-r1",
        "docker.io/runtape/python@sha256:" + "0a" * 32,
        "localhost/runtape/python:3.13@sha256:" + "0a" * 32,
    ],
)
def test_the_reference_of_an_image_is_taken(reference: str) -> None:
    images = {"python:3.13": ImageSettings(reference=reference, binary="/usr/bin/python3")}
    assert [*KubernetesSettings(images=images).problems()] == []


@pytest.mark.parametrize(
    "reference",
    [
        "runtape/python:3.13 --privileged",
        "runtape/python:3.13\n  hostNetwork: true",
        "../python",
        "/etc/passwd",
        "https://registry.example/python",
        "user:password@registry.example/python",
        "{{ .Values.image }}",
        "$(HOSTNAME)/python",
        "runtape/Python:3.13",
        "runtape/python:",
        "runtape/python@sha256:1234",
        "-python",
    ],
)
def test_what_is_no_reference_of_an_image_is_told(reference: str) -> None:
    images = {"python:3.13": ImageSettings(reference=reference, binary="/usr/bin/python3")}
    (problem,) = KubernetesSettings(images=images).problems()
    assert problem.startswith(f"kubernetes.images: {reference!a} is no reference of an image")


def test_the_prefix_of_images_begins_a_reference() -> None:
    (problem,) = KubernetesSettings(image_prefix="runtape images/").problems()
    assert "'runtape images/python:3.13' is no reference" in problem
