"""A server's wall clock, set by libfaketime; its monotonic clock is left alone, as when somebody sets the time."""

from pathlib import Path

LIBRARY = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)


class WallClock:
    """The clock of the processes that are started with `environment`; `set` moves it at once."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "faketime"
        self.set("+0")

    def set(self, offset: str) -> None:
        """Set the clock to an offset from the real time, in seconds with a sign, or to ``@YYYY-MM-DD hh:mm:ss``."""
        draft = self._file.with_suffix(".new")
        draft.write_text(offset + "\n")
        draft.replace(self._file)

    @property
    def environment(self) -> dict[str, str]:
        assert LIBRARY is not None
        return {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
        }
