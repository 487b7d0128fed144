"""What a box has told is heard, however it ended."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from runtape.adapters.sandbox import LocalSandbox, pod
from runtape.adapters.sandbox.armed_box import ArmedBox
from runtape.adapters.sandbox.keeper import wire
from runtape.domain.limits import Limits
from runtape.domain.outcome import OutcomeKind
from tests.sandbox.conftest import is_made
from tests.sandbox.runs import descendants, end_of, run, start

BOX_DEPTH = 3
"""Pid namespaces that an interpreter in a box is in: the host's, the nursery's and the box's."""
SHAPE = wire.Shape("", 1 << 20, 64)


@pytest.fixture
def ends() -> Iterator[tuple[ArmedBox, socket.socket]]:
    """A box as the service holds it, and the end of its channel that pid 1 has."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stdout, stderr = (os.open("/dev/null", os.O_RDONLY) for _ in range(2))
    box = ArmedBox(1, SHAPE, [ours.detach(), stdout, stderr, os.pidfd_open(os.getpid())])
    yield box, theirs
    theirs.close()
    box.close()


def test_a_box_that_was_killed_before_it_read_its_order_is_heard(ends: tuple[ArmedBox, socket.socket]) -> None:
    box, theirs = ends
    box.channel.send(b"an order that nobody reads")
    theirs.send(b"f" + bytes(7) + b"why it was not started")
    theirs.close()  # the kernel tells of the order first, as ECONNRESET, and then of what was sent
    assert box.hear() == "why it was not started"
    assert box.receive() == b""


def test_a_box_that_says_nothing_has_not_told_yet(ends: tuple[ArmedBox, socket.socket]) -> None:
    box, theirs = ends
    assert box.receive() is None
    box.channel.send(b"an order that nobody reads")
    theirs.close()
    assert box.receive() == b""
    assert box.hear() is None


def interpreters_in_boxes() -> list[int]:
    """Return the interpreters that wait for an order: their parent is the first process of a box."""
    found: list[int] = []
    for pid in descendants(os.getpid()):
        with suppress(OSError):
            namespaces = Path(f"/proc/{pid}/status").read_text().partition("NSpid:")[2].partition("\n")[0].split()
            if len(namespaces) == BOX_DEPTH and b"zygote.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


@pytest.mark.needs("sandbox")
async def test_a_run_ends_that_is_cancelled_before_its_program_has_read_the_order(tmp_path: Path) -> None:
    async with LocalSandbox(tmp_path) as sandbox:
        await is_made(sandbox, "forked")
        for pid in interpreters_in_boxes():
            os.kill(pid, signal.SIGSTOP)
        with capture_logs() as logs:
            key = await start(sandbox, "print(1)")
            await sandbox.kill(key)
            time.sleep(0.5)  # noqa: ASYNC251  # the loop is busy: by its next turn the box has told its end and is gone
            assert (await asyncio.wait_for(end_of(sandbox, key), 10)).outcome.kind is OutcomeKind.CANCELLED
            await asyncio.wait_for(sandbox.remove(key), 10)
    assert "sandbox.end_not_told" not in [each["event"] for each in logs], "its end was heard, not found out"


@pytest.mark.needs("sandbox")
async def test_a_run_ends_whose_end_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ArmedBox, "receive", lambda _: b"")
    monkeypatch.setattr(pod, "_TOLD_TIMEOUT_S", 0.3)
    async with LocalSandbox(tmp_path) as sandbox:
        with capture_logs() as logs:
            found = await run(sandbox, "print(1)", limits=Limits(wall_s=1))
    assert (found.stdout, found.outcome.kind) == (b"1\n", OutcomeKind.WALL_LIMIT)
    assert [each["event"] for each in logs if each["log_level"] == "error"] == ["sandbox.end_not_told"]
