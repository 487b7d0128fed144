"""Docker for the tests of parts in containers."""

import shutil
from collections.abc import Iterator

import pytest

from tests.rig import contained
from tests.rig.docker import Docker


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Docker | None]:
    """A private engine, in whose network the tests are, without any image; None: Docker is on this machine."""
    if contained.missing() is None:
        yield None
        return
    folder = tmp_path_factory.mktemp("docker")
    engine = Docker(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(contained.SWITCH, raising=False)
        for variable, value in engine.environment.items():
            patch.setenv(variable, value)
        engine.start()
        try:
            with engine.inside():
                yield engine
        finally:
            engine.stop()
            shutil.rmtree(folder)
