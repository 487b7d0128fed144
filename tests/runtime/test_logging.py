"""Where log lines go, and what happens when they cannot."""

import io
import logging
import sys
from collections.abc import Iterator

import pytest
import structlog

from runtape.runtime.logging import configure_logging


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    handlers, level = logging.getLogger().handlers[:], logging.getLogger().level
    yield
    structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)


def test_line_that_cannot_be_written_fails_nobody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = io.TextIOWrapper(io.BufferedWriter(raw := io.FileIO("/dev/full", "w")), line_buffering=True)
    monkeypatch.setattr(sys, "stderr", full)
    configure_logging("info")
    structlog.get_logger("test").warning("store.full")
    logging.getLogger("test").warning("the standard library's too")
    monkeypatch.undo()
    raw.close()  # before the buffer, which still holds the lines
    assert capsys.readouterr().err == ""
