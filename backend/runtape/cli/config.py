"""`runtape config`: what the settings are and where each comes from."""

import json
from typing import Annotated

from cyclopts import App, Parameter

from runtape.cli.terminal import print_text

app = App(name="config")
MASK = "********"


@app.command
def show(*, as_json: Annotated[bool, Parameter(name="--json", negative=(), show_default=False)] = False) -> int:
    """Print the effective settings with their source; secrets are masked.

    Args:
        as_json: Print a JSON list of objects with name, value, source, description and secret.
    """
    from runtape.runtime.settings import describe

    rows = [
        {
            "name": row.name,
            "value": MASK if row.secret and row.value not in (None, "") else row.value,
            "source": row.source,
            "description": row.description,
            "secret": row.secret,
        }
        for row in describe()
    ]
    if as_json:
        print_text(json.dumps(rows, default=str))
        return 0
    cells = [(row["name"], "" if row["value"] is None else str(row["value"]), row["source"]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for name, value, source in cells:
        print_text(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {source}")
    return 0
