"""What `runtape run` exits with, so that a shell sees the script's own end."""

from collections.abc import Mapping
from typing import Any

OURS = 125
"""The run could not be had or told: a refusal, a lost server, a failing sandbox (as `docker run` and `timeout`)."""
USAGE = 2
FAILURE = 1
CANCELLED = 130
STDOUT_CLOSED = 141
"""128 + SIGPIPE: the reader of our output went away, as for any program in a pipeline."""

_BY_KIND = {
    "time_limit": 124,
    "wall_limit": 124,
    "memory_limit": 137,
    "output_limit": 153,
    "cancelled": CANCELLED,
    "sandbox_error": OURS,
}


def exit_code(outcome: Mapping[str, Any] | None) -> int:
    """Return the exit code for an outcome: the script's own, 128 + n for signal n, else the table's."""
    if not outcome:
        return OURS
    kind = outcome.get("kind")
    if kind == "exited":
        code = outcome.get("exit_code")
        return code & 0xFF if isinstance(code, int) else OURS
    if kind == "signalled":
        signal = outcome.get("signal")
        return 128 + signal if isinstance(signal, int) else OURS
    return _BY_KIND.get(str(kind), OURS)
