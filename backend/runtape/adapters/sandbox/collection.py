"""Takes what a box hands over of the files that its program has left.

Only bytes come, in datagrams of the box's own channel, and here they become files in memory: at most as many and as
large as the run's limits say, whoever sends them.  What does not keep to the protocol ends the collection, as does a
box that dies over it; whole files that came before count.
"""

from collections import Counter
from typing import Final

from runtape.domain.artifact import LeftOut, LeftOutFor, artifact_path
from runtape.domain.limits import Limits
from runtape.ports.pod_runtime import PodArtifact

from .keeper import wire

TIMEOUT_S: Final = 10.0
"""How long a box may take for all its files."""


class Collection:
    """The files of one box, on their way."""

    def __init__(self, limits: Limits) -> None:
        self._files_left = limits.artifacts
        self._bytes_left = limits.artifact_bytes
        self._left_out: Counter[LeftOutFor] = Counter()
        self._path: str | None = None
        self._pieces: list[bytes] = []
        self._missing_bytes = 0
        self._complete = False
        self.files: list[PodArtifact] = []

    def request(self) -> bytes:
        """Return the message that asks the box for its files."""
        return wire.collect(self._files_left, self._bytes_left)

    def take(self, datagram: bytes) -> bool:
        """Take one message; false when no other is to be taken."""
        told = wire.handed_over(datagram) if datagram else None
        if isinstance(told, wire.LeftOut) and not self._missing_bytes:
            self._left_out.update({LeftOutFor(name): count for name, count in told._asdict().items()})
            self._complete = True
            return False
        if isinstance(told, wire.FileBegins) and not self._missing_bytes:
            return self._begin(told.path, told.size_bytes)
        if isinstance(told, bytes) and len(told) <= self._missing_bytes:
            self._missing_bytes -= len(told)
            self._pieces.append(told)
            self._keep_if_whole()
            return True
        return False

    def _begin(self, path: bytes, size_bytes: int) -> bool:
        if not self._files_left or size_bytes > self._bytes_left:
            return False
        self._files_left -= 1
        self._bytes_left -= size_bytes
        self._missing_bytes = size_bytes
        self._path = artifact_path(path)
        self._pieces = []
        self._keep_if_whole()
        return True

    def _keep_if_whole(self) -> None:
        if self._missing_bytes:
            return
        if self._path is None:
            self._left_out[LeftOutFor.BAD_NAME] += 1
        else:
            self.files.append(PodArtifact(self._path, b"".join(self._pieces)))
        self._pieces = []

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """What was left out, and that there may be more when the collection was cut short."""
        counts = self._left_out if self._complete else self._left_out + Counter({LeftOutFor.INTERRUPTED: 1})
        return tuple(LeftOut(reason, counts[reason]) for reason in LeftOutFor if counts[reason])
