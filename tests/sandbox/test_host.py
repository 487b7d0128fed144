"""What the host offers is found out without a box being asked for."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtape.adapters.sandbox import State, inspect_host
from runtape.adapters.sandbox.runtimes import detect
from tests.conftest import LANGUAGES


@pytest.fixture
def prefix() -> Iterator[Path]:
    """A folder that a box could show, as it could none below /tmp."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        (Path(folder) / "bin").mkdir()
        yield Path(folder)


def test_scripts_in_the_path_are_no_runtimes(prefix: Path) -> None:
    (prefix / "bin" / "lua5.8").write_text("#!/bin/sh\n")
    (prefix / "bin" / "lua5.8").chmod(0o755)
    shutil.copy("/bin/true", prefix / "bin" / "lua5.9")
    found, missing = detect([str(prefix / "bin")])
    assert [(each.runtime.lang, each.runtime.version, each.shown) for each in found] == [("lua", "5.9", (str(prefix),))]
    assert {each.lang for each in missing} == set(LANGUAGES) - {"lua"}
    assert {each.lang: each.fix for each in missing}["c"] == "apt install gcc libc6-dev"


def test_go_without_a_compiled_standard_library_is_told_with_the_remedy(prefix: Path) -> None:
    go, archive = prefix / "bin" / "go", prefix / "pkg" / "linux_amd64" / "fmt.a"
    shutil.copy("/bin/true", go)
    (prefix / "VERSION").write_text("go1.99.1\n")
    found, missing = detect([str(go.parent)])
    assert found == []
    assert f"GODEBUG=installgoroot=all {go} install std" in {each.lang: each.fix for each in missing}["go"]
    archive.parent.mkdir(parents=True)
    archive.touch()
    assert [(each.runtime.lang, each.runtime.version) for each in detect([str(go.parent)])[0]] == [("go", "1.99")]


def test_host_is_described() -> None:
    checks = inspect_host()
    assert {check.name for check in checks} == {"host", "isolation", "speed", "memory limit", "gvisor", *LANGUAGES}
    assert all(check.finding for check in checks)
    assert all(check.fix for check in checks if check.state is not State.OK)
