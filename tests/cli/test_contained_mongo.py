"""MongoDB as Docker's container: of its own image where Docker is here, else of one with its engine.

That engine has no replica sets: that one is begun, and found again after a kill, is tried where Docker is.
"""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import PyMongoError, ServerSelectionTimeoutError

from runtape.adapters.mongo.connection import concern_for
from tests.rig import contained, images
from tests.rig.contained import ContainedMongo, docker
from tests.rig.docker import Docker, put
from tests.rig.part import free_port

ENGINE_IMAGE = "runtape-rig/mongo"
pytestmark = [pytest.mark.needs("docker", "mongo"), pytest.mark.timeout(120)]


class OfTheEngine(ContainedMongo):
    """One of the image that was made here."""

    @property
    def image(self) -> str:
        return ENGINE_IMAGE


@pytest.fixture(scope="module")
def kind(engine: Docker | None, tmp_path_factory: pytest.TempPathFactory) -> type[ContainedMongo]:
    if engine is None:
        return ContainedMongo
    tree = tmp_path_factory.mktemp("image") / "tree"
    images.tree_of_mongo(tree)
    put(ENGINE_IMAGE, tree, images.MONGO_CHANGES)
    return OfTheEngine


@pytest.fixture
def part(kind: type[ContainedMongo], tmp_path: Path) -> Iterator[ContainedMongo]:
    part = kind(tmp_path).start()
    yield part
    part.stop()


def client_of(part: ContainedMongo) -> "MongoClient[dict[str, Any]]":
    return MongoClient(part.url, retryWrites=False, serverSelectionTimeoutMS=5000)


def ours() -> list[str]:
    label = f"label={contained.OWNER}={contained.owner()}"
    return docker("ps", "--all", "--quiet", "--filter", label).splitlines()


def test_a_kill_amid_writes_loses_none_that_was_acknowledged(part: ContainedMongo) -> None:
    port, pid = part.port, part.pid
    acknowledged: list[int] = []
    enough = threading.Event()

    def write() -> None:
        with client_of(part) as client:
            concern = concern_for(client.admin.command("hello"))
            things = client["kill"].get_collection("things", write_concern=concern)
            try:
                while True:
                    things.insert_one({"_id": len(acknowledged)})
                    acknowledged.append(len(acknowledged))
                    if len(acknowledged) == 100:
                        enough.set()
            except PyMongoError:
                return

    writer = threading.Thread(target=write)
    writer.start()
    assert enough.wait(60)
    part.kill()
    writer.join()
    assert not part.answers()
    part.start()
    assert (part.port, part.pid != pid) == (port, True)
    with client_of(part) as client:
        found = [each["_id"] for each in client["kill"]["things"].find(sort=[("_id", 1)])]
    # The last may have been written without its writer having heard of it.
    assert found in (acknowledged, [*acknowledged, len(acknowledged)])


def test_one_that_is_paused_answers_nobody_until_it_goes_on_and_then_all(part: ContainedMongo) -> None:
    with ThreadPoolExecutor(1) as another, client_of(part) as client:
        client.admin.command("ping")
        part.pause()
        waiting = another.submit(client["pause"]["things"].insert_one, {"_id": 1})
        assert not part.answers()
        assert not waiting.done()
        part.resume()
        assert waiting.result(60).acknowledged
        assert part.answers()


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_one_that_is_paused_can_be_ended(part: ContainedMongo, how: str) -> None:
    part.pause()
    getattr(part, how)()
    assert not part.answers()
    part.start()


def test_the_end_removes_it_with_its_volumes_and_leaves_its_log(kind: type[ContainedMongo], tmp_path: Path) -> None:
    part = kind(tmp_path).start()
    assert len(ours()) == 1
    mounted = docker("inspect", "--format", "{{range .Mounts}}{{.Name}} {{end}}", part.container).split()
    assert set(mounted) & volumes() == set(mounted) != set()
    part.stop()
    part.stop()
    assert ours() == []
    assert not set(mounted) & volumes()
    assert "Waiting for connections" in part.log.read_text()


def volumes() -> set[str]:
    return set(docker("volume", "ls", "--quiet").splitlines())


def test_one_that_is_told_what_it_does_not_know_says_so_and_is_removed(
    kind: type[ContainedMongo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = kind(tmp_path)
    words = [*part.words(), "--noSuchSetting"]
    monkeypatch.setattr(part, "words", lambda: words)
    with pytest.raises(AssertionError, match=r"mongo did not start: (?s:.*)parsing command line: .*noSuchSetting"):
        part.start()
    assert ours() == []


def test_one_that_no_client_can_speak_with_is_removed(
    kind: type[ContainedMongo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kind, "url", f"mongodb://127.0.0.1:{free_port()}/?serverSelectionTimeoutMS=100")
    with pytest.raises(ServerSelectionTimeoutError):
        kind(tmp_path).start()
    assert ours() == []


def test_one_that_is_kept_has_its_documents_when_it_is_found_again(kind: type[ContainedMongo], tmp_path: Path) -> None:
    name = f"runtape-rig-test-mongo-{os.getpid()}"
    first = kind(tmp_path, name).start()
    try:
        with client_of(first) as client:
            client["kept"]["things"].insert_one({"_id": 1})
        first.stop()
        second = kind(tmp_path, name)
        second.port = first.port
        with client_of(second.start()) as client:
            assert client["kept"]["things"].count_documents({}) == 1
        second.stop()
    finally:
        contained.remove([name])
