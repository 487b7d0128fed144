"""What the tests of dying services share."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import structlog

from tests.e2e.server import Server
from tests.process.trial import Trial

MEMORY = Path("/dev/shm")
EIGHT_PLACES: dict[str, Any] = {
    "admission__running": 8,
    "rate_limits__executions_per_minute": 100_000,
    "rate_limits__calls_per_minute": 100_000,
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder, in memory where that is possible: a killed process loses nothing that it had written."""
    with TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def silence() -> Iterator[None]:
    """What a dying service logs is thousands of traces of deaths that were meant."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files of every process that the test starts."""
    path = tmp_path / "temporary"
    path.mkdir()
    monkeypatch.setenv("TMPDIR", str(path))
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that was not started yet, with eight places and no rate limit to speak of."""
    server = Server(tmp_path / "data", **EIGHT_PLACES)
    yield server
    server.close()


@pytest.fixture
def trial(server: Server, tmp_path: Path, temporary: Path) -> Trial:
    """The same, started and under trial."""
    return Trial(server, tmp_path / "histories", temporary)
