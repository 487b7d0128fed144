"""How the rig gets an image that is not there: from a registry on the loopback, by the engine that the tests have."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig import contained, images
from tests.rig.contained import ContainedRedis, Refused, docker, pull
from tests.rig.docker import Docker, put
from tests.rig.images import ImageRegistry
from tests.rig.store import Unobtainable

pytestmark = [pytest.mark.needs("docker"), pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("image") / "tree"
    images.tree_of_redis(tree)
    return tree


@pytest.fixture
def registry(engine: Docker | None, tmp_path: Path) -> Iterator[ImageRegistry]:
    registry = ImageRegistry(tmp_path / "registry", engine).start()
    yield registry
    registry.stop()


@pytest.fixture
def pushed(registry: ImageRegistry, tree: Path) -> Iterator[str]:
    """The name, by tag and digest, of an image of Redis that the registry has and the engine has not."""
    name = f"{registry.host}/rig/redis:1"
    put(name, tree)
    docker("push", "--quiet", name)
    by_digest = docker("image", "inspect", "--format", "{{index .RepoDigests 0}}", name)
    remove_image(name)
    by_both = f"{name}@{by_digest.partition('@')[2]}"
    yield by_both
    for each in (name, by_both):
        if is_there(each):
            remove_image(each)


def remove_image(name: str) -> None:
    docker("image", "rm", "--force", docker("image", "inspect", "--format", "{{.Id}}", name))


def is_there(name: str) -> bool:
    try:
        return bool(docker("image", "inspect", name))
    except Refused:
        return False


class Named(ContainedRedis):
    """One of an image that another file names than docker-compose.yml."""

    def __init__(self, folder: Path, image: str) -> None:
        super().__init__(folder)
        self._image = image

    @property
    def image(self) -> str:
        return self._image


@pytest.mark.parametrize("by", ["tag", "tag and digest"])
def test_an_image_that_is_not_there_is_pulled_once(
    by: str, pushed: str, registry: ImageRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = pushed if by == "tag and digest" else pushed.partition("@")[0]
    assert not is_there(name)
    assert pull(name) == name
    assert is_there(name)
    assert capsys.readouterr().err == f"pulling {name} ...\n"
    registry.stop()
    assert pull(name) == name
    Named(tmp_path, name).start().stop()
    assert capsys.readouterr().err == ""


def test_a_tag_whose_digest_is_not_the_one_that_is_named_is_not_taken(pushed: str) -> None:
    name, _, digest = pushed.partition("@")
    other = f"{name}@sha256:{'0' * len(digest.removeprefix('sha256:'))}"
    with pytest.raises(Unobtainable, match=r"docker pull: .*(manifest unknown|not found)"):
        pull(other)
    assert not is_there(name)


def test_what_cannot_be_pulled_says_why_and_what_helps(
    pushed: str, registry: ImageRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, without = pushed.partition("@")[0], "; RUNTAPE_RIG_DOCKER=0 does without Docker$"
    with pytest.raises(Unobtainable, match=f"docker pull: .*(manifest unknown|not found).*{without}"):
        Named(tmp_path, f"{name}-0").start()
    registry.pause()
    with monkeypatch.context() as patch:
        patch.setattr(contained, "PULL_S", 1.0)
        with pytest.raises(Unobtainable, match=f"timed out after 1.0 seconds{without}"):
            pull(name)
    registry.kill()
    with pytest.raises(Unobtainable, match=f"docker pull: .*refused.*{without}"):
        pull(name)
    registry.start()
    assert pull(name) == name
