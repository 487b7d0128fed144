"""Cheap copies of frozen values that change often.

Documents and messages are frozen dataclasses without slots, so that a copy is one copy of a dictionary.
`dataclasses.replace` reads each field by its name and sets each again through the constructor: seven times as long
for a document, and a run makes eighteen of them.
"""

from typing import TypeVar

T = TypeVar("T")


def replace(value: T, /, **changes: object) -> T:
    """Return a copy of `value`, a frozen dataclass without slots, with other values in the fields of `changes`.

    No ``__post_init__`` is run.  Raises: TypeError, for a name that is no field.
    """
    old = vars(value)
    fields = old | changes
    if len(fields) != len(old):
        raise TypeError(f"{type(value).__name__} has no field {', '.join(sorted(changes.keys() - old.keys()))}")
    copy = object.__new__(type(value))
    object.__setattr__(copy, "__dict__", fields)
    return copy
