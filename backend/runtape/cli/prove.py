"""`runtape prove`: hostile programs against this installation's sandbox."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from runtape.cli.errors import CliError
from runtape.cli.exit_codes import FAILURE
from runtape.cli.server import default_data
from runtape.cli.terminal import print_text


def prove(
    *,
    target: Annotated[Literal["sandbox", "kubernetes"], Parameter(name="--target")] = "sandbox",
    only: Annotated[tuple[str, ...], Parameter(name="--only", negative=(), show_default=False)] = (),
    data: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=(), show_default=False)] = False,
) -> int:
    """Run hostile programs where this installation runs code and tell what held; exit with 0 when nothing failed.

    Each program is run beside a good one, and once more where its success is certain, to show that a leak would be
    seen.  Takes about half a minute, in pods some; docs/security.md says what the cases stand for.

    Args:
        target: Its sandbox, or pods of the cluster that the settings under kubernetes name.
        only: A case by its id, as A28, or a family: resource, escape, supervisor, network, artifacts, and pod where
            those are.  May be repeated.
        data: The folder of the server on this machine, whose settings count; also RUNTAPE_DATA.
        as_json: Print one JSON object: {"held": bool, "target", "host", "counts", "cases", "took_s"}.
    """
    from runtape.prove.errors import ProveError
    from runtape.prove.main import prove as run_battery
    from runtape.prove.table import row, summary
    from runtape.prove.target import Target
    from runtape.prove.verdict import CaseResult
    from runtape.runtime.logging import configure_logging
    from runtape.runtime.settings import InvalidSettings, Settings

    coloured = os.isatty(1) and not os.environ.get("NO_COLOR")

    def told(case: CaseResult, number: int, count: int) -> None:
        if as_json:
            print(f"[{number}/{count}] {case.id} {case.verdict}", file=sys.stderr, flush=True)
        else:
            print_text(row(case, coloured=coloured))

    try:
        settings = Settings.read(data=(data or default_data()).expanduser().absolute())
        configure_logging(settings.log_level)
        report = asyncio.run(run_battery(Target(target), settings, only, told))
    except (InvalidSettings, ProveError) as error:
        raise CliError(str(error)) from error
    print_text(json.dumps(report.as_json()) if as_json else summary(report))
    return 0 if report.held else FAILURE
