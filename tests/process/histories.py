"""What clients did and what they were told, as it happened: one file of JSON lines for each client.

An entry has ``client``, ``at_s`` (monotonic, of this machine), ``kind`` and ``op``, and what the operation says.  Kinds
are Jepsen's: ``invoke`` before anything is sent; ``ok``, it was done; ``fail``, it was not done and never will be;
``info``, nobody can tell, or something that was only seen.

========== ==========================================================================================================
``submit`` ``key``, ``body`` (digest); ok: ``execution_id``; fail: ``status``, ``code``; info: ``error``
``stream`` ``execution_id``, ``last_id``; ok: it came to its end; info: ``error``
``frame``  info: `frame_facts` of every frame with an id that a client took, in order
``whole``  info: ``execution_id`` and ``frames``, those of a reader that comes when all is over
``cancel`` ``execution_id``; ok, fail: ``status``, ``code``
``fault``  invoke when it begins, ok when it is over: ``what``
========== ==========================================================================================================
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.sse import Frame

Entry = dict[str, Any]
NEMESIS = "nemesis"


class Journal:
    """What one client writes down."""

    def __init__(self, folder: Path, client: str) -> None:
        folder.mkdir(exist_ok=True)
        self._client = client
        self._path = folder / f"{client}.jsonl"

    def note(self, kind: str, op: str, **facts: Any) -> None:
        """Write an entry, which is there when this returns."""
        entry = {"client": self._client, "at_s": time.monotonic(), "kind": kind, "op": op, **facts}
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    @contextmanager
    def fault(self, what: str) -> Iterator[None]:
        """Write down that something is wrong with the server while this is entered."""
        self.note("invoke", "fault", what=what)
        try:
            yield
        finally:
            self.note("ok", "fault", what=what)


def frame_facts(frame: Frame) -> Entry:
    """Return what a check needs of a frame: its id, its kind and the digest of its bytes; of output what it carries."""
    facts: Entry = {"id": frame.id, "type": frame.kind, "raw": hashlib.sha256(frame.raw).hexdigest()}
    if frame.event == "output":
        data = frame.data
        facts |= {"attempt": data["attempt"], "seq": data["seq"], "stream": data["stream"]}
        facts["sha256"] = hashlib.sha256(frame.output).hexdigest()
    elif not frame.event:
        facts["attempt"] = frame.data["attempt"]
        facts["result"] = frame.data.get("result")
    return facts


def whole_facts(frames: Iterable[Frame]) -> list[Entry]:
    """Return the facts of a whole stream; frames without an id are not part of it."""
    return [frame_facts(frame) for frame in frames if frame.id is not None]


def load(folder: Path) -> list[Entry]:
    """Return the entries of all clients, in the order in which they happened."""
    entries = [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    return sorted(entries, key=lambda entry: entry["at_s"])


def of(entries: Sequence[Entry], op: str, kind: str | None = None) -> list[Entry]:
    """Return the entries of one operation, of one kind or of all."""
    return [entry for entry in entries if entry["op"] == op and kind in (None, entry["kind"])]
