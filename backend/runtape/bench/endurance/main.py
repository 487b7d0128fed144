"""`runtape bench endurance`: options, the order of things, and the exit code."""

import argparse
import json
import math
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from runtape.bench.endurance.growth import TENTHS, Holding, Tenth, grown, look, slowdown
from runtape.bench.errors import BenchError, WrongAnswer
from runtape.bench.figures import rounded
from runtape.bench.load import LoadGenerator
from runtape.bench.procfs import load_average, machine
from runtape.bench.server import BenchServer
from runtape.runtime.providers.embedded import DATABASE_FILE

_BATCH: Final = 200
"""Runs between two looks at what is held, at most."""
_YOUNG_RUNS: Final = 2
"""Runs of each client on the young server behind each batch."""
_WARM_UP_RUNS: Final = 50
_REST_S: Final = 10.0
"""How long the server has, when all runs have ended, to note everything as read."""
_PAUSE_S: Final = 0.2
_TOLD_EVERY_S: Final = 10.0


@dataclass(slots=True)
class Endurance:
    """What was measured, whole or as far as it came."""

    tenths: list[Tenth] = field(default_factory=list[Tenth])
    findings: list[str] = field(default_factory=list[str])
    rest: Holding | None = None
    interrupted: bool = False

    @property
    def runs(self) -> int:
        """How many runs there were."""
        return sum(tenth.ours.runs for tenth in self.tenths)


def main(arguments: Sequence[str]) -> int:
    """Measure and report; return 0 when nothing was found, 1 when something was or it could not be done.

    Interrupted, it reports what it has measured so far.
    """
    parser = argparse.ArgumentParser(
        prog="runtape bench endurance",
        description="Send many runs through a server of its own; look for what grows and whether it becomes slower.",
    )
    parser.add_argument("--runs", type=_count, default=100_000, metavar="N", help="runs in all (100000)")
    parser.add_argument("--clients", type=_count, default=16, metavar="C", help="clients at once (16)")
    parser.add_argument("--sandbox", action="store_true", help="the real sandbox in place of simulated pods")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args(arguments)
    begun_s = time.monotonic()

    def told(said: str) -> None:
        print(f"[{time.monotonic() - begun_s:7.1f} s] {said}", file=sys.stderr, flush=True)

    folder = Path(tempfile.mkdtemp(prefix="runtape-bench-"))
    before = signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    try:
        facts, load_before = machine(folder), load_average()
        found = _measure(folder / "data", options.runs, options.clients, null=not options.sandbox, told=told)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)
    report: dict[str, Any] = {
        "runs": found.runs,
        "asked": options.runs,
        "clients": options.clients,
        "sandbox": "local" if options.sandbox else "null",
        "machine": {**facts, "load_before": load_before, "load_after": load_average()},
        "tenths": [tenth.figures() for tenth in found.tenths],
        "last_to_first": slowdown(found.tenths[0], found.tenths[-1]) if found.tenths else {},
        "findings": found.findings,
        "interrupted": found.interrupted,
        "took_s": rounded(time.monotonic() - begun_s),
    }
    print(json.dumps(report) if options.json else page(report))
    return 1 if found.findings else 0


def _measure(data: Path, runs: int, clients: int, *, null: bool, told: Callable[[str], None]) -> Endurance:
    """Raises: BenchError, when nothing could be measured."""
    found = Endurance()
    young_data = data.with_name("young")
    with (
        LoadGenerator() as generator,
        BenchServer(data, null=null) as server,
        BenchServer(young_data, null=null) as young,
    ):
        database = data / DATABASE_FILE
        for each in (server, young):
            generator.run(each, clients, max(_WARM_UP_RUNS, clients))
        told_s = time.monotonic()
        try:
            for number in range(TENTHS):
                left = runs * (number + 1) // TENTHS - runs * number // TENTHS
                tenth = Tenth()
                while left:
                    batch = min(left, _BATCH)
                    left -= batch
                    ours = generator.run(server, min(clients, batch), batch)
                    beside = generator.run(young, min(clients, batch), _YOUNG_RUNS * min(clients, batch))
                    tenth.add(ours, beside, look(server.pid, database))
                    if tenth.ours.runs == batch:
                        found.tenths.append(tenth)
                    if time.monotonic() - told_s > _TOLD_EVERY_S or not left:
                        told_s = time.monotonic()
                        told(_progress(found, runs))
            found.rest = _at_rest(server.pid, database)
            if found.rest.unfinished or found.rest.lag_messages:
                found.findings.append(
                    f"{_REST_S:g} s after the last run {found.rest.unfinished} executions have not ended and"
                    f" {found.rest.lag_messages} messages were not noted as read"
                )
        except KeyboardInterrupt:
            found.interrupted = True
            told("interrupted; what was measured so far:")
        except WrongAnswer as wrong:
            found.findings.append(f"after {found.runs} runs an answer was wrong: {wrong}")
    found.findings += grown(found.tenths)
    return found


def _progress(found: Endurance, runs: int) -> str:
    tenth = found.tenths[-1]
    holding = tenth.seen[-1]
    return (
        f"{found.runs} of {runs} runs, {tenth.ours.runs / tenth.ours.elapsed_s:.0f} a second,"
        f" p50 {tenth.ours.p50_s * 1e3:.1f} ms ({tenth.ours.p50_s / tenth.young.p50_s:.2f} times a young server's);"
        f" {holding.memory_bytes / 2**20:.1f} MiB,"
        f" {holding.open_files} files, {holding.lag_messages} messages behind"
    )


def _at_rest(pid: int, database: Path) -> Holding:
    """Return what is held once everything has been read, or when that takes too long."""
    deadline_s = time.monotonic() + _REST_S
    holding = look(pid, database)
    while (holding.unfinished or holding.lag_messages) and time.monotonic() < deadline_s:
        time.sleep(_PAUSE_S)
        holding = look(pid, database)
    return holding


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least one")
    return count


def page(report: dict[str, Any]) -> str:
    """Return the report as text."""
    facts = report["machine"]
    lines = [
        f"{facts['cores']} cores, {facts['processor']}, {facts['filesystem']}; load {facts['load_before']} before,"
        f" {facts['load_after']} after",
        f"{report['runs']} of {report['asked']} runs from {report['clients']} clients in {report['took_s']} s,"
        f" {report['sandbox']} sandbox",
        "",
    ]
    columns = list(report["tenths"][0]) if report["tenths"] else []
    widths = [max(len(name), 8) for name in columns]
    lines.append("  ".join(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True)))
    for tenth in report["tenths"]:
        values = (_short(tenth[name]) for name in columns)
        lines.append("  ".join(f"{value:>{width}}" for value, width in zip(values, widths, strict=True)))
    ratios = ", ".join(f"{name} {ratio}x" for name, ratio in report["last_to_first"].items())
    lines += ["", f"the last tenth beside the first, each as a multiple of a young server: {ratios}"]
    lines += [f"FOUND: {what}" for what in report["findings"]] or ["nothing grows"]
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:g}" if not math.isnan(value) else "-"
