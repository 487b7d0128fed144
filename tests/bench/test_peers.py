"""The peers of the sandbox bench: what is not there is told, and what does not start leaves nothing."""

from pathlib import Path

import pytest

from runtape.adapters.sandbox.runtimes import InstalledRuntime, detect
from runtape.bench.errors import BenchError
from runtape.bench.peers import GoJudge, bubblewrap


def python() -> InstalledRuntime:
    return next(each for each in detect()[0] if each.runtime.lang == "python")


def test_bubblewrap_that_is_not_installed_is_no_contender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bubblewrap(python()) is None


def test_bubblewrap_gives_nothing_that_it_can_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bwrap").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    command = bubblewrap(python())
    assert command is not None and command[0] == str(tmp_path / "bwrap")
    assert {"--unshare-all", "--disable-userns", "--die-with-parent", "--clearenv"} <= set(command)
    assert "--bind" not in command


def test_go_judge_that_does_not_start_is_told_in_its_own_words(tmp_path: Path) -> None:
    program = tmp_path / "go-judge"
    program.write_text("#!/bin/sh\necho no mount for you >&2\nexit 1\n")
    program.chmod(0o755)
    judge = GoJudge(str(program), python(), tmp_path / "folder", 4)
    with pytest.raises(BenchError, match="no mount for you"):
        judge.start()
