"""Whose place a worker takes: that of the process before it in the folder, once that one is gone."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtape.ports.errors import Permanent
from runtape.runtime.succession import Succession

HOLDER = """
import sys
from pathlib import Path
from runtape.runtime.succession import Succession
folder, name, settled = sys.argv[1:]
held = Succession(Path(folder))
print(*held.take(name), flush=True)
if settled == "True":
    held.settled(name)
    print("settled", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(folder: Path, name: str, *, settled: bool = False) -> Iterator[list[str]]:
    """A process that has the place as `name`, and is killed in the end; it gives whom it follows."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), name, str(settled)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        before = process.stdout.readline().split()
        if settled:
            assert process.stdout.readline() == "settled\n"
        yield before
        process.kill()


def test_a_worker_follows_the_one_that_was_killed_and_not_one_that_lives(tmp_path: Path) -> None:
    folder = tmp_path / "worker"
    second = Succession(folder)
    with holder(folder, "first") as before:
        assert before == []
        assert list(second.take("second")) == [], "the first lives"
    assert list(second.take("second")) == ["first"]
    assert list(Succession(folder).take("third")) == [], "the second lives"


def test_who_dies_while_it_takes_a_place_leaves_both_to_the_next(tmp_path: Path) -> None:
    with holder(tmp_path, "the-first-of-all") as first:
        assert first == []
    with holder(tmp_path, "second") as before:
        assert before == ["the-first-of-all"]
    with holder(tmp_path, "third", settled=True) as before:
        assert before == ["the-first-of-all", "second"]
    assert list(Succession(tmp_path).take("fourth")) == ["third"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Permanent, match=f"cannot write to the data folder {tmp_path}/file/worker"):
        Succession(tmp_path / "file" / "worker").take("me")
