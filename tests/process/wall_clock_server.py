"""The real server under libfaketime: `LD_PRELOAD=... python -m tests.process.wall_clock_server DATA`.

The library is for this process alone: what it starts would take ten times as long to begin.
"""

import os
import sys
from pathlib import Path

from runtape.runtime.process import serve
from runtape.runtime.settings import Settings

if __name__ == "__main__":
    os.environ.pop("LD_PRELOAD", None)
    sys.exit(serve(Settings(data=Path(sys.argv[1])), host="127.0.0.1", port=0, ephemeral=False))
