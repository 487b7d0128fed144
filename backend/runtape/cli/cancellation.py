"""What Ctrl-C and its relatives do to a run."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from runtape.cli.errors import Interrupted
from runtape.cli.exit_codes import CANCELLED

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Cancellation:
    """Turns the first signal into one cancel request and the second into leaving at once.

    Before `submitted` a signal raises `Interrupted` in the main thread.  After it, reading goes on, because the
    end of the run is to be seen: `cancel` is called in a thread of its own, as soon as the execution's id is
    known.  It must not raise.
    """

    def __init__(self, cancel: Callable[[str], None], say: Callable[[str], None]) -> None:
        self._cancel = cancel
        self._say = say
        self._before: dict[signal.Signals, Any] = {}
        self._execution_id: str | None = None
        self._asked = False
        self._sent = False
        self._submitted = False

    def __enter__(self) -> "Cancellation":
        for number in SIGNALS:
            # A signal that our parent made us ignore (nohup, a shell's background job) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def submitted(self) -> None:
        """Say that from now on the server may know of the run."""
        self._submitted = True

    def known(self, execution_id: str) -> None:
        """Say which execution is meant; sends a cancel request that was waiting for it."""
        self._execution_id = execution_id
        if self._asked:
            self._send()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            self._say("left at once; the run may not have ended yet")
            os._exit(CANCELLED)
        if not self._submitted:
            raise Interrupted
        self._asked = True
        with contextlib.suppress(ValueError):
            self._say(f"cancelling ({signal.Signals(number).name}); once more to leave at once")
        if self._execution_id is not None:
            self._send()

    def _send(self) -> None:
        if self._sent or self._execution_id is None:
            return
        self._sent = True
        threading.Thread(target=self._cancel, args=(self._execution_id,), daemon=True).start()
