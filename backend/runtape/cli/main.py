"""The commands and what they share: parsing, errors, the exit code."""

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from runtape import __version__
from runtape.cli.errors import CliError
from runtape.cli.exit_codes import CANCELLED, FAILURE, OURS, USAGE
from runtape.cli.terminal import Terminal

COMPLETION = "--install-completion"

app = App(
    name="runtape",
    help="Runs other people's code safely and keeps the tape.",
    version=__version__,
    result_action="return_value",
)
# By import path: a command's module is imported when the command is called, or all of them for the help.
app.command("runtape.cli.run:run")
app.command("runtape.cli.tape:tape")
app.command("runtape.cli.artifacts:artifacts")
app.command("runtape.cli.up:up")
app.command("runtape.cli.doctor:doctor")
app.command("runtape.cli.config:app", name="config", help="Look at the settings.")
app.command("runtape.cli.bench:bench")
app.command("runtape.cli.prove:prove")
app.command("runtape.cli.worker:worker")
app.command("runtape.cli.topics:app", name="topics", help="Make and check Kafka's topics.")
app.command("runtape.cli.checkout:rig")
app.command("runtape.cli.checkout:test")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.  Errors are told on standard error, in one line where possible."""
    _hold_standard_streams()
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    command = tokens[0] if tokens else ""
    if not command or command.startswith("-"):
        # Only for the help of the whole and for the completion: a command imports itself alone.
        if COMPLETION not in app:
            app.register_install_completion_command(COMPLETION, help="Install the completion for your shell.")
        app.resolved_commands()
    try:
        result = app(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        told = str(error).removesuffix(".")
        Terminal().fail(f"{told}; see `runtape {command} --help`" if command in app else told)
        return OURS if command == "run" else USAGE
    except CliError as error:
        Terminal().fail(str(error))
        return OURS if command == "run" else FAILURE
    except KeyboardInterrupt:
        return CANCELLED
    return result if isinstance(result, int) else 0


def _hold_standard_streams() -> None:
    """Put /dev/null where a standard stream is closed, lest a file or socket opened later gets its number."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
