"""Server-sent events on the wire, as a raw ASGI response.

A raw route costs a quarter of the memory per stream and a tenth of the CPU per frame of the framework's own
(docs/measurements/control-plane.md), and this path is the product.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable

from starlette.types import Receive, Send

from runtape.application.streaming import HEARTBEAT, Batch, Confirm, Cursor, Frame, Streams
from runtape.domain.ids import ExecutionId
from runtape.ports.live import Subscription, SubscriptionClosed

MEDIA_TYPE = b"text/event-stream"
WRITE_BYTES = 64 << 10
"""Frames are joined into writes of about this size."""

_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)


def encode(frame: Frame) -> bytes:
    """Return the frame as it goes over the wire; its body is one line, so nothing in it can end the frame."""
    if frame is HEARTBEAT:
        return b": heartbeat\n\n"
    head = b""
    if frame.cursor is not None:
        at = frame.cursor
        head = b"id: %d.%d.%d\n" % (at.version, at.attempt, at.seq)
    if frame.event is not None:
        head += b"event: %s\n" % frame.event.encode()
    if frame.retry_ms is not None:
        head += b"retry: %d\n" % frame.retry_ms
    return b"%sdata: %s\n\n" % (head, frame.body)


def writes(batch: Batch) -> Iterable[tuple[bytes, bool]]:
    """Join the frames of a batch into pieces of about `WRITE_BYTES`, each with whether more of the stream follows.

    A piece is made when it is asked for: for a client that does not read, nothing is encoded in advance.
    """
    pieces: list[bytes] = []
    size = 0
    for frame in batch:
        piece = encode(frame)
        pieces.append(piece)
        size += len(piece)
        if size >= WRITE_BYTES or frame is batch[-1]:
            yield b"".join(pieces), frame.event not in ("end", "shutdown")
            pieces, size = [], 0


class SSEService:
    """Serves the streams of executions to ASGI connections as server-sent events; `streams` knows no wire."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def serve(
        self,
        execution_id: ExecutionId,
        cursor: Cursor,
        receive: Receive,
        send: Send,
        confirm: Confirm,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """Send the stream from `cursor` until it ends, the client leaves or may not read on, or we stop.

        The request's body has been received.
        """
        stream, subscription = self._streams.open(execution_id, cursor, confirm)
        await serve_frames(stream.batches(), subscription, receive, send, headers)


async def serve_frames(
    batches: AsyncIterator[Batch],
    subscription: Subscription,
    receive: Receive,
    send: Send,
    headers: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    """Send `batches`, which wait on `subscription`, until they end, the client leaves or we stop.

    A client that stops reading is one that leaves: the kernel cuts it off (`runtape.runtime.process`).
    """
    # The server tells a client's leaving through `receive` alone; closing the subscription ends the stream.
    gone = asyncio.ensure_future(_disconnected(receive))
    gone.add_done_callback(lambda _: subscription.close())
    try:
        await send({"type": "http.response.start", "status": 200, "headers": [*_HEADERS, *headers]})
        async for batch in batches:
            for data, more in writes(batch):
                await send({"type": "http.response.body", "body": data, "more_body": more})
            if gone.done():
                return
    except SubscriptionClosed:
        return
    except asyncio.CancelledError:
        # The server ends so what is left when a shutdown's grace is over: a client that takes nothing more.
        return
    finally:
        gone.cancel()
        subscription.close()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
