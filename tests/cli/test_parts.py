"""What a run of the tests says about the parts that this host does not have."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = (
    re.sub("pytest_plugins = .*", "", (Path(__file__).parents[1] / "conftest.py").read_text())
    + """
PARTS["unicorn"] = Part("what no host has", lambda: "none seen")
"""
)
NEEDS_WHAT_IS_NOT_THERE = """
import pytest

@pytest.mark.needs("unicorn")
def test_unicorn(): pass

@pytest.mark.needs("unicorn")
def test_unicorn_again(): pass

def test_skips_itself(): pytest.skip("not today")

def test_runs(): pass
"""


def run(
    folder: Path, require: str = "", text: str = NEEDS_WHAT_IS_NOT_THERE, workers: str = "0", **more: str
) -> "subprocess.CompletedProcess[str]":
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\n")
    # Without the plugins that are not needed, some of which take seconds to import.
    plugins = ["-p", "no:cacheprovider", "-p", "xdist"]
    command = [sys.executable, "-m", "pytest", *plugins, "-q", "-n", workers, str(folder)]
    env = {**os.environ, "RUNTAPE_REQUIRE": require, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **more}
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_skips_are_listed_by_part_before_the_usual_last_line(tmp_path: Path, workers: str) -> None:
    done = run(tmp_path, workers=workers)
    assert done.returncode == 0
    assert "unicorn (what no host has): 2 skipped, none seen\n    in test_it.py\n" in done.stdout
    assert "other (skips that name no part): 1 skipped, not today\n" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 passed, 3 skipped in ")


def test_skip_of_a_required_part_fails(tmp_path: Path) -> None:
    done = run(tmp_path, "bash,unicorn")
    assert done.returncode == 1
    assert "RUNTAPE_REQUIRE names unicorn, so this may not be skipped: none seen" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 passed, 1 skipped, 2 errors in ")


@pytest.mark.parametrize("text", [NEEDS_WHAT_IS_NOT_THERE, "import pytest; pytest.importorskip('no_such_module')"])
def test_skip_that_names_no_part_can_be_forbidden_too(tmp_path: Path, text: str) -> None:
    done = run(tmp_path, "other", text)
    assert done.returncode != 0
    assert "RUNTAPE_REQUIRE names other" in done.stdout


def test_unknown_part_is_an_error(tmp_path: Path) -> None:
    assert "RUNTAPE_REQUIRE names nodes; the parts are python, bash" in run(tmp_path, "nodes").stderr
    done = run(tmp_path, text="import pytest\n@pytest.mark.needs('nodes')\ndef test_it(): pass\n")
    assert 'there is no part "nodes"' in done.stdout


ON_A_BROKER = """
import pytest

@pytest.mark.needs("kafka")
def test_uses_it(): pass

@pytest.mark.needs("kafka", "own")
def test_kills_it(): pass
"""


def test_a_server_that_is_given_meets_a_need_and_is_not_killed(tmp_path: Path) -> None:
    # Without PATH and in an empty folder no other can be obtained.
    env = {"PYTHONPATH": str(Path(__file__).parents[2]), "RUNTAPE_RIG": str(tmp_path / "rig"), "PATH": ""}
    alone = run(tmp_path, text=ON_A_BROKER, **env)
    assert "kafka (Apache Kafka, given, in Docker or from Maven's repository): 2 skipped, needs Maven" in alone.stdout
    given = run(tmp_path, text=ON_A_BROKER, **env, RUNTAPE_TEST_KAFKA="127.0.0.1:9")
    assert given.stdout.splitlines()[-1].startswith("1 passed, 1 skipped in ")
    assert "1 skipped, given servers are not killed (RUNTAPE_TEST_KAFKA)" in given.stdout
