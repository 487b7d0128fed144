"""The program of pods that are no program's: it reaches whoever says the word, and nobody else."""

import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtape.adapters.kubernetes.building import build
from tests.rig.part import free_port

pytestmark = pytest.mark.needs("sandbox")


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runtape")
    build(folder)
    return folder / "probe"


def connect(probe: Path, port: int, *addresses: str, seconds: int = 1) -> int:
    command = [probe, "connect", str(seconds), str(port), *addresses]
    return subprocess.run(command, timeout=30, check=False).returncode


@pytest.fixture
def listening(probe: Path) -> Iterator[int]:
    """The port of a probe that listens."""
    port = free_port()
    with subprocess.Popen([probe, "listen", str(port)]) as process:
        while connect(probe, port, "127.0.0.1") != 65:
            assert process.poll() is None
        yield port
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_whom_it_has_reached_is_in_its_exit_code(probe: Path, listening: int) -> None:
    assert connect(probe, listening, "127.0.0.1", "192.0.2.1", "127.0.0.2") == 64 + 1 + 4
    assert connect(probe, listening, "192.0.2.1", "127.0.0.1") == 64 + 2


def test_who_comes_late_is_reached_as_well(probe: Path) -> None:
    port = free_port()
    with (
        subprocess.Popen([probe, "connect", "20", str(port), "127.0.0.1"]) as connecting,
        subprocess.Popen([probe, "listen", str(port)]) as listening,
    ):
        assert connecting.wait(30) == 65
        listening.kill()


def test_nobody_is_reached_where_nobody_listens(probe: Path) -> None:
    assert connect(probe, free_port(), "127.0.0.1") == 64


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 503 Service Unavailable\r\n"])
def test_a_connection_without_the_word_is_none(probe: Path, said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            try:
                while True:
                    caller, _ = server.accept()
                    caller.sendall(said)
                    caller.close()
            except OSError:
                return  # the test is over

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            assert connect(probe, server.getsockname()[1], "127.0.0.1") == 64
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("arguments", [[], ["connect", "1", "9"], ["connect", "1", "9", "localhost"], ["listen"]])
def test_what_it_does_not_understand_is_an_error(probe: Path, arguments: list[str]) -> None:
    assert subprocess.run([probe, *arguments], capture_output=True, timeout=10, check=False).returncode == 2


def test_it_holds_until_it_is_ended(probe: Path) -> None:
    with subprocess.Popen([probe, "hold"]) as holding:
        while not catches(holding.pid, signal.SIGTERM):
            assert holding.poll() is None
        holding.send_signal(signal.SIGTERM)
        assert holding.wait(10) == 0


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has said what it does at a signal."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) & 1 << (number - 1))
