"""`runtape bench`: hand over to the benchmark, which reads its own options."""

from typing import Annotated

from cyclopts import Parameter


def bench(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]) -> int:
    """Measure the service on this machine; `runtape bench -- --help` lists the benchmark's own options."""
    from runtape.bench.main import main

    return main(list(arguments)) or 0
