"""What the tests of dying processes share."""

import logging
from collections.abc import Iterator

import pytest
import structlog

from runtape.adapters.embedded import database


@pytest.fixture(autouse=True)
def small_wal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Growing the log in advance is for speed; it would cost each of hundreds of openings 0.1 s."""
    monkeypatch.setattr(database, "WAL_BYTES", 1 << 16)


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """What a dying service logs is thousands of traces of deaths that were meant."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()
