"""What the rig says of servers that are given, and the servers that it starts for who works on the product."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.commands import environment
from tests.cluster.processes import Cluster
from tests.rig.given import VARIABLES, GivenKafka, NotOurs
from tests.rig.part import free_port

PROJECT = Path(__file__).parents[2]
USUAL = ("redis", "mongo", "kafka", "registry")
SETTINGS = {
    "redis": "RUNTAPE_REDIS__URL",
    "mongo": "RUNTAPE_MONGO__URL",
    "kafka": "RUNTAPE_KAFKA__BOOTSTRAP",
    "registry": "RUNTAPE_REGISTRY__URL",
}

# The command with ports, data and containers of the test's own, so that it does not meet the rig of who works here. Its
# word "tests.rig" is what it is known by.
ASIDE = """
import json, pathlib, sys
from tests.rig import __main__ as rig
folder, ports = sys.argv[2:4]
rig.folder, rig.PORTS, rig.KEPT = lambda: pathlib.Path(folder), json.loads(ports), ""
sys.argv[:4] = sys.argv[1:2]
sys.exit(rig.main())
"""


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


def test_clusters_on_the_same_given_servers_know_nothing_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, variable in VARIABLES.items():
        monkeypatch.setenv(variable, f"{part}:1")
    one, other = Cluster(tmp_path), Cluster(tmp_path)
    for name, another in ((one.prefix, other.prefix), (one.database, other.database)):
        assert name and another and not name.startswith(another) and not another.startswith(name)


class Aside:
    """`./runtape rig` beside the one of this machine; `ports` are those of its parts."""

    def __init__(self, folder: Path) -> None:
        self.ports = {name: free_port() for name in USUAL}
        self._command = [sys.executable, "-c", ASIDE, "tests.rig", str(folder), json.dumps(self.ports)]
        self._keeper: subprocess.Popen[str] | None = None

    def up(self) -> "subprocess.Popen[str]":
        """Begin the command that stays."""
        self._keeper = subprocess.Popen(
            [*self._command, "up"],
            env=environment(),
            cwd=PROJECT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self._keeper

    def run(self, word: str) -> "subprocess.CompletedProcess[str]":
        """Run another of its commands to its end."""
        command = [*self._command, word]
        return subprocess.run(
            command, env=environment(), cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False
        )

    def answers(self) -> tuple[int, set[str]]:
        """Return the exit code of `status`, and which parts it says to answer, each at its port."""
        done = self.run("status")
        lines = done.stdout.splitlines()
        assert {line.split()[0] for line in lines} == set(USUAL)
        said = {name for name in USUAL for line in lines if line.startswith(f"{name:<10} answers on port ")}
        assert all(f"on port {self.ports[name]}" in done.stdout for name in USUAL)
        return done.returncode, said

    def close(self) -> None:
        """End it, however far it has come."""
        if self._keeper is not None:
            self._keeper.terminate()
            self._keeper.communicate(timeout=60)


@pytest.fixture
def aside(tmp_path: Path) -> Iterator[Aside]:
    rig = Aside(tmp_path)
    yield rig
    rig.close()


@pytest.mark.needs("redis", "mongo", "kafka", "registry", "own")
@pytest.mark.timeout(240)
def test_the_rig_is_up_until_it_is_told_to_be_down(aside: Aside) -> None:
    assert aside.answers() == (3, set())
    keeper = aside.up()
    assert keeper.stdout is not None
    words = [shlex.split(keeper.stdout.readline()) for _ in range(5)]
    assert [each[:1] for each in words] == [["export"]] * 5
    settings = dict(each[1].split("=", 1) for each in words)
    assert settings.pop("RUNTAPE_PROFILE") == "cluster"
    assert settings.keys() == set(SETTINGS.values())
    for name, variable in SETTINGS.items():
        assert f"127.0.0.1:{aside.ports[name]}" in settings[variable]
    assert aside.answers() == (0, set(USUAL))
    again = aside.run("up")
    assert again.returncode == 1
    assert again.stderr == f"error: the rig is up already, in process {keeper.pid}; ./runtape rig down ends it\n"
    down = aside.run("down")
    assert (down.returncode, down.stdout) == (0, "the rig is down\n")
    assert keeper.wait(60) == 0
    assert aside.answers() == (3, set())
    assert aside.run("down").stdout == "the rig is not up\n"
