"""What only a checkout of the project can do, and its launcher does."""

from typing import Annotated

from cyclopts import Parameter

from runtape.cli.errors import CliError


def test(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Install what the tests need and run them; arguments are pytest's."""
    raise CliError("the tests are part of the project's source; run ./runtape test in a checkout of it")
