"""Refusals: what a caller asked for and may not have.

DomainError
├── Invalid                      the request is not well-formed
│   ├── RuntimeUnknown           runtime_unknown
│   ├── VersionUnknown           version_unknown
│   ├── LimitOutOfRange          limit_out_of_range
│   ├── ScriptTooLarge           script_too_large
│   ├── InvalidPath              invalid_path
│   ├── RequirementInvalid       requirement_invalid
│   ├── PackagesDisabled         packages_disabled
│   └── ValidationFailed         validation_failed
├── IdempotencyConflict          idempotency_conflict
├── NotFound                     not_found
├── OutputExpired                output_expired
├── AlreadyTerminal              already_terminal
├── NotTerminal                  not_terminal
├── NotWaiting                   not_waiting
├── DeadLetterBlocked            dead_letter_blocked
├── DeadLetterResolved           dead_letter_resolved
├── SessionStateConflict         session_state_conflict
├── QueueFull                    queue_full
├── Draining                     draining
├── RateLimited                  rate_limited
├── Unauthenticated              unauthenticated
├── ScopeMissing                 scope_missing
└── CsrfFailed                   csrf_failed

``code`` is stable and part of the API; the HTTP status of each code is kept in `runtape.api.problems`.
"""

from collections.abc import Sequence
from typing import ClassVar


class DomainError(Exception):
    """A refusal with a stable `code`; `field` names the part of the request that is at fault."""

    code: ClassVar[str] = "refused"

    def __init__(self, detail: str, *, field: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.field = field


class Invalid(DomainError):
    """The request breaks a rule that it could have kept."""

    code = "validation_failed"


class ValidationFailed(Invalid):
    """A field is missing or malformed."""


class RuntimeUnknown(Invalid):
    """No runtime of that language is installed here."""

    code = "runtime_unknown"

    def __init__(self, lang: str, known: Sequence[str]) -> None:
        have = ", ".join(known) or "none"
        super().__init__(f'no runtime for "{lang}" (have: {have})', field="lang")


class VersionUnknown(Invalid):
    """The language is installed, but not in that version."""

    code = "version_unknown"

    def __init__(self, lang: str, version: str, known: Sequence[str], *, field: str = "lang_version") -> None:
        super().__init__(f'no {lang} "{version}" (have: {", ".join(known)})', field=field)


class LimitOutOfRange(Invalid):
    """A limit lies outside this installation's bounds; `fix` says what to do when the request did not give it."""

    code = "limit_out_of_range"

    def __init__(self, name: str, value: float, low: float, high: float, fix: str = "") -> None:
        detail = f"limits.{name} is {value}; it must lie between {low} and {high}"
        super().__init__(f"{detail}; {fix}" if fix else detail, field=f"limits.{name}")


class ScriptTooLarge(Invalid):
    """The script is longer than the limit."""

    code = "script_too_large"

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(f"the script has {size_bytes} bytes; the limit is {limit_bytes}", field="script")


class InvalidPath(Invalid):
    """A file's path would leave the work directory or cannot be a file name."""

    code = "invalid_path"


class RequirementInvalid(Invalid):
    """A requirement is none, or of a kind that is not installed here."""

    code = "requirement_invalid"


class PackagesDisabled(Invalid):
    """The operator of this installation has packages switched off."""

    code = "packages_disabled"

    def __init__(self, field: str) -> None:
        detail = "packages are switched off on this installation (setting packages.enabled)"
        super().__init__(f'{detail}; run without, with "requirements": []', field=field)


class IdempotencyConflict(DomainError):
    """The idempotency key was used before with another request."""

    code = "idempotency_conflict"


class NotFound(DomainError):
    """The thing does not exist, or belongs to somebody else."""

    code = "not_found"


class OutputExpired(DomainError):
    """What the execution printed was kept for as long as the operator wants it."""

    code = "output_expired"


class AlreadyTerminal(DomainError):
    """The execution has ended; what was asked needs one that has not."""

    code = "already_terminal"


class NotTerminal(DomainError):
    """The execution has not ended; what was asked needs one that has."""

    code = "not_terminal"


class NotWaiting(DomainError):
    """The execution waits no more; what was asked needs one that does."""

    code = "not_waiting"


class Draining(DomainError):
    """The operator lets nothing more in, so that what is here can end: try here later, or elsewhere."""

    code = "draining"
    retry_after_s = 30


class DeadLetterBlocked(DomainError):
    """The dead letter cannot be retried here and now: another comes before it, or nobody here serves its group."""

    code = "dead_letter_blocked"


class DeadLetterResolved(DomainError):
    """The dead letter was retried or discarded before."""

    code = "dead_letter_resolved"


class SessionStateConflict(DomainError):
    """The replay session is in a state that what was asked does not fit."""

    code = "session_state_conflict"


class QueueFull(DomainError):
    """The admission queue holds as much as it may; try later."""

    code = "queue_full"

    def __init__(self, detail: str, *, retry_after_s: int) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class RateLimited(DomainError):
    """The principal has used its allowance."""

    code = "rate_limited"

    def __init__(self, detail: str, *, retry_after_s: int) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Unauthenticated(DomainError):
    """No valid credentials were presented."""

    code = "unauthenticated"


class ScopeMissing(DomainError):
    """The principal is known but lacks the scope or role."""

    code = "scope_missing"


class CsrfFailed(DomainError):
    """A cookie-authenticated change did not prove that it comes from our own page."""

    code = "csrf_failed"
