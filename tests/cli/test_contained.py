"""Parts of the rig as Docker's containers, with a Redis; in a private engine its image is made here."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis as Client

from tests.rig import choice, contained
from tests.rig.choice import Source
from tests.rig.contained import ContainedRedis, docker, image
from tests.rig.docker import Docker, put
from tests.rig.given import VARIABLES
from tests.rig.images import tree_of_redis
from tests.rig.part import Part, free_port

PROJECT = Path(__file__).parents[2]
pytestmark = [pytest.mark.needs("docker"), pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def _images(engine: Docker | None, tmp_path_factory: pytest.TempPathFactory) -> None:
    if engine is not None:
        tree = tmp_path_factory.mktemp("image") / "tree"
        tree_of_redis(tree)
        put(image("redis"), tree)


@pytest.fixture(autouse=True)
def _alone(_images: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def part(tmp_path: Path) -> Iterator[ContainedRedis]:
    part = ContainedRedis(tmp_path).start()
    yield part
    part.stop()


def containers(label: str) -> list[str]:
    return docker("ps", "--all", "--quiet", "--filter", f"label={label}").splitlines()


def ours() -> list[str]:
    return containers(f"{contained.OWNER}={contained.owner()}")


def test_a_kill_takes_what_is_in_memory_and_keeps_port_and_files(part: ContainedRedis) -> None:
    port, pid = part.port, part.pid
    with Client.from_url(part.url) as client:
        client.set("saved", "1")
        client.save()
        client.set("unsaved", "1")
    part.kill()
    assert not part.answers()
    part.start()
    assert (part.port, part.pid != pid) == (port, True)
    with Client.from_url(part.url) as client:
        assert [client.get("saved"), client.get("unsaved")] == [b"1", None]


def test_one_that_is_paused_keeps_connections_and_answers_nobody(part: ContainedRedis) -> None:
    with Client.from_url(part.url, socket_timeout=0.5) as client:
        before = client.client_id()
        part.pause()
        assert not part.answers()
        part.resume()
        assert part.answers()
        assert client.client_id() == before


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_one_that_is_paused_can_be_ended(part: ContainedRedis, how: str) -> None:
    part.pause()
    getattr(part, how)()
    assert not part.answers()
    part.start()


def test_its_port_is_on_the_loopback_alone(part: ContainedRedis) -> None:
    found = docker("port", part.container)
    assert found == f"{part.port}/tcp -> 127.0.0.1:{part.port}"


def test_the_end_removes_it_and_leaves_its_log(tmp_path: Path) -> None:
    part = ContainedRedis(tmp_path).start()
    assert len(ours()) == 1
    part.stop()
    part.stop()
    assert ours() == []
    assert "Ready to accept connections" in part.log.read_text()


def test_one_that_cannot_start_says_why_and_is_removed(part: ContainedRedis, tmp_path: Path) -> None:
    second = ContainedRedis(tmp_path / "second")
    second.port = part.port
    with pytest.raises(AssertionError, match=r"redis did not start: docker start: .*port is already allocated"):
        second.start()
    assert len(ours()) == 1
    third = Ending(tmp_path / "third")
    with pytest.raises(AssertionError, match=r"redis did not start: (?s:.*)FATAL CONFIG FILE ERROR"):
        third.start()
    assert len(ours()) == 1


class Ending(ContainedRedis):
    """One that does not know its own setting."""

    def words(self) -> list[str]:
        return [*super().words(), "--no-such-setting", "1"]


START = """
import sys
from pathlib import Path
from tests.rig.contained import ContainedRedis, owner
ContainedRedis(Path(sys.argv[1])).start()
print(owner(), flush=True)
sys.stdin.read()
"""


def begun(folder: Path) -> "tuple[subprocess.Popen[str], str]":
    """Return a process that has started a part, and the name that its container has of it."""
    process = subprocess.Popen(
        [sys.executable, "-c", START, folder],
        env={**os.environ, "PYTHONPATH": f"{PROJECT}:{PROJECT / 'backend'}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return process, process.stdout.readline().strip()


def test_what_a_process_leaves_goes_with_its_end_or_with_the_next_start(part: ContainedRedis, tmp_path: Path) -> None:
    killed, first = begun(tmp_path / "first")
    with killed:
        killed.send_signal(signal.SIGKILL)
    (left,) = containers(f"{contained.OWNER}={first}")
    assert left in contained.leftovers()
    next_one, second = begun(tmp_path / "second")
    with next_one:
        assert containers(f"{contained.OWNER}={first}") == []
        assert len(containers(f"{contained.OWNER}={second}")) == 1
        next_one.communicate()
    assert next_one.returncode == 0
    assert containers(f"{contained.OWNER}={second}") == []
    assert part.answers()


def test_one_that_is_kept_is_found_again_until_it_would_be_made_otherwise(tmp_path: Path) -> None:
    name = f"runtape-rig-test-{os.getpid()}"
    first = ContainedRedis(tmp_path, name).start()
    try:
        with Client.from_url(first.url) as client:
            client.set("saved", "1")
            client.save()
        first.stop()
        assert docker("ps", "--all", "--quiet", "--filter", f"name={name}") not in ("", *contained.leftovers())
        second = ContainedRedis(tmp_path, name)
        second.port = first.port
        with Client.from_url(second.start().url) as client:
            assert client.get("saved") == b"1"
        third = ContainedRedis(tmp_path, name).start()
        assert not second.answers()
        with Client.from_url(third.url) as client:
            assert client.get("saved") is None
    finally:
        contained.remove([name])


def test_docker_comes_after_what_is_given_and_before_what_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kinds() -> set[str]:
        made: list[Part] = [choice.a_redis(tmp_path), choice.a_mongo(tmp_path)]
        made += [choice.a_kafka(tmp_path), choice.a_registry(tmp_path)]
        return {type(each).__name__ for each in made}

    assert kinds() == {"ContainedRedis", "ContainedMongo", "ContainedKafka", "ContainedRegistry"}
    monkeypatch.setenv(VARIABLES["redis"], "redis://127.0.0.1:9")
    assert kinds() == {"GivenRedis", "ContainedMongo", "ContainedKafka", "ContainedRegistry"}
    assert choice.source("redis") is Source.GIVEN
    monkeypatch.setenv(contained.SWITCH, "0")
    assert kinds() == {"GivenRedis", "Mongo", "Kafka", "Registry"}


def test_docker_elsewhere_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{free_port()}")
    told = contained.missing()
    assert told is not None
    assert told.startswith("Docker is elsewhere, at tcp://127.0.0.1:")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    assert "unix:///nowhere" in (contained.missing() or "")


def test_status_says_what_is_in_a_container() -> None:
    done = subprocess.run([PROJECT / "runtape", "rig", "status"], capture_output=True, text=True, check=False)
    told = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert told.keys() == VARIABLES.keys() - {"kubernetes"}
    for name, line in told.items():
        assert line.endswith(f", in a container of {image(name)}")
