"""The hand on the client process."""

import subprocess
import sys
from typing import Self

import msgspec

from runtape.bench.client import Load, Loaded
from runtape.bench.errors import BenchError, WrongAnswer
from runtape.bench.procfs import CpuTime, cpu_time
from runtape.bench.server import BenchServer


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One load on one server: the latencies, and the CPU time that the server's threads took for it."""

    latencies_s: list[float]
    elapsed_s: float
    cpu: CpuTime

    @property
    def per_s(self) -> float:
        """Runs per second."""
        return len(self.latencies_s) / self.elapsed_s

    @property
    def cpu_ms_per_run(self) -> float:
        """CPU of the server's own threads for one run."""
        return self.cpu.total_ns / len(self.latencies_s) / 1e6


class LoadGenerator:
    """A client process; enter it to start, leave it to end it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "runtape.bench.client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()

    def run(self, server: BenchServer, clients: int, runs: int) -> Sample:
        """Send `runs` from `clients` at once to `server`.  Raises: WrongAnswer; BenchError."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        before = cpu_time(server.pid)
        load = Load(url=server.url, key=server.key, clients=clients, runs=runs)
        process.stdin.write(msgspec.json.encode(load) + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise BenchError("the client process died")
        loaded = msgspec.json.decode(line, type=Loaded)
        if loaded.wrong is not None:
            raise WrongAnswer(loaded.wrong)
        return Sample(latencies_s=loaded.latencies_s, elapsed_s=loaded.elapsed_s, cpu=cpu_time(server.pid) - before)
