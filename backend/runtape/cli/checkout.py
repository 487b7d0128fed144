"""What only a checkout of the project can do, and its launcher does."""

from typing import Annotated

from cyclopts import Parameter

from runtape.cli.errors import CliError


def rig(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Start, end or look at the real parts of a cluster on this machine: up, down, status."""
    raise CliError("the rig is part of the project's source; run ./runtape rig in a checkout of it")


def test(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Install what the tests need and run them; arguments are pytest's."""
    raise CliError("the tests are part of the project's source; run ./runtape test in a checkout of it")
