"""What the service and a pod's runner say to each other; runner/protocol.h is the other side, and tells the rules.

Nothing here reads or writes: a `Link` makes the bytes that are to be sent, and takes those that have come.
"""

import json
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from runtape.adapters.sandbox.keeper import wire
from runtape.domain.tape import Record, Stream

VERSION: Final = 2
MARK: Final = b"\0runtape"
TO_RUNNER_BYTES: Final = 16_384
FROM_RUNNER_BYTES: Final = 66_000
"""The greatest payload of a frame, in either direction."""
END_OF_FRAME: Final = b"\x5a"
TOKEN_BYTES: Final = 16

_HEAD: Final = struct.Struct("<cI")
_HELLO: Final = struct.Struct("<16sI")
_RUN: Final = struct.Struct("<16sQQQQQQB")
_SEQ: Final = struct.Struct("<I")
_NANOSECONDS: Final = struct.Struct("<Q")
_WELCOME: Final = struct.Struct("<Ic")
_RECORD: Final = struct.Struct("<IBBQ")
_POINT: Final = struct.Struct("<QQQ")
_PADDING: Final = bytes(_HEAD.size + TO_RUNNER_BYTES + len(END_OF_FRAME))
_STREAMS: Final = {1: Stream.STDOUT, 2: Stream.STDERR}


class ProtocolError(Exception):
    """The other side is no runner of this version; the message says what it said."""


class State(Enum):
    """What a runner is doing."""

    WAITING = b"w"
    RUNNING = b"r"
    ENDED = b"e"


@dataclass(frozen=True, slots=True)
class Welcome:
    """The answer to `Link.hello`."""

    state: State


@dataclass(frozen=True, slots=True)
class Started:
    """The program runs, or is known not to."""


@dataclass(frozen=True, slots=True)
class Extended:
    """The answer to `lease`: whoever does not give it is out of reach, also when nobody has closed the connection."""


@dataclass(frozen=True, slots=True)
class Point:
    """What the container held at `t_ns` after the start, and had used until then."""

    t_ns: int
    memory_bytes: int
    cpu_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a program ended, in the runner's words."""

    token: str
    """That of the `Run`, in hexadecimal; one with another was not written by the runner."""
    wait_status: int
    stopped_for: str
    """``lease``, ``wall``, ``cpu``, ``output``, ``cancelled`` or ``deleted``; empty when it ended by itself."""
    failure: str
    """Why it could not be started; empty when it could."""
    wall_ns: int
    cpu_user_ns: int
    cpu_system_ns: int
    peak_memory_bytes: int
    oom_kills: int
    output_bytes: int
    truncated: bool
    last_seq: int
    left_files: bool


@dataclass(frozen=True, slots=True)
class Files:
    """A message about the files that were left; the last has no bytes."""

    message: bytes


Event = Welcome | Started | Extended | Record | Point | Report | Files


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a program may use, and until when; times in ns from now."""

    token: bytes
    lease_ns: int
    wall_ns: int
    cpu_ns: int
    output_bytes: int
    timeline: bool = False


def run(order: wire.Order, wanted: Run) -> bytes:
    """Return the frames that have a waiting runner start a program."""
    packed = order._replace(stdin=b"").packed()
    sizes = len(packed), len(order.stdin)
    times = wanted.lease_ns, wanted.wall_ns, wanted.cpu_ns
    head = _RUN.pack(wanted.token, *sizes, *times, wanted.output_bytes, wanted.timeline)
    return b"".join((*_pieces(b"O", packed), *_pieces(b"I", order.stdin), _frame(b"R", head)))


def acknowledge(seq: int) -> bytes:
    """Return the frame that lets the runner forget the records up to `seq`."""
    return _frame(b"A", _SEQ.pack(seq))


def lease(remaining_ns: int) -> bytes:
    """Return the frame that moves the end of the lease to so long from now."""
    return _frame(b"L", _NANOSECONDS.pack(max(0, remaining_ns)))


def kill() -> bytes:
    """Return the frame that ends the program as cancelled."""
    return _frame(b"K")


def collect(request: bytes) -> bytes:
    """Return the frame that asks an ended runner for the files that were left, within `request`."""
    return _frame(b"C", request)


def leave() -> bytes:
    """Return the frame that ends the runner, and with it the container."""
    return _frame(b"E")


def report_of(text: str) -> Report:
    """Return the report in `text`.  Raises: ProtocolError."""
    try:
        told: dict[str, Any] = json.loads(text)
        version = told.pop("version")
        if version != VERSION:
            raise ProtocolError(f"the report is of version {version}")
        return Report(**told)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ProtocolError(f"no report: {text[:200]!r}") from None


class Link:
    """One attachment to a runner: begins with `hello`, and yields what the runner says from then on."""

    def __init__(self, after_seq: int = 0) -> None:
        """Prepare to go on behind the record `after_seq`."""
        self._nonce = secrets.token_bytes(16)
        self._after_seq = after_seq
        self._marked = False
        self._came = bytearray()

    def hello(self) -> bytes:
        """Return what is to be sent first."""
        return _PADDING + _frame(b"H", _HELLO.pack(self._nonce, self._after_seq))

    def take(self, data: bytes) -> Iterator[Event]:
        """Yield what `data` completes, in order; to be exhausted.  Raises: ProtocolError."""
        self._came += data
        if not self._marked and not self._find_mark():
            return
        while len(self._came) >= _HEAD.size:
            kind, size = _HEAD.unpack_from(self._came)
            if size > FROM_RUNNER_BYTES:
                raise ProtocolError(f"a frame of {size} bytes")
            end = _HEAD.size + size
            if len(self._came) <= end:
                return
            payload = bytes(self._came[_HEAD.size : end])
            if self._came[end : end + 1] != END_OF_FRAME:
                raise ProtocolError("a frame without an end")
            del self._came[: end + 1]
            yield _event(kind, payload)

    def _find_mark(self) -> bool:
        """Drop what was said to somebody else."""
        wanted = MARK + self._nonce
        at = self._came.find(wanted)
        if at < 0:
            del self._came[: -len(wanted)]
            return False
        del self._came[: at + len(wanted)]
        self._marked = True
        return True


def _frame(kind: bytes, payload: bytes = b"") -> bytes:
    return _HEAD.pack(kind, len(payload)) + payload + END_OF_FRAME


def _pieces(kind: bytes, data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), TO_RUNNER_BYTES):
        yield _frame(kind, data[at : at + TO_RUNNER_BYTES])


def _event(kind: bytes, payload: bytes) -> Event:
    try:
        match kind:
            case b"W":
                version, state = _WELCOME.unpack(payload)
                if version != VERSION:
                    raise ProtocolError(
                        f"the image has a runner of version {version}, and this service is of {VERSION}"
                    )
                return Welcome(State(state))
            case b"S":
                return Started()
            case b"x":
                return Extended()
            case b"r":
                seq, stream, truncated, t_ns = _RECORD.unpack_from(payload)
                return Record(seq, _STREAMS[stream], t_ns, payload[_RECORD.size :], truncated=bool(truncated))
            case b"t":
                return Point(*_POINT.unpack(payload))
            case b"e":
                return report_of(payload.decode())
            case b"f":
                return Files(payload)
            case _:
                raise ProtocolError(f"a frame of the kind {kind!r}")
    except (struct.error, ValueError, KeyError) as error:
        raise ProtocolError(f"a frame of the kind {kind!r} and {len(payload)} bytes: {error}") from None
