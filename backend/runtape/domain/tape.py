"""The tape's output records."""

from dataclasses import dataclass
from enum import StrEnum


class Stream(StrEnum):
    """The two output streams of a program."""

    STDOUT = "stdout"
    STDERR = "stderr"


RECORD_BYTES = 65_536
"""The greatest size of one record's data."""


@dataclass(frozen=True, slots=True)
class Record:
    """One piece of output of one attempt.

    ``seq`` counts from 1 without a hole over both streams of the attempt; ``t_ns`` is the monotonic time in ns
    since the program was started, taken when the first byte of the piece was read.  ``data`` holds 1 to
    `RECORD_BYTES` bytes exactly as printed; it is empty only in the record that marks truncation at the output
    limit, which is the last of its attempt.
    """

    seq: int
    stream: Stream
    t_ns: int
    data: bytes
    truncated: bool = False
