"""The real server and its sandbox, with leases of a second: `python -m tests.process.short_lease_server DATA`."""

import sys
from datetime import timedelta
from pathlib import Path

from dishka import decorate

from runtape.application.running import Worker
from runtape.runtime.process import serve
from runtape.runtime.providers.sandbox import LocalSandboxProvider
from runtape.runtime.settings import Settings

LEASE_TTL = timedelta(seconds=1)


class ShortLeases(LocalSandboxProvider):
    @decorate
    def worker(self, worker: Worker) -> Worker:
        worker.lease_ttl = LEASE_TTL
        return worker


if __name__ == "__main__":
    sys.exit(serve(Settings(data=Path(sys.argv[1])), host="127.0.0.1", port=0, ephemeral=False, pods=ShortLeases()))
