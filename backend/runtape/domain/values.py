"""Frozen values that change often: a copy with other fields, cheaply.

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
    copy = object.__new__(type(value))
    fields = vars(copy)
    fields.update(vars(value))
    count = len(fields)
    fields.update(changes)
    if len(fields) != count:
        unknown = ", ".join(sorted(changes.keys() - vars(value).keys()))
        raise TypeError(f"{type(value).__name__} has no field {unknown}")
    return copy
