"""The wire of server-sent events (WHATWG HTML, section 9.2.6), read from bytes as they arrive."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Frame:
    """One dispatched event; `event` is ``message`` when the frame was unnamed, `id` is its own id line or None."""

    event: str
    data: str
    id: str | None


class FrameParser:
    """Turns pieces of a stream, cut anywhere, into frames.

    A frame exists only once its blank line has arrived: what a broken connection leaves behind is dropped with
    the parser, together with its id.  Use a new parser for each connection.
    """

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._event = ""
        self._id: str | None = None
        self._first = True
        self.retry_ms: int | None = None

    def feed(self, piece: bytes) -> Iterator[Frame]:
        """Yield the frames that `piece` completes."""
        self._rest += piece
        # A lone CR at the end may be half of a CRLF; it waits for the next piece.
        end = max(self._rest.rfind(b"\n"), self._rest.rfind(b"\r", 0, len(self._rest) - 1)) + 1
        if not end:
            return
        lines = bytes(self._rest[:end]).splitlines()
        del self._rest[:end]
        for line in lines:
            if self._first:
                line = line.removeprefix(b"\xef\xbb\xbf")
                self._first = False
            if line:
                self._field(line)
                continue
            if self._data:
                yield Frame(self._event or "message", b"\n".join(self._data).decode("utf-8", "replace"), self._id)
            self._data, self._event, self._id = [], "", None

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id":
            if b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit():
            self.retry_ms = int(value)
