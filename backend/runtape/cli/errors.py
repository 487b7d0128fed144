"""What can stop a command, as messages for a person.

CliError
├── Unreachable   no connection, or it broke; trying again may help
├── Refused       the server answered with a problem (RFC 9457)
└── Interrupted   a signal arrived before anything was submitted
"""


class CliError(Exception):
    """A command cannot go on; the message names the thing and, where there is one, the fix."""


class Unreachable(CliError):
    """The server cannot be reached, or the connection broke."""


class Refused(CliError):
    """The server refuses the request; reads `detail (code, field)`."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        code: str | None = None,
        field: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        marks = ", ".join(mark for mark in (code, field) if mark)
        message = f"{detail} ({marks})" if marks else detail
        if retry_after_s is not None and "try again" not in message:
            message += f"; try again in {retry_after_s:g} s"
        elif code == "unauthenticated" or (code is None and status == 401):
            message += "; give a key with --api-key or RUNTAPE_API_KEY"
        super().__init__(message)
        self.status = status
        self.code = code
        self.field = field


class Interrupted(CliError):
    """A signal asked the command to stop before the server had heard of it."""

    def __init__(self) -> None:
        super().__init__("cancelled")
