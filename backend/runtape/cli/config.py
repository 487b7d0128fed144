"""`runtape config`: what the settings are and where each comes from."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from runtape.cli.errors import CliError
from runtape.cli.server import default_data
from runtape.cli.terminal import print_text

app = App(name="config", help="Look at the settings.")


@app.command
def show(
    *,
    data: Path | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative=(), show_default=False)] = False,
) -> int:
    """Print the effective settings with their source; secrets are masked.

    Args:
        data: The folder of the server on this machine; also RUNTAPE_DATA.
        as_json: Print a JSON list of objects with name, value, source, description and secret.
    """
    from runtape.runtime.settings import InvalidSettings, describe

    try:
        rows = describe((data or default_data()).expanduser().absolute())
    except InvalidSettings as error:
        raise CliError(str(error)) from None
    if as_json:
        print_text(json.dumps([asdict(row) for row in rows], default=str))
        return 0
    cells = [(row.name, str(row.value), row.source) for row in rows]
    names, values = (max(len(row[column]) for row in cells) for column in (0, 1))
    for name, value, source in cells:
        print_text(f"{name:<{names}}  {value:<{values}}  {source}")
    return 0
