"""Nudges as bytes, between processes of one version or of the next."""

from typing import Literal

import msgspec

from runtape.domain.execution import Execution
from runtape.ports.live import LifecycleNudge, Nudge, OutputNudge, PodNudge, QueueNudge, SessionNudge, Watched

Kind = Literal["output", "lifecycle", "queue", "pod", "session"]


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """A nudge on its way: who sends it, of what it tells, and what; `QueueNudge` and `SessionNudge` have no `body`."""

    sender: str
    watched_id: str
    kind: Kind
    body: msgspec.Raw = msgspec.Raw(b"\xc0")


class Lifecycle(msgspec.Struct, frozen=True, array_like=True):
    """The body of a `LifecycleNudge`."""

    execution: Execution
    bodies: tuple[bytes, ...]


class Output(msgspec.Struct, frozen=True, array_like=True):
    """The body of an `OutputNudge`."""

    attempt: int
    first_seq: int
    last_seq: int
    bodies: tuple[bytes, ...]


_encode = msgspec.msgpack.Encoder().encode
_decode_envelope = msgspec.msgpack.Decoder(Envelope).decode
_decode_lifecycle = msgspec.msgpack.Decoder(Lifecycle).decode
_decode_bytes = msgspec.msgpack.Decoder(bytes).decode
_decode_output = msgspec.msgpack.Decoder(Output).decode


class Unreadable(Exception):
    """The bytes are no nudge that this version knows."""


def encode(sender: str, watched_id: Watched, nudge: Nudge) -> bytes:
    """Return `nudge` as `decode` reads it."""
    match nudge:
        case OutputNudge():
            kind: Kind = "output"
            body = _encode(Output(nudge.attempt, nudge.first_seq, nudge.last_seq, nudge.bodies))
        case LifecycleNudge():
            kind = "lifecycle"
            body = _encode(Lifecycle(nudge.execution, nudge.bodies))
        case QueueNudge():
            return _encode(Envelope(sender, watched_id, "queue"))
        case PodNudge():
            kind = "pod"
            body = _encode(nudge.body)
        case SessionNudge():
            return _encode(Envelope(sender, watched_id, "session"))
    return _encode(Envelope(sender, watched_id, kind, msgspec.Raw(body)))


def decode(data: bytes) -> Envelope:
    """Return the envelope in `data`; its nudge is not looked at yet.  Raises: Unreadable."""
    try:
        return _decode_envelope(data)
    except msgspec.DecodeError as error:
        raise Unreadable(str(error)) from error


def nudge_of(envelope: Envelope) -> Nudge:
    """Return the nudge in `envelope`.  Raises: Unreadable."""
    try:
        match envelope.kind:
            case "output":
                output = _decode_output(envelope.body)
                return OutputNudge(output.attempt, output.first_seq, output.last_seq, output.bodies)
            case "lifecycle":
                lifecycle = _decode_lifecycle(envelope.body)
                return LifecycleNudge(lifecycle.execution, lifecycle.bodies)
            case "queue":
                return QueueNudge()
            case "pod":
                return PodNudge(_decode_bytes(envelope.body))
            case "session":
                return SessionNudge()
    except msgspec.DecodeError as error:
        raise Unreadable(str(error)) from error
