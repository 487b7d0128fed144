"""deploy/images: recipes of the images in which programs run."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import runtape
from runtape.adapters.kubernetes.manifests import RUNNER, UID, WORK_DIRECTORY
from runtape.adapters.sandbox import runtimes
from tests.deploy.composition import DOCKERFILE, PROJECT, instructions

FOLDER = PROJECT / "deploy" / "images"
OF_RUNNER = FOLDER / "runner" / "Dockerfile"
OF_LANGUAGES = sorted(FOLDER.glob("*/*/Dockerfile"))
RECIPES = [OF_RUNNER, *OF_LANGUAGES]
BAD = {
    "FROM python:latest": "DL3007",
    "FROM python": "DL3006",
    "FROM python:3.13.1\nRUN curl https://example.com/install | sh": "DL4006",
    "FROM python:3.13.1\nADD https://example.com/file /file\nUSER 0:0": "DL3002",
    "FROM python:3.13.1\nRUN cd /tmp": "DL3003",
}


def named(path: Path) -> str:
    """Return the name of the image with its version, the product's own for that of the runner."""
    folder = path.parent
    return f"runner:{runtape.__version__}" if path == OF_RUNNER else f"{folder.parent.name}:{folder.name}"


def linted(path: Path) -> "subprocess.CompletedProcess[str]":
    linter = Path(sys.executable).with_name("hadolint")
    return subprocess.run([linter, "--no-color", path], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_a_recipe_is_what_the_linter_wants(path: Path) -> None:
    done = linted(path)
    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.parametrize("text", BAD)
def test_the_linter_finds_what_is_not(text: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(text + "\n")
    done = linted(tmp_path / "Dockerfile")
    assert BAD[text] in done.stdout and done.returncode == 1


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_bases_are_pinned_and_nothing_is_fetched(path: Path) -> None:
    steps = instructions(path)
    stages = {stage for stage, _, _ in steps}
    bases = [words[0] for _, name, words in steps if name == "FROM"]
    for base in bases:
        if base not in (*stages, "scratch"):
            tag = re.fullmatch(r"[a-z/]+:(\d+\.\d+(?:\.\d+)?)(-[a-z-]+)?", base)
            assert tag, base
            assert base.partition("/")[0] != "runtape" or tag[1] == runtape.__version__
    assert not [name for _, name, _ in steps if name == "ADD"]
    commands = [" ".join(words) for _, name, words in steps if name == "RUN"]
    assert not [command for command in commands if re.search(r"curl|wget|git |\| *(ba)?sh", command)]


@pytest.mark.parametrize("path", RECIPES, ids=named)
def test_an_image_is_that_of_the_runner(path: Path) -> None:
    last = final(path)
    assert ["USER", f"{UID}:{UID}"] in last
    assert ["ENTRYPOINT", RUNNER] in last
    (copied,) = [step for step in last if step[0] == "COPY"]
    folder = str(Path(RUNNER).parent)
    assert copied[2:] == [folder, folder]


@pytest.mark.parametrize("path", OF_LANGUAGES, ids=named)
def test_a_language_is_an_official_image_with_the_runner_and_a_place_to_work(path: Path) -> None:
    last = final(path)
    lang, _, version = named(path).partition(":")
    base = r"debian:12[\d.]+-slim" if lang == "bash" else rf"{lang}:{version}\.[\d.]+-(slim-bookworm|bookworm-slim)"
    assert re.fullmatch(base, last[0][1])
    assert ["RUN", "mkdir", WORK_DIRECTORY] in last
    assert last[1][1] == "--from=runner"


def test_the_runner_is_built_as_the_tests_build_it_on_the_services_python() -> None:
    (command,) = [words for _, name, words in instructions(OF_RUNNER) if "building" in str(words)]
    assert command[1:] == ["-P", "-m", "runtape.adapters.kubernetes.building", str(Path(RUNNER).parent)]
    (python,) = {words[0] for stage, name, words in instructions(DOCKERFILE) if (stage, name) == ("python", "FROM")}
    build = next(words[0] for stage, _, words in instructions(OF_RUNNER) if stage == "build")
    assert build == python


def test_every_recipe_is_in_the_instructions() -> None:
    text = (FOLDER / "README.md").read_text()
    for path in RECIPES:
        command = f"docker build --tag runtape/{named(path)} {path.parent.relative_to(PROJECT)}"
        assert f"    {command}\n" in text
        assert f"\n#   {command}\n" in path.read_text()


def test_there_is_a_recipe_for_every_image_that_workers_offer() -> None:
    assert {f"{lang}:{version}" for lang, version, _ in runtimes.images()} == set(map(named, OF_LANGUAGES))


def final(path: Path) -> Sequence[list[str]]:
    """Return the instructions of the last stage."""
    steps = instructions(path)
    start = max(place for place, (_, name, _) in enumerate(steps) if name == "FROM")
    return [[name, *words] for _, name, words in steps[start:]]
