"""`runtape bench`: parse the options, measure, report."""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from runtape.bench import measure, plan, report, sandbox
from runtape.bench.bare import Bare
from runtape.bench.endurance import main as endurance
from runtape.bench.errors import BenchError
from runtape.bench.load import LoadGenerator
from runtape.bench.procfs import load_average, machine
from runtape.bench.soak import main as soak

WRONG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0 when it was measured, whatever the figures, and 1 when something was wrong."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["sandbox"]:
        return sandbox.main(arguments[1:])
    if arguments[:1] == ["soak"]:
        return soak.main(arguments[1:])
    if arguments[:1] == ["endurance"]:
        return endurance.main(arguments[1:])
    options = _parser().parse_args(arguments)
    chosen = plan.make(
        null=options.null_sandbox, quick=options.quick, runs=options.runs, slow_fsync_ms=options.slow_fsync
    )
    # Ended by SIGTERM as by Ctrl-C: on the way out the servers are stopped and the folder is removed.
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    folder = Path(tempfile.mkdtemp(prefix="runtape-bench-"))
    try:
        found = _measure(chosen, folder)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return WRONG
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)
    if options.json:
        print(json.dumps(found))
    else:
        print(report.table(found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="runtape bench",
        description="Measure the service on this machine beside the bare interpreter, with servers of its own.",
        epilog="`runtape bench sandbox` measures the sandbox alone, `runtape bench soak` runs good and hostile"
        " programs for long, `runtape bench endurance` sends many runs through a server; they have options of their"
        " own.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument(
        "--null-sandbox", action="store_true", help="simulated pods in the sandbox's place: the control plane alone"
    )
    parser.add_argument(
        "--slow-fsync", type=_pause, metavar="MS", help="measure a second server whose fsync takes MS ms longer"
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, in less than 30 s")
    parser.add_argument("--runs", type=_count, metavar="N", help="runs one after another, over all rounds")
    return parser


def _pause(text: str) -> float:
    if not 0 < (pause_ms := float(text)) <= 1000:
        raise argparse.ArgumentTypeError("a pause has more than 0 and at most 1000 ms")
    return pause_ms


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least one run")
    return count


def _measure(chosen: plan.Plan, folder: Path) -> dict[str, object]:
    """Carry out the plan with everything in `folder`.  Raises: BenchError."""
    begun_s = time.monotonic()

    def progress(said: str) -> None:
        print(f"[{time.monotonic() - begun_s:5.1f} s] {said}", file=sys.stderr, flush=True)

    facts = machine(folder)
    load_before = load_average()
    bare = Bare.newest()
    with LoadGenerator() as generator:
        figures = measure.end_to_end(chosen, folder, bare, generator, progress)
        figures["memory"] = measure.memory(chosen, folder, generator, progress)
        figures["stored"] = measure.stored(chosen, folder, generator, progress)
    return {
        "sandbox": "null" if chosen.null else "local",
        "interpreter": {"path": bare.binary, "version": bare.version},
        "slow_fsync_ms": chosen.slow_fsync_ms,
        "rounds": chosen.rounds,
        "machine": {**facts, "load_before": load_before, "load_after": load_average()},
        **figures,
        "targets": report.targets(figures, null=chosen.null),
        "took_s": round(time.monotonic() - begun_s, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
