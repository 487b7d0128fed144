"""What the rig says of servers that are given."""

import subprocess
from pathlib import Path

import pytest

from tests.cli.commands import environment
from tests.rig.given import VARIABLES, GivenKafka, NotOurs
from tests.rig.part import free_port

PROJECT = Path(__file__).parents[2]


def test_status_tells_which_parts_are_given(tmp_path: Path) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    given = {"RUNTAPE_TEST_KAFKA": nowhere, "RUNTAPE_TEST_REDIS": f"redis://user:hunter2@{nowhere}"}
    env = environment(RUNTAPE_RIG_DOCKER="0", **given)
    command = [PROJECT / "runtape", "rig", "status"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    told = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert told.keys() == VARIABLES.keys() - {"kubernetes"}, "nobody asked for that"
    assert told["kafka"].endswith("does not answer where RUNTAPE_TEST_KAFKA says")
    assert told["redis"].endswith("does not answer where RUNTAPE_TEST_REDIS says")
    assert told["mongo"].endswith("on port 27117")
    assert "hunter2" not in done.stdout + done.stderr


def test_a_given_server_is_neither_killed_nor_paused() -> None:
    part = GivenKafka(f"127.0.0.1:{free_port()}")
    for refused in (part.kill, part.pause, part.resume, part.command):
        with pytest.raises(NotOurs):
            refused()


def test_a_given_server_that_does_not_answer_is_no_reason_to_skip() -> None:
    with pytest.raises(AssertionError, match="the Kafka that is given does not answer"):
        GivenKafka(f"127.0.0.1:{free_port()}").start()
