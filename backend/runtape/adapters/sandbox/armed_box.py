"""A box that waits for its order, as the service holds it: four descriptors."""

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable

from .keeper import wire


class ArmedBox:
    """One box, used once.  Whoever takes it from the pool closes it."""

    __slots__ = ("channel", "number", "on_over_cpu", "on_point", "pidfd", "shape", "stderr_fd", "stdout_fd")

    def __init__(self, number: int, shape: wire.Shape, fds: list[int]) -> None:
        self.number = number
        self.shape = shape
        self.on_point: Callable[[int, int, int], None] | None = None
        """Called with what the keeper sees of it, where `BoxPool.follow` asked for that."""
        self.on_over_cpu: Callable[[int, int], None] | None = None
        """Called once it has used the CPU time of `BoxPool.bound_cpu`."""
        channel_fd, self.stdout_fd, self.stderr_fd, self.pidfd = fds
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, channel_fd)

    def hand_over(self, order: wire.Order) -> None:
        """Give the box its order; the program starts at once.  Raises: OSError, when the box is dead.

        What does not fit a datagram goes in a memfd, and so does an input that does not fit a pipe: it becomes the
        program's descriptor 0 itself, sealed, since a program could make it grow unseen by any limit.
        """
        flags, fds = 0, []
        if len(order.stdin) > wire.INLINE_STDIN_BYTES:
            flags |= wire.STDIN_IN_FD
            stdin, order = order.stdin, order._replace(stdin=b"")
            fds.append(wire.sealed_memfd(stdin))
        packed = order.packed()
        if len(packed) > wire.INLINE_BYTES:
            flags |= wire.ORDER_IN_FD
            fds.insert(0, wire.sealed_memfd(packed))
            packed = b""
        try:
            if fds:
                socket.send_fds(self.channel, [bytes((flags,)), packed], fds)
            else:
                self.channel.send(b"\0" + packed)
        finally:
            for fd in fds:
                os.close(fd)

    def hear(self) -> wire.Ended | str | None:
        """Return how the program ended, why it could not be started, or None when the box has not told."""
        datagram = self.receive()
        return wire.told(datagram) if datagram else None

    def collect(self, request: bytes) -> None:
        """Ask the box, which has told that there are files, to hand them over.  Raises: OSError, when it is dead."""
        self.channel.send(request)

    def receive(self) -> bytes | None:
        """Return the box's next message, nothing when there will be no other, None when there is none now."""
        while True:
            try:
                return self.channel.recv(wire.DATAGRAM_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            except ConnectionResetError:
                # The box ended with something unread, which is told once and before what the box has told itself.
                continue

    def stop(self) -> None:
        """Have pid 1 kill the program with all it started, and tell its end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill pid 1, and by that the whole tree.  The keeper tells the end."""
        self._signal(signal.SIGKILL)

    @property
    def dead(self) -> bool:
        """Whether pid 1 has ended, and by that the whole tree."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def close(self) -> None:
        """Give up the descriptors; an unused box ends by that."""
        self.channel.close()
        for fd in (self.stdout_fd, self.stderr_fd, self.pidfd):
            os.close(fd)
