"""Infrastructure failure, with its policy as data.

InfrastructureError
├── Transient            try again, after `retry_after_s` when it is given
│   ├── Unavailable      a part does not answer anybody; wait until it does
│   └── VersionConflict  somebody else changed the document; load it again
├── Permanent            trying again cannot help; stop and tell a person
│   └── SandboxUnavailable  this host cannot isolate a program
└── Poison               this one message cannot be handled; set it aside and go on

Adapters raise these and nothing of their drivers.  Handlers do not retry by themselves: the loop that called
them reads the class.
"""


class InfrastructureError(Exception):
    """A part that the service depends on failed."""


class Transient(InfrastructureError):
    """The same call may succeed later."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(Transient):
    """A part cannot be reached: every call of it fails alike, whatever it is about."""


class VersionConflict(Transient):
    """The document has another version than the change expected."""


class Permanent(InfrastructureError):
    """The same call will fail again."""


class SandboxUnavailable(Permanent):
    """Isolation cannot be had here; the message names what is missing and the fix."""


class Poison(InfrastructureError):
    """The message itself cannot be handled by anybody."""
