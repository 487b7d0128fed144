"""The yardstick: the interpreter that the sandbox runs, without a sandbox or a service.

``python3 -I -S -c 'print(1)'`` by posix_spawn and wait, standard output to /dev/null: the cheapest way in which a
program can start one, and what every figure is divided by.
"""

import os
import subprocess
import threading
import time

from runtape.adapters.sandbox.runtimes import detect
from runtape.bench.errors import BenchError, WrongAnswer

_ARGUMENTS = ("-I", "-S", "-c", "print(1)")


class Bare:
    """Runs the interpreter at `binary`."""

    def __init__(self, binary: str, version: str) -> None:
        self.binary = binary
        self.version = version
        self._command = [binary, *_ARGUMENTS]
        self._to_null = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]

    @classmethod
    def newest(cls) -> "Bare":
        """Return the interpreter that the sandbox takes for "python".  Raises: BenchError."""
        installed, _ = detect()
        for found in installed:
            if found.runtime.lang == "python":
                bare = cls(found.binary, found.runtime.version)
                bare.check()
                return bare
        raise BenchError("no Python that the sandbox could run; install python3")

    def check(self) -> None:
        """See that it prints what is expected.  Raises: WrongAnswer."""
        answer = subprocess.run(self._command, capture_output=True, check=False)
        if answer.returncode != 0 or answer.stdout != b"1\n":
            raise WrongAnswer(f"{self.binary} printed {answer.stdout!r} and exited with {answer.returncode}")

    def sequence(self, runs: int) -> list[float]:
        """Run it `runs` times, one after another, and return the seconds of each."""
        return [self._run() for _ in range(runs)]

    def throughput(self, clients: int, runs: int) -> float:
        """Run it `runs` times from `clients` threads and return runs per second."""
        turns = iter(range(runs))
        failures: list[Exception] = []

        def go_on() -> None:
            try:
                for _ in turns:
                    self._run()
            except WrongAnswer as error:
                failures.append(error)

        threads = [threading.Thread(target=go_on) for _ in range(clients)]
        begun_s = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return runs / (time.perf_counter() - begun_s)

    def _run(self) -> float:
        begun_s = time.perf_counter()
        pid = os.posix_spawn(self.binary, self._command, {}, file_actions=self._to_null)
        _, status = os.waitpid(pid, 0)
        if status != 0:
            raise WrongAnswer(f"{' '.join(self._command)} ended with {os.waitstatus_to_exitcode(status)}")
        return time.perf_counter() - begun_s
