"""Whose place a worker takes: that of the process before it in the folder, once that one is gone."""

import subprocess
import sys
from pathlib import Path

import pytest

from runtape.ports.errors import Permanent
from runtape.runtime.succession import Succession

HOLDER = """
import sys
from pathlib import Path
from runtape.runtime.succession import Succession
held = Succession(Path(sys.argv[1]))
print(held.take("first"), flush=True)
sys.stdin.read()
"""


def test_a_worker_follows_the_one_that_was_killed_and_not_one_that_lives(tmp_path: Path) -> None:
    folder = tmp_path / "worker"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "None\n"
        second = Succession(folder)
        assert second.take("second") is None, "the first lives"
        first.kill()
    assert second.take("second") == "first"
    assert Succession(folder).take("third") is None, "the second lives"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Permanent, match=f"cannot write to the data folder {tmp_path}/file/worker"):
        Succession(tmp_path / "file" / "worker").take("me")
