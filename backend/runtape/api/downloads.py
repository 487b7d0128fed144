"""Bytes as an attachment, whole or a part of them: what programs print and leave is never shown by a browser."""

import re
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, Header
from fastapi.responses import Response, StreamingResponse

from runtape.api.problems import problem
from runtape.api.responses import problem_response


class Wanted:
    """What a client says that it wants of a download, and has of it."""

    def __init__(
        self,
        range_: Annotated[str | None, Header(alias="Range", examples=["bytes=0-99"])] = None,
        if_range: Annotated[
            str | None, Header(description="the `ETag` that the range is meant for", examples=['"6b86b273"'])
        ] = None,
        if_none_match: Annotated[
            str | None, Header(description="the `ETag` of what is known", examples=['"6b86b273"'])
        ] = None,
    ) -> None:
        self.range = range_
        self.if_range = if_range
        self.if_none_match = if_none_match


WantedDep = Annotated[Wanted, Depends()]
DOWNLOADED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "All bytes",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}, "example": "1\\n"}},
    },
    206: {"description": "The bytes that `Range` asks for"},
    304: {"description": "They are what `If-None-Match` names"},
}
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})\Z", re.ASCII)
_PLAIN = re.compile(r"[A-Za-z0-9._ -]+\Z", re.ASCII)
_CSP = "default-src 'none'; frame-ancestors 'none'; sandbox"

Read = Callable[[int, int], AsyncIterator[bytes]]
"""Yields the bytes from the first number to the second (exclusive)."""


class Download:
    """What can be downloaded: under what name, how long, and its digest once it can no longer change."""

    def __init__(self, name: str, size_bytes: int, sha256: str | None) -> None:
        self._name = name
        self._size_bytes = size_bytes
        self._sha256 = sha256

    def answer(self, read: Read, wanted: Wanted) -> Response:
        """Return all bytes, the range that is asked for, or that the client has them already."""
        headers = {"accept-ranges": "bytes", **attachment(self._name)}
        if self._sha256 is not None:
            headers["etag"] = f'"{self._sha256}"'
            if wanted.if_none_match == headers["etag"]:
                return Response(status_code=304, headers=headers)
        size_bytes = self._size_bytes
        # RFC 9110, 13.1.5: a range of what the client knows is worth nothing once that is something else.
        same = wanted.if_range is None or wanted.if_range == headers.get("etag")
        chosen = _range(wanted.range, size_bytes) if wanted.range is not None and same else None
        start, end = chosen or (0, size_bytes)
        if chosen is not None:
            if start >= end:
                detail = f"there are {size_bytes} bytes; {wanted.range} lies beyond them"
                headers["content-range"] = f"bytes */{size_bytes}"
                return problem_response(problem("range_not_satisfiable", detail, field="Range"), headers)
            headers["content-range"] = f"bytes {start}-{end - 1}/{size_bytes}"
        headers["content-length"] = str(end - start)
        return StreamingResponse(
            read(start, end),
            status_code=200 if chosen is None else 206,
            media_type="application/octet-stream",
            headers=headers,
        )


def attachment(name: str) -> dict[str, str]:
    """Return the headers of an answer that is to be saved as the file `name`, and nothing else."""
    return {"content-disposition": _disposition(name), "content-security-policy": _CSP}


def _disposition(name: str) -> str:
    """Return a Content-Disposition that names the file `name` (RFC 6266), also in ASCII where that needs another."""
    if _PLAIN.match(name):
        return f'attachment; filename="{name}"'
    plain = "".join(letter if _PLAIN.match(letter) else "_" for letter in name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def _range(text: str, size_bytes: int) -> tuple[int, int] | None:
    """Return start and end (exclusive) of a Range header (RFC 9110, 14.1.2).

    Empty when it lies beyond the end; None when it has to be or may be ignored: another unit, not well-formed,
    several parts.
    """
    found = _RANGE.match(text)
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        return max(0, size_bytes - int(found[2])), size_bytes
    if found[2] and int(found[2]) < int(found[1]):
        return None
    return int(found[1]), min(int(found[2]) + 1, size_bytes) if found[2] else size_bytes
