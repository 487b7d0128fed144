"""Passes on what comes to a port here to one of a machine's loopback: ``forwarder.py PORT PROCESS PORT_THERE``.

It listens in the network that it is started in, and connects in that of the process.
"""

import asyncio
import contextlib
import functools
import socket
import sys

from tests.rig.kubernetes.machine import enter_network

CHUNK_BYTES = 65536


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
        writer.write_eof()


async def _pass_on(port_there: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer):
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port_there)
        except OSError:
            return
        with contextlib.closing(there_writer):
            await asyncio.gather(_copy(reader, there_writer), _copy(there_reader, writer))


async def _serve(port: int, process: int, port_there: int) -> None:
    listener = socket.create_server(("127.0.0.1", port), backlog=128)
    # asyncio does that for sockets that say that they are TCP's, which those of `create_server` do not: without it what
    # is written in two pieces takes 40 ms, until the other side acknowledges the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    enter_network(process)
    server = await asyncio.start_server(functools.partial(_pass_on, port_there), sock=listener)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(*map(int, sys.argv[1:])))
